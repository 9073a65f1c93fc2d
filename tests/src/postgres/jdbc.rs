//! Metabase's questions, asked through the JDBC driver that it uses, under the role that may only read.

use std::process::Command;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};

use super::{JOURNAL, batch, config, deliver};
use crate::support::postgres::Database;
use crate::support::{root, services, unique};

const READINGS: [(&str, &str); 10] = [
    ("sensors/machine-1/temperature", r#"{"value":20,"unit":"°C","ts":"2001-02-03T10:00:00Z"}"#),
    ("sensors/machine-1/temperature", r#"{"value":21,"unit":"°C","ts":"2001-02-03T10:00:30Z"}"#),
    ("sensors/machine-1/temperature", r#"{"value":25,"unit":"°C","ts":"2001-02-03T10:59:59.999Z"}"#),
    // Another day in Berlin, the day before in New York.
    ("sensors/machine-1/temperature", r#"{"value":19,"unit":"°C","ts":"2001-02-03T23:30:00Z"}"#),
    ("sensors/machine-1/temperature", r#"{"value":18,"unit":"°C","ts":"2001-02-04T04:30:00Z"}"#),
    ("sensors/machine-2/temperature", r#"{"value":-4.5,"unit":"°C","ts":"2001-02-03T10:15:00Z"}"#),
    ("sensors/machine-2/mode", "heating"),
    ("devices/machine-1/status", "online"),
    ("devices/machine-2/status", "offline"),
    ("alerts/critical", r#"{"device":"machine-2","value":"too cold"}"#),
];

/// What `tests/jdbc/Questions.java` says.
async fn asked() -> Vec<String> {
    let database = Database::create(services::postgres()).await;
    let reader_role = unique("metabase");
    let config = Config { reader_role: reader_role.clone(), ..config(&database.url) };
    let mut sink = PostgresSink::new(config, JOURNAL, Part::new("postgres"));
    deliver(&mut sink, &[batch(0, &READINGS)]).await;
    database.await_rollups().await;
    let output = Command::new("java")
        .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m", "-cp"])
        .arg(services::jdbc())
        .arg(root().join("tests/jdbc/Questions.java"))
        .arg(format!("jdbc:{}?user={reader_role}", database.url.replace("postgres@", "")))
        .output()
        .expect("java can be run: tests/services install jdbc");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    said.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn metabase_sees_data_and_nothing_else_and_its_questions_are_answered() {
    let lines = asked().await;
    let expected: Vec<&str> = include_str!("jdbc_expected.txt").lines().collect();
    assert_eq!(lines, expected, "\n{}", lines.join("\n"));
}
