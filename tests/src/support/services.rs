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
    /// As [`Secure`].
    KafkaSecure,
    /// Three nodes; new topics have three replicas, of which two must be in sync.
    KafkaCluster,
    Postgres,
    SchemaRegistry,
}

impl Service {
    const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::KafkaSecure => "kafka-secure",
            Self::KafkaCluster => "kafka-cluster",
            Self::Postgres => "postgres",
            Self::SchemaRegistry => "apicurio",
        }
    }
}

/// The shared Kafka's bootstrap server.
pub(crate) fn kafka() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| variable("TIDEGATE_TEST_KAFKA"))
}

/// The shared PostgreSQL's administrator URL.
pub(crate) fn postgres() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| variable("TIDEGATE_TEST_POSTGRES"))
}

/// The shared Schema Registry's URL.
pub(crate) fn schema_registry() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| variable("TIDEGATE_TEST_SCHEMA_REGISTRY"))
}

/// PostgreSQL's JDBC driver, as a file.
pub(crate) fn jdbc() -> PathBuf {
    variable("TIDEGATE_TEST_JDBC").into()
}

/// The class path of Kafka's console consumer with a deserializer for Avro of a Schema Registry.
pub(crate) fn serde() -> String {
    variable("TIDEGATE_TEST_SERDE")
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

/// The shared Kafka with passwords, certificates and rights. The password of each user is [`secret`]: `admin` may do everything,
/// `writer` may create topics whose names begin with [`Secure::ALLOWED`] and write them, `nobody` may do nothing.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    /// `SASL_PLAINTEXT`, with `PLAIN`, `SCRAM-SHA-256` and `SCRAM-SHA-512`.
    pub(crate) sasl: String,
    /// `SASL_SSL`, with the same.
    pub(crate) tls: String,
    /// `SSL`, with client certificates.
    pub(crate) mutual: String,
    files: PathBuf,
}

impl Secure {
    /// What the names of topics begin with that `writer` may create and write.
    pub(crate) const ALLOWED: &str = "allowed-";

    /// One of its files: `ca.pem`; `writer.pem` and `writer.key` with its passphrase in `writer.pass`; `stranger-ca.pem`,
    /// `stranger.pem` and `stranger.key` of an authority that it does not trust.
    pub(crate) fn file(&self, name: &str) -> String {
        self.files.join(name).to_str().expect("our folders are text").to_owned()
    }

    /// Runs one of Kafka's own tools as the administrator, such as `org.apache.kafka.tools.AclCommand`.
    pub(crate) fn tool(&self, class: &str, arguments: &[&str]) {
        let instance = std::env::var("TIDEGATE_TEST_INSTANCE").unwrap_or_else(|_| "shared".to_owned());
        kafka_tool(&instance, class, arguments);
    }
}

fn kafka_tool(instance: &str, class: &str, arguments: &[&str]) {
    let output = Command::new(root().join("tests/services"))
        .args(["--instance", instance, "kafka-tool", class])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("tests/services is in the checkout");
    assert!(output.status.success(), "{class} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The password of a user of [`Secure`].
pub(crate) fn secret(user: &str) -> String {
    format!("{user}-secret")
}

/// The shared Kafka that wants to know who asks.
pub(crate) fn kafka_secure() -> Secure {
    Secure {
        sasl: variable("TIDEGATE_TEST_KAFKA_SECURE"),
        tls: variable("TIDEGATE_TEST_KAFKA_SECURE_TLS"),
        mutual: variable("TIDEGATE_TEST_KAFKA_SECURE_MUTUAL"),
        files: variable("TIDEGATE_TEST_KAFKA_SECURE_FILES").into(),
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run tests/run, or eval \"$(tests/services start ...)\" first")
    })
}

/// The nodes of a cluster.
pub(crate) const NODES: [usize; 3] = [1, 2, 3];

/// A service of one test alone.
#[derive(Debug)]
pub(crate) struct Own {
    service: Service,
    instance: String,
    /// Words in front of the command lines that start it.
    enter: Vec<String>,
}

impl Own {
    /// Starts it, with empty data.
    pub(crate) fn start(service: Service) -> Self {
        Self::start_inside(service, &[])
    }

    /// The same, where the words `enter` lead.
    pub(crate) fn start_inside(service: Service, enter: &[String]) -> Self {
        let prefix = std::env::var("TIDEGATE_TEST_INSTANCE").unwrap_or_else(|_| "own".to_owned());
        let instance = unique(&format!("{prefix}-test")).replace('_', "-");
        let own = Self { service, instance, enter: enter.to_vec() };
        own.call("start");
        own
    }

    /// What a client connects to; stays the same over restarts.
    pub(crate) fn url(&self) -> String {
        match self.service {
            Service::Kafka | Service::KafkaSecure => format!("127.0.0.1:{}", self.told("port")),
            Service::KafkaCluster => {
                let address = |node: &usize| format!("127.0.0.1:{}", self.told(&format!("{node}/port")));
                NODES.iter().map(address).collect::<Vec<_>>().join(",")
            }
            Service::Postgres => format!("postgresql://postgres@127.0.0.1:{}/postgres", self.told("port")),
            Service::SchemaRegistry => format!("http://127.0.0.1:{}/apis/ccompat/v7", self.told("port")),
        }
    }

    /// Ends the process in an orderly way; the data stays.
    pub(crate) fn stop(&self) {
        self.call("stop");
    }

    /// Starts it again with its old data, at its old address; of a cluster, those of its nodes that do not run.
    pub(crate) fn start_again(&self) {
        self.call("start");
    }

    /// Runs one of Kafka's own tools, as the administrator of a [`Service::KafkaSecure`] or against a [`Service::KafkaCluster`].
    pub(crate) fn tool(&self, class: &str, arguments: &[&str]) {
        kafka_tool(&self.instance, class, arguments);
    }

    /// Sends a signal to its process.
    pub(crate) fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Its process; of PostgreSQL the one that has the others as children.
    pub(crate) fn pid(&self) -> u32 {
        self.told("pid").parse().expect("tests/services writes process ids")
    }

    /// The process of a node of the cluster, which are numbered from 1.
    pub(crate) fn node(&self, node: usize) -> u32 {
        self.told(&format!("{node}/pid")).parse().expect("tests/services writes process ids")
    }

    /// What its process has printed since it was started last.
    pub(crate) fn log(&self) -> String {
        self.told("log")
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
        let script = root().join("tests/services").to_str().expect("our folders are text").to_owned();
        let mut words = self.enter.iter().chain([&script]);
        let status = Command::new(words.next().expect("at least the script"))
            .args(words)
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
