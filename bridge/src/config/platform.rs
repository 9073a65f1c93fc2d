//! The platform's own variable names: what a container is given there besides `TIDEGATE_...`.
//!
//! They are so general that they may stand in an environment by chance, so each yields to every other way of
//! setting its key, and is not even looked at then. `HOST` and `PORT` are those of the HTTP listener only.

use std::ffi::OsString;

use super::Origin;
use super::key::{self, Raw};
use super::kind::host_ip;
use super::source::Setting;

/// What the platform's variables set.
pub(super) fn settings(environment: &[(OsString, OsString)], _mistakes: &mut [String]) -> Vec<Setting> {
    let get = |name: &str| {
        let found = environment.iter().find(|(variable, _)| variable == name);
        found.and_then(|(_, value)| value.to_str()).filter(|value| !value.is_empty())
    };
    let mut found = Vec::new();
    let mut set = |path, value: String, names: &[&str]| {
        let key = key::find(path).expect("the platform's variables set keys that exist");
        let names: Vec<&str> = names.iter().copied().filter(|name| get(name).is_some()).collect();
        found.push(Setting { key, value: Raw::One(value), origin: Origin::Platform(names.join(", ")) });
    };

    for (path, names) in PLAIN {
        if let Some((name, value)) = names.iter().find_map(|name| Some((*name, get(name)?))) {
            set(path, value.to_owned(), &[name]);
        }
    }
    if get("HOST").is_some() || get("PORT").is_some() {
        set("http.listen", listen(get("HOST"), get("PORT")), &["HOST", "PORT"]);
    }
    found
}

/// Keys with one variable each; the first that is set counts.
const PLAIN: &[(&str, &[&str])] =
    &[("name", &["REALTIME_PLATFORM_NAME", "REALTIME_PLATFORM"]), ("log.level", &["LOG_LEVEL"])];

/// The HTTP listener's address; the default stands in for the half that is missing.
fn listen(host: Option<&str>, port: Option<&str>) -> String {
    let host = host.unwrap_or("0.0.0.0");
    let host = match host_ip(host) {
        Some(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
        Some(std::net::IpAddr::V4(_)) | None => host.to_owned(),
    };
    format!("{host}:{}", port.unwrap_or("8080"))
}
