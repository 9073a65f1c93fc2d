//! Cursor + batch + retry for any sink. (Interface first.)

use tidegate_broker::record::{Batch, Offset};

/// Why a sink did not take a batch.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The destination is away or busy; the same batch is offered again after a pause.
    #[error("{0}")]
    Retry(String),
    /// Nothing will change until an operator acts (credentials, rights, a newer schema); tried again rarely.
    #[error("{0}")]
    Operator(String),
    /// The destination is away, but the sink keeps what it has taken in and goes on by itself: nothing is offered
    /// again, and [`Sink::confirmed`] is asked on. Only `confirmed` returns it, once per change of what it says.
    #[error("{0}")]
    Waiting(String),
}

/// A destination that takes batches in order.
///
/// The pump calls `connect` first and again after every error; then `write` for batches in offset order, several
/// before the first is confirmed if the sink allows it, and `confirmed` to wait for progress. A record the
/// destination will never take is a reject: the sink counts and reports it and goes on.
///
/// The futures of `connect` and `confirmed` are dropped and made anew whenever the pump has something else to do
/// (more to write, drain), so neither may lose anything that has happened when it is dropped: what must not be
/// interrupted belongs into `write`, which is only dropped when the deadline of a drain has passed.
pub trait Sink: Send {
    /// How many batches may be written before the first of them is confirmed.
    const WINDOW: usize;

    /// How many bytes of entries may be written before the first of them is confirmed; one batch always may.
    const WINDOW_BYTES: usize = 32 << 20;

    /// Connects. Returns the place the destination itself remembers (every entry before it is stored there), if
    /// it keeps one; the pump goes on from there, else from the journal's cursor.
    fn connect(&mut self) -> impl Future<Output = Result<Option<Offset>, SinkError>> + Send;

    /// Hands over the next batch. Returns when the sink has taken it in, which is not yet a confirmation.
    fn write(&mut self, batch: Batch) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Waits until more is stored at the destination: every entry before the returned offset. Asked only while
    /// something written is not confirmed.
    fn confirmed(&mut self) -> impl Future<Output = Result<Offset, SinkError>> + Send;
}
