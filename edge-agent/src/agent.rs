//! The agent itself: takes readings in, keeps them in the queue, sends them in order, and ends in good order.
//!
//! One task waits for the next thing to happen ([`Wake`]), notes it, and then does whatever is possible now
//! ([`Agent::step`]). What always holds: only what is on disk is sent or answered `ok`; the queue's position
//! moves only over what the broker acknowledged; after a broken connection everything from that position on is
//! sent again, in order, so the broker may get a reading twice but never misses one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use tidegate_broker::record::{Offset, Refused};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::lines::{Answers, Line};
use crate::link::{Link, LinkEvent, status_topic};
use crate::queue::{Queue, QueueError};
use crate::reading::Reading;
use crate::sensors::Sensors;
use crate::window::{Acknowledged, Parcel, Window};

const RECONNECT_FIRST: Duration = Duration::from_millis(500);
/// Lines that are not answered yet; no more are taken while there are as many.
const UNANSWERED_MAX: usize = 1_024;
/// Bytes taken in and not yet on disk; no more lines are taken above.
const UNWRITTEN_BYTES_MAX: usize = 256 * 1024;
/// How often a full queue is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);
/// How often, at most, dropped readings are told.
const TELL_DROPPED_EVERY: Duration = Duration::from_secs(1);
/// How long the answers may take to be read when everything else has ended.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Connection {
    Away { retry_at: Instant },
    Connecting(Link),
    Up(Link),
}

/// How far the agent is with ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Nothing is taken in any more; readings are sent until then.
    Draining {
        until: Instant,
    },
    /// The status offline has been handed over; its acknowledgement and the farewell are waited for until then.
    Leaving {
        until: Instant,
    },
    Ended,
}

/// What happened.
#[derive(Debug)]
enum Wake {
    Terminate,
    /// Lines are in the inbox, or, if none are, standard input has ended.
    Lines,
    Link(LinkEvent),
    /// More is on disk, a line can be answered, or a time has come: [`Agent::step`] sees what.
    Step,
}

/// The answer to a line.
#[derive(Debug)]
enum Answer {
    /// `ok` once the reading at this offset is on disk.
    WhenDurable(Offset),
    Error(String),
}

/// Runs in one task until it is told to end.
#[derive(Debug)]
pub(crate) struct Agent {
    config: Config,
    queue: Queue,
    durable: Arc<Notify>,
    window: Window,
    connection: Connection,
    backoff: Duration,
    /// The last reason for being away that was told, so that each is told once.
    told: Option<String>,
    sensors: Sensors,
    measure_at: Option<Instant>,
    lines: Option<mpsc::Receiver<Line>>,
    /// Lines that came in and are not in the queue yet.
    inbox: VecDeque<Line>,
    answers: Option<Answers>,
    unanswered: VecDeque<(u64, Answer)>,
    full_retry_at: Option<Instant>,
    dropped_told: u64,
    tell_dropped_at: Instant,
    phase: Phase,
}

impl Agent {
    /// Opens the queue. `lines` and `answers` are standard input and output, if they are used.
    pub(crate) fn new(
        config: Config,
        lines: Option<mpsc::Receiver<Line>>,
        answers: Option<Answers>,
    ) -> Result<Self, QueueError> {
        let durable = Arc::new(Notify::new());
        let (bytes_max, full) = (config.queue_bytes_max, config.queue_full);
        let queue = Queue::open(&config.data_dir, &config.device_id, bytes_max, full, Arc::clone(&durable))?;
        let dropped_told = queue.dropped();
        Ok(Self {
            window: Window::new(config.in_flight_max.into()),
            connection: Connection::Away { retry_at: Instant::now() },
            backoff: RECONNECT_FIRST,
            told: None,
            sensors: Sensors::new("/"),
            measure_at: config.measure_every.map(|_| Instant::now()),
            lines,
            inbox: VecDeque::new(),
            answers,
            unanswered: VecDeque::new(),
            full_retry_at: None,
            dropped_told,
            tell_dropped_at: Instant::now(),
            phase: Phase::Running,
            config,
            queue,
            durable,
        })
    }

    /// Runs until SIGTERM or SIGINT, or until standard input has ended, sensors are off and everything is sent.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let waiting = self.queue.waiting();
        info!(
            "device {}: readings go to {}:{} as sensors/{}/..., {waiting} wait in {}",
            self.config.device_id,
            self.config.broker_host,
            self.config.broker_port,
            self.config.device_id,
            self.config.data_dir.display(),
        );
        loop {
            self.step()?;
            if self.phase == Phase::Ended {
                return self.end().await;
            }
            match self.wait(&mut terminate, &mut interrupt).await {
                Wake::Terminate => self.drain(),
                Wake::Lines if self.inbox.is_empty() => self.lines = None,
                Wake::Lines | Wake::Step => {}
                Wake::Link(event) => self.handle_link(event),
            }
        }
    }

    /// Waits for the next thing to happen.
    async fn wait(&mut self, terminate: &mut Signal, interrupt: &mut Signal) -> Wake {
        let takes_lines = self.takes_lines();
        let answers_wait =
            self.has_answers() && self.answers.as_ref().is_some_and(|answers| !answers.is_ready());
        let timer = self.next_time();
        let Self { lines, inbox, connection, answers, durable, .. } = self;
        tokio::select! {
            _ = terminate.recv() => Wake::Terminate,
            _ = interrupt.recv() => Wake::Terminate,
            () = take_lines(lines, inbox), if takes_lines => Wake::Lines,
            event = connection_event(connection) => Wake::Link(event),
            () = durable.notified() => Wake::Step,
            () = room_for_answers(answers), if answers_wait => Wake::Step,
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => Wake::Step,
        }
    }

    /// Does whatever is possible now.
    fn step(&mut self) -> Result<(), QueueError> {
        let now = Instant::now();
        self.queue.settle()?;
        self.take_in(now);
        self.measure(now);
        self.queue.settle()?;
        self.answer();
        self.reconnect(now);
        self.send(now)?;
        self.tell_dropped(now);
        self.advance_phase(now);
        Ok(())
    }

    fn takes_lines(&self) -> bool {
        self.lines.is_some()
            && self.inbox.is_empty()
            && self.unanswered.len() < UNANSWERED_MAX
            && self.queue.unwritten_bytes() < UNWRITTEN_BYTES_MAX
    }

    /// The next time at which [`Agent::step`] has something to do.
    fn next_time(&self) -> Option<Instant> {
        let retry_at = match self.connection {
            Connection::Away { retry_at } => Some(retry_at),
            Connection::Connecting(_) | Connection::Up(_) => None,
        };
        let until = match self.phase {
            Phase::Draining { until } | Phase::Leaving { until } => Some(until),
            Phase::Running | Phase::Ended => None,
        };
        [retry_at, until, self.measure_at, self.full_retry_at].into_iter().flatten().min()
    }

    /// Moves lines from the inbox into the queue, as many as it takes.
    fn take_in(&mut self, now: Instant) {
        self.full_retry_at = None;
        while let Some(line) = self.inbox.front() {
            let answer = match Reading::from_line(&self.config.device_id, &line.bytes, &time_now()) {
                Ok(reading) => match self.queue.append(&reading) {
                    Ok(offset) => Answer::WhenDurable(offset),
                    Err(Refused::Full) => {
                        self.full_retry_at = Some(now + FULL_RETRY);
                        return;
                    }
                    // The next settle ends the agent; the line was not answered.
                    Err(Refused::Failed) => return,
                },
                Err(reason) => {
                    warn!("line {} is skipped: {reason}", line.number);
                    Answer::Error(reason.to_string())
                }
            };
            if self.answers.is_some() {
                self.unanswered.push_back((line.number, answer));
            }
            self.inbox.pop_front();
        }
    }

    fn measure(&mut self, now: Instant) {
        let (Some(measure_at), Some(every)) = (self.measure_at, self.config.measure_every) else { return };
        if now < measure_at {
            return;
        }
        // Measurements missed while the machine slept are not made up for.
        self.measure_at = Some(if measure_at + every > now { measure_at + every } else { now + every });
        let time = time_now();
        let mut skipped = 0;
        for measured in self.sensors.measure() {
            let reading = Reading::measured(
                &self.config.device_id,
                &measured.metric,
                measured.value,
                measured.unit,
                &time,
            );
            skipped += u64::from(self.queue.append(&reading).is_err());
        }
        if skipped > 0 {
            warn!(
                "{skipped} measurements are skipped: the queue is full of {} readings",
                self.queue.waiting()
            );
        }
    }

    /// Whether the oldest unanswered line can be answered.
    fn has_answers(&self) -> bool {
        self.unanswered.front().is_some_and(|(_, answer)| match answer {
            Answer::WhenDurable(offset) => *offset < self.queue.durable_end(),
            Answer::Error(_) => true,
        })
    }

    fn answer(&mut self) {
        if !self.answers.as_ref().is_some_and(Answers::is_ready) {
            return;
        }
        let mut text = String::new();
        while self.has_answers() {
            match self.unanswered.pop_front() {
                Some((number, Answer::WhenDurable(_))) => text.push_str(&format!("ok {number}\n")),
                Some((number, Answer::Error(reason))) => text.push_str(&format!("error {number} {reason}\n")),
                None => break,
            }
        }
        if let Some(answers) = &self.answers
            && !text.is_empty()
        {
            answers.send(text);
        }
    }

    fn reconnect(&mut self, now: Instant) {
        if let Connection::Away { retry_at } = self.connection
            && now >= retry_at
            && matches!(self.phase, Phase::Running)
        {
            self.connection = Connection::Connecting(Link::connect(&self.config));
        }
    }

    /// Hands over as many readings as the window has room for.
    fn send(&mut self, now: Instant) -> Result<(), QueueError> {
        let sends = match self.phase {
            Phase::Running => true,
            Phase::Draining { until } => now < until,
            Phase::Leaving { .. } | Phase::Ended => false,
        };
        let Connection::Up(link) = &self.connection else { return Ok(()) };
        let mut failed = None;
        while sends && failed.is_none() && self.window.has_room() {
            let Some(waiting) = self.queue.next()? else { break };
            failed = link.publish(&waiting.topic, false, waiting.payload).err();
            self.window.handed(Parcel::Reading(waiting.offset));
        }
        if let Some(error) = failed {
            self.lose_connection(&error);
        }
        Ok(())
    }

    fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up => self.come_up(),
            LinkEvent::Sent(packet_id) => {
                if let Err(error) = self.window.sent(packet_id) {
                    self.lose_connection(&error.to_string());
                }
            }
            LinkEvent::Acknowledged(packet_id) => self.settle_publish(packet_id),
            LinkEvent::Refused(packet_id, reason) => self.handle_refused(packet_id, reason),
            LinkEvent::Left => self.phase = Phase::Ended,
            LinkEvent::Down(reason) => self.lose_connection(&reason),
        }
    }

    fn come_up(&mut self) {
        let link =
            match std::mem::replace(&mut self.connection, Connection::Away { retry_at: Instant::now() }) {
                Connection::Connecting(link) | Connection::Up(link) => link,
                Connection::Away { .. } => return,
            };
        info!("connected; {} readings wait", self.queue.waiting());
        self.told = None;
        self.window.clear();
        self.queue.rewind();
        self.connection = Connection::Up(link);
        self.publish_status("online");
    }

    fn publish_status(&mut self, status: &'static str) {
        let Connection::Up(link) = &self.connection else { return };
        let topic = status_topic(&self.config.device_id);
        match link.publish(&topic, true, Bytes::from_static(status.as_bytes())) {
            Ok(()) => self.window.handed(Parcel::Status),
            Err(error) => self.lose_connection(&error),
        }
    }

    fn settle_publish(&mut self, packet_id: u16) {
        let Acknowledged { parcel, done } = match self.window.acknowledged(packet_id) {
            Ok(acknowledged) => acknowledged,
            Err(error) => return self.lose_connection(&error.to_string()),
        };
        if let Some(done) = done {
            self.queue.done(done);
        }
        // The status alone says little: a broker may take it and refuse every reading.
        if done.is_some() || self.queue.waiting() == 0 {
            self.backoff = RECONNECT_FIRST;
        }
        // While leaving, the last status on its way is the one that says so.
        if parcel == Parcel::Status && matches!(self.phase, Phase::Leaving { .. }) && self.window.is_empty() {
            let left = match &self.connection {
                Connection::Up(link) => link.leave(),
                Connection::Away { .. } | Connection::Connecting(_) => Ok(()),
            };
            if left.is_err() {
                self.phase = Phase::Ended;
            }
        }
    }

    /// A publish that the broker will never take is given up, loudly; one that it does not take now is sent
    /// again later, because order is kept and nothing is lost.
    fn handle_refused(&mut self, packet_id: u16, reason: PubAckReason) {
        match reason {
            PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                error!("the broker will not take a publish and it is given up: {reason:?}");
                self.settle_publish(packet_id);
            }
            PubAckReason::NotAuthorized => self.lose_connection(&format!(
                "the broker does not let this device publish to sensors/{0}/... or devices/{0}/status; \
                 its access rules must allow it",
                self.config.device_id
            )),
            PubAckReason::Success
            | PubAckReason::NoMatchingSubscribers
            | PubAckReason::UnspecifiedError
            | PubAckReason::ImplementationSpecificError
            | PubAckReason::PacketIdentifierInUse
            | PubAckReason::QuotaExceeded => {
                self.lose_connection(&format!("the broker does not take readings now: {reason:?}"));
            }
        }
    }

    fn lose_connection(&mut self, reason: &str) {
        self.window.clear();
        self.connection = Connection::Away { retry_at: Instant::now() + self.backoff };
        if self.phase != Phase::Running {
            return;
        }
        let (host, port) = (&self.config.broker_host, self.config.broker_port);
        let told = format!("{host}:{port}: {reason}");
        if self.told.as_ref() == Some(&told) {
            debug!("still not connected to {told}");
        } else {
            warn!("not connected to {told}; readings are kept on disk, {} wait", self.queue.waiting());
            self.told = Some(told);
        }
        self.backoff = (self.backoff * 2).min(self.config.reconnect_max);
    }

    fn tell_dropped(&mut self, now: Instant) {
        if now < self.tell_dropped_at {
            return;
        }
        self.tell_dropped_at = now + TELL_DROPPED_EVERY;
        let dropped = self.queue.dropped();
        if dropped > self.dropped_told {
            let (more, max) = (dropped - self.dropped_told, self.config.queue_bytes_max);
            error!(
                "{more} readings were dropped unsent, the oldest, because {max} bytes wait (queue_bytes_max)"
            );
            self.dropped_told = dropped;
        }
    }

    /// Takes nothing in any more but the lines that were read already.
    fn drain(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some(mut lines) = self.lines.take() {
            while let Ok(line) = lines.try_recv() {
                self.inbox.push_back(line);
            }
        }
        self.measure_at = None;
        self.phase = Phase::Draining { until: Instant::now() + self.config.drain_timeout / 2 };
    }

    fn advance_phase(&mut self, now: Instant) {
        let is_up = matches!(self.connection, Connection::Up(_));
        let all_sent = self.inbox.is_empty() && self.queue.waiting() == 0;
        match self.phase {
            Phase::Running if self.lines.is_none() && self.measure_at.is_none() && all_sent => {
                self.leave(now)
            }
            Phase::Draining { until } if !is_up || all_sent || now >= until => self.leave(now),
            Phase::Leaving { until } if !is_up || now >= until => self.phase = Phase::Ended,
            Phase::Running | Phase::Draining { .. } | Phase::Leaving { .. } | Phase::Ended => {}
        }
    }

    /// Says that the device goes offline, behind everything that was handed over.
    fn leave(&mut self, now: Instant) {
        if matches!(self.connection, Connection::Up(_)) {
            self.phase = Phase::Leaving { until: now + self.config.drain_timeout / 2 };
            self.publish_status("offline");
        } else {
            self.phase = Phase::Ended;
        }
    }

    /// Writes everything down, answers what can be answered, and says what is left.
    async fn end(mut self) -> anyhow::Result<()> {
        // Without its farewell the broker publishes the will, which says offline as well.
        self.connection = Connection::Away { retry_at: Instant::now() };
        let written = async {
            while self.queue.durable_end() < self.queue.end() {
                self.durable.notified().await;
                self.queue.settle()?;
            }
            Ok::<(), QueueError>(())
        };
        tokio::time::timeout(self.config.drain_timeout.max(ANSWERS_TIMEOUT), written)
            .await
            .context("the disk does not finish writing")??;
        if let Some(answers) = &self.answers {
            let _ = tokio::time::timeout(ANSWERS_TIMEOUT, answers.ready()).await;
        }
        self.answer();
        if let Some(answers) = self.answers.take() {
            // Whoever does not read the answers in time does not get them.
            let _ = tokio::time::timeout(ANSWERS_TIMEOUT, answers.finish()).await;
        }
        if !self.inbox.is_empty() {
            error!("{} lines that were read are not kept, because the queue is full", self.inbox.len());
        }
        match self.queue.waiting() {
            0 => info!("ended; everything was sent"),
            waiting => info!("ended; {waiting} readings wait in {}", self.config.data_dir.display()),
        }
        Ok(self.queue.close()?)
    }
}

async fn take_lines(lines: &mut Option<mpsc::Receiver<Line>>, inbox: &mut VecDeque<Line>) {
    let Some(lines) = lines else { return std::future::pending().await };
    // One wait, then whatever else has come; the channel is bounded, and so is the inbox.
    if let Some(line) = lines.recv().await {
        inbox.push_back(line);
        while let Ok(line) = lines.try_recv() {
            inbox.push_back(line);
            if inbox.len() >= UNANSWERED_MAX {
                break;
            }
        }
    }
}

async fn connection_event(connection: &mut Connection) -> LinkEvent {
    match connection {
        Connection::Away { .. } => std::future::pending().await,
        Connection::Connecting(link) | Connection::Up(link) => link.event().await,
    }
}

async fn room_for_answers(answers: &Option<Answers>) {
    match answers {
        None => std::future::pending().await,
        Some(answers) => answers.ready().await,
    }
}

/// The time now, RFC 3339, to the millisecond.
fn time_now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}
