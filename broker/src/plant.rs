//! Bugs that a simulation plants on purpose, to show that it would catch them.
//!
//! Without the feature `planted-bugs`, [`is`] is constant `false` and nothing of this reaches a binary. With it,
//! a test picks one bug for its own thread with [`plant`].

/// Names the bugs, each with what it does.
macro_rules! bugs {
    ($($(#[doc = $does:literal])+ $name:ident,)+) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $does])+ $name,)+
        }

        impl Bug {
            /// Every bug.
            #[cfg(feature = "planted-bugs")]
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What it does, in a sentence.
            #[cfg(feature = "planted-bugs")]
            pub const fn does(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($does),+).trim_ascii(),)+
                }
            }
        }
    };
}

bugs! {
    /// Acknowledgements leave before their entry is durable.
    AckBeforeDurable,
    /// The journal says that entries are durable without a sync.
    SyncSkipped,
    /// A sync that fails is taken for one that does not.
    SyncErrorIgnored,
    /// A write that finds no space is taken for one that does.
    NoSpaceIgnored,
    /// The durable end is told one entry too far.
    WatermarkOffByOne,
    /// Readers see entries that are not durable yet.
    ReadPastDurableEnd,
    /// Recovery keeps a torn tail.
    TornTailKept,
    /// Recovery does not compare checksums.
    ChecksumUnchecked,
    /// Recovery drops the last batch, so that its offsets are used again.
    OffsetReused,
    /// Recovery trusts what a failed sync may have left in the cache only.
    TailNotRewritten,
    /// The footer of a sealed segment ends one entry too early.
    FooterEndOffByOne,
    /// A segment is sealed without a sync.
    SealNotSynced,
    /// The folder is not synced after a new segment got its name.
    FolderNotSynced,
    /// Recovery forgets which topics are in the last segment.
    TopicSummaryIncomplete,
    /// Segments are trimmed that a cursor has not passed.
    TrimmedBelowCursor,
    /// Segments are trimmed by positions that are not saved yet.
    TrimmedByUnsaved,
    /// What is trimmed below a cursor is not counted.
    SkippedNotCounted,
    /// The file of cursors is not synced before it gets its name.
    CursorsNotSynced,
    /// The file of cursors is written over in place.
    CursorsOverwritten,
    /// A checkpoint is written before the entries in it are durable.
    CheckpointBeforeDurable,
    /// The checkpoint is not synced before it gets its name.
    CheckpointNotSynced,
    /// The checksum of the checkpoint is not compared.
    CheckpointUnchecked,
    /// A checkpoint leaves out the retained records.
    RetainedNotInCheckpoint,
    /// An empty retained publish does not clear its topic.
    RetainedNotCleared,
    /// After a restart the Packet Identifiers of received QoS 2 publishes are forgotten.
    PacketIdForgotten,
    /// After a restart a released Packet Identifier counts as used.
    ReleaseForgotten,
    /// After a restart a QoS 2 delivery in flight begins anew.
    DeliveryForgotten,
    /// After a restart a QoS 2 delivery that was received is sent again.
    ReceiptForgotten,
    /// Deliveries in flight are not sent again after a reconnect.
    NotSentAgain,
    /// A session's saved position passes deliveries that are not acknowledged.
    PositionPassesInFlight,
    /// What a member of a shared subscription leaves unacknowledged goes to nobody.
    SharedNotHandedOver,
    /// What a member of a shared subscription has in flight at QoS 2 goes to another one.
    SharedHandedOverTwice,
    /// A Will is forgotten in a restart.
    WillForgotten,
    /// A Will is published although its client disconnected in order.
    WillNotVoided,
    /// Sessions do not expire.
    ExpiryIgnored,
    /// CONNACK leaves before the session is durable.
    ConnackBeforeDurable,
    /// Subscriptions are forgotten in a restart.
    SubscriptionForgotten,
    /// A publish that the full journal refuses is acknowledged.
    FullAcknowledged,
    /// A pump passes over a batch without writing it.
    SkippedBatch,
    /// A pump's cursor moves over what is not confirmed.
    CursorBeyondConfirmed,
    /// After an error a pump goes on behind what was in flight.
    RetryGoesOn,
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
