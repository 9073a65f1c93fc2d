//! Which publishes are on their way to the broker, and how far everything before them is done.
//!
//! The client library numbers publishes when it sends them and says so afterwards, in the order in which they
//! were handed over; the broker acknowledges the numbers. This brings the two together. What always holds: the
//! position that [`Window::acknowledged`] returns has nothing unacknowledged before it, so whatever lies before
//! it may be forgotten. Pure: nothing here reads, writes or waits.

use std::collections::VecDeque;

use tidegate_broker::record::Offset;

/// What was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// The reading at this offset of the queue.
    Reading(Offset),
    /// The device's status, which lies in no queue.
    Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Given to the client library.
    Handed,
    /// Written to the broker under this Packet Identifier.
    Sent(u16),
    /// Acknowledged, while something before it is not.
    Acknowledged,
}

/// The client library or the broker named a publish that is not on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Packet Identifier {packet_id} belongs to no publish that is on its way")]
pub(crate) struct OutOfStep {
    packet_id: u16,
}

/// What an acknowledgement settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// What was acknowledged.
    pub(crate) parcel: Parcel,
    /// Every reading before this is done; `None` if that has not moved.
    pub(crate) done: Option<Offset>,
}

/// The publishes on their way, in order: at most `limit` readings, and the status, which needs no room.
#[derive(Debug)]
pub(crate) struct Window {
    slots: VecDeque<(Parcel, Stage)>,
    limit: usize,
}

impl Window {
    /// An empty window. `limit` is at least 1.
    pub(crate) fn new(limit: usize) -> Self {
        assert!(limit > 0, "a window of nothing would never let anything pass");
        Self { slots: VecDeque::with_capacity(limit), limit }
    }

    /// Whether one more reading may be handed over.
    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() < self.limit
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes that `parcel` was handed to the client library, after everything handed over before.
    pub(crate) fn handed(&mut self, parcel: Parcel) {
        self.slots.push_back((parcel, Stage::Handed));
    }

    /// Notes that the oldest publish not yet sent was sent under `packet_id`.
    pub(crate) fn sent(&mut self, packet_id: u16) -> Result<(), OutOfStep> {
        let slot = self.slots.iter_mut().find(|(_, stage)| *stage == Stage::Handed);
        slot.ok_or(OutOfStep { packet_id })?.1 = Stage::Sent(packet_id);
        Ok(())
    }

    /// Notes that the broker acknowledged `packet_id`.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) -> Result<Acknowledged, OutOfStep> {
        let slot = self.slots.iter_mut().find(|(_, stage)| *stage == Stage::Sent(packet_id));
        let slot = slot.ok_or(OutOfStep { packet_id })?;
        slot.1 = Stage::Acknowledged;
        let parcel = slot.0;
        let mut done = None;
        while let Some(&(parcel, Stage::Acknowledged)) = self.slots.front() {
            self.slots.pop_front();
            if let Parcel::Reading(offset) = parcel {
                done = Some(offset.plus(1));
            }
        }
        Ok(Acknowledged { parcel, done })
    }

    /// Forgets everything: the connection is gone, and what was on its way is handed over again.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(readings: std::ops::Range<u64>) -> Window {
        let mut window = Window::new(10);
        for offset in readings {
            window.handed(Parcel::Reading(Offset(offset)));
        }
        window
    }

    #[test]
    fn nothing_is_done_while_something_before_it_is_not() {
        let mut window = window(5..8);
        for packet_id in [1, 2, 3] {
            window.sent(packet_id).unwrap();
        }
        let done = |window: &mut Window, packet_id| window.acknowledged(packet_id).unwrap().done;
        assert_eq!(done(&mut window, 2), None);
        assert_eq!(done(&mut window, 1), Some(Offset(7)));
        assert!(!window.is_empty());
        assert_eq!(done(&mut window, 3), Some(Offset(8)));
        assert!(window.is_empty());
    }

    #[test]
    fn a_status_among_readings_is_not_taken_for_one() {
        let mut window = Window::new(2);
        window.handed(Parcel::Status);
        window.handed(Parcel::Reading(Offset(3)));
        assert!(!window.has_room());
        window.sent(1).unwrap();
        window.sent(2).unwrap();
        assert_eq!(window.acknowledged(1), Ok(Acknowledged { parcel: Parcel::Status, done: None }));
        let reading = Parcel::Reading(Offset(3));
        assert_eq!(window.acknowledged(2), Ok(Acknowledged { parcel: reading, done: Some(Offset(4)) }));
    }

    #[test]
    fn a_number_that_is_not_on_its_way_is_told() {
        let mut window = window(0..1);
        assert_eq!(window.acknowledged(1), Err(OutOfStep { packet_id: 1 }));
        window.sent(1).unwrap();
        assert_eq!(window.sent(2), Err(OutOfStep { packet_id: 2 }));
        assert_eq!(window.acknowledged(2), Err(OutOfStep { packet_id: 2 }));
        window.acknowledged(1).unwrap();
        assert_eq!(window.acknowledged(1), Err(OutOfStep { packet_id: 1 }));
    }

    /// Hands over, sends and acknowledges in a seeded random order, with connections that break, and checks
    /// that a reading is done only after it was acknowledged, and all of them in the end.
    #[test]
    fn whatever_the_order_a_reading_is_done_only_after_its_acknowledgement() {
        const READINGS: u64 = 300;
        for seed in 1..200_u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut next = |below: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % below as u64) as usize
            };
            let mut window = Window::new(7);
            let (mut handed, mut done, mut sent) = (0, 0, Vec::new());
            let mut acknowledged = std::collections::BTreeSet::new();
            let mut packet_id = 0;
            let mut unsent = VecDeque::new();
            while done < READINGS {
                match next(20) {
                    0 => {
                        window.clear();
                        sent.clear();
                        unsent.clear();
                        handed = done;
                    }
                    1..8 if window.has_room() && handed < READINGS => {
                        window.handed(Parcel::Reading(Offset(handed)));
                        unsent.push_back(handed);
                        handed += 1;
                    }
                    8..14 => {
                        if let Some(offset) = unsent.pop_front() {
                            packet_id = packet_id % 500 + 1;
                            window.sent(packet_id).unwrap();
                            sent.push((packet_id, offset));
                        }
                    }
                    _ if !sent.is_empty() => {
                        let (packet_id, offset) = sent.swap_remove(next(sent.len()));
                        acknowledged.insert(offset);
                        if let Some(Offset(to)) = window.acknowledged(packet_id).unwrap().done {
                            assert!((done..to).all(|offset| acknowledged.contains(&offset)), "seed {seed}");
                            done = to;
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
