//! Where MQTT is accepted, and the certificate for it, as the configuration wants it.

use std::sync::Arc;
use std::time::Duration;

use tidegate_broker::auth::Access;
use tidegate_broker::server::{
    self, CertificateError, CertificateFiles, Certificates, Place, ProxyRules, Transport, WebRules,
};
use tokio::runtime::Runtime;

use super::StartError;
use crate::config::Config;

/// How often the certificate's files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the certificate, if there is one.
pub(super) fn certificates(
    files: Option<CertificateFiles>,
) -> Result<Option<Arc<Certificates>>, CertificateError> {
    files.map(|files| Certificates::load(files).map(Arc::new)).transpose()
}

/// What the broker's listeners are to be.
pub(super) fn options(
    config: &Config,
    access: Arc<Access>,
    certificates: Option<Arc<Certificates>>,
) -> server::Options {
    let transports = &config.mqtt.transports;
    let proxy = transports.proxy_protocol.then(|| ProxyRules { from: transports.proxy_from.clone() });
    server::Options {
        listen: transports.listeners(config.mqtt.listen),
        certificates,
        web: Arc::new(WebRules::new(&config.http.allowed_origins, &config.http.allowed_hosts)),
        proxy: proxy.map(Arc::new),
        access,
        limits: config.mqtt.limits,
    }
}

/// Reads the certificate again whenever one of its files changes.
pub(super) fn watch(certificates: Arc<Certificates>, runtime: &Runtime) {
    runtime.spawn(async move {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tick.tick().await;
            if certificates.changed() {
                reload(&certificates, "the certificate's files have changed");
            }
        }
    });
}

/// Reads the certificate again. With a mistake in it, that of before stays.
pub(super) fn reload(certificates: &Certificates, why: &str) {
    match certificates.reload() {
        Ok(()) => tracing::info!(
            "{why}: the certificate is read again from {}",
            certificates.files().certificate.display()
        ),
        Err(error) => tracing::error!("{why}: {error}; the certificate is that of before"),
    }
}

/// The variable that sets where a transport is listened for.
pub(super) const fn variable(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TIDEGATE_MQTT_LISTEN",
        Transport::Tls => "TIDEGATE_MQTT_TLS_LISTEN",
        Transport::Ws => "TIDEGATE_MQTT_WS_LISTEN",
        Transport::Wss => "TIDEGATE_MQTT_WSS_LISTEN",
        Transport::Unix => "TIDEGATE_MQTT_UNIX_LISTEN",
    }
}

/// Tells which listeners the appliance has started without.
pub(super) fn warn_of_missing(server: &server::Server) {
    for missing in server.missing() {
        tracing::warn!(
            "{} is in use by another program, so there is no MQTT over {} there: stop it or set {} (off is allowed)",
            missing.place,
            missing.transport,
            variable(missing.transport),
        );
    }
}

/// A listener that could not be had.
pub(super) fn refused(listen: server::Listen, error: std::io::Error) -> StartError {
    let key = variable(listen.transport);
    match listen.place {
        Place::Address(address) => StartError::Listen { address, key, error },
        Place::Path(path, _) => StartError::Socket { path, error },
    }
}
