//! MQTT over WebSocket, at its own port and at `/mqtt` of the HTTP port.

use futures_util::{SinkExt as _, StreamExt as _};
use tidegate_broker::mqtt::{Decoded, Packet, ReasonCode, Version, decode};
use tidegate_broker::record::Qos;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async};

use super::{Client, Everywhere, connect, payload, publish, subscribe};
use crate::support::mqtt::{Connection, Flags, Options, Received};
use crate::support::tidegate::Settings;
use crate::support::{PATIENCE, within};

/// A WebSocket of another maker.
pub(super) struct Web {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    received: Vec<u8>,
    frames: usize,
}

pub(super) async fn open(url: &str, protocol: &str) -> Web {
    match try_open(url, &[("sec-websocket-protocol", protocol)]).await {
        Ok(web) => web,
        Err(error) => panic!("{url} {protocol}: {error}"),
    }
}

async fn try_open(url: &str, headers: &[(&'static str, &str)]) -> Result<Web, Error> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let connecting = tokio_tungstenite::connect_async(request);
    let (stream, _) = within("the WebSocket is answered", PATIENCE, connecting).await?;
    Ok(Web { stream, received: Vec::new(), frames: 0 })
}

impl Web {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.send(Message::binary(bytes.to_vec())).await.expect("the WebSocket is open");
    }

    pub(super) async fn connect(&mut self, client: &str) {
        self.send(&connect(client, Version::V5)).await;
        self.until(
            |packet| matches!(packet, Packet::ConnAck(connack) if connack.reason == ReasonCode::Success),
        )
        .await;
    }

    /// Waits for the packet that `look` says is the one.
    async fn until(&mut self, mut look: impl FnMut(&Packet<'_>) -> bool) {
        loop {
            while let Decoded::Packet { packet, bytes } =
                decode(&self.received, Version::V5, 1 << 28).expect("the broker sends packets")
            {
                let found = look(&packet);
                self.received.drain(..bytes);
                if found {
                    return;
                }
            }
            let next = within("a frame comes", PATIENCE, self.stream.next()).await;
            match next.expect("the WebSocket is open").expect("the WebSocket is open") {
                // [MQTT-6.0.0-1]: whatever carries MQTT is binary.
                Message::Binary(bytes) => {
                    self.frames += 1;
                    self.received.extend_from_slice(&bytes);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for the DISCONNECT and the Close frame behind it; says what they tell.
    pub(super) async fn farewell(&mut self) -> (ReasonCode, u16) {
        let mut reason = ReasonCode::Success;
        self.until(|packet| match packet {
            Packet::Disconnect(disconnect) => {
                reason = disconnect.reason;
                true
            }
            _ => false,
        })
        .await;
        (reason, self.close_code().await)
    }

    async fn close_code(&mut self) -> u16 {
        loop {
            match within("a Close frame comes", PATIENCE, self.stream.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("no Close frame but {other:?}"),
            }
        }
    }

    /// A frame that need not be a whole message.
    async fn frame(&mut self, opcode: Data, is_final: bool, payload: &[u8]) {
        let header = FrameHeader { is_final, opcode: OpCode::Data(opcode), ..FrameHeader::default() };
        let frame = Frame::from_payload(header, payload.to_vec().into());
        self.stream.send(Message::Frame(frame)).await.expect("the WebSocket is open");
    }
}

fn urls(everywhere: &Everywhere) -> [String; 3] {
    [
        format!("ws://{}", everywhere.ws),
        format!("ws://{}/any/path?query", everywhere.ws),
        format!("ws://{}/mqtt", everywhere.tidegate.http),
    ]
}

#[tokio::test]
async fn packets_may_be_cut_into_frames_anywhere_and_frames_hold_many() {
    let everywhere = Everywhere::start(Settings::default()).await;
    let mut conversation = connect("cut", Version::V5);
    conversation.extend(subscribe("cut/#", Version::V5));
    for packet_id in 1..=20 {
        conversation.extend(publish(&format!("cut/{packet_id}"), b"payload", packet_id, Version::V5));
    }
    for url in urls(&everywhere) {
        // As whole messages, and as one message in fragments with a ping between them.
        for (fragments, step) in [(false, 1), (false, 7), (false, 1 << 20), (true, 1), (true, 100)] {
            let mut web = open(&url, "mqtt").await;
            for (n, piece) in conversation.chunks(step).enumerate() {
                if !fragments {
                    web.send(piece).await;
                    continue;
                }
                let opcode = if n == 0 { Data::Binary } else { Data::Continue };
                web.frame(opcode, (n + 1) * step >= conversation.len(), piece).await;
                if n == 2 {
                    web.stream.send(Message::Ping(Vec::new().into())).await.unwrap();
                }
            }
            let (mut acknowledged, mut delivered) = (Vec::new(), Vec::new());
            web.drain_into(&mut acknowledged, &mut delivered).await;
            assert_eq!(acknowledged, (1..=20).collect::<Vec<u16>>(), "{url} {step}");
            assert_eq!(delivered, (1..=20).map(|n| format!("cut/{n}")).collect::<Vec<_>>(), "{url} {step}");
        }
    }
}

impl Web {
    /// Reads until 20 publishes are acknowledged and 20 have come; pongs may come between them.
    async fn drain_into(&mut self, acknowledged: &mut Vec<u16>, delivered: &mut Vec<String>) {
        while acknowledged.len() < 20 || delivered.len() < 20 {
            let next = within("a frame comes", PATIENCE, self.stream.next()).await;
            match next.expect("the WebSocket is open").expect("the WebSocket is open") {
                Message::Binary(bytes) => self.received.extend_from_slice(&bytes),
                Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
            while let Decoded::Packet { packet, bytes } =
                decode(&self.received, Version::V5, 1 << 28).unwrap()
            {
                match packet {
                    Packet::PubAck(ack) => acknowledged.push(ack.packet_id),
                    Packet::Publish(publish) => delivered.push(publish.topic.to_owned()),
                    _ => {}
                }
                self.received.drain(..bytes);
            }
        }
    }
}

#[tokio::test]
async fn many_packets_leave_in_one_frame_and_large_ones_arrive_whole() {
    let everywhere = Everywhere::start(Settings::default()).await;
    let sent = payload(1 << 20);
    for url in urls(&everywhere) {
        let mut web = open(&url, "mqttv3.1").await;
        web.connect("large").await;
        web.send(&subscribe("large", Version::V5)).await;
        web.send(&publish("large", &sent, 1, Version::V5)).await;
        web.until(|packet| match packet {
            Packet::Publish(publish) => {
                assert!(publish.payload == sent, "what came is what was sent");
                true
            }
            _ => false,
        })
        .await;

        web.frames = 0;
        let many: Vec<u8> = (2..=201).flat_map(|id| publish("elsewhere", b"x", id, Version::V5)).collect();
        web.send(&many).await;
        web.until(|packet| matches!(packet, Packet::PubAck(ack) if ack.packet_id == 201)).await;
        assert!(web.frames <= 20, "{} frames for 200 acknowledgements", web.frames);
    }
}

#[tokio::test]
async fn what_is_not_allowed_in_frames_closes_with_its_code() {
    let everywhere = Everywhere::start(Settings::default()).await;
    for url in urls(&everywhere) {
        let opened = async || {
            let mut web = open(&url, "mqtt").await;
            web.connect("wrong").await;
            web
        };
        let mut web = opened().await;
        web.stream.send(Message::text("hello")).await.unwrap();
        assert_eq!(web.farewell().await, (ReasonCode::ProtocolError, 1003), "text [MQTT-6.0.0-1]");

        let mut web = open(&url, "mqtt").await;
        web.stream.send(Message::text("hello")).await.unwrap();
        assert_eq!(web.close_code().await, 1003, "text before CONNECT");

        let mut web = opened().await;
        web.frame(Data::Continue, true, b"of what").await;
        assert_eq!(web.farewell().await, (ReasonCode::ProtocolError, 1002));

        let mut web = opened().await;
        // Only the head: the rest would be too much to be waited for.
        let opcode = OpCode::Data(Data::Binary);
        let header = FrameHeader { mask: Some([1, 2, 3, 4]), opcode, ..FrameHeader::default() };
        let mut head = Vec::new();
        header.format(3 << 20, &mut head).unwrap();
        let MaybeTlsStream::Plain(stream) = web.stream.get_mut() else { panic!("it is plain") };
        tokio::io::AsyncWriteExt::write_all(stream, &head).await.unwrap();
        assert_eq!(web.farewell().await, (ReasonCode::PacketTooLarge, 1009));

        let mut web = opened().await;
        let MaybeTlsStream::Plain(stream) = web.stream.get_mut() else { panic!("it is plain") };
        tokio::io::AsyncWriteExt::write_all(stream, &[0x82, 2, 0xC0, 0]).await.unwrap();
        assert_eq!(web.farewell().await, (ReasonCode::ProtocolError, 1002), "without a mask");

        let mut web = opened().await;
        web.stream.close(None).await.unwrap();
        within("the close is answered", PATIENCE, async {
            while web.stream.next().await.is_some_and(|next| next.is_ok()) {}
        })
        .await;
    }
    everywhere.assert_serves().await;
}

#[tokio::test]
async fn only_mqtt_and_only_pages_that_may_get_a_websocket() {
    let settings = Settings::default().set("TIDEGATE_HTTP_ALLOWED_ORIGINS", "https://dash.example");
    let everywhere = Everywhere::start(settings).await;
    for url in urls(&everywhere) {
        let answer = async |headers: &[(&'static str, &str)]| match try_open(&url, headers).await {
            Ok(_) => 101,
            Err(Error::Http(reply)) => reply.status().as_u16(),
            Err(error) => panic!("{url} {headers:?}: {error}"),
        };
        let protocol = ("sec-websocket-protocol", "mqtt");
        assert_eq!(answer(&[protocol]).await, 101);
        assert_eq!(answer(&[]).await, 101, "a client that offers nothing");
        assert_eq!(answer(&[("sec-websocket-protocol", "chat")]).await, 400);
        assert_eq!(answer(&[protocol, ("origin", "https://dash.example")]).await, 101);
        assert_eq!(answer(&[protocol, ("origin", "https://evil.example")]).await, 403);
        assert_eq!(answer(&[protocol, ("origin", "null")]).await, 403);
        let rebound = [protocol, ("origin", "http://evil.example"), ("host", "evil.example")];
        assert_eq!(answer(&rebound).await, 403, "DNS rebinding");
    }
    let reply = crate::support::http::get(everywhere.ws, "/").await;
    assert_eq!(reply.status, 426, "a browser that looks at the port is told what it is");
}

#[tokio::test]
async fn whoever_comes_through_a_reverse_proxy_is_not_on_this_machine() {
    let everywhere = Everywhere::start(Settings::default()).await;
    for url in urls(&everywhere) {
        for (header, expected) in [
            (("x-other", "1"), ReasonCode::Success),
            (("x-forwarded-for", "127.0.0.1"), ReasonCode::NotAuthorized),
            (("host", "mqtt.example"), ReasonCode::NotAuthorized),
        ] {
            let mut web = try_open(&url, &[header]).await.unwrap();
            web.send(&connect("forwarded", Version::V5)).await;
            web.until(|packet| {
                let Packet::ConnAck(connack) = packet else { panic!("{packet:?}") };
                assert_eq!(connack.reason, expected, "{url} {header:?}");
                true
            })
            .await;
        }
    }
}

#[tokio::test]
async fn the_same_over_tls_carries_mqtt() {
    let everywhere = Everywhere::start(Settings::default()).await;
    // A connection that HTTP has encrypted goes on in the broker with the same keys.
    for (connections, address) in [(1, everywhere.wss), (2, everywhere.https)] {
        let Client { stream, .. } = everywhere.authority.connect(address).await;
        let mut request = format!("ws://{address}/mqtt").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().unwrap());
        let answered = within("the WebSocket is answered", PATIENCE, client_async(request, stream)).await;
        let (mut stream, _) = answered.unwrap();
        stream.send(Message::binary(connect(&address.to_string(), Version::V5))).await.unwrap();
        let next = within("CONNACK comes", PATIENCE, stream.next()).await.unwrap().unwrap();
        let Message::Binary(bytes) = next else { panic!("{next:?}") };
        assert_eq!(bytes[0], 0x20, "CONNACK");

        // What came this way is delivered to everybody, and what everybody sends comes this way.
        let options = Options::clean(Version::V5, "plain");
        let mut plain = Connection::open(everywhere.tidegate.mqtt, &options).await.unwrap();
        plain.subscribe("from/wss", Qos::AtLeastOnce).await.unwrap();
        let sent = payload(1 << 20);
        stream.send(Message::binary(subscribe("to/wss", Version::V5))).await.unwrap();
        stream.send(Message::binary(publish("from/wss", &sent, 1, Version::V5))).await.unwrap();
        let Received::Publish { payload, packet_id, .. } = plain.receive().await.unwrap() else {
            panic!("no publish")
        };
        assert!(payload == sent, "what came is what was sent");
        plain.puback(packet_id);
        plain.publish("to/wss", &sent, Qos::AtLeastOnce, 1, Flags::default());
        plain.flush().await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(&sent) {
            let next = within("a frame comes", PATIENCE, stream.next()).await.unwrap().unwrap();
            if let Message::Binary(bytes) = next {
                received.extend_from_slice(&bytes);
            }
        }
        let open = "tidegate_mqtt_transport_connections_total{transport=\"wss\"}";
        assert_eq!(everywhere.metric(open).await, connections);
    }
}

#[tokio::test]
async fn everything_of_the_http_port_is_there_over_tls() {
    let mut everywhere = Everywhere::start(Settings::default()).await;
    let mut client = everywhere.authority.connect(everywhere.https).await;
    client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    client.expect_end().await;
    let answer = String::from_utf8(client.received).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\"transport\":\"wss\""), "every listener is named: {answer}");
    // Who speaks no TLS there is closed, and who says nothing does not hold a drain up.
    let mut plain = Client::plain(everywhere.https).await;
    plain.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    plain.expect_end().await;
    assert!(everywhere.tidegate.drain().await.success());
}
