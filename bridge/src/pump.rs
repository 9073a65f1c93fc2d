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
}

/// A destination that takes batches in order.
///
/// The pump calls `connect` first and again after every error; then `write` for batches in offset order, several
/// before the first is confirmed if the sink allows it, and `confirmed` to wait for progress. A record the
/// destination will never take is a reject: the sink counts and reports it and goes on.
pub trait Sink: Send {
    /// How many batches may be written before the first of them is confirmed.
    const WINDOW: usize;

    /// Connects. Returns the place the destination itself remembers (every entry before it is stored there), if
    /// it keeps one; the pump goes on from there, else from the journal's cursor.
    fn connect(&mut self) -> impl Future<Output = Result<Option<Offset>, SinkError>> + Send;

    /// Hands over the next batch. Returns when the sink has taken it in, which is not yet a confirmation.
    fn write(&mut self, batch: Batch) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Waits until more is stored at the destination: every entry before the returned offset.
    fn confirmed(&mut self) -> impl Future<Output = Result<Offset, SinkError>> + Send;
}
