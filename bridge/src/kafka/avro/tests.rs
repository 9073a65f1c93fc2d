//! What is encoded is read again by the Avro project's own library, which knows nothing of ours.

use apache_avro::Schema as Other;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use serde_json::json;

use super::*;

pub(super) const HEALTH_DATA: &str = include_str!("../../../../deploy/schemas/HealthData.avsc");

fn encoded(schema: &str, payload: &str) -> Result<Vec<u8>, String> {
    let schema = Schema::parse(schema, &[]).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let mut out = b"before".to_vec();
    let result = schema.encode(payload.as_bytes(), &mut out);
    if result.is_err() {
        assert_eq!(out, b"before", "a misfit leaves nothing behind");
    }
    result.map_err(|misfit| misfit.to_string()).map(|()| out.split_off(6))
}

/// Reads all of `bytes` as one value of `schema`.
fn decoded(schema: &str, bytes: &[u8]) -> Value {
    let schema = Other::parse_str(schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let mut rest = bytes;
    let value = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut rest);
    let value = value.unwrap_or_else(|error| panic!("{schema:?}: {bytes:02x?}: {error}"));
    assert_eq!(rest, b"", "all is read");
    value
}

fn arrives(schema: &str, payload: &str) -> Value {
    let bytes = encoded(schema, payload).unwrap_or_else(|misfit| panic!("{schema}: {payload}: {misfit}"));
    decoded(schema, &bytes)
}

fn misfit(schema: &str, payload: &str) -> String {
    encoded(schema, payload).expect_err(payload)
}

fn record(fields: &[(&str, Value)]) -> Value {
    Value::Record(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

#[test]
fn a_health_reading_becomes_the_bytes_that_the_specification_says() {
    let payload = r#"{"deviceId": "d1", "timestamp": 1753626600, "heartRate": 72, "systolic": 120, "diastolic": 80,
        "oxygenSaturation": 98, "bodyTemperature": 98.6, "latitude": 37, "longitude": -122.4194, "more": [{}]}"#;
    let mut expected = vec![0x04, b'd', b'1'];
    expected.extend([0xd0, 0xdf, 0xb1, 0x88, 0x0d]);
    expected.extend([0x90, 0x01, 0xf0, 0x01, 0xa0, 0x01, 0xc4, 0x01]);
    for number in [98.6_f64, 37.0, -122.4194] {
        expected.extend(number.to_le_bytes());
    }
    assert_eq!(encoded(HEALTH_DATA, payload).unwrap(), expected);
    let read = decoded(HEALTH_DATA, &expected);
    assert_eq!(
        read,
        record(&[
            ("deviceId", Value::String("d1".into())),
            ("timestamp", Value::Long(1_753_626_600)),
            ("heartRate", Value::Int(72)),
            ("systolic", Value::Int(120)),
            ("diastolic", Value::Int(80)),
            ("oxygenSaturation", Value::Int(98)),
            ("bodyTemperature", Value::Double(98.6)),
            ("latitude", Value::Double(37.0)),
            ("longitude", Value::Double(-122.4194)),
        ])
    );
}

#[test]
fn what_does_not_fit_is_told_with_its_place() {
    let full = json!({"deviceId": "d", "timestamp": 1, "heartRate": 1, "systolic": 1, "diastolic": 1,
        "oxygenSaturation": 1, "bodyTemperature": 1, "latitude": 1, "longitude": 1});
    let check = |field: &str, value: Option<serde_json::Value>, expected: &str| {
        let mut changed = full.clone();
        match value {
            Some(value) => changed[field] = value,
            None => _ = changed.as_object_mut().unwrap().remove(field),
        }
        assert_eq!(misfit(HEALTH_DATA, &changed.to_string()), expected);
    };
    check("heartRate", Some(json!("fast")), r#"/heartRate: expected int, found "fast""#);
    check("latitude", None, "/latitude: missing and the schema has no default");
    check("deviceId", Some(json!(7)), "/deviceId: expected string, found 7");
    check("deviceId", Some(json!(null)), "/deviceId: expected string, found null");
    check(
        "heartRate",
        Some(json!(72.5)),
        "/heartRate: expected int, found 72.5, which has too many decimal places",
    );
    check(
        "heartRate",
        Some(json!(2_147_483_648_u32)),
        "/heartRate: expected int, found 2147483648, which is out of range",
    );
    check("longitude", Some(json!([1])), "/longitude: expected double, found an array");
    check("longitude", Some(json!(true)), "/longitude: expected double, found true");
    let long = format!("\"{}...", "ä".repeat(39));
    check("heartRate", Some(json!("ä".repeat(1_000))), &format!("/heartRate: expected int, found {long}"));

    let check = |payload: &str, expected: &str| assert_eq!(misfit(HEALTH_DATA, payload), expected);
    check("", "the payload: no JSON, as it is empty");
    check("22.5", "the payload: expected the record com.example.HealthData, found 22.5");
    check("[]", "the payload: expected the record com.example.HealthData, found an array");
    check("Temperature: 22.5°C", "the payload: no JSON: expected value at line 1 column 1");
    check(r#"{"deviceId": "d"} x"#, "the payload: no JSON: trailing characters at line 1 column 19");
    check(r#"{"deviceId": NaN}"#, "the payload: no JSON: expected value at line 1 column 14");
    check(r#"{"deviceId": "d""#, "the payload: no JSON: EOF while parsing an object at line 1 column 16");
    let schema = Schema::parse(HEALTH_DATA, &[]).unwrap();
    let told = schema.encode(b"{\"a\": \"\xff\"}", &mut Vec::new()).unwrap_err().to_string();
    assert!(told.starts_with("the payload: no JSON, as it is no UTF-8: "), "{told}");

    let nested = r#"{"type": "record", "name": "R", "fields": [{"name": "a/b~", "type":
        {"type": "array", "items": {"type": "map", "values": "int"}}}]}"#;
    assert_eq!(
        misfit(nested, r#"{"a/b~": [{}, {"x": 1, "y": "2"}]}"#),
        r#"/a~1b~0/1/y: expected int, found "2""#
    );
}

#[test]
fn every_type_takes_what_is_said_of_it() {
    let check = |schema: &str, payload: &str, expected: Value| {
        assert_eq!(arrives(schema, payload), expected, "{schema}: {payload}");
    };
    let refuses = |schema: &str, payload: &str, expected: &str| {
        assert_eq!(misfit(schema, payload), format!("the payload: {expected}"), "{schema}: {payload}");
    };
    check(r#""null""#, " null\n", Value::Null);
    check(r#""boolean""#, "true", Value::Boolean(true));
    check(r#""boolean""#, "false", Value::Boolean(false));
    refuses(r#""boolean""#, "1", "expected boolean, found 1");
    check(r#""int""#, "-2147483648", Value::Int(i32::MIN));
    check(r#""int""#, "7.20e1", Value::Int(72));
    refuses(r#""int""#, "true", "expected int, found true");
    check(r#""long""#, "9223372036854775807", Value::Long(i64::MAX));
    check(r#""long""#, "-9223372036854775808.0", Value::Long(i64::MIN));
    refuses(
        r#""long""#,
        "9223372036854775808",
        "expected long, found 9223372036854775808, which is out of range",
    );
    refuses(r#""long""#, "\"1\"", "expected long, found \"1\"");
    check(r#""float""#, "16777217", Value::Float(16_777_216.0));
    refuses(r#""float""#, "1e39", "expected float, found 1e39, which is out of range");
    check(r#""double""#, "0.1", Value::Double(0.1));
    check(r#""double""#, "2.2250738585072011e-308", Value::Double(2.225_073_858_507_201e-308));
    refuses(r#""double""#, "-1e309", "expected double, found -1e309, which is out of range");
    check(r#""string""#, r#""é\n😀""#, Value::String("é\n😀".into()));
    refuses(
        r#""string""#,
        r#""\ud83d""#,
        r#"expected string, found "\ud83d", in which an escape is half a character"#,
    );
    check(r#""bytes""#, r#""\u0000ÿa""#, Value::Bytes(vec![0, 0xff, b'a']));
    refuses(
        r#""bytes""#,
        r#""€""#,
        r#"expected bytes as characters up to U+00FF, found "€", which has others"#,
    );
    let fixed = r#"{"type": "fixed", "name": "a.F", "size": 2}"#;
    check(fixed, r#""ÿ\u0001""#, Value::Fixed(2, vec![0xff, 1]));
    refuses(fixed, r#""a""#, r#"expected the fixed a.F of 2 bytes, found "a", which has another length"#);
    let symbols = r#"{"type": "enum", "name": "E", "symbols": ["ON", "OFF"]}"#;
    check(symbols, r#""\u004fFF""#, Value::Enum(1, "OFF".into()));
    refuses(symbols, r#""off""#, r#"expected a symbol of E (ON, OFF), found "off""#);
    let array = r#"{"type": "array", "items": "int"}"#;
    check(array, "[]", Value::Array(vec![]));
    for count in [1, 63, 64, 8_191, 8_192] {
        let numbers: Vec<i32> = (0..count).collect();
        let expected = Value::Array(numbers.iter().copied().map(Value::Int).collect());
        check(array, &serde_json::to_string(&numbers).unwrap(), expected);
    }
    let map = r#"{"type": "map", "values": ["null", "int"]}"#;
    let int = |number| Value::Union(1, Box::new(Value::Int(number)));
    let expected = [("a".to_owned(), int(1)), ("é".to_owned(), Value::Union(0, Box::new(Value::Null)))];
    check(map, r#"{"a": 1, "\u00e9": null}"#, Value::Map(expected.into_iter().collect()));
    check(map, "{}", Value::Map([].into()));
}

#[test]
fn a_missing_field_gets_its_default_or_null() {
    let schema = r#"{"type": "record", "name": "R", "namespace": "n", "fields": [
        {"name": "source", "type": "string", "default": "ping-generator"},
        {"name": "maybe", "type": ["null", "int"]},
        {"name": "number", "type": ["int", "null"], "default": 7},
        {"name": "inner", "type": {"type": "record", "name": "I", "fields": [
            {"name": "bytes", "type": "bytes", "default": "\u00ff"},
            {"name": "list", "type": {"type": "array", "items": "I2"}, "default": []}
        ]}, "default": {}},
        {"name": "again", "type": "I", "default": {"bytes": "a"}}
    ]}"#;
    let schema = &schema.replace("\"I2\"", "\"long\"");
    let inner = |byte| record(&[("bytes", Value::Bytes(vec![byte])), ("list", Value::Array(vec![]))]);
    assert_eq!(
        arrives(schema, "{}"),
        record(&[
            ("source", Value::String("ping-generator".into())),
            ("maybe", Value::Union(0, Box::new(Value::Null))),
            ("number", Value::Union(0, Box::new(Value::Int(7)))),
            ("inner", inner(0xff)),
            ("again", inner(b'a')),
        ])
    );
    let all =
        r#"{"again": {"list": []}, "number": null, "number": 8, "maybe": 1, "inner": {}, "source": "s"}"#;
    assert_eq!(
        arrives(schema, all),
        record(&[
            ("source", Value::String("s".into())),
            ("maybe", Value::Union(1, Box::new(Value::Int(1)))),
            ("number", Value::Union(0, Box::new(Value::Int(8)))),
            ("inner", inner(0xff)),
            ("again", inner(0xff)),
        ])
    );
}

#[test]
fn a_union_takes_plain_json_and_avros_own() {
    let schema = r#"["null", "int", "double", "string", {"type": "map", "values": "string"},
        {"type": "record", "name": "n.Place", "fields": [{"name": "x", "type": "int"}]}]"#;
    let check = |payload: &str, branch, value: Value| {
        assert_eq!(arrives(schema, payload), Value::Union(branch, Box::new(value)), "{payload}");
    };
    let place = || record(&[("x", Value::Int(1))]);
    check("null", 0, Value::Null);
    check("{}", 4, Value::Map([].into()));
    check("1", 1, Value::Int(1));
    check("1.5", 2, Value::Double(1.5));
    check("3000000000", 2, Value::Double(3e9));
    check("\"1\"", 3, Value::String("1".into()));
    check(r#"{"x": "1"}"#, 4, Value::Map([("x".to_owned(), Value::String("1".into()))].into()));
    check(r#"{"x": 1}"#, 5, place());
    check(r#"{"double": 1}"#, 2, Value::Double(1.0));
    check(r#"{"n.Place": {"x": 1}}"#, 5, place());
    // Called like a branch, but no value of it: taken as it stands.
    check(r#"{"int": "1"}"#, 4, Value::Map([("int".to_owned(), Value::String("1".into()))].into()));
    assert_eq!(
        misfit(schema, "[]"),
        "the payload: expected null, int, double, string, map or n.Place, found an array"
    );
}

#[test]
fn logical_types_take_their_text_and_stay_what_they_are_as_numbers() {
    let of = |base: &str, logical: &str| format!(r#"{{"type": "{base}", "logicalType": "{logical}"}}"#);
    let check = |base: &str, logical: &str, payload: &str, expected: Value| {
        assert_eq!(arrives(&of(base, logical), payload), expected, "{logical}: {payload}");
    };
    check("int", "date", "20000", Value::Date(20_000));
    check("int", "date", r#""1970-01-02""#, Value::Date(1));
    check("int", "date", r#""1969-12-31""#, Value::Date(-1));
    check("int", "time-millis", r#""14:30:00.5""#, Value::TimeMillis(52_200_500));
    check("long", "time-micros", r#""00:00:01.000002""#, Value::TimeMicros(1_000_002));
    check("long", "timestamp-millis", "1753626600", Value::TimestampMillis(1_753_626_600));
    check(
        "long",
        "timestamp-millis",
        r#""2025-07-27T14:30:00.0079Z""#,
        Value::TimestampMillis(1_753_626_600_007),
    );
    check("long", "timestamp-millis", r#""1969-12-31T23:59:59.9999Z""#, Value::TimestampMillis(-1));
    check("long", "timestamp-micros", r#""1970-01-01T01:00:00+01:00""#, Value::TimestampMicros(0));
    check("long", "timestamp-nanos", r#""1970-01-01T00:00:00.000000001Z""#, Value::TimestampNanos(1));
    check("long", "no-such-thing", "5", Value::Long(5));
    assert_eq!(
        misfit(&of("long", "timestamp-millis"), r#""yesterday""#),
        r#"the payload: expected timestamp-millis, found "yesterday", which cannot be read as one"#
    );
    assert_eq!(misfit(&of("long", "no-such-thing"), r#""5""#), r#"the payload: expected long, found "5""#);

    let decimal = |of: &str| format!(r#"{{{of}, "logicalType": "decimal", "precision": 6, "scale": 2}}"#);
    let check = |payload: &str, bytes: &[u8], fixed: &[u8]| {
        let expected = |bytes: &[u8]| Value::Decimal(apache_avro::Decimal::from(bytes));
        assert_eq!(arrives(&decimal(r#""type": "bytes""#), payload), expected(bytes), "{payload}");
        let of_four = decimal(r#""type": "fixed", "name": "F", "size": 4"#);
        assert_eq!(arrives(&of_four, payload), expected(fixed), "{payload}");
    };
    check("1.28", &[0, 0x80], &[0, 0, 0, 0x80]);
    check("\"-1.28\"", &[0x80], &[0xff, 0xff, 0xff, 0x80]);
    check("9999.99", &[0x0f, 0x42, 0x3f], &[0, 0x0f, 0x42, 0x3f]);
    let refuses = |payload: &str, expected: &str| {
        assert_eq!(misfit(&decimal(r#""type": "bytes""#), payload), format!("the payload: {expected}"));
    };
    refuses("1.234", "expected decimal(6, 2), found 1.234, which has too many decimal places");
    refuses("10000", "expected decimal(6, 2), found 10000, which is out of range");
    refuses("\"\\u0001\"", "expected decimal(6, 2), found \"\\u0001\"");
    // A precision that its bytes do not have room for is none.
    let small = r#"{"type": "fixed", "name": "F", "size": 1, "logicalType": "decimal", "precision": 6}"#;
    assert_eq!(encoded(small, "\"a\""), Ok(vec![b'a']));
}

#[test]
fn a_type_may_hold_itself_and_depth_has_a_limit() {
    let list = r#"{"type": "record", "name": "n.List", "fields": [
        {"name": "head", "type": "int"}, {"name": "tail", "type": ["null", "List"]}]}"#;
    let nested =
        |levels: usize| format!("{}null{}", r#"{"head": 1, "tail": "#.repeat(levels), "}".repeat(levels));
    assert_eq!(encoded(list, &nested(3)).unwrap(), [2, 2, 2, 2, 2, 0]);
    assert!(encoded(list, &nested(64)).is_ok());
    let told = misfit(list, &nested(66));
    assert!(told.ends_with("nested deeper than 64 levels"), "{told}");
    for open in ["[", "{\"a\":", "{\"head\": [", "{\"tail\": "] {
        assert!(encoded(list, &open.repeat(100_000)).is_err());
    }
}

#[test]
fn a_payload_that_would_take_forever_is_told_so() {
    let two = r#"{"type": "record", "name": "A", "fields": [{"name": "next", "type": ["null", "A",
        {"type": "record", "name": "B", "fields": [{"name": "next", "type": ["null", "A", "B"]}]}]}]}"#;
    let levels = 60;
    let payload = format!("{}0{}", r#"{"next": "#.repeat(levels), "}".repeat(levels));
    assert!(misfit(two, &payload).ends_with("nested in too many ways for the unions of the schema"));
}

#[test]
fn a_schema_that_cannot_be_used_is_told_with_its_place() {
    let check = |schema: &str, expected: &str| {
        let told = Schema::parse(schema, &[]).expect_err(schema).to_string();
        assert_eq!(told, expected, "{schema}");
    };
    check("{", "it is no JSON: EOF while parsing an object at line 1 column 1");
    check("5", "a type is a name, an object or a list, not 5");
    check("[]", "a union needs a branch");
    check(r#"["null", ["int"]]"#, "a union cannot hold another one");
    check(r#""Unknown""#, "there is no type called \"Unknown\"");
    check("{}", "it has no type");
    check(r#"{"type": "record", "name": "R"}"#, "a record needs a list of fields");
    check(r#"{"type": "record", "fields": []}"#, "it has no name");
    check(
        r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "in"}]}"#,
        "at /fields/1/type: there is no type called \"in\"",
    );
    check(
        r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "default": "x"}]}"#,
        "the default of the field a of R does not fit: the payload: expected int, found \"x\"",
    );
    check(r#"{"type": "array"}"#, "it has no items");
    check(r#"{"type": "fixed", "name": "F", "size": -1}"#, "a fixed needs a size in bytes");
    check(r#"{"type": "enum", "name": "E", "symbols": ["A", "A"]}"#, "the symbol A is there twice");
    assert!(Schema::parse(&"[".repeat(100_000), &[]).is_err());
    let endless = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "R", "default": {}}]}"#;
    let told = Schema::parse(endless, &[]).unwrap_err().to_string();
    assert!(told.starts_with("the default of the field a of R does not fit: /a/a/a/"), "{told}");
    assert!(told.ends_with("nested deeper than 64 levels"), "{told}");
}

#[test]
fn a_schema_may_name_types_of_others() {
    let place = r#"{"type": "record", "name": "geo.Place", "fields": [{"name": "x", "type": "int"}]}"#;
    let schema = r#"{"type": "record", "name": "R", "fields": [{"name": "at", "type": "geo.Place"}]}"#;
    assert!(Schema::parse(schema, &[]).is_err());
    let schema = Schema::parse(schema, &[place.to_owned()]).unwrap();
    let mut out = Vec::new();
    schema.encode(br#"{"at": {"x": 3}}"#, &mut out).unwrap();
    assert_eq!(out, [6]);
    // A registry may answer with the name of a primitive type alone.
    assert!(Schema::parse("string", &[]).is_ok());
}

/// `SplitMix64` (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn text(&mut self) -> String {
        const CHARACTERS: [&str; 8] = ["a", "\"", "\\", "\n", "é", "\u{0}", "😀", "null"];
        (0..self.below(5)).map(|_| CHARACTERS[self.below(8) as usize]).collect()
    }

    fn latin(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A schema, and the types that it names.
    fn schema(&mut self, depth: u32, named: &mut u64) -> serde_json::Value {
        const PRIMITIVES: [&str; 8] =
            ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
        if depth == 0 || self.below(3) == 0 {
            return json!(PRIMITIVES[self.below(8) as usize]);
        }
        let mut name = || {
            *named += 1;
            format!("n.T{named}")
        };
        match self.below(6) {
            0 => json!({"type": "enum", "name": name(), "symbols": ["A", "B", "C"]}),
            1 => json!({"type": "fixed", "name": name(), "size": self.below(4)}),
            2 => json!({"type": "array", "items": self.schema(depth - 1, named)}),
            3 => json!({"type": "map", "values": self.schema(depth - 1, named)}),
            4 => {
                let name = name();
                let mut fields: Vec<_> = (0..self.below(4))
                    .map(
                        |number| json!({"name": format!("f{number}"), "type": self.schema(depth - 1, named)}),
                    )
                    .collect();
                if self.below(3) == 0 {
                    fields.push(json!({"name": "own", "type": ["null", name]}));
                }
                json!({"type": "record", "name": name, "fields": fields})
            }
            _ => {
                let record = self.schema_of_record(depth - 1, named);
                json!(["null", "long", "string", record])
            }
        }
    }

    fn schema_of_record(&mut self, depth: u32, named: &mut u64) -> serde_json::Value {
        *named += 1;
        let name = format!("n.T{named}");
        json!({"type": "record", "name": name, "fields": [{"name": "f0", "type": self.schema(depth, named)}]})
    }

    /// JSON for `schema`, and what it stands for.
    fn value(&mut self, schema: &serde_json::Value) -> (serde_json::Value, Value) {
        if let Some(branches) = schema.as_array() {
            let number = self.below(branches.len() as u64) as usize;
            let branch = &branches[number];
            // A type that holds itself is named: it ends here.
            let known = branch.is_object() || !branch.as_str().unwrap().contains('.');
            let number = if known { number } else { 0 };
            let (json, value) = self.value(&branches[number]);
            let tag = branches[number].get("name").unwrap_or(&branches[number]).as_str().unwrap();
            let tagged = if tag == "null" { json } else { json!({tag: json}) };
            return (tagged, Value::Union(number as u32, Box::new(value)));
        }
        let kind = schema.get("type").unwrap_or(schema).as_str().unwrap();
        let shown = |bytes: &[u8]| json!(bytes.iter().map(|&byte| char::from(byte)).collect::<String>());
        match kind {
            "null" => (json!(null), Value::Null),
            "boolean" => {
                let value = self.below(2) == 0;
                (json!(value), Value::Boolean(value))
            }
            "int" => {
                let value = self.next() as i32 >> self.below(32);
                (json!(value), Value::Int(value))
            }
            "long" => {
                let value = self.next() as i64 >> self.below(64);
                (json!(value), Value::Long(value))
            }
            "float" => {
                let value = self.next() as i32 as f32 / 1024.0;
                (json!(f64::from(value)), Value::Float(value))
            }
            "double" => {
                let value = self.next() as i64 as f64 / 1e9;
                (json!(value), Value::Double(value))
            }
            "string" => {
                let value = self.text();
                (json!(value), Value::String(value))
            }
            "bytes" => {
                let length = self.below(4);
                let value = self.latin(length);
                (shown(&value), Value::Bytes(value))
            }
            "fixed" => {
                let value = self.latin(schema["size"].as_u64().unwrap());
                (shown(&value), Value::Fixed(value.len(), value))
            }
            "enum" => {
                let number = self.below(3) as usize;
                let symbol = ["A", "B", "C"][number];
                (json!(symbol), Value::Enum(number as u32, symbol.to_owned()))
            }
            "array" => {
                let values = (0..self.below(4)).map(|_| self.value(&schema["items"]));
                let (json, values): (Vec<_>, Vec<_>) = values.unzip();
                (json!(json), Value::Array(values))
            }
            "map" => {
                let names: std::collections::BTreeSet<String> =
                    (0..self.below(4)).map(|_| self.text()).collect();
                let mut object = serde_json::Map::new();
                let mut map = std::collections::HashMap::new();
                for name in names {
                    let (json, value) = self.value(&schema["values"]);
                    object.insert(name.clone(), json);
                    map.insert(name, value);
                }
                (json!(object), Value::Map(map))
            }
            "record" => {
                let mut object = serde_json::Map::new();
                let mut fields = Vec::new();
                for field in schema["fields"].as_array().unwrap() {
                    let name = field["name"].as_str().unwrap();
                    let (json, value) = self.value(&field["type"]);
                    object.insert(name.to_owned(), json);
                    fields.push((name.to_owned(), value));
                }
                (json!(object), Value::Record(fields))
            }
            other => panic!("no schema is called {other}"),
        }
    }

    /// Any JSON, whatever a schema says.
    fn json(&mut self, depth: u32) -> serde_json::Value {
        match self.below(if depth == 0 { 6 } else { 8 }) {
            0 => json!(null),
            1 => json!(self.below(2) == 0),
            2 => json!(self.next() as i64 >> self.below(64)),
            3 => json!(self.next() as i64 as f64 / 1e9),
            4 => json!(["A", "B", "a"][self.below(3) as usize]),
            5 => json!(self.text()),
            6 => (0..self.below(4)).map(|_| self.json(depth - 1)).collect(),
            _ => {
                let names = ["f0", "f1", "f2", "own", "long", "n.T1", "n.T2"];
                let members = (0..self.below(4)).map(|_| {
                    let name = names[self.below(7) as usize].to_owned();
                    (name, self.json(depth - 1))
                });
                serde_json::Value::Object(members.collect())
            }
        }
    }
}

/// Seeds from the variable `TIDEGATE_TEST_SEED` on, else from 1.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = std::env::var("TIDEGATE_TEST_SEED").map_or(1, |seed| seed.parse().expect("a whole number"));
    first..first + count
}

#[test]
fn what_fits_is_read_again_as_the_same() {
    for seed in seeds(3_000) {
        let mut random = Random(seed);
        let schema = random.schema(3, &mut 0);
        for _ in 0..4 {
            let (json, expected) = random.value(&schema);
            let text =
                if seed % 2 == 0 { json.to_string() } else { serde_json::to_string_pretty(&json).unwrap() };
            assert_eq!(arrives(&schema.to_string(), &text), expected, "seed {seed}: {schema}: {json}");
        }
    }
}

#[test]
fn whatever_the_payload_it_is_a_misfit_or_can_be_read() {
    let (mut fits, mut misfits) = (0, 0);
    for seed in seeds(3_000) {
        let mut random = Random(seed);
        let schema = random.schema(3, &mut 0).to_string();
        for _ in 0..8 {
            let mut payload = random.json(4).to_string().into_bytes();
            if random.below(4) == 0 && !payload.is_empty() {
                let at = random.below(payload.len() as u64) as usize;
                payload[at] = random.next() as u8;
            }
            let mut out = Vec::new();
            match Schema::parse(&schema, &[]).unwrap().encode(&payload, &mut out) {
                Ok(()) => _ = decoded(&schema, &out),
                Err(misfit) => assert!(!misfit.what.is_empty(), "seed {seed}"),
            }
            *(if out.is_empty() { &mut misfits } else { &mut fits }) += 1;
        }
    }
    assert!(fits > 1_000 && misfits > 1_000, "both are tried: {fits} fit, {misfits} do not");
}
