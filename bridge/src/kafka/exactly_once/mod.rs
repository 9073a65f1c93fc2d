//! Kafka as a destination that has each record once, for consumers that read what is committed.
//!
//! Records and the cursor behind them become visible together, in transactions of a producer whose identity no other
//! can have at the same time. Whatever happens between two transactions, the cursor that Kafka has is exact, and the
//! pump goes on from it.
//!
//! What always holds:
//! - A batch is in one transaction, as a whole; transactions follow each other in the order of the journal.
//! - Batches are let go of once their transaction is committed. One that was aborted is handed over again from memory;
//!   of one whose end is not known, the cursor is read after it has been decided.
//! - The others are fenced first, then the cursor is read, then anything is produced.
//! - An instance that was fenced by another one stays down until it is restarted: two of them would fence each other
//!   for ever. One that was fenced because its transaction had been open for too long goes on by itself.

mod cursors;
mod place;
mod settings;
mod span;

use std::collections::VecDeque;

use metrics::Counter;
use rdkafka::error::RDKafkaErrorCode;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Batch, Offset};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::health::Part;
use crate::pump::{Sink, SinkError};
use crate::route::KafkaTopic;

use super::config::Config;
use super::native::{Call, CallError, Halt, Heard, Outcome, Transactor};
use super::shape::Shaper;
use super::trouble::{self, Verdict};
use super::watch::Watch;
use super::{Doubt, Refusal, judge, producer_config, review, topics, unusable};
use place::{Claim, Cursor, Identity};
use span::Span;

/// Where the open transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Takes in batches.
    Open,
    /// Is being committed; nothing can be produced meanwhile.
    Committing,
    /// Is being aborted; nothing can be produced meanwhile.
    Aborting,
}

/// Writes batches to Kafka in transactions.
#[derive(Debug)]
pub struct ExactlyOnceSink {
    config: Config,
    identity: Identity,
    shaper: Shaper,
    transactor: Option<Transactor>,
    phase: Phase,
    /// What is in the open transaction: the batches that the producer holds.
    span: Span,
    /// Batches for the transactions after it.
    waiting: VecDeque<Batch>,
    /// A record of the open transaction was not stored, so the transaction cannot be committed.
    failed: bool,
    /// A record of it is condemned, so that another attempt is not the same.
    learned: bool,
    /// How often transactions were aborted since the last commit without anything learned from it.
    aborts: u32,
    /// The rights to the topics were asked for anew since the last commit, because a transaction was refused for want of
    /// them.
    asked_rights: bool,
    /// Whether this instance has had the identity: if it was taken away, it is not taken back.
    claimed: bool,
    /// Committed, and not yet told.
    confirmed: Option<Offset>,
    watch: Watch,
    doubt: Doubt,
    /// As in [`KafkaSink`](super::KafkaSink).
    batch_bytes_max: u32,
    commits: Counter,
    all_aborts: Counter,
}

impl ExactlyOnceSink {
    /// A sink that is not connected yet, for the journal called `journal`; `part` is what `/health` says of it.
    /// Returns every mistake in `config`, if there is one.
    pub fn new(config: &Config, journal: JournalId, part: Part) -> Result<Self, Vec<String>> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let (transactional_id, claim) = (config.transactional_id(journal.0), claim(journal));
        let transactions =
            |outcome| metrics::counter!("tidegate_kafka_transactions_total", "outcome" => outcome);
        Ok(Self {
            shaper: Shaper::new(config, journal, part)?,
            config: config.clone(),
            identity: Identity { transactional_id, claim },
            transactor: None,
            phase: Phase::Open,
            span: Span::default(),
            waiting: VecDeque::new(),
            failed: false,
            learned: false,
            aborts: 0,
            asked_rights: false,
            claimed: false,
            confirmed: None,
            watch: Watch::new(),
            doubt: Doubt::Nothing,
            batch_bytes_max: u32::MAX,
            commits: transactions("committed"),
            all_aborts: transactions("aborted"),
        })
    }

    /// Ends the producer, if there is one. Its transaction ends when the next one is made, or by itself.
    async fn discard(&mut self) {
        self.phase = Phase::Open;
        self.span = Span::default();
        self.waiting.clear();
        self.failed = false;
        self.learned = false;
        self.aborts = 0;
        self.confirmed = None;
        self.watch = Watch::new();
        if let Some(transactor) = self.transactor.take() {
            // It joins the threads.
            spawn_blocking(move || drop(transactor)).await.expect("dropping a producer does not panic");
        }
    }

    /// Goes as far as is possible without waiting.
    fn step(&mut self) -> Result<(), SinkError> {
        self.listen()?;
        let Some(transactor) = &mut self.transactor else { return Err(not_connected()) };
        match self.phase {
            Phase::Open => self.fill(),
            Phase::Committing => match transactor.ended() {
                None => Ok(()),
                Some(outcome) => self.committed(outcome),
            },
            Phase::Aborting => match transactor.ended() {
                None => Ok(()),
                Some(outcome) => self.aborted(outcome),
            },
        }
    }

    /// Puts what waits into the open transaction, and closes it when it is time.
    fn fill(&mut self) -> Result<(), SinkError> {
        let Some(Transactor { producer, .. }) = &mut self.transactor else { return Err(not_connected()) };
        let (now, interval) = (Instant::now(), self.config.transaction_interval());
        while !self.span.is_due(now, interval)
            && let Some(batch) = self.waiting.pop_front()
        {
            self.span.add(&batch, now);
            producer.hold(batch);
        }
        let complete = self.hand_over()?;
        if self.failed {
            self.begin(Call::Abort, Phase::Aborting);
        } else if complete && self.span.is_due(now, interval) {
            self.commit()?;
        }
        Ok(())
    }

    /// Hands over what the transaction holds. Returns whether that was all of it.
    fn hand_over(&mut self) -> Result<bool, SinkError> {
        let Some(Transactor { producer, .. }) = &mut self.transactor else { return Err(not_connected()) };
        while !self.failed {
            let shaper = &mut self.shaper;
            match producer.hand_over(|offset, record| shaper.shape(offset, record)) {
                Ok(()) => return Ok(true),
                Err(Halt::Full) => return Ok(false),
                // librdkafka takes no more into a transaction that has failed.
                Err(Halt::Refused(_, RDKafkaErrorCode::State)) => self.failed = true,
                // Its place is behind it now, so it becomes what it is to be in another attempt.
                Err(Halt::Refused(offset, code)) => {
                    self.failed = true;
                    judge(producer, &mut self.shaper, &mut self.doubt, offset, code, Refusal::AtOnce)?;
                    self.learned = true;
                }
            }
        }
        Ok(false)
    }

    /// Closes the transaction with the cursor behind its batches.
    fn commit(&mut self) -> Result<(), SinkError> {
        // What is in no transaction has to be safe before the cursor passes it.
        self.shaper.sync()?;
        let cursor = place::written(&Cursor { offset: self.span.end().0 });
        let key = self.identity.cursor_key();
        // Without room for it, reports have to come in first; each of them comes back here.
        if self.produce_own(&key, &cursor)? {
            self.begin(Call::Commit, Phase::Committing);
        }
        Ok(())
    }

    /// Produces into the cursor topic. Returns whether there was room.
    fn produce_own(&mut self, key: &str, value: &str) -> Result<bool, SinkError> {
        let topic = self.shaper.topics().len();
        let Some(Transactor { producer, .. }) = &mut self.transactor else { return Err(not_connected()) };
        match producer.produce_own(topic, key.as_bytes(), value.as_bytes()) {
            Ok(()) => Ok(true),
            Err(RDKafkaErrorCode::QueueFull) => Ok(false),
            // librdkafka takes no more into a transaction that has failed; the abort says why.
            Err(RDKafkaErrorCode::State) => {
                self.failed = true;
                self.begin(Call::Abort, Phase::Aborting);
                Ok(false)
            }
            Err(code) => Err(SinkError::Retry(format!("Kafka takes no cursor: {code}"))),
        }
    }

    fn begin(&mut self, call: Call, phase: Phase) {
        self.transactor.as_mut().expect("whoever calls has a producer").begin(call);
        self.phase = phase;
    }

    fn committed(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        if let Err(error) = outcome {
            // librdkafka asks for no commit once it has reported a failed record, and every report is in.
            if self.failed {
                self.begin(Call::Abort, Phase::Aborting);
                return Ok(());
            }
            return Err(self.given_up("commit", &error));
        }
        let producer = &mut self.transactor.as_mut().expect("it has just committed").producer;
        let end = producer.release();
        assert!(producer.is_idle() && end == Some(self.span.end()), "a transaction ends with its batches");
        self.commits.increment(1);
        self.confirmed = end;
        self.shaper.settle(self.span.end())?;
        self.doubt = self.doubt.after(self.span.end(), true);
        self.span = Span::default();
        self.phase = Phase::Open;
        self.aborts = 0;
        self.asked_rights = false;
        self.watch.progressed();
        if !self.waiting.is_empty() {
            self.fill()?;
        }
        Ok(())
    }

    fn aborted(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        let cause = match outcome {
            Ok(cause) => cause,
            Err(error) => return Err(self.given_up("abort", &error)),
        };
        self.all_aborts.increment(1);
        tracing::debug!("Kafka: a transaction was aborted: {cause:?}");
        if std::mem::take(&mut self.learned) {
            self.aborts = 0;
        } else {
            self.blame(cause)?;
        }
        self.failed = false;
        self.phase = Phase::Open;
        self.shaper.forget();
        self.transactor.as_mut().expect("it has just aborted").producer.rewind();
        self.fill()
    }

    /// Nothing is known that would make another attempt a better one. `Err` if it is not worth it.
    fn blame(&mut self, cause: Option<CallError>) -> Result<(), SinkError> {
        self.aborts += 1;
        let reason = match cause {
            Some(CallError { code, .. }) if self.lacks_right(code) => return Err(asking_rights()),
            Some(CallError { code, reason }) if trouble::needs_operator(code) => {
                return Err(SinkError::Operator(format!(
                    "Kafka does not store records: {reason}; check the rights of this client"
                )));
            }
            Some(CallError { reason, .. }) => reason,
            None => "records were not stored".to_owned(),
        };
        if self.aborts > ABORTS_MAX {
            return Err(SinkError::Retry(format!("Kafka aborts one transaction after another: {reason}")));
        }
        Ok(())
    }

    /// Whether `code` says that this client may not write one of the transaction's topics. Kafka does not say which; it is
    /// found when the sink connects anew. If that did not help, it is for an operator.
    fn lacks_right(&mut self, code: RDKafkaErrorCode) -> bool {
        code == RDKafkaErrorCode::TopicAuthorizationFailed && !std::mem::replace(&mut self.asked_rights, true)
    }

    /// A call has failed, and nothing is known of the transaction.
    fn given_up(&mut self, what: &str, error: &CallError) -> SinkError {
        let CallError { code, reason } = error;
        tracing::debug!("Kafka: {what}: {code}: {reason}");
        if self.lacks_right(*code) {
            return asking_rights();
        }
        if trouble::needs_operator(*code) {
            let id = &self.identity.transactional_id;
            return SinkError::Operator(format!(
                "Kafka does not allow transactions under the transactional id {id}: {reason}; check the rights of this \
                 client"
            ));
        }
        SinkError::Retry(format!(
            "a Kafka transaction did not end well ({what}: {reason}); going on from the last one that did"
        ))
    }

    /// Takes in what librdkafka has to say.
    fn listen(&mut self) -> Result<(), SinkError> {
        let Some(Transactor { producer, .. }) = &mut self.transactor else { return Ok(()) };
        let Heard { failed, troubles, fatal } = producer.heard();
        for (offset, code) in failed {
            self.failed = true;
            self.judge(offset, code)?;
        }
        if let Some(reason) = fatal {
            return Err(SinkError::Retry(format!(
                "the Kafka producer has to be made anew: {reason}; going on from the last transaction"
            )));
        }
        for (code, reason) in troubles {
            self.watch.hear(&self.config, code, reason)?;
        }
        Ok(())
    }

    /// A record was not stored, so its transaction is aborted. `Err` if it should not be tried again as it is.
    fn judge(&mut self, offset: Offset, code: RDKafkaErrorCode) -> Result<(), SinkError> {
        if trouble::verdict(code) == Verdict::Again {
            return Ok(());
        }
        let producer = &self.transactor.as_ref().expect("whoever listens has a producer").producer;
        judge(producer, &mut self.shaper, &mut self.doubt, offset, code, Refusal::Reported)?;
        self.learned = true;
        Ok(())
    }

    /// Makes `call` and waits for its end.
    async fn call(&mut self, call: Call) -> Result<(), SinkError> {
        self.transactor.as_mut().ok_or_else(not_connected)?.begin(call);
        loop {
            let heard = self.listen();
            let transactor = self.transactor.as_mut().ok_or_else(not_connected)?;
            // How the call ended says more than what was heard meanwhile.
            match transactor.ended() {
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => return Err(self.not_begun(&error)),
                None => heard?,
            }
            let wake = transactor.producer.wake();
            wake.notified().await;
        }
    }

    /// The identity could not be had.
    fn not_begun(&self, error: &CallError) -> SinkError {
        let (id, CallError { code, reason }) = (&self.identity.transactional_id, error);
        if trouble::needs_operator(*code) || *code == RDKafkaErrorCode::InvalidTransactionTimeout {
            return SinkError::Operator(format!(
                "Kafka does not allow transactions under the transactional id {id}: {reason}; check the rights of this \
                 client, and that transaction.timeout.ms is not above the brokers' transaction.max.timeout.ms"
            ));
        }
        SinkError::Retry(format!(
            "Kafka does not begin transactions under the transactional id {id} yet: {reason}; if that stays, check that \
             the brokers can hold their topic __transaction_state (transaction.state.log.replication.factor)"
        ))
    }

    /// Asks `question` of the cursor topic, where blocking is allowed.
    async fn ask(
        &mut self,
        question: fn(&Config, &Identity) -> Result<place::Found, SinkError>,
    ) -> Result<place::Found, SinkError> {
        let (config, identity) = (self.config.clone(), self.identity.clone());
        spawn_blocking(move || question(&config, &identity)).await.expect("reading does not panic")
    }

    fn make_transactor(&mut self) -> Result<Transactor, SinkError> {
        let mut config =
            producer_config(&self.config, &mut self.shaper, self.doubt, &mut self.batch_bytes_max);
        config.set("transactional.id", &self.identity.transactional_id);
        let mut topics = self.shaper.topics().to_vec();
        let name = self.config.cursor_topic.clone();
        topics.push(KafkaTopic { name, partitions: None, retention_ms: None });
        Transactor::new(&config, &topics).map_err(unusable)
    }
}

/// How many transactions are aborted in a row, for reasons that may pass, before a new producer is tried.
const ABORTS_MAX: u32 = 3;

impl Sink for ExactlyOnceSink {
    /// Enough for the transaction that is being committed and for the next one.
    const WINDOW: usize = 2 * span::BATCHES_MAX;

    async fn connect(&mut self) -> Result<Option<Offset>, SinkError> {
        self.discard().await;
        self.config.read_secrets().map_err(|unreadable| SinkError::Operator(unreadable.join("; ")))?;
        self.shaper.fetch_schemas().await?;
        let topics = self.shaper.topics().to_vec();
        let found = topics::look_at(&self.config, topics).await?;
        self.shaper.take_in(found.iter().enumerate(), std::time::Instant::now())?;
        let (config, runtime) = (self.config.clone(), Handle::current());
        spawn_blocking(move || cursors::prepare(&config, &runtime))
            .await
            .expect("preparing does not panic")?;
        if self.claimed
            && let Some(rival) = self.ask(cursors::last_claim).await?.rival(&self.identity)
        {
            return Err(cursors::rival_told(&self.identity, rival));
        }
        self.transactor = Some(self.make_transactor()?);
        self.call(Call::Init).await?;
        self.identity.claim.count += 1;
        let (key, claim) = (self.identity.claim_key().to_owned(), place::written(&self.identity.claim));
        self.produce_own(&key, &claim)?;
        self.call(Call::Commit).await?;
        self.claimed = true;
        let found = self.ask(cursors::committed).await?;
        match (found.cursor, found.other_journal) {
            // A transaction whose end was not known was committed as far as that.
            (Some(cursor), _) => self.shaper.settle(cursor)?,
            (None, Some(other)) => tracing::warn!(
                "Kafka has a cursor of the journal {other} under the transactional id {}, and none of this journal: it \
                 begins at the journal's own cursor",
                self.identity.transactional_id
            ),
            (None, None) => tracing::info!(
                "Kafka has no cursor under the transactional id {} yet: it begins at the journal's own cursor",
                self.identity.transactional_id
            ),
        }
        self.shaper.forget();
        if self.doubt == Doubt::Settled {
            self.doubt = Doubt::Nothing;
        }
        self.failed = false;
        self.watch = Watch::new();
        Ok(found.cursor)
    }

    async fn write(&mut self, batch: Batch) -> Result<(), SinkError> {
        let producer = self.transactor.as_mut().map(|transactor| &mut transactor.producer);
        review(&self.config, &mut self.shaper, producer).await;
        if self.transactor.is_none() {
            return Err(not_connected());
        }
        if self.span.is_empty() && self.waiting.is_empty() {
            self.watch.begun();
        }
        self.waiting.push_back(batch);
        self.step()
    }

    async fn confirmed(&mut self) -> Result<Offset, SinkError> {
        loop {
            self.step()?;
            if let Some(confirmed) = self.confirmed.take() {
                return Ok(confirmed);
            }
            if let Some(complaint) = self.watch.complaint(&self.config) {
                return Err(complaint);
            }
            let Some(Transactor { producer, .. }) = &self.transactor else { return Err(not_connected()) };
            let due =
                self.span.due_at(self.config.transaction_interval()).filter(|due| *due > Instant::now());
            let wake = producer.wake();
            tokio::select! {
                () = self.watch.next(&wake) => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    async fn lost(&mut self) -> SinkError {
        loop {
            if let Err(error) = self.listen() {
                return error;
            }
            if let Err(error) = self.watch.look(&self.config).await {
                return error;
            }
            let Some(Transactor { producer, .. }) = &self.transactor else { return not_connected() };
            producer.wake().notified().await;
        }
    }
}

fn asking_rights() -> SinkError {
    SinkError::Retry(
        "Kafka refuses a transaction because this client may not write one of its topics; asking which"
            .into(),
    )
}

fn not_connected() -> SinkError {
    SinkError::Retry("Kafka is not connected".into())
}

/// What this start of the program claims its identity with.
fn claim(journal: JournalId) -> Claim {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "an unknown host".to_owned() } else { host.trim().to_owned() };
    let instance = getrandom::u64().expect("the system has random numbers");
    Claim { instance: format!("{instance:016x}"), count: 0, host, journal: format!("{:032x}", journal.0) }
}
