//! What a seed came to: enough to tell whether it runs the same way again, and whether it was worth running.

/// How often what is rare has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) publishes: u64,
    pub(super) deliveries: u64,
    /// Restarts after a crash, and in order.
    pub(super) crashes: u64,
    pub(super) orderly_ends: u64,
    /// Failures of the journal after a fault.
    pub(super) failures: u64,
    /// Publishes that were refused, and connections that were held back.
    pub(super) refused: u64,
    pub(super) held: u64,
    /// Times at which the disk had no space.
    pub(super) disk_full: u64,
    /// Entries trimmed, and trimmed before a sink had them.
    pub(super) trimmed: u64,
    pub(super) skipped: u64,
    pub(super) wills: u64,
    pub(super) expired: u64,
}

impl Counts {
    /// With their names.
    pub(super) const fn named(&self) -> [(&'static str, u64); 12] {
        [
            ("publishes", self.publishes),
            ("deliveries", self.deliveries),
            ("crashes", self.crashes),
            ("orderly ends", self.orderly_ends),
            ("failures of the journal", self.failures),
            ("publishes refused", self.refused),
            ("connections held back", self.held),
            ("times of a full disk", self.disk_full),
            ("entries trimmed", self.trimmed),
            ("entries skipped", self.skipped),
            ("Wills published", self.wills),
            ("sessions expired", self.expired),
        ]
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.publishes += other.publishes;
        self.deliveries += other.deliveries;
        self.crashes += other.crashes;
        self.orderly_ends += other.orderly_ends;
        self.failures += other.failures;
        self.refused += other.refused;
        self.held += other.held;
        self.disk_full += other.disk_full;
        self.trimmed += other.trimmed;
        self.skipped += other.skipped;
        self.wills += other.wills;
        self.expired += other.expired;
    }
}

/// What a seed came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Of all bytes sent and all that is left on the disk and at the destinations.
    pub(super) digest: u64,
    pub(super) counts: Counts,
}
