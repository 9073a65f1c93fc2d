//! What devices of the platform publish, through the shipped program into tables.

use crate::support::mosquitto::{self, Version};
use crate::support::postgres::Database;
use crate::support::services;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, root};

/// By the shipped `deploy/health.toml`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_health_device_publishes_becomes_a_reading_per_metric() {
    let database = Database::create(services::postgres()).await;
    let configuration = root().join("deploy/health.toml");
    let settings = Settings::default()
        .postgres(&database.url)
        .set("TIDEGATE_CONFIG", configuration.to_str().expect("our folders are text"));
    let tidegate = Tidegate::start(settings).await;
    let publish = |client: &str, payload: &str| {
        let more = ["-i", client];
        mosquitto::publish(tidegate.mqtt, Version::V311, 1, "health/device_data", payload.as_bytes(), &more);
    };
    publish(
        "gateway-1",
        r#"{"deviceId":"device-001","timestamp":1753626600,"heartRate":72,"systolic":120,"diastolic":80,
            "oxygenSaturation":98,"bodyTemperature":98.6,"latitude":40.7128,"longitude":-74.006}"#,
    );
    // As the platform's generator of samples makes it: without a place. No device, no time: the publisher, and now.
    publish(
        "gateway-1",
        r#"{"deviceId":"device-002","timestamp":1753626601,"heartRate":131,"bodyTemperature":101}"#,
    );
    publish("gateway-2", r#"{"heartRate":48}"#);
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    let lines = "SELECT concat_ws('|', client, device, metric, number, unit, to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))
        FROM tidegate.readings WHERE topic = 'health/device_data' AND device LIKE 'device-%' ORDER BY position, item";
    let lines: Vec<String> = database.query(lines, &[]).await.iter().map(|row| row.get(0)).collect();
    let (first, second) = ("2025-07-27 14:30:00", "2025-07-27 14:30:01");
    let line =
        |device: &str, reading: &str, time: &str| format!("gateway-1|device-{device}|{reading}|{time}");
    let expected = [
        line("001", "heartRate|72|bpm", first),
        line("001", "systolic|120|mmHg", first),
        line("001", "diastolic|80|mmHg", first),
        line("001", "oxygenSaturation|98|%", first),
        line("001", "bodyTemperature|98.6|°F", first),
        line("001", "latitude|40.7128|°", first),
        line("001", "longitude|-74.006|°", first),
        line("002", "heartRate|131|bpm", second),
        line("002", "bodyTemperature|101|°F", second),
    ];
    assert_eq!(lines, expected);
    let unnamed = "SELECT count(*) FROM tidegate.readings WHERE device = 'gateway-2' AND metric = 'heartRate'
        AND number = 48 AND time = received AND now() - received BETWEEN '0 s' AND '1 h'";
    assert_eq!(database.count(unnamed).await, Some(1));

    database.await_rollups().await;
    let hour = "SELECT sum(sum)::bigint FROM tidegate.readings_per_hour WHERE metric = 'heartRate'";
    assert_eq!(database.count(hour).await, Some(72 + 131 + 48));
    let sink = tidegate.sink("postgres").await;
    assert_eq!((sink.state.as_str(), sink.rejected), ("up", 0), "{sink:?}");
}
