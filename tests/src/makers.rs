//! Clients of other makers: paho-mqtt and scramp (Python), MQTT.js in node and in a browser, rumqttc. mosquitto's are
//! used by many tests beside this one.
//!
//! `tests/makers/` has the programs; what they claim is printed by them, and so are the versions they were tried with.

mod rumqttc;

use std::path::PathBuf;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::AsyncWriteExt as _;
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

/// Lets `user` prove with SCRAM that it knows `password`.
async fn add_scram_user(tidegate: &Tidegate, user: &str, password: &str) {
    let mut command = Command::new(Tidegate::program());
    command.args(["passwd", "--scram", user]).env("TIDEGATE_DATA_DIR", tidegate.folder().join("data"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).await.unwrap();
    let status = within("tidegate passwd ends", PATIENCE, child.wait()).await.unwrap();
    assert!(status.success(), "tidegate passwd --scram {user}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mqttjs_proves_with_scramp_who_it_is() {
    let (python, _) = (provided("TIDEGATE_TEST_PAHO"), provided("TIDEGATE_TEST_MQTTJS"));
    let mut tidegate = Tidegate::prepare(Settings::default().set("TIDEGATE_AUTH_ANONYMOUS", "never"));
    add_scram_user(&tidegate, "ada", "lovelace").await;
    add_scram_user(&tidegate, "bob", "builder").await;
    tidegate.spawn();
    tidegate.ready().await;
    let mut command = Command::new("node");
    command.arg(root().join("tests/makers/with_mqttjs_scram.mjs"));
    run("MQTT.js with scramp", command.arg(tidegate.mqtt.to_string()).arg(python)).await;
}
