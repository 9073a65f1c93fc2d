//! The table as it is configured, and what it resolves to.

use super::*;

fn destination(routes: &mut Routes, topic: &str, client: &str) -> Option<(String, Option<String>)> {
    with_payload(routes, topic, client, "")
}

fn with_payload(
    routes: &mut Routes,
    topic: &str,
    client: &str,
    payload: &str,
) -> Option<(String, Option<String>)> {
    let found = routes.destination(TopicName::new(topic).unwrap(), client, payload.as_bytes())?;
    Some((routes.topics()[found.topic].name.clone(), found.key.map(Into::into)))
}

fn route(filter: &str, topic: &str, key: KeyRule) -> RouteConfig {
    RouteConfig { filter: filter.into(), topic: topic.into(), key, ..RouteConfig::default() }
}

#[test]
fn the_default_routes_follow_the_topic_conventions() {
    let mut routes = Routes::new(&default_routes()).unwrap();
    let mut check = |topic: &str, kafka: &str, key: &str| {
        let expected = Some((kafka.into(), Some(key.into())));
        // The second look-up is answered by what the first left behind.
        for _ in 0..2 {
            assert_eq!(destination(&mut routes, topic, "client-1"), expected, "{topic}");
        }
    };
    check("sensors/sensor01/temperature", "sensors", "sensor01");
    check("sensors/étage-2/t/inner", "sensors", "étage-2");
    check("sensors/temperature", "sensors", "client-1");
    check("sensors//temperature", "sensors", "client-1");
    check("sensors", "sensors", "client-1");
    check("commands/valve-7/open", "commands", "valve-7");
    check("alerts/critical", "alerts", "client-1");
    check("devices/sensor01/status", "devices", "sensor01");
    check("iot/sensors", "mqtt", "client-1");
    check("/sensors/a/b", "mqtt", "client-1");
    check("$thing/shadow", "mqtt", "client-1");
    check("sensorsX/a/b", "mqtt", "client-1");
}

#[test]
fn the_same_topic_from_another_client_has_another_key() {
    let mut routes = Routes::new(&default_routes()).unwrap();
    let mut key = |client: &str| destination(&mut routes, "alerts/high", client).unwrap().1;
    assert_eq!(key("a"), Some("a".into()));
    assert_eq!(key("b"), Some("b".into()));
    assert_eq!(key(""), None);
}

#[test]
fn the_first_route_that_matches_wins_and_without_one_a_record_stays_here() {
    let mut routes = Routes::new(&[
        route("a/+/c", "one", KeyRule::Topic),
        route("a/#", "two", KeyRule::None),
        route("b", "one", KeyRule::Client),
    ])
    .unwrap();
    let names: Vec<_> = routes.topics().iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(destination(&mut routes, "a/b/c", "x"), Some(("one".into(), Some("a/b/c".into()))));
    assert_eq!(destination(&mut routes, "a/b", "x"), Some(("two".into(), None)));
    assert_eq!(destination(&mut routes, "b", "x"), Some(("one".into(), Some("x".into()))));
    assert_eq!(destination(&mut routes, "c", "x"), None);
    assert_eq!(destination(&mut routes, "c", "x"), None);
}

#[test]
fn what_is_remembered_is_bounded_and_stays_right() {
    let mut routes = Routes::new(&default_routes()).unwrap();
    for number in 0..3 * REMEMBERED_TOPICS {
        let (topic, device) = (format!("sensors/d{number}/t"), format!("d{number}"));
        let expected = Some(("sensors".into(), Some(device)));
        assert_eq!(destination(&mut routes, &topic, "c"), expected);
    }
    assert_eq!(routes.remembered.len(), REMEMBERED_TOPICS);
    let long = format!("sensors/{}/t", "x".repeat(60_000));
    assert_eq!(destination(&mut routes, &long, "c").unwrap().1.unwrap().len(), 60_000);
    assert!(routes.remembered.iter().flatten().all(|kept| kept.topic.len() <= REMEMBERED_TOPIC_BYTES_MAX));
}

#[test]
fn every_mistake_is_told() {
    let route = |filter: &str, topic: &str| route(filter, topic, KeyRule::Client);
    let mistakes =
        Routes::new(&[route("a/#/b", "ok"), route("a", "not legal"), route("b", "..")]).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert!(mistakes[0].contains("a/#/b") && mistakes[1].contains("not legal"), "{mistakes:?}");
    assert_eq!(Routes::new(&[]).unwrap_err().len(), 1);
    assert_eq!(Routes::new(&[route("a", &"x".repeat(250))]).unwrap_err().len(), 1);
    assert!(Routes::new(&[route("a", &"x".repeat(249))]).is_ok());
}

#[test]
fn a_key_from_the_payload_falls_back_to_the_device_and_a_level_to_the_client() {
    let mut routes = Routes::new(&[
        route("health/#", "device_data", "/deviceId".parse().unwrap()),
        route("parking/#", "parking", KeyRule::Level(4)),
    ])
    .unwrap();
    let mut check = |topic: &str, payload: &str, kafka: &str, key: &str| {
        for _ in 0..2 {
            let expected = Some((kafka.into(), Some(key.into())));
            assert_eq!(with_payload(&mut routes, topic, "client-1", payload), expected, "{topic} {payload}");
        }
    };
    check("health/device_data", r#"{"deviceId":"device-7"}"#, "device_data", "device-7");
    check("health/device_data", r#"{"deviceId":7}"#, "device_data", "7");
    check("health/device_data", r#"{"device":"device-7"}"#, "device_data", "client-1");
    check("health/ward-3/pulse", r#"{"deviceId":null}"#, "device_data", "ward-3");
    check("health/ward-3/pulse", "72", "device_data", "ward-3");
    check("parking/sensors/lot/bay/status", "", "parking", "bay");
    check("parking/sensors/lot/bay", "", "parking", "bay");
    check("parking/sensors/lot//status", "", "parking", "client-1");
    check("parking/sensors/lot", "", "parking", "client-1");
}

#[test]
fn what_two_routes_say_of_one_topic_must_agree() {
    let mut routes = [route("a", "x", KeyRule::Client), route("b", "x", KeyRule::Client)];
    routes[1].partitions = Some(3);
    routes[0].retention_ms = Some(1_000);
    routes[1].retention_ms = Some(1_000);
    let made = Routes::new(&routes).unwrap();
    let expected = KafkaTopic { name: "x".into(), partitions: Some(3), retention_ms: Some(1_000) };
    assert_eq!(made.topics(), [expected]);
    routes[0].partitions = Some(1);
    routes[1].retention_ms = Some(-1);
    let mistakes = Routes::new(&routes).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].contains("\"b\"") && mistakes[0].contains("partitions"), "{mistakes:?}");
}
