//! Which topics a sealed segment may hold: the summary in its footer, so that whoever looks for a few topics passes
//! over whole segments that hold none of them.
//!
//! A summary is a Bloom filter (Bloom, CACM 13(7), 1970) over what the segment's Topic Names are made of: each run of
//! levels from the front (`a`, `a/b`, `a/b/c`), and each level with its number (1: `b`). A Topic Filter can match in
//! the segment only if the levels in front of its first wildcard are there as a run, and each level behind it as a
//! level. It errs on one side: what may be there is read, what is passed over is not there.

use bytes::Bytes;
use foldhash::{HashSet, HashSetExt};

use crate::topic::TopicFilter;

/// A segment with more parts than this has no summary: hardly any filter would miss all of them.
const PARTS_MAX: usize = 64 * 1_024;
/// With as many bits and probes per part, about one part in a hundred is taken for another one.
const BITS_PER_PART: usize = 10;
const PROBES: u64 = 7;
/// Topics that were seen a moment ago are known by their place in a table of so many.
const RECENT: usize = 1_024;

/// Collects the topics of the segment that is written to.
#[derive(Debug)]
pub(super) struct Topics {
    recent: Box<[u64; RECENT]>,
    parts: HashSet<u64>,
    too_many: bool,
}

impl Default for Topics {
    fn default() -> Self {
        Self { recent: Box::new([0; RECENT]), parts: HashSet::new(), too_many: false }
    }
}

impl Topics {
    /// A record with this topic is in the segment. Runs for every record, so the usual case, a topic that was there
    /// before, takes one hash and one comparison.
    pub(super) fn note(&mut self, topic: &[u8]) {
        if self.too_many {
            return;
        }
        // 0 is an empty place.
        let hash = quick_hash(topic) | 1;
        let recent = &mut self.recent[(hash >> 32) as usize % RECENT];
        if *recent != hash {
            *recent = hash;
            self.add(topic);
        }
    }

    /// Records whose topics nobody knows were in the segment: who looks for them is to find the gap.
    pub(super) fn note_unknown(&mut self) {
        self.too_many = true;
        self.parts = HashSet::new();
    }

    fn add(&mut self, topic: &[u8]) {
        let mut run = Hash::START;
        for (number, level) in topic.split(|&byte| byte == b'/').enumerate() {
            run = run.level(level);
            self.parts.insert(run.run());
            self.parts.insert(Hash::START.level(level).numbered(number));
        }
        if self.parts.len() > PARTS_MAX {
            self.too_many = true;
            self.parts = HashSet::new();
        }
    }

    /// The summary of what was collected; empty if it would be of no use.
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.too_many {
            return Vec::new();
        }
        let words = (self.parts.len() * BITS_PER_PART).div_ceil(64).max(1);
        let mut summary = vec![0; words * 8];
        let bits = words as u64 * 64;
        for part in &self.parts {
            for bit in probes(*part, bits) {
                summary[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        summary
    }
}

/// What the footer of a sealed segment says about its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSummary(Bytes);

impl TopicSummary {
    pub(super) const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a record that `filter` matches may be in the segment; if not, there is none.
    pub fn may_match(&self, filter: &TopicFilter) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let mut run = Some(Hash::START);
        for (number, level) in filter.levels().enumerate() {
            if level == "#" {
                break;
            }
            if level == "+" {
                if number > 0 && run.take().is_some_and(|run| !self.holds(run.run())) {
                    return false;
                }
                run = None;
                continue;
            }
            match &mut run {
                Some(run) => *run = run.level(level.as_bytes()),
                None if !self.holds(Hash::START.level(level.as_bytes()).numbered(number)) => return false,
                None => {}
            }
        }
        run.is_none_or(|run| run == Hash::START || self.holds(run.run()))
    }

    fn holds(&self, part: u64) -> bool {
        probes(part, self.0.len() as u64 * 8).all(|bit| self.0[(bit / 8) as usize] & 1 << (bit % 8) != 0)
    }
}

/// The bits that stand for a part (double hashing: Kirsch and Mitzenmacher, ESA 2006).
fn probes(part: u64, bits: u64) -> impl Iterator<Item = u64> {
    let step = mix(part) | 1;
    (0..PROBES).map(move |probe| {
        let at = part.wrapping_add(step.wrapping_mul(probe));
        ((u128::from(at) * u128::from(bits)) >> 64) as u64
    })
}

/// The hash of parts, which is written to disk and so must never change: FNV-1a, mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hash(u64);

impl Hash {
    const START: Self = Self(0xcbf2_9ce4_8422_2325);

    /// This run of levels and one more.
    fn level(self, level: &[u8]) -> Self {
        let byte = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(level.iter().chain(b"/").fold(self.0, byte))
    }

    const fn run(self) -> u64 {
        mix(self.0)
    }

    const fn numbered(self, number: usize) -> u64 {
        mix(self.0 ^ mix(number as u64 + 1))
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A hash for this process only.
fn quick_hash(topic: &[u8]) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0).build_hasher();
    hasher.write(topic);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::TopicName;

    fn summary(topics: &[&str]) -> TopicSummary {
        let mut collected = Topics::default();
        for topic in topics {
            collected.note(topic.as_bytes());
        }
        TopicSummary::new(collected.encode().into())
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    #[test]
    fn whatever_matches_is_never_passed_over() {
        let topics = [
            "sensors/a/temperature",
            "sensors/b",
            "/",
            "a//b",
            "étage/1/ü",
            "$SYS/x",
            "sensors",
            "x/y/z/x/y/z",
        ];
        let summary = summary(&topics);
        let levels =
            ["+", "#", "sensors", "a", "b", "", "temperature", "étage", "1", "ü", "x", "y", "z", "$SYS"];
        let mut filters: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
        let mut from = 0;
        for _ in 0..3 {
            let to = filters.len();
            for at in from..to {
                for level in levels {
                    filters.push(format!("{}/{level}", filters[at]));
                }
            }
            from = to;
        }
        let mut matched = 0;
        let mut passed = 0;
        for text in &filters {
            let Ok(filter) = TopicFilter::new(text) else { continue };
            let matches = topics.iter().any(|topic| filter.matches(TopicName::new(topic).unwrap()));
            assert!(summary.may_match(&filter) || !matches, "{text}");
            matched += usize::from(matches);
            passed += usize::from(!summary.may_match(&filter));
        }
        assert!(matched > 50, "{matched} of {}", filters.len());
        assert!(passed > filters.len() / 2, "{passed} of {}", filters.len());
    }

    #[test]
    fn a_segment_of_other_devices_is_passed_over() {
        let topics: Vec<String> = (0..5_000).map(|device| format!("sensors/{device}/temperature")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let summary = summary(&topics);
        for found in
            ["sensors/17/temperature", "sensors/17/#", "sensors/+/temperature", "+/17/#", "#", "+/+/+"]
        {
            assert!(summary.may_match(&filter(found)), "{found}");
        }
        let misses = (5_000..15_000)
            .filter(|device| summary.may_match(&filter(&format!("sensors/{device}/#"))))
            .count();
        assert!(misses < 250, "{misses} of 10,000 are taken for others");
        assert!(!summary.may_match(&filter("commands/17/#")));
        assert!(!summary.may_match(&filter("sensors/+/pressure")));
        assert!(summary.0.len() < 32_000, "{}", summary.0.len());
    }

    #[test]
    fn too_many_topics_leave_no_summary_and_everything_may_match() {
        let mut collected = Topics::default();
        for device in 0..40_000 {
            collected.note(format!("sensors/{device}/temperature").as_bytes());
        }
        let encoded = collected.encode();
        assert!(encoded.is_empty());
        assert!(TopicSummary::new(encoded.into()).may_match(&filter("nowhere")));
    }
}
