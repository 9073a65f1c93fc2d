//! The table of keys: for each its path, where its value lies, how it is written, and what it means.
//!
//! This table is the only place that knows a key; the file, the variables, the shipped example and what `check`
//! prints are made from it.

use std::time::Duration;

use tidegate_broker::auth::{Anonymous, DefaultRules};
use tidegate_broker::journal::FullPolicy;
use tidegate_broker::server::RateAction;
use tidegate_broker::topic::TOPIC_LEVELS_MAX;

use super::kind::{
    Address, Choice, Count, Each, Kind, List, Millis, Mode, OrOff, Period, Seconds, Size, Switch, Sync, Text,
};
use super::{Config, LogFormat, source};

/// A value as it was written, before it is known what it should be.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Raw {
    /// One value.
    One(String),
    /// A list.
    List(Vec<Self>),
    /// Names with values.
    Table(Vec<(String, Self)>),
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
    /// How much of the value may be printed.
    secrecy: Secrecy,
    /// Whether settings of this key from several places add up.
    pub(super) adds_up: bool,
    /// Reads a value into the configuration.
    pub(super) set: fn(&mut Config, &Raw) -> Result<(), String>,
    /// Writes the configuration's value as TOML; `None` when it is not set.
    pub(super) show: fn(&Config) -> Option<String>,
}

/// How much of a value may be printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    /// All of it.
    Open,
    /// What is surely no secret: the values of properties that are none, a URL without password and parameters.
    Parts,
    /// Nothing.
    Whole,
}

impl Key {
    const fn sample(mut self, sample: &'static str) -> Self {
        self.sample = sample;
        self
    }

    const fn secret(mut self) -> Self {
        self.secrecy = Secrecy::Whole;
        self
    }

    const fn secret_in_part(mut self) -> Self {
        self.secrecy = Secrecy::Parts;
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

    /// The value as it may be printed.
    pub(super) fn shown(&self, config: &Config) -> Option<String> {
        (self.show)(config).map(|value| match self.secrecy {
            Secrecy::Open => value,
            Secrecy::Parts => redacted(&value),
            Secrecy::Whole => HIDDEN.to_owned(),
        })
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
            secrecy: crate::config::key::Secrecy::Open,
            adds_up: false,
            set: |config, raw| {
                config.$($field).+ = Kind::read(&$kind, raw)?;
                Ok(())
            },
            show: |config| Kind::show(&$kind, &config.$($field).+),
        }
    };
}

mod kafka;
mod kafka_consume;
mod postgres;

const MOMENT: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Every key, in the order of the example file; keys of one section stand together.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    [FIRST, kafka::KEYS, kafka_consume::KEYS, postgres::KEYS, LOG].into_iter().flatten()
}

/// Everything before the section `[kafka]`.
const FIRST: &[Key] = &[
    key!(
        "data_dir",
        data_dir,
        Text,
        "Folder for the journal and everything else that must survive a restart; made if it is missing. One \
         process uses it at a time."
    ),
    key!(
        "name",
        http.platform,
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
        "mqtt.tls_listen",
        mqtt.transports.tls_listen,
        OrOff(Address),
        "Where MQTT over TLS (1.2 and 1.3) is accepted when there is a certificate; or off."
    ),
    key!(
        "mqtt.ws_listen",
        mqtt.transports.ws_listen,
        OrOff(Address),
        "Where MQTT over WebSocket is accepted, at any path; or off. If another program has the default port, the \
         appliance starts without it; MQTT over WebSocket is also at /mqtt of the HTTP port. From browsers, pages of \
         http.allowed_origins may use it."
    ),
    key!(
        "mqtt.wss_listen",
        mqtt.transports.wss_listen,
        OrOff(Address),
        "Where MQTT over WebSocket and TLS is accepted when there is a certificate; or off. If another program has \
         the default port, the appliance starts without it."
    ),
    key!(
        "mqtt.unix_listen",
        mqtt.transports.unix_listen,
        Text,
        "Path of a Unix socket where MQTT is accepted. Its clients count as programs on this machine; the mode of \
         its file says who they can be."
    )
    .sample("\"/run/tidegate/mqtt.sock\""),
    key!("mqtt.unix_mode", mqtt.transports.unix_mode, Mode, "Mode of the Unix socket's file, in octal."),
    key!(
        "mqtt.tls_cert_file",
        mqtt.transports.tls_cert_file,
        Text,
        "The certificate in PEM, with those between it and its authority behind it. It is read again when it changes \
         and on SIGHUP; with a mistake in it, that of before stays."
    )
    .sample("\"/etc/tidegate/cert.pem\""),
    key!("mqtt.tls_key_file", mqtt.transports.tls_key_file, Text, "Its private key in PEM, without passphrase.")
        .sample("\"/etc/tidegate/key.pem\""),
    key!(
        "mqtt.tls_client_ca_file",
        mqtt.transports.tls_client_ca_file,
        Text,
        "Authorities in PEM whose certificates clients may show. The Common Name of such a certificate, else its \
         first DNS name, URI or e-mail address, is who the client is."
    )
    .sample("\"/etc/tidegate/clients.pem\""),
    key!(
        "mqtt.tls_client_required",
        mqtt.transports.tls_client_required,
        Switch,
        "Whether a client without such a certificate is refused where there is TLS."
    ),
    key!(
        "mqtt.proxy_protocol",
        mqtt.transports.proxy_protocol,
        Choice(&[("off", false), ("v1-v2", true)]),
        "Whether every connection to an address above begins with a PROXY header of version 1 or 2, which tells who \
         the client of a load balancer is; one without it is closed. Not on the Unix socket and not for HTTP."
    ),
    key!(
        "mqtt.proxy_from",
        mqtt.transports.proxy_from,
        Each,
        "Addresses and networks of the proxies; connections from others are closed when mqtt.proxy_protocol is on."
    ),
    key!(
        "mqtt.max_connections",
        mqtt.limits.connections,
        Count { min: 1, max: 10_000_000 },
        "Connections at one time; the CONNECT of one more is answered 0x97 (3 in version 3). Each needs a file \
         descriptor."
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
        "The longest Keep Alive that is granted: within one and a half times this it is noticed that a device is \
         gone. Version 5 clients are told it; version 3 clients cannot be, and keep their own. A client may turn it \
         off. 0s grants any."
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
        "Bytes waiting to be sent to one client; a slower reader is served from the journal until it has caught up, and \
         nothing is read from a client that lets so many answers wait."
    ),
    key!(
        "mqtt.sys_interval",
        mqtt.limits.system_interval,
        Period { min: Duration::ZERO, max: HOUR },
        "How often the values below $SYS/broker are brought up to date; 0s switches them off."
    ),
    key!(
        "limits.connections_per_address",
        mqtt.limits.connections_per_address,
        Count { min: 0, max: 10_000_000 },
        "Connections from one address at one time; the CONNECT of one more is answered 0x97 (3 in version 3). 0 means \
         any number."
    ),
    key!(
        "limits.connect_rate",
        mqtt.limits.connect_rate,
        Count { min: 0, max: 1_000_000 },
        "New connections per second, as many again at once after a quiet second; the CONNECT of one more is answered \
         0x9F (3 in version 3). 0 means any number."
    ),
    key!(
        "limits.publish_rate",
        mqtt.limits.publish_rate,
        Count { min: 0, max: 100_000_000 },
        "Publishes one client may send per second, as many again at once after a quiet second; then see \
         publish_rate_action. 0 means any number."
    ),
    key!(
        "limits.publish_bytes_rate",
        mqtt.limits.publish_bytes_rate,
        Size { min: 0, max: 1 << 40 },
        "Bytes of topics and payloads one client may publish per second, likewise. 0 means any number."
    ),
    key!(
        "limits.publish_rate_action",
        mqtt.limits.publish_rate_action,
        Choice(&[("hold", RateAction::Hold), ("disconnect", RateAction::Disconnect)]),
        "What happens to a client that publishes faster: hold (nothing is read from it until it may go on; nothing is \
         lost) or disconnect (with Reason Code 0x96)."
    ),
    key!(
        "limits.subscriptions",
        mqtt.limits.subscriptions,
        Count { min: 1, max: 1_000_000 },
        "Topic Filters one session may subscribe to; one more is answered 0x97 (0x80 in version 3)."
    ),
    key!(
        "limits.topic_levels",
        mqtt.limits.topic_levels,
        Count { min: 1, max: TOPIC_LEVELS_MAX as u64 },
        "Levels of a topic; a deeper publish closes its connection with Reason Code 0x90, a deeper filter is answered \
         0x8F (0x80 in version 3)."
    ),
    key!(
        "limits.sessions",
        mqtt.limits.sessions,
        Count { min: 1, max: 100_000_000 },
        "Sessions, with or without their client; a CONNECT that would make one more is answered 0x97 (3 in version 3)."
    ),
    key!(
        "limits.retained",
        mqtt.limits.retained,
        Count { min: 0, max: 1_000_000_000 },
        "Topics with a retained record; a publish that would make one more is answered 0x97, or carried without being \
         retained in version 3 and at QoS 0."
    ),
    key!(
        "limits.retained_bytes",
        mqtt.limits.retained_bytes,
        Size { min: 0, max: 1 << 40 },
        "Bytes of all retained records together, likewise. They are kept in memory."
    ),
    key!(
        "limits.memory_bytes",
        mqtt.limits.memory_bytes,
        Size { min: 0, max: 1 << 50 },
        "Memory of the process. While it uses more, a new CONNECT is answered 0x97 (3 in version 3) and nothing is read \
         from clients that publish: they have to wait, and nothing is lost. 0 means three quarters of what the machine \
         or the container has."
    ),
    key!("http.listen", http.listen, Address, "Where HTTP, WebSocket and SSE are accepted. Also HOST and PORT."),
    key!(
        "http.tls_listen",
        http.tls_listen,
        OrOff(Address),
        "Where HTTPS is accepted, with everything that HTTP has, when there is a certificate; or off."
    ),
    key!(
        "http.tls_cert_file",
        http.tls_cert_file,
        Text,
        "The certificate for HTTPS in PEM, with those between it and its authority behind it. It is read again when \
         it changes and on SIGHUP; with a mistake in it, that of before stays."
    )
    .sample("\"/etc/tidegate/cert.pem\""),
    key!("http.tls_key_file", http.tls_key_file, Text, "Its private key in PEM, without passphrase.")
        .sample("\"/etc/tidegate/key.pem\""),
    key!(
        "http.service_name",
        http.service_name,
        Text,
        "What the service calls itself in /health and in events."
    ),
    key!(
        "http.allowed_origins",
        http.allowed_origins,
        List,
        "Web pages of these origins, as in https://dash.example, may use the gateway from a browser; its own pages \
         always may. Requests from others are answered 403."
    ),
    key!(
        "http.allowed_hosts",
        http.allowed_hosts,
        List,
        "Names besides localhost and IP addresses under which a browser on this machine may reach the gateway without \
         credentials; under another name it is answered 403 (protection from DNS rebinding)."
    ),
    key!(
        "http.ingest_topic",
        http.ingest_topic,
        Text,
        "The Topic Name that POST /ingest publishes to; empty refuses it with 503."
    ),
    key!(
        "http.max_connections",
        http.connections_max,
        Count { min: 1, max: 1_000_000 },
        "Open HTTP connections; one more is answered 503 and closed."
    ),
    key!(
        "http.max_subscribers",
        http.subscribers_max,
        Count { min: 1, max: 1_000_000 },
        "Event streams and WebSockets at one time; one more is answered 503."
    ),
    key!(
        "http.max_filters",
        http.filters_max,
        Count { min: 1, max: 100_000 },
        "Topic Filters of one subscriber; one more is answered 400, or an error frame."
    ),
    key!(
        "http.max_queue_bytes",
        http.queue_bytes_max,
        Size { min: 4 << 10, max: 1 << 30 },
        "Bytes waiting for one subscriber; a slower one is served from the journal until it has caught up."
    ),
    key!(
        "http.max_body_bytes",
        http.body_bytes_max,
        Size { min: 1, max: 256 << 20 },
        "Size of one request body; a larger one is answered 413."
    ),
    key!(
        "http.max_frame_bytes",
        http.frame_bytes_max,
        Size { min: 1 << 10, max: 256 << 20 },
        "Size of one frame from a WebSocket; a larger one closes it with 1009."
    ),
    key!(
        "http.header_timeout",
        http.header_timeout_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time for the head of a request; then the connection is closed."
    ),
    key!(
        "http.body_timeout",
        http.body_timeout_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time for the body of a request; then it is answered 408."
    ),
    key!(
        "http.publish_timeout",
        http.publish_timeout_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time for a publish to become durable; then it is answered 503, although it may still become durable."
    ),
    key!(
        "http.send_timeout",
        http.send_timeout_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time in which a connection must take what is sent to it; then it is closed."
    ),
    key!(
        "http.retry",
        http.retry_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "How long a browser waits before it connects to the event stream again."
    ),
    key!(
        "http.status_interval",
        http.status_interval_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time between two status_update events on an event stream."
    ),
    key!(
        "http.ping_interval",
        http.ping_interval_ms,
        Millis(Period { min: MOMENT, max: HOUR }),
        "Time between two pings to a WebSocket; one that is silent for three of them is closed."
    ),
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
        "auth.acl_file",
        auth.acl_file,
        Text,
        "Who may publish and receive what, over MQTT and HTTP, in the format of mosquitto's acl_file; over HTTP %c is \
         \"http\", and the operator token stands above it. Not set: the file `acl` in the data folder, if it exists; \
         else see `default_rules`. This file and the others of this section are read again on SIGHUP and when they \
         change; with a mistake in one, what it said before goes on."
    )
    .sample("\"/etc/tidegate/acl\""),
    key!(
        "auth.default_rules",
        auth.default_rules,
        Choice(&[("device", DefaultRules::Device), ("open", DefaultRules::Open)]),
        "Who may do what without an ACL file: device (clients without credentials on this machine everything; every \
         other client, by its username or else its Client Identifier, may publish sensors/{id}/# and \
         devices/{id}/status and receive commands/{id}/# and alerts/#) or open (whoever may connect everything)."
    ),
    key!(
        "auth.scram_file",
        auth.scram_file,
        Text,
        "Users who may prove with SCRAM-SHA-256 (enhanced authentication of MQTT 5) that they know their password, one \
         a line as PostgreSQL stores them; `tidegate passwd --scram` writes it. Not set: the file `scram` in the data \
         folder, if it exists."
    )
    .sample("\"/etc/tidegate/scram\""),
    key!(
        "auth.jwt_key_file",
        auth.jwt_key_file,
        Text,
        "The key of the JSON Web Tokens that clients may give as password, or by enhanced authentication with the \
         method JWT: a public key in PEM (RSA, P-256, P-384 or Ed25519), or a secret of 32 bytes or more (HS256 and \
         up). A connection ends when its token expires. Not set, nor `jwt_jwks_url`: tokens are passwords like any \
         other."
    )
    .sample("\"/etc/tidegate/jwt.pem\""),
    key!(
        "auth.jwt_jwks_url",
        auth.jwt_jwks_url,
        Text,
        "Where the issuer publishes its keys (JWKS); not used where `jwt_key_file` is set. Fetched every ten minutes and when a \
         token names an unknown key. The keys of before stay while it is away."
    )
    .sample("\"https://idp.example/.well-known/jwks.json\""),
    key!(
        "auth.jwt_issuer",
        auth.jwt_issuer,
        Text,
        "What a token must give as its issuer (iss); not set: any. Also JWT_ISSUER_URI."
    )
    .sample("\"https://idp.example/\""),
    key!(
        "auth.jwt_audience",
        auth.jwt_audience,
        Text,
        "What must be among those a token is for (aud); not set: any."
    )
    .sample("\"tidegate\""),
    key!(
        "auth.jwt_username_claim",
        auth.jwt_username_claim,
        Text,
        "The claim of a token that names the user, whatever User Name the client gives."
    ),
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
        "Segments older than this are trimmed once every cursor has passed them; never keeps them up to max_bytes. With \
         full = refuse a sink or session that has not read them keeps them, whatever their age; with drop-oldest they \
         are trimmed as in Kafka, with a warning, and counted."
    ),
    key!(
        "journal.full",
        journal.full,
        Choice(&[("refuse", FullPolicy::Refuse), ("drop-oldest", FullPolicy::DropOldest)]),
        "At max_bytes with a cursor that has not passed the oldest segment: refuse (publishers are held back, \
         version 5 clients are told 0x97, nothing is lost) or drop-oldest (the segment is trimmed, with a warning, \
         and counted). Which cursor holds what is in /health; when it holds four fifths of max_bytes, a warning \
         names it."
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
];

/// The last section.
const LOG: &[Key] = &[
    key!(
        "log.level",
        log.level,
        source::LogFilter,
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
    keys().find(|key| key.path == path)
}

/// A TOML document: section headers, and what `write` adds for each key.
pub(super) fn document(mut write: impl FnMut(&Key, &mut String)) -> String {
    let (mut out, mut section) = (String::new(), "");
    for key in keys() {
        if key.section() != section {
            section = key.section();
            out.push_str(&format!("\n[{section}]\n"));
        }
        write(key, &mut out);
    }
    out
}

/// What is printed instead of a secret.
const HIDDEN: &str = "\"***\"";

/// What may be printed of a value that is secret in part: a table without the values of secret properties, a URL without password and
/// parameters if it is surely one, else nothing.
fn redacted(shown: &str) -> String {
    if let Ok(Raw::Table(properties)) = source::value(shown) {
        return super::kafka_values::shown(&properties);
    }
    plain_url(shown.trim_matches('"')).map_or_else(|| HIDDEN.to_owned(), |url| format!("\"{url}\""))
}

/// The URL with its password hidden; `None` if a password could be anywhere but where it belongs.
fn plain_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (place, parameters) =
        rest.split_once('?').map_or((rest, ""), |(place, parameters)| (place, parameters));
    let (user, host) = place.split_once('@').map_or(("", place), |(user, host)| (user, host));
    let is_plain =
        |text: &str, also: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c));
    if parameters.contains('@') || !is_plain(host, "-._:,[]/") || !is_plain(scheme, "") {
        return None;
    }
    let user = match user.split_once(':') {
        _ if user.is_empty() => String::new(),
        Some((user, _)) => format!("{user}:***@"),
        None => format!("{user}@"),
    };
    is_plain(&user, "-._%:*@").then(|| format!("{scheme}://{user}{host}"))
}
