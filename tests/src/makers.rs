//! Clients of other makers: paho-mqtt (Python), MQTT.js in node and in a browser, rumqttc. mosquitto's are used by
//! many tests beside this one.
//!
//! `tests/makers/` has the programs; what they claim is printed by them, and so are the versions they were tried with.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::process::Command;

use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, free_address, root, within};

/// What `variable` holds, which `tests/services start makers browser` prints.
fn provided(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{variable} is not set: run tests/run, or eval \"$(tests/services start browser makers)\" first"
        )
    })
}

/// Runs a program to its end, which must be a good one, and shows what it said.
async fn run(what: &str, command: &mut Command) {
    let output = within(what, PATIENCE * 4, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{what}: {}\n{said}{errors}", output.status);
}

/// Certificates for an appliance that listens with TLS, and the authority that signed them.
fn write_certificates(folder: &std::path::Path) {
    let mut params = CertificateParams::default();
    // OpenSSL takes a certificate for self-signed whose issuer has the same name.
    params.distinguished_name.push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("authority.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("server.pem"), server.pem()).unwrap();
    std::fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_finds_everything_it_expects() {
    let python = provided("TIDEGATE_TEST_PAHO");
    let (tls, ws) = (free_address(), free_address());
    let settings = Settings::default()
        .set("TIDEGATE_MQTT_TLS_LISTEN", &tls.to_string())
        .set("TIDEGATE_MQTT_TLS_CERT_FILE", "server.pem")
        .set("TIDEGATE_MQTT_TLS_KEY_FILE", "server.key")
        .set("TIDEGATE_MQTT_WSS_LISTEN", "off")
        .set("TIDEGATE_MQTT_WS_LISTEN", &ws.to_string());
    let mut tidegate = Tidegate::prepare(settings);
    write_certificates(tidegate.folder());
    tidegate.spawn();
    tidegate.ready().await;
    let mut command = Command::new(python);
    command
        .arg(root().join("tests/makers/with_paho.py"))
        .args(["127.0.0.1", &tidegate.mqtt.port().to_string(), &tls.port().to_string()])
        .arg(tidegate.folder().join("authority.pem"))
        .arg(ws.port().to_string());
    run("paho-mqtt", &mut command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mqttjs_finds_everything_it_expects_in_node_and_in_a_browser() {
    for variable in ["TIDEGATE_TEST_MQTTJS", "TIDEGATE_TEST_CHROMIUM", "TIDEGATE_TEST_PLAYWRIGHT"] {
        let _ = provided(variable);
    }
    let (ws, page) = (free_address(), free_address());
    let settings = Settings::default()
        .set("TIDEGATE_MQTT_WS_LISTEN", &ws.to_string())
        .set("TIDEGATE_HTTP_ALLOWED_ORIGINS", &format!("http://{page}"));
    let tidegate = Tidegate::start(settings).await;
    let mut command = Command::new("node");
    command.arg(root().join("tests/makers/with_mqttjs.mjs"));
    command.args([tidegate.mqtt, ws, tidegate.http, page].map(|address| address.to_string()));
    run("MQTT.js", &mut command).await;
}

const BACKLOG: u32 = 50;

/// The version of a library in the lock file.
fn locked_version(package: &str) -> String {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let (_, rest) =
        lock.split_once(&format!("name = \"{package}\"\nversion = \"")).expect("it is in the lock file");
    rest.split('"').next().expect("a version ends").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_goes_on_with_its_session_in_mqtt_3_1_1() {
    use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};

    println!("rumqttc {}", locked_version("rumqttc"));
    let tidegate = Tidegate::start(Settings::default()).await;
    let connect = |id: &str, clean: bool| {
        let mut options = MqttOptions::new(id, "127.0.0.1", tidegate.mqtt.port());
        options.set_clean_session(clean).set_keep_alive(Duration::from_secs(20));
        AsyncClient::new(options, 100)
    };
    async fn next(events: &mut EventLoop) -> Packet {
        loop {
            let event = within("rumqttc hears from the broker", PATIENCE, events.poll()).await;
            if let Event::Incoming(packet) = event.expect("the connection holds") {
                return packet;
            }
        }
    }

    let (keeper, mut events) = connect("rumqttc-keeper", false);
    let Packet::ConnAck(first) = next(&mut events).await else { panic!("CONNACK comes first") };
    assert!(!first.session_present);
    keeper.subscribe("makers/rumqttc/4", QoS::AtLeastOnce).await.unwrap();
    while !matches!(next(&mut events).await, Packet::SubAck(_)) {}
    // The connection is cut, without a DISCONNECT.
    drop((keeper, events));

    let (publisher, mut publisher_events) = connect("rumqttc-publisher", true);
    let publishing = tokio::spawn(async move {
        for number in 0..BACKLOG {
            let payload = number.to_string();
            publisher.publish("makers/rumqttc/4", QoS::AtLeastOnce, false, payload).await.unwrap();
        }
        publisher
    });
    let mut acknowledged = 0;
    while acknowledged < BACKLOG {
        acknowledged += u32::from(matches!(next(&mut publisher_events).await, Packet::PubAck(_)));
    }
    drop(publishing.await.unwrap());

    let (_keeper, mut events) = connect("rumqttc-keeper", false);
    let Packet::ConnAck(again) = next(&mut events).await else { panic!("CONNACK comes first") };
    assert!(again.session_present);
    for expected in 0..BACKLOG {
        let Packet::Publish(publish) = next(&mut events).await else { panic!("the backlog comes next") };
        assert_eq!(publish.payload, expected.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_goes_on_with_its_session_in_mqtt_5() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::Packet;
    use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};

    let tidegate = Tidegate::start(Settings::default()).await;
    let connect = |id: &str, clean: bool| {
        let mut options = MqttOptions::new(id, "127.0.0.1", tidegate.mqtt.port());
        options.set_clean_start(clean).set_keep_alive(Duration::from_secs(20));
        options.set_session_expiry_interval((!clean).then_some(300));
        AsyncClient::new(options, 100)
    };
    async fn next(events: &mut EventLoop) -> Packet {
        loop {
            let event = within("rumqttc hears from the broker", PATIENCE, events.poll()).await;
            if let Event::Incoming(packet) = event.expect("the connection holds") {
                return packet;
            }
        }
    }

    let (keeper, mut events) = connect("rumqttc5-keeper", false);
    let Packet::ConnAck(first) = next(&mut events).await else { panic!("CONNACK comes first") };
    assert!(!first.session_present);
    keeper.subscribe("makers/rumqttc/5", QoS::ExactlyOnce).await.unwrap();
    while !matches!(next(&mut events).await, Packet::SubAck(_)) {}
    drop((keeper, events));

    let (publisher, mut publisher_events) = connect("rumqttc5-publisher", true);
    let publishing = tokio::spawn(async move {
        for number in 0..BACKLOG {
            let payload = number.to_string();
            publisher.publish("makers/rumqttc/5", QoS::ExactlyOnce, false, payload).await.unwrap();
        }
        publisher
    });
    let mut completed = 0;
    while completed < BACKLOG {
        completed += u32::from(matches!(next(&mut publisher_events).await, Packet::PubComp(_)));
    }
    drop(publishing.await.unwrap());

    let (_keeper, mut events) = connect("rumqttc5-keeper", false);
    let Packet::ConnAck(again) = next(&mut events).await else { panic!("CONNACK comes first") };
    assert!(again.session_present);
    let mut numbers = Vec::new();
    while numbers.len() < BACKLOG as usize {
        if let Packet::Publish(publish) = next(&mut events).await {
            numbers.push(String::from_utf8(publish.payload.to_vec()).unwrap().parse::<u32>().unwrap());
        }
    }
    assert_eq!(numbers, (0..BACKLOG).collect::<Vec<_>>());
}
