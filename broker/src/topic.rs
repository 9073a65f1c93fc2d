//! Topic Names and Topic Filters, valid by construction.
//!
//! A [`TopicName`] holds no wildcard and no U+0000 and is never empty; a [`TopicFilter`] has its wildcards
//! where the specification allows them. Matching follows MQTT 5.0 section 4.7: levels are compared whole,
//! `+` stands for one level, `#` for the parent and everything below, and neither reaches into a topic whose
//! first level begins with `$` [MQTT-4.7.2-1]. Who may use a topic is not decided here.

use std::borrow::Borrow;
use std::fmt;

/// The longest Topic Name or Topic Filter in bytes: what a two-byte length can say [MQTT-4.7.3-3].
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// The most levels a Topic Name or Topic Filter may have, as in mosquitto. Deeper ones are refused, because every
/// level is a step of a walk through the subscriptions.
pub const TOPIC_LEVELS_MAX: usize = 200;

/// Why a string is not a Topic Name or Topic Filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// At least one character is required [MQTT-4.7.3-1].
    #[error("a topic needs at least one character")]
    Empty,
    /// More than [`TOPIC_BYTES_MAX`] bytes.
    #[error("a topic has at most 65535 bytes")]
    TooLong,
    /// More than [`TOPIC_LEVELS_MAX`] levels.
    #[error("a topic has at most 200 levels")]
    TooManyLevels,
    /// U+0000 is not allowed [MQTT-4.7.3-2].
    #[error("a topic cannot hold the character U+0000")]
    Nul,
    /// A Topic Name cannot hold `+` or `#` [MQTT-3.3.2-2].
    #[error("a Topic Name cannot hold the wildcards + and #")]
    WildcardInName,
    /// `+` must fill its level, and `#` must fill the last level [MQTT-4.7.1-1] [MQTT-4.7.1-2].
    #[error("a wildcard must fill its level, and # must be the last level")]
    MisplacedWildcard,
    /// `$share/{ShareName}/{filter}` needs a ShareName without wildcards and a filter [MQTT-4.8.2-1] [MQTT-4.8.2-2].
    #[error("a Shared Subscription is written $share/name/filter, with no + or # in the name")]
    MalformedShare,
}

/// A topic to which something is published: not empty, no wildcard, no U+0000.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks `text` as a Topic Name.
    pub fn new(text: &'a str) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong);
        }
        // All three are ASCII, so a byte of a multi-byte character can never be taken for one.
        let mut levels = 1;
        for byte in text.bytes() {
            match byte {
                0 => return Err(TopicError::Nul),
                b'+' | b'#' => return Err(TopicError::WildcardInName),
                b'/' => levels += 1,
                _ => {}
            }
        }
        if levels > TOPIC_LEVELS_MAX { Err(TopicError::TooManyLevels) } else { Ok(Self(text)) }
    }

    /// A name that was checked when its record was made.
    pub(crate) const fn trusted(text: &'a str) -> Self {
        Self(text)
    }

    /// The name as text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The levels, in order; `/a` has an empty first level.
    pub fn levels(self) -> std::str::Split<'a, char> {
        self.0.split('/')
    }

    /// Whether wildcards at the first level must not match it [MQTT-4.7.2-1].
    pub fn is_system(self) -> bool {
        self.0.as_bytes().first() == Some(&b'$')
    }
}

impl fmt::Debug for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

impl fmt::Display for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What a subscription asks for: a Topic Name in which `+` and `#` may stand for levels.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Box<str>);

impl TopicFilter {
    /// Checks `text` as a Topic Filter.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong);
        }
        if text.bytes().any(|byte| byte == 0) {
            return Err(TopicError::Nul);
        }
        if text.bytes().filter(|&byte| byte == b'/').count() >= TOPIC_LEVELS_MAX {
            return Err(TopicError::TooManyLevels);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            let misplaced = match level {
                "+" => false,
                "#" => levels.peek().is_some(),
                other => other.bytes().any(|byte| byte == b'+' || byte == b'#'),
            };
            if misplaced {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Self(text.into()))
    }

    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels, in order.
    pub fn levels(&self) -> std::str::Split<'_, char> {
        self.0.split('/')
    }

    /// Whether `topic` is one of the topics this filter stands for.
    pub fn matches(&self, topic: TopicName<'_>) -> bool {
        if topic.is_system() && matches!(self.0.as_bytes().first(), Some(b'+' | b'#')) {
            return false;
        }
        let mut names = topic.levels();
        for level in self.levels() {
            match (level, names.next()) {
                // `#` also stands for its parent, so it matches when no level is left [MQTT-4.7.1-2].
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, Some(name)) if level == name => {}
                (_, _) => return false,
            }
        }
        names.next().is_none()
    }

    /// Splits `$share/{ShareName}/{filter}` into the ShareName and the inner filter; `None` for other filters.
    pub fn shared(&self) -> Result<Option<(&str, Self)>, TopicError> {
        let Some(rest) = self.0.strip_prefix("$share/") else {
            return if &*self.0 == "$share" { Err(TopicError::MalformedShare) } else { Ok(None) };
        };
        let Some((name, filter)) = rest.split_once('/') else { return Err(TopicError::MalformedShare) };
        if name.is_empty() || name.contains(['+', '#']) || filter.is_empty() {
            return Err(TopicError::MalformedShare);
        }
        Ok(Some((name, Self::new(filter)?)))
    }
}

impl Borrow<str> for TopicFilter {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for TopicFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_by_whole_levels() {
        let check = |filter: &str, topic: &str, expected: bool| {
            let filter = TopicFilter::new(filter).unwrap();
            let topic = TopicName::new(topic).unwrap();
            assert_eq!(filter.matches(topic), expected, "{filter} against {topic}");
        };
        check("sport/tennis/player1/#", "sport/tennis/player1", true);
        check("sport/tennis/player1/#", "sport/tennis/player1/ranking", true);
        check("sport/tennis/player1/#", "sport/tennis/player2", false);
        check("sport/tennis/+", "sport/tennis/player1", true);
        check("sport/tennis/+", "sport/tennis/player1/ranking", false);
        check("sport/+", "sport", false);
        check("sport/+", "sport/", true);
        check("+/+", "/finance", true);
        check("/+", "/finance", true);
        check("+", "/finance", false);
        check("+", "étage", true);
        check("#", "a/b", true);
        check("#", "/", true);
        check("#", "$SYS/uptime", false);
        check("+/uptime", "$SYS/uptime", false);
        check("$SYS/#", "$SYS/uptime", true);
        check("$SYS/+", "$SYS/uptime", true);
        check("a/b", "a/b", true);
        check("a/b", "a", false);
        check("a", "a/b", false);
        check("A", "a", false);
    }

    #[test]
    fn malformed_topics_are_refused() {
        let name = |text: &str, expected| assert_eq!(TopicName::new(text).err(), expected, "{text:?}");
        name("a/b", None);
        name("a b/ /", None);
        name("", Some(TopicError::Empty));
        name("a/+", Some(TopicError::WildcardInName));
        name("a#", Some(TopicError::WildcardInName));
        name("a\0", Some(TopicError::Nul));
        name(&"a".repeat(65_536), Some(TopicError::TooLong));
        name(&"a".repeat(65_535), None);
        name(&"/".repeat(199), None);
        name(&"/".repeat(200), Some(TopicError::TooManyLevels));

        let filter = |text: &str, expected| assert_eq!(TopicFilter::new(text).err(), expected, "{text:?}");
        filter("#", None);
        filter("+", None);
        filter("+/a/#", None);
        filter("//", None);
        filter("", Some(TopicError::Empty));
        filter("a\0", Some(TopicError::Nul));
        filter(&"+/".repeat(199), None);
        filter(&"/".repeat(200), Some(TopicError::TooManyLevels));
        filter("a/#/b", Some(TopicError::MisplacedWildcard));
        filter("a#", Some(TopicError::MisplacedWildcard));
        filter("a+/b", Some(TopicError::MisplacedWildcard));
        filter("a/+b", Some(TopicError::MisplacedWildcard));
    }

    #[test]
    fn shared_subscriptions_are_taken_apart() {
        let check = |filter: &str, expected: Result<Option<(&str, &str)>, TopicError>| {
            let filter = TopicFilter::new(filter).unwrap();
            let shared = filter.shared();
            let shared =
                shared.as_ref().map(|some| some.as_ref().map(|(name, inner)| (*name, inner.as_str())));
            assert_eq!(shared.map_err(|error| *error), expected, "{filter}");
        };
        check("a/b", Ok(None));
        check("$shared/a", Ok(None));
        check("$share/group/a/+", Ok(Some(("group", "a/+"))));
        check("$share/group//a", Ok(Some(("group", "/a"))));
        check("$share", Err(TopicError::MalformedShare));
        check("$share/group", Err(TopicError::MalformedShare));
        check("$share//a", Err(TopicError::MalformedShare));
        check("$share/group/", Err(TopicError::MalformedShare));
        check("$share/+/a", Err(TopicError::MalformedShare));
    }
}
