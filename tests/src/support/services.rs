//! Real Kafka, PostgreSQL and Schema Registry, through `tests/services`.
//!
//! The shared instance belongs to everybody: a test uses its own devices and databases there and never stops it. Whoever wants
//! to stop, suspend or restart a service has an [`Own`] one, which ends with the test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::process::{self, Signal};
use super::{root, target, unique};

/// A kind of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Kafka,
    Postgres,
    SchemaRegistry,
}

impl Service {
    const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Postgres => "postgres",
            Self::SchemaRegistry => "apicurio",
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Kafka => "TIDEGATE_TEST_KAFKA",
            Self::Postgres => "TIDEGATE_TEST_POSTGRES",
            Self::SchemaRegistry => "TIDEGATE_TEST_SCHEMA_REGISTRY",
        }
    }

    fn url(self, port: &str) -> String {
        match self {
            Self::Kafka => format!("127.0.0.1:{port}"),
            Self::Postgres => format!("postgresql://postgres@127.0.0.1:{port}/postgres"),
            Self::SchemaRegistry => format!("http://127.0.0.1:{port}/apis/ccompat/v7"),
        }
    }
}

/// The shared Kafka's bootstrap server.
pub(crate) fn kafka() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| shared(Service::Kafka))
}

/// The shared PostgreSQL's administrator URL.
pub(crate) fn postgres() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| shared(Service::Postgres))
}

/// The shared Schema Registry's URL.
pub(crate) fn schema_registry() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| shared(Service::SchemaRegistry))
}

/// The shared Kafka, seen through a network that a test makes: whoever asks at `advertised` for the cluster is told to go on
/// there, so a test that listens there and passes everything on to `listener` has all traffic in its hands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxied {
    /// Where Kafka listens for it.
    pub(crate) listener: SocketAddr,
    /// Where Kafka says that it is; nobody listens there.
    pub(crate) advertised: SocketAddr,
}

/// The shared Kafka through a proxy. One test at a time.
pub(crate) fn kafka_proxied() -> Proxied {
    let address = |name| variable(name).parse().expect("tests/services prints addresses");
    Proxied {
        listener: address("TIDEGATE_TEST_KAFKA_PROXIED"),
        advertised: address("TIDEGATE_TEST_KAFKA_PROXY"),
    }
}

fn shared(service: Service) -> String {
    variable(service.variable())
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run tests/run, or eval \"$(tests/services start ...)\" first")
    })
}

/// A service of one test alone.
#[derive(Debug)]
pub(crate) struct Own {
    service: Service,
    instance: String,
}

impl Own {
    /// Starts it, with empty data.
    pub(crate) fn start(service: Service) -> Self {
        let prefix = std::env::var("TIDEGATE_TEST_INSTANCE").unwrap_or_else(|_| "own".to_owned());
        let instance = unique(&format!("{prefix}-test")).replace('_', "-");
        let own = Self { service, instance };
        own.call("start");
        own
    }

    /// What a client connects to; stays the same over restarts.
    pub(crate) fn url(&self) -> String {
        self.service.url(&self.told("port"))
    }

    /// Ends the process in an orderly way; the data stays.
    pub(crate) fn stop(&self) {
        self.call("stop");
    }

    /// Starts it again with its old data, at its old address.
    pub(crate) fn start_again(&self) {
        self.call("start");
    }

    /// Sends a signal to its process.
    pub(crate) fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Its process; of PostgreSQL the one that has the others as children.
    pub(crate) fn pid(&self) -> u32 {
        self.told("pid").parse().expect("tests/services writes process ids")
    }

    fn folder(&self) -> PathBuf {
        target().join("services").join(&self.instance)
    }

    fn told(&self, what: &str) -> String {
        let path = self.folder().join(self.service.name()).join(what);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{:?} does not run: {}: {error}", self.service, path.display()));
        text.trim().to_owned()
    }

    fn call(&self, command: &str) {
        let status = Command::new(root().join("tests/services"))
            .args(["--instance", &self.instance, command, self.service.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("tests/services is in the checkout");
        assert!(
            status.success(),
            "tests/services could not {command} {:?}: its lines are above",
            self.service
        );
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A panic in a drop during a panic would abort and hide the first one.
        let _ = Command::new(root().join("tests/services"))
            .args(["--instance", &self.instance, "stop", self.service.name()])
            .status();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(self.folder());
        }
    }
}
