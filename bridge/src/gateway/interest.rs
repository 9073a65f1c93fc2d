//! What one subscriber wants: Topic Filters, each from an offset on, and whether records that no filter matches
//! come as `event` frames.
//!
//! A record is wanted at most once. When a filter is added that begins in the past, the subscriber goes back and
//! passes again over records it was already given for another filter: each filter remembers up to where the
//! subscriber had come (`done`), and those records are left out the second time.

use tidegate_broker::record::Offset;
use tidegate_broker::topic::{TopicFilter, TopicName};

use super::encode::Form;

/// The part of the journal that counts for one filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Where it begins.
    from: Offset,
    /// Records of `from..done` were given already.
    done: Offset,
}

impl Span {
    const fn at(from: Offset) -> Self {
        Self { from, done: from }
    }

    fn covers(self, offset: Offset) -> bool {
        self.from <= offset
    }

    fn passed(&mut self, position: Offset) {
        self.done = self.done.max(position);
    }
}

/// What one subscriber wants.
#[derive(Clone, Debug)]
pub(super) struct Interest {
    form: Form,
    filters: Vec<(TopicFilter, Span)>,
    everything: Option<Span>,
}

impl Interest {
    /// No filter yet; records matched by a filter will have the form `form`.
    pub(super) const fn new(form: Form) -> Self {
        Self { form, filters: Vec::new(), everything: None }
    }

    /// Records from `from` on that no filter matches come as `event` frames.
    pub(super) fn receive_everything(&mut self, from: Offset) {
        self.everything = Some(Span::at(from));
    }

    /// Only what a filter matches comes.
    pub(super) fn receive_filtered(&mut self) {
        self.everything = None;
    }

    /// Adds `filter` from `from` on, for a subscriber that has come to `position`; a filter it has already
    /// begins anew.
    pub(super) fn add(&mut self, filter: TopicFilter, from: Offset, position: Offset) {
        self.remove(filter.as_str());
        let before = self.filters.iter_mut().map(|(_, span)| span).chain(self.everything.as_mut());
        before.for_each(|span| span.passed(position));
        self.filters.push((filter, Span::at(from)));
    }

    /// Takes `filter` away; says whether it was there.
    pub(super) fn remove(&mut self, filter: &str) -> bool {
        let before = self.filters.len();
        self.filters.retain(|(known, _)| known.as_str() != filter);
        self.filters.len() < before
    }

    /// The filters.
    pub(super) fn filters(&self) -> impl ExactSizeIterator<Item = &str> {
        self.filters.iter().map(|(filter, _)| filter.as_str())
    }

    /// Whether records of `topic` may be wanted at some offset.
    pub(super) fn may_want(&self, topic: TopicName<'_>) -> bool {
        self.everything.is_some() || self.filters.iter().any(|(filter, _)| filter.matches(topic))
    }

    /// The form in which the record at `offset` is wanted, if it is.
    pub(super) fn form(&self, offset: Offset, topic: TopicName<'_>) -> Option<Form> {
        let mut found = None;
        let everything = self.everything.filter(|span| span.covers(offset));
        for (filter, span) in &self.filters {
            if span.covers(offset) && filter.matches(topic) {
                if offset < span.done {
                    return None;
                }
                found = Some(self.form);
            }
        }
        if everything.is_some_and(|span| offset < span.done) {
            return None;
        }
        found.or(everything.map(|_| Form::Event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    fn forms(interest: &Interest, offsets: std::ops::Range<u64>, topic: &str) -> Vec<u64> {
        let topic = TopicName::new(topic).unwrap();
        offsets.filter(|&offset| interest.form(Offset(offset), topic).is_some()).collect()
    }

    #[test]
    fn overlapping_filters_want_a_record_once_and_only_from_their_beginning() {
        let mut interest = Interest::new(Form::TopicMessage);
        interest.add(filter("a/+"), Offset(5), Offset(5));
        interest.add(filter("#"), Offset(8), Offset(6));
        assert_eq!(forms(&interest, 0..12, "a/b"), [6, 7, 8, 9, 10, 11]);
        assert_eq!(forms(&interest, 0..12, "c"), [8, 9, 10, 11]);
    }

    #[test]
    fn going_back_for_one_filter_repeats_nothing_of_another() {
        let mut interest = Interest::new(Form::TopicMessage);
        interest.add(filter("a"), Offset(0), Offset(0));
        // The subscriber has come to 10, then asks for everything from 4 on.
        interest.add(filter("#"), Offset(4), Offset(10));
        assert_eq!(forms(&interest, 4..14, "a"), [10, 11, 12, 13]);
        assert_eq!(forms(&interest, 4..14, "b"), [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        // And at 6, in the middle of going back, for one more from 2 on.
        interest.add(filter("b"), Offset(2), Offset(6));
        assert_eq!(forms(&interest, 2..14, "b"), [2, 3, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(forms(&interest, 2..14, "a"), [10, 11, 12, 13]);
    }

    #[test]
    fn a_filter_subscribed_again_begins_anew() {
        let mut interest = Interest::new(Form::TopicMessage);
        interest.add(filter("a"), Offset(0), Offset(0));
        interest.add(filter("a"), Offset(3), Offset(10));
        assert_eq!(forms(&interest, 0..6, "a"), [3, 4, 5]);
        assert_eq!(interest.filters().collect::<Vec<_>>(), ["a"]);
        assert!(interest.remove("a"));
        assert!(!interest.remove("a"));
        assert_eq!(forms(&interest, 0..6, "a"), [0; 0]);
    }

    #[test]
    fn what_no_filter_matches_comes_as_an_event() {
        let mut interest = Interest::new(Form::TopicMessage);
        interest.receive_everything(Offset(2));
        interest.add(filter("events"), Offset(2), Offset(2));
        let form = |offset, topic| interest.form(Offset(offset), TopicName::new(topic).unwrap());
        assert_eq!(form(1, "a"), None);
        assert_eq!(form(2, "a"), Some(Form::Event));
        assert_eq!(form(2, "events"), Some(Form::TopicMessage));
        interest.receive_filtered();
        assert_eq!(interest.form(Offset(2), TopicName::new("a").unwrap()), None);
    }
}
