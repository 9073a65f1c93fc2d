//! Which database, as whom, and within which limits.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

use super::tls::Verify;
use crate::secret;

/// What the section `[postgres]` of the configuration holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `postgres://user:password@host:port/database`, or `host=... user=...`. Empty switches the sink off.
    pub url: String,
    /// The schema that analysts see; made if it is missing. Its own schema keeps Tidegate's tables apart from those of
    /// other programs in the same database and is one folder in Metabase. Partitions, cursor and quarantine lie
    /// beside it in `<schema>_internal`. Lower-case letters, digits and `_`; at most 40.
    pub schema: String,
    /// How sessions call themselves in `pg_stat_activity`.
    pub application_name: String,
    /// A transaction takes no further batch once it has this many bytes of rows. 64 KiB to 256 MiB. Memory use is
    /// about twice this and one batch.
    pub transaction_bytes_max: usize,
    /// How long to wait for a connection; 100 ms to 10 minutes.
    pub connect_timeout: Duration,
    /// How long a statement may take before the connection is given up; one second to one day.
    pub statement_timeout: Duration,
    /// How many days ahead there is a partition; 1 to 60.
    pub partition_days_ahead: u16,
    /// How many days readings are kept, at least one; `None` for ever.
    pub retention_days: Option<u32>,
    /// How many days the rollups are kept, at least one; `None` for ever.
    pub rollup_retention_days: Option<u32>,
    /// The role that may read the schema; empty for none. At most 63 bytes, not beginning with `pg_`.
    pub reader_role: String,
    /// The file with the role's password, read at each connect; it stands above a password in `url`.
    pub password_file: Option<PathBuf>,
    /// The authority that the server's certificate must be of, in PEM; `sslrootcert` in `url` stands above it.
    pub tls_ca_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            schema: "tidegate".to_owned(),
            application_name: "tidegate".to_owned(),
            transaction_bytes_max: 8 << 20,
            connect_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(60),
            partition_days_ahead: 7,
            retention_days: None,
            rollup_retention_days: None,
            reader_role: String::new(),
            password_file: None,
            tls_ca_file: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = if self.url.is_empty() { "" } else { "(hidden)" };
        f.debug_struct("Config")
            .field("url", &url)
            .field("schema", &self.schema)
            .field("application_name", &self.application_name)
            .field("transaction_bytes_max", &self.transaction_bytes_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("partition_days_ahead", &self.partition_days_ahead)
            .field("retention_days", &self.retention_days)
            .field("rollup_retention_days", &self.rollup_retention_days)
            .field("reader_role", &self.reader_role)
            .field("password_file", &self.password_file)
            .field("tls_ca_file", &self.tls_ca_file)
            .finish()
    }
}

/// The parts that the platform names one by one (`DB_HOST`, `DB_PORT`, `DB_NAME`, `DB_USER`, `DB_PASSWORD`,
/// `DB_SSL_MODE`).
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Host name or address.
    pub host: &'a str,
    /// Port; empty is 5432.
    pub port: &'a str,
    /// Database.
    pub database: &'a str,
    /// Role.
    pub user: &'a str,
    /// Password; empty for none.
    pub password: &'a str,
    /// `disable`, `prefer`, `require`, `verify-ca` or `verify-full`; empty for the default, `prefer`.
    pub ssl_mode: &'a str,
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({}@{}:{}/{})", self.user, self.host, self.port, self.database)
    }
}

/// Composes a [`Config::url`]. Everything is quoted, so that a password may hold any character.
pub fn url_of(parts: &Parts<'_>) -> String {
    let mut url = String::from("postgres://");
    quote_into(&mut url, parts.user);
    if !parts.password.is_empty() {
        url.push(':');
        quote_into(&mut url, parts.password);
    }
    url.push('@');
    if parts.host.contains(':') && !parts.host.starts_with('[') {
        // An IPv6 address.
        url.push('[');
        url.push_str(parts.host);
        url.push(']');
    } else if parts.host.starts_with('[') {
        url.push_str(parts.host);
    } else {
        quote_into(&mut url, parts.host);
    }
    if !parts.port.is_empty() {
        url.push(':');
        quote_into(&mut url, parts.port);
    }
    url.push('/');
    quote_into(&mut url, parts.database);
    if !parts.ssl_mode.is_empty() {
        url.push_str("?sslmode=");
        quote_into(&mut url, parts.ssl_mode);
    }
    url
}

/// Percent-encodes everything but unreserved characters (RFC 3986 section 2.3).
fn quote_into(url: &mut String, text: &str) {
    use fmt::Write;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            url.push(char::from(byte));
        } else {
            write!(url, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

impl Config {
    /// Whether a database is named.
    pub fn is_on(&self) -> bool {
        !self.url.is_empty()
    }

    /// Every mistake in it, each a sentence that names the key; never with the password.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.is_on()
            && let Err(mistake) = self.target()
        {
            mistakes.push(mistake);
        }
        if !is_plain_identifier(&self.schema) {
            mistakes.push(format!(
                "postgres.schema: `{}` is not a schema name: use a lower-case letter, then lower-case letters, digits or _, at most 40, not beginning with pg_",
                self.schema
            ));
        }
        if self.application_name.len() > 63
            || !self.application_name.bytes().all(|b| (b' '..=b'~').contains(&b))
        {
            mistakes.push("postgres.application_name: use at most 63 printable ASCII characters".to_owned());
        }
        if self.reader_role.len() > 63
            || self.reader_role.starts_with("pg_")
            || matches!(self.reader_role.as_str(), "public" | "none")
            || self.reader_role.chars().any(char::is_control)
        {
            mistakes.push(
                "postgres.reader_role: use the name of a role of its own: at most 63 bytes, not beginning with pg_, not public"
                    .to_owned(),
            );
        }
        let mut check = |is_right: bool, key: &str, bounds: &str| {
            if !is_right {
                mistakes.push(format!("postgres.{key}: use {bounds}"));
            }
        };
        let bytes = self.transaction_bytes_max;
        check((64 << 10..=256 << 20).contains(&bytes), "transaction_bytes_max", "65536 to 268435456");
        let (second, connect_ms) = (Duration::from_secs(1), Duration::from_millis(100));
        let connect = connect_ms..=600 * second;
        check(connect.contains(&self.connect_timeout), "connect_timeout", "100ms to 10min");
        let statement = second..=86_400 * second;
        check(statement.contains(&self.statement_timeout), "statement_timeout", "1s to 24h");
        check((1..=60).contains(&self.partition_days_ahead), "partition_days_ahead", "1 to 60");
        check(self.retention_days != Some(0), "retention", "at least 1d, or forever");
        check(self.rollup_retention_days != Some(0), "rollup_retention", "at least 1d, or forever");
        mistakes
    }

    /// The connection parameters that `url` names, with keepalives and timeouts set.
    pub(super) fn target(&self) -> Result<tokio_postgres::Config, String> {
        let (url, _) = without(&self.url, "sslrootcert");
        let (url, _) = without(&url, "sslmode");
        let mut target: tokio_postgres::Config = url.parse().map_err(|error: tokio_postgres::Error| {
            // The parser names keys and never values, except of keys it does not know.
            let reason =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("postgres.url: {reason}: write postgres://user:password@host:port/database")
        })?;
        target.ssl_mode(self.tls()?.0);
        if target.get_hosts().is_empty() {
            return Err("postgres.url: no host: write postgres://user:password@host:port/database".to_owned());
        }
        if target.get_user().is_none() {
            return Err("postgres.url: no user: write postgres://user:password@host:port/database".to_owned());
        }
        if target.get_application_name().is_none() {
            target.application_name(&self.application_name);
        }
        target
            .connect_timeout(self.connect_timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(self.statement_timeout);
        Ok(target)
    }

    /// The password that lies in the file now, if there is a file. `Err` says why it cannot be read.
    pub fn read_password(&self) -> Result<Option<String>, String> {
        let read =
            |path: &PathBuf| secret::read(path).map_err(|why| format!("postgres.password_file: {why}"));
        self.password_file.as_ref().map(read).transpose()
    }

    /// Whether TLS is spoken, what is asked of the server's certificate, and the file with the authority.
    pub(super) fn tls(&self) -> Result<(SslMode, Verify, Option<PathBuf>), String> {
        let (rest, mode) = without(&self.url, "sslmode");
        let (_, file) = without(&rest, "sslrootcert");
        let file = file.map(PathBuf::from).or_else(|| self.tls_ca_file.clone());
        let (mode, verify) = match mode.as_deref() {
            Some("disable") => (SslMode::Disable, Verify::Nothing),
            None | Some("" | "allow" | "prefer") => (SslMode::Prefer, Verify::Nothing),
            // As libpq does: who names an authority means it.
            Some("require") if file.is_some() => (SslMode::Require, Verify::Authority),
            Some("require") => (SslMode::Require, Verify::Nothing),
            Some("verify-ca") => (SslMode::Require, Verify::Authority),
            Some("verify-full") => (SslMode::Require, Verify::Host),
            Some(_) => {
                return Err("postgres.url: sslmode: use disable, prefer, require, verify-ca or verify-full"
                    .to_owned());
            }
        };
        if verify != Verify::Nothing && file.is_none() {
            return Err("postgres.url: sslmode asks to verify the server's certificate: name its authority in postgres.tls_ca_file (for those of a public authority often /etc/ssl/certs/ca-certificates.crt)".to_owned());
        }
        Ok((mode, verify, file))
    }

    /// The schema of partitions, cursor and quarantine.
    pub(super) fn internal_schema(&self) -> String {
        format!("{}_internal", self.schema)
    }
}

/// `url` without the parameter `name`, and its value: of both forms, but in the second only if nothing is quoted.
fn without(url: &str, name: &str) -> (String, Option<String>) {
    let (head, list, separator) = match url.split_once("://").and_then(|_| url.rsplit_once('?')) {
        Some((head, list)) => (format!("{head}?"), list, '&'),
        None if url.contains("://") || url.contains('\'') => return (url.to_owned(), None),
        None => (String::new(), url, ' '),
    };
    let (mut kept, mut found) = (Vec::new(), None);
    for part in list.split(separator) {
        match part.split_once('=') {
            Some((key, value)) if key == name => found = Some(unquoted(value)),
            Some(_) | None => kept.push(part),
        }
    }
    let kept = kept.join(separator.encode_utf8(&mut [0; 4]));
    let url = if kept.is_empty() { head.trim_end_matches('?').to_owned() } else { head + &kept };
    (url, found)
}

/// Reverses [`quote_into`]; what is no percent-encoding stays.
fn unquoted(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let encoded = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match encoded.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `user at host:port, database name`, for messages.
pub(super) fn describe(target: &tokio_postgres::Config) -> String {
    let user = target.get_user().unwrap_or("");
    let host = match target.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = target.get_ports().first().copied().unwrap_or(5432);
    format!("role {user} at {host}:{port}, database {}", database(target))
}

/// The database's name: that of the role, if none is given.
pub(super) fn database(target: &tokio_postgres::Config) -> &str {
    target.get_dbname().or_else(|| target.get_user()).unwrap_or("")
}

fn is_plain_identifier(name: &str) -> bool {
    let is_start = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'_';
    name.len() <= 40
        && !name.starts_with("pg_")
        && name.as_bytes().first().is_some_and(is_start)
        && name.bytes().all(|byte| is_start(&byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_off_and_without_mistakes() {
        let config = Config::default();
        assert!(!config.is_on());
        assert_eq!(config.mistakes(), Vec::<String>::new());
    }

    #[test]
    fn parts_make_a_url_that_means_the_same() {
        let parts = Parts {
            host: "::1",
            port: "6000",
            database: "sensor data",
            user: "ada@home",
            password: "p:/?#[]@% \u{e9}",
            ssl_mode: "prefer",
        };
        let config = Config { url: url_of(&parts), ..Config::default() };
        let target = config.target().unwrap();
        assert_eq!(target.get_hosts(), [Host::Tcp("::1".to_owned())]);
        assert_eq!(target.get_ports(), [6000]);
        assert_eq!(target.get_dbname(), Some("sensor data"));
        assert_eq!(target.get_user(), Some("ada@home"));
        assert_eq!(target.get_password(), Some("p:/?#[]@% \u{e9}".as_bytes()));
        assert_eq!(describe(&target), "role ada@home at ::1:6000, database sensor data");
    }

    #[test]
    fn sslmode_means_what_it_means_to_libpq() {
        let tls = |url: &str, file: Option<&str>| {
            let config =
                Config { url: url.to_owned(), tls_ca_file: file.map(PathBuf::from), ..Config::default() };
            let (mode, verify, file) = config.tls().unwrap();
            assert_eq!(config.target().unwrap().get_ssl_mode(), mode, "{url}");
            assert_eq!(config.target().unwrap().get_dbname(), Some("d"), "{url}");
            (mode, verify, file.map(|file| file.display().to_string()))
        };
        let file = || Some("/a b".to_owned());
        for (url, of_key, expected) in [
            ("postgres://u@h/d", None, (SslMode::Prefer, Verify::Nothing, None)),
            ("postgres://u@h/d?sslmode=disable", None, (SslMode::Disable, Verify::Nothing, None)),
            (
                "postgres://u@h/d?connect_timeout=3&sslmode=require",
                None,
                (SslMode::Require, Verify::Nothing, None),
            ),
            ("postgres://u@h/d?sslmode=require", file(), (SslMode::Require, Verify::Authority, file())),
            ("postgres://u@h/d?sslmode=verify-ca", file(), (SslMode::Require, Verify::Authority, file())),
            (
                "postgres://u@h/d?sslmode=verify-full&sslrootcert=%2Fa%20b&connect_timeout=3",
                None,
                (SslMode::Require, Verify::Host, file()),
            ),
            (
                "host=h user=u sslmode=verify-full dbname=d sslrootcert=/c",
                file(),
                (SslMode::Require, Verify::Host, Some("/c".to_owned())),
            ),
        ] {
            assert_eq!(tls(url, of_key.as_deref()), expected, "{url}");
        }
    }

    #[test]
    fn mistakes_are_all_named_and_never_show_the_password() {
        let config = Config {
            url: "postgres://u:sesame@h/d?sslmode=maybe".to_owned(),
            schema: "Robert'); DROP".to_owned(),
            application_name: "\n".to_owned(),
            transaction_bytes_max: 1,
            connect_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
            partition_days_ahead: 0,
            retention_days: Some(0),
            rollup_retention_days: Some(0),
            reader_role: "public".to_owned(),
            password_file: None,
            tls_ca_file: None,
        };
        let mistakes = config.mistakes();
        assert_eq!(mistakes.len(), 10, "{mistakes:#?}");
        for url in [
            "postgres://u:sesame@h/d?sslmode=sesame",
            "postgres://u:sesame@h/d?sslmode=verify-full",
            "host=h user=u password=sesame sslmode=verify-ca",
            "postgres://u:sesame@h:port/d",
            "postgres://u:sesame@h/d?nonsense=1",
            "host=h password=sesame",
            "user=u password=sesame",
            "u:sesame@h",
        ] {
            let config = Config { url: url.to_owned(), ..Config::default() };
            let mistakes = config.mistakes();
            assert_eq!(mistakes.len(), 1, "{url}");
            assert!(mistakes[0].starts_with("postgres.url: "), "{mistakes:?}");
            assert!(
                !mistakes[0].contains("sesame") && !format!("{config:?}").contains("sesame"),
                "{mistakes:?}"
            );
        }
    }
}
