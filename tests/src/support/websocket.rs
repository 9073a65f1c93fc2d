//! A WebSocket client that speaks the gateway's JSON envelope.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{PATIENCE, within};

/// A connected socket.
#[derive(Debug)]
pub(crate) struct WebSocket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl WebSocket {
    /// Connects to `path` and waits for the welcome.
    pub(crate) async fn open(address: SocketAddr, path: &str) -> Self {
        let url = format!("ws://{address}{path}");
        let connecting =
            within("the WebSocket connects", PATIENCE, tokio_tungstenite::connect_async(&url)).await;
        let (stream, _) = connecting.unwrap_or_else(|error| panic!("{url}: {error}"));
        let mut socket = Self { stream };
        socket.next_of_type("connection_established").await;
        socket
    }

    /// Sends a frame of the envelope.
    pub(crate) async fn send(&mut self, message_type: &str, payload: Value) {
        let frame = json!({ "message_type": message_type, "payload": payload }).to_string();
        self.stream.send(Message::text(frame)).await.expect("the socket can be written");
    }

    /// Subscribes to a Topic Filter and waits for the confirmation.
    pub(crate) async fn subscribe(&mut self, filter: &str) {
        self.send("subscribe", json!({ "topic": filter })).await;
        self.next_of_type("subscription_confirmed").await;
    }

    /// The next frame as it came.
    pub(crate) async fn next_text(&mut self) -> String {
        within("the next WebSocket frame arrives", PATIENCE, async {
            loop {
                let frame = self.stream.next().await.expect("the socket is open");
                if let Message::Text(text) = frame.expect("the socket can be read") {
                    return text.as_str().to_owned();
                }
            }
        })
        .await
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).expect("frames are JSON")
    }

    /// The payload of the next frame of this type; others are passed over.
    pub(crate) async fn next_of_type(&mut self, message_type: &str) -> Value {
        loop {
            let mut frame = self.next().await;
            if frame["message_type"] == message_type {
                return frame["payload"].take();
            }
            assert_ne!(frame["message_type"], "error", "{frame}");
        }
    }
}
