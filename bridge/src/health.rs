//! What each part of the appliance says of itself, gathered for `/health`.
//!
//! A [`Part`] is written by the part it describes and read by the gateway. It always tells the last thing that
//! was known; it decides nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tidegate_broker::record::Timestamp;

use crate::balance::{Account, Balance, Reasons};

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet connected for the first time.
    Starting,
    /// Working.
    Up,
    /// Working, but far behind or with rejects.
    Degraded,
    /// Not working now; it keeps trying.
    Down,
    /// Broken until somebody acts.
    Failed,
}

/// How far a cursor is behind the durable end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Entries between the cursor and the durable end.
    pub entries: u64,
    /// Milliseconds since the oldest record not yet delivered was accepted; 0 when there is none.
    pub age_ms: u64,
}

/// What a part says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it is.
    pub state: State,
    /// The last failure or notice, and what to do about it.
    pub detail: Option<String>,
    /// For a sink: how far behind it is.
    pub lag: Option<Lag>,
    /// Records the destination will never take, since the start.
    pub rejected: u64,
    /// Of a sink, the same by reason.
    pub reasons: Reasons,
    /// Since when it is in this state.
    pub since: SystemTime,
}

/// One part's report; cheap to clone.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    report: Arc<Mutex<Report>>,
    account: Arc<Mutex<Option<Account>>>,
}

impl Part {
    /// A part that has just begun.
    pub fn new(name: &'static str) -> Self {
        let report = Report {
            state: State::Starting,
            detail: None,
            lag: None,
            rejected: 0,
            reasons: Reasons::new(),
            since: SystemTime::now(),
        };
        Self { name, report: Arc::new(Mutex::new(report)), account: Arc::default() }
    }

    /// Its name in `/health`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it says now.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what it says. A change of state also sets `since`.
    pub fn update(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let before = report.state;
        change(&mut report);
        if report.state != before {
            report.since = SystemTime::now();
        }
    }

    /// For a sink that has begun: what became of its records. `total` says how many the journal has counted.
    pub fn balance(&self, total: impl FnOnce() -> u64) -> Option<Balance> {
        // Asked while the account cannot move: what was settled was counted before.
        let account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        account.as_ref().map(|account| account.balance(total()))
    }

    /// Changes its account, which is `None` until the sink has begun.
    pub fn book<T>(&self, change: impl FnOnce(&mut Option<Account>) -> T) -> T {
        change(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets state and detail together.
    pub fn set(&self, state: State, detail: Option<String>) {
        self.update(|report| {
            report.state = state;
            report.detail = detail;
        });
    }
}

/// Milliseconds since `then`.
pub fn age_ms(then: Timestamp) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_sub(then.0)
}
