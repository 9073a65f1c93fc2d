//! What lies in the tables.

use tidegate::pump::Sink;

use super::{batch, deliver, numbered, sink};
use crate::support::postgres::Database;
use crate::support::services;

/// Every reading as one line, in the order of the records.
const LINES: &str = "SELECT concat_ws('|', position, item, device, metric, number, text, unit, json, \
    encode(payload, 'escape'), topic, client, to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS'), \
    to_char(received AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')) \
    FROM tidegate.readings ORDER BY position, item";

#[tokio::test]
async fn real_inputs_become_exactly_their_rows() {
    let database = Database::create(services::postgres()).await;
    let health = r#"{"deviceId":"device-001","timestamp":1753626600,"heartRate":72,"systolic":120,"diastolic":80,
        "oxygenSaturation":98,"bodyTemperature":98.6,"latitude":40.7128,"longitude":-74.006}"#;
    let records = [
        ("sensors/temperature", r#"{"device":"sensor01","temp":23.5,"timestamp":"2025-07-27T14:30:00Z"}"#),
        ("sensors/sensor01/temperature", "23.5"),
        ("iot/sensors", "Temperature: 22.5°C"),
        ("devices/sensor01/status", "online"),
        ("health/device_data", health),
        ("étage/1/température", "[1,2]"),
    ];
    deliver(&mut sink(&database.url), &[batch(0, &records)]).await;
    let rows = database.query(LINES, &[]).await;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let now = "2001-02-03 10:00:00.000";
    let then = "2025-07-27 14:30:00.000";
    let of_health =
        |item: u32, rest: &str| format!("4|{item}|device-001|{rest}|health/device_data|client|{then}|{now}");
    assert_eq!(
        lines,
        [
            format!("0|0|sensor01|temp|23.5|sensors/temperature|client|{then}|{now}"),
            format!("1|0|sensor01|temperature|23.5|sensors/sensor01/temperature|client|{now}|{now}"),
            format!("2|0|client|sensors|Temperature: 22.5°C|iot/sensors|client|{now}|{now}"),
            format!("3|0|sensor01|status|online|devices/sensor01/status|client|{now}|{now}"),
            of_health(0, "heartRate|72|bpm"),
            of_health(1, "systolic|120|mmHg"),
            of_health(2, "diastolic|80|mmHg"),
            of_health(3, "oxygenSaturation|98|%"),
            of_health(4, "bodyTemperature|98.6|°F"),
            of_health(5, "latitude|40.7128|°"),
            of_health(6, "longitude|-74.006|°"),
            format!("5|0|client|température|[1, 2]|étage/1/température|client|{now}|{now}"),
        ]
    );
}

#[tokio::test]
async fn a_large_binary_payload_is_kept_byte_for_byte() {
    let database = Database::create(services::postgres()).await;
    let payload: Vec<u8> = (0..200 << 10).map(|index: u32| (index % 251) as u8).collect();
    deliver(&mut sink(&database.url), &[batch(0, &[("camera/1", &payload)])]).await;
    let rows = database.query("SELECT payload, text, number FROM tidegate.readings", &[]).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, Vec<u8>>(0), payload);
    assert_eq!((rows[0].get::<_, Option<String>>(1), rows[0].get::<_, Option<f64>>(2)), (None, None));
}

/// The server has its own ideas of text, JSON, numbers, times and index sizes; none may ever refuse a row.
#[tokio::test]
async fn no_payload_is_refused_by_the_server() {
    let database = Database::create(services::postgres()).await;
    let long = "é".repeat(30_000);
    let deep = format!("{}{}", "[".repeat(63), "]".repeat(63));
    let mut payloads: Vec<Vec<u8>> = [
        "",
        "\0",
        "a\0b",
        "NaN",
        "1e400",
        "-0",
        "{}",
        "[]",
        "null",
        r#"{"a":1e400,"b":[1e400]}"#,
        r#"{"value":1,"x":1e999999999}"#,
        r#"{"a":[1e-99999]}"#,
        r#"[{"a":1e131073}, 1]"#,
        r#"{"value":1,"x":"\u0000"}"#,
        r#"{"a\u0000b":1}"#,
        r#"["\ud800"]"#,
        r#"["\udc00\ud800"]"#,
        r#"["\ud83d\ude00"]"#,
        r#"{"a":NaN,"b":[NaN]}"#,
        r#"{"timestamp":9e18,"a":1}"#,
        r#"{"timestamp":"9999-12-31T23:59:59Z","a":1}"#,
        r#"{"timestamp":-1,"a":1}"#,
        &deep,
        &format!(r#"{{"{long}":1,"device":"{long}","unit":"{long}"}}"#),
        &format!(r#"["{long}"]"#),
        &format!("[{}1]", "1,".repeat(100_000)),
        &format!("[{}]", "9".repeat(5_000)),
        &"[".repeat(4_000_000),
        &format!("{}1{}", r#"{"a":"#.repeat(200_000), "}".repeat(200_000)),
        r#"{"timestamp":-9e18,"a":1}"#,
        r#"{"timestamp":-9223372036854775808,"a":1}"#,
        r#"{"timestamp":"-9999-01-01T00:00:00Z","a":1}"#,
        r#"{"timestamp":"0000-01-01T00:00:00Z","a":1}"#,
        r#"{"timestamp":1e30,"a":1}"#,
        r#"{"deviceId":"a\u0000b","a":1.7976931348623157e308,"b":5e-324}"#,
    ]
    .iter()
    .map(|payload| payload.as_bytes().to_vec())
    .collect();
    payloads.push(vec![0xff; 70_000]);
    let seeds = [
        r#"{"device":"s","temp":23.5,"ts":"2025-07-27T14:30:00Z","a":{"value":[1,{"b":null}],"unit":"\u00b0"}}"#,
        r#"[{"value":{"x":-1.5e-3}},{"ts":1753626600,"metric":"m","value":"\ud83d\ude00"}, 7]"#,
    ];
    let mut random = crate::support::random::Random::printed("no_payload_is_refused_by_the_server");
    for round in 0..4_000_usize {
        let mut payload = seeds[round % 2].as_bytes().to_vec();
        for _ in 0..=random.within(0..4) {
            let at = random.within(0..payload.len() as u64) as usize;
            match random.within(0..3) {
                0 => payload[at] = random.within(0..256) as u8,
                1 => payload[at] = b"{}[]\",:\\u0e-d8"[random.within(0..14) as usize],
                _ => payload.insert(at, b"{}[]\",:\\u0e-d8"[random.within(0..14) as usize]),
            }
        }
        payloads.push(payload);
    }
    let records: Vec<_> = payloads.iter().map(|payload| ("sensors/temperature", payload)).collect();
    let long_topic = format!("sensors/{}/x", long.get(..60_000).unwrap());
    deliver(
        &mut sink(&database.url),
        &[batch(0, &records), batch(records.len() as u64, &[(&long_topic, "1")])],
    )
    .await;
    let refused = database.query("SELECT position, reason FROM tidegate_internal.quarantine", &[]).await;
    for row in &refused {
        let (position, reason): (i64, String) = (row.get(0), row.get(1));
        let payload = payloads
            .get(usize::try_from(position).unwrap())
            .map(|payload| payload.escape_ascii().to_string());
        eprintln!("{position}: {reason}: {payload:.300?}");
    }
    assert!(refused.is_empty(), "{} records were refused", refused.len());
    let stored = database.count("SELECT count(DISTINCT position) FROM tidegate.readings").await;
    assert_eq!(stored, Some(records.len() as i64 + 1), "every record has a row");
}

/// The latest by the time measured, on whatever day that is, and in whatever order readings come.
#[tokio::test]
async fn the_latest_reading_is_found_on_its_day() {
    const DAY_S: u64 = 86_400;
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let at = |second: u64, value: u64| ("sensors/a/t", format!(r#"{{"value":{value},"ts":{second}}}"#));
    let last_day = 7_289_000_000;
    let mut base = 0;
    for (records, latest) in [
        (vec![at(now - 3 * DAY_S, 1)], 1.0),
        // Late ones change nothing, neither together with a later one.
        (vec![at(now - 5 * DAY_S, 2)], 1.0),
        (vec![at(now - DAY_S, 3), at(now - 4 * DAY_S, 4)], 3.0),
        // Of the same time the one received last; of a day without a partition.
        (vec![at(now - DAY_S, 5)], 5.0),
        (vec![at(last_day, 6)], 6.0),
        (vec![at(now, 7)], 6.0),
    ] {
        let batch = batch(base, &records);
        base += records.len() as u64;
        let mut stored = sink.connect().await.unwrap();
        assert_eq!(stored.take().unwrap_or_default(), batch.base());
        sink.write(batch).await.unwrap();
        sink.confirmed().await.unwrap();
        let rows =
            database.query("SELECT number FROM tidegate.latest_readings WHERE device = 'a'", &[]).await;
        let found: Vec<f64> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, [latest]);
    }
    // One that is probed once per series, whatever the number of partitions.
    let plan = database
        .query("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT * FROM tidegate.latest_readings", &[])
        .await;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let of_readings = plan.iter().filter(|line| line.contains(" on readings_"));
    let (idle, probed): (Vec<_>, Vec<_>) = of_readings.partition(|line| line.contains("never executed"));
    assert!(idle.len() > 7 && probed.len() == 1, "{plan:#?}");
}

#[tokio::test]
async fn the_views_tell_the_latest_values_and_who_is_online() {
    let database = Database::create(services::postgres()).await;
    let at = |seconds: u64, value: &str| format!(r#"{{"value":{value},"ts":{}}}"#, 981_194_400 + seconds);
    let records = [
        ("sensors/a/temperature", at(20, "2")),
        ("sensors/a/temperature", at(10, "1")),
        ("sensors/a/humidity", at(1, "40")),
        ("sensors/b/temperature", at(5, "7")),
        ("devices/a/status", "offline".to_owned()),
        ("devices/a/status", "online\n".to_owned()),
        ("commands/a/temperature", "99".to_owned()),
        ("commands/c/reboot", "now".to_owned()),
    ];
    deliver(&mut sink(&database.url), &[batch(0, &records)]).await;
    let latest = database
        .query(
            "SELECT concat_ws(' ', device, metric, number, btrim(text, E'\\n')) FROM tidegate.latest_readings ORDER BY device, metric",
            &[],
        )
        .await;
    let latest: Vec<String> = latest.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        latest,
        [
            "a command.temperature 99",
            "a humidity 40",
            "a status online",
            "a temperature 2",
            "b temperature 7",
            "c command.reboot now",
        ]
    );
    let status = database
        .query(
            "SELECT concat_ws(' ', device, coalesce(status, '-'), metrics) FROM tidegate.device_status ORDER BY device",
            &[],
        )
        .await;
    let status: Vec<String> = status.iter().map(|row| row.get(0)).collect();
    assert_eq!(status, ["a online 2", "b - 1"]);
}

#[tokio::test]
async fn days_have_partitions_and_take_what_the_default_partition_held_of_them() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let records =
        [("sensors/a/t", r#"{"value":1,"ts":"1999-07-27T23:59:59.999999Z"}"#), ("sensors/a/t", "2")];
    deliver(&mut sink, &[batch(0, &records)]).await;
    let held = "SELECT count(*) FROM tidegate_internal.readings_default";
    assert_eq!(database.count(held).await, Some(2), "neither day has a partition: both are far from today");
    let make = "SELECT tidegate_internal.make_partitions('1999-07-26', '1999-07-28')";
    let made = database.query(make, &[]).await;
    assert_eq!(made[0].get::<_, i32>(0), 3);
    let made = database.query(make, &[]).await;
    assert_eq!(made[0].get::<_, i32>(0), 0, "made once");
    assert_eq!(database.count(held).await, Some(1));
    assert_eq!(database.count("SELECT count(*) FROM tidegate_internal.readings_1999_07_27").await, Some(1));
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(2));
    let ahead = "SELECT count(*) FROM generate_series(0, 7) d WHERE to_regclass('tidegate_internal.readings_' || \
        to_char((now() AT TIME ZONE 'UTC')::date + d::int, 'YYYY_MM_DD')) IS NOT NULL";
    assert_eq!(database.count(ahead).await, Some(8), "today and a week ahead have partitions");
}

#[tokio::test]
async fn late_readings_make_the_partitions_of_their_days() {
    let database = Database::create(services::postgres()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days_ago = |days: u64| ("sensors/a/t", format!(r#"{{"value":{days},"ts":{}}}"#, now - days * 86_400));
    let records = [days_ago(0), days_ago(3), days_ago(300), days_ago(3), days_ago(4_000)];
    deliver(&mut sink(&database.url), &[batch(0, &records)]).await;
    let held = "SELECT count(*) FROM tidegate_internal.readings_default";
    assert_eq!(database.count(held).await, Some(1), "only the oldest is too old");
    let partitions = database
        .query("SELECT DISTINCT tableoid::regclass::text FROM tidegate.readings WHERE number < 4000", &[])
        .await;
    assert_eq!(partitions.len(), 3, "{partitions:?}");
}

#[tokio::test]
async fn whoever_reads_for_long_holds_nothing_up() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    deliver(&mut sink, &numbered(1, 10)).await;
    database.query("BEGIN", &[]).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(10));
    // Its locks keep the partition from being made; the reading goes to the default partition.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let late = [("sensors/a/t", format!(r#"{{"value":1,"ts":{}}}"#, now - 20 * 86_400))];
    deliver(&mut sink, &[batch(10, &late)]).await;
    database.query("COMMIT", &[]).await;
    let held = "SELECT count(*) FROM tidegate_internal.readings_default WHERE position = 10";
    assert_eq!(database.count(held).await, Some(1));
}

#[tokio::test]
async fn many_batches_share_a_transaction_and_keep_their_order() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = numbered(300, 10);
    assert_eq!(deliver(&mut sink, &batches).await, 1);
    let transactions =
        database.count("SELECT count(DISTINCT xmin::text) FROM tidegate_internal.readings_default").await;
    assert!(transactions.is_some_and(|transactions| transactions < 300), "{transactions:?}");
    let in_order = "SELECT count(*) FROM tidegate.readings WHERE number = position";
    assert_eq!(database.count(in_order).await, Some(3_000));
    let cursor = "SELECT position FROM tidegate_internal.cursor";
    assert_eq!(database.count(cursor).await, Some(3_000));
    let disordered = "SELECT count(*) FROM (SELECT position, lag(position) OVER (ORDER BY ctid) AS before \
        FROM tidegate_internal.readings_default) r WHERE before > position";
    assert_eq!(database.count(disordered).await, Some(0), "rows lie in the order of the journal");
    assert!(sink.connect().await.is_ok_and(|position| position.is_some_and(|position| position.0 == 3_000)));
}
