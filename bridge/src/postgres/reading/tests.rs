//! What each rule makes of each kind of payload, as tables.

use tidegate_broker::record::{Properties, Qos, Timestamp};
use tidegate_broker::topic::TopicName;

use super::*;

/// 2026-11-23T10:00:00Z
const RECEIVED_MS: u64 = 1_795_428_000_000;
/// 2025-07-27T14:30:00Z
const THEN_US: i64 = 1_753_626_600_000_000;

fn record<'a>(client: &'a str, topic: &'a str, payload: &'a [u8]) -> Record<'a> {
    Record {
        time: Timestamp(RECEIVED_MS),
        client,
        topic: TopicName::new(topic).unwrap(),
        properties: Properties::NONE,
        payload,
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 1,
    }
}

/// A reading as one line: `device metric = number "text" [unit] {json} <payload> @time`, without what it lacks.
fn shown(reading: &Reading<'_>) -> String {
    let mut line = format!("{} {} =", reading.device, reading.metric);
    if let Some(number) = reading.number {
        line += &format!(" {number:?}");
    }
    if let Some(text) = reading.text {
        line += &format!(" {text:?}");
    }
    if let Some(unit) = reading.unit {
        line += &format!(" [{unit}]");
    }
    if let Some(json) = reading.json {
        line += &format!(" {{{json}}}");
    }
    if let Some(payload) = reading.payload {
        line += &format!(" <{}>", payload.escape_ascii());
    }
    if reading.time_us != i64::try_from(RECEIVED_MS).unwrap() * 1_000 {
        line += &format!(" @{}", reading.time_us);
    }
    line
}

fn readings(client: &str, topic: &str, payload: &[u8]) -> Vec<String> {
    let mut rows = Vec::new();
    Extractor::default().extract(&record(client, topic, payload), |reading| rows.push(shown(reading)));
    rows
}

fn check(topic: &str, payload: &str, expected: &[&str]) {
    assert_eq!(readings("client", topic, payload.as_bytes()), expected, "{topic} {payload}");
}

#[test]
fn the_inputs_that_must_work_give_exactly_their_rows() {
    check(
        "sensors/temperature",
        r#"{"device":"sensor01","temp":23.5,"timestamp":"2025-07-27T14:30:00Z"}"#,
        &["sensor01 temp = 23.5 @1753626600000000"],
    );
    check("sensors/sensor01/temperature", "23.5", &["sensor01 temperature = 23.5"]);
    check("iot/sensors", "Temperature: 22.5°C", &["client sensors = \"Temperature: 22.5°C\""]);
    check("devices/sensor01/status", "online", &["sensor01 status = \"online\""]);
    check(
        "health/device_data",
        r#"{"deviceId":"device-001","timestamp":1753626600,"heartRate":72,"systolic":120,"diastolic":80,
            "oxygenSaturation":98,"bodyTemperature":98.6,"latitude":40.7128,"longitude":-74.006}"#,
        &[
            "device-001 heartRate = 72.0 [bpm] @1753626600000000",
            "device-001 systolic = 120.0 [mmHg] @1753626600000000",
            "device-001 diastolic = 80.0 [mmHg] @1753626600000000",
            "device-001 oxygenSaturation = 98.0 [%] @1753626600000000",
            "device-001 bodyTemperature = 98.6 [°F] @1753626600000000",
            "device-001 latitude = 40.7128 [°] @1753626600000000",
            "device-001 longitude = -74.006 [°] @1753626600000000",
        ],
    );
    check("étage/1/température", "22.5", &["client température = 22.5"]);
    let binary = vec![0xff; 200 << 10];
    let mut rows = 0;
    Extractor::default().extract(&record("c", "a/b", &binary), |reading| {
        assert_eq!((reading.payload, reading.text, reading.number), (Some(&binary[..]), None, None));
        rows += 1;
    });
    assert_eq!(rows, 1);
}

#[test]
fn bare_payloads() {
    for (payload, expected) in [
        ("23.5", "23.5"),
        (" 23.5\r\n", "23.5"),
        ("-0", "-0.0"),
        ("+5", "5.0"),
        (".5", "0.5"),
        ("5.", "5.0"),
        ("1e3", "1000.0"),
        ("-1.5E-3", "-0.0015"),
        ("007", "7.0 \"007\""),
        ("0", "0.0"),
        ("0.25", "0.25"),
        ("9007199254740992", "9007199254740992.0"),
        ("9007199254740993", "9007199254740992.0 \"9007199254740993\""),
        ("123456789012345678901234567890", "1.2345678901234568e29 \"123456789012345678901234567890\""),
        ("23.100000381469727", "23.100000381469727"),
        ("1e400", "\"1e400\""),
        ("-1e400", "\"-1e400\""),
        ("true", "1.0 \"true\""),
        ("false", "0.0 \"false\""),
        ("null", "\"null\""),
        ("NaN", "\"NaN\""),
        ("Infinity", "\"Infinity\""),
        ("inf", "\"inf\""),
        ("23,5", "\"23,5\""),
        ("22.5 °C", "\"22.5 °C\""),
        ("1.2.3", "\"1.2.3\""),
        ("192.168.0.1", "\"192.168.0.1\""),
        ("12:30", "\"12:30\""),
        ("0x10", "\"0x10\""),
        ("1_000", "\"1_000\""),
        ("-", "\"-\""),
        (".", "\".\""),
        ("e5", "\"e5\""),
        ("", "\"\""),
        ("  ", "\"  \""),
        ("online\n", "\"online\\n\""),
        ("a\0b", "\"a\\0b\" <a\\x00b>"),
        ("\0", "\"\\0\" <\\x00>"),
        (r#""online""#, "\"online\""),
        (r#""23.5""#, "23.5 \"23.5\""),
        (r#""caf\u00e9 \ud83d\ude00""#, "\"café 😀\""),
        (r#""a\u0000b""#, "\"a\u{fffd}b\" <\\\"a\\\\u0000b\\\">"),
        (r#""half"#, "\"\\\"half\""),
        (r#""bad \x escape""#, "\"\\\"bad \\\\x escape\\\"\""),
    ] {
        check("sensors/d/m", payload, &[&format!("d m = {expected}")]);
    }
    assert_eq!(readings("c", "sensors/d/m", b"\xff\x00"), ["d m = <\\xff\\x00>"]);
}

#[test]
fn objects_with_a_value() {
    for (payload, expected) in [
        (r#"{"value":23.5}"#, "d m = 23.5"),
        (r#"{"value":23.5,"unit":"\u00b0C"}"#, "d m = 23.5 [°C]"),
        (r#"{"unit":"°C","value":23.5,"ts":1753626600000}"#, "d m = 23.5 [°C] @1753626600000000"),
        (r#"{"value":"on"}"#, "d m = \"on\""),
        (r#"{"value":"23.5","unit":"C"}"#, "d m = 23.5 \"23.5\" [C]"),
        (r#"{"value":true,"unit":"C"}"#, "d m = 1.0 \"true\""),
        (r#"{"value":false}"#, "d m = 0.0 \"false\""),
        (r#"{"value":NaN}"#, "d m = \"NaN\""),
        (r#"{"value":-Infinity}"#, "d m = \"-Infinity\""),
        (r#"{"value":1e999}"#, "d m = \"1e999\""),
        (r#"{"value":null}"#, "d m = {{\"value\":null}}"),
        (r#"{"value":[1,2]}"#, "d m = {{\"value\":[1,2]}}"),
        (r#"{"value":{}}"#, "d m = {{\"value\":{}}}"),
        (r#"{"value":42,"battery":80}"#, "d m = 42.0 {{\"value\":42,\"battery\":80}}"),
        (r#"{"value":42,"device":"d"}"#, "d m = 42.0"),
        (r#"{"value":42,"device":"other"}"#, "d m = 42.0 {{\"value\":42,\"device\":\"other\"}}"),
        (r#"{"value":1,"note":"\u0000"}"#, "d m = 1.0 <{\\\"value\\\":1,\\\"note\\\":\\\"\\\\u0000\\\"}>"),
        (r#"{"value":1,"metric":"x"}"#, "d m = 1.0 {{\"value\":1,\"metric\":\"x\"}}"),
    ] {
        check("sensors/d/m", payload, &[expected]);
    }
    check(
        "health/device_data",
        r#"{"device_id":"w1","reading_type":"blood_pressure","value":{"systolic":120,"diastolic":80},"unit":"mmHg","timestamp":"2025-07-27T14:30:00Z"}"#,
        &["w1 systolic = 120.0 [mmHg] @1753626600000000", "w1 diastolic = 80.0 [mmHg] @1753626600000000"],
    );
    check(
        "rtdemo/in",
        r#"{"sensor_id":"s1","value":42,"ts":"2025-07-27T14:30:00Z"}"#,
        &["s1 in = 42.0 @1753626600000000"],
    );
    check(
        "health/device_data",
        r#"{"device_id":"w1","reading_type":"pulse","value":71}"#,
        &["w1 pulse = 71.0"],
    );
    check("x", r#"{"metric":"","value":1}"#, &["client x = 1.0 {{\"metric\":\"\",\"value\":1}}"]);
    check(
        "tests/contract",
        r#"{"contract_test":true,"marker_id":"ct-0123456789ab","component":"x","ts":1753626600.25,"value":42}"#,
        &[
            "client contract = 42.0 {{\"contract_test\":true,\"marker_id\":\"ct-0123456789ab\",\"component\":\"x\",\"ts\":1753626600.25,\"value\":42}} @1753626600250000",
        ],
    );
}

#[test]
fn objects_whose_fields_are_metrics() {
    for (payload, expected) in [
        (r#"{"temp":23.5,"hum":40}"#, &["d temp = 23.5", "d hum = 40.0"][..]),
        (r#"{"temp":23.5,"unit":"C"}"#, &["d temp = 23.5 [C]"]),
        (r#"{"temp":23.5,"hum":40,"unit":"C"}"#, &["d temp = 23.5", "d hum = 40.0", "d unit = \"C\""]),
        (
            r#"{"temp":{"value":23.5,"unit":"C"},"hum":{"value":40,"unit":"%","min":3}}"#,
            &["d temp = 23.5 [C]", "d hum = 40.0 [%]", "d hum.min = 3.0"],
        ),
        (
            r#"{"a":{"b":{"c":1}},"location":{"latitude":1.5,"longitude":2}}"#,
            &["d a.b.c = 1.0", "d location.latitude = 1.5 [°]", "d location.longitude = 2.0 [°]"],
        ),
        (
            r#"{"occupied":true,"status":"active","batteryLevel":null,"list":[1,{"a":2}],"none":{}}"#,
            &["d occupied = 1.0 \"true\"", "d status = \"active\"", "d list = {[1,{\"a\":2}]}"],
        ),
        (r#"{"temp":"23.5","id":"007x"}"#, &["d temp = 23.5 \"23.5\"", "d id = \"007x\""]),
        (r#"{"temp":NaN,"list":[1]}"#, &["d temp = \"NaN\"", "d list = \"[1]\""]),
        (r#"{"n\u00e9":1,"a\"b":{"c\\d":2}}"#, &["d né = 1.0", "d a\"b.c\\d = 2.0"]),
        (r#"{"":1}"#, &["d m = 1.0"]),
        (r#"{"temp":1,"temp":2}"#, &["d temp = 1.0", "d temp = 2.0"]),
        (r#"{"big":12345678901234567890}"#, &["d big = 1.2345678901234567e19 \"12345678901234567890\""]),
        (r#"{"heartRate":72}"#, &["d heartRate = 72.0"]),
        (r#"{"inner":{"timestamp":5,"device":"x"}}"#, &["d inner.timestamp = 5.0", "d inner.device = \"x\""]),
    ] {
        check("sensors/d/m", payload, expected);
    }
    for payload in ["{}", r#"{"a":null}"#, r#"{"deviceId":"d"}"#, r#"{"ts":1753626600}"#, r#"{"a":{}}"#] {
        let rows = readings("c", "sensors/d/m", payload.as_bytes());
        assert_eq!(rows.len(), 1, "{payload}");
        assert!(rows[0].starts_with(&format!("d m = {{{payload}}}")), "{rows:?}");
    }
}

#[test]
fn arrays() {
    check(
        "sensors/d/m",
        r#"[{"temp":1,"ts":1753626600},{"temp":2,"hum":3}]"#,
        &["d temp = 1.0 @1753626600000000", "d temp = 2.0", "d hum = 3.0"],
    );
    check("sensors/d/m", "[1,2.5,\"x\"]", &["d m = {[1,2.5,\"x\"]}"]);
    check("sensors/d/m", " [ ] ", &["d m = {[ ]}"]);
    check("sensors/d/m", r#"[{"a":1},2]"#, &[r#"d m = {[{"a":1},2]}"#]);
    check("sensors/d/m", r#"["\u0000"]"#, &["d m = \"[\\\"\\\\u0000\\\"]\""]);
    check("sensors/d/m", "[1", &["d m = \"[1\""]);
    check("sensors/d/m", "[1] x", &["d m = \"[1] x\""]);
}

#[test]
fn what_is_no_json_is_text() {
    for payload in [
        "{",
        "{]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1}}",
        "{\"a\":1} x",
        "{a:1}",
        "{'a':1}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":1e}",
        "{\"a\":tru}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\n\"}",
        "{\"a\":+1}",
        "{\"a\":-}",
        "{\"a\":\"",
        "{\"a\":\"\\",
        "{\"a\":[1,]}",
        "{\"a\":{\"b\":1}",
        "{\"a\" 1}",
        "{,}",
    ] {
        check("sensors/d/m", payload, &[&format!("d m = {payload:?}")]);
    }
}

#[test]
fn devices_come_from_the_topic_the_body_or_the_client() {
    for (topic, body, device) in [
        ("sensors/t1/temperature", r#"{"device":"b1","x":1}"#, "t1"),
        ("sensors/t1/room/temperature", "1", "t1"),
        ("devices/t1/status", r#"{"deviceId":"b1","x":1}"#, "t1"),
        ("commands/t1/actuate", "1", "t1"),
        ("sensors/temperature", "1", "client"),
        ("sensors/temperature", r#"{"device":"b1","x":1}"#, "b1"),
        ("sensors/temperature", r#"{"deviceId":"b1","x":1}"#, "b1"),
        ("sensors/temperature", r#"{"x":1,"device_id":"b1"}"#, "b1"),
        ("sensors/temperature", r#"{"sensor_id":"b\u0031","x":1}"#, "b1"),
        ("sensors/temperature", r#"{"sensorId":17,"x":1}"#, "17"),
        ("sensors/temperature", r#"{"device":"","sensorId":"b1","x":1}"#, "b1"),
        ("sensors/temperature", r#"{"device":null,"x":1}"#, "client"),
        ("sensors//temperature", r#"{"device":"b1","x":1}"#, "b1"),
        ("sensors/t1/", "1", "client"),
        ("alerts/critical", r#"{"device":"b1","x":1}"#, "b1"),
        ("a/b/c", r#"{"device":"b1","x":1}"#, "b1"),
        ("a/b/c", "text", "client"),
    ] {
        let rows = readings("client", topic, body.as_bytes());
        assert!(rows[0].starts_with(&format!("{device} ")), "{topic} {body}: {rows:?}");
    }
    assert_eq!(readings("", "a", b"1"), [format!("{DEVICE_UNKNOWN} a = 1.0")]);
    check(
        "sensors/gateway/data",
        r#"{"device":"b1","x":1}"#,
        &["gateway device = \"b1\"", "gateway x = 1.0"],
    );
}

#[test]
fn metrics_come_from_the_field_or_the_topic() {
    for (topic, metric) in [
        ("sensors/d/temperature", "temperature"),
        ("sensors/d/room/temperature", "room/temperature"),
        ("devices/d/status", "status"),
        ("commands/d/actuate", "command.actuate"),
        ("commands/actuate", "command.actuate"),
        ("alerts/critical", "alert.critical"),
        ("alerts/critical/fire", "alert.critical/fire"),
        ("sensors/temperature", "temperature"),
        ("temperature", "temperature"),
        ("/a/", "a"),
        ("/", "/"),
        ("parking/sensors/lot/bay/occupancy", "occupancy"),
    ] {
        let rows = readings("client", topic, b"1");
        assert!(rows[0].ends_with(&format!(" {metric} = 1.0")), "{topic}: {rows:?}");
    }
    check("commands/d/set", r#"{"on":true}"#, &["d command.set.on = 1.0 \"true\""]);
    check("commands/d/set", r#"{"value":5}"#, &["d command.set = 5.0"]);
    check("alerts/high", r#"{"device":"d","a":{"b":1}}"#, &["d alert.high.a.b = 1.0"]);
}

#[test]
fn a_time_that_cannot_be_is_the_time_of_receipt() {
    for stamp in ["0", "12345", "-1", "\"\"", "\"soon\"", "null", "true", "1e300", "\"1969-07-20T00:00:00Z\""]
    {
        check("sensors/d/m", &format!("{{\"value\":1,\"timestamp\":{stamp}}}"), &["d m = 1.0"]);
    }
    for stamp in [
        "1753626600",
        "1753626600000",
        "1753626600.0",
        "\"1753626600\"",
        "\"2025-07-27T16:30:00+02:00\"",
        "\"2025-07-27T14:30:00\"",
    ] {
        for name in ["timestamp", "ts", "time", "Time"] {
            let rows = readings("c", "sensors/d/m", format!("{{\"{name}\":{stamp},\"value\":1}}").as_bytes());
            assert_eq!(rows, [format!("d m = 1.0 @{THEN_US}")], "{name} {stamp}");
        }
    }
    check(
        "sensors/d/m",
        r#"{"timestamp":"?","ts":1753626600,"value":1}"#,
        &[&format!("d m = 1.0 @{THEN_US}")],
    );
}

#[test]
fn every_limit_ends_in_one_reading_with_everything_in_it() {
    let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    assert_eq!(readings("c", "sensors/d/m", deep(60).as_bytes()).len(), 1);
    assert!(readings("c", "sensors/d/m", deep(60).as_bytes())[0].ends_with(".a = 1.0"));
    check("sensors/d/m", &deep(10_000), &[&format!("d m = {:?}", deep(10_000))]);
    let arrays = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    check("sensors/d/m", &arrays, &[&format!("d m = {arrays:?}")]);

    let fields = |count: usize| {
        let fields: Vec<String> = (0..count).map(|index| format!("\"f{index}\":{index}")).collect();
        format!("{{{}}}", fields.join(","))
    };
    assert_eq!(readings("c", "sensors/d/m", fields(LEAVES_MAX).as_bytes()).len(), LEAVES_MAX);
    let many = fields(LEAVES_MAX + 1);
    check("sensors/d/m", &many, &[&format!("d m = {{{many}}}")]);

    let long_client = "c".repeat(65_000);
    let rows = readings(&long_client, "a", fields(500).as_bytes());
    assert_eq!(rows.len(), 1, "500 times 65,000 bytes are not repeated");

    let long = "é".repeat(2_000);
    let rows = readings(&long, "a", format!("{{\"{long}\":{{\"{long}\":1}}}}").as_bytes());
    let cut = "é".repeat(NAME_BYTES_MAX / 2);
    assert_eq!(rows, [format!("{cut} {cut} = 1.0")]);
}

#[test]
fn no_bytes_make_it_panic_and_every_record_has_a_reading() {
    let seeds = [
        r#"{"device":"s","temp":23.5,"timestamp":"2025-07-27T14:30:00.5Z","a":{"value":[1,{"b":null}],"unit":"\u00b0\ud83d\ude00"}}"#,
        r#"[{"value":{"x":-1.5e-3}},{"ts":1753626600,"metric":"m","value":NaN}]"#,
        "-12345678901234567890.5e+10",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut extractor = Extractor::default();
    for round in 0..60_000 {
        let mut payload = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..=random(4) {
            let at = random(payload.len());
            match random(4) {
                0 => payload.truncate(at + 1),
                1 => payload[at] ^= 1 << random(8),
                2 => payload[at] = b"{}[]\",:\\u0e-"[random(12)],
                _ => payload.insert(at, b"{}[]\",:\\u0e-"[random(12)]),
            }
        }
        let mut rows = 0;
        extractor.extract(&record("c", "health/x", &payload), |reading| {
            assert!(reading.number.is_none_or(f64::is_finite));
            if let Some(json) = reading.json {
                serde_json::from_str::<serde_json::Value>(json)
                    .unwrap_or_else(|error| panic!("{error}: {json} of {}", payload.escape_ascii()));
            }
            rows += 1;
        });
        assert!(rows >= 1, "{}", payload.escape_ascii());
    }
}

#[test]
fn the_scanner_and_serde_json_agree_on_what_is_json() {
    let pieces = [
        "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\\n\"", "1", "-0.5e1", "true", "null", " ", "01", "\"",
        "\\",
    ];
    let mut state = 7_u64;
    let mut objects = 0;
    for _ in 0..200_000 {
        let mut text = String::from("{\"k\":");
        loop {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = usize::try_from(state >> 33).unwrap() % (pieces.len() + 2);
            match pieces.get(pick) {
                Some(piece) => text.push_str(piece),
                None => break,
            }
        }
        text.push('}');
        let is_json = Document::default().scan(&text, 100) != Scan::NotJson;
        let expected = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        assert_eq!(is_json, expected, "{text}");
        objects += u32::from(expected);
    }
    assert!(objects > 100, "the pieces make enough of both");
}
