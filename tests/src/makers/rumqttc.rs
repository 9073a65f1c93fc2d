//! rumqttc, as its documentation shows it: MQTT 3.1.1 and 5.
//!
//! Over TCP only: what it needs for TLS is not kept up any more (rustls-pemfile, an old rustls-webpki), and the TLS below
//! it is that of the tests in `transports`. Its two versions are two sets of types without anything in common; [`Maker`] is what the test needs of both.

use std::time::Duration;

use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, root, within};

const BACKLOG: u32 = 50;

/// What a client hears of the broker.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Connected {
        session_present: bool,
    },
    Subscribed,
    Published(Vec<u8>),
    /// A publish of its own is done with.
    Done,
    Other,
}

/// One version of rumqttc.
trait Maker {
    const TOPIC: &str;
    type Client: Send + 'static;
    type Events;

    /// A client, whose session is kept or not.
    fn connect(id: &str, keep: bool, port: u16) -> (Self::Client, Self::Events);
    async fn subscribe(client: &Self::Client);
    fn publish(client: &Self::Client, payload: String) -> impl Future<Output = ()> + Send;
    /// What happens next.
    async fn poll(events: &mut Self::Events) -> Heard;

    /// What is heard next.
    async fn hear(events: &mut Self::Events) -> Heard {
        loop {
            let heard = within("rumqttc hears from the broker", PATIENCE, Self::poll(events)).await;
            if heard != Heard::Other {
                return heard;
            }
        }
    }
}

/// MQTT 3.1.1, with QoS 1.
struct V311;

impl Maker for V311 {
    const TOPIC: &str = "makers/rumqttc/4";
    type Client = rumqttc::AsyncClient;
    type Events = rumqttc::EventLoop;

    fn connect(id: &str, keep: bool, port: u16) -> (Self::Client, Self::Events) {
        let mut options = rumqttc::MqttOptions::new(id, "127.0.0.1", port);
        options.set_clean_session(!keep).set_keep_alive(Duration::from_secs(20));
        rumqttc::AsyncClient::new(options, 100)
    }

    async fn subscribe(client: &Self::Client) {
        client.subscribe(Self::TOPIC, rumqttc::QoS::AtLeastOnce).await.unwrap();
    }

    async fn publish(client: &Self::Client, payload: String) {
        client.publish(Self::TOPIC, rumqttc::QoS::AtLeastOnce, false, payload).await.unwrap();
    }

    async fn poll(events: &mut Self::Events) -> Heard {
        use rumqttc::{Event, Packet};
        match events.poll().await.expect("the connection holds") {
            Event::Incoming(Packet::ConnAck(ack)) => {
                Heard::Connected { session_present: ack.session_present }
            }
            Event::Incoming(Packet::SubAck(_)) => Heard::Subscribed,
            Event::Incoming(Packet::Publish(publish)) => Heard::Published(publish.payload.to_vec()),
            Event::Incoming(Packet::PubAck(_)) => Heard::Done,
            _ => Heard::Other,
        }
    }
}

/// MQTT 5, with QoS 2.
struct V5;

impl Maker for V5 {
    const TOPIC: &str = "makers/rumqttc/5";
    type Client = rumqttc::v5::AsyncClient;
    type Events = rumqttc::v5::EventLoop;

    fn connect(id: &str, keep: bool, port: u16) -> (Self::Client, Self::Events) {
        let mut options = rumqttc::v5::MqttOptions::new(id, "127.0.0.1", port);
        options.set_clean_start(!keep).set_keep_alive(Duration::from_secs(20));
        options.set_session_expiry_interval(keep.then_some(300));
        rumqttc::v5::AsyncClient::new(options, 100)
    }

    async fn subscribe(client: &Self::Client) {
        client.subscribe(Self::TOPIC, rumqttc::v5::mqttbytes::QoS::ExactlyOnce).await.unwrap();
    }

    async fn publish(client: &Self::Client, payload: String) {
        use rumqttc::v5::mqttbytes::QoS;
        client.publish(Self::TOPIC, QoS::ExactlyOnce, false, payload).await.unwrap();
    }

    async fn poll(events: &mut Self::Events) -> Heard {
        use rumqttc::v5::Event;
        use rumqttc::v5::mqttbytes::v5::Packet;
        match events.poll().await.expect("the connection holds") {
            Event::Incoming(Packet::ConnAck(ack)) => {
                Heard::Connected { session_present: ack.session_present }
            }
            Event::Incoming(Packet::SubAck(_)) => Heard::Subscribed,
            Event::Incoming(Packet::Publish(publish)) => Heard::Published(publish.payload.to_vec()),
            Event::Incoming(Packet::PubComp(_)) => Heard::Done,
            _ => Heard::Other,
        }
    }
}

/// A session that was away gets what was published meanwhile, each once and in order.
async fn goes_on_with_its_session<M: Maker>() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let port = tidegate.mqtt.port();
    let (keeper, mut events) = M::connect("keeper", true, port);
    assert_eq!(M::hear(&mut events).await, Heard::Connected { session_present: false });
    M::subscribe(&keeper).await;
    assert_eq!(M::hear(&mut events).await, Heard::Subscribed);
    // The connection is cut, without a DISCONNECT.
    drop((keeper, events));

    let (publisher, mut events) = M::connect("publisher", false, port);
    let publishing = tokio::spawn(async move {
        for number in 0..BACKLOG {
            M::publish(&publisher, number.to_string()).await;
        }
        publisher
    });
    assert_eq!(M::hear(&mut events).await, Heard::Connected { session_present: false });
    for _ in 0..BACKLOG {
        assert_eq!(M::hear(&mut events).await, Heard::Done);
    }
    drop(publishing.await.unwrap());

    let (_keeper, mut events) = M::connect("keeper", true, port);
    assert_eq!(M::hear(&mut events).await, Heard::Connected { session_present: true });
    for number in 0..BACKLOG {
        assert_eq!(M::hear(&mut events).await, Heard::Published(number.to_string().into_bytes()));
    }
}

/// The version of a library in the lock file.
fn locked_version(package: &str) -> String {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let (_, rest) =
        lock.split_once(&format!("name = \"{package}\"\nversion = \"")).expect("it is in the lock file");
    rest.split('"').next().expect("a version ends").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_goes_on_with_its_session_in_mqtt_3_1_1() {
    println!("rumqttc {}", locked_version("rumqttc"));
    goes_on_with_its_session::<V311>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_goes_on_with_its_session_in_mqtt_5() {
    goes_on_with_its_session::<V5>().await;
}
