//! What real devices send, through the stock mosquitto clients, arrives unchanged at every output.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::http::EventStream;
use crate::support::kafka::{Consumed, Topic};
use crate::support::mosquitto::{self, Version};
use crate::support::postgres::Database;
use crate::support::random::Random;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::websocket::WebSocket;
use crate::support::{PATIENCE, services, unique};

/// 2025-07-27T14:30:00Z, the time that two of the payloads name.
const MEASURED_S: f64 = 1_753_626_600.0;

/// What becomes the Kafka key or the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Is(&'static str),
    /// The Client Identifier of the publisher.
    Client,
}

impl Name {
    const fn of<'a>(&self, client: &'a str) -> &'a str
    where
        'static: 'a,
    {
        match self {
            Self::Is(name) => name,
            Self::Client => client,
        }
    }
}

/// A row that PostgreSQL shall have; it holds the payload as it came if neither number nor text says it.
#[derive(Clone, Copy, Debug)]
struct Row {
    device: Name,
    metric: &'static str,
    number: Option<f64>,
    text: Option<&'static str>,
    /// `None` is the time of receipt.
    time_s: Option<f64>,
}

impl Row {
    const fn number(device: Name, metric: &'static str, number: f64, time_s: Option<f64>) -> Self {
        Self { device, metric, number: Some(number), text: None, time_s }
    }

    const fn text(device: Name, metric: &'static str, text: &'static str) -> Self {
        Self { device, metric, number: None, text: Some(text), time_s: None }
    }
}

/// One publish, and what shall become of it.
#[derive(Clone, Debug)]
struct Input {
    topic: &'static str,
    payload: Vec<u8>,
    /// As the event stream tells it.
    encoding: &'static str,
    kafka_topic: &'static str,
    kafka_key: Name,
    rows: Vec<Row>,
}

fn inputs() -> Vec<Input> {
    let input = |topic, payload: &str, encoding, (kafka_topic, kafka_key), rows| Input {
        topic,
        payload: payload.as_bytes().to_vec(),
        encoding,
        kafka_topic,
        kafka_key,
        rows,
    };
    let sensor = Name::Is("sensor01");
    let measured = Some(MEASURED_S);
    let health = |metric, number| Row::number(Name::Is("device-001"), metric, number, measured);
    let photo = Random::new(200).bytes(200 << 10);
    vec![
        input(
            "sensors/temperature",
            r#"{"device":"sensor01","temp":23.5,"timestamp":"2025-07-27T14:30:00Z"}"#,
            "json",
            ("sensors", Name::Client),
            vec![Row::number(sensor, "temp", 23.5, measured)],
        ),
        input(
            "sensors/sensor01/temperature",
            "23.5",
            "json",
            ("sensors", sensor),
            vec![Row::number(sensor, "temperature", 23.5, None)],
        ),
        input(
            "iot/sensors",
            "Temperature: 22.5°C",
            "text",
            ("mqtt", Name::Client),
            vec![Row::text(Name::Client, "sensors", "Temperature: 22.5°C")],
        ),
        input(
            "devices/sensor01/status",
            "online",
            "text",
            ("devices", sensor),
            vec![Row::text(sensor, "status", "online")],
        ),
        input(
            "health/device_data",
            r#"{"deviceId":"device-001","timestamp":1753626600,"heartRate":72,"systolic":118,"diastolic":76,"oxygenSaturation":98,"bodyTemperature":98.6,"latitude":40.4168,"longitude":-3.7038}"#,
            "json",
            ("mqtt", Name::Client),
            vec![
                health("heartRate", 72.0),
                health("systolic", 118.0),
                health("diastolic", 76.0),
                health("oxygenSaturation", 98.0),
                health("bodyTemperature", 98.6),
                health("latitude", 40.4168),
                health("longitude", -3.7038),
            ],
        ),
        input(
            "étage/1/température",
            "-4.25",
            "json",
            ("mqtt", Name::Client),
            vec![Row::number(Name::Client, "température", -4.25, None)],
        ),
        Input {
            topic: "iot/camera",
            payload: photo,
            encoding: "base64",
            kafka_topic: "mqtt",
            kafka_key: Name::Client,
            rows: vec![Row {
                device: Name::Client,
                metric: "camera",
                number: None,
                text: None,
                time_s: None,
            }],
        },
    ]
}

/// A publish that was made.
#[derive(Debug)]
struct Published {
    client: String,
    input: Input,
    version: Version,
    qos: u8,
}

#[tokio::test]
async fn what_mosquitto_pub_sends_arrives_byte_for_byte_at_every_output() {
    let database = Database::create(services::postgres()).await;
    let settings = Settings::default().kafka(services::kafka()).postgres(&database.url);
    let tidegate = Tidegate::start(settings).await;
    let mut outputs = Outputs::open(&tidegate).await;

    let mut published = Vec::new();
    for version in [Version::V311, Version::V5] {
        for qos in 0..=2 {
            for input in inputs() {
                let publish = Published { client: unique("device"), input, version, qos };
                let more = arguments(&publish);
                let more: Vec<&str> = more.iter().map(String::as_str).collect();
                mosquitto::publish(
                    tidegate.mqtt,
                    version,
                    qos,
                    publish.input.topic,
                    &publish.input.payload,
                    &more,
                );
                outputs.check_next(&publish).await;
                published.push(publish);
            }
        }
    }
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    check_kafka(&tidegate.journal_id().await, &published).await;
    for publish in &published {
        check_rows(&database, publish).await;
    }
    for sink in ["kafka", "postgres"] {
        assert_eq!(tidegate.sink(sink).await.rejected, 0, "{sink} rejects nothing of this");
    }
}

fn arguments(published: &Published) -> Vec<String> {
    let mut arguments = vec!["-i".to_owned(), published.client.clone()];
    if published.version == Version::V5 {
        for (name, value) in
            [("content-type", "text/x-test"), ("user-property", "site"), ("user-property", "étage")]
        {
            arguments.extend(["-D", "publish", name, value].map(str::to_owned));
            if name == "user-property" {
                arguments.push(format!("{value} of {}", published.client));
            }
        }
    }
    arguments
}

/// The outputs that deliver at once.
#[derive(Debug)]
struct Outputs {
    subscribers: [mosquitto::Subscriber; 2],
    events: EventStream,
    socket: WebSocket,
}

impl Outputs {
    async fn open(tidegate: &Tidegate) -> Self {
        let subscriber =
            async |version| mosquitto::Subscriber::start(tidegate.mqtt, version, 2, "#", &[]).await;
        let mut socket = WebSocket::open(tidegate.http, "/ws").await;
        socket.subscribe("#").await;
        Self {
            subscribers: [subscriber(Version::V311).await, subscriber(Version::V5).await],
            events: EventStream::open(tidegate.http, "/stream/events?filter=%23&status=off", None).await,
            socket,
        }
    }

    async fn check_next(&mut self, published: &Published) {
        let Input { topic, payload, .. } = &published.input;
        for subscriber in &mut self.subscribers {
            let received = subscriber.next().await;
            assert_eq!((received.topic.as_str(), received.qos), (*topic, published.qos));
            assert!(received.payload == *payload, "{published:?} is changed at mosquitto_sub");
        }
        let event = self.events.next().await;
        let reading: Value = serde_json::from_str(&event.data).expect("the data of an event is JSON");
        check_reading(published, &reading, &event.data);
        assert_eq!(event.id, reading["offset"].to_string(), "the id of an event is its offset");
        let frame = self.socket.next_text().await;
        let envelope: Value = serde_json::from_str(&frame).expect("frames are JSON");
        assert_eq!(envelope["message_type"], "topic_message", "{envelope}");
        check_reading(published, &envelope["payload"], &frame);
    }
}

/// What browsers get. `text` is the JSON that `reading` was found in.
fn check_reading(published: &Published, reading: &Value, text: &str) {
    let Published { client, input, qos, .. } = published;
    assert_eq!(reading["topic"], input.topic, "{reading}");
    assert_eq!(reading["client"], client.as_str(), "{reading}");
    assert_eq!(reading["qos"], *qos, "{reading}");
    assert_eq!(reading["encoding"], input.encoding, "{reading}");
    let data = reading["data"].as_str().unwrap_or_default();
    let is_same = match input.encoding {
        "json" => text.contains(&format!("\"data\":{}}}", std::str::from_utf8(&input.payload).unwrap())),
        "text" => data.as_bytes() == input.payload,
        _ => STANDARD.decode(data).expect("base64") == input.payload,
    };
    assert!(is_same, "the payload of {published:?} is changed: {text}");
}

async fn check_kafka(journal: &str, published: &[Published]) {
    for name in ["sensors", "devices", "mqtt"] {
        let expected = published.iter().filter(|publish| publish.input.kafka_topic == name);
        let expected: Vec<_> = expected.collect();
        let mut topic = Topic::open(services::kafka(), name).await;
        let is_ours = |record: &Consumed| record.origin().0 == journal;
        let records = topic.matching(expected.len(), PATIENCE, is_ours).await;
        assert_eq!(records.len(), expected.len(), "records in {name}");
        for publish in expected {
            let mut of_publish = records.iter().filter(|record| {
                record.header("ce_source").is_some_and(|source| source.ends_with(&publish.client))
            });
            let record = of_publish.next().unwrap_or_else(|| panic!("{publish:?} is not in {name}"));
            assert!(of_publish.next().is_none(), "{publish:?} is in {name} twice");
            check_record(publish, record);
        }
    }
}

fn check_record(published: &Published, record: &Consumed) {
    let Published { client, input, version, .. } = published;
    assert_eq!(record.key(), input.kafka_key.of(client), "the key of {published:?}");
    assert!(record.value == input.payload, "the value of {published:?}");
    assert_eq!(record.mqtt_topic(), input.topic);
    assert_eq!(record.header("ce_specversion"), Some("1.0"));
    assert!(record.header("ce_type").is_some_and(|kind| !kind.is_empty()));
    let time = record.header("ce_time").expect("ce_time is there");
    assert!(time.starts_with("20") && time.ends_with('Z') && time.contains('T'), "ce_time is {time}");
    if *version == Version::V5 {
        assert_eq!(record.header("content-type"), Some("text/x-test"));
        assert_eq!(record.header("site"), Some(format!("site of {client}").as_str()));
        assert_eq!(record.header("étage"), Some(format!("étage of {client}").as_str()));
    }
}

async fn check_rows(database: &Database, published: &Published) {
    let Published { client, input, .. } = published;
    let sql = "SELECT device, metric, number, \"text\", extract(epoch FROM \"time\")::float8, \
               abs(extract(epoch FROM now() - received))::float8, \"time\" = received, payload, topic \
               FROM tidegate.readings WHERE client = $1 ORDER BY \"position\", item";
    let rows = database.query(sql, &[client]).await;
    assert_eq!(rows.len(), input.rows.len(), "rows of {published:?}: {rows:?}");
    for (row, expected) in rows.iter().zip(&input.rows) {
        assert_eq!(row.get::<_, &str>(0), expected.device.of(client), "{published:?}");
        assert_eq!(row.get::<_, &str>(1), expected.metric, "{published:?}");
        assert_eq!(row.get::<_, Option<f64>>(2), expected.number, "{published:?}");
        assert_eq!(row.get::<_, Option<&str>>(3), expected.text, "{published:?}");
        match expected.time_s {
            Some(time_s) => assert_eq!(row.get::<_, f64>(4), time_s, "{published:?}"),
            None => assert!(
                row.get::<_, bool>(6),
                "without a time of its own it has that of receipt: {published:?}"
            ),
        }
        assert!(row.get::<_, f64>(5) < 600.0, "received just now: {published:?}");
        if expected.number.is_none() && expected.text.is_none() {
            assert!(row.get::<_, Option<&[u8]>>(7) == Some(&input.payload), "the bytes of {published:?}");
        }
        assert_eq!(row.get::<_, &str>(8), input.topic);
    }
}
