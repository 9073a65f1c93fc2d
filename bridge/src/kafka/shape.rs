//! Says how each record is produced: where to, under which key, with which headers, and as which bytes.

use std::borrow::Cow;

use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};

use crate::route::{HeaderStyle, KafkaTopic, Routes};

use super::config::Config;
use super::headers::HeaderWriter;
use super::native::{Headers, Outgoing, Value};

/// Room for the headers of CloudEvents and one of the publisher's; the list grows when there are more.
const HEADERS_USUAL: usize = 7;

/// Shapes records, in offset order. What changes from record to record is written into buffers that are kept.
#[derive(Debug)]
pub(super) struct Shaper {
    routes: Routes,
    /// Which headers the records of each route carry.
    styles: Vec<HeaderStyle>,
    headers: HeaderWriter,
    unrouted: metrics::Counter,
}

impl Shaper {
    /// For records of `journal`, counted under the name `sink`. Returns every mistake in the routes, if there is one.
    pub(super) fn new(config: &Config, journal: JournalId, sink: &'static str) -> Result<Self, Vec<String>> {
        Ok(Self {
            routes: Routes::new(&config.routes)?,
            styles: config.routes.iter().map(|route| route.headers.unwrap_or(config.headers)).collect(),
            headers: HeaderWriter::new(journal.0, &config.source),
            unrouted: metrics::counter!("tidegate_sink_unrouted_total", "sink" => sink),
        })
    }

    /// The Kafka topics that records can go to; [`Outgoing::topic`] counts in them.
    pub(super) fn topics(&self) -> &[KafkaTopic] {
        self.routes.topics()
    }

    /// How `record`, which lies at `offset`, is produced; `None` if it is not.
    pub(super) fn shape<'r>(&mut self, offset: Offset, record: &Record<'r>) -> Option<Outgoing<'r>> {
        let Some(destination) = self.routes.destination(record.topic, record.client, record.payload) else {
            self.unrouted.increment(1);
            return None;
        };
        let style = self.styles[destination.route];
        let headers = (style != HeaderStyle::None).then(|| {
            let mut headers = Headers::new(HEADERS_USUAL);
            self.headers.write(style, offset, record, &mut headers);
            headers
        });
        let key = destination.key.map(|key| match key {
            Cow::Borrowed(key) => Cow::Borrowed(key.as_bytes()),
            Cow::Owned(key) => Cow::Owned(key.into_bytes()),
        });
        Some(Outgoing { topic: destination.topic, key, value: Value::Payload, headers })
    }
}
