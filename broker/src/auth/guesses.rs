//! Logins that failed, over MQTT and HTTP together: all are counted, some are logged, and whoever guesses is slowed,
//! by address, wherever it tries. Also what has become of logins later: tokens that expired.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::denial_log::LogRate;
use super::throttle::Throttle;
use super::{Denied, Login};
use crate::record::Timestamp;

/// How many logins came to nothing since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginCounts {
    /// Refused for who the client is, and proofs that were not renewed.
    pub failed: u64,
    /// Refused unchecked, after many that failed from the same address.
    pub unchecked: u64,
    /// Clients that were let in and whose token has expired.
    pub expired: u64,
}

/// Counts failed logins and slows guesses.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    throttle: Mutex<Throttle>,
    log: Mutex<LogRate>,
    token_log: Mutex<LogRate>,
    failed: AtomicU64,
    unchecked: AtomicU64,
    expired: AtomicU64,
}

impl Guesses {
    /// Whether a login from `peer` is not worth a look, and for how long.
    pub(super) fn wait_of(&self, peer: IpAddr, now: Timestamp) -> Option<Duration> {
        let wait = lock(&self.throttle).full_for(peer, since_epoch(now))?;
        self.unchecked.fetch_add(1, Ordering::Relaxed);
        Some(wait)
    }

    /// A login has failed; says how long the refusal is to wait.
    pub(super) fn failed(&self, peer: IpAddr, client: &str, denied: Denied, now: Timestamp) -> Duration {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let noted = lock(&self.log).note(since_epoch(now));
        if let Some(unlogged) = noted {
            if unlogged > 0 {
                tracing::info!(unlogged, "more logins were refused than are logged");
            }
            tracing::info!(%peer, client, %denied, "refusing a client");
        }
        match denied {
            Denied::BadCredentials => lock(&self.throttle).failed(peer, since_epoch(now)),
            Denied::NotAuthorised => Duration::ZERO,
        }
    }

    /// A client that was let in has failed to prove itself again.
    pub(super) fn not_renewed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A token is not believed, for this reason.
    pub(super) fn disbelieved(&self, login: &Login<'_>, reason: &str, now: Timestamp) {
        let noted = lock(&self.token_log).note(since_epoch(now));
        let Some(unlogged) = noted else { return };
        if unlogged > 0 {
            tracing::info!(unlogged, "more tokens were not believed than are logged");
        }
        tracing::info!(peer = %login.peer, client = login.client, reason, "a token is not believed");
    }

    /// What a client was let in with has expired.
    pub(super) fn expired(&self) {
        self.expired.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> LoginCounts {
        LoginCounts {
            failed: self.failed.load(Ordering::Relaxed),
            unchecked: self.unchecked.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
        }
    }
}

/// Nothing is left half changed under these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One clock for all who ask. It may be set: see [`Throttle`].
const fn since_epoch(now: Timestamp) -> Duration {
    Duration::from_millis(now.0)
}
