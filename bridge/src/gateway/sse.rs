//! `/stream/events`: records as server-sent events (WHATWG HTML section 9.2).
//!
//! The `id` of an event is the record's offset, and a browser that comes back with `Last-Event-ID` goes on exactly
//! behind it. Records are unnamed events, so `onmessage` gets readings and nothing else. The `status_update` that
//! existing clients look for comes as an event of that name, with the same `data` line as ever
//! (`?status=message` sends it unnamed, `?status=off` not at all). It carries the id of the place that was
//! reached, so that a browser with a narrow filter does not come back to a place long gone. `gap` events tell
//! what was trimmed before it could be sent; an `error` event tells why the stream ends.
//!
//! Every filter that is asked for must have something in it for the caller, and only what the caller may receive is
//! sent; without a filter, that is all of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use serde_json::json;
use tidegate_broker::record::Offset;
use tidegate_broker::topic::TopicFilter;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::caller::Caller;
use super::encode::Form;
use super::interest::Interest;
use super::reply::Refusal;
use super::resume::{Beginning, From};
use super::routes::App;
use super::serve::Drain;
use super::subscriber::Kind;
use super::subscription::{Delivery, Subscription};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// A comment at least this often keeps proxies from closing a quiet stream.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(15);

/// Why a stream ends whose caller was let in for a while.
pub(super) const EXPIRED: &str = "the token has expired: come again with a new one";

/// How `status_update` comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StatusEvents {
    Named,
    Unnamed,
    Off,
}

/// What the query and the headers ask for; without filters, everything.
#[derive(Debug, PartialEq, Eq)]
struct Wishes {
    filters: Vec<TopicFilter>,
    from: From,
    status: StatusEvents,
}

impl Wishes {
    /// What a browser sends when it comes back (`Last-Event-ID`) counts more than the address of the stream,
    /// which is the same as the first time.
    fn read(query: Vec<(String, String)>, headers: &HeaderMap, filters_max: usize) -> Result<Self, Refusal> {
        let (mut filters, mut from, mut last, mut status) = (Vec::new(), None, None, StatusEvents::Named);
        let bad_from = |error: super::resume::FromError| Refusal::bad_request("bad_from", error.to_string());
        for (name, value) in query {
            match name.as_str() {
                "filter" => filters.push(parse_filter(&value)?),
                "from" => from = Some(From::parse(&value).map_err(bad_from)?),
                "last_event_id" if !value.is_empty() => {
                    last = Some(From::parse_id(&value).map_err(bad_from)?)
                }
                "status" => status = parse_status(&value)?,
                _ => {}
            }
        }
        if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
            let id = id.to_str().unwrap_or("?");
            last = Some(From::parse_id(id).map_err(bad_from)?);
        }
        if filters.len() > filters_max {
            let detail = format!("at most {filters_max} filters (http.filters_max)");
            return Err(Refusal::bad_request("too_many_filters", detail));
        }
        Ok(Self { filters, from: last.or(from).unwrap_or(From::End), status })
    }
}

/// Reads a Topic Filter that a stream can serve.
pub(super) fn parse_filter(text: &str) -> Result<TopicFilter, Refusal> {
    let bad = |detail: String| Refusal::bad_request("bad_filter", detail);
    let filter = TopicFilter::new(text).map_err(|error| bad(format!("{text:?}: {error}")))?;
    if text == "$share" || text.starts_with("$share/") {
        return Err(bad("a stream cannot share a subscription: every subscriber gets every record".into()));
    }
    Ok(filter)
}

fn parse_status(text: &str) -> Result<StatusEvents, Refusal> {
    match text {
        "event" => Ok(StatusEvents::Named),
        "message" => Ok(StatusEvents::Unnamed),
        "off" => Ok(StatusEvents::Off),
        _ => Err(Refusal::bad_request("bad_query", "status is event, message or off")),
    }
}

/// `GET /stream/events?filter=a/+/b&from=oldest|end|OFFSET|-N&last_event_id=OFFSET&status=event|message|off`
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Vec<(String, String)>>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|error| Refusal::bad_request("bad_query", error.body_text()))?;
    let mut wishes = Wishes::read(query, &headers, app.config.filters_max)?;
    wishes.filters.iter().try_for_each(|filter| app.guard.may_subscribe(&caller, filter))?;
    if wishes.filters.is_empty() {
        wishes.filters.push(parse_filter("#")?);
    }
    if app.is_draining() {
        return Err(Refusal::unavailable("stopping", "the gateway is stopping", 5));
    }
    let beginning = wishes
        .from
        .resolve(&app.hub.journal)
        .map_err(|error| Refusal::bad_request("bad_from", error.to_string()))?;
    let mut interest = Interest::new(Form::Sse);
    for filter in wishes.filters {
        interest.add(filter, beginning.from, beginning.from);
    }
    let (subscription, _) = app
        .hub
        .subscribe(Kind::EventStream, caller, interest, beginning.from)
        .map_err(|error| Refusal::unavailable("too_many_subscribers", error.to_string(), 5))?;
    let stream = EventStream::new(app, subscription, wishes.status, beginning);
    let body = stream::unfold(stream, |mut stream| async move {
        stream.next().await.map(|bytes| (Ok::<_, Infallible>(bytes), stream))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would hold events back otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((StatusCode::OK, headers, Body::from_stream(body)).into_response())
}

struct EventStream {
    app: Arc<App>,
    subscription: Subscription,
    status: StatusEvents,
    ticks: Interval,
    drain: Drain,
    /// What is sent before anything else.
    first: Option<Bytes>,
    ended: bool,
}

impl EventStream {
    fn new(app: Arc<App>, subscription: Subscription, status: StatusEvents, beginning: Beginning) -> Self {
        let interval = Duration::from_millis(app.config.status_interval_ms);
        let interval = match status {
            StatusEvents::Named | StatusEvents::Unnamed => interval,
            StatusEvents::Off => KEEP_ALIVE_MAX,
        };
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = format!("retry: {}\n\n", app.config.retry_ms);
        if let Some(last) = beginning.unknown {
            first.push_str(&unknown_event(last, beginning.from));
        }
        let drain = app.drain.clone();
        Self { app, subscription, status, ticks, drain, first: Some(first.into()), ended: false }
    }

    /// The next bytes of the body; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.ended {
            return None;
        }
        loop {
            let subscriber = Arc::clone(self.subscription.subscriber());
            let delivery = tokio::select! {
                biased;
                () = self.drain.begun() => return None,
                () = subscriber.caller.expired() => {
                    self.ended = true;
                    self.app.guard.access.note_expired();
                    return Some(error_event(EXPIRED).into());
                }
                delivery = self.subscription.next() => Some(delivery),
                _ = self.ticks.tick() => None,
            };
            match delivery {
                None => return Some(self.sign_of_life()),
                Some(Delivery::Events(events)) => {
                    if let Some(bytes) = join(events) {
                        return Some(bytes);
                    }
                }
                Some(Delivery::Gap { from, to }) => return Some(gap_event(from, to).into()),
                Some(Delivery::Failed(error)) => {
                    tracing::error!(%error, "an event stream ends");
                    self.ended = true;
                    return Some(error_event(&error).into());
                }
            }
        }
    }

    /// A sign of life that also moves the place from which the browser would resume.
    fn sign_of_life(&self) -> Bytes {
        let mut out = match self.subscription.position().0.checked_sub(1) {
            Some(last) => format!(": keep-alive\nid: {last}\n"),
            None => String::from(": keep-alive\n"),
        };
        let status = match self.status {
            StatusEvents::Named => "event: status_update\ndata: ",
            StatusEvents::Unnamed => "data: ",
            StatusEvents::Off => return (out + "\n").into(),
        };
        out.push_str(status);
        out.push_str(&self.app.status_update(&self.subscription.subscriber().caller));
        out.push_str("\n\n");
        out.into()
    }
}

/// Many small events become one write; a single one is not copied.
fn join(mut events: Vec<Bytes>) -> Option<Bytes> {
    match events.len() {
        0 => None,
        1 => events.pop(),
        _ => {
            let mut joined = BytesMut::with_capacity(events.iter().map(Bytes::len).sum());
            events.iter().for_each(|event| joined.extend_from_slice(event));
            Some(joined.freeze())
        }
    }
}

/// Tells why the stream ends.
fn error_event(error: &str) -> String {
    format!("event: error\ndata: {}\n\n", json!({ "error": error }))
}

/// Tells that the entries of `from..to` are gone. Its id is the last of them, so that it is told once.
fn gap_event(from: Offset, to: Offset) -> String {
    let data = json!({"from": from.0, "to": to.0, "reason": "trimmed"});
    format!("event: gap\nid: {}\ndata: {data}\n\n", to.0.saturating_sub(1))
}

/// Tells that `last` is no offset of this journal, which begins at `start`.
fn unknown_event(last: Offset, start: Offset) -> String {
    let data = json!({"from": last.0.saturating_add(1), "to": start.0, "reason": "another journal"});
    format!("event: gap\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(query: &[(&str, &str)], last_event_id: Option<&str>) -> Result<Wishes, Refusal> {
        let query = query.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut headers = HeaderMap::new();
        if let Some(id) = last_event_id {
            headers.insert(LAST_EVENT_ID, id.parse().unwrap());
        }
        Wishes::read(query, &headers, 2)
    }

    #[test]
    fn what_the_browser_remembers_counts_more_than_the_address() {
        let from = |query: &[(&str, &str)], id| wishes(query, id).unwrap().from;
        assert_eq!(from(&[], None), From::End);
        assert_eq!(from(&[("from", "oldest")], None), From::Oldest);
        assert_eq!(from(&[("from", "7")], None), From::Offset(Offset(7)));
        assert_eq!(from(&[("last_event_id", "9"), ("from", "7")], None), From::After(Offset(9)));
        assert_eq!(from(&[("last_event_id", "9")], Some("12")), From::After(Offset(12)));
        assert_eq!(from(&[("last_event_id", "")], Some("")), From::End);
    }

    #[test]
    fn filters_are_checked_and_limited() {
        assert_eq!(wishes(&[], None).unwrap().filters, []);
        assert_eq!(wishes(&[("filter", "a/+"), ("filter", "b")], None).unwrap().filters.len(), 2);
        let code = |query: &[(&str, &str)]| wishes(query, None).unwrap_err().code;
        assert_eq!(code(&[("filter", "a/#/b")]), "bad_filter");
        assert_eq!(code(&[("filter", "")]), "bad_filter");
        assert_eq!(code(&[("filter", "$share/g/a")]), "bad_filter");
        assert_eq!(code(&[("filter", "a"), ("filter", "b"), ("filter", "c")]), "too_many_filters");
        assert_eq!(code(&[("from", "yesterday")]), "bad_from");
        assert_eq!(code(&[("last_event_id", "x")]), "bad_from");
        assert_eq!(code(&[("status", "loud")]), "bad_query");
    }

    #[test]
    fn a_gap_is_told_once() {
        assert_eq!(
            gap_event(Offset(3), Offset(10)),
            "event: gap\nid: 9\ndata: {\"from\":3,\"reason\":\"trimmed\",\"to\":10}\n\n"
        );
    }
}
