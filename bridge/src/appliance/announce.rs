//! What the program says on stdout once it runs: what listens where, who may connect, what to try.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tidegate_broker::auth::Anonymous;
use tidegate_broker::server::{Place, Transport};

use crate::config::{Config, period, size};

/// The lines; the addresses are those that were really bound.
pub(super) struct Lines<'a> {
    pub(super) config: &'a Config,
    pub(super) mqtt: &'a [(Transport, Place)],
    pub(super) http: SocketAddr,
    pub(super) https: Option<SocketAddr>,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, mqtt, http, https } = self;
        let journal = &config.journal;
        let age = journal.max_age.map_or_else(String::new, |age| format!(", {}", period(age)));
        writeln!(f, "tidegate {} is running", env!("CARGO_PKG_VERSION"))?;
        for (transport, place) in *mqtt {
            writeln!(f, "  MQTT      {place}{}", carried(*transport))?;
        }
        writeln!(
            f,
            "  HTTP      {http}  dashboard /, events /stream/events, WebSocket /ws, MQTT /mqtt, /health, /metrics"
        )?;
        if let Some(https) = https {
            writeln!(f, "  HTTPS     {https}  the same over TLS")?;
        }
        writeln!(
            f,
            "  data      {}  journal of up to {}{age}",
            absolute(&config.data_dir),
            size(journal.max_bytes)
        )?;
        writeln!(f, "  access    {}", access(config))?;
        let token = absolute(&config.data_dir.join("operator-token"));
        writeln!(f, "  operator  HTTP lets in whoever has the token in {token} (Authorization: Bearer ...)")?;
        writeln!(
            f,
            "  kafka     {}",
            sink(config.kafka.is_on(), &config.kafka.bootstrap_servers, "KAFKA_BOOTSTRAP_SERVERS")
        )?;
        writeln!(f, "  postgres  {}", sink(config.postgres.is_on(), "see /health", "POSTGRES_URL"))?;
        writeln!(f)?;
        writeln!(f, "Try:")?;
        if let Some((_, Place::Address(address))) = mqtt.first() {
            writeln!(f, "  mosquitto_pub{} -t sensors/demo/temperature -m 21.5", client_options(*address))?;
        }
        writeln!(f, "  curl -N 'http://{}/stream/events?filter=sensors/%23'", reachable(*http))?;
        writeln!(f, "  http://{}/ in a browser", reachable(*http))
    }
}

/// What is said of a listener besides where it is.
const fn carried(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "",
        Transport::Tls => "  TLS",
        Transport::Ws => "  WebSocket",
        Transport::Wss => "  WebSocket over TLS",
        Transport::Unix => "  Unix socket",
    }
}

fn access(config: &Config) -> String {
    let passwords = config.password_path();
    let known =
        if passwords.exists() { "a username from " } else { "a username: tidegate passwd NAME writes " };
    let passwords = absolute(&passwords);
    match config.auth.anonymous {
        Anonymous::Loopback => {
            format!("without credentials from this machine; others need {known}{passwords}")
        }
        Anonymous::Never => format!("everybody needs {known}{passwords}"),
        Anonymous::Always => "EVERYBODY who can reach the ports, without credentials".to_owned(),
    }
}

fn sink(is_on: bool, destination: &str, variable: &str) -> String {
    if is_on { format!("on: {destination}") } else { format!("off: set TIDEGATE_{variable} to switch it on") }
}

/// Where a program on this machine reaches what listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => ip.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// What mosquitto's clients need beyond their defaults.
fn client_options(address: SocketAddr) -> String {
    let address = reachable(address);
    let host =
        if address.ip() == Ipv4Addr::LOCALHOST { String::new() } else { format!(" -h {}", address.ip()) };
    let port = if address.port() == 1883 { String::new() } else { format!(" -p {}", address.port()) };
    format!("{host}{port}")
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_to_paste_name_what_was_really_bound() {
        let config = Config::default();
        let lines = |mqtt: &str, http: &str| {
            let listening = [
                (Transport::Tcp, Place::Address(mqtt.parse().unwrap())),
                (Transport::Ws, Place::Address("0.0.0.0:9001".parse().unwrap())),
                (Transport::Unix, Place::Path("/run/mqtt".into(), 0o660)),
            ];
            Lines { config: &config, mqtt: &listening, http: http.parse().unwrap(), https: None }.to_string()
        };
        let usual = lines("0.0.0.0:1883", "0.0.0.0:8080");
        assert!(usual.contains("\n  MQTT      0.0.0.0:1883\n"), "{usual}");
        assert!(usual.contains("\n  MQTT      0.0.0.0:9001  WebSocket\n"), "{usual}");
        assert!(usual.contains("\n  MQTT      /run/mqtt  Unix socket\n"), "{usual}");
        assert!(usual.contains("\n  mosquitto_pub -t sensors/demo/temperature -m 21.5\n"), "{usual}");
        assert!(
            usual.contains("curl -N 'http://127.0.0.1:8080/stream/events?filter=sensors/%23'"),
            "{usual}"
        );
        let other = lines("192.0.2.7:11883", "[::]:8081");
        assert!(other.contains("mosquitto_pub -h 192.0.2.7 -p 11883 -t"), "{other}");
        assert!(other.contains("\n  http://[::1]:8081/ in a browser\n"), "{other}");
    }
}
