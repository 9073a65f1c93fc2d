//! `/mqtt`: MQTT over WebSocket at the HTTP port.
//!
//! Only the handshake is HTTP's. The socket, with what was read behind the handshake, goes to the broker, which owns
//! it from then on like every other; who the client is, it says in CONNECT.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tidegate_broker::server::{Adopted, Handle, Place, Transport, Upgrade, UpgradeError};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::guard::Peer;
use super::reply::Refusal;
use super::routes::App;

/// The broker's side of MQTT.
#[derive(Clone, Debug)]
pub struct Mqtt {
    /// Takes connections over.
    pub handle: Handle,
    /// Where MQTT is accepted without HTTP.
    pub listening: Vec<(Transport, Place)>,
}

/// `GET /mqtt`
pub(super) async fn mqtt(State(app): State<Arc<App>>, mut request: Request) -> Result<Response, Refusal> {
    let unavailable = |detail| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
    let mqtt = app.mqtt.clone().ok_or_else(|| unavailable("there is no MQTT broker here"))?;
    if app.is_draining() {
        return Err(unavailable("the appliance is stopping"));
    }
    let upgrade = read(request.headers()).map_err(|error| refusal(&error))?;
    let seen = request.extensions().get::<Peer>().copied();
    let Peer(seen) = seen.ok_or_else(|| unavailable("the address of the client is not known"))?;
    let peer = app.guard.mqtt_peer(seen.ip(), request.headers()).map_err(|error| refusal(&error.into()))?;
    let on_upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(hand_over(mqtt.handle, on_upgrade, seen, peer));
    let mut answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, upgrade.accept);
    if let Some(protocol) = upgrade.protocol {
        answer = answer.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(answer.body(Body::empty()).expect("base64 and known names are header values"))
}

fn read(headers: &HeaderMap) -> Result<Upgrade, UpgradeError> {
    Upgrade::read(headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or("?"))))
}

fn refusal(error: &UpgradeError) -> Refusal {
    let status = StatusCode::from_u16(error.status().0).unwrap_or(StatusCode::BAD_REQUEST);
    let code = match error {
        UpgradeError::Origin(_) => "origin_not_allowed",
        UpgradeError::Protocol => "no_mqtt_subprotocol",
        UpgradeError::NotHttp
        | UpgradeError::TooLong
        | UpgradeError::NotWebSocket
        | UpgradeError::Version => "no_websocket",
    };
    Refusal::new(status, code, error.to_string())
}

/// Waits until the answer is written and gives the socket to the broker.
async fn hand_over(handle: Handle, on_upgrade: OnUpgrade, seen: SocketAddr, peer: IpAddr) {
    let adopted = match on_upgrade.await {
        Ok(upgraded) => adopt(upgraded, peer),
        Err(error) => {
            tracing::debug!(%seen, %error, "a WebSocket for MQTT ended in its handshake");
            return;
        }
    };
    match adopted {
        Ok(adopted) => handle.adopt(adopted),
        Err(error) => tracing::warn!(%seen, %error, "a WebSocket for MQTT could not be handed to the broker"),
    }
}

fn adopt(upgraded: Upgraded, peer: IpAddr) -> std::io::Result<Adopted> {
    let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner().into_std()?;
            return Ok(Adopted { stream, peer, tls: None, ahead: parts.read_buf });
        }
        Err(upgraded) => upgraded,
    };
    let parts = upgraded
        .downcast::<TokioIo<TlsStream<TcpStream>>>()
        .map_err(|_| std::io::Error::other("its socket is of no kind that is served here"))?;
    let (stream, tls) = parts.io.into_inner().into_inner();
    Ok(Adopted { stream: stream.into_std()?, peer, tls: Some(tls), ahead: parts.read_buf })
}
