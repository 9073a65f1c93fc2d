//! What was measured, its median and spread over the rounds, and the Markdown table.

use std::fmt::Write as _;

use crate::peer::Broker;

const MIB: f64 = 1024.0 * 1024.0;

/// One broker under one load in one round.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Which broker.
    pub broker: Broker,
    /// The load's name.
    pub load: &'static str,
    /// Publishes that reached the subscriber per second.
    pub delivered_per_second: f64,
    /// CPU seconds the broker spent per million publishes that reached the subscriber, in and out.
    pub cpu_seconds_per_million: f64,
    /// CPU seconds the load generator spent per million, to see that it is not what was measured.
    pub generator_cpu_seconds_per_million: f64,
    /// The most memory the broker had resident, in bytes.
    pub peak_memory_bytes: u64,
    /// Publishes that reached the subscriber, of those published; 1 unless the broker lost some.
    pub delivered_fraction: f64,
}

/// Median, least and greatest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&least, &greatest) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, greatest })
    }
}

/// One row per load and broker, in the order measured. Ratios are against the first broker of each load.
pub fn markdown(measurements: &[Measurement]) -> String {
    let mut text = String::from(
        "| load | broker | delivered/s | ratio | CPU s per million | ratio | peak MiB | delivered |\n\
         |---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for load in distinct(measurements.iter().map(|measurement| measurement.load)) {
        let of_load: Vec<&Measurement> =
            measurements.iter().filter(|measurement| measurement.load == load).collect();
        let mut first: Option<Row> = None;
        for broker in distinct(of_load.iter().map(|measurement| measurement.broker)) {
            let rounds: Vec<&Measurement> =
                of_load.iter().copied().filter(|measurement| measurement.broker == broker).collect();
            let Some(row) = Row::of(&rounds) else { continue };
            let base = *first.get_or_insert(row);
            write_row(&mut text, load, broker, &row, &base);
        }
    }
    text
}

#[derive(Clone, Copy)]
struct Row {
    delivered: Spread,
    cpu: Spread,
    memory: Spread,
    fraction: Spread,
}

impl Row {
    fn of(rounds: &[&Measurement]) -> Option<Self> {
        let spread = |value: fn(&Measurement) -> f64| Spread::of(rounds.iter().map(|&round| value(round)));
        Some(Self {
            delivered: spread(|round| round.delivered_per_second)?,
            cpu: spread(|round| round.cpu_seconds_per_million)?,
            memory: spread(|round| round.peak_memory_bytes as f64 / MIB)?,
            fraction: spread(|round| round.delivered_fraction)?,
        })
    }
}

fn write_row(text: &mut String, load: &str, broker: Broker, row: &Row, base: &Row) {
    let Row { delivered, cpu, memory, fraction } = row;
    writeln!(
        text,
        "| {load} | {} | {} ({}–{}) | {:.2} | {:.2} ({:.2}–{:.2}) | {:.1} | {:.0} | {} |",
        broker.name(),
        thousands(delivered.median),
        thousands(delivered.least),
        thousands(delivered.greatest),
        delivered.median / base.delivered.median,
        cpu.median,
        cpu.least,
        cpu.greatest,
        cpu.median / base.cpu.median,
        memory.greatest,
        percent(fraction.least),
    )
    .expect("writing to a String does not fail");
}

/// Rounds to a whole percent only what is whole, so that one lost publish shows.
fn percent(fraction: f64) -> String {
    if fraction >= 1.0 { "all".into() } else { format!("{:.4} %", (fraction * 1e6).floor() / 1e4) }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, greatest: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn the_table_compares_with_the_first_broker_of_the_load() {
        let measurement = |broker, delivered_per_second, fraction| Measurement {
            broker,
            load: "qos1",
            delivered_per_second,
            cpu_seconds_per_million: 1e6 / delivered_per_second,
            generator_cpu_seconds_per_million: 0.1,
            peak_memory_bytes: 64 << 20,
            delivered_fraction: fraction,
        };
        let table = markdown(&[
            measurement(Broker::Tidegate, 1_500_000.0, 1.0),
            measurement(Broker::Mosquitto, 50_000.0, 0.999_999_9),
            measurement(Broker::Tidegate, 500_000.0, 1.0),
        ]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| qos1 | tidegate | 1,000,000 (500,000–1,500,000) | 1.00 | 1.33 (0.67–2.00) | 1.0 | 64 | all |",
                "| qos1 | mosquitto | 50,000 (50,000–50,000) | 0.05 | 20.00 (20.00–20.00) | 15.0 | 64 | 99.9999 % |",
            ]
        );
    }
}
