//! Signals: the first SIGINT or SIGTERM begins the drain, the second ends the process at once.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::StartError;

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over; to be called inside a runtime.
    pub(super) fn new() -> Result<Self, StartError> {
        let take = |kind| {
            signal(kind).map_err(|error| StartError::Internal { part: "signals", error: error.to_string() })
        };
        // Without this a terminal that closes, or a SIGHUP meant to reload, would end the process undrained.
        drop(take(SignalKind::hangup())?);
        Ok(Self { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    /// Waits for the next one; returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// From now on a signal ends the process; the journal is written to survive that.
    pub(super) fn end_at_once(mut self, runtime: &Runtime) {
        runtime.spawn(async move {
            let (name, number) = match self.next().await {
                "SIGINT" => ("SIGINT", 2),
                other => (other, 15),
            };
            eprintln!("tidegate: {name} again: ended without draining; nothing acknowledged is lost");
            std::process::exit(128 + number);
        });
    }
}

/// Ends the process if it still runs after `timeout`, so that no part can hold the drain up for ever.
pub(super) fn end_after(timeout: Duration) {
    let watchdog = move || {
        std::thread::sleep(timeout);
        eprintln!(
            "tidegate: the drain took longer than drain_timeout: ended; nothing acknowledged is lost, the rest of \
             it goes on at the next start"
        );
        std::process::exit(70);
    };
    // Without the watchdog the drain still ends by the deadlines of its parts.
    _ = std::thread::Builder::new().name("tidegate-watchdog".to_owned()).spawn(watchdog);
}
