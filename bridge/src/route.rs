//! Topic Name and client to Kafka topic and key; pure.
//!
//! Routes are tried in order and the first whose filter matches wins. A route's Kafka topic is legal by construction,
//! and only configured topics ever come out: no device can invent one. What a topic resolves to is remembered in a
//! bounded table, so that a device's second record costs one look-up.
//!
//! The key comes from the topic or the client alone. `sensors/temperature`, for one, has no device level: its key is
//! the Client Identifier, even if the payload names a device.

use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};
use tidegate_broker::topic::{TopicFilter, TopicName};

/// The longest name of a Kafka topic in bytes.
const KAFKA_TOPIC_BYTES_MAX: usize = 249;
/// How many topics are remembered; a new one takes the place of one with the same hash.
const REMEMBERED_TOPICS: usize = 8_192;
/// Longer topics are resolved each time, so that the table stays below about 3 MiB.
const REMEMBERED_TOPIC_BYTES_MAX: usize = 256;

/// One line of the routing table, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Which topics it is for: an MQTT Topic Filter. `#` alone stands for every topic, also those beginning with `$`.
    pub filter: String,
    /// The Kafka topic that they go to.
    pub topic: String,
    /// What the Kafka key is: see [`KeyRule`].
    #[serde(default)]
    pub key: KeyRule,
}

/// What becomes the Kafka key. Records with the same key keep their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRule {
    /// The second level of a topic with at least three, as in `sensors/{device_id}/{metric}`; else the client.
    Device,
    /// The Client Identifier of the publisher.
    #[default]
    Client,
    /// The whole Topic Name.
    Topic,
    /// No key: records are spread over the partitions, and their order is lost.
    None,
}

/// The routes that hold when none are configured.
pub fn default_routes() -> Vec<RouteConfig> {
    let route =
        |filter: &str, topic: &str, key| RouteConfig { filter: filter.into(), topic: topic.into(), key };
    vec![
        route("sensors/#", "sensors", KeyRule::Device),
        route("commands/#", "commands", KeyRule::Device),
        route("alerts/#", "alerts", KeyRule::Client),
        route("devices/#", "devices", KeyRule::Device),
        route("#", "mqtt", KeyRule::Client),
    ]
}

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// Index into [`Routes::topics`].
    pub topic: usize,
    /// The Kafka key; `None` is no key.
    pub key: Option<&'a str>,
}

#[derive(Debug)]
struct Route {
    /// `None` matches every topic.
    filter: Option<TopicFilter>,
    topic: usize,
    key: KeyRule,
}

/// Where in a topic the key lies.
#[derive(Clone, Copy, Debug)]
enum KeyAt {
    Level { start: u16, end: u16 },
    Client,
    Topic,
    Nowhere,
}

#[derive(Clone, Copy, Debug)]
struct Resolved {
    topic: usize,
    key: KeyAt,
}

#[derive(Debug)]
struct Remembered {
    topic: Box<str>,
    resolved: Option<Resolved>,
}

/// The routing table.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    topics: Vec<String>,
    remembered: Vec<Option<Remembered>>,
    hasher: RandomState,
}

impl Routes {
    /// Checks `configured` and tells every mistake in it.
    pub fn new(configured: &[RouteConfig]) -> Result<Self, Vec<String>> {
        let mut routes = Vec::with_capacity(configured.len());
        let mut topics: Vec<String> = Vec::new();
        let mut mistakes = Vec::new();
        for RouteConfig { filter, topic, key } in configured {
            if let Err(why) = check_kafka_topic(topic) {
                mistakes.push(format!("the route for {filter:?}: {why}"));
            }
            let filter = match TopicFilter::new(filter) {
                Ok(_) if filter == "#" => None,
                Ok(parsed) => Some(parsed),
                Err(why) => {
                    mistakes.push(format!("the route for {filter:?}: {why}"));
                    continue;
                }
            };
            let topic = topics.iter().position(|known| known == topic).unwrap_or_else(|| {
                topics.push(topic.clone());
                topics.len() - 1
            });
            routes.push(Route { filter, topic, key: *key });
        }
        if configured.is_empty() {
            mistakes.push(
                "there must be at least one route; {filter = \"#\", topic = \"mqtt\"} takes everything"
                    .into(),
            );
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let remembered = std::iter::repeat_with(|| None).take(REMEMBERED_TOPICS).collect();
        Ok(Self { routes, topics, remembered, hasher: RandomState::new() })
    }

    /// The Kafka topics that records can go to, each once.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Where a record published by `client` at `topic` goes; `None` if no route matches.
    pub fn destination<'a>(&mut self, topic: TopicName<'a>, client: &'a str) -> Option<Destination<'a>> {
        let resolved = self.resolved(topic)?;
        let key = match resolved.key {
            KeyAt::Level { start, end } => Some(&topic.as_str()[usize::from(start)..usize::from(end)]),
            KeyAt::Topic => Some(topic.as_str()),
            // A key that everybody without a name shares would put them all into one partition.
            KeyAt::Client => Some(client).filter(|client| !client.is_empty()),
            KeyAt::Nowhere => None,
        };
        Some(Destination { topic: resolved.topic, key })
    }

    fn resolved(&mut self, topic: TopicName<'_>) -> Option<Resolved> {
        let text = topic.as_str();
        if text.len() > REMEMBERED_TOPIC_BYTES_MAX {
            return self.resolve(topic);
        }
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits of the hash are wanted")]
        let slot = self.hasher.hash_one(text) as usize % REMEMBERED_TOPICS;
        if let Some(remembered) = &self.remembered[slot]
            && *remembered.topic == *text
        {
            return remembered.resolved;
        }
        let resolved = self.resolve(topic);
        self.remembered[slot] = Some(Remembered { topic: text.into(), resolved });
        resolved
    }

    fn resolve(&self, topic: TopicName<'_>) -> Option<Resolved> {
        let route = self
            .routes
            .iter()
            .find(|route| route.filter.as_ref().is_none_or(|filter| filter.matches(topic)))?;
        let key = match route.key {
            KeyRule::Device => device_level(topic.as_str()),
            KeyRule::Client => KeyAt::Client,
            KeyRule::Topic => KeyAt::Topic,
            KeyRule::None => KeyAt::Nowhere,
        };
        Some(Resolved { topic: route.topic, key })
    }
}

/// Where the device id lies in a topic of at least three levels, of which the second is not empty.
fn device_level(topic: &str) -> KeyAt {
    let Some((first, rest)) = topic.split_once('/') else { return KeyAt::Client };
    let Some((device, _)) = rest.split_once('/') else { return KeyAt::Client };
    if device.is_empty() {
        return KeyAt::Client;
    }
    let at = |position: usize| u16::try_from(position).expect("a topic has at most 65535 bytes");
    let start = first.len() + 1;
    KeyAt::Level { start: at(start), end: at(start + device.len()) }
}

/// Why `name` cannot name a Kafka topic, if it cannot.
fn check_kafka_topic(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > KAFKA_TOPIC_BYTES_MAX {
        return Err(format!(
            "a Kafka topic has 1 to {KAFKA_TOPIC_BYTES_MAX} characters, {name:?} has {}",
            name.len()
        ));
    }
    if name == "." || name == ".." {
        return Err(format!("{name:?} cannot name a Kafka topic"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.bytes().all(legal) {
        return Ok(());
    }
    Err(format!("a Kafka topic is made of letters, digits, '.', '_' and '-': {name:?} is not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(routes: &mut Routes, topic: &str, client: &str) -> Option<(String, Option<String>)> {
        let found = routes.destination(TopicName::new(topic).unwrap(), client)?;
        Some((routes.topics()[found.topic].clone(), found.key.map(Into::into)))
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
        let route =
            |filter: &str, topic: &str, key| RouteConfig { filter: filter.into(), topic: topic.into(), key };
        let mut routes = Routes::new(&[
            route("a/+/c", "one", KeyRule::Topic),
            route("a/#", "two", KeyRule::None),
            route("b", "one", KeyRule::Client),
        ])
        .unwrap();
        assert_eq!(routes.topics(), ["one", "two"]);
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
        assert!(
            routes.remembered.iter().flatten().all(|kept| kept.topic.len() <= REMEMBERED_TOPIC_BYTES_MAX)
        );
    }

    #[test]
    fn every_mistake_is_told() {
        let route = |filter: &str, topic: &str| RouteConfig {
            filter: filter.into(),
            topic: topic.into(),
            key: KeyRule::Client,
        };
        let mistakes =
            Routes::new(&[route("a/#/b", "ok"), route("a", "not legal"), route("b", "..")]).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes[0].contains("a/#/b") && mistakes[1].contains("not legal"), "{mistakes:?}");
        assert_eq!(Routes::new(&[]).unwrap_err().len(), 1);
        assert_eq!(Routes::new(&[route("a", &"x".repeat(250))]).unwrap_err().len(), 1);
        assert!(Routes::new(&[route("a", &"x".repeat(249))]).is_ok());
    }
}
