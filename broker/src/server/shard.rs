//! The shard's loop: wait, read, decide, hand to the journal, release what is durable, write.
//!
//! Each round deals with everything that is ready as one batch: one read per readable socket, one hand-over to
//! the journal, one write per connection that has something to say.

mod admit;
mod saving;

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use mio::event::Event;
use mio::{Events, Poll, Token};

use self::admit::Rules;
use self::saving::{CHECKPOINT_SHARE, Checkpoints};
use super::checkpoint;
use super::clock::Clock;
use super::listener::Listener;
use super::memory::Meter;
use super::reads;
use super::socket::{ReadOutcome, Socket, Stream};
use super::transport::Counters;
use super::{
    Command, Done, LocalPublish, Options, PublishError, Series, SeriesDone, SeriesOutcome, StartError, Stats,
};
use crate::broker::{Broker, Gauges, Now, Received};
use crate::journal::{Appender, Journal, Reader, StartAt, Storage};
use crate::record::{Append, Offset, Refused};
use crate::slots::Key;
use crate::topic::TopicName;

pub(super) const WAKER: Token = Token(usize::MAX - 1);
/// Listeners have the tokens below it, down to this; the rest are connections.
const LAST_LISTENER: usize = usize::MAX - 256;

/// The token of a listener by its place in the list.
pub(super) const fn listener_token(place: usize) -> Token {
    Token(WAKER.0 - 1 - place)
}

/// What one read can bring: the batch size of a busy connection.
const READ_BYTES: usize = 256 * 1_024;
/// Accepted and not yet durable, and answers that wait for that; above it nothing is read from clients until the
/// journal has caught up.
const BACKLOG_BYTES_MAX: usize = 16 << 20;
/// Batches read for sessions that are behind, per round.
const READS_PER_ROUND: usize = 64;
/// What one round may spend on clients that come or go, and again on reading for sessions that are behind, so that
/// thousands of them at once delay the others by little.
const ROUND_SHARE: Duration = Duration::from_millis(1);
/// The clock is asked after so many that come or go.
const CLOCK_EVERY: usize = 8;
/// How long a connection that was told to end may take to close its side.
const LINGER: Duration = Duration::from_secs(2);
/// How often the journal is asked for room while connections are held back.
const ROOM_INTERVAL: Duration = Duration::from_millis(50);
/// What is read at once for a connection with TLS.
const SCRATCH_BYTES: usize = 64 * 1_024;
/// Statistics are published this often.
const STATS_INTERVAL: Duration = Duration::from_millis(100);
/// The name of the cursor that holds what a restart needs.
pub const CURSOR: &str = "sessions";

pub(super) struct Shard {
    poll: Poll,
    listeners: Vec<Listener>,
    rules: Rules,
    broker: Broker,
    journal: Journal,
    appender: Appender,
    reader: Reader,
    /// By the index of the connection's key.
    sockets: Vec<Option<Socket>>,
    /// Clients that were let in and have sent something.
    ready: VecDeque<Key>,
    /// Clients that come or go: not yet let in, or with an end to read.
    passing: VecDeque<Key>,
    lingering: VecDeque<Key>,
    /// Connections that were held back and are broken.
    broken: Vec<Key>,
    buffer: Box<[u8]>,
    scratch: Box<[u8]>,
    commands: Receiver<Command>,
    local: HashMap<u64, Done>,
    next_token: u64,
    clock: Clock,
    stats: Arc<Mutex<Stats>>,
    stats_at: Duration,
    counters: Arc<Counters>,
    /// When a refused handshake may be told of again.
    broken_at: Duration,
    memory: Meter,
    checkpoints: Checkpoints,
    journal_failed: bool,
}

/// What the shard is made of.
pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) listeners: Vec<Listener>,
    pub(super) journal: Journal,
    pub(super) appender: Appender,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) commands: Receiver<Command>,
    pub(super) stats: Arc<Mutex<Stats>>,
    pub(super) counters: Arc<Counters>,
}

impl Shard {
    pub(super) fn new(options: Options, parts: Parts) -> Result<Self, StartError> {
        let Parts { poll, listeners, journal, mut appender, storage, commands, stats, counters } = parts;
        let clock = Clock::start();
        let cursor = journal
            .cursor(CURSOR, StartAt::Oldest)
            .map_err(|error| StartError::Restore(error.to_string()))?;
        let (broker, from) = restore(&options, &journal, &mut appender, &storage, clock.now())?;
        journal.keep_from(from);
        let reader = journal.reader(journal.durable_end());
        Ok(Self {
            poll,
            listeners,
            rules: Rules {
                certificates: options.certificates,
                web: options.web,
                proxy: options.proxy,
                packet_bytes: options.limits.packet_bytes,
            },
            broker,
            journal,
            appender,
            reader,
            sockets: Vec::new(),
            ready: VecDeque::new(),
            passing: VecDeque::new(),
            lingering: VecDeque::new(),
            broken: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            commands,
            local: HashMap::default(),
            next_token: 0,
            clock,
            stats,
            stats_at: Duration::ZERO,
            counters,
            broken_at: Duration::ZERO,
            memory: Meter::new(),
            checkpoints: Checkpoints {
                storage,
                cursor,
                last: from,
                last_at: Duration::ZERO,
                crowded: false,
                waiting: None,
                writing: None,
            },
            journal_failed: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(4_096);
        loop {
            let timeout = self.timeout(self.clock.now());
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "cannot wait for the network; the broker stops");
                return;
            }
            let now = self.clock.now();
            for event in &events {
                self.note(event);
            }
            if let Some(deadline) = self.take_commands(now) {
                self.drain(deadline);
                return;
            }
            self.round(now);
        }
    }

    /// One round, after the events are noted.
    fn round(&mut self, now: Now) {
        self.accept(now);
        self.resume_held(now);
        self.read_ready(now);
        self.read_passing(now, Some(ROUND_SHARE));
        self.appender.submit();
        self.take_durable(now);
        self.serve_reads(now);
        self.broker.handle_timeout(now, &mut self.appender);
        self.appender.submit();
        self.finish_local();
        self.write_output(now);
        self.end_lingering(now);
        self.check_journal(now);
        self.checkpoint(now);
        if now.monotonic >= self.stats_at {
            self.stats_at = now.monotonic + STATS_INTERVAL;
            self.measure();
            *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.broker.stats();
        }
    }

    fn timeout(&self, now: Now) -> Option<Duration> {
        let may_read = self.may_read();
        if may_read && self.broker.resuming() > 0 {
            return Some(Duration::ZERO);
        }
        let accepting =
            self.listeners.iter().any(|listener| listener.ready && listener.paused_until.is_none());
        if (may_read && !(self.ready.is_empty() && self.passing.is_empty()))
            || self.broker.reads_waiting() > 0
            || accepting
        {
            return Some(Duration::ZERO);
        }
        let mut wait =
            self.broker.poll_timeout().map_or(STATS_INTERVAL, |at| at.saturating_sub(now.monotonic));
        for until in self.listeners.iter().filter_map(|listener| listener.paused_until) {
            wait = wait.min(until.saturating_sub(now.monotonic));
        }
        if self.broker.is_holding() || !self.lingering.is_empty() {
            wait = wait.min(ROOM_INTERVAL);
        }
        // Statistics and checkpoints must not wait for ever.
        Some(wait.min(Duration::from_secs(1)))
    }

    fn note(&mut self, event: &Event) {
        match event.token() {
            WAKER => {}
            Token(token @ LAST_LISTENER..) => {
                if let Some(listener) = self.listeners.get_mut(WAKER.0 - 1 - token) {
                    listener.ready = true;
                }
            }
            Token(index) => {
                let Some(Some(socket)) = self.sockets.get_mut(index) else { return };
                let key = socket.key;
                let mut lines_up = false;
                socket.ended |= event.is_read_closed() || event.is_error();
                if (event.is_readable() || event.is_read_closed() || event.is_error()) && !socket.in_ready {
                    socket.readable = true;
                    if !socket.held {
                        lines_up = true;
                    } else if event.is_error() {
                        // Nobody reads it and so learns of its end.
                        self.broken.push(key);
                    }
                }
                if event.is_writable() {
                    // If it fails, so does the next read.
                    let _ = socket.flush();
                    self.broker.want_output(key);
                }
                if lines_up {
                    self.line_up(key);
                }
            }
        }
    }

    fn socket(&mut self, key: Key) -> Option<&mut Socket> {
        self.sockets.get_mut(key.index())?.as_mut().filter(|socket| socket.key == key)
    }

    /// Whether more may be taken in: else the journal has to catch up first.
    fn may_read(&self) -> bool {
        self.appender.backlog_bytes() < BACKLOG_BYTES_MAX && self.broker.gated_bytes() < BACKLOG_BYTES_MAX
    }

    /// Lets a socket be read from: with those that were let in, or with those that come or go.
    pub(super) fn line_up(&mut self, key: Key) {
        let is_in = self.broker.is_let_in(key);
        let Some(socket) = self.socket(key) else { return };
        socket.in_ready = true;
        if is_in && !socket.ended {
            self.ready.push_back(key);
        } else {
            self.passing.push_back(key);
        }
    }

    /// Reads once from every socket of a client that was let in.
    fn read_ready(&mut self, now: Now) {
        for _ in 0..self.ready.len() {
            if !self.may_read() {
                return;
            }
            let Some(key) = self.ready.pop_front() else { return };
            self.read_in_turn(key, now);
        }
    }

    /// Reads once from every socket of a client that comes or goes, as far as the time suffices.
    fn read_passing(&mut self, now: Now, share: Option<Duration>) {
        let until = share.map(|share| self.clock.now().monotonic + share);
        for turn in 0..self.passing.len() {
            let is_over = turn % CLOCK_EVERY == CLOCK_EVERY - 1
                && until.is_some_and(|until| self.clock.now().monotonic >= until);
            if is_over || !self.may_read() {
                return;
            }
            let Some(key) = self.passing.pop_front() else { return };
            self.read_in_turn(key, now);
        }
    }

    fn read_in_turn(&mut self, key: Key, now: Now) {
        self.read_one(key, now);
        if let Some(socket) = self.socket(key) {
            socket.in_ready = socket.readable && !socket.held;
            if socket.in_ready {
                self.line_up(key);
            }
        }
    }

    fn read_one(&mut self, key: Key, now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key.index()) else { return };
        if socket.key != key {
            return;
        }
        if socket.closes_at.is_some() {
            socket.readable = false;
            if socket.discard(&mut self.buffer) {
                self.remove(key, now);
            }
            return;
        }
        if !self.greet(key, now) {
            return;
        }
        let Some(Some(socket)) = self.sockets.get_mut(key.index()) else { return };
        match socket.read(&mut self.buffer, &mut self.scratch) {
            ReadOutcome::Nothing => {}
            ReadOutcome::Closed => self.remove(key, now),
            ReadOutcome::Broken(broken) => self.break_off(key, &broken, now),
            ReadOutcome::Unread => self.receive_unread(key, now),
            ReadOutcome::Shared(bytes) => {
                let received = self.broker.receive(key, &self.buffer[..bytes], now, &mut self.appender);
                match received {
                    Received::More { consumed, needed } => {
                        socket.keep(&self.buffer[consumed..bytes], needed);
                    }
                    Received::Held { consumed } => {
                        socket.keep(&self.buffer[consumed..bytes], None);
                        socket.held = true;
                    }
                    Received::Closing => socket.unread = Vec::new(),
                }
            }
        }
    }

    fn receive_unread(&mut self, key: Key, now: Now) {
        let Some(Some(socket)) = self.sockets.get_mut(key.index()) else { return };
        match self.broker.receive(key, &socket.unread, now, &mut self.appender) {
            Received::More { consumed, needed } => socket.consume_unread(consumed, needed),
            Received::Held { consumed } => {
                socket.consume_unread(consumed, None);
                socket.held = true;
            }
            Received::Closing => socket.unread = Vec::new(),
        }
    }

    fn take_durable(&mut self, now: Now) {
        while let Some(batch) = self.appender.take_durable() {
            self.broker.durable(&batch, now, &mut self.appender);
        }
    }

    fn serve_reads(&mut self, now: Now) {
        let until = self.clock.now().monotonic + ROUND_SHARE;
        for turn in 0..READS_PER_ROUND {
            if turn > 0 && self.clock.now().monotonic >= until
                || !reads::serve_one(&mut self.broker, &mut self.reader, now, &mut self.appender)
            {
                return;
            }
        }
    }

    fn write_output(&mut self, now: Now) {
        while let Some(key) = self.broker.poll_output() {
            let Some((outbox, closing)) = self.broker.output(key) else { continue };
            let Some(Some(socket)) = self.sockets.get_mut(key.index()) else { continue };
            if socket.key != key {
                continue;
            }
            match socket.write(outbox) {
                Ok(bytes) => {
                    let flushed = outbox.is_empty();
                    if bytes > 0 {
                        self.broker.written(key, bytes);
                    }
                    if closing && socket.closes_at.is_none() {
                        socket.closes_at = Some(now.monotonic + LINGER);
                        self.lingering.push_back(key);
                    }
                    // The client reads what was sent, then sees the end; closing at once could lose it.
                    let ended = closing && flushed && {
                        match socket.finish() {
                            Ok(finished) => finished && socket.discard(&mut self.buffer),
                            Err(_) => true,
                        }
                    };
                    if ended {
                        self.remove(key, now);
                    }
                }
                Err(_) => self.remove(key, now),
            }
        }
    }

    fn end_lingering(&mut self, now: Now) {
        while let Some(&key) = self.lingering.front() {
            let due =
                self.socket(key).and_then(|socket| socket.closes_at).is_none_or(|at| at <= now.monotonic);
            if !due {
                return;
            }
            self.lingering.pop_front();
            self.remove(key, now);
        }
    }

    fn remove(&mut self, key: Key, now: Now) {
        if let Some(place) = self.sockets.get_mut(key.index())
            && let Some(mut socket) = place.take_if(|socket| socket.key == key)
        {
            self.counters.closed(socket.stream.transport());
            if !socket.is_open() {
                self.counters.failed(socket.stream.transport());
            }
            if let Stream::Layered(layers) = &mut socket.stream {
                // Nobody may be there any more to be told.
                let _ = layers.finish();
            }
            let _ = self.poll.registry().deregister(socket.stream.source());
            self.broker.closed(key, now, &mut self.appender);
        }
    }

    fn take_commands(&mut self, now: Now) -> Option<Duration> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Drain(deadline) => return Some(deadline),
                Command::Publish(publish, done) => self.publish_local(&publish, done, now),
                Command::Series(series, done) => self.publish_series(series, done, now),
                Command::Adopt(adopted) => self.adopt(*adopted, now),
            }
        }
        None
    }

    fn publish_local(&mut self, publish: &LocalPublish, done: Done, now: Now) {
        let topic = match TopicName::new(&publish.topic) {
            Ok(topic) => topic,
            Err(error) => return done(Err(error.into())),
        };
        let token = self.await_local(done);
        self.broker.publish_local(token, &publish.record(topic, now), now, &mut self.appender);
    }

    /// Stops at the first that is refused: what follows must not overtake it.
    fn publish_series(&mut self, series: Series, done: SeriesDone, now: Now) {
        let (mut last, mut accepted, mut refused) = (None, 0, series.refused);
        for publish in &series.publishes {
            let outcome = TopicName::new(&publish.topic).map_err(PublishError::from).and_then(|topic| {
                let record = publish.record(topic, now);
                self.broker.append_local(&record, now, &mut self.appender).map_err(PublishError::from)
            });
            match outcome {
                Ok(offset) => (last, accepted) = (Some(offset), accepted + 1),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let Some(last) = last else { return done(SeriesOutcome { durable: 0, refused }) };
        let token = self.await_local(Box::new(move |outcome| {
            done(match outcome {
                Ok(_) => SeriesOutcome { durable: accepted, refused },
                Err(error) => SeriesOutcome { durable: 0, refused: Some(error) },
            });
        }));
        self.broker.await_local(token, last);
    }

    /// Keeps `done` until what was published with the token is durable.
    fn await_local(&mut self, done: Done) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.local.insert(token, done);
        token
    }

    fn finish_local(&mut self) {
        while let Some((token, outcome)) = self.broker.poll_local() {
            if let Some(done) = self.local.remove(&token) {
                done(outcome.map_err(PublishError::from));
            }
        }
    }

    fn check_journal(&mut self, now: Now) {
        match self.appender.refused() {
            None if self.broker.is_holding() => {
                self.broker.handle_room();
            }
            Some(Refused::Failed) if !self.journal_failed => {
                self.journal_failed = true;
                let why = self.journal.status().failed.unwrap_or_default();
                tracing::error!(%why, "the journal has failed and accepts nothing more: mend the disk, then restart");
                self.broker.journal_failed(now, &mut self.appender);
            }
            None | Some(Refused::Full | Refused::Failed) => {}
        }
    }

    /// Goes on with connections that were held back; each has its turn once.
    fn resume_held(&mut self, now: Now) {
        for key in std::mem::take(&mut self.broken) {
            self.remove(key, now);
        }
        for _ in 0..self.broker.resuming() {
            if !self.may_read() {
                return;
            }
            let Some(key) = self.broker.poll_resumed() else { return };
            self.resume(key, now);
        }
    }

    /// Offers the bytes of a connection that was held back again.
    fn resume(&mut self, key: Key, now: Now) {
        let Some(socket) = self.socket(key) else { return };
        socket.held = false;
        self.receive_unread(key, now);
        if self.socket(key).is_some_and(|socket| !socket.held && !socket.in_ready) {
            self.line_up(key);
        }
    }

    /// Looks at the memory of the process and at the journal, and tells the broker.
    fn measure(&mut self) {
        let status = self.journal.status();
        // Whether the entries since the last checkpoint take so much of the journal that a new one is due.
        let own = status.cursors.iter().find(|cursor| cursor.name == CURSOR);
        self.checkpoints.crowded =
            own.is_some_and(|cursor| cursor.lag_bytes > status.max_bytes / CHECKPOINT_SHARE);
        self.broker.handle_gauges(Gauges {
            memory_bytes: self.memory.resident_bytes().unwrap_or(0),
            journal_entries: status.durable_end.since(status.start),
            journal_bytes: status.bytes,
        });
    }

    /// Ends in order: no new clients, the old ones told, everything accepted durable, the state saved.
    fn drain(mut self, deadline: Duration) {
        self.listeners.clear();
        let give_up = self.clock.now().monotonic + deadline;
        let mut events = Events::with_capacity(1_024);
        // What clients had sent already is taken in and acknowledged before they are told to go.
        let now = self.clock.now();
        self.read_ready(now);
        self.read_passing(now, None);
        self.settle(&mut events, give_up);
        let now = self.clock.now();
        self.broker.drain(now, &mut self.appender);
        self.settle(&mut events, give_up);
        while self.sockets.iter().any(Option::is_some) && self.clock.now().monotonic < give_up {
            self.wait(&mut events);
            self.round(self.clock.now());
        }
        self.save_last_checkpoint();
        while let Ok(command) = self.commands.try_recv() {
            command.refuse(PublishError::Stopped);
        }
        for (_, done) in self.local.drain() {
            done(Err(PublishError::Stopped));
        }
    }

    fn wait(&mut self, events: &mut Events) {
        if self.poll.poll(events, Some(Duration::from_millis(10))).is_ok() {
            for event in &*events {
                self.note(event);
            }
        }
    }

    /// Goes round until everything accepted is durable.
    fn settle(&mut self, events: &mut Events, give_up: Duration) {
        self.round(self.clock.now());
        while self.broker.durable_end() < self.appender.end()
            && !self.journal_failed
            && self.clock.now().monotonic < give_up
        {
            self.wait(events);
            self.round(self.clock.now());
        }
    }
}

/// The broker as it was, from the checkpoint and the entries behind it.
fn restore(
    options: &Options,
    journal: &Journal,
    appender: &mut Appender,
    storage: &Arc<dyn Storage>,
    now: Now,
) -> Result<(Broker, Offset), StartError> {
    let say = |error: &dyn std::fmt::Display| StartError::Restore(error.to_string());
    let saved = checkpoint::read(storage).map_err(|error| say(&error))?;
    let seed = journal.id().0 as u64 ^ now.wall.0;
    let (mut broker, from) =
        Broker::restore(options.limits, Arc::clone(&options.access), seed, saved.as_deref())
            .map_err(|error| say(&error))?;
    let end = journal.durable_end();
    if from > end {
        return Err(StartError::Restore(format!(
            "the checkpoint is of offset {from}, but the journal ends at {end}: part of the journal is missing"
        )));
    }
    let mut reader = journal.reader(from);
    while let Some(batch) = reader.next().map_err(|error| say(&error))? {
        broker.replay(&batch).map_err(|error| say(&error))?;
    }
    broker.restored(end, now, appender);
    Ok((broker, from))
}
