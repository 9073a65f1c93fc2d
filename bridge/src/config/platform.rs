//! The platform's own variable names: what a container is given there besides `TIDEGATE_...`.
//!
//! They are so general that they may stand in an environment by chance, so each yields to every other way of
//! setting its key, and is not even looked at then. `HOST` and `PORT` are those of the HTTP listener only.

use std::ffi::OsString;

use crate::postgres;

use super::Origin;
use super::key::{self, Raw};
use super::kind::{host_ip, quoted};
use super::source::Setting;

/// What the platform's variables set.
pub(super) fn settings(environment: &[(OsString, OsString)]) -> Vec<Setting> {
    let get = |name: &str| {
        let found = environment.iter().find(|(variable, _)| variable == name);
        found.and_then(|(_, value)| value.to_str()).filter(|value| !value.is_empty())
    };
    let mut found = Vec::new();
    let mut set = |path, value: Result<String, String>, names: &[&str]| {
        let key = key::find(path).expect("the platform's variables set keys that exist");
        let names: Vec<&str> = names.iter().copied().filter(|name| get(name).is_some()).collect();
        found.push(Setting { key, value: value.map(Raw::One), origin: Origin::Platform(names.join(", ")) });
    };

    for (path, names) in PLAIN {
        if let Some((name, value)) = names.iter().find_map(|name| Some((*name, get(name)?))) {
            set(path, Ok(value.to_owned()), &[name]);
        }
    }
    if get("HOST").is_some() || get("PORT").is_some() {
        set("http.listen", Ok(listen(get("HOST"), get("PORT"))), &["HOST", "PORT"]);
    }
    if let Some(host) = get("DB_HOST") {
        let part = |name| get(name).unwrap_or_default();
        let parts = postgres::config::Parts {
            host,
            port: part("DB_PORT"),
            database: part("DB_NAME"),
            user: part("DB_USER"),
            password: part("DB_PASSWORD"),
            ssl_mode: part("DB_SSL_MODE"),
        };
        let missing = ["DB_NAME", "DB_USER"].into_iter().find(|name| get(name).is_none());
        let url = match missing {
            Some(missing) => Err(format!("DB_HOST names a database server and {missing} is not set")),
            None => Ok(postgres::config::url_of(&parts)),
        };
        set("postgres.url", url, &DATABASE);
    } else if let Some(url) = get("DB_CONNECTION_STRING") {
        set("postgres.url", Ok(url.to_owned()), &["DB_CONNECTION_STRING"]);
    }
    for (name, property) in KAFKA_PROPERTIES {
        if let Some(value) = get(name) {
            set("kafka.properties", Ok(format!("{{ {} = {} }}", quoted(property), quoted(value))), &[name]);
        }
    }
    found
}

/// Whether the platform's setting of the key `path` is not to be looked at, because of those set in other ways.
pub(super) fn yields(path: &str, others: &[&str]) -> bool {
    let rivals: &[&str] = match path {
        "kafka.password_file" => &["kafka.password_file", "kafka.password"],
        "postgres.password_file" => &["postgres.password_file", "postgres.url"],
        path => return others.contains(&path),
    };
    rivals.iter().any(|rival| others.contains(rival))
}

/// What librdkafka calls them.
const KAFKA_PROPERTIES: [(&str, &str); 4] = [
    ("KAFKA_SECURITY_PROTOCOL", "security.protocol"),
    ("KAFKA_SASL_MECHANISM", "sasl.mechanism"),
    ("KAFKA_USERNAME", "sasl.username"),
    ("KAFKA_PASSWORD", "sasl.password"),
];

/// What together names a database.
const DATABASE: [&str; 6] = ["DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL_MODE"];

/// Keys with one variable each; the first that is set counts.
const PLAIN: &[(&str, &[&str])] = &[
    ("name", &["REALTIME_PLATFORM_NAME", "REALTIME_PLATFORM"]),
    ("log.level", &["LOG_LEVEL"]),
    ("auth.jwt_issuer", &["JWT_ISSUER_URI"]),
    ("kafka.bootstrap_servers", &["KAFKA_BOOTSTRAP_SERVERS"]),
    ("kafka.password_file", &["KAFKA_PASSWORD_FILE"]),
    ("postgres.password_file", &["DB_PASSWORD_FILE"]),
    ("kafka.schema_registry.url", &["KAFKA_SCHEMA_REGISTRY_URL"]),
];

/// The HTTP listener's address; the default stands in for the half that is missing.
fn listen(host: Option<&str>, port: Option<&str>) -> String {
    let host = host.unwrap_or("0.0.0.0");
    let host = match host_ip(host) {
        Some(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(std::net::IpAddr::V4(_)) | None => host.to_owned(),
    };
    format!("{host}:{}", port.unwrap_or("8080"))
}
