//! What the broker has sent one client at QoS 1 and 2 and has not had acknowledged in full.
//!
//! Packet Identifiers are given out in sequence, and the window remembers the span from the oldest unfinished one
//! to the newest. So an identifier in flight is used once [MQTT-2.2.1-4], an acknowledgement finds its delivery
//! without a search, and what has to be sent again after a reconnect lies in its first order [MQTT-4.6.0-1].

use std::collections::VecDeque;
use std::sync::Arc;

use crate::record::{Offset, Qos};
use crate::retained::Retained;

/// The widest span of identifiers; one less than there are, so that first and next never meet.
const SPAN_MAX: usize = 65_534;

/// Where the content of a delivery is kept until it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the journal.
    Journal(Offset),
    /// In the journal; delivered for the group of a shared subscription, which keeps account of it.
    Shared(Offset),
    /// In the retained store at the time of the subscription.
    Retained(Arc<Retained>),
}

/// How far a delivery has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// QoS 2 of a kept session: the PUBLISH waits until the journal has its identifier, so that a crash cannot
    /// make it a new one.
    Announced,
    /// The PUBLISH was sent; PUBACK or PUBREC is awaited.
    Sent,
    /// PUBREC has come; PUBREL waits until the journal has that, so that a crash cannot repeat the PUBLISH.
    Received,
    /// PUBREL was sent; PUBCOMP is awaited.
    Released,
    /// Finished, but an earlier one is not.
    Done,
}

/// One delivery.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Where its content is.
    pub source: Source,
    /// QoS 1 or 2.
    pub qos: Qos,
    /// How far it has come.
    pub stage: Stage,
}

/// The deliveries of one session in flight, in sending order.
#[derive(Debug)]
pub struct Window {
    entries: VecDeque<InFlight>,
    /// The Packet Identifier of the first entry.
    first: u16,
    unfinished: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { entries: VecDeque::new(), first: 1, unfinished: 0 }
    }
}

impl Window {
    /// How many deliveries are not finished.
    pub const fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Whether one more delivery may begin, with at most `limit` unfinished.
    pub fn has_room(&self, limit: u16) -> bool {
        self.unfinished < usize::from(limit) && self.entries.len() < SPAN_MAX
    }

    /// Begins a delivery and returns its Packet Identifier.
    pub fn begin(&mut self, source: Source, qos: Qos, stage: Stage) -> u16 {
        debug_assert!(self.entries.len() < SPAN_MAX, "the caller asks has_room first");
        let identifier = identifier_after(self.first, self.entries.len());
        self.entries.push_back(InFlight { source, qos, stage });
        self.unfinished += 1;
        identifier
    }

    /// Takes the delivery back that was begun last: nobody has heard of its identifier.
    pub fn take_back(&mut self) {
        if self.entries.pop_back().is_some_and(|last| last.stage != Stage::Done) {
            self.unfinished -= 1;
        }
    }

    /// Puts a delivery back that was begun before a restart. Deliveries must come in the order in which they were
    /// begun; identifiers between them belong to deliveries of QoS 1, which begin anew.
    pub fn restore(&mut self, identifier: u16, source: Source, stage: Stage) {
        if self.entries.is_empty() {
            self.first = identifier;
        }
        let position = position_of(self.first, identifier);
        while self.entries.len() <= position {
            let stage = if self.entries.len() == position { stage } else { Stage::Done };
            self.entries.push_back(InFlight { source: source.clone(), qos: Qos::ExactlyOnce, stage });
        }
        self.unfinished = self.entries.iter().filter(|entry| entry.stage != Stage::Done).count();
    }

    /// The unfinished delivery with this identifier.
    pub fn find(&mut self, identifier: u16) -> Option<&mut InFlight> {
        if identifier == 0 {
            return None;
        }
        let entry = self.entries.get_mut(position_of(self.first, identifier))?;
        if entry.stage == Stage::Done { None } else { Some(entry) }
    }

    /// Ends the delivery with this identifier, which may be used again once all older ones have ended too. Returns
    /// where its content was.
    pub fn finish(&mut self, identifier: u16) -> Option<Source> {
        let entry = self.find(identifier)?;
        entry.stage = Stage::Done;
        let source = std::mem::replace(&mut entry.source, Source::Journal(Offset(0)));
        self.unfinished -= 1;
        let finished = self.entries.iter().take_while(|entry| entry.stage == Stage::Done).count();
        self.first = identifier_after(self.first, finished);
        self.entries.drain(..finished);
        Some(source)
    }

    /// The oldest journal offset that is not finished, of those that are the session's own. Not always that of the first delivery: those of QoS 2 that
    /// were begun before a restart stand in front of older records that begin anew.
    pub fn lowest_offset(&self) -> Option<Offset> {
        let offsets = self.iter().filter_map(|(_, entry)| match entry.source {
            Source::Journal(offset) => Some(offset),
            Source::Shared(_) | Source::Retained(_) => None,
        });
        offsets.min()
    }

    /// The unfinished deliveries with their identifiers, in sending order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &InFlight)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.stage != Stage::Done)
            .map(|(position, entry)| (identifier_after(self.first, position), entry))
    }

    /// Gives spare memory back.
    pub fn shrink(&mut self) {
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }
}

/// The identifier `steps` after `first`; identifiers run from 1 to 65,535 and around.
fn identifier_after(first: u16, steps: usize) -> u16 {
    let zero_based = (usize::from(first) - 1 + steps) % 65_535;
    u16::try_from(zero_based + 1).expect("a remainder of 65,535 plus one fits")
}

fn position_of(first: u16, identifier: u16) -> usize {
    (usize::from(identifier) + 65_535 - usize::from(first)) % 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(window: &mut Window, offset: u64) -> u16 {
        window.begin(Source::Journal(Offset(offset)), Qos::AtLeastOnce, Stage::Sent)
    }

    #[test]
    fn identifiers_run_around_and_skip_zero() {
        let mut window = Window::default();
        for turn in 0..200_000_u64 {
            let identifier = begin(&mut window, turn);
            assert_eq!(u64::from(identifier), turn % 65_535 + 1);
            window.finish(identifier);
        }
        assert_eq!(window.unfinished(), 0);
    }

    #[test]
    fn no_identifier_is_used_twice_while_an_old_one_is_unfinished() {
        let mut window = Window::default();
        let stuck = begin(&mut window, 0);
        let mut begun = 1_u64;
        while window.has_room(u16::MAX) {
            let identifier = begin(&mut window, begun);
            assert_ne!(identifier, stuck);
            window.finish(identifier);
            begun += 1;
        }
        assert_eq!(
            begun, SPAN_MAX as u64,
            "a stuck delivery ends the span before its identifier comes around"
        );
        assert_eq!((window.unfinished(), window.lowest_offset()), (1, Some(Offset(0))));
        window.finish(stuck);
        assert!(window.has_room(1));
        assert_eq!(window.lowest_offset(), None);
    }

    #[test]
    fn what_was_taken_back_uses_up_no_identifier() {
        let mut window = Window::default();
        let stuck = begin(&mut window, 0);
        for _ in 0..2 * SPAN_MAX {
            assert_eq!(begin(&mut window, 1), stuck + 1);
            window.take_back();
        }
        assert_eq!((window.unfinished(), window.lowest_offset()), (1, Some(Offset(0))));
    }

    #[test]
    fn acknowledgements_may_come_in_any_order() {
        let mut window = Window::default();
        let identifiers: Vec<u16> = (0..5).map(|offset| begin(&mut window, offset)).collect();
        for (finish, lowest) in [(3, Some(0)), (0, Some(1)), (1, Some(2)), (4, Some(2)), (2, None)] {
            window.finish(identifiers[finish]);
            window.finish(identifiers[finish]);
            assert_eq!(window.lowest_offset(), lowest.map(Offset));
        }
        assert!(window.find(identifiers[2]).is_none());
        assert!(window.find(0).is_none());
    }

    #[test]
    fn restored_deliveries_keep_identifiers_and_order() {
        let mut window = Window::default();
        window.restore(65_534, Source::Journal(Offset(7)), Stage::Sent);
        window.restore(2, Source::Journal(Offset(9)), Stage::Released);
        let restored: Vec<_> = window.iter().map(|(identifier, entry)| (identifier, entry.stage)).collect();
        assert_eq!(restored, [(65_534, Stage::Sent), (2, Stage::Released)]);
        assert_eq!(begin(&mut window, 3), 3, "an older record that begins anew");
        window.finish(65_534);
        assert_eq!(window.lowest_offset(), Some(Offset(3)));
        assert_eq!(window.unfinished(), 2);
    }
}
