//! Which web pages may use this machine's trust: the rule for WebSockets from browsers.
//!
//! A browser carries a stranger's wishes to wherever its user can connect, so a page of another origin must not act
//! with the trust that an address has. Browsers name the page's origin with every WebSocket; a program that is no
//! browser names none and passes. Loopback is trusted only when it is the caller: behind a reverse proxy everybody
//! comes from there, and what a proxy's headers say is not believed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address of nobody (RFC 5737), for those whose own address is not known.
const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Headers that only a proxy adds.
pub const FORWARDING: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// The pages and names that are trusted besides our own.
#[derive(Clone, Debug, Default)]
pub struct WebRules {
    /// Origins, `https://dash.example`, in small letters.
    allowed_origins: Vec<String>,
    /// Names of this machine besides `localhost` and IP addresses, in small letters.
    allowed_hosts: Vec<String>,
}

/// What a WebSocket handshake says about where it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Provenance<'a> {
    /// The header `Host`.
    pub host: &'a str,
    /// The header `Origin`.
    pub origin: Option<&'a str>,
    /// Whether there is a header that only a proxy adds, one of [`FORWARDING`].
    pub forwarded: bool,
}

/// Pages of this origin may not use the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("web pages of the origin {0:?} may not use this broker; add it to http.allowed_origins")]
pub struct ForeignOrigin(pub String);

impl WebRules {
    /// Rules with these origins and names.
    pub fn new(allowed_origins: &[String], allowed_hosts: &[String]) -> Self {
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_ascii_lowercase()).collect();
        Self { allowed_origins: lower(allowed_origins), allowed_hosts: lower(allowed_hosts) }
    }

    /// The address that counts for a WebSocket from `peer`.
    ///
    /// # Errors
    ///
    /// If it comes from a web page that may not use the broker.
    pub fn peer(&self, peer: IpAddr, provenance: Provenance<'_>) -> Result<IpAddr, ForeignOrigin> {
        let Provenance { host, origin, forwarded } = provenance;
        let here = self.is_this_machine(host);
        if let Some(origin) = origin {
            let origin = origin.to_ascii_lowercase();
            // A page's own server is meant only under a name that no DNS answer can forge.
            let own = here && origin_authority(&origin).is_some_and(|own| host.eq_ignore_ascii_case(own));
            if !own && !self.allowed_origins.contains(&origin) {
                return Err(ForeignOrigin(origin));
            }
        }
        let direct = !forwarded && here;
        Ok(if direct || !peer.to_canonical().is_loopback() { peer } else { SOMEBODY })
    }

    /// Whether a `Host` header can only be meant for this machine: no DNS answer can have led here.
    fn is_this_machine(&self, host: &str) -> bool {
        if host.parse::<SocketAddr>().is_ok() {
            return true;
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) | None => host,
        };
        let name = name.to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.allowed_hosts.contains(&name)
    }
}

/// `host[:port]` of an origin `scheme://host[:port]`.
fn origin_authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority).filter(|authority| !authority.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";
    const THERE: &str = "198.51.100.9";

    fn check(peer: &str, host: &str, origin: Option<&str>, forwarded: bool, expected: Option<IpAddr>) {
        let rules = WebRules::new(&["https://Dash.example".to_owned()], &["broker.lan".to_owned()]);
        let decided = rules.peer(peer.parse().unwrap(), Provenance { host, origin, forwarded });
        assert_eq!(decided.ok(), expected, "{peer} {host} {origin:?} {forwarded}");
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let here = Some(HERE.parse().unwrap());
        check(HERE, "localhost:9001", None, false, here);
        check(HERE, "localhost:9001", Some("http://localhost:9001"), false, here);
        check(HERE, "broker.lan:9001", Some("http://Broker.lan:9001"), false, here);
        check(HERE, "[::1]:9001", Some("http://[::1]:9001"), false, here);
        check(HERE, "localhost:9001", Some("https://dash.example"), false, here);
        check(HERE, "localhost:9001", Some("http://localhost:3000"), false, None);
        check(HERE, "localhost:9001", Some("https://evil.example"), false, None);
        check(HERE, "localhost:9001", Some("https://dash.example.evil"), false, None);
        check(HERE, "localhost:9001", Some("null"), false, None);
        check(HERE, "localhost:9001", Some(""), false, None);
        // DNS rebinding: the page's name leads here.
        check(HERE, "evil.example:9001", Some("http://evil.example:9001"), false, None);
        check(THERE, "evil.example:9001", Some("http://evil.example:9001"), false, None);
    }

    #[test]
    fn loopback_counts_only_when_it_is_the_caller() {
        check(HERE, "localhost:9001", None, true, Some(SOMEBODY));
        check("::ffff:127.0.0.1", "localhost:9001", None, true, Some(SOMEBODY));
        check(HERE, "mqtt.example", None, false, Some(SOMEBODY));
        check(HERE, "", None, false, Some(SOMEBODY));
        check(THERE, "mqtt.example", None, true, Some(THERE.parse().unwrap()));
    }
}
