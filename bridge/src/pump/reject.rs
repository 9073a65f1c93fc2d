//! Records that a destination will never take: counted once each, told once per burst, never in the way.

use std::time::{Duration, Instant};

use tidegate_broker::record::Offset;

use crate::health::Part;

/// Rejects less than this apart belong to one burst, of which only the first is logged in full.
const BURST_GAP: Duration = Duration::from_secs(10);

/// A record that a destination will never take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Where it lies in the journal.
    pub offset: Offset,
    /// Where it was published.
    pub topic: String,
    /// A short fixed word for the metric, such as `too_large`.
    pub reason: &'static str,
    /// What the destination said, and what to do about it.
    pub detail: String,
}

/// Counts and tells the rejects of one sink.
///
/// Rejects are added in offset order; one that is offered, and rejected, again after a reconnect counts once.
#[derive(Debug)]
pub struct Rejects {
    part: Part,
    counted_before: Offset,
    last: Option<Instant>,
    untold: u64,
}

impl Rejects {
    /// For the sink whose health is `part`.
    pub const fn new(part: Part) -> Self {
        Self { part, counted_before: Offset(0), last: None, untold: 0 }
    }

    /// Counts `reject`, and logs it if it is the first for a while. Returns whether it was not counted before.
    pub fn add(&mut self, reject: &Reject) -> bool {
        if reject.offset < self.counted_before {
            return false;
        }
        self.counted_before = reject.offset.plus(1);
        let sink = self.part.name();
        metrics::counter!("tidegate_sink_rejected_total", "sink" => sink, "reason" => reject.reason)
            .increment(1);
        let Reject { offset, topic, detail, .. } = reject;
        let told = format!("the record at offset {offset} (topic {topic}) was rejected: {detail}");
        let now = Instant::now();
        if self.last.is_none_or(|last| now.duration_since(last) >= BURST_GAP) {
            tracing::warn!(sink, untold = self.untold, "{sink}: {told}; the records behind it go on");
            self.untold = 0;
        } else {
            self.untold += 1;
        }
        self.last = Some(now);
        self.part.update(|report| {
            report.rejected += 1;
            *report.reasons.entry(reject.reason).or_default() += 1;
            report.detail = Some(told);
        });
        true
    }
}
