//! A producer whose records become visible together or not at all.
//!
//! A [`Transactor`] is a [`Producer`] with a transactional identity and a thread that makes librdkafka's transactional
//! calls, all of which block; nothing else has to wait for them. Meanwhile the producer's events must be polled: a call
//! that flushes returns only when every report has been taken in.
//!
//! What always holds: after each call that ended well a transaction is open, and every batch that is held belongs to
//! it; at most one call is under way; the thread has ended before the client is destroyed.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_resp_err_t as Response;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::Notify;

use crate::route::KafkaTopic;

use super::{Producer, text};

/// How long one call into librdkafka blocks before it is looked whether anybody still waits for it. A call that has
/// not ended by then is resumed.
const SLICE: Duration = Duration::from_millis(500);
/// The pause before a call that failed at once is made again.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
/// The opaque of a record that is no journal entry. No offset of a held batch is the same, so its report is taken in
/// and otherwise ignored; librdkafka itself does not commit a transaction of which a record was not stored.
const NO_OFFSET: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// What can be asked of the transactional producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kafka) enum Call {
    /// Fences every other producer with the same identity, and ends the transaction it may have left open.
    Init,
    /// Waits until everything handed over is stored, and makes it visible.
    Commit,
    /// Makes sure that nothing handed over since the last commit will be visible.
    Abort,
}

impl Call {
    /// How long it is made again while it may still succeed.
    const fn patience(self) -> Duration {
        match self {
            Self::Init => Duration::from_secs(20),
            // What takes longer was given up by the brokers (transaction.timeout.ms): there is nothing to wait for.
            Self::Commit | Self::Abort => Duration::from_secs(90),
        }
    }
}

/// Why a call failed. Nothing is known of the transaction then, unless a record of it failed before.
#[derive(Debug)]
pub(in crate::kafka) struct CallError {
    /// librdkafka's code.
    pub(in crate::kafka) code: RDKafkaErrorCode,
    /// librdkafka's words.
    pub(in crate::kafka) reason: String,
}

/// How a call ended; of [`Call::Abort`] also why librdkafka held that the transaction could not be committed, if it did.
pub(in crate::kafka) type Outcome = Result<Option<CallError>, CallError>;

/// A transactional producer.
#[derive(Debug)]
pub(in crate::kafka) struct Transactor {
    // Dropped first: its thread uses the client that the producer owns.
    caller: Caller,
    /// The producer itself.
    pub(in crate::kafka) producer: Producer,
}

impl Transactor {
    /// Makes a producer for `topics`; its configuration has a `transactional.id`.
    pub(in crate::kafka) fn new(config: &ClientConfig, topics: &[KafkaTopic]) -> Result<Self, KafkaError> {
        let producer = Producer::new(config, topics)?;
        let client = Client(producer.client.native_ptr());
        Ok(Self { caller: Caller::start(client, producer.wake()), producer })
    }

    /// Begins `call`; the one before it must have ended.
    pub(in crate::kafka) fn begin(&mut self, call: Call) {
        self.caller.begin(call);
    }

    /// How the call ended, if it has. [`Producer::wake`] is notified when it does.
    pub(in crate::kafka) fn ended(&mut self) -> Option<Outcome> {
        self.caller.ended()
    }
}

impl Producer {
    /// Produces a record that is no journal entry into partition 0 of the topic with index `topic`; both are copied.
    pub(in crate::kafka) fn produce_own(
        &mut self,
        topic: usize,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), RDKafkaErrorCode> {
        // SAFETY: the topic's handle lives as long as the client. Key and value are copied before the call returns
        // (RD_KAFKA_MSG_F_COPY; the key always is).
        let taken = unsafe {
            rd::rd_kafka_produce(
                self.topics[topic],
                0,
                rd::RD_KAFKA_MSG_F_COPY,
                value.as_ptr().cast_mut().cast(),
                value.len(),
                key.as_ptr().cast(),
                key.len(),
                NO_OFFSET,
            )
        };
        if taken == 0 {
            return Ok(());
        }
        // SAFETY: it reads a value of this thread.
        Err(unsafe { rd::rd_kafka_last_error() }.into())
    }

    /// Everything held is to be handed over anew, from its beginning: what was handed over has been reported, and
    /// nobody will see it.
    pub(in crate::kafka) fn rewind(&mut self) {
        assert_eq!(self.outstanding, 0, "librdkafka may still read what was not reported");
        for held in &mut self.held {
            held.next = held.batch.entries().place();
            held.done = false;
        }
        self.handed_over = 0;
    }
}

/// librdkafka's client, for the thread that calls it.
#[derive(Clone, Copy)]
struct Client(*mut rd::rd_kafka_t);

// SAFETY: librdkafka's functions may be called from any thread (INTRODUCTION.md, "Threads and callbacks"), and the
// client outlives the thread that gets it: `Transactor` drops the caller, which joins its thread, before the producer.
unsafe impl Send for Client {}

/// The thread that makes the calls.
#[derive(Debug)]
struct Caller {
    /// `None` once it is to end.
    calls: Option<SyncSender<Call>>,
    outcomes: Receiver<Outcome>,
    /// Nobody waits any more.
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Caller {
    fn start(client: Client, wake: Arc<Notify>) -> Self {
        let (calls, to_make) = sync_channel(1);
        let (ended, outcomes) = sync_channel(1);
        let stopped = Arc::new(AtomicBool::new(false));
        let no_more = Arc::clone(&stopped);
        let work = move || {
            let client = client;
            for call in to_make {
                if ended.send(make(client, call, &no_more)).is_err() {
                    return;
                }
                wake.notify_one();
            }
        };
        let thread = thread::Builder::new().name("tidegate-txn".into()).spawn(work);
        Self {
            calls: Some(calls),
            outcomes,
            stopped,
            thread: Some(thread.expect("the system has room for one more thread")),
        }
    }

    fn begin(&self, call: Call) {
        let calls = self.calls.as_ref().expect("it is taken only when the caller is dropped");
        calls.try_send(call).expect("one call at a time, and the thread lives as long as this");
    }

    fn ended(&self) -> Option<Outcome> {
        match self.outcomes.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("the thread that calls librdkafka has ended"),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was told when it happened.
            let _ = thread.join();
        }
    }
}

/// Makes `call`, and opens the next transaction.
fn make(client: Client, call: Call, stopped: &AtomicBool) -> Outcome {
    let Client(native) = client;
    let slice = i32::try_from(SLICE.as_millis()).unwrap_or(i32::MAX);
    let cause = if call == Call::Abort { failure(client) } else { None };
    resume(call.patience(), stopped, || {
        // SAFETY: the client lives, see `Client`; the error is taken over.
        unsafe {
            error_of(match call {
                Call::Init => rd::rd_kafka_init_transactions(native, slice),
                Call::Commit => rd::rd_kafka_commit_transaction(native, slice),
                Call::Abort => rd::rd_kafka_abort_transaction(native, slice),
            })
        }
    })?;
    // SAFETY: as above.
    let begun = unsafe { error_of(rd::rd_kafka_begin_transaction(native)) };
    begun.map_or(Ok(cause), |(error, _)| Err(error))
}

/// Why librdkafka holds that the open transaction cannot be committed, if it does.
fn failure(client: Client) -> Option<CallError> {
    let Client(native) = client;
    // A transaction is open, so another cannot be begun: the error is either just that, or what is wrong with the first.
    // SAFETY: the client lives, see `Client`; the error is taken over.
    let refused = unsafe { error_of(rd::rd_kafka_begin_transaction(native)) };
    refused.map(|(error, _)| error).filter(|error| error.code != RDKafkaErrorCode::State)
}

/// Makes the call until it ends, fails for good, or nobody has the patience any more.
fn resume(
    patience: Duration,
    stopped: &AtomicBool,
    mut call: impl FnMut() -> Option<(CallError, bool)>,
) -> Result<(), CallError> {
    let begun = Instant::now();
    loop {
        let made = Instant::now();
        let Some((error, may_pass)) = call() else { return Ok(()) };
        let given_up = stopped.load(Ordering::Relaxed) || begun.elapsed() >= patience;
        if !may_pass || given_up {
            return Err(error);
        }
        if made.elapsed() < SLICE {
            thread::sleep(AGAIN_PAUSE);
        }
    }
}

/// What `error` says, and whether the same call may succeed later; `None` for no error.
///
/// # Safety
///
/// `error` is null or an error that nobody else frees.
unsafe fn error_of(error: *mut rd::rd_kafka_error_t) -> Option<(CallError, bool)> {
    if error.is_null() {
        return None;
    }
    // SAFETY: it is live until it is destroyed in the last line, and its text is copied before.
    unsafe {
        let code: Response = rd::rd_kafka_error_code(error);
        let told = CallError { code: code.into(), reason: text(rd::rd_kafka_error_string(error)) };
        let may_pass = rd::rd_kafka_error_is_retriable(error) != 0;
        rd::rd_kafka_error_destroy(error);
        Some((told, may_pass))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: RDKafkaErrorCode) -> CallError {
        CallError { code, reason: String::new() }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_call_is_made_again_while_its_error_may_pass() {
        let mut left = 2;
        let outcome = resume(LONG, &AtomicBool::new(false), || {
            left -= 1;
            (left > 0).then(|| (error(RDKafkaErrorCode::OperationTimedOut), true))
        });
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(left, 0);

        let mut made = 0;
        let outcome = resume(LONG, &AtomicBool::new(false), || {
            made += 1;
            Some((error(RDKafkaErrorCode::Fenced), false))
        });
        assert_eq!((outcome.unwrap_err().code, made), (RDKafkaErrorCode::Fenced, 1));
    }

    #[test]
    fn patience_ends_and_so_does_interest() {
        let away = || Some((error(RDKafkaErrorCode::AllBrokersDown), true));
        assert!(resume(Duration::ZERO, &AtomicBool::new(false), away).is_err());
        assert!(resume(LONG, &AtomicBool::new(true), away).is_err());
    }

    #[test]
    fn a_producer_that_reaches_nobody_is_dropped_while_it_calls() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("transactional.id", "a test");
        let topic = KafkaTopic { name: "t".into(), partitions: None, retention_ms: None };
        let mut transactor = Transactor::new(&config, &[topic]).unwrap();
        transactor.begin(Call::Init);
        assert!(transactor.ended().is_none());
        drop(transactor);
    }
}
