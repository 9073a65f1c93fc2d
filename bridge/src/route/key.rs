//! What becomes the Kafka key, and how it is written; pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::pointer::Pointer;

/// What becomes the Kafka key. Records with the same key keep their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeyRule {
    /// `device`: the second level of a topic with at least three, as in `sensors/{device_id}/{metric}`; else the client.
    Device,
    /// `client`: the Client Identifier of the publisher.
    #[default]
    Client,
    /// `topic`: the whole Topic Name.
    Topic,
    /// `level:N`: the level of the topic with this number, counted from 1; the client if there is none, or an empty one.
    Level(u16),
    /// A JSON pointer (RFC 6901), as in `/deviceId`: what it names in the payload, if that is a text, a number or a
    /// boolean; else as [`KeyRule::Device`].
    Payload(Pointer),
    /// `none`: no key. Records are spread over the partitions, and their order is lost.
    None,
}

const ALLOWED: &str =
    "write device, client, topic, level:2, /deviceId (a JSON pointer into the payload) or none";

impl FromStr for KeyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "device" => return Ok(Self::Device),
            "client" => return Ok(Self::Client),
            "topic" => return Ok(Self::Topic),
            "none" => return Ok(Self::None),
            _ => {}
        }
        if text.starts_with('/') {
            return Pointer::new(text).map(Self::Payload);
        }
        let Some(level) = text.strip_prefix("level:") else {
            return Err(format!("{text:?} is not a key: {ALLOWED}"));
        };
        match level.trim().parse() {
            Ok(level) if level > 0 => Ok(Self::Level(level)),
            Ok(_) | Err(_) => Err(format!("{text:?} is not a key: levels are counted from 1, as in level:2")),
        }
    }
}

impl fmt::Display for KeyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Client => f.write_str("client"),
            Self::Topic => f.write_str("topic"),
            Self::Level(level) => write!(f, "level:{level}"),
            Self::Payload(pointer) => f.write_str(pointer.as_str()),
            Self::None => f.write_str("none"),
        }
    }
}

impl TryFrom<String> for KeyRule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<KeyRule> for String {
    fn from(rule: KeyRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        for text in ["device", "client", "topic", "none", "level:1", "level:65535", "/deviceId", "/a~1b/0"] {
            assert_eq!(text.parse::<KeyRule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_rule_is_told_with_what_is() {
        let check = |text: &str, part: &str| {
            let told = text.parse::<KeyRule>().unwrap_err();
            assert!(told.contains(part), "{told}");
        };
        check("deviceId", "write device, client");
        check("", "write device, client");
        check("level:0", "counted from 1");
        check("level:x", "counted from 1");
        check("/a~2", "~0");
    }
}
