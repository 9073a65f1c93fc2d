//! Signals: the first SIGINT or SIGTERM begins the drain, the second ends the process at once; SIGHUP reloads.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind, signal};

use super::StartError;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// To read files again: SIGHUP.
    Reload,
    /// To drain: SIGINT or SIGTERM, by name.
    Stop(&'static str),
}

/// The signals that are listened to. A terminal that closes sends SIGHUP too; that ends nothing.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// Takes the signals over; to be called inside a runtime.
    pub(super) fn new() -> Result<Self, StartError> {
        let take = |kind| {
            signal(kind).map_err(|error| StartError::Internal { part: "signals", error: error.to_string() })
        };
        // A file that may grow no further is then a write that fails, which the journal tells, and not the end.
        drop(take(SignalKind::from_raw(libc::SIGXFSZ))?);
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }

    /// From now on a signal ends the process; the journal is written to survive that.
    pub(super) fn end_at_once(mut self, runtime: &Runtime) {
        runtime.spawn(async move {
            let name = loop {
                match self.next().await {
                    Signal::Stop(name) => break name,
                    Signal::Reload => {}
                }
            };
            let number = if name == "SIGINT" { 2 } else { 15 };
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
