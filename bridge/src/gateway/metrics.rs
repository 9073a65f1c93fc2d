//! `/metrics`: the Prometheus text format (version 0.0.4).
//!
//! What the broker and the journal count themselves is read at each scrape and written here; what other parts
//! record through the `metrics` facade is appended as its exporter renders it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use tidegate_broker::server::{DropReason, Limit, RefusalReason, Stats, Transport, TransportStats};

use super::reply;
use super::routes::App;
use crate::balance::Balance;

/// What a family of samples is.
#[derive(Clone, Copy, Debug)]
enum Type {
    Counter,
    Gauge,
}

/// Metric families in the text format.
#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: Type, help: &str, samples: &[(Option<(&str, &str)>, u64)]) {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (label, value) in samples {
            let _ = match label {
                None => writeln!(self.0, "{name} {value}"),
                Some((label, text)) => writeln!(self.0, "{name}{{{label}=\"{}\"}} {value}", escaped(text)),
            };
        }
    }

    fn family_of_two(
        &mut self,
        name: &str,
        kind: Type,
        help: &str,
        labels: (&str, &str),
        samples: &[(&str, &str, u64)],
    ) {
        self.family(name, kind, help, &[]);
        for (first, second, value) in samples {
            let (first, second) = (escaped(first), escaped(second));
            let (one, two) = labels;
            let _ = writeln!(self.0, "{name}{{{one}=\"{first}\",{two}=\"{second}\"}} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: Type, help: &str, value: u64) {
        self.family(name, kind, help, &[(None, value)]);
    }
}

/// A label's value as the text format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut out = Exposition::default();
    let stats = app.publisher.stats();
    broker(&app, &stats, &mut out);
    outputs(&app.balances(&stats), &mut out);
    journal(&app, &mut out);
    parts(&app, &mut out);
    gateway(&app, &mut out);
    let mut text = out.0;
    if let Some(handle) = &app.metrics {
        text.push_str(&handle.render());
    }
    reply::typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

#[rustfmt::skip]
fn broker(app: &App, stats: &Stats, out: &mut Exposition) {
    use Type::{Counter, Gauge};
    let (denials, logins) = (app.guard.access.denials(), app.guard.access.logins());
    out.one("tidegate_mqtt_connections", Gauge, "Open MQTT connections.", stats.connections);
    out.one("tidegate_mqtt_connections_total", Counter, "MQTT connections accepted.", stats.connections_total);
    out.one("tidegate_mqtt_connections_refused_total", Counter, "MQTT connections refused.", stats.connections_refused_total);
    let by_transport = |value: fn(TransportStats) -> u64| -> Vec<_> {
        let stats = |transport| app.mqtt.as_ref().map_or_else(TransportStats::default, |mqtt| mqtt.handle.transport(transport));
        Transport::ALL.into_iter().map(|transport| (Some(("transport", transport.name())), value(stats(transport)))).collect()
    };
    out.family("tidegate_mqtt_transport_connections", Gauge, "Open MQTT connections by transport.", &by_transport(|stats| stats.connections));
    out.family("tidegate_mqtt_transport_connections_total", Counter, "MQTT connections accepted by transport.", &by_transport(|stats| stats.connections_total));
    out.family("tidegate_mqtt_handshake_failures_total", Counter, "Connections that ended before their PROXY header, TLS or WebSocket handshake was done.",
        &by_transport(|stats| stats.handshake_failures_total));
    out.one("tidegate_mqtt_sessions_connected", Gauge, "MQTT sessions whose client is connected.", stats.sessions_connected);
    out.one("tidegate_mqtt_logins_failed_total", Counter, "Logins refused for who the client is, over MQTT or HTTP.", logins.failed);
    out.one("tidegate_mqtt_publishes_denied_total", Counter, "Publishes and Wills that the rules did not allow, over MQTT or HTTP.", denials.publishes);
    out.one("tidegate_mqtt_subscriptions_denied_total", Counter, "Subscriptions of which the rules allow to receive nothing, over MQTT or HTTP.", denials.subscriptions);
    out.one("tidegate_mqtt_logins_unchecked_total", Counter, "Logins refused unchecked, over MQTT or HTTP, after many that failed from their address.", logins.unchecked);
    out.one("tidegate_mqtt_credentials_expired_total", Counter, "MQTT connections, event streams and WebSockets closed because their token had expired.", logins.expired);
    out.one("tidegate_mqtt_sessions", Gauge, "MQTT sessions, connected or not.", stats.sessions);
    out.one("tidegate_mqtt_subscriptions", Gauge, "MQTT subscriptions.", stats.subscriptions);
    out.one("tidegate_mqtt_sessions_expired_total", Counter, "MQTT sessions that ended because their client stayed away.", stats.sessions_expired_total);
    out.one("tidegate_mqtt_retained", Gauge, "Topics with a retained record.", stats.retained);
    out.one("tidegate_mqtt_retained_bytes", Gauge, "Size of all retained records in bytes.", stats.retained_bytes);
    out.one("tidegate_mqtt_packets_received_total", Counter, "MQTT packets received.", stats.packets_in_total);
    out.one("tidegate_mqtt_packets_sent_total", Counter, "MQTT packets sent.", stats.packets_out_total);
    out.one("tidegate_mqtt_received_bytes_total", Counter, "Bytes received from MQTT clients.", stats.bytes_in_total);
    out.one("tidegate_mqtt_sent_bytes_total", Counter, "Bytes sent to MQTT clients.", stats.bytes_out_total);
    out.one("tidegate_publishes_accepted_total", Counter, "Publishes accepted.", stats.publishes_in_total);
    out.one("tidegate_publishes_sent_total", Counter, "Publishes sent to MQTT subscribers.", stats.publishes_out_total);
    out.one("tidegate_publishes_sent_again_total", Counter, "Publishes sent once more to MQTT subscribers that had not acknowledged them.", stats.publishes_again_total);
    out.one("tidegate_publishes_sent_stored_total", Counter, "Publishes sent to MQTT subscribers from the retained store, or below $SYS.", stats.publishes_stored_total);
    out.family("tidegate_publishes_refused_total", Counter, "Publishes not accepted, by reason.",
        &RefusalReason::ALL.map(|reason| {
            let count = if reason == RefusalReason::Denied { denials.publishes } else { stats.publishes_refused.of(reason) };
            (Some(("reason", reason.name())), count)
        }));
    out.family("tidegate_publishes_dropped_total", Counter, "Accepted publishes that did not reach an MQTT subscriber, by reason.",
        &DropReason::ALL.map(|reason| (Some(("reason", reason.name())), stats.publishes_dropped.of(reason))));
    out.family("tidegate_mqtt_limit_reached_total", Counter, "Times that a limit was reached, by limit.",
        &Limit::ALL.map(|limit| (Some(("limit", limit.name())), stats.limits.of(limit))));
    out.one("tidegate_memory_bytes", Gauge, "Resident memory of the process.", stats.memory_bytes);
    out.one("tidegate_mqtt_protocol_errors_total", Counter, "MQTT connections closed for a protocol error.", stats.protocol_errors_total);
}

impl App {
    /// What became of every record, for each output. Each is read in one go, so that its equation holds.
    pub(super) fn balances(&self, stats: &Stats) -> Vec<(&'static str, Balance)> {
        let mut balances = Vec::new();
        for sink in &self.parts.sinks {
            balances.extend(sink.balance(|| self.hub.journal.records_total()).map(|it| (sink.name(), it)));
        }
        let mqtt = Balance {
            taken_in: stats.balance.taken_in,
            delivered: stats.balance.delivered,
            dropped: DropReason::ALL.map(|reason| (reason.name(), stats.balance.dropped.of(reason))).to_vec(),
            pending: stats.balance.pending(),
        };
        balances.push(("mqtt", mqtt));
        balances.push(("http", self.hub.ledger.balance()));
        balances
    }
}

#[rustfmt::skip]
fn outputs(balances: &[(&'static str, Balance)], out: &mut Exposition) {
    use Type::{Counter, Gauge};
    let each = |value: fn(&Balance) -> u64| -> Vec<_> {
        balances.iter().map(|(name, balance)| (Some(("output", *name)), value(balance))).collect()
    };
    out.family("tidegate_output_in_total", Counter, "Records that became the output's business since the start; for each output in = delivered + dropped + pending, in every scrape. \
        kafka, postgres: each durable record, from the cursor at the start on. mqtt: each record for each session or shared group, a QoS 0 record on arrival, others when durable, those from before the start when the session reads them. \
        http: each record for each event stream or WebSocket, when it is queued or read for it.", &each(|balance| balance.taken_in));
    out.family("tidegate_output_delivered_total", Counter, "Records that arrived. kafka, postgres: confirmed. mqtt: sent at QoS 0, acknowledged in full at QoS 1 and 2. http: handed to the connection.", &each(|balance| balance.delivered));
    let dropped: Vec<_> = balances.iter()
        .flat_map(|(name, balance)| balance.dropped.iter().map(|(reason, count)| (*name, *reason, *count)))
        .collect();
    out.family_of_two("tidegate_output_dropped_total", Counter, "Records that will not arrive, by reason. kafka, postgres: those of tidegate_sink_rejected_total, which the destination never takes (Kafka has them as dead letters, PostgreSQL in the table quarantine). trimmed: the journal had to drop it first. \
        away: at QoS 0 for a client that was not there. session_ended: it waited for a session that ended. unsubscribed: it was no longer wanted, or no longer allowed, when the reader came to it. refused: the client answered that it does not take it. \
        disconnected: the stream or WebSocket ended.", ("output", "reason"), &dropped);
    out.family("tidegate_output_pending", Gauge, "Records that may still arrive. kafka, postgres: between the cursor and the durable end. mqtt: waiting in the journal for sessions that are behind (as far as they are in), or not acknowledged. http: queued, or to be read again.", &each(|balance| balance.pending));
}

#[rustfmt::skip]
fn journal(app: &App, out: &mut Exposition) {
    use Type::{Counter, Gauge};
    let status = app.hub.journal.status();
    out.one("tidegate_journal_start_offset", Gauge, "Offset of the oldest kept entry.", status.start.0);
    out.one("tidegate_journal_durable_end_offset", Gauge, "Every entry before this offset is on disk.", status.durable_end.0);
    out.one("tidegate_journal_bytes", Gauge, "Size of all segments in bytes.", status.bytes);
    out.one("tidegate_journal_max_bytes", Gauge, "Limit of the size of all segments in bytes.", status.max_bytes);
    out.one("tidegate_journal_segments", Gauge, "Number of segments.", status.segments as u64);
    out.one("tidegate_journal_full", Gauge, "1 while entries are refused because the journal is full.", u64::from(status.full));
    out.one("tidegate_journal_failed", Gauge, "1 after a write or sync failed.", u64::from(status.failed.is_some()));
    let cursors = |value: fn(&tidegate_broker::journal::CursorStatus, u64) -> u64| -> Vec<_> {
        let samples = status.cursors.iter();
        samples.map(|cursor| (Some(("cursor", cursor.name.as_str())), value(cursor, status.durable_end.0))).collect()
    };
    out.family("tidegate_journal_cursor_offset", Gauge, "Every entry before this offset is done for the cursor.",
        &cursors(|cursor, _| cursor.position.0));
    out.family("tidegate_journal_cursor_lag_entries", Gauge, "Entries between the cursor and the durable end.",
        &cursors(|cursor, end| end.saturating_sub(cursor.position.0)));
    out.family("tidegate_journal_cursor_lag_bytes", Gauge, "Bytes between the cursor and the durable end, from segment sizes.",
        &cursors(|cursor, _| cursor.lag_bytes));
    out.family("tidegate_journal_cursor_age_milliseconds", Gauge, "Age of the oldest entry that the cursor has not passed, or a little more; 0 when it has passed all. Told by its batch, or by when its segment was made.",
        &cursors(|cursor, _| cursor.behind_since.map_or(0, crate::health::age_ms)));
    let slowest = status.cursors.iter().map(|cursor| cursor.position).min();
    let holds = |cursor: &tidegate_broker::journal::CursorStatus| cursor.position < status.durable_end && Some(cursor.position) == slowest;
    let holding: Vec<_> = status.cursors.iter().map(|cursor| (Some(("cursor", cursor.name.as_str())), u64::from(holds(cursor)))).collect();
    out.family("tidegate_journal_cursor_holding", Gauge, "1 for the slowest cursor, which holds back trimming: lag_bytes says how much, age how long.", &holding);
    out.family("tidegate_journal_cursor_skipped_total", Counter, "Entries trimmed before the cursor had read them.",
        &cursors(|cursor, _| cursor.skipped));
}

#[rustfmt::skip]
fn parts(app: &App, out: &mut Exposition) {
    use Type::{Counter, Gauge};
    let reports: Vec<_> =
        app.parts.all().map(|part| (part.name(), part.report())).collect();
    let up: Vec<_> = reports.iter()
        .map(|(name, report)| (Some(("part", *name)), u64::from(report.state == crate::health::State::Up)))
        .collect();
    out.family("tidegate_part_up", Gauge, "1 while the part works.", &up);
    let lags: Vec<_> = reports.iter()
        .filter_map(|(name, report)| report.lag.map(|lag| (Some(("sink", *name)), lag.age_ms)))
        .collect();
    out.family("tidegate_sink_lag_milliseconds", Gauge, "Age of the oldest record the sink has not yet delivered.", &lags);
    let rejected: Vec<_> = reports.iter().skip(1)
        .map(|(name, report)| (Some(("sink", *name)), report.rejected))
        .collect();
    out.family("tidegate_sink_rejected_total", Counter, "Records the destination will never take.", &rejected);
}

#[rustfmt::skip]
fn gateway(app: &App, out: &mut Exposition) {
    use Type::{Counter, Gauge};
    let (counts, totals) = (app.hub.counts(), &app.hub.totals);
    out.family("tidegate_gateway_subscribers", Gauge, "Open event streams and WebSockets.", &[
        (Some(("kind", "event_stream")), counts.event_streams as u64),
        (Some(("kind", "websocket")), counts.websockets as u64),
    ]);
    out.one("tidegate_gateway_subscribers_catching_up", Gauge, "Subscribers that read the journal themselves.", counts.catching_up as u64);
    let total = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    out.one("tidegate_gateway_events_sent_total", Counter, "Records handed to event streams and WebSockets.", total(&totals.delivered));
    out.one("tidegate_gateway_fell_behind_total", Counter, "Times a subscriber left the live tail because its queue was full.", total(&totals.fell_behind));
    out.one("tidegate_gateway_subscribers_refused_total", Counter, "Subscribers refused because there were too many.", total(&totals.refused));
    out.one("tidegate_gateway_broadcasts_dropped_total", Counter, "Broadcast frames not sent to a WebSocket that did not read.", total(&totals.control_dropped));
    out.one("tidegate_gateway_read_errors_total", Counter, "Reads of the journal that failed.", total(&totals.read_errors));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_help_type_and_escaped_labels() {
        let mut out = Exposition::default();
        out.family("a_total", Type::Counter, "What it is.", &[(Some(("cursor", "x\"\\\n")), 3), (None, 4)]);
        assert_eq!(
            out.0,
            "# HELP a_total What it is.\n# TYPE a_total counter\na_total{cursor=\"x\\\"\\\\\\n\"} 3\na_total 4\n"
        );
    }
}
