//! One typed configuration, [`Config`]: defaults, a TOML file, the environment and the command line.
//!
//! What always holds: a configuration that exists has every value within what is allowed; if there is any
//! mistake, nothing is loaded and every mistake is told at once, with where it was written and what is allowed.
//! Nothing here prints a secret. Reading the file and the environment is left to the caller.
//!
//! Later in this list wins: the defaults, the platform's own variable names ([`platform`]), the file, variables
//! called `TIDEGATE_<SECTION>_<KEY>`, options of the command line. The platform's names come before the file
//! because they are so general (`PORT`, `HOST`) that they may stand in an environment by chance.

mod kafka_values;
mod key;
mod kind;
mod platform;
mod source;
mod transports;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tidegate_broker::auth::{Anonymous, DefaultRules};
use tidegate_broker::journal::{self, FullPolicy, SyncPolicy};
use tidegate_broker::server::Limits;

use crate::{gateway, kafka, postgres};
pub use kind::{period, size};
pub use transports::Transports;

/// Everything that can be configured.
#[derive(Clone)]
pub struct Config {
    /// The folder that holds the journal and everything else that must survive a restart.
    pub data_dir: PathBuf,
    /// How long a drain may take before the process ends anyway.
    pub drain_timeout: Duration,
    /// MQTT listeners and what one client may use.
    pub mqtt: Mqtt,
    /// The HTTP listener and what its clients may use.
    pub http: gateway::Config,
    /// Who may connect, and what who is connected may do.
    pub auth: Auth,
    /// The journal.
    pub journal: journal::Options,
    /// The Kafka sink; without servers it is off.
    pub kafka: kafka::Config,
    /// The PostgreSQL sink; without a URL it is off.
    pub postgres: postgres::Config,
    /// What is logged.
    pub log: Log,
}

/// MQTT listeners and what one client may use.
#[derive(Clone, Debug)]
pub struct Mqtt {
    /// Where plain MQTT is accepted.
    pub listen: SocketAddr,
    /// Where and how else it is.
    pub transports: Transports,
    /// What one client may use.
    pub limits: Limits,
}

/// Who may connect, and what who is connected may do.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Who may connect without credentials.
    pub anonymous: Anonymous,
    /// Users and their hashed passwords, in mosquitto's format.
    pub password_file: Option<PathBuf>,
    /// What users may publish and receive, in mosquitto's format.
    pub acl_file: Option<PathBuf>,
    /// What they may where there is no such file.
    pub default_rules: DefaultRules,
    /// Users who prove their password with SCRAM.
    pub scram_file: Option<PathBuf>,
    /// The key of tokens.
    pub jwt_key_file: Option<PathBuf>,
    /// Where the keys of tokens are published.
    pub jwt_jwks_url: Option<String>,
    /// Who must have issued a token.
    pub jwt_issuer: Option<String>,
    /// For whom a token must be.
    pub jwt_audience: Option<String>,
    /// The claim that names the user.
    pub jwt_username_claim: String,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            anonymous: Anonymous::default(),
            password_file: None,
            acl_file: None,
            default_rules: DefaultRules::default(),
            scram_file: None,
            jwt_key_file: None,
            jwt_jwks_url: None,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_username_claim: "sub".to_owned(),
        }
    }
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// A level, or a filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl fmt::Debug for Config {
    /// What `tidegate check` shows: without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key::document(|key, out| {
            let value = key.shown(self).unwrap_or_else(|| "not set".to_owned());
            out.push_str(&format!("{} = {value}\n", key.name()));
        }))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("tidegate-data"),
            drain_timeout: Duration::from_secs(10),
            mqtt: Mqtt {
                listen: everywhere(1883),
                transports: Transports::default(),
                limits: Limits::default(),
            },
            http: gateway::Config::default(),
            auth: Auth::default(),
            journal: journal::Options {
                segment_bytes: 64 << 20,
                max_bytes: 8 << 30,
                max_age: Some(Duration::from_secs(7 * 24 * 3_600)),
                full: FullPolicy::Refuse,
                sync: SyncPolicy::Always,
                tail_bytes: 32 << 20,
                batch_bytes: 1 << 20,
            },
            kafka: kafka::Config::default(),
            postgres: postgres::Config::default(),
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }
}

impl Config {
    /// The password file: the configured one, else `passwords` in the data folder.
    pub fn password_path(&self) -> PathBuf {
        self.auth.password_file.clone().unwrap_or_else(|| self.data_dir.join("passwords"))
    }

    /// Whether the files with secrets and schemas of the sinks that are on can be used now.
    pub fn check_secrets(&self) -> Result<(), Mistakes> {
        let mut unreadable = Vec::new();
        if self.kafka.is_on() {
            unreadable.extend(self.kafka.clone().read_secrets().err().into_iter().flatten());
            unreadable.extend(self.kafka.unusable_files());
        }
        if self.postgres.is_on() {
            unreadable.extend(self.postgres.read_password().err());
        }
        if unreadable.is_empty() { Ok(()) } else { Err(Mistakes(unreadable)) }
    }

    /// The ACL file: the configured one, else `acl` in the data folder.
    pub fn acl_path(&self) -> PathBuf {
        self.auth.acl_file.clone().unwrap_or_else(|| self.data_dir.join("acl"))
    }

    /// The SCRAM file: the configured one, else `scram` in the data folder.
    pub fn scram_path(&self) -> PathBuf {
        self.auth.scram_file.clone().unwrap_or_else(|| self.data_dir.join("scram"))
    }
}

const fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// Where values can come from. The caller reads them; nothing is read here.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file: how messages call it, and its text.
    pub file: Option<(String, String)>,
    /// All variables of the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Options of the command line: what was typed (`--http-listen`), the key it sets, the value.
    pub options: Vec<(String, String, String)>,
}

impl fmt::Debug for Sources {
    /// Values may be secrets, so only their number is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file.as_ref().map(|(name, _)| name))
            .field("environment", &self.environment.len())
            .field("options", &self.options.len())
            .finish()
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// One or more variables of the platform.
    Platform(String),
    /// A line of the file, counted from 1.
    File(String, usize),
    /// A variable called `TIDEGATE_<SECTION>_<KEY>`.
    Variable(String),
    /// An option of the command line.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(name) | Self::Variable(name) | Self::Option(name) => f.write_str(name),
            Self::File(name, line) => write!(f, "{name}:{line}"),
        }
    }
}

/// Every mistake in the sources, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Keys that were set somewhere, with the origin that won.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Loaded {
    /// Puts the sources together.
    pub fn load(sources: &Sources) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut settings = source::settings(sources, &mut mistakes);
        let replaced = settings.iter().filter(|setting| !setting.key.adds_up);
        let mut replaced: Vec<&str> = replaced.map(|setting| setting.key.path).collect();
        // Properties add up, so they replace no table; one of them may still be what another key of the platform means.
        if settings.iter().any(source::Setting::names_kafka_password) {
            replaced.push("kafka.password");
        }
        let mut platform = platform::settings(&sources.environment);
        platform.retain(|setting| !platform::yields(setting.key.path, &replaced));
        platform.append(&mut settings);

        let mut loaded = Self { config: Config::default(), origins: BTreeMap::new() };
        for setting in platform {
            let read = setting.value.and_then(|value| (setting.key.set)(&mut loaded.config, &value));
            match read {
                Ok(()) => _ = loaded.origins.insert(setting.key.path, setting.origin),
                Err(refusal) => {
                    mistakes.push(format!("{}: {}: {refusal}", setting.origin, setting.key.path));
                }
            }
        }
        loaded.check(&mut mistakes);
        if mistakes.is_empty() { Ok(loaded) } else { Err(Mistakes(mistakes)) }
    }

    /// What must hold between values.
    fn check(&self, mistakes: &mut Vec<String>) {
        let journal = &self.config.journal;
        let parts = [
            self.config.mqtt.transports.mistakes(),
            self.config.http.mistakes(),
            self.config.kafka.mistakes(),
            self.config.postgres.mistakes(),
        ];
        mistakes.extend(parts.into_iter().flatten().map(|each| self.with_origin(each)));
        if journal.max_bytes < journal.segment_bytes.saturating_mul(2) {
            mistakes.push(format!(
                "{} must be at least twice {}: whole segments are trimmed",
                self.named("journal.max_bytes"),
                self.named("journal.segment_bytes"),
            ));
        }
        if journal.batch_bytes as u64 > journal.segment_bytes {
            mistakes.push(format!(
                "{} must not be larger than {}",
                self.named("journal.batch_bytes"),
                self.named("journal.segment_bytes"),
            ));
        }
        if self.config.mqtt.limits.packet_bytes as u64 > journal.segment_bytes {
            mistakes.push(format!(
                "{} must not be larger than {}: a record lies in one segment",
                self.named("mqtt.max_packet_bytes"),
                self.named("journal.segment_bytes"),
            ));
        }
    }

    /// Adds where the key was set to a mistake that a part has found, written as `section.key: what is wrong`.
    fn with_origin(&self, mistake: String) -> String {
        let path = mistake.split_once(": ").map_or("", |(path, _)| path);
        let tables = ["kafka.properties", "kafka.property_files"];
        let is_in = |table: &&str| path.strip_prefix(*table).is_some_and(|rest| rest.starts_with('.'));
        let path = tables.into_iter().find(is_in).unwrap_or(path);
        let origin = self.origins.get(path);
        origin.map_or_else(|| mistake.clone(), |origin| format!("{origin}: {mistake}"))
    }

    /// A key with its value and origin, for a message.
    fn named(&self, path: &str) -> String {
        let key = key::find(path).expect("messages name keys that exist");
        let value = key.shown(&self.config).unwrap_or_else(|| "not set".to_owned());
        match self.origins.get(path) {
            Some(origin) => format!("{path} ({value}, from {origin})"),
            None => format!("{path} ({value}, the default)"),
        }
    }

    /// Every key with its effective value and where it came from, as TOML; secrets are replaced by `***`.
    pub fn effective(&self) -> String {
        key::document(|key, out| {
            let origin =
                self.origins.get(key.path).map_or_else(String::new, |origin| format!("  # {origin}"));
            match key.shown(&self.config) {
                Some(value) => out.push_str(&format!("{} = {value}{origin}\n", key.name())),
                None => out.push_str(&format!("# {} is not set\n", key.name())),
            }
        })
    }
}

/// Every key with its default and an explanation, as TOML. This is `deploy/tidegate.toml`.
pub fn example() -> String {
    let config = Config::default();
    let head = "# Tidegate's configuration: every key, its default and what it means. Every line may be left out.\n\
        # Use it with `tidegate --config FILE`; see what is in effect with `tidegate check`.\n\
        #\n\
        # Each key can also be set by a variable: [journal] max_bytes is TIDEGATE_JOURNAL_MAX_BYTES. Variables win\n\
        # over this file, options of the command line over both. An empty variable counts as not set.\n\
        # Sizes are bytes or 64MiB, 1GB; spans of time are 500ms, 30s, 15m, 12h, 7d.\n";
    let keys = key::document(|key, out| {
        out.push('\n');
        for line in wrapped(key.about, 106) {
            out.push_str(&format!("# {line}\n"));
        }
        match (key.show)(&config) {
            Some(value) => out.push_str(&format!("{} = {value}\n", key.name())),
            None => out.push_str(&format!("# {} = {}\n", key.name(), key.sample)),
        }
    });
    format!("{head}{keys}")
}

/// Every key as `section.key` with the variable that sets it.
pub fn keys() -> impl Iterator<Item = (&'static str, String)> {
    key::keys().map(|key| (key.path, key.variable()))
}

fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests;
