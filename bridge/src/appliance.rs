//! Composes the appliance from its parts, waits for a signal, drains.
//!
//! What always holds: the start is one straight line in which each part gets what it needs from the parts before it;
//! the end undoes it in the order of the data, so that what was accepted goes as far as the time allows and what
//! does not lies in the journal for the next start. A destination that is away never stops the start.

mod access_files;
mod announce;
mod folder;
mod journal_watch;
mod listeners;
mod logging;
mod metrics;
mod signals;
pub mod sinks;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_broker::journal::{FileStorage, Journal, OpenError};
use tidegate_broker::server::{self, CertificateError, Certificates, Server};

use tokio::runtime::Runtime;

use crate::config::{Config, period};
use crate::gateway::{self, Gateway, Wiring};
use crate::health::{Part, State};
use crate::kafka::KafkaConsumer;

use access_files::AccessFiles;
use journal_watch::JournalWatch;
use signals::Signal;
use sinks::Sinks;

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
    #[error("the data folder {} is in use: {error} (TIDEGATE_DATA_DIR)", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
        /// What in it is locked, and by which process.
        error: io::Error,
    },
    /// The journal cannot be opened.
    #[error("cannot open the journal in {}: {error}", path.display())]
    Journal {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        error: OpenError,
    },
    /// A file with a secret of a sink cannot be used.
    #[error("{0}")]
    Secret(String),
    /// A file that says who may do what cannot be used.
    #[error(transparent)]
    Access(#[from] access_files::AccessFileError),
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
    /// The Unix socket cannot be listened on.
    #[error("cannot listen on {}: {error}; remove what is there, or set TIDEGATE_MQTT_UNIX_LISTEN", path.display())]
    Socket {
        /// The configured path.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error("{0}; see tls_cert_file, tls_key_file and tls_client_ca_file")]
    Certificate(#[from] CertificateError),
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
            Self::Access(_) | Self::Certificate(_) | Self::Secret(_) => 64,
            Self::Listen { error, .. } if error.kind() == io::ErrorKind::AddrNotAvailable => 64,
            Self::Socket { error, .. } if error.kind() != io::ErrorKind::AddrInUse => 74,
            Self::InUse { .. } | Self::Listen { .. } | Self::Socket { .. } => 69,
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

    let mut appliance = Appliance::start(config, &runtime)?;
    appliance.announce(config);
    let name = loop {
        let signal = async { tokio::time::timeout(access_files::CHECK_INTERVAL, signals.next()).await };
        match runtime.block_on(signal) {
            Ok(Signal::Reload) => appliance.reload(),
            Ok(Signal::Stop(name)) => break name,
            Err(_elapsed) => appliance.access_files.check(),
        }
    };
    tracing::info!(
        "{name}: draining for up to {}; another signal ends at once",
        period(config.drain_timeout)
    );
    signals.end_at_once(&runtime);
    appliance.drain(config.drain_timeout, &runtime);
    drop(entered);
    runtime.shutdown_background();
    tracing::info!("drained");
    Ok(())
}

/// Everything that runs.
struct Appliance {
    journal: Journal,
    watch: JournalWatch,
    access_files: AccessFiles,
    /// For MQTT and for HTTP.
    certificates: Vec<Arc<Certificates>>,
    server: Server,
    consumer: Option<KafkaConsumer>,
    sinks: Sinks,
    gateway: Gateway,
}

impl Appliance {
    fn start(config: &Config, runtime: &Runtime) -> Result<Self, StartError> {
        let open_files = folder::raise_open_files();
        let metrics = metrics::install(runtime)?;
        folder::make(&config.data_dir)?;
        let access_files = AccessFiles::open(config)?;
        let access = access_files.access();
        let mqtt_certificates = listeners::certificates(config.mqtt.transports.certificate_files())?;
        let http_certificates = listeners::certificates(config.http.certificate_files())?;
        let operator_token = gateway::operator_token(&config.data_dir)
            .map_err(|error| StartError::Folder { path: config.data_dir.clone(), error })?;

        let (journal, appender) = {
            let path = config.data_dir.join("journal");
            let storage =
                FileStorage::open(&path).map_err(|error| folder::refused(&config.data_dir, error))?;
            Journal::open(storage, config.journal.clone())
                .map_err(|error| StartError::Journal { path, error })?
        };
        warn_of_little_space(config, &journal);
        let watch = JournalWatch::start(&journal);

        let state = FileStorage::open(&config.data_dir.join("broker"))
            .map_err(|error| folder::refused(&config.data_dir, error))?;
        let options = listeners::options(config, Arc::clone(&access), mqtt_certificates.clone());
        let server = Server::start(options, journal.clone(), appender, state)?;
        listeners::warn_of_missing(&server);
        let certificates: Vec<_> = mqtt_certificates.into_iter().chain(http_certificates.clone()).collect();
        for each in &certificates {
            listeners::watch(Arc::clone(each), runtime);
        }
        let mqtt = Part::new("mqtt");
        mqtt.set(State::Up, None);

        let sinks = Sinks::start(config, &journal)?;
        let consumer = consumer(config, &journal, &server, runtime)?;
        let wiring = Wiring {
            journal: journal.clone(),
            publisher: Arc::new(server.handle()),
            certificates: http_certificates,
            mqtt: Some(gateway::Mqtt { handle: server.handle(), listening: server.listening().to_vec() }),
            access: Arc::clone(&access),
            operator_token: Some(operator_token),
            parts: gateway::Parts {
                mqtt,
                sinks: sinks.parts(),
                sources: consumer.iter().map(KafkaConsumer::part).collect(),
            },
            metrics: Some(metrics),
        };
        let gateway = runtime.block_on(gateway::start(config.http.clone(), wiring))?;
        tell_of_few_files(config, open_files);
        Ok(Self { journal, watch, access_files, certificates, server, consumer, sinks, gateway })
    }

    fn announce(&self, config: &Config) {
        let lines = announce::Lines {
            config,
            mqtt: self.server.listening(),
            http: self.gateway.address(),
            https: self.gateway.tls_address(),
        };
        print!("{lines}");
    }

    /// Reads again who may do what, and the certificates. With a mistake in one, what was before stays.
    fn reload(&mut self) {
        self.access_files.reload();
        for certificates in &self.certificates {
            listeners::reload(certificates, "SIGHUP");
        }
    }

    /// Ends every part in the order of the data. What is not done by the deadline lies in the journal.
    fn drain(self, timeout: Duration, runtime: &Runtime) {
        let deadline = Instant::now() + timeout;
        signals::end_after(timeout + Duration::from_secs(1));
        if let Some(consumer) = self.consumer {
            consumer.drain(Instant::now() + timeout / 4);
        }
        self.server.drain(timeout / 2);
        self.sinks.drain(deadline - timeout / 10);
        runtime.block_on(self.gateway.drain(deadline.saturating_duration_since(Instant::now())));
        self.watch.stop();
        self.journal.close();
    }
}

/// What consumes from Kafka, if anything is to be consumed; Kafka may be away.
fn consumer(
    config: &Config,
    journal: &Journal,
    server: &Server,
    runtime: &Runtime,
) -> Result<Option<KafkaConsumer>, StartError> {
    if !config.kafka.is_on() || !config.kafka.consume.is_on() {
        return Ok(None);
    }
    let settings = sinks::kafka_settings(config);
    let started = KafkaConsumer::start(&settings, journal.id(), server.handle(), runtime.handle());
    started
        .map(Some)
        .map_err(|error| StartError::Internal { part: "the Kafka consumer", error: error.to_string() })
}

impl From<server::StartError> for StartError {
    fn from(error: server::StartError) -> Self {
        match error {
            server::StartError::Listen { listen, error } => listeners::refused(listen, error),
            server::StartError::System(error) => {
                Self::Internal { part: "the broker's thread", error: error.to_string() }
            }
            server::StartError::Restore(error) => Self::Restore(error),
        }
    }
}

impl From<gateway::StartError> for StartError {
    fn from(error: gateway::StartError) -> Self {
        match error {
            gateway::StartError::Listen { address, variable, error } => {
                Self::Listen { address, key: variable, error }
            }
            gateway::StartError::Config(mistakes) => {
                Self::Internal { part: "the HTTP gateway", error: mistakes.join("; ") }
            }
            gateway::StartError::Thread(error) => {
                Self::Internal { part: "the HTTP gateway", error: error.to_string() }
            }
        }
    }
}

/// Told once everything runs: the reason of a failed start stands alone.
fn tell_of_few_files(config: &Config, open_files: u64) {
    let connections = config.mqtt.limits.connections;
    if (connections as u64).saturating_add(64) > open_files {
        tracing::info!(
            "this process may open {open_files} files, fewer than mqtt.max_connections ({connections}) needs: raise \
             LimitNOFILE or ulimit -n"
        );
    }
}

/// A disk that fills up before the journal does makes its writes fail, which takes a restart to mend; a full
/// journal only holds publishers back.
fn warn_of_little_space(config: &Config, journal: &Journal) {
    let may_grow = config.journal.max_bytes.saturating_sub(journal.status().bytes);
    if let Some(free) = folder::free_bytes(&config.data_dir)
        && free < may_grow
    {
        tracing::warn!(
            "the disk of {} has {} MiB left and the journal may grow by {} MiB: lower TIDEGATE_JOURNAL_MAX_BYTES, so \
             that publishers are held back before the disk is full",
            config.data_dir.display(),
            free >> 20,
            may_grow >> 20,
        );
    }
}
