//! `/metrics`, and the equation that holds there for every output.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::http;
use super::tidegate::Tidegate;

/// The samples by name and labels, as they are written there.
#[derive(Debug)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

/// What became of the records of one output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) taken_in: u64,
    pub(crate) delivered: u64,
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) pending: u64,
}

impl Output {
    /// Whether in = delivered + dropped + pending.
    pub(crate) fn is_balanced(&self) -> bool {
        self.taken_in == self.delivered + self.dropped.values().sum::<u64>() + self.pending
    }
}

impl Metrics {
    /// What a running program says now.
    pub(crate) async fn of(tidegate: &Tidegate) -> Self {
        Self::at(tidegate.http).await
    }

    /// What the program at this address says now.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self::parse(http::get(address, "/metrics").await.text())
    }

    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        Self(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// One sample; 0 if nothing was counted yet.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are small and whole")]
    pub(crate) fn one(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default() as u64
    }

    /// All samples of a family that have this label, together.
    pub(crate) fn sum(&self, family: &str, label: &str) -> f64 {
        let of_family = self.0.iter().filter(|(name, _)| {
            name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
        });
        of_family.map(|(_, value)| value).sum()
    }

    /// Every output, by name.
    pub(crate) fn outputs(&self) -> Vec<Output> {
        let names = self.0.keys().filter_map(|name| labels(name, "tidegate_output_in_total"));
        names.map(|labels| self.output(&labels[0])).collect()
    }

    fn output(&self, name: &str) -> Output {
        let one = |family: &str| self.one(&format!("{family}{{output=\"{name}\"}}"));
        let dropped = self.0.keys().filter_map(|key| {
            let labels = labels(key, "tidegate_output_dropped_total").filter(|labels| labels[0] == name)?;
            Some((labels[1].clone(), self.one(key)))
        });
        Output {
            name: name.to_owned(),
            taken_in: one("tidegate_output_in_total"),
            delivered: one("tidegate_output_delivered_total"),
            dropped: dropped.collect(),
            pending: one("tidegate_output_pending"),
        }
    }
}

/// The values of a sample's labels, if it is of this family.
fn labels(sample: &str, family: &str) -> Option<Vec<String>> {
    let labels = sample.strip_prefix(family)?.strip_prefix('{')?.strip_suffix('}')?;
    Some(
        labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.1.trim_matches('"').to_owned()))
            .collect(),
    )
}
