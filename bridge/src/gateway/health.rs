//! `/health`: the truth about each part.
//!
//! The appliance is `healthy` when everything works, `degraded` when something is away but data is accepted and
//! kept (a sink that is away is lag, never loss), `unhealthy` when it cannot accept and keep data. Only the last
//! is answered with 503, so a probe does not restart an appliance because Kafka is away. Devices, and whoever comes
//! without credentials where they are needed, learn the status and nothing else.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use tidegate_broker::journal;
use tidegate_broker::record::Timestamp;
use tidegate_broker::server::SESSIONS_CURSOR;

use super::caller::Caller;
use super::encode::rfc3339;
use super::reply;
use super::routes::App;
use crate::balance::Balance;
use crate::health::{Part, State as PartState, age_ms};

/// The whole, from its parts; the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Healthy,
    Degraded,
    Unhealthy,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    const fn http(self) -> StatusCode {
        match self {
            Self::Healthy | Self::Degraded => StatusCode::OK,
            Self::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// How the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JournalState {
    Ok,
    /// It has reached its size.
    Full,
    /// It has not, but the disk has no space.
    DiskFull,
    Failed,
}

impl JournalState {
    const fn of(status: &journal::Status) -> Self {
        if status.failed.is_some() {
            Self::Failed
        } else if status.no_space.is_some() {
            Self::DiskFull
        } else if status.full {
            Self::Full
        } else {
            Self::Ok
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            // One name for both, as for the metric: publishes are refused until there is room.
            Self::Full | Self::DiskFull => "full",
            Self::Failed => "failed",
        }
    }

    const fn status(self) -> Status {
        match self {
            Self::Ok => Status::Healthy,
            Self::Full | Self::DiskFull | Self::Failed => Status::Unhealthy,
        }
    }
}

/// Without its listener the appliance accepts nothing; without a sink it keeps what it would send.
const fn mqtt_status(state: PartState) -> Status {
    match state {
        PartState::Up => Status::Healthy,
        PartState::Degraded => Status::Degraded,
        PartState::Starting | PartState::Down | PartState::Failed => Status::Unhealthy,
    }
}

const fn sink_status(state: PartState) -> Status {
    match state {
        PartState::Up => Status::Healthy,
        PartState::Starting | PartState::Degraded | PartState::Down | PartState::Failed => Status::Degraded,
    }
}

const fn state_name(state: PartState) -> &'static str {
    match state {
        PartState::Starting => "starting",
        PartState::Up => "up",
        PartState::Degraded => "degraded",
        PartState::Down => "down",
        PartState::Failed => "failed",
    }
}

impl App {
    /// Whether something here moves the cursor, so that it does not hold the journal back for ever.
    fn moves_cursor(&self, name: &str) -> bool {
        name == SESSIONS_CURSOR || self.parts.sinks.iter().any(|part| part.name() == name)
    }

    fn overall(&self, journal: &journal::Status) -> Status {
        let others = self.parts.sinks.iter().chain(&self.parts.sources);
        let sinks = others.map(|part| sink_status(part.report().state));
        let mqtt = mqtt_status(self.parts.mqtt.report().state);
        sinks.chain([mqtt, JournalState::of(journal).status()]).max().unwrap_or(Status::Healthy)
    }
}

/// `GET /health`
pub(super) async fn health(State(app): State<Arc<App>>, Extension(caller): Extension<Caller>) -> Response {
    let journal = app.hub.journal.status();
    let status = app.overall(&journal);
    let mut body = Map::new();
    body.insert("status".into(), status.name().into());
    body.insert("service".into(), app.config.service_name.as_str().into());
    body.insert("realtime_enabled".into(), true.into());
    body.insert("websocket_enabled".into(), true.into());
    if app.guard.is_operator(&caller) {
        add_details(&app, &journal, &mut body);
    }
    reply::json(status.http(), &body)
}

fn add_details(app: &App, journal: &journal::Status, body: &mut Map<String, Value>) {
    let connected = app.parts.all().filter(|part| match part.report().state {
        PartState::Up | PartState::Degraded => true,
        PartState::Starting | PartState::Down | PartState::Failed => false,
    });
    let counts = app.hub.counts();
    body.insert("connections".into(), connected.count().into());
    body.insert("message_count".into(), app.message_count().into());
    body.insert("error_count".into(), app.error_count().into());
    body.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    body.insert("uptime_s".into(), app.started.elapsed().as_secs().into());
    body.insert("draining".into(), app.is_draining().into());
    body.insert("journal".into(), journal_details(app, journal));
    body.insert("mqtt".into(), part_details(&app.parts.mqtt));
    body.insert("listeners".into(), listeners(app));
    let sinks = app.parts.sinks.iter().map(part_details).collect::<Vec<_>>();
    body.insert("sinks".into(), sinks.into());
    let sources = app.parts.sources.iter().map(part_details).collect::<Vec<_>>();
    body.insert("sources".into(), sources.into());
    body.insert("outputs".into(), outputs(app));
    body.insert(
        "gateway".into(),
        json!({
            "event_streams": counts.event_streams,
            "websockets": counts.websockets,
            "catching_up": counts.catching_up,
            "subscribers_max": counts.subscribers_max,
        }),
    );
}

/// Where MQTT is accepted.
fn listeners(app: &App) -> Value {
    let listening = app.mqtt.iter().flat_map(|mqtt| &mqtt.listening);
    listening
        .map(|(transport, place)| json!({"transport": transport.name(), "address": place.to_string()}))
        .collect()
}

/// What became of every record, for each output.
fn outputs(app: &App) -> Value {
    let balances = app.balances(&app.publisher.stats());
    let output = |(name, balance): (&str, Balance)| {
        let dropped: Map<_, _> =
            balance.dropped.into_iter().map(|(reason, count)| (reason.to_owned(), count.into())).collect();
        json!({
            "name": name,
            "in": balance.taken_in,
            "delivered": balance.delivered,
            "dropped": dropped,
            "pending": balance.pending,
        })
    };
    balances.into_iter().map(output).collect()
}

/// What is wrong with the journal, and what to do about it.
fn journal_trouble(status: &journal::Status) -> Option<String> {
    let blocking = status.cursors.iter().min_by_key(|cursor| cursor.position);
    match JournalState::of(status) {
        JournalState::Ok => None,
        JournalState::Full => Some(match blocking {
            Some(cursor) => format!(
                "the journal is full and publishes are refused: {:?} has read up to {} of {}; bring its destination \
                 back, or raise journal.max_bytes",
                cursor.name, cursor.position, status.durable_end
            ),
            None => "the journal is full and publishes are refused: raise journal.max_bytes".into(),
        }),
        JournalState::DiskFull => Some(format!(
            "the disk is full and publishes are refused ({}): free some space, and it goes on by itself; lower \
             journal.max_bytes, so that this does not happen again",
            status.no_space.as_deref().unwrap_or("no space")
        )),
        JournalState::Failed => Some(format!(
            "{}; check the disk, then restart",
            status.failed.as_deref().unwrap_or("a write or sync failed")
        )),
    }
}

fn journal_details(app: &App, status: &journal::Status) -> Value {
    let blocking = status.cursors.iter().min_by_key(|cursor| cursor.position);
    let behind = blocking.filter(|cursor| cursor.position < status.durable_end);
    let held = behind.map(|cursor| {
        json!({
            "cursor": cursor.name,
            "bytes": cursor.lag_bytes,
            "age_ms": cursor.behind_since.map_or(0, age_ms),
        })
    });
    let unused: Vec<_> =
        status.cursors.iter().map(|cursor| &cursor.name).filter(|name| !app.moves_cursor(name)).collect();
    let hint = (!unused.is_empty()).then_some(
        "nothing moves the unused cursors, so the journal keeps everything from there on: switch their sinks on again, or \
         stop tidegate and let go of each with `tidegate journal cursors remove NAME`",
    );
    let cursors: Vec<_> = status
        .cursors
        .iter()
        .map(|cursor| {
            json!({
                "name": cursor.name,
                "position": cursor.position.0,
                "lag_entries": status.durable_end.since(cursor.position),
                "lag_bytes": cursor.lag_bytes,
                "skipped": cursor.skipped,
                "age_ms": cursor.behind_since.map_or(0, age_ms),
                "used": app.moves_cursor(&cursor.name),
            })
        })
        .collect();
    json!({
        "state": JournalState::of(status).name(),
        "detail": journal_trouble(status),
        "id": format!("{:032x}", app.hub.journal.id().0),
        "start": status.start.0,
        "durable_end": status.durable_end.0,
        "bytes": status.bytes,
        "max_bytes": status.max_bytes,
        "segments": status.segments,
        "blocking_cursor": behind.map(|cursor| &cursor.name),
        "held": held,
        "unused_cursors": unused,
        "unused_cursors_hint": hint,
        "cursors": cursors,
    })
}

fn part_details(part: &Part) -> Value {
    let report = part.report();
    let since = report.since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    json!({
        "name": part.name(),
        "state": state_name(report.state),
        "detail": report.detail,
        "lag": report.lag.map(|lag| json!({"entries": lag.entries, "age_ms": lag.age_ms})),
        "rejected": report.rejected,
        "since": rfc3339(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))),
    })
}

/// `GET /health/live`: the process answers.
pub(super) async fn live() -> Response {
    reply::json(StatusCode::OK, &json!({"status": "alive"}))
}

/// `GET /health/ready`: whether new work should come here.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let journal = JournalState::of(&app.hub.journal.status());
    let mqtt = mqtt_status(app.parts.mqtt.report().state);
    let reason = if app.is_draining() {
        "stopping"
    } else if journal != JournalState::Ok {
        match journal {
            JournalState::Ok => "ok",
            JournalState::Full => "the journal is full",
            JournalState::DiskFull => "the disk is full",
            JournalState::Failed => "the journal failed",
        }
    } else if mqtt == Status::Unhealthy {
        "the MQTT listener is not up"
    } else {
        return reply::json(StatusCode::OK, &json!({"status": "ready"}));
    };
    reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not ready", "reason": reason}))
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::Offset;

    use super::*;

    #[test]
    fn only_what_stops_acceptance_is_unhealthy() {
        let check = |sink, mqtt, journal: JournalState, expected: Status| {
            let all = [sink_status(sink), mqtt_status(mqtt), journal.status()];
            assert_eq!(all.into_iter().max(), Some(expected), "{sink:?} {mqtt:?} {journal:?}");
        };
        check(PartState::Up, PartState::Up, JournalState::Ok, Status::Healthy);
        check(PartState::Down, PartState::Up, JournalState::Ok, Status::Degraded);
        check(PartState::Failed, PartState::Up, JournalState::Ok, Status::Degraded);
        check(PartState::Up, PartState::Down, JournalState::Ok, Status::Unhealthy);
        check(PartState::Up, PartState::Up, JournalState::Full, Status::Unhealthy);
        check(PartState::Up, PartState::Up, JournalState::DiskFull, Status::Unhealthy);
        check(PartState::Up, PartState::Up, JournalState::Failed, Status::Unhealthy);
    }

    #[test]
    fn a_full_disk_is_told_from_a_full_journal() {
        let cursor = journal::CursorStatus {
            name: "kafka".to_owned(),
            position: Offset(2),
            lag_bytes: 80,
            skipped: 0,
            behind_since: None,
        };
        let mut status = journal::Status {
            start: Offset(0),
            durable_end: Offset(10),
            bytes: 100,
            max_bytes: 100,
            policy: journal::FullPolicy::Refuse,
            segments: 1,
            full: true,
            no_space: None,
            failed: None,
            cursors: vec![cursor],
        };
        let told = journal_trouble(&status).unwrap();
        assert!(told.contains("\"kafka\" has read up to 2 of 10"), "{told}");
        status.no_space = Some("no space for 1.log: No space left on device".to_owned());
        let told = journal_trouble(&status).unwrap();
        assert!(told.contains("the disk is full") && told.contains("No space left on device"), "{told}");
        assert!(told.contains("goes on by itself") && !told.contains("bring its destination back"), "{told}");
        status.failed = Some("sync of 1.log: Input/output error".to_owned());
        assert!(journal_trouble(&status).unwrap().contains("then restart"));
    }
}
