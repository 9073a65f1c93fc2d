//! Where and how MQTT is carried besides plain TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use tidegate_broker::server::{CertificateFiles, Listen, Network, Place, Transport};

use super::everywhere;

/// Where and how MQTT is carried besides plain TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transports {
    /// Where MQTT over TLS is accepted when there is a certificate.
    pub tls_listen: Option<SocketAddr>,
    /// Where MQTT over WebSocket is accepted.
    pub ws_listen: Option<SocketAddr>,
    /// Where MQTT over WebSocket and TLS is accepted when there is a certificate.
    pub wss_listen: Option<SocketAddr>,
    /// The Unix socket where MQTT is accepted.
    pub unix_listen: Option<PathBuf>,
    /// The mode of its file.
    pub unix_mode: u32,
    /// The certificate, with those between it and its authority.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key.
    pub tls_key_file: Option<PathBuf>,
    /// Authorities of the certificates that clients may show.
    pub tls_client_ca_file: Option<PathBuf>,
    /// Whether a client must show one.
    pub tls_client_required: bool,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: bool,
    /// From where the header is believed.
    pub proxy_from: Vec<Network>,
}

const TLS_LISTEN: SocketAddr = everywhere(8883);
const WS_LISTEN: SocketAddr = everywhere(9001);
const WSS_LISTEN: SocketAddr = everywhere(9002);

impl Default for Transports {
    fn default() -> Self {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self {
            tls_listen: Some(TLS_LISTEN),
            ws_listen: Some(WS_LISTEN),
            wss_listen: Some(WSS_LISTEN),
            unix_listen: None,
            unix_mode: 0o660,
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            tls_client_required: false,
            proxy_protocol: false,
            proxy_from: loopback.into_iter().map(Network::from).collect(),
        }
    }
}

impl Transports {
    /// Every mistake in it, each as one line that names the key.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut wrong = |condition: bool, line: &str| {
            if condition {
                mistakes.push(line.to_owned());
            }
        };
        let (cert, key) = (self.tls_cert_file.is_some(), self.tls_key_file.is_some());
        let tls_wanted = self.tls_listen.is_some_and(|listen| listen != TLS_LISTEN);
        let wss_wanted = self.wss_listen.is_some_and(|listen| listen != WSS_LISTEN);
        wrong(cert && !key, "mqtt.tls_cert_file: needs its private key: set mqtt.tls_key_file");
        wrong(key && !cert, "mqtt.tls_key_file: needs its certificate: set mqtt.tls_cert_file");
        wrong(
            tls_wanted && !cert,
            "mqtt.tls_listen: needs a certificate: set mqtt.tls_cert_file and mqtt.tls_key_file",
        );
        wrong(
            wss_wanted && !cert,
            "mqtt.wss_listen: needs a certificate: set mqtt.tls_cert_file and mqtt.tls_key_file",
        );
        wrong(
            self.tls_client_required && self.tls_client_ca_file.is_none(),
            "mqtt.tls_client_required: needs to know whose certificates: set mqtt.tls_client_ca_file",
        );
        wrong(
            self.tls_client_ca_file.is_some() && !cert,
            "mqtt.tls_client_ca_file: needs a certificate of the broker's own: set mqtt.tls_cert_file and \
             mqtt.tls_key_file",
        );
        wrong(
            self.proxy_protocol && self.proxy_from.is_empty(),
            "mqtt.proxy_from: is empty, so that nobody could connect: name the proxies, or set mqtt.proxy_protocol \
             to off",
        );
        mistakes
    }

    /// The files of the certificate, if there is one.
    pub fn certificate_files(&self) -> Option<CertificateFiles> {
        let (certificate, key) = (self.tls_cert_file.clone()?, self.tls_key_file.clone()?);
        let client_authorities = self.tls_client_ca_file.clone();
        Some(CertificateFiles {
            certificate,
            key,
            client_authorities,
            client_required: self.tls_client_required,
        })
    }

    /// The listeners that are wanted, plain TCP first. WebSockets at the usual port were not asked for, so that the
    /// appliance starts without them when another program is there.
    pub fn listeners(&self, plain: SocketAddr) -> Vec<Listen> {
        let at = |transport, address: SocketAddr, usual: Option<SocketAddr>| Listen {
            transport,
            place: Place::Address(address),
            optional: usual == Some(address),
        };
        let mut all = vec![at(Transport::Tcp, plain, None)];
        if self.certificate_files().is_some() {
            all.extend(self.tls_listen.map(|address| at(Transport::Tls, address, None)));
        }
        all.extend(self.ws_listen.map(|address| at(Transport::Ws, address, Some(WS_LISTEN))));
        if self.certificate_files().is_some() {
            all.extend(self.wss_listen.map(|address| at(Transport::Wss, address, Some(WSS_LISTEN))));
        }
        all.extend(self.unix_listen.clone().map(|path| Listen {
            transport: Transport::Unix,
            place: Place::Path(path, self.unix_mode),
            optional: false,
        }));
        all
    }
}
