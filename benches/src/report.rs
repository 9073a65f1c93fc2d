//! What was measured, its median and spread over the rounds, and the Markdown tables.

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
    /// The part of it that it spent in user mode, which other kernels do not change.
    pub user_seconds_per_million: f64,
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
        "| load | broker | delivered/s | ratio | CPU s per million | ratio | of it user | peak MiB | delivered |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
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
    user: Spread,
    memory: Spread,
    fraction: Spread,
}

impl Row {
    fn of(rounds: &[&Measurement]) -> Option<Self> {
        let spread = |value: fn(&Measurement) -> f64| Spread::of(rounds.iter().map(|&round| value(round)));
        Some(Self {
            delivered: spread(|round| round.delivered_per_second)?,
            cpu: spread(|round| round.cpu_seconds_per_million)?,
            user: spread(|round| round.user_seconds_per_million)?,
            memory: spread(|round| round.peak_memory_bytes as f64 / MIB)?,
            fraction: spread(|round| round.delivered_fraction)?,
        })
    }
}

fn write_row(text: &mut String, load: &str, broker: Broker, row: &Row, base: &Row) {
    let Row { delivered, cpu, user, memory, fraction } = row;
    writeln!(
        text,
        "| {load} | {} | {} ({}–{}) | {:.2} | {:.2} ({:.2}–{:.2}) | {:.1} | {:.2} | {:.0} | {} |",
        broker.name(),
        thousands(delivered.median),
        thousands(delivered.least),
        thousands(delivered.greatest),
        delivered.median / base.delivered.median,
        cpu.median,
        cpu.least,
        cpu.greatest,
        cpu.median / base.cpu.median,
        user.median,
        memory.greatest,
        percent(fraction.least),
    )
    .expect("writing to a String does not fail");
}

/// What idle clients cost one broker in one round.
#[derive(Clone, Copy, Debug)]
pub struct IdleMeasurement {
    /// Which broker.
    pub broker: Broker,
    /// How many clients there were.
    pub clients: usize,
    /// What its resident memory grew by from just after its start, divided by the clients.
    pub bytes_per_client: f64,
}

/// One row per broker, in the order measured. The ratio is against the first.
pub fn idle_markdown(measurements: &[IdleMeasurement]) -> String {
    let mut text = String::from("| idle clients | broker | bytes each | ratio |\n|---:|---|---:|---:|\n");
    let mut base: Option<f64> = None;
    for broker in distinct(measurements.iter().map(|measurement| measurement.broker)) {
        let of_broker = || measurements.iter().filter(|measurement| measurement.broker == broker);
        let clients = of_broker().map(|round| round.clients).max().unwrap_or_default();
        let Some(bytes) = Spread::of(of_broker().map(|round| round.bytes_per_client)) else { continue };
        let base = *base.get_or_insert(bytes.median);
        writeln!(
            text,
            "| {} | {} | {} ({}–{}) | {:.1} |",
            thousands(clients as f64),
            broker.name(),
            thousands(bytes.median),
            thousands(bytes.least),
            thousands(bytes.greatest),
            bytes.median / base,
        )
        .expect("writing to a String does not fail");
    }
    text
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
    fn the_table_of_idle_clients_has_medians_and_ratios() {
        let measurement =
            |broker, bytes_per_client| IdleMeasurement { broker, clients: 8_000, bytes_per_client };
        let table = idle_markdown(&[
            measurement(Broker::Tidegate, 2_000.0),
            measurement(Broker::Rumqttd, 38_000.0),
            measurement(Broker::Tidegate, 2_100.0),
            measurement(Broker::Tidegate, 1_900.0),
        ]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 8,000 | tidegate | 2,000 (1,900–2,100) | 1.0 |",
                "| 8,000 | rumqttd | 38,000 (38,000–38,000) | 19.0 |"
            ]
        );
    }

    #[test]
    fn the_table_compares_with_the_first_broker_of_the_load() {
        let measurement = |broker, delivered_per_second, fraction| Measurement {
            broker,
            load: "qos1",
            delivered_per_second,
            cpu_seconds_per_million: 1e6 / delivered_per_second,
            user_seconds_per_million: 0.5,
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
                "| qos1 | tidegate | 1,000,000 (500,000–1,500,000) | 1.00 | 1.33 (0.67–2.00) | 1.0 | 0.50 | 64 | all |",
                "| qos1 | mosquitto | 50,000 (50,000–50,000) | 0.05 | 20.00 (20.00–20.00) | 15.0 | 0.50 | 64 | 99.9999 % |",
            ]
        );
    }
}
