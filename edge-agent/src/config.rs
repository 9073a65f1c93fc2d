//! What the agent is told: options of the command line, else variables `TIDEGATE_AGENT_<NAME>`, else a TOML
//! file, else the defaults.
//!
//! A [`Config`] that exists is valid. Unknown keys are refused and every mistake is reported at once, so that
//! nobody has to start a program on a far device five times to find five of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use serde::Deserialize;
use tidegate_broker::journal::FullPolicy;

use crate::reading;

/// Publishes this device's sensors, and JSON lines, over MQTT; keeps them on disk until they are acknowledged.
///
/// Readings go to sensors/<device id>/<metric> at QoS 1, the status `online` or `offline` is kept retained at
/// devices/<device id>/status. Every option can also be set as TIDEGATE_AGENT_<NAME> in the environment or
/// under its name, with underscores, in the configuration file.
#[derive(Debug, Parser)]
#[command(name = "tidegate-agent", version)]
pub(crate) struct Options {
    /// A TOML file that sets any of these options.
    #[arg(long, short, env = "TIDEGATE_AGENT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// Everything that can be set, in any of the three places; `None` is not set there.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The broker: host, host:port or mqtt://host:port [default: 127.0.0.1:1883].
    #[arg(long, short, env = "TIDEGATE_AGENT_BROKER")]
    broker: Option<String>,
    /// The device's name in topics [default: the host name].
    #[arg(long, short, env = "TIDEGATE_AGENT_DEVICE_ID")]
    device_id: Option<String>,
    /// The Client Identifier [default: the device id].
    #[arg(long, env = "TIDEGATE_AGENT_CLIENT_ID")]
    client_id: Option<String>,
    /// The user name to connect with.
    #[arg(long, short, env = "TIDEGATE_AGENT_USERNAME")]
    username: Option<String>,
    /// The password to connect with; other users of the machine can see options, so prefer the variable or the
    /// file.
    #[arg(long, env = "TIDEGATE_AGENT_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// A file whose first line is the password.
    #[arg(long, env = "TIDEGATE_AGENT_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where readings wait until they are acknowledged [default: tidegate-agent-data].
    #[arg(long, env = "TIDEGATE_AGENT_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// How many bytes of readings may wait, at least 1 MiB [default: 268435456, which is 256 MiB].
    #[arg(long, env = "TIDEGATE_AGENT_QUEUE_BYTES_MAX", value_name = "BYTES")]
    queue_bytes_max: Option<u64>,
    /// What happens to readings when that many wait [default: drop-oldest].
    #[arg(long, env = "TIDEGATE_AGENT_QUEUE_FULL")]
    queue_full: Option<QueueFull>,
    /// Publish this machine's temperatures, load averages and memory [default: true].
    #[arg(long, env = "TIDEGATE_AGENT_SENSORS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sensors: Option<bool>,
    /// Seconds between two measurements [default: 10].
    #[arg(long, short, env = "TIDEGATE_AGENT_INTERVAL_SECONDS", value_name = "SECONDS")]
    interval_seconds: Option<u64>,
    /// Publish JSON objects read from standard input, one per line [default: false]. When it ends and sensors
    /// are off, the agent ends as soon as everything is acknowledged.
    #[arg(long, env = "TIDEGATE_AGENT_STDIN", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stdin: Option<bool>,
    /// Answer each line on standard output, in order: `ok N` once line N is safe on disk, else `error N` and the
    /// reason [default: false].
    #[arg(long, env = "TIDEGATE_AGENT_ACK", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ack: Option<bool>,
    /// How many publishes may wait for their acknowledgement at a time [default: 20].
    #[arg(long, env = "TIDEGATE_AGENT_IN_FLIGHT_MAX", value_name = "NUMBER")]
    in_flight_max: Option<u16>,
    /// Seconds after which a silent connection is probed, at least 5 [default: 30].
    #[arg(long, env = "TIDEGATE_AGENT_KEEP_ALIVE_SECONDS", value_name = "SECONDS")]
    keep_alive_seconds: Option<u16>,
    /// The longest pause between two attempts to connect, in seconds [default: 15].
    #[arg(long, env = "TIDEGATE_AGENT_RECONNECT_SECONDS_MAX", value_name = "SECONDS")]
    reconnect_seconds_max: Option<u64>,
    /// How long the agent goes on sending after it was told to end, in seconds; what is left stays on disk
    /// [default: 5].
    #[arg(long, env = "TIDEGATE_AGENT_DRAIN_TIMEOUT_SECONDS", value_name = "SECONDS")]
    drain_timeout_seconds: Option<u64>,
    /// What is logged: error, warn, info, debug, or a filter like rumqttc=debug [default: info].
    #[arg(long, env = "TIDEGATE_AGENT_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

/// What happens to readings when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum QueueFull {
    /// The oldest are dropped, counted and told: a device that was cut off for long reports how it is now.
    DropOldest,
    /// Lines are not read any more, so that their writer waits; measurements are skipped, counted and told.
    Refuse,
}

/// What the agent does.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) broker_host: String,
    pub(crate) broker_port: u16,
    pub(crate) device_id: String,
    pub(crate) client_id: String,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) data_dir: PathBuf,
    pub(crate) queue_bytes_max: u64,
    pub(crate) queue_full: FullPolicy,
    /// How often to measure; `None` is never.
    pub(crate) measure_every: Option<Duration>,
    pub(crate) stdin: bool,
    pub(crate) ack: bool,
    pub(crate) in_flight_max: u16,
    pub(crate) keep_alive: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) log_level: String,
}

/// Who the broker is told this is.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Every mistake in what was set.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct Mistakes(pub(crate) Vec<String>);

impl Options {
    /// Reads the file, if there is one, and puts everything together.
    pub(crate) fn load(self) -> Result<Config, Mistakes> {
        let file = match &self.config {
            None => Settings::default(),
            Some(path) => Settings::from_file(path).map_err(|mistake| Mistakes(vec![mistake]))?,
        };
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.settings.or(file).check(host_name.trim())
    }
}

impl Settings {
    fn from_file(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("the configuration file {} cannot be read: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("the configuration file {}: {error}", path.display()))
    }

    /// What is set here, else what is set in `other`.
    fn or(self, other: Self) -> Self {
        Self {
            broker: self.broker.or(other.broker),
            device_id: self.device_id.or(other.device_id),
            client_id: self.client_id.or(other.client_id),
            username: self.username.or(other.username),
            password: self.password.or(other.password),
            password_file: self.password_file.or(other.password_file),
            data_dir: self.data_dir.or(other.data_dir),
            queue_bytes_max: self.queue_bytes_max.or(other.queue_bytes_max),
            queue_full: self.queue_full.or(other.queue_full),
            sensors: self.sensors.or(other.sensors),
            interval_seconds: self.interval_seconds.or(other.interval_seconds),
            stdin: self.stdin.or(other.stdin),
            ack: self.ack.or(other.ack),
            in_flight_max: self.in_flight_max.or(other.in_flight_max),
            keep_alive_seconds: self.keep_alive_seconds.or(other.keep_alive_seconds),
            reconnect_seconds_max: self.reconnect_seconds_max.or(other.reconnect_seconds_max),
            drain_timeout_seconds: self.drain_timeout_seconds.or(other.drain_timeout_seconds),
            log_level: self.log_level.or(other.log_level),
        }
    }

    fn check(self, host_name: &str) -> Result<Config, Mistakes> {
        let mut mistakes = Vec::new();
        let broker = self.broker.as_deref().unwrap_or("127.0.0.1:1883");
        let (broker_host, broker_port) = broker_address(broker).unwrap_or_else(|mistake| {
            mistakes.push(mistake);
            Default::default()
        });
        let device_id = self.device_id.unwrap_or_else(|| sanitised(host_name));
        if !reading::is_level(&device_id) {
            mistakes.push(format!(
                "device_id {device_id:?} cannot be a level of a topic: it must have 1 to 128 bytes and none of / + #"
            ));
        }
        let credentials = credentials(self.username, self.password, self.password_file.as_deref())
            .unwrap_or_else(|mistake| {
                mistakes.push(mistake);
                None
            });
        let mut seconds = |name: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                mistakes.push(format!("{name} is {value}, but must be {least} to {most}"));
            }
            Duration::from_secs(value)
        };
        let interval = seconds("interval_seconds", self.interval_seconds.unwrap_or(10), 1, 86_400);
        let keep_alive =
            seconds("keep_alive_seconds", self.keep_alive_seconds.unwrap_or(30).into(), 5, u16::MAX.into());
        let reconnect_max =
            seconds("reconnect_seconds_max", self.reconnect_seconds_max.unwrap_or(15), 1, 3_600);
        let drain_timeout =
            seconds("drain_timeout_seconds", self.drain_timeout_seconds.unwrap_or(5), 0, 3_600);
        let queue_bytes_max = self.queue_bytes_max.unwrap_or(256 << 20);
        if queue_bytes_max < 1 << 20 {
            mistakes
                .push(format!("queue_bytes_max is {queue_bytes_max}, but must be at least 1048576 (1 MiB)"));
        }
        let in_flight_max = self.in_flight_max.unwrap_or(20);
        if !(1..=1_000).contains(&in_flight_max) {
            mistakes.push(format!("in_flight_max is {in_flight_max}, but must be 1 to 1000"));
        }
        let (sensors, stdin) = (self.sensors.unwrap_or(true), self.stdin.unwrap_or(false));
        if !sensors && !stdin {
            mistakes.push("there is nothing to publish: sensors are off, and so is stdin".to_owned());
        }
        let ack = self.ack.unwrap_or(false);
        if ack && !stdin {
            mistakes.push("ack answers lines, but stdin is off".to_owned());
        }
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        Ok(Config {
            broker_host,
            broker_port,
            client_id: self.client_id.unwrap_or_else(|| device_id.clone()),
            device_id,
            credentials,
            data_dir: self.data_dir.unwrap_or_else(|| "tidegate-agent-data".into()),
            queue_bytes_max,
            queue_full: match self.queue_full.unwrap_or(QueueFull::DropOldest) {
                QueueFull::DropOldest => FullPolicy::DropOldest,
                QueueFull::Refuse => FullPolicy::Refuse,
            },
            measure_every: sensors.then_some(interval),
            stdin,
            ack,
            in_flight_max,
            keep_alive,
            reconnect_max,
            drain_timeout,
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn broker_address(text: &str) -> Result<(String, u16), String> {
    let mistake =
        |reason: &str| Err(format!("broker {text:?} {reason}; write host, host:port or mqtt://host:port"));
    let address = match text.split_once("://") {
        None | Some(("mqtt" | "tcp", _)) => text.split_once("://").map_or(text, |(_, address)| address),
        Some((scheme, _)) => {
            return mistake(&format!("begins with {scheme}://, which the agent does not speak"));
        }
    };
    let address = address.strip_suffix('/').unwrap_or(address);
    // A colon inside brackets belongs to an IPv6 address.
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => match port.parse() {
            Ok(port) if port > 0 => (host, port),
            Ok(_) | Err(_) => return mistake("has a port that is no number from 1 to 65535"),
        },
        Some(_) | None => (address, 1883),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(['/', '@', ' ']) || (host.contains(':') && !bracketed) {
        return mistake("names no host that can be understood (an IPv6 address goes in brackets)");
    }
    Ok((host.to_owned(), port))
}

fn credentials(
    username: Option<String>,
    password: Option<String>,
    password_file: Option<&Path>,
) -> Result<Option<Credentials>, String> {
    let password = match (password, password_file) {
        (Some(_), Some(_)) => {
            return Err("password and password_file are both set; set one of them".to_owned());
        }
        (Some(password), None) => Some(password),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("password_file {} cannot be read: {error}", path.display()))?;
            Some(text.lines().next().unwrap_or_default().to_owned())
        }
        (None, None) => None,
    };
    match (username, password) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err("there is a password but no username".to_owned()),
        (Some(username), password) => {
            Ok(Some(Credentials { username, password: password.unwrap_or_default() }))
        }
    }
}

/// A host name as a device id: what may not stand in a level of a topic becomes a dash.
fn sanitised(host_name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = host_name.chars().take(64).map(allowed).collect();
    if name.is_empty() { "device".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(file: &str) -> Settings {
        toml::from_str(file).unwrap()
    }

    #[test]
    fn nothing_set_is_a_working_device() {
        let config = Settings::default().check("raspberry pi/4").unwrap();
        assert_eq!((config.broker_host.as_str(), config.broker_port), ("127.0.0.1", 1883));
        assert_eq!(
            (config.device_id.as_str(), config.client_id.as_str()),
            ("raspberry-pi-4", "raspberry-pi-4")
        );
        assert_eq!(config.measure_every, Some(Duration::from_secs(10)));
        assert_eq!(config.queue_full, FullPolicy::DropOldest);
        assert!(config.credentials.is_none() && !config.stdin && !config.ack);
    }

    #[test]
    fn an_option_wins_over_the_file() {
        let option = Settings { device_id: Some("b".into()), ..Settings::default() };
        let config = option.or(settings("device_id = \"a\"\nqueue_full = \"refuse\"")).check("host").unwrap();
        assert_eq!((config.device_id.as_str(), config.queue_full), ("b", FullPolicy::Refuse));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mistakes = settings(
            "broker = \"mqtts://x\"\ndevice_id = \"a/b\"\npassword = \"x\"\ninterval_seconds = 0\n\
             keep_alive_seconds = 4\nqueue_bytes_max = 1\nin_flight_max = 0\nsensors = false\nack = true",
        )
        .check("host")
        .unwrap_err()
        .0;
        let names = [
            "broker",
            "device_id",
            "password",
            "interval",
            "keep_alive",
            "queue",
            "in_flight",
            "nothing",
            "ack",
        ];
        for name in names {
            assert!(mistakes.iter().any(|mistake| mistake.contains(name)), "{name} is not in {mistakes:?}");
        }
        assert_eq!(mistakes.len(), names.len(), "{mistakes:?}");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<Settings>("devise_id = \"a\"").is_err());
    }

    #[test]
    fn brokers_are_understood_in_every_usual_way() {
        for (text, host, port) in [
            ("edge", "edge", 1883),
            ("edge:1884", "edge", 1884),
            ("mqtt://10.0.0.1:1885/", "10.0.0.1", 1885),
            ("tcp://edge.local", "edge.local", 1883),
            ("[::1]", "[::1]", 1883),
            ("mqtt://[fe80::1]:1886", "[fe80::1]", 1886),
        ] {
            assert_eq!(broker_address(text), Ok((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":1883", "edge:", "edge:0", "edge:65536", "::1", "ws://edge", "user@edge", "a b"] {
            assert!(broker_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = settings("username = \"u\"\npassword = \"secret\"").check("host").unwrap();
        assert_eq!(
            config.credentials.as_ref().map(|credentials| credentials.password.as_str()),
            Some("secret")
        );
        assert!(!format!("{config:?}").contains("secret"));
    }
}
