//! The one place that speaks C with librdkafka: a producer that is handed pointers into batches, never copies.
//!
//! A [`Producer`] owns the batches it produces from. The payload of a record is passed to librdkafka without its COPY
//! flag, as a pointer into the batch; the batch is released when the delivery report of its last record has come, or
//! after the librdkafka client has been destroyed, whichever is first. So a pointer that librdkafka holds always
//! points into a batch that the producer holds.
//!
//! The opaque of a record is its journal offset, so nothing is allocated for it and no pointer is made from it.
//! What errors mean is decided elsewhere.

mod consumed;
mod rights;
#[cfg(test)]
mod tests;
mod transaction;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_void};
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_resp_err_t as Response;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaType;
use tidegate_broker::record::{Appended, Batch, Entry, Offset, Record};
use tokio::sync::Notify;

use crate::route::KafkaTopic;

use super::headers::HeaderSink;

pub(super) use consumed::headers;
pub(super) use rights::unwritable;
pub(super) use transaction::{Call, CallError, Outcome, Transactor};

/// The headers of one record, owned by librdkafka's allocator.
#[derive(Debug)]
pub(super) struct Headers {
    list: ptr::NonNull<rd::rd_kafka_headers_t>,
    /// What they take in a record batch.
    bytes: usize,
}

impl Headers {
    /// Room for `count` headers; more may be added.
    pub(super) fn new(count: usize) -> Self {
        // SAFETY: a plain allocation; librdkafka aborts the process rather than return null.
        let headers = unsafe { rd::rd_kafka_headers_new(count) };
        let list = ptr::NonNull::new(headers).expect("librdkafka never returns null headers");
        Self { list, bytes: 0 }
    }

    /// How many bytes they take in a record batch, their number not counted.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl HeaderSink for Headers {
    fn add(&mut self, name: &str, value: &[u8]) {
        let size = |bytes: &[u8]| isize::try_from(bytes.len()).expect("a slice is no longer than isize::MAX");
        // SAFETY: the list is ours until it is handed over, and librdkafka copies name and value before it returns.
        unsafe {
            rd::rd_kafka_header_add(
                self.list.as_ptr(),
                name.as_ptr().cast(),
                size(name.as_bytes()),
                value.as_ptr().cast(),
                size(value),
            );
        }
        self.bytes += sized(name.len()) + sized(value.len());
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: the list is ours: `produce` forgets it once librdkafka owns it.
        unsafe { rd::rd_kafka_headers_destroy(self.list.as_ptr()) }
    }
}

// SAFETY: the list is plain memory without ties to a thread, and only its owner touches it.
unsafe impl Send for Headers {}

/// What a record batch of one record has beside key, value and headers, at most: the batch's own head (61 bytes) and
/// the record's length, attributes, time and offset, and the number of headers.
const BATCH_OF_ONE_BYTES: usize = 61 + 5 + 1 + 1 + 1 + 2;

/// What `length` bytes take with their length before them: a signed varint, as Protocol Buffers write it.
const fn sized(length: usize) -> usize {
    let bits = usize::BITS - (length << 1).leading_zeros();
    length + if bits == 0 { 1 } else { bits.div_ceil(7) as usize }
}

/// What becomes the value of a Kafka record.
#[derive(Debug)]
pub(super) enum Value {
    /// The record's payload as it lies in the batch, not copied.
    Payload,
    /// Other bytes, made from the payload; librdkafka copies them.
    Encoded(Vec<u8>),
}

/// How a record is produced; its time is its own.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    /// Index into the topics that the producer was made with.
    pub(super) topic: usize,
    pub(super) key: Option<Cow<'a, [u8]>>,
    pub(super) value: Value,
    pub(super) headers: Option<Headers>,
}

impl Outgoing<'_> {
    /// How large the record batch is that holds this record alone, uncompressed: what a topic's `max.message.bytes`
    /// is compared with. A few bytes more than it can be, never less. `record` is what it was made from.
    pub(super) fn batch_bytes(&self, record: &Record<'_>) -> usize {
        let value = match &self.value {
            Value::Payload => record.payload.len(),
            Value::Encoded(bytes) => bytes.len(),
        };
        let key = self.key.as_ref().map_or(0, |key| key.len());
        let headers = self.headers.as_ref().map_or(0, Headers::bytes);
        BATCH_OF_ONE_BYTES + sized(key) + sized(value) + headers
    }
}

/// A batch that librdkafka holds pointers into, or will.
#[derive(Debug)]
struct Held {
    batch: Batch,
    /// The first entry not handed over yet.
    next: Appended,
    /// Records handed over and not reported, or held back.
    outstanding: u32,
    /// Whether all its records have been handed over, reported and stored (or given up by whoever was told).
    done: bool,
    /// Where the last record that was looked up lies: they are looked up in order.
    looked_up: Cell<Appended>,
}

impl Held {
    /// The record at `offset`.
    fn record(&self, offset: Offset) -> Option<Record<'_>> {
        let last = self.looked_up.get();
        let mut entries =
            if last.offset <= offset { self.batch.entries_at(last) } else { self.batch.entries() };
        loop {
            let place = entries.place();
            match entries.next()? {
                (at, _) if at.offset < offset => {}
                (_, Entry::Control(_)) => return None,
                (_, Entry::Record(record)) => {
                    self.looked_up.set(place);
                    return Some(record);
                }
            }
        }
    }
}

/// What came back from librdkafka.
#[derive(Debug)]
pub(super) enum Event {
    /// The record at this offset was not stored.
    Failed(Offset, RDKafkaErrorCode),
    /// Something is wrong with the connection or, if `fatal`, with the producer itself.
    Trouble { code: RDKafkaErrorCode, reason: String, fatal: bool },
}

/// What librdkafka had to say at one time.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Records that were not stored. Those that failed only because another one of their record batch is invalid come last,
    /// so that what is wrong is known when they are judged.
    pub(super) failed: Vec<(Offset, RDKafkaErrorCode)>,
    /// What is wrong with the connection.
    pub(super) troubles: Vec<(RDKafkaErrorCode, String)>,
    /// Why the producer itself has failed for good, if it has.
    pub(super) fatal: Option<String>,
}

/// Why not everything was handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// librdkafka is full; there is room again after delivery reports.
    Full,
    /// The record at this offset was refused.
    Refused(Offset, RDKafkaErrorCode),
}

/// An idempotent producer and the batches it produces from.
pub(super) struct Producer {
    client: ManuallyDrop<Client<DefaultClientContext>>,
    queue: *mut rd::rd_kafka_queue_t,
    topics: Vec<*mut rd::rd_kafka_topic_t>,
    wake: Arc<Notify>,
    /// In offset order.
    held: VecDeque<Held>,
    /// Records handed over and not reported, of all batches; without those that are held back.
    outstanding: usize,
    /// How many of `held` have been handed over entirely; they are in front.
    handed_over: usize,
}

// SAFETY: librdkafka's handles may be used from any thread (INTRODUCTION.md, "Threads and callbacks"), and every other
// field is Send. Nothing is shared between threads but the `Notify`, which is Sync.
unsafe impl Send for Producer {}

/// Called from librdkafka's threads when something has come into an empty event queue.
///
/// # Safety
///
/// `opaque` is the `Notify` that the producer keeps until no thread of librdkafka is left.
unsafe extern "C" fn wake(_client: *mut rd::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: see above; a shared reference to a `Sync` type.
    let notify = unsafe { &*opaque.cast::<Notify>() };
    notify.notify_one();
}

impl Producer {
    /// Makes a producer for `topics`; it connects by itself. Fails if the configuration cannot be used.
    pub(super) fn new(config: &ClientConfig, topics: &[KafkaTopic]) -> Result<Self, KafkaError> {
        let native = config.create_native_config()?;
        // SAFETY: `native` is a live configuration, and not yet given away.
        unsafe {
            rd::rd_kafka_conf_set_events(native.ptr(), rd::RD_KAFKA_EVENT_DR | rd::RD_KAFKA_EVENT_ERROR)
        };
        let client = Client::new(config, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext)?;
        let wake_up = Arc::new(Notify::new());
        // SAFETY: the client lives; the queue is destroyed before it. The callback gets a pointer to the Notify, which
        // this producer keeps alive until after the client and with it every thread that could call has gone.
        let queue = unsafe {
            let queue = rd::rd_kafka_queue_get_main(client.native_ptr());
            rd::rd_kafka_queue_cb_event_enable(queue, Some(wake), Arc::as_ptr(&wake_up).cast_mut().cast());
            queue
        };
        let mut producer = Self {
            client: ManuallyDrop::new(client),
            queue,
            topics: Vec::with_capacity(topics.len()),
            wake: wake_up,
            held: VecDeque::new(),
            outstanding: 0,
            handed_over: 0,
        };
        for topic in topics {
            let name = CString::new(topic.name.as_str()).expect("a legal Kafka topic has no NUL");
            // SAFETY: the client lives and the name ends in NUL; a null configuration means the default.
            let handle = unsafe {
                rd::rd_kafka_topic_new(producer.client.native_ptr(), name.as_ptr(), ptr::null_mut())
            };
            if handle.is_null() {
                return Err(KafkaError::ClientCreation(format!("the topic {} cannot be used", topic.name)));
            }
            producer.topics.push(handle);
        }
        Ok(producer)
    }

    /// Notified when [`Producer::poll`] has something to do.
    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Whether no batch is held.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Keeps `batch`, which follows the ones before it, until every record of it is reported.
    pub(super) fn hold(&mut self, batch: Batch) {
        let next = batch.entries().place();
        self.held.push_back(Held { batch, next, outstanding: 0, done: false, looked_up: Cell::new(next) });
    }

    /// Hands over what is held and was not handed over, in order, as far as there is room. `shape` says how a record
    /// is produced, or that it is not (`None`). After [`Halt::Refused`] the refused record is passed over.
    pub(super) fn hand_over(
        &mut self,
        mut shape: impl for<'r> FnMut(Offset, &Record<'r>) -> Option<Outgoing<'r>>,
    ) -> Result<(), Halt> {
        while let Some(held) = self.held.get_mut(self.handed_over) {
            let mut entries = held.batch.entries_at(held.next);
            loop {
                held.next = entries.place();
                let Some((place, entry)) = entries.next() else { break };
                let Entry::Record(record) = entry else { continue };
                let Some(outgoing) = shape(place.offset, &record) else { continue };
                let client = self.client.native_ptr();
                // SAFETY: `record` lies in `held.batch`, which stays in `held` until its report was seen or the
                // client was destroyed (`settle`, `drop`); the handle was made by this client and lives as long.
                let refused =
                    unsafe { produce(client, self.topics[outgoing.topic], place.offset, &record, outgoing) };
                match refused {
                    None => {
                        held.outstanding += 1;
                        self.outstanding += 1;
                    }
                    // With nothing to wait for, the record alone is larger than the whole queue may be.
                    Some(RDKafkaErrorCode::QueueFull) if self.outstanding > 0 => return Err(Halt::Full),
                    Some(code) => {
                        held.next = entries.place();
                        return Err(Halt::Refused(place.offset, code));
                    }
                }
            }
            held.done = held.outstanding == 0;
            self.handed_over += 1;
        }
        Ok(())
    }

    /// Keeps the batch of the record at `offset`, which has failed, until [`Producer::hand_over_again`] has handed it
    /// over and it was reported, or [`Producer::give_up`] was called.
    pub(super) fn hold_back(&mut self, offset: Offset) {
        let index = self.find(offset).expect("a record that is judged is held");
        let held = &mut self.held[index];
        held.outstanding += 1;
        held.done = false;
    }

    /// Hands over a record that is held back; it is done if `shape` says that it is not produced. If there is no room
    /// or it is refused, it is still held back.
    pub(super) fn hand_over_again(
        &mut self,
        offset: Offset,
        shape: impl for<'r> FnOnce(Offset, &Record<'r>) -> Option<Outgoing<'r>>,
    ) -> Result<(), Halt> {
        let index = self.find(offset).expect("what is held back is held");
        let record = self.held[index].record(offset).expect("only a record is held back");
        let Some(outgoing) = shape(offset, &record) else {
            self.give_up(offset);
            return Ok(());
        };
        let (client, topic) = (self.client.native_ptr(), self.topics[outgoing.topic]);
        // SAFETY: as in `hand_over`; the batch of a record that is held back is not released.
        match unsafe { produce(client, topic, offset, &record, outgoing) } {
            None => {
                self.outstanding += 1;
                Ok(())
            }
            Some(RDKafkaErrorCode::QueueFull) if self.outstanding > 0 => Err(Halt::Full),
            Some(code) => Err(Halt::Refused(offset, code)),
        }
    }

    /// A record that is held back is done: somebody else has it.
    pub(super) fn give_up(&mut self, offset: Offset) {
        let index = self.find(offset).expect("what is held back is held");
        self.settle_at(index);
    }

    /// Asks the brokers anew how the topic with this index is; blocks for at most `patience`. A topic that did not
    /// exist is otherwise looked for every `topic.metadata.refresh.interval.ms`.
    pub(super) fn ask_for_topic(&self, topic: usize, patience: Duration) {
        let mut metadata = ptr::null();
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: client and topic live; the answer is ours and destroyed once, if there is one. What it says librdkafka
        // has taken in before it returns.
        unsafe {
            let client = self.client.native_ptr();
            let answer = rd::rd_kafka_metadata(client, 0, self.topics[topic], &raw mut metadata, patience);
            if answer == Response::RD_KAFKA_RESP_ERR_NO_ERROR {
                rd::rd_kafka_metadata_destroy(metadata);
            }
        }
    }

    /// Takes in what has happened, and gives what is not plain success to `on`.
    pub(super) fn poll(&mut self, mut on: impl FnMut(Event)) {
        loop {
            // SAFETY: the queue lives; a timeout of 0 never blocks. The event is ours until it is destroyed below.
            let event = unsafe { rd::rd_kafka_queue_poll(self.queue, 0) };
            if event.is_null() {
                return;
            }
            // SAFETY: `event` is live until it is destroyed, and is not touched afterwards; every pointer got out of
            // it is used before that.
            unsafe {
                match rd::rd_kafka_event_type(event) {
                    rd::RD_KAFKA_EVENT_DR => self.reported(event, &mut on),
                    rd::RD_KAFKA_EVENT_ERROR => on(trouble(event)),
                    rd::RD_KAFKA_EVENT_LOG => log(event),
                    _ => {}
                }
                rd::rd_kafka_event_destroy(event);
            }
        }
    }

    /// Takes in what has happened, and sorts it.
    pub(super) fn heard(&mut self) -> Heard {
        let mut heard = Heard::default();
        self.poll(|event| match event {
            Event::Failed(offset, code) => heard.failed.push((offset, code)),
            Event::Trouble { code, reason, fatal } => {
                tracing::debug!("Kafka: {code}: {reason}");
                if fatal || code == RDKafkaErrorCode::Fatal {
                    heard.fatal.get_or_insert(reason);
                } else {
                    heard.troubles.push((code, reason));
                }
            }
        });
        heard.failed.sort_by_key(|(_, code)| *code == RDKafkaErrorCode::InvalidDifferentRecord);
        heard
    }

    /// The end of the last batch that is, with all before it, entirely reported; those are released.
    pub(super) fn release(&mut self) -> Option<Offset> {
        let mut end = None;
        while self.held.front().is_some_and(|held| held.done) {
            end = self.held.pop_front().map(|held| held.batch.end());
            self.handed_over -= 1;
        }
        end
    }

    /// The record at `offset`, if its batch is held.
    pub(super) fn record(&self, offset: Offset) -> Option<Record<'_>> {
        self.held[self.find(offset)?].record(offset)
    }

    /// Makes librdkafka believe that it can never produce again.
    #[cfg(test)]
    pub(super) fn fail_fatally(&self) {
        let code = Response::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the client lives, and the text ends in NUL.
        unsafe { rd::rd_kafka_test_fatal_error(self.client.native_ptr(), code, c"a test".as_ptr()) };
    }

    /// # Safety
    ///
    /// `event` is a live delivery report.
    unsafe fn reported(&mut self, event: *mut rd::rd_kafka_event_t, on: &mut impl FnMut(Event)) {
        loop {
            // SAFETY: `event` is live; the message belongs to it.
            let message = unsafe { rd::rd_kafka_event_message_next(event) };
            if message.is_null() {
                return;
            }
            // SAFETY: not null, and not kept beyond this turn.
            let message = unsafe { &*message };
            let Some(offset) = self.settle(message._private as usize) else { continue };
            if message.err != Response::RD_KAFKA_RESP_ERR_NO_ERROR {
                on(Event::Failed(offset, message.err.into()));
            }
        }
    }

    /// One more record of the batch that holds `opaque` is reported; its payload is not used any more.
    fn settle(&mut self, opaque: usize) -> Option<Offset> {
        let first = self.held.front()?.batch.base();
        #[expect(clippy::cast_possible_truncation, reason = "the same truncation as when it was made")]
        let distance = opaque.wrapping_sub(first.0 as usize);
        let offset = first.plus(distance as u64);
        let index = self.find(offset)?;
        self.outstanding -= 1;
        self.settle_at(index);
        Some(offset)
    }

    /// One thing less to wait for in the batch with this index.
    fn settle_at(&mut self, index: usize) {
        let handed_over = index < self.handed_over;
        let held = &mut self.held[index];
        held.outstanding = held.outstanding.checked_sub(1).expect("librdkafka reports each record once");
        held.done = handed_over && held.outstanding == 0;
    }

    fn find(&self, offset: Offset) -> Option<usize> {
        let index = self.held.partition_point(|held| held.batch.end() <= offset);
        self.held.get(index).filter(|held| held.batch.base() <= offset).map(|_| index)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // SAFETY: each handle is destroyed once, and those made from the client before it. Without the callback no
        // thread wakes anybody any more. Destroying the client joins all its threads (rdkafka.h, rd_kafka_destroy), so
        // that nothing reads a payload or the Notify afterwards; `held` and `wake` are dropped after this function.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue, None, ptr::null_mut());
            for topic in self.topics.drain(..) {
                rd::rd_kafka_topic_destroy(topic);
            }
            rd::rd_kafka_queue_destroy(self.queue);
            ManuallyDrop::drop(&mut self.client);
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("held", &self.held).finish_non_exhaustive()
    }
}

/// Hands one record to librdkafka. Returns why it was not taken.
///
/// # Safety
///
/// `client` and `topic` are live and belong together. The payload of `record` stays where it is, and unchanged, until
/// the delivery report with its offset as opaque was taken from the queue, or the client was destroyed; unless this
/// function returns an error.
unsafe fn produce(
    client: *mut rd::rd_kafka_t,
    topic: *mut rd::rd_kafka_topic_t,
    offset: Offset,
    record: &Record<'_>,
    outgoing: Outgoing<'_>,
) -> Option<RDKafkaErrorCode> {
    use rd::rd_kafka_vtype_t as V;
    let (key, key_bytes) =
        outgoing.key.as_ref().map_or((ptr::null(), 0), |key| (key.as_ptr().cast::<c_void>(), key.len()));
    let (value, flags) = match &outgoing.value {
        Value::Payload => (record.payload, NO_COPY),
        Value::Encoded(bytes) => (bytes.as_slice(), rd::RD_KAFKA_MSG_F_COPY),
    };
    let headers = outgoing.headers.as_ref().map_or(ptr::null_mut(), |headers| headers.list.as_ptr());
    let time = i64::try_from(record.time.0).unwrap_or(i64::MAX);
    // SAFETY: each tag is followed by the types that rdkafka.h demands of it (rd_kafka_vtype_t). The payload is not
    // copied and outlives the message, by this function's contract; an empty payload still has an address, so that it
    // is an empty value and no tombstone. Key, encoded value and topic are copied or counted before the call returns.
    let response = unsafe {
        rd::rd_kafka_producev(
            client,
            V::RD_KAFKA_VTYPE_RKT,
            topic,
            V::RD_KAFKA_VTYPE_PARTITION,
            PARTITION_BY_KEY,
            V::RD_KAFKA_VTYPE_MSGFLAGS,
            flags,
            V::RD_KAFKA_VTYPE_VALUE,
            value.as_ptr().cast::<c_void>(),
            value.len(),
            V::RD_KAFKA_VTYPE_KEY,
            key,
            key_bytes,
            V::RD_KAFKA_VTYPE_OPAQUE,
            offset.0 as usize as *mut c_void,
            V::RD_KAFKA_VTYPE_TIMESTAMP,
            time,
            V::RD_KAFKA_VTYPE_HEADERS,
            headers,
            V::RD_KAFKA_VTYPE_END,
        )
    };
    if response != Response::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Some(response.into());
    }
    // librdkafka owns the list now, and frees it with the message.
    std::mem::forget(outgoing.headers);
    None
}

/// `RD_KAFKA_PARTITION_UA`: the partitioner decides.
const PARTITION_BY_KEY: i32 = -1;
/// Neither `RD_KAFKA_MSG_F_COPY` nor `RD_KAFKA_MSG_F_FREE`: the payload stays ours.
const NO_COPY: i32 = 0;

/// # Safety
///
/// `event` is a live error event.
unsafe fn trouble(event: *mut rd::rd_kafka_event_t) -> Event {
    // SAFETY: `event` is live, and its text is copied here.
    unsafe {
        Event::Trouble {
            code: rd::rd_kafka_event_error(event).into(),
            reason: text(rd::rd_kafka_event_error_string(event)),
            fatal: rd::rd_kafka_event_error_is_fatal(event) != 0,
        }
    }
}

/// What librdkafka logs repeats what its errors say, so it is kept for those who look for details.
///
/// # Safety
///
/// `event` is a live log event.
unsafe fn log(event: *mut rd::rd_kafka_event_t) {
    let (mut facility, mut line, mut level) = (ptr::null(), ptr::null(), 0);
    // SAFETY: `event` is live; the texts belong to it and are copied here.
    unsafe {
        if rd::rd_kafka_event_log(event, &raw mut facility, &raw mut line, &raw mut level) == 0 {
            tracing::debug!(target: "librdkafka", level, "{}: {}", text(facility), text(line));
        }
    }
}

/// # Safety
///
/// `chars` is null or a C string.
unsafe fn text(chars: *const std::ffi::c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: not null, so it ends in NUL, by this function's contract.
    unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned()
}
