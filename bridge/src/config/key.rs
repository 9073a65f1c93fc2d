//! The table of keys: for each its path, where its value lies, how it is written, and what it means.
//!
//! This table is the only place that knows a key; the file, the variables, the shipped example and what `check`
//! prints are made from it.

use std::time::Duration;

use tidegate_broker::auth::Anonymous;
use tidegate_broker::journal::FullPolicy;

use super::kind::{Address, Choice, Count, Kind, Period, Seconds, Size, Sync, Text};
use super::{Config, LogFormat};

/// A value as it was written, before it is known what it should be.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Raw {
    /// One value.
    One(String),
    /// A list.
    List(Vec<String>),
    /// Names with values.
    Table(Vec<(String, String)>),
}

impl Raw {
    /// The one value, for keys that take no more.
    pub(super) fn one(&self) -> Result<&str, String> {
        match self {
            Self::One(text) => Ok(text),
            Self::List(_) => Err("takes one value, not a list".to_owned()),
            Self::Table(_) => Err("takes one value, not a table".to_owned()),
        }
    }
}

/// One thing that can be configured.
pub(super) struct Key {
    /// `section.key`, or `key` alone at the top of the file.
    pub(super) path: &'static str,
    /// What it means and what happens at the limit.
    pub(super) about: &'static str,
    /// How it could look, for keys without a default.
    pub(super) sample: &'static str,
    /// Whether the value, or a part of it, must not be printed.
    pub(super) secret: bool,
    /// Reads a value into the configuration.
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), String>,
    /// Writes the configuration's value as TOML; `None` when it is not set.
    pub(super) show: fn(&Config) -> Option<String>,
}

impl Key {
    const fn sample(mut self, sample: &'static str) -> Self {
        self.sample = sample;
        self
    }

    /// The last part of the path.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The path without its last part; empty at the top.
    pub(super) fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("TIDEGATE_{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

/// A key whose value is written as `$kind` and lies in the named field of [`Config`].
macro_rules! key {
    ($path:literal, $($field:ident).+, $kind:expr, $about:literal) => {
        Key {
            path: $path,
            about: $about,
            sample: "",
            secret: false,
            set: |config, raw| {
                config.$($field).+ = Kind::read(&$kind, raw)?;
                Ok(())
            },
            show: |config| Kind::show(&$kind, &config.$($field).+),
        }
    };
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Every key, in the order of the example file; keys of one section stand together.
pub(super) const KEYS: &[Key] = &[
    key!(
        "data_dir",
        data_dir,
        Text,
        "Folder for the journal and everything else that must survive a restart; made if it is missing. One \
         process uses it at a time."
    ),
    key!(
        "name",
        name,
        Text,
        "The platform this instance belongs to, as shown to its clients. Also REALTIME_PLATFORM_NAME."
    )
    .sample("\"plant-7\""),
    key!(
        "drain_timeout",
        drain_timeout,
        Period { min: SECOND, max: DAY },
        "How long a stop (SIGTERM, SIGINT) may take to finish what is under way; then the process ends anyway. \
         Nothing acknowledged is lost either way."
    ),
    key!("mqtt.listen", mqtt.listen, Address, "Where MQTT 3.1.1 and 5.0 are accepted."),
    key!(
        "mqtt.max_connections",
        mqtt.limits.connections,
        Count { min: 1, max: 10_000_000 },
        "Connections at one time; one more is refused with Reason Code 0x97. Each needs a file descriptor."
    ),
    key!(
        "mqtt.max_packet_bytes",
        mqtt.limits.packet_bytes,
        Size { min: 1 << 10, max: 256 << 20 },
        "Size of one packet; a larger one closes its connection with Reason Code 0x95."
    ),
    key!(
        "mqtt.max_in_flight",
        mqtt.limits.in_flight,
        Count { min: 1, max: 65_535 },
        "Publishes of QoS 1 and 2 sent to one client and not yet acknowledged; more wait in the journal."
    ),
    key!(
        "mqtt.receive_maximum",
        mqtt.limits.receive_maximum,
        Count { min: 1, max: 65_535 },
        "Publishes of QoS 1 and 2 one client may have unacknowledged; a version 5 client that sends more is \
         disconnected with Reason Code 0x93."
    ),
    key!(
        "mqtt.max_session_expiry",
        mqtt.limits.session_expiry_s,
        Seconds(Period { min: Duration::ZERO, max: Duration::from_secs(u32::MAX as u64) }),
        "The longest time a session is kept without its client; a longer wish is lowered to it. Version 3.1.1 \
         clients without clean session are given this."
    ),
    key!(
        "mqtt.max_keep_alive",
        mqtt.limits.keep_alive_s,
        Seconds(Period { min: Duration::ZERO, max: Duration::from_secs(u16::MAX as u64) }),
        "The longest Keep Alive that is granted; 0s grants any."
    ),
    key!(
        "mqtt.connect_timeout",
        mqtt.limits.connect_timeout,
        Period { min: Duration::from_millis(100), max: Duration::from_secs(600) },
        "Time from the connection to its CONNECT packet; then it is closed."
    ),
    key!(
        "mqtt.max_outgoing_bytes",
        mqtt.limits.outgoing_bytes,
        Size { min: 16 << 10, max: 1 << 30 },
        "Bytes waiting to be sent to one client; a slower reader is served from the journal until it has caught up."
    ),
    key!("http.listen", http.listen, Address, "Where HTTP, WebSocket and SSE are accepted. Also HOST and PORT."),
    key!(
        "auth.anonymous",
        auth.anonymous,
        Choice(&[
            ("loopback", Anonymous::Loopback),
            ("never", Anonymous::Never),
            ("always", Anonymous::Always)
        ]),
        "Who may connect without credentials: loopback (programs on this machine), never (nobody) or always \
         (everybody who can reach the port)."
    ),
    key!(
        "auth.password_file",
        auth.password_file,
        Text,
        "Users and their hashed passwords, in mosquitto's format; `tidegate passwd` writes it. Not set: the file \
         `passwords` in the data folder, if it exists."
    )
    .sample("\"/etc/tidegate/passwords\""),
    key!(
        "journal.max_bytes",
        journal.max_bytes,
        Size { min: 2 << 20, max: 1 << 50 },
        "Size of the whole journal. When it is reached, segments that every cursor has passed are trimmed; if \
         there are none, see `full`. Leave it below the space of the disk: at 100 bytes a reading, 8GiB hold some \
         60 million."
    ),
    key!(
        "journal.max_age",
        journal.max_age,
        Period { min: SECOND, max: Duration::from_secs(u32::MAX as u64) },
        "Segments older than this are trimmed once every cursor has passed them; never keeps them up to max_bytes."
    ),
    key!(
        "journal.full",
        journal.full,
        Choice(&[("refuse", FullPolicy::Refuse), ("drop-oldest", FullPolicy::DropOldest)]),
        "At max_bytes with a cursor that has not passed the oldest segment: refuse (publishers are held back, \
         version 5 clients are told 0x97, nothing is lost) or drop-oldest (the segment is trimmed, with a warning, \
         and counted)."
    ),
    key!(
        "journal.sync",
        journal.sync,
        Sync,
        "When a publish counts as stored and is acknowledged: always (after fdatasync), never (after the write; the \
         operating system decides), or a span of time (after the write; fdatasync at least this often). With \
         anything but always, a power cut loses acknowledged publishes."
    ),
    key!(
        "journal.segment_bytes",
        journal.segment_bytes,
        Size { min: 1 << 20, max: 4 << 30 },
        "A file of the journal is sealed at this size; trimming removes whole files."
    ),
    key!(
        "journal.tail_bytes",
        journal.tail_bytes,
        Size { min: 1 << 20, max: 64 << 30 },
        "Bytes of the newest batches kept in memory; readers further behind read files."
    ),
    key!(
        "journal.batch_bytes",
        journal.batch_bytes,
        Size { min: 4 << 10, max: 64 << 20 },
        "A batch is closed at this size; one batch is one write and one fdatasync."
    ),
    key!(
        "log.level",
        log.level,
        super::source::LogFilter,
        "error, warn, info, debug or trace, or a filter by module such as info,tidegate_broker=debug. Also LOG_LEVEL."
    ),
    key!(
        "log.format",
        log.format,
        Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        "text, or json for one object per line."
    ),
];

/// The key called `path`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// A TOML document: section headers, and what `write` adds for each key.
pub(super) fn document(mut write: impl FnMut(&Key, &mut String)) -> String {
    let (mut out, mut section) = (String::new(), "");
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            out.push_str(&format!("\n[{section}]\n"));
        }
        write(key, &mut out);
    }
    out
}

/// What may be printed of a secret: nothing, or a URL without its password.
pub(super) fn redacted(shown: &str) -> String {
    let hidden = "***";
    let Some((scheme, rest)) = shown.split_once("://") else { return format!("\"{hidden}\"") };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{user}:{hidden}@{host}")
        }
        None => authority.to_owned(),
    };
    let path = path.split('?').next().unwrap_or_default().trim_end_matches('"');
    format!("{scheme}://{}{path}\"", authority.trim_end_matches('"'))
}
