//! `$SYS`: what the broker tells of itself, in the topics that mosquitto made known.
//!
//! The values below `$SYS/broker` are brought up to date at an interval; whoever subscribes gets them at once as
//! retained, whoever has subscribed gets those that have changed. Below `$SYS/brokers/clients` it is told who comes and
//! goes, as it happens, in JSON. All of it is sent at QoS 0 and lives in memory alone: the journal and what reads it
//! never see it. A client that is behind misses values; newer ones follow.

use std::fmt::Write as _;
use std::time::Duration;

use super::timers::Timer;
use super::{Broker, Connection, Now, Stats};
use crate::mqtt::{ReasonCode, Version};
use crate::record::{Properties, Qos, Record, Timestamp};
use crate::retained::RetainedStore;
use crate::slots::Key;
use crate::topic::{TOPIC_BYTES_MAX, TopicName};

/// The first level of every topic here.
pub(super) const SYSTEM: &str = "$SYS";

/// The spans over which loads are averaged, with their names.
const SPANS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// A number among the statistics.
type Count = fn(&Stats) -> u64;

/// What is told below `$SYS/broker/load`: the name, and the total whose growth it is.
const LOADS: [(&str, Count); 9] = [
    ("messages/received", |stats| stats.packets_in_total),
    ("messages/sent", |stats| stats.packets_out_total),
    ("publish/dropped", |stats| stats.publishes_dropped.sum()),
    ("publish/received", publishes_received),
    ("publish/sent", |stats| stats.publishes_out_total),
    ("bytes/received", |stats| stats.bytes_in_total),
    ("bytes/sent", |stats| stats.bytes_out_total),
    ("sockets", |stats| stats.connections_total),
    ("connections", |stats| stats.connects_total),
];

/// What is told below `$SYS/broker` as a number.
const VALUES: [(&str, Count); 24] = [
    ("clients/total", |stats| stats.sessions),
    ("clients/connected", |stats| stats.sessions_connected),
    ("clients/active", |stats| stats.sessions_connected),
    ("clients/disconnected", |stats| stats.sessions - stats.sessions_connected),
    ("clients/inactive", |stats| stats.sessions - stats.sessions_connected),
    ("clients/maximum", |stats| stats.sessions_connected_max),
    ("clients/expired", |stats| stats.sessions_expired_total),
    ("messages/received", |stats| stats.packets_in_total),
    ("messages/sent", |stats| stats.packets_out_total),
    ("messages/stored", |stats| stats.journal_entries),
    ("store/messages/count", |stats| stats.journal_entries),
    ("store/messages/bytes", |stats| stats.journal_bytes),
    ("publish/messages/received", publishes_received),
    ("publish/messages/sent", |stats| stats.publishes_out_total),
    ("publish/messages/dropped", |stats| stats.publishes_dropped.sum()),
    ("publish/bytes/received", |stats| stats.publish_bytes_in_total),
    ("publish/bytes/sent", |stats| stats.publish_bytes_out_total),
    ("bytes/received", |stats| stats.bytes_in_total),
    ("bytes/sent", |stats| stats.bytes_out_total),
    ("subscriptions/count", |stats| stats.subscriptions),
    ("shared_subscriptions/count", |stats| stats.shared_subscriptions),
    ("retained messages/count", |stats| stats.retained),
    ("heap/current size", |stats| stats.memory_bytes),
    ("heap/maximum", |stats| stats.memory_bytes_max),
];

/// As mosquitto counts them: also those that were refused.
fn publishes_received(stats: &Stats) -> u64 {
    stats.publishes_in_total + stats.publishes_refused.sum()
}

/// The values, and what is needed to bring them up to date.
#[derive(Debug, Default)]
pub(super) struct System {
    pub(super) values: RetainedStore,
    started: Option<Now>,
    /// When loads were last worked out, and the totals of then.
    last: Option<(Duration, Stats)>,
    loads: [[f64; SPANS.len()]; LOADS.len()],
}

impl System {
    /// Works the values out; hands over those that have changed.
    fn work_out(&mut self, stats: &Stats, now: Now, mut changed: impl FnMut(&str, &str)) {
        let started = *self.started.get_or_insert(now);
        let mut value = String::new();
        let mut topic = String::new();
        let mut tell = |name: std::fmt::Arguments<'_>, text: std::fmt::Arguments<'_>| {
            topic.clear();
            value.clear();
            let _ = write!(topic, "{SYSTEM}/broker/{name}");
            let _ = write!(value, "{text}");
            if self
                .values
                .of_topic(TopicName::trusted(&topic))
                .is_none_or(|old| *old.payload != *value.as_bytes())
            {
                self.values.set(&record(&topic, value.as_bytes(), true, now));
                changed(&topic, &value);
            }
        };
        let uptime = now.monotonic.saturating_sub(started.monotonic).as_secs();
        tell(format_args!("version"), format_args!("tidegate version {}", crate::VERSION));
        tell(format_args!("timestamp"), format_args!("{}", Rfc3339(started.wall)));
        tell(format_args!("uptime"), format_args!("{uptime} seconds"));
        for (name, count) in VALUES {
            tell(format_args!("{name}"), format_args!("{}", count(stats)));
        }
        if let Some((at, last)) = &self.last {
            let seconds = now.monotonic.saturating_sub(*at).as_secs_f64().max(0.001);
            for ((name, total), loads) in LOADS.iter().zip(&mut self.loads) {
                let per_minute = (total(stats) - total(last)) as f64 * 60.0 / seconds;
                for ((span, span_seconds), load) in SPANS.iter().zip(loads) {
                    *load = per_minute + (-seconds / span_seconds).exp() * (*load - per_minute);
                    tell(format_args!("load/{name}/{span}"), format_args!("{load:.2}"));
                }
            }
        }
        self.last = Some((now.monotonic, *stats));
    }
}

/// Why a client is gone, for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It was told, or has told, this reason.
    Told(ReasonCode),
    /// The connection ended without a word.
    Lost,
}

impl Broker {
    /// Brings the values up to date, tells those that have changed, and sets the timer for the next time.
    pub(super) fn update_system(&mut self, now: Now) {
        let interval = self.limits.system_interval;
        if interval.is_zero() {
            return;
        }
        let stats = self.stats();
        let mut system = std::mem::take(&mut self.system);
        system.work_out(&stats, now, |topic, value| self.tell_system(topic, value.as_bytes(), true, now));
        self.system = system;
        self.timers.set(now.monotonic + interval, Timer::System);
    }

    /// Sends a value to whoever subscribed to it and can take it.
    fn tell_system(&mut self, topic: &str, value: &[u8], retain: bool, now: Now) {
        let record = record(topic, value, retain, now);
        for found in &*self.look_up(record.topic) {
            self.send_system(found, &record, now);
        }
    }

    /// Tells that a client has been let in.
    pub(super) fn tell_connected(
        &mut self,
        key: Key,
        session: Key,
        clean_start: bool,
        present: bool,
        now: Now,
    ) {
        self.tell_client(key, session, "connected", now, |event| {
            let _ = write!(event, r#","clean_start":{clean_start},"session_present":{present}"#);
        });
    }

    /// Tells that a client is gone.
    pub(super) fn tell_disconnected(&mut self, key: Key, session: Key, ending: Ending, now: Now) {
        self.tell_client(key, session, "disconnected", now, |event| {
            let _ = match ending {
                Ending::Told(reason) => {
                    let name =
                        if reason == ReasonCode::Success { "Normal disconnection" } else { reason.name() };
                    write!(event, r#","reason":"{name}","reason_code":{}"#, reason.as_u8())
                }
                Ending::Lost => write!(event, r#","reason":"Connection lost","reason_code":null"#),
            };
        });
    }

    fn tell_client(&mut self, key: Key, session: Key, what: &str, now: Now, more: impl FnOnce(&mut String)) {
        if self.limits.system_interval.is_zero() || !self.router.has_below(SYSTEM) {
            return;
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Some(session) = self.sessions.get(session) else { return };
        let topic = client_topic(&session.client, what);
        if topic.len() > TOPIC_BYTES_MAX || self.look_up(TopicName::trusted(&topic)).is_empty() {
            return;
        }
        let mut event = String::with_capacity(256);
        describe(&mut event, connection, &session.client, session.expiry_s);
        more(&mut event);
        let _ = write!(event, r#","time":"{}"}}"#, Rfc3339(now.wall));
        self.tell_system(&topic, event.as_bytes(), false, now);
    }
}

const fn record<'a>(topic: &'a str, payload: &'a [u8], retain: bool, now: Now) -> Record<'a> {
    Record {
        time: now.wall,
        client: "",
        topic: TopicName::trusted(topic),
        properties: Properties::NONE,
        payload,
        qos: Qos::AtMostOnce,
        retain,
        packet_id: 0,
    }
}

/// The topic of a client's events. What no level may hold, `/`, `+`, `#`, and `%` and control characters, is written as
/// `%` and two hexadecimal digits, as in a URL; so the identifier can be had back.
fn client_topic(client: &str, what: &str) -> String {
    let mut topic = format!("{SYSTEM}/brokers/clients/");
    for character in client.chars() {
        match character {
            '/' | '+' | '#' | '%' | '\0'..='\x1F' | '\x7F' => {
                let _ = write!(topic, "%{:02X}", u32::from(character));
            }
            other => topic.push(other),
        }
    }
    topic.push('/');
    topic.push_str(what);
    topic
}

/// The beginning of a JSON object that says who a client is.
fn describe(event: &mut String, connection: &Connection, client: &str, expiry_s: u32) {
    event.push_str(r#"{"client_id":"#);
    quote(event, client);
    if let Some(user) = connection.identity.as_ref().and_then(|identity| identity.name()) {
        event.push_str(r#","username":"#);
        quote(event, user);
    }
    let version = match connection.version {
        Version::V31 => "3.1",
        Version::V311 => "3.1.1",
        Version::V5 => "5.0",
    };
    let keep_alive_s = connection.silence_max.as_millis() / 1_500;
    let _ = write!(
        event,
        r#","address":"{}","protocol_version":"{version}","keep_alive":{keep_alive_s},"session_expiry":{expiry_s}"#,
        connection.peer
    );
}

/// A JSON string (RFC 8259).
fn quote(event: &mut String, text: &str) {
    event.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => event.extend(['\\', character]),
            '\0'..='\x1F' => {
                let _ = write!(event, "\\u{:04x}", u32::from(character));
            }
            other => event.push(other),
        }
    }
    event.push('"');
}

/// A time as RFC 3339 writes it, to the millisecond.
struct Rfc3339(Timestamp);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, milliseconds) = (self.0.0 / 1_000, self.0.0 % 1_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
    }
}

/// Year, month and day, so many days after 1970-01-01 (Gregorian).
const fn date(mut days: u64) -> (u64, u64, u64) {
    const fn is_leap(year: u64) -> bool {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    }
    // 400 years always have as many days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let in_year = if is_leap(year) { 366 } else { 365 };
        if days < in_year {
            break;
        }
        days -= in_year;
        year += 1;
    }
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let check = |milliseconds, expected: &str| {
            assert_eq!(Rfc3339(Timestamp(milliseconds)).to_string(), expected);
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_826_154_321, "2000-02-29T12:09:14.321Z");
        check(1_772_323_199_999, "2026-02-28T23:59:59.999Z");
        check(1_772_323_200_000, "2026-03-01T00:00:00.000Z");
        check(13_574_563_200_000, "2400-02-29T00:00:00.000Z");
        check(4_102_444_800_000, "2100-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_client_identifier_is_one_level_whatever_it_holds() {
        assert_eq!(client_topic("sensor 01", "connected"), "$SYS/brokers/clients/sensor 01/connected");
        assert_eq!(client_topic("a/+#%\n", "x"), "$SYS/brokers/clients/a%2F%2B%23%25%0A/x");
        assert_eq!(client_topic("étage", "x"), "$SYS/brokers/clients/étage/x");
    }

    #[test]
    fn loads_are_exponential_averages_per_minute() {
        let mut system = System::default();
        let mut now = Now { monotonic: Duration::from_secs(1), wall: Timestamp(0) };
        let mut stats = Stats::default();
        let mut told = Vec::new();
        let mut pass = |stats: &Stats, now: Now| {
            told.clear();
            system.work_out(stats, now, |topic, value| told.push((topic.to_owned(), value.to_owned())));
            told.clone()
        };
        assert!(!pass(&stats, now).iter().any(|(topic, _)| topic.contains("/load/")), "there is no load yet");
        now.monotonic += Duration::from_secs(60);
        stats.publishes_in_total = 1_000;
        let told = pass(&stats, now);
        let load = |span: &str| {
            let topic = format!("$SYS/broker/load/publish/received/{span}");
            told.iter().find(|(each, _)| *each == topic).map(|(_, value)| value.as_str())
        };
        // 1,000 in a minute: 1,000 * (1 - e^-1), (1 - e^-0.2), (1 - e^-0.0667).
        assert_eq!(load("1min"), Some("632.12"));
        assert_eq!(load("5min"), Some("181.27"));
        assert_eq!(load("15min"), Some("64.49"));
        now.monotonic += Duration::from_secs(60);
        let told = pass(&stats, now);
        assert!(told.contains(&("$SYS/broker/uptime".to_owned(), "120 seconds".to_owned())));
        assert!(!told.iter().any(|(topic, _)| topic == "$SYS/broker/version"), "it has not changed");
    }
}
