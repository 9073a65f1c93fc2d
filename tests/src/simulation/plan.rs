//! What kind of world a seed makes: how large the journal is, what it does when it is full, and what may go wrong.

use std::time::Duration;

use tidegate_broker::journal::{FullPolicy, Options};
use tidegate_broker::record::Qos;

use crate::support::random::Random;

/// Steps before everything settles.
const STEPS: std::ops::Range<u64> = 150..400;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) steps: u64,
    pub(super) options: Options,
    /// The QoS of the shared subscription.
    pub(super) group_qos: Qos,
    /// Whether calls to the disk fail and the power goes off in the middle of one.
    pub(super) disk_fails: bool,
    /// Whether the disk gets full.
    pub(super) disk_fills: bool,
    /// Whether the wall clock jumps.
    pub(super) clock_jumps: bool,
    /// Whether bytes on the disk change.
    pub(super) disk_rots: bool,
    /// Whether the client whose session expires, and a member of the group, are away when everything settles.
    pub(super) ends_away: bool,
}

impl Plan {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut one_in = |n: u64| random.within(0..n) == 0;
        let (is_small, drops, short_segments) = (one_in(3), one_in(4), one_in(2));
        let segment_bytes = if short_segments { 1_500 } else { 6_000 };
        let options = Options {
            segment_bytes,
            max_bytes: if is_small { 16_000 } else { 4 << 20 },
            tail_bytes: if one_in(2) { 800 } else { 3_000 },
            batch_bytes: if one_in(2) { 300 } else { 1_000 },
            max_age: one_in(4).then_some(Duration::from_secs(20)),
            full: if drops { FullPolicy::DropOldest } else { FullPolicy::Refuse },
            ..Options::default()
        };
        Self {
            group_qos: if one_in(2) { Qos::AtLeastOnce } else { Qos::ExactlyOnce },
            disk_fails: one_in(2),
            disk_fills: one_in(4),
            clock_jumps: one_in(4),
            disk_rots: one_in(4),
            ends_away: one_in(3),
            steps: random.within(STEPS),
            options,
        }
    }

    /// Whether what is lost may be lost: by the retention policy, and counted.
    pub(super) fn drops(&self) -> bool {
        self.options.full == FullPolicy::DropOldest
    }
}
