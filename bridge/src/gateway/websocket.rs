//! `/ws` and `/ws/events`: records and answers in the envelope that existing clients speak.
//!
//! A record comes to a socket at most once: as `topic_message` if one of its subscriptions matches, else as
//! `event` if the socket receives everything. A socket on `/ws` receives everything until it first subscribes,
//! and from then on only what it subscribed: an existing client that only listens gets all it ever got, and a
//! dashboard that subscribes is not flooded. A socket on `/ws/events` is subscribed to `events` by itself and
//! receives everything for as long as it does not unsubscribe that.
//!
//! Only what the caller may receive is sent, and a subscription in which there is nothing for it is answered with an
//! `error`.
//!
//! Nobody is cut for being silent as long as pings are answered, which every client library does.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tidegate_broker::record::Offset;
use tidegate_broker::topic::{TopicFilter, TopicName};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::caller::Caller;
use super::encode::{self, Form};
use super::envelope::{self, Request};
use super::interest::Interest;
use super::reply::Refusal;
use super::resume::{Beginning, From};
use super::routes::App;
use super::sse;
use super::subscriber::Kind;
use super::subscription::{Delivery, Subscription};

/// What `/ws/events` subscribes by itself.
const EVENTS: &str = "events";
/// Intervals without any frame from the client after which it is gone.
const SILENT_INTERVALS_MAX: u32 = 3;

/// Counts the sockets that are open, so that a drain can wait for them.
#[derive(Debug)]
pub(super) struct Open(watch::Sender<usize>);

impl Default for Open {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Open {
    fn count(&self, change: impl FnOnce(&mut usize)) {
        self.0.send_modify(change);
    }

    /// Waits until none is open.
    pub(super) async fn all_closed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// One place among the open sockets.
struct OpenSocket(Arc<App>);

impl OpenSocket {
    fn new(app: &Arc<App>) -> Self {
        app.sockets.count(|open| *open += 1);
        Self(Arc::clone(app))
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.sockets.count(|open| *open -= 1);
    }
}

/// Which of the two routes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Ws,
    WsEvents,
}

/// `GET /ws`
pub(super) async fn ws(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    open(app, caller, upgrade, Endpoint::Ws)
}

/// `GET /ws/events`
pub(super) async fn ws_events(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    open(app, caller, upgrade, Endpoint::WsEvents)
}

fn open(
    app: Arc<App>,
    caller: Caller,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    endpoint: Endpoint,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|error| {
        let status = error.status();
        let status = if status.is_client_error() { status } else { StatusCode::BAD_REQUEST };
        Refusal::new(status, "no_websocket", format!("this is a WebSocket endpoint: {}", error.body_text()))
    })?;
    if app.is_draining() {
        return Err(Refusal::unavailable("stopping", "the gateway is stopping", 5));
    }
    let from = app.hub.journal.durable_end();
    let mut interest = Interest::new(Form::TopicMessage);
    match endpoint {
        Endpoint::Ws => {}
        Endpoint::WsEvents => {
            let events = TopicFilter::new(EVENTS).expect("a plain word is a Topic Filter");
            interest.add(events, from, from);
        }
    }
    interest.receive_everything(from);
    let (subscription, control) = app
        .hub
        .subscribe(Kind::WebSocket, caller, interest, from)
        .map_err(|error| Refusal::unavailable("too_many_subscribers", error.to_string(), 5))?;
    let place = OpenSocket::new(&app);
    let frame_bytes_max = app.config.frame_bytes_max;
    Ok(upgrade.max_message_size(frame_bytes_max).max_frame_size(frame_bytes_max).on_upgrade(
        async move |socket| {
            let client = Client { app, socket, subscription, endpoint };
            client.run(control).await;
            drop(place);
        },
    ))
}

/// Why a socket ends.
enum End {
    /// The client is gone or has said goodbye.
    Gone,
    /// We say goodbye.
    Close(u16, &'static str),
}

struct Client {
    app: Arc<App>,
    socket: WebSocket,
    subscription: Subscription,
    endpoint: Endpoint,
}

impl Client {
    async fn run(mut self, control: mpsc::Receiver<Utf8Bytes>) {
        let end = match self.welcome().await {
            Ok(()) => match self.serve(control).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        };
        match end {
            End::Gone => {}
            End::Close(code, reason) => {
                let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
                let _ = self.send(close).await;
            }
        }
    }

    async fn welcome(&mut self) -> Result<(), End> {
        let subscriber = self.subscription.subscriber();
        let payload = json!({
            "client_id": subscriber.client_id(),
            "server_time": encode::rfc3339(encode::now()),
            "connection_id": subscriber.id,
        });
        self.send_text(envelope::frame("connection_established", &payload, None)).await?;
        match self.endpoint {
            Endpoint::Ws => Ok(()),
            Endpoint::WsEvents => self.confirm(EVENTS, Value::Null, None).await,
        }
    }

    async fn serve(
        &mut self,
        mut control: mpsc::Receiver<Utf8Bytes>,
    ) -> Result<std::convert::Infallible, End> {
        let interval = Duration::from_millis(self.app.config.ping_interval_ms);
        let mut pings = interval_at(Instant::now() + interval, interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain = self.app.drain.clone();
        let mut heard = Instant::now();
        let subscriber = Arc::clone(self.subscription.subscriber());
        loop {
            tokio::select! {
                biased;
                () = drain.begun() => {
                    return Err(End::Close(close_code::AWAY, "the server is stopping"));
                }
                () = subscriber.caller.expired() => {
                    self.app.guard.access.note_expired();
                    return Err(End::Close(close_code::POLICY, sse::EXPIRED));
                }
                received = self.socket.recv() => {
                    heard = Instant::now();
                    self.receive(received).await?;
                }
                Some(frame) = control.recv() => self.send(Message::Text(frame)).await?,
                delivery = self.subscription.next() => self.deliver(delivery).await?,
                _ = pings.tick() => {
                    if heard.elapsed() >= interval * SILENT_INTERVALS_MAX {
                        return Err(End::Close(close_code::AWAY, "no answer to pings"));
                    }
                    self.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    async fn receive(&mut self, received: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        match received {
            None | Some(Ok(Message::Close(_))) => Err(End::Gone),
            Some(Err(error)) => {
                let too_large = error.to_string().contains("too long");
                if too_large { Err(End::Close(close_code::SIZE, "frame too large")) } else { Err(End::Gone) }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Ok(Message::Binary(_))) => {
                self.send_text(envelope::error("Invalid JSON format: send text frames", None)).await
            }
            Some(Ok(Message::Text(text))) => self.answer(&text).await,
        }
    }

    async fn answer(&mut self, text: &str) -> Result<(), End> {
        let received = envelope::parse(text);
        let id = received.message_id.as_deref();
        match received.request {
            Ok(Request::Subscribe { topic, from }) => match self.subscribe(&topic, from) {
                Ok(beginning) => {
                    let from = json!(beginning.from.0);
                    self.confirm(&topic, from, id).await?;
                    match beginning.unknown {
                        Some(last) => self.tell_gap(last.plus(1), beginning.from, "another journal").await,
                        None => Ok(()),
                    }
                }
                Err(error) => self.send_text(envelope::error(&error, id)).await,
            },
            Ok(Request::Unsubscribe { topic }) => {
                let ends_everything = self.endpoint == Endpoint::WsEvents && topic == EVENTS;
                self.subscription.change_interest(|interest, _| {
                    interest.remove(&topic);
                    if ends_everything {
                        interest.receive_filtered();
                    }
                    None
                });
                let payload = json!({ "topic": topic });
                self.send_text(envelope::frame("unsubscription_confirmed", &payload, id)).await
            }
            Ok(Request::Ping) => {
                let payload = json!({ "timestamp": encode::rfc3339(encode::now()) });
                self.send_text(envelope::frame("pong", &payload, id)).await
            }
            Ok(Request::AgentTask { query: true }) => {
                let error = "this gateway carries readings and runs no agent";
                let payload = json!({"success": false, "result": null, "error": error, "task_id": null});
                self.send_text(envelope::frame("agent_response", &payload, id)).await
            }
            Ok(Request::AgentTask { query: false }) => {
                self.send_text(envelope::error("Query is required", id)).await
            }
            Err(error) => self.send_text(envelope::error(&error, id)).await,
        }
    }

    /// Adds a subscription; without a place to begin, it begins now.
    fn subscribe(&mut self, topic: &str, from: Option<From>) -> Result<Beginning, String> {
        let filter = sse::parse_filter(topic).map_err(|refusal| refusal.detail)?;
        let subscriber = self.subscription.subscriber();
        self.app.guard.may_subscribe(&subscriber.caller, &filter).map_err(|refusal| refusal.detail)?;
        let interest = Arc::clone(&subscriber.state().interest);
        let filters_max = self.app.config.filters_max;
        if interest.filters().len() >= filters_max && !interest.filters().any(|known| known == topic) {
            return Err(format!("at most {filters_max} subscriptions (http.filters_max)"));
        }
        let beginning =
            from.unwrap_or(From::End).resolve(&self.app.hub.journal).map_err(|error| error.to_string())?;
        let everything_goes_on = self.endpoint == Endpoint::WsEvents;
        self.subscription.change_interest(|interest, position| {
            if !everything_goes_on {
                interest.receive_filtered();
            }
            interest.add(filter, beginning.from, position);
            Some(beginning.from)
        });
        Ok(beginning)
    }

    async fn confirm(&mut self, topic: &str, from: Value, response_to: Option<&str>) -> Result<(), End> {
        // A filter is counted by who would get a record of exactly that topic; with wildcards, by who asked for it.
        let count = match TopicName::new(topic) {
            Ok(name) => self.app.hub.interested(name),
            Err(_) => self.app.hub.subscribed(topic),
        };
        let payload = json!({"topic": topic, "subscriber_count": count, "from": from});
        self.send_text(envelope::frame("subscription_confirmed", &payload, response_to)).await
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        match delivery {
            Delivery::Events(frames) => self.send_frames(frames).await,
            Delivery::Gap { from, to } => self.tell_gap(from, to, "trimmed").await,
            Delivery::Failed(error) => {
                tracing::error!(%error, "a WebSocket ends");
                self.send_text(envelope::error(&error, None)).await?;
                Err(End::Close(close_code::ERROR, "the journal cannot be read"))
            }
        }
    }

    async fn tell_gap(&mut self, from: Offset, to: Offset, reason: &str) -> Result<(), End> {
        let payload = json!({"from": from.0, "to": to.0, "reason": reason});
        self.send_text(envelope::frame("gap", &payload, None)).await
    }

    /// Many frames, one flush.
    async fn send_frames(&mut self, frames: Vec<Bytes>) -> Result<(), End> {
        let limit = Duration::from_millis(self.app.config.send_timeout_ms);
        let send = async {
            for frame in frames {
                let text = Utf8Bytes::try_from(frame).expect("records are encoded as JSON text");
                self.socket.feed(Message::Text(text)).await?;
            }
            self.socket.flush().await
        };
        sent(timeout(limit, send).await)
    }

    async fn send_text(&mut self, text: String) -> Result<(), End> {
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let limit = Duration::from_millis(self.app.config.send_timeout_ms);
        sent(timeout(limit, self.socket.send(message)).await)
    }
}

/// A client that does not take what it is sent is gone; it can come back and resume.
fn sent(result: Result<Result<(), axum::Error>, tokio::time::error::Elapsed>) -> Result<(), End> {
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Gone),
    }
}
