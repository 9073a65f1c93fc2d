//! Bugs that a simulation plants on purpose, to show that it would catch them.
//!
//! Without the feature `planted-bugs`, [`is`] is constant `false` and nothing of this reaches a binary. With it,
//! a test picks one bug for its own thread with [`plant`].

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Acknowledgements leave before their entry is durable.
    AckBeforeDurable,
    /// A pump passes over a batch without writing it.
    SkippedBatch,
    /// Recovery keeps a torn tail.
    TornTailKept,
    /// Recovery does not compare checksums.
    ChecksumUnchecked,
    /// The durable end is told one entry too far.
    WatermarkOffByOne,
    /// Readers see entries that are not durable yet.
    ReadPastDurableEnd,
}

#[cfg(feature = "planted-bugs")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants `bug` in this thread, or takes the planted one away.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted in this thread.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted in this thread: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is(_bug: Bug) -> bool {
    false
}
