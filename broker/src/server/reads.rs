//! Reading the journal for sessions and groups that are behind.

use crate::broker::{Broker, Now};
use crate::journal::Reader;
use crate::record::Append;

/// Serves the next one that wants to read; whether there was one. Whole segments in which nothing can be for it are
/// passed over by their summaries of topics.
pub fn serve_one(broker: &mut Broker, reader: &mut Reader, now: Now, log: &mut dyn Append) -> bool {
    let Some((who, offset)) = broker.poll_read(now, log) else { return false };
    reader.seek(offset);
    if let Some(filters) = broker.looks_for(who, offset) {
        let known_until = reader.pass_over(|topics| filters.iter().any(|filter| topics.may_match(filter)));
        drop(filters);
        broker.passed_over(who, reader.offset(), known_until);
        if reader.offset() > offset {
            // It has its turn again, perhaps at the end of the journal.
            return true;
        }
    }
    match reader.next() {
        Ok(Some(batch)) => broker.read(who, &batch, now, log),
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%offset, %error, "the journal cannot be read for a session; its client is disconnected");
            broker.read_failed(who, now, log);
        }
    }
    true
}
