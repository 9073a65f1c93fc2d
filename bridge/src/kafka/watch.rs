//! Watches the connection: what librdkafka says of it, whether anything is confirmed, and what is worth telling.
//!
//! The same trouble is told once. That a broker closed a connection is no trouble by itself, as brokers close idle
//! ones; so while nothing flows a suspicion is looked into before it is told.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use crate::pump::SinkError;

use super::config::Config;
use super::{topics, trouble};

/// How long nothing is confirmed before it is said, although no broker is known to be down.
const STALL: Duration = Duration::from_secs(10);

/// What is known of one producer's connection.
#[derive(Debug)]
pub(super) struct Watch {
    /// Why the last connection failed, as librdkafka put it.
    last_reason: Option<(RDKafkaErrorCode, String)>,
    /// What is wrong with the connection, until something is confirmed.
    trouble: Option<String>,
    told: Option<String>,
    /// When something was confirmed, or first written after all was confirmed.
    progress_at: Instant,
    /// Whether any broker can be reached anew. Kept here because whoever waits for it may be dropped.
    check: Option<JoinHandle<Result<(), SinkError>>>,
    /// Why brokers that are there confirm nothing, while that is looked into.
    diagnosis: Option<JoinHandle<String>>,
}

impl Watch {
    /// Of a producer that has just begun.
    pub(super) fn new() -> Self {
        Self {
            last_reason: None,
            trouble: None,
            told: None,
            progress_at: Instant::now(),
            check: None,
            diagnosis: None,
        }
    }

    /// Something is in flight, and nothing was before.
    pub(super) fn begun(&mut self) {
        self.progress_at = Instant::now();
    }

    /// Something was confirmed, so the connection works.
    pub(super) fn progressed(&mut self) {
        self.begun();
        self.trouble = None;
        self.told = None;
        self.last_reason = None;
        self.diagnosis = None;
    }

    /// Takes in what librdkafka said of the connection, which is no fatal error.
    pub(super) fn hear(
        &mut self,
        config: &Config,
        code: RDKafkaErrorCode,
        reason: String,
    ) -> Result<(), SinkError> {
        if trouble::is_refusal(code, &reason) {
            return Err(SinkError::Operator(trouble::unreachable_detail(config, code, &reason)));
        }
        if code == RDKafkaErrorCode::AllBrokersDown {
            let (code, reason) = self.last_reason.clone().unwrap_or((code, reason));
            self.trouble = Some(trouble::unreachable_detail(config, code, &reason));
        } else {
            self.last_reason = Some((code, reason));
        }
        Ok(())
    }

    /// What there is to complain about and was not yet.
    pub(super) fn complaint(&mut self, config: &Config) -> Option<SinkError> {
        let stalled = self.progress_at.elapsed() >= STALL;
        if self.trouble.is_none() && stalled {
            // That one of several brokers is away is often no reason, so the brokers are asked.
            let last_reason = self.last_reason.clone();
            self.diagnosis.get_or_insert_with(|| diagnose(config.clone(), last_reason));
        }
        if self.trouble == self.told {
            return None;
        }
        self.told.clone_from(&self.trouble);
        self.trouble.clone().map(SinkError::Waiting)
    }

    /// Waits until `wake` says that librdkafka has something new, or there is a complaint.
    pub(super) async fn next(&mut self, wake: &Notify) {
        // Once the stall is told or looked into, only that and librdkafka have something new to say.
        let is_quiet = self.told.is_none() && self.diagnosis.is_none();
        let stall = is_quiet.then_some(self.progress_at + STALL);
        let found = tokio::select! {
            () = wake.notified() => return,
            found = found(&mut self.diagnosis) => found,
            () = sleep_until(stall.unwrap_or_else(Instant::now)), if stall.is_some() => return,
        };
        self.diagnosis = None;
        self.trouble.get_or_insert(found);
    }

    /// While nothing is in flight: tries to reach a broker anew if librdkafka has said something, `Err` if none answers.
    pub(super) async fn look(&mut self, config: &Config) -> Result<(), SinkError> {
        let suspicious = self.trouble.take().is_some() || self.last_reason.take().is_some();
        if suspicious && self.check.is_none() {
            let config = config.clone();
            self.check = Some(spawn_blocking(move || topics::reach(&config).map(drop)));
        }
        if let Some(check) = &mut self.check {
            let reached = check.await.expect("reaching does not panic");
            self.check = None;
            reached?;
        }
        Ok(())
    }
}

/// Looks for the reason why nothing is confirmed: in the partitions, else why the last connection failed, if one did.
fn diagnose(config: Config, last_reason: Option<(RDKafkaErrorCode, String)>) -> JoinHandle<String> {
    let runtime = Handle::current();
    spawn_blocking(move || {
        let servers = config.bootstrap_servers.trim();
        let nothing = format!("Kafka at {servers} has confirmed nothing for {} s", STALL.as_secs());
        match (topics::stalled(&config, &runtime), last_reason) {
            (Some(found), _) => format!("{nothing}: {found}"),
            (None, Some((code, reason))) => trouble::unreachable_detail(&config, code, &reason),
            (None, None) => nothing,
        }
    })
}

/// What `diagnosis` has found; never comes if there is none.
async fn found(diagnosis: &mut Option<JoinHandle<String>>) -> String {
    match diagnosis {
        Some(diagnosis) => diagnosis.await.expect("looking does not panic"),
        None => std::future::pending().await,
    }
}
