//! How the Kafka sink's own values are written: routes, properties of librdkafka, what a new topic is like.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::route::{Encoding, HeaderStyle, RouteConfig};

use super::key::Raw;
use super::kind::{Choice, Kind, Period, Text, quoted};
use super::source;

/// Which headers a record carries. `user` was the word for `minimal`.
pub(super) const HEADERS: Choice<HeaderStyle> = Choice(&[
    ("cloudevents", HeaderStyle::CloudEvents),
    ("minimal", HeaderStyle::Minimal),
    ("none", HeaderStyle::None),
    ("user", HeaderStyle::Minimal),
]);

/// Partitions of a new topic.
pub(super) const PARTITIONS: OrDefault = OrDefault { max: 10_000 };

/// What a payload becomes.
const ENCODINGS: Choice<Encoding> = Choice(&[("avro", Encoding::Avro)]);

/// A list of tables with `filter`, `topic` and, where they are not as usual, `key`, `partitions`, `retention`,
/// `headers`, `encoding`, `subject`, `schema`.
pub(super) struct Routes;

impl Kind<Vec<RouteConfig>> for Routes {
    fn parse(&self, text: &str) -> Result<Vec<RouteConfig>, String> {
        match source::value(text)? {
            Raw::One(_) => Err(format!("{} is not a list of routes, {ROUTE}", quoted(text))),
            routes @ (Raw::List(_) | Raw::Table(_)) => self.read(&routes),
        }
    }
    fn show(&self, value: &Vec<RouteConfig>) -> Option<String> {
        let routes: Vec<String> =
            value.iter().map(|route| format!("    {{ {} }},\n", shown_route(route))).collect();
        Some(if routes.is_empty() { "[]".to_owned() } else { format!("[\n{}]", routes.concat()) })
    }
    fn read(&self, raw: &Raw) -> Result<Vec<RouteConfig>, String> {
        match raw {
            Raw::List(routes) => routes.iter().map(route).collect(),
            Raw::Table(_) => route(raw).map(|route| vec![route]),
            Raw::One(text) => self.parse(text),
        }
    }
}

const ROUTE: &str = "as in [{ filter = \"sensors/#\", topic = \"sensors\", key = \"device\" }]";

fn route(raw: &Raw) -> Result<RouteConfig, String> {
    let Raw::Table(entries) = raw else { return Err(format!("is not a list of routes, {ROUTE}")) };
    let mut route = RouteConfig::default();
    for (name, value) in entries {
        match name.as_str() {
            "filter" => value.one()?.clone_into(&mut route.filter),
            "topic" => value.one()?.clone_into(&mut route.topic),
            "key" => route.key = value.one()?.parse()?,
            "partitions" => route.partitions = Some(PARTITIONS.read(value)?),
            "retention" => route.retention_ms = Some(TopicRetention.read(value)?),
            "headers" => route.headers = Some(HEADERS.read(value)?),
            "encoding" => route.encoding = Some(ENCODINGS.read(value)?),
            "subject" => route.subject = Some(value.one()?.to_owned()),
            "schema" => route.schema = Text.read(value)?,
            other => return Err(format!("{} is not a part of a route, {ROUTE}", quoted(other))),
        }
    }
    if route.filter.is_empty() {
        return Err(format!("a route has no filter, {ROUTE}"));
    }
    if route.topic.is_empty() {
        return Err(format!("a route has no topic, {ROUTE}"));
    }
    Ok(route)
}

fn shown_route(route: &RouteConfig) -> String {
    let parts = [
        ("filter", Some(quoted(&route.filter))),
        ("topic", Some(quoted(&route.topic))),
        ("key", Some(quoted(&route.key.to_string()))),
        ("partitions", route.partitions.and_then(|count| PARTITIONS.show(&count))),
        ("retention", route.retention_ms.and_then(|period| TopicRetention.show(&period))),
        ("headers", route.headers.and_then(|headers| HEADERS.show(&headers))),
        ("encoding", route.encoding.and_then(|encoding| ENCODINGS.show(&encoding))),
        ("subject", route.subject.as_deref().map(quoted)),
        ("schema", Text.show(&route.schema)),
    ];
    let said = parts.into_iter().filter_map(|(name, value)| Some(format!("{name} = {}", value?)));
    said.collect::<Vec<_>>().join(", ")
}

/// Properties of librdkafka. Where they are set in several places they add up.
pub(super) struct Properties;

impl Kind<BTreeMap<String, String>> for Properties {
    fn parse(&self, text: &str) -> Result<BTreeMap<String, String>, String> {
        match source::value(text)? {
            table @ Raw::Table(_) => self.read(&table),
            Raw::One(_) | Raw::List(_) => Err(NOT_PROPERTIES.to_owned()),
        }
    }
    fn show(&self, value: &BTreeMap<String, String>) -> Option<String> {
        let properties: Vec<String> =
            value.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
        (!properties.is_empty()).then(|| format!("{{ {} }}", properties.join(", ")))
    }
    fn read(&self, raw: &Raw) -> Result<BTreeMap<String, String>, String> {
        let mut properties = BTreeMap::new();
        match raw {
            Raw::Table(entries) => collect("", entries, &mut properties)?,
            Raw::One(text) => return self.parse(text),
            Raw::List(_) => return Err(NOT_PROPERTIES.to_owned()),
        }
        Ok(properties)
    }
}

const NOT_PROPERTIES: &str = "is not a table, as in { \"socket.keepalive.enable\" = true }";

/// A property's name has dots, which TOML takes for nested tables unless it is quoted; both are fine here.
fn collect(
    prefix: &str,
    entries: &[(String, Raw)],
    properties: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, value) in entries {
        let name = format!("{prefix}{name}");
        match value {
            Raw::Table(inner) => collect(&format!("{name}."), inner, properties)?,
            Raw::One(value) => _ = properties.insert(name, value.clone()),
            Raw::List(_) => return Err(format!("{name} takes one value, not a list")),
        }
    }
    Ok(())
}

/// Whether the value of the property of this name may be one.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let parts = ["password", "secret", "token", "jaas", "oauthbearer", "key.pem", "passphrase"];
    parts.iter().any(|part| name.contains(part))
}

/// Properties as a TOML table, without the values of those that may be secret.
pub(super) fn shown(entries: &[(String, Raw)]) -> String {
    let mut properties = BTreeMap::new();
    if collect("", entries, &mut properties).is_err() {
        return "{}".to_owned();
    }
    for (name, value) in &mut properties {
        if is_secret(name) {
            "***".clone_into(value);
        }
    }
    Properties.show(&properties).unwrap_or_else(|| "{}".to_owned())
}

/// A number, or `default` for the broker's own; -1 stands for that inside.
pub(super) struct OrDefault {
    pub(super) max: i32,
}

impl Kind<i32> for OrDefault {
    fn parse(&self, text: &str) -> Result<i32, String> {
        if text == "default" {
            return Ok(-1);
        }
        let number = text.parse().ok().filter(|number| (1..=self.max).contains(number));
        number.ok_or_else(|| {
            format!("{} is not a whole number from 1 to {}, or default", quoted(text), self.max)
        })
    }
    fn show(&self, value: &i32) -> Option<String> {
        Some(if *value == -1 { quoted("default") } else { value.to_string() })
    }
}

/// A span of time, `default` for the broker's own (0 inside), or `forever` (-1).
pub(super) struct TopicRetention;

const RETENTION: Period = Period { min: Duration::from_secs(1), max: Duration::from_secs(86_400 * 36_500) };

impl Kind<i64> for TopicRetention {
    fn parse(&self, text: &str) -> Result<i64, String> {
        match text {
            "default" => Ok(0),
            "forever" => Ok(-1),
            other => {
                let period: Duration =
                    RETENTION.parse(other).map_err(|error: String| format!("{error}, default or forever"))?;
                i64::try_from(period.as_millis()).map_err(|_| format!("{} is too long", quoted(other)))
            }
        }
    }
    fn show(&self, value: &i64) -> Option<String> {
        match u64::try_from(*value) {
            Ok(0) => Some(quoted("default")),
            Ok(milliseconds) => RETENTION.show(&Duration::from_millis(milliseconds)),
            Err(_) => Some(quoted("forever")),
        }
    }
}
