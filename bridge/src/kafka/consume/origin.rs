//! Where a consumed record comes from, so that none goes round for ever; pure.
//!
//! Three rules hold together, whatever appliances on one Kafka consume and route:
//!
//! 1. What this appliance published and its sink wrote is passed over: its `ce_id` begins with the id of this journal.
//! 2. What came from a Kafka topic is not written to that topic again: [`came_from`], asked by the sink.
//! 3. What leaves for another Kafka topic says in the header `tidegate_via` through which journals it came; an appliance
//!    passes over what was in its own.
//!
//! By the first rule a record of another appliance is taken, by the second it is not sent back, and by the third it does
//! not come back by a detour: each turn of a loop would have to meet an appliance anew.

use super::headers::{self, Header};

/// The header, and the user property, that names journals a record was in, separated by commas; the oldest first.
pub(super) const VIA: &str = "tidegate_via";
/// Journals that a record may have been in; more is a chain that nobody means.
const JOURNALS_MAX: usize = 16;
/// A journal's id is 128 bits in hexadecimal.
const ID_BYTES: usize = 32;
/// Begins what stands in for the Client Identifier of a record that came from Kafka; the Kafka topic follows.
const CLIENT_PREFIX: &str = "kafka:";

/// What becomes of a record, for where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was in this journal already: a short word for how that is known.
    PassedOver(&'static str),
    /// It is published, and travels on with this as [`VIA`].
    Taken(Option<String>),
}

/// Judges a record by its headers; `journal` is the id of this appliance's journal, in hexadecimal.
pub(super) fn origin(headers: &[Header<'_>], journal: &str) -> Origin {
    let made_by = headers::last(headers, "ce_id").and_then(headers::text).and_then(journal_of);
    if made_by == Some(journal) {
        return Origin::PassedOver("own");
    }
    let via = headers::last(headers, VIA).and_then(headers::text).unwrap_or_default();
    let mut journals: Vec<&str> = via.split(',').filter(|id| is_id(id)).collect();
    if journals.contains(&journal) {
        return Origin::PassedOver("came_back");
    }
    journals.extend(made_by.filter(|made_by| !journals.contains(made_by)));
    if journals.len() > JOURNALS_MAX {
        return Origin::PassedOver("too_far");
    }
    Origin::Taken((!journals.is_empty()).then(|| journals.join(",")))
}

/// The journal in `id`, if it is the id of a record of a journal.
fn journal_of(id: &str) -> Option<&str> {
    let (journal, offset) = id.split_once('-')?;
    let is_offset = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    (is_id(journal) && is_offset).then_some(journal)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What stands in for the Client Identifier of a record that came from `kafka_topic`.
pub(super) fn client(kafka_topic: &str) -> String {
    format!("{CLIENT_PREFIX}{kafka_topic}")
}

/// The Kafka topic a record came from, by its Client Identifier and its Packet Identifier. A client of MQTT could call
/// itself like this, but no publish of a client at QoS 1 or 2 has the Packet Identifier 0 [MQTT-2.2.1-3].
pub(in super::super) fn came_from(client: &str, packet_id: u16) -> Option<&str> {
    client.strip_prefix(CLIENT_PREFIX).filter(|_| packet_id == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "0000000000000000000000000000000a";
    const OTHER: &str = "0000000000000000000000000000000b";
    const THIRD: &str = "0000000000000000000000000000000c";

    fn judged(headers: &[(&str, &str)]) -> Origin {
        let headers: Vec<Header<'_>> =
            headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
        origin(&headers, OWN)
    }

    #[test]
    fn own_records_are_passed_over_and_those_of_others_say_where_they_were() {
        let id = |journal: &str| format!("{journal}-17");
        let taken = |via: &str| Origin::Taken(Some(via.to_owned()));
        assert_eq!(judged(&[]), Origin::Taken(None));
        assert_eq!(judged(&[("ce_id", "6f1b7a9e-0d7b-4c5f-8a55-0e6d3f1d7a10")]), Origin::Taken(None));
        assert_eq!(judged(&[("ce_id", OWN)]), Origin::Taken(None));
        assert_eq!(judged(&[("ce_id", &id(OWN))]), Origin::PassedOver("own"));
        // A device's property comes first; the sink's own header counts.
        assert_eq!(judged(&[("ce_id", &id(OWN)), ("ce_id", &id(OTHER))]), taken(OTHER));
        assert_eq!(judged(&[("ce_id", &id(OTHER))]), taken(OTHER));
        let both = format!("{OTHER},{THIRD}");
        assert_eq!(judged(&[("ce_id", &id(THIRD)), (VIA, OTHER)]), taken(&both));
        assert_eq!(judged(&[("ce_id", &id(THIRD)), (VIA, &both)]), taken(&both));
        let back = format!("{OWN},{OTHER}");
        assert_eq!(judged(&[("ce_id", &id(THIRD)), (VIA, &back)]), Origin::PassedOver("came_back"));
    }

    #[test]
    fn a_chain_has_an_end_and_nonsense_is_no_journal() {
        let many: Vec<String> = (16..32).map(|number| format!("{number:032x}")).collect();
        let many = many.join(",");
        assert_eq!(judged(&[(VIA, &many)]), Origin::Taken(Some(many.clone())));
        assert_eq!(judged(&[("ce_id", &format!("{OTHER}-1")), (VIA, &many)]), Origin::PassedOver("too_far"));
        assert_eq!(judged(&[(VIA, "x,,y")]), Origin::Taken(None));
    }

    #[test]
    fn what_came_from_a_topic_is_known_by_a_client_that_no_device_can_be() {
        assert_eq!(came_from(&client("commands"), 0), Some("commands"));
        assert_eq!(came_from("kafka:commands", 1), None);
        assert_eq!(came_from("http", 0), None);
    }
}
