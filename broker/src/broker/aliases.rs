//! Topic aliases of what is sent to one client, as far as it takes them [MQTT-3.1.2-26] [MQTT-3.3.2-11].
//!
//! The first topics that are sent get a number each and keep it as long as the connection lasts; when the numbers are
//! given out, other topics are written out. Packets are encoded in the order in which they are sent, so a client has
//! always learnt a number before it is used.

use crate::maps::HashMap;

/// The most numbers that are used on one connection, whatever the client takes: it bounds the memory for it.
const ALIASES_MAX: u16 = 32;

/// From this length on a topic is shorter as an alias, however the lengths around it are written.
const TOPIC_BYTES_MIN: usize = 6;

/// A longer topic is written out: it would take memory for as long as the connection lasts.
const TOPIC_BYTES_MAX: usize = 256;

/// The aliases in use on one connection.
#[derive(Debug)]
pub(super) struct OutgoingAliases {
    /// How many may be given out; never 0.
    max: u16,
    numbers: HashMap<Box<str>, u16>,
}

/// An alias for a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alias {
    /// The client knows it: it stands for the topic.
    Known(u16),
    /// It is set by this PUBLISH, which has the topic as well.
    New(u16),
}

impl OutgoingAliases {
    /// For a client that takes `max` of them; none if that is 0 [MQTT-3.1.2-27].
    pub(super) fn new(max: u16) -> Option<Box<Self>> {
        (max > 0).then(|| Box::new(Self { max: max.min(ALIASES_MAX), numbers: HashMap::default() }))
    }

    /// The alias with which `topic` is to be sent; a new one only where `has_room` says that the packet may be a few
    /// bytes longer.
    pub(super) fn of(&mut self, topic: &str, has_room: impl FnOnce() -> bool) -> Option<Alias> {
        if !(TOPIC_BYTES_MIN..=TOPIC_BYTES_MAX).contains(&topic.len()) {
            return None;
        }
        if let Some(&number) = self.numbers.get(topic) {
            return Some(Alias::Known(number));
        }
        let given_out = u16::try_from(self.numbers.len()).expect("no more than ALIASES_MAX");
        if given_out >= self.max || !has_room() {
            return None;
        }
        self.numbers.insert(topic.into(), given_out + 1);
        Some(Alias::New(given_out + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_topics_get_the_numbers_and_keep_them() {
        assert!(OutgoingAliases::new(0).is_none());
        let mut aliases = OutgoingAliases::new(2).unwrap();
        let long = "x".repeat(257);
        for (topic, has_room, expected) in [
            ("short", true, None),
            (long.as_str(), true, None),
            ("first/topic", false, None),
            ("first/topic", true, Some(Alias::New(1))),
            ("first/topic", false, Some(Alias::Known(1))),
            ("second/topic", true, Some(Alias::New(2))),
            ("third/topic", true, None),
            ("second/topic", true, Some(Alias::Known(2))),
        ] {
            assert_eq!(aliases.of(topic, || has_room), expected, "{topic}");
        }
        let mut aliases = OutgoingAliases::new(u16::MAX).unwrap();
        let given = (0..1_000).filter(|n| aliases.of(&format!("topic/{n}"), || true).is_some());
        assert_eq!(given.count(), usize::from(ALIASES_MAX));
    }
}
