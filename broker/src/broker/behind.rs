//! What a session or group that is behind looks for in the journal, so that the rest can be passed over.

use super::{Broker, ReadFor};
use crate::record::Offset;
use crate::session::Flow;
use crate::topic::TopicFilter;

impl Broker {
    /// The filters of a reader that was named by [`Broker::poll_read`] with `offset`: a record that none of them
    /// matches is not for it, and the caller may pass over it. `None` if it must read `offset`, or if it is known
    /// already that something for it may be near.
    pub fn looks_for(&self, reader: ReadFor, offset: Offset) -> Option<Vec<&TopicFilter>> {
        match reader {
            ReadFor::Session(key) => {
                let session = self.sessions.get(key)?;
                let looks = session.resend.is_empty()
                    && session.flow == Flow::CatchingUp(offset)
                    && offset >= session.near_until
                    && !session.ahead.names(offset);
                looks.then(|| session.filters.keys().collect())
            }
            ReadFor::Group(key) => self.group_looks_for(key, offset),
        }
    }

    /// Nothing before `next` is for the reader, which goes on there; up to `near_until` something may be.
    pub fn passed_over(&mut self, reader: ReadFor, next: Offset, near_until: Offset) {
        match reader {
            ReadFor::Session(key) => {
                let Some(session) = self.sessions.get_mut(key) else { return };
                session.near_until = near_until;
                if session.flow != Flow::CatchingUp(next) {
                    session.flow = Flow::CatchingUp(next);
                    self.want_read(key);
                }
            }
            ReadFor::Group(key) => self.group_passed_over(key, next, near_until),
        }
    }
}
