//! What the cursor topic holds: who has the transactional identity, and how far each journal has come; pure.
//!
//! There are two kinds of records, and compaction keeps the last of each:
//!
//! | key | value | |
//! |---|---|---|
//! | `{transactional id}` | [`Claim`] | written by every producer once it has fenced the others |
//! | `{transactional id}/{journal id}` | [`Cursor`] | in every transaction, with the records it stands for |
//!
//! A journal id is 32 hexadecimal digits. Cursors of different journals do not overwrite each other, so that an
//! instance finds its own place again although another one had its identity meanwhile.

use serde::{Deserialize, Serialize};
use tidegate_broker::record::Offset;

/// Between the transactional id and the journal id in the key of a cursor; no transactional id has it.
pub(super) const SEPARATOR: char = '/';

/// Who claims a transactional id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// Another one for each start of the program.
    pub(super) instance: String,
    /// How many times this instance has claimed it.
    pub(super) count: u64,
    /// The machine it runs on.
    pub(super) host: String,
    /// The journal that it carries.
    pub(super) journal: String,
}

/// How far one journal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Every record before this offset is in Kafka.
    pub(super) offset: u64,
}

/// Who this is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) transactional_id: String,
    pub(super) claim: Claim,
}

impl Identity {
    /// The key of the claim.
    pub(super) fn claim_key(&self) -> &str {
        &self.transactional_id
    }

    /// The key of the cursor.
    pub(super) fn cursor_key(&self) -> String {
        format!("{}{SEPARATOR}{}", self.transactional_id, self.claim.journal)
    }
}

/// A value as it is written.
pub(super) fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names and numbers can be written as JSON")
}

/// What was found for one identity, by reading the topic from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Who claimed the transactional id last.
    pub(super) owner: Option<Claim>,
    /// The own journal's cursor.
    pub(super) cursor: Option<Offset>,
    /// Another journal that has a cursor under the same transactional id: the last one read.
    pub(super) other_journal: Option<String>,
}

impl Found {
    /// Takes in the next record. `Err` says which record of ours nobody can read.
    pub(super) fn read(
        &mut self,
        identity: &Identity,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), String> {
        let Some(rest) = key.strip_prefix(identity.transactional_id.as_bytes()) else { return Ok(()) };
        if rest.is_empty() {
            // A claim that cannot be read is by somebody else all the same.
            let unknown = || Claim { instance: "?".into(), count: 0, host: "?".into(), journal: "?".into() };
            self.owner = value.map(|value| serde_json::from_slice(value).unwrap_or_else(|_| unknown()));
            return Ok(());
        }
        let Some(journal) = std::str::from_utf8(rest).ok().and_then(|rest| rest.strip_prefix(SEPARATOR))
        else {
            return Ok(());
        };
        if journal != identity.claim.journal {
            self.other_journal = value.map(|_| journal.to_owned());
            return Ok(());
        }
        // An empty value (a tombstone) takes the cursor back.
        let Some(value) = value else {
            self.cursor = None;
            return Ok(());
        };
        let cursor: Cursor = serde_json::from_slice(value)
            .map_err(|why| format!("{}: {why}", String::from_utf8_lossy(value)))?;
        self.cursor = Some(Offset(cursor.offset));
        Ok(())
    }

    /// Whether the last claim is the one that `identity` makes now: not by somebody else, and not an earlier one.
    pub(super) fn is_claimed(&self, identity: &Identity) -> bool {
        self.owner.as_ref() == Some(&identity.claim)
    }

    /// Whether the last claim is by somebody else.
    pub(super) fn rival(&self, identity: &Identity) -> Option<&Claim> {
        self.owner.as_ref().filter(|owner| owner.instance != identity.claim.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(instance: &str, journal: &str) -> Identity {
        let (host, journal) = ("edge-1".into(), journal.into());
        let claim = Claim { instance: instance.into(), count: 1, host, journal };
        Identity { transactional_id: "plant-7".into(), claim }
    }

    fn found(identity: &Identity, records: &[(&str, Option<&str>)]) -> Found {
        let mut found = Found::default();
        for (key, value) in records {
            found.read(identity, key.as_bytes(), value.map(str::as_bytes)).unwrap();
        }
        found
    }

    #[test]
    fn each_journal_finds_its_own_place_whoever_wrote_last() {
        let (one, two) = (identity("a", "0aa1"), identity("b", "0bb2"));
        let records = [
            (one.claim_key().to_owned(), written(&one.claim)),
            (one.cursor_key(), written(&Cursor { offset: 7 })),
            (two.claim_key().to_owned(), written(&two.claim)),
            (two.cursor_key(), written(&Cursor { offset: 900 })),
            ("plant-70/0aa1".to_owned(), written(&Cursor { offset: 1 })),
            ("plant-70".to_owned(), "{}".to_owned()),
            ("another".to_owned(), "not ours, not JSON".to_owned()),
        ];
        let records: Vec<_> =
            records.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))).collect();
        let seen = found(&one, &records);
        assert_eq!(seen.cursor, Some(Offset(7)));
        assert_eq!(seen.rival(&one), Some(&two.claim));
        assert_eq!(seen.other_journal.as_deref(), Some("0bb2"));
        let seen = found(&two, &records);
        assert_eq!((seen.cursor, seen.rival(&two)), (Some(Offset(900)), None));
        assert_eq!(found(&two, &[]), Found::default());
    }

    #[test]
    fn the_last_record_counts_and_a_tombstone_takes_it_back() {
        let one = identity("a", "0aa1");
        let key = one.cursor_key();
        let check = |values: &[Option<&str>], expected: Option<u64>| {
            let records: Vec<_> = values.iter().map(|value| (key.as_str(), *value)).collect();
            assert_eq!(found(&one, &records).cursor, expected.map(Offset), "{values:?}");
        };
        check(&[Some(r#"{"offset":3}"#), Some(r#"{"offset":5}"#)], Some(5));
        check(&[Some(r#"{"offset":5}"#), Some(r#"{"offset":3}"#)], Some(3));
        check(&[Some(r#"{"offset":5}"#), None], None);
        let restarted = identity("c", "0aa1");
        let claims = [("plant-7", Some(written(&one.claim)))];
        let claims: Vec<_> = claims.iter().map(|(key, value)| (*key, value.as_deref())).collect();
        assert_eq!(found(&restarted, &claims).rival(&restarted), Some(&one.claim));
    }

    #[test]
    fn an_earlier_claim_of_the_same_instance_is_not_the_one_that_is_waited_for() {
        let mut one = identity("a", "0aa1");
        let earlier = written(&one.claim);
        one.claim.count += 1;
        let seen = found(&one, &[("plant-7", Some(&earlier))]);
        assert!(!seen.is_claimed(&one), "what was committed since lies behind it");
        assert_eq!(seen.rival(&one), None);
        let seen = found(&one, &[("plant-7", Some(&earlier)), ("plant-7", Some(&written(&one.claim)))]);
        assert!(seen.is_claimed(&one));
    }

    #[test]
    fn a_cursor_that_nobody_can_read_is_no_first_start() {
        let one = identity("a", "0aa1");
        let wrong = Found::default().read(&one, one.cursor_key().as_bytes(), Some(b"12")).unwrap_err();
        assert!(wrong.starts_with("12: "), "{wrong}");
        let seen = found(&one, &[("plant-7", Some("12"))]);
        assert!(seen.rival(&one).is_some(), "whoever wrote that, it was not this instance");
    }
}
