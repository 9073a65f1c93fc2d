//! Where settings are written: the lines of the file, variables called `TIDEGATE_...`, options.
//!
//! Everything that looks as if it were meant for Tidegate and is no key is a mistake, with the nearest key named.

use std::ffi::OsString;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::kafka_values::Properties;
use super::key::{self, Key, Raw, keys};
use super::kind::{Kind, quoted};
use super::{Origin, Sources};

/// A key that was set somewhere.
pub(super) struct Setting {
    pub(super) key: &'static Key,
    /// What was written, or why that can be no value.
    pub(super) value: Result<Raw, String>,
    pub(super) origin: Origin,
}

impl Setting {
    /// Whether it is a table of librdkafka's properties, or of their files, with Kafka's password in it.
    pub(super) fn names_kafka_password(&self) -> bool {
        let Ok(value) = &self.value else { return false };
        ["kafka.properties", "kafka.property_files"].contains(&self.key.path)
            && Properties.read(value).is_ok_and(|properties| properties.contains_key("sasl.password"))
    }
}

/// What the file, the variables and the options set, in this order.
pub(super) fn settings(sources: &Sources, mistakes: &mut Vec<String>) -> Vec<Setting> {
    let mut found = Vec::new();
    if let Some((name, text)) = &sources.file {
        file(name, text, &mut found, mistakes);
    }
    for (name, value) in &sources.environment {
        found.extend(variable(name, value, mistakes));
    }
    for (typed, path, text) in &sources.options {
        let origin = Origin::Option(typed.clone());
        match key::find(path) {
            Some(key) => found.push(Setting { key, value: Ok(Raw::One(text.clone())), origin }),
            None => mistakes.push(format!("{origin}: {}", unknown(path, keys().map(|key| key.path)))),
        }
    }
    found
}

/// Reads the file; a syntax error does not hide the mistakes in the lines around it.
fn file(name: &str, text: &str, found: &mut Vec<Setting>, mistakes: &mut Vec<String>) {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let mut wrong: Vec<(usize, String)> = Vec::new();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = line(error.span().map_or(0, |span| span.start));
        wrong.push((at, format!("not TOML: {}", error.message().replace('\n', " "))));
    }
    let mut tables = vec![(String::new(), table.get_ref())];
    while let Some((section, table)) = tables.pop() {
        for (key, value) in table {
            let path = format!("{section}{}", key.get_ref());
            let at = line(key.span().start);
            if let Some(key) = key::find(&path) {
                let origin = Origin::File(name.to_owned(), at);
                found.push(Setting { key, value: raw(value.get_ref()), origin });
                continue;
            }
            let inside = format!("{path}.");
            let is_section = keys().any(|key| key.path.starts_with(&inside));
            if let (DeValue::Table(table), true) = (value.get_ref(), is_section) {
                tables.push((inside, table));
            } else {
                wrong.push((at, unknown(&path, keys().map(|key| key.path))));
            }
        }
    }
    wrong.sort();
    mistakes.extend(wrong.into_iter().map(|(at, wrong)| format!("{name}:{at}: {wrong}")));
}

/// A TOML value before it is known what it should be.
fn raw(value: &DeValue<'_>) -> Result<Raw, String> {
    Ok(match value {
        DeValue::String(text) => Raw::One(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Raw::One(number.as_str().to_owned()),
        DeValue::Integer(_) => return Err("write the number in decimal".to_owned()),
        DeValue::Float(number) => Raw::One(number.as_str().to_owned()),
        DeValue::Boolean(value) => Raw::One(value.to_string()),
        DeValue::Datetime(value) => Raw::One(value.to_string()),
        DeValue::Array(values) => {
            Raw::List(values.iter().map(|value| raw(value.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let entry = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
                Ok::<_, String>((name.get_ref().to_string(), raw(value.get_ref())?))
            };
            Raw::Table(table.iter().map(entry).collect::<Result<_, _>>()?)
        }
    })
}

/// A list or a table that was written as one text, as a variable has to; in TOML's own syntax.
pub(super) fn value(text: &str) -> Result<Raw, String> {
    let parsed = DeValue::parse(text).map_err(|error| {
        format!("is neither a list nor a table as TOML writes them: {}", error.message().replace('\n', " "))
    })?;
    raw(parsed.get_ref())
}

/// Variables that start with our prefix and are no keys: read by the program itself, by the agent, by the tests.
const OTHER_VARIABLES: [&str; 1] = ["TIDEGATE_CONFIG"];
const OTHER_PREFIXES: [&str; 2] = ["TIDEGATE_AGENT_", "TIDEGATE_TEST_"];

fn variable(name: &OsString, content: &OsString, mistakes: &mut Vec<String>) -> Option<Setting> {
    let name = name.to_str().filter(|name| name.starts_with("TIDEGATE_"))?;
    let other = OTHER_VARIABLES.contains(&name) || OTHER_PREFIXES.iter().any(|other| name.starts_with(other));
    if other || is_service_link(name, content) {
        return None;
    }
    let Some(key) = keys().find(|key| key.variable() == name) else {
        mistakes.push(unknown(name, keys().map(Key::variable)));
        return None;
    };
    if content.is_empty() {
        return None;
    }
    let value = content.to_str().ok_or_else(|| "is not UTF-8".to_owned());
    Some(Setting {
        key,
        value: value.map(|value| Raw::One(value.to_owned())),
        origin: Origin::Variable(name.to_owned()),
    })
}

/// Whether Kubernetes has put the variable there: for a Service called `tidegate` it gives every pod of the
/// namespace `TIDEGATE_SERVICE_HOST`, `TIDEGATE_PORT`, `TIDEGATE_PORT_1883_TCP_ADDR` and more.
fn is_service_link(name: &str, value: &OsString) -> bool {
    let is_port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        number && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.to_str().is_some_and(|value| value.contains("://")))
        || name.split("_PORT_").skip(1).any(is_port)
}

/// Says that `name` is no key, and which one may have been meant.
fn unknown<S: AsRef<str>>(name: &str, keys: impl Iterator<Item = S>) -> String {
    let nearest = keys.map(|key| (distance(name, key.as_ref()), key)).min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((distance, key)) if distance <= 3.max(name.len() / 4) => {
            format!("{name}: no such key; did you mean {}? `tidegate check` lists all", key.as_ref())
        }
        _ => format!("{name}: no such key; `tidegate check` lists all"),
    }
}

/// How many letters must be added, removed or changed to make one text the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

/// A log level in anybody's spelling, or a filter by module.
pub(super) struct LogFilter;

impl Kind<String> for LogFilter {
    fn parse(&self, text: &str) -> Result<String, String> {
        let level = match text.to_ascii_lowercase().as_str() {
            "off" | "none" => "off",
            "error" | "critical" | "fatal" => "error",
            "warn" | "warning" => "warn",
            "info" | "notice" => "info",
            "debug" => "debug",
            "trace" => "trace",
            _ => "",
        };
        if !level.is_empty() {
            return Ok(level.to_owned());
        }
        let filter = tracing_subscriber::EnvFilter::builder().parse(text);
        match filter {
            Ok(_) if text.contains('=') => Ok(text.to_owned()),
            Ok(_) | Err(_) => Err(format!(
                "{} is not one of: off, error, warn, info, debug, trace, nor a filter such as \
                 info,tidegate_broker=debug",
                quoted(text)
            )),
        }
    }
    fn show(&self, value: &String) -> Option<String> {
        Some(quoted(value))
    }
}
