//! Says how each record is produced: where to, under which key, with which headers, and as which bytes.

use std::borrow::Cow;

use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};

use crate::route::Routes;

use super::config::Config;
use super::headers::HeaderWriter;
use super::native::{Headers, Outgoing, Value};

/// Shapes records, in offset order. What changes from record to record is written into buffers that are kept.
#[derive(Debug)]
pub(super) struct Shaper {
    routes: Routes,
    headers: HeaderWriter,
    unrouted: metrics::Counter,
}

impl Shaper {
    /// For records of `journal`, counted under the name `sink`. Returns every mistake in the routes, if there is one.
    pub(super) fn new(config: &Config, journal: JournalId, sink: &'static str) -> Result<Self, Vec<String>> {
        Ok(Self {
            routes: Routes::new(&config.routes)?,
            headers: HeaderWriter::new(config.headers, journal.0, &config.source),
            unrouted: metrics::counter!("tidegate_sink_unrouted_total", "sink" => sink),
        })
    }

    /// The Kafka topics that records can go to; [`Outgoing::topic`] counts in them.
    pub(super) fn topics(&self) -> &[String] {
        self.routes.topics()
    }

    /// How `record`, which lies at `offset`, is produced; `None` if it is not.
    pub(super) fn shape<'r>(&mut self, offset: Offset, record: &Record<'r>) -> Option<Outgoing<'r>> {
        let Some(destination) = self.routes.destination(record.topic, record.client) else {
            self.unrouted.increment(1);
            return None;
        };
        let count = self.headers.usual_count();
        let headers = (count > 0).then(|| {
            let mut headers = Headers::new(count);
            self.headers.write(offset, record, &mut headers);
            headers
        });
        let key = destination.key.map(|key| Cow::Borrowed(key.as_bytes()));
        Some(Outgoing { topic: destination.topic, key, value: Value::Payload, headers })
    }
}
