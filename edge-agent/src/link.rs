//! One connection to the broker, from CONNECT until it breaks.
//!
//! The client library keeps what it has not sent in memory and may lose it between two connections, so each
//! connection gets a client of its own and nothing of an old one is reused: what was not acknowledged is handed
//! over again, out of the queue, in order. A connection that is silent for twice the keep-alive is broken, even
//! while a write hangs, which the library would wait out.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, LastWill, PubAckReason};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::Config;

/// Events that wait for the agent; the connection is not read on while there are as many.
const EVENTS_MAX: usize = 64;
/// Room for the status beside a full window of readings.
const EXTRA_REQUESTS: usize = 4;
const CONNECT_TIMEOUT_SECONDS: u64 = 10;

/// What happened on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// The broker accepted the connection.
    Up,
    /// The oldest publish not yet sent was sent under this Packet Identifier.
    Sent(u16),
    /// The broker has taken the publish.
    Acknowledged(u16),
    /// The broker will not take the publish, and why.
    Refused(u16, PubAckReason),
    /// The farewell was sent.
    Left,
    /// The connection is gone, and why. Nothing follows.
    Down(String),
}

/// The handle of a connection; dropping it closes the connection without a farewell.
#[derive(Debug)]
pub(crate) struct Link {
    client: AsyncClient,
    events: mpsc::Receiver<LinkEvent>,
    task: JoinHandle<()>,
}

/// Where the status is kept.
pub(crate) fn status_topic(device_id: &str) -> String {
    format!("devices/{device_id}/status")
}

impl Link {
    /// Begins to connect; [`LinkEvent::Up`] or [`LinkEvent::Down`] tells how it went.
    pub(crate) fn connect(config: &Config) -> Self {
        let requests_max = usize::from(config.in_flight_max) + EXTRA_REQUESTS;
        let (client, event_loop) = AsyncClient::new(options(config), requests_max);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let task = tokio::spawn(carry(event_loop, sender, config.keep_alive * 2));
        Self { client, events, task }
    }

    /// Hands a publish at QoS 1 over. Fails only if more are handed over than the window allows.
    pub(crate) fn publish(&self, topic: &str, retain: bool, payload: Bytes) -> Result<(), String> {
        let handed = self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload);
        handed.map_err(|error| error.to_string())
    }

    /// Says farewell, so that the broker does not publish the will.
    pub(crate) fn leave(&self) -> Result<(), String> {
        self.client.try_disconnect().map_err(|error| error.to_string())
    }

    /// The next event. Cancel safe.
    pub(crate) async fn event(&mut self) -> LinkEvent {
        let ended = || LinkEvent::Down("the connection ended".to_owned());
        self.events.recv().await.unwrap_or_else(ended)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn options(config: &Config) -> MqttOptions {
    let mut options = MqttOptions::new(&config.client_id, &config.broker_host, config.broker_port);
    let topic = status_topic(&config.device_id);
    options
        .set_keep_alive(config.keep_alive)
        .set_connection_timeout(CONNECT_TIMEOUT_SECONDS)
        // The broker goes on with the session it has, if any; it holds nothing of ours, for we only publish.
        .set_clean_start(false)
        .set_outgoing_inflight_upper_limit(config.in_flight_max)
        .set_last_will(LastWill::new(topic, "offline", QoS::AtLeastOnce, true, None));
    if let Some(credentials) = &config.credentials {
        options.set_credentials(&credentials.username, &credentials.password);
    }
    options
}

/// Polls the client library and passes on what matters, until the connection is gone.
async fn carry(mut event_loop: EventLoop, events: mpsc::Sender<LinkEvent>, silence_max: Duration) {
    let reason = loop {
        match tokio::time::timeout(silence_max, event_loop.poll()).await {
            Ok(Ok(event)) => {
                if let Some(event) = link_event(&event)
                    && events.send(event).await.is_err()
                {
                    return;
                }
            }
            Ok(Err(error)) => break describe(&error),
            Err(_) => break format!("the broker was silent for {silence_max:?}"),
        }
    };
    // What arrived in the same read as the end still counts: it spares sending those readings again.
    while let Some(event) = event_loop.state.events.pop_front() {
        if let Some(event) = link_event(&event)
            && events.send(event).await.is_err()
        {
            return;
        }
    }
    // If nobody receives it, the agent has dropped the link already.
    let _ = events.send(LinkEvent::Down(reason)).await;
}

fn link_event(event: &Event) -> Option<LinkEvent> {
    match event {
        Event::Incoming(Incoming::ConnAck(_)) => Some(LinkEvent::Up),
        Event::Incoming(Incoming::PubAck(ack)) => Some(match ack.reason {
            // That nobody subscribes is no failure: the broker has taken the publish.
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => LinkEvent::Acknowledged(ack.pkid),
            PubAckReason::UnspecifiedError
            | PubAckReason::ImplementationSpecificError
            | PubAckReason::NotAuthorized
            | PubAckReason::TopicNameInvalid
            | PubAckReason::PacketIdentifierInUse
            | PubAckReason::QuotaExceeded
            | PubAckReason::PayloadFormatInvalid => LinkEvent::Refused(ack.pkid, ack.reason),
        }),
        Event::Outgoing(Outgoing::Publish(packet_id)) => Some(LinkEvent::Sent(*packet_id)),
        Event::Outgoing(Outgoing::Disconnect) => Some(LinkEvent::Left),
        Event::Incoming(_) | Event::Outgoing(_) => None,
    }
}

fn describe(error: &ConnectionError) -> String {
    let ConnectionError::ConnectionRefused(code) = error else { return error.to_string() };
    let advice = if matches!(code, ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized)
    {
        "; check username and password"
    } else {
        ""
    };
    format!("the broker refuses the connection: {code:?}{advice}")
}
