//! Composes the appliance from its parts, waits for a signal, drains.
//!
//! What always holds: the start is one straight line in which each part gets what it needs from the parts before it;
//! the end undoes it in the order of the data, so that what was accepted goes as far as the time allows and what
//! does not lies in the journal for the next start. A destination that is away never stops the start.

mod announce;
mod folder;
mod journal_watch;
mod logging;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_broker::auth::{Access, PasswordFile, PasswordFileError};
use tidegate_broker::journal::{FileStorage, Journal, OpenError};
use tidegate_broker::server::{self, Server};

use crate::config::{Config, period};
use crate::health::Part;

/// Why the appliance did not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be made or written.
    #[error(
        "cannot use the data folder {}: {error}; make it writable for this user, or set TIDEGATE_DATA_DIR", path.display()
    )]
    Folder {
        /// The folder, or what in it could not be used.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// Another process has the data folder.
    #[error(
        "the data folder {} is in use by another tidegate; stop it, or set TIDEGATE_DATA_DIR to a folder of its own", .0.display()
    )]
    InUse(PathBuf),
    /// The journal cannot be opened.
    #[error("cannot open the journal in {}: {error}", path.display())]
    Journal {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        error: OpenError,
    },
    /// The password file cannot be used.
    #[error("{0}; `tidegate passwd` writes such a file")]
    Passwords(#[from] PasswordFileError),
    /// An address cannot be listened on.
    #[error("{}", listen_advice(*address, key, error))]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The variable that sets it.
        key: &'static str,
        /// What the operating system says.
        error: io::Error,
    },
    /// The broker's state cannot be restored.
    #[error("cannot restore the broker's state: {0}")]
    Restore(String),
    /// A thread, a runtime or a recorder could not be made.
    #[error("cannot start {part}: {error}")]
    Internal {
        /// What.
        part: &'static str,
        /// Why.
        error: String,
    },
}

impl StartError {
    /// The exit code of the program (`sysexits.h`).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Passwords(_) => 64,
            Self::Listen { error, .. } if error.kind() == io::ErrorKind::AddrNotAvailable => 64,
            Self::InUse(_) | Self::Listen { .. } => 69,
            Self::Internal { .. } => 70,
            Self::Folder { .. } | Self::Journal { .. } | Self::Restore(_) => 74,
        }
    }
}

fn listen_advice(address: SocketAddr, key: &str, error: &io::Error) -> String {
    let (ip, port) = (address.ip(), address.port());
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of io::Error are open-ended")]
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {port} on {ip} is in use by another program; stop it or set {key}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{ip} is not an address of this machine; set {key} to one that is, or to 0.0.0.0:{port}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("port {port} needs more rights than this user has; set {key} to a port from 1024 on")
        }
        _ => format!("cannot listen on {address}: {error}; set {key}"),
    }
}

/// Starts the appliance, waits until a signal says to stop, and drains.
pub fn run(config: &Config) -> Result<(), StartError> {
    logging::begin(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("tidegate-http")
        .enable_all()
        .build()
        .map_err(|error| StartError::Internal { part: "the runtime", error: error.to_string() })?;
    let entered = runtime.enter();
    // Before anything is started, so that an early signal is not lost.
    let mut signals = signals::Signals::new()?;

    let appliance = Appliance::start(config)?;
    appliance.announce(config);
    let name = runtime.block_on(signals.next());
    tracing::info!(
        "{name}: draining for up to {}; another signal ends at once",
        period(config.drain_timeout)
    );
    signals.end_at_once(&runtime);
    appliance.drain(config.drain_timeout);
    drop(entered);
    runtime.shutdown_background();
    tracing::info!("drained");
    Ok(())
}

/// Everything that runs.
struct Appliance {
    journal: Journal,
    server: Server,
    watch: journal_watch::JournalWatch,
    journal_part: Part,
}

impl Appliance {
    fn start(config: &Config) -> Result<Self, StartError> {
        let open_files = folder::raise_open_files();
        if (config.mqtt.limits.connections as u64).saturating_add(64) > open_files {
            tracing::warn!(
                "this process may open {open_files} files, fewer than mqtt.max_connections \
                 ({}): raise LimitNOFILE or ulimit -n",
                config.mqtt.limits.connections
            );
        }
        folder::make(&config.data_dir)?;
        let journal_path = config.data_dir.join("journal");
        let storage =
            FileStorage::open(&journal_path).map_err(|error| folder::refused(&config.data_dir, error))?;
        let (journal, appender) = Journal::open(storage, config.journal.clone())
            .map_err(|error| StartError::Journal { path: journal_path, error })?;
        let journal_part = Part::new("journal");
        let watch = journal_watch::JournalWatch::start(&journal, journal_part.clone());

        let access = Arc::new(access(config)?);
        let state_path = config.data_dir.join("broker");
        let state =
            FileStorage::open(&state_path).map_err(|error| folder::refused(&config.data_dir, error))?;
        let options = server::Options { mqtt_listen: config.mqtt.listen, access, limits: config.mqtt.limits };
        let server =
            Server::start(options, journal.clone(), appender, state).map_err(|error| match error {
                server::StartError::Listen { address, error } => {
                    StartError::Listen { address, key: "TIDEGATE_MQTT_LISTEN", error }
                }
                server::StartError::Restore(error) => StartError::Restore(error),
            })?;
        Ok(Self { journal, server, watch, journal_part })
    }

    fn announce(&self, config: &Config) {
        let lines = announce::Lines { config, mqtt: self.server.mqtt_address(), http: config.http.listen };
        print!("{lines}");
    }

    /// Ends every part in the order of the data. What is not done by the deadline lies in the journal.
    fn drain(self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        signals::end_after(timeout + Duration::from_secs(1));
        self.server.drain(timeout / 2);
        self.watch.stop();
        self.journal.close();
        let left = deadline.saturating_duration_since(Instant::now());
        tracing::debug!(part = self.journal_part.name(), "closed with {} left", period(left));
    }
}

fn access(config: &Config) -> Result<Access, StartError> {
    let path = config.password_path();
    // The file in the data folder need not exist; one that was asked for must.
    let wanted = config.auth.password_file.is_some() || path.exists();
    let passwords = if wanted { Some(PasswordFile::open(&path)?) } else { None };
    Ok(Access::new(config.auth.anonymous, passwords))
}
