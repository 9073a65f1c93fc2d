//! What a session does beside storing: partitions ahead, retention, the role of those who read.
//!
//! None of it may hold storing up for long: whatever has to wait for others gives up after [`LOCK_MS`] and is tried
//! again later, and none of it may fail storing: a failure is told, and readings go on.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::counter;
use tokio::time::Instant;
use tracing::{info, warn};

use super::config::Config;
use super::copy::{DAY_US, since_2000};
use super::reader;
use super::session::Session;
use crate::pump::SinkError;

/// How long anything here may wait for readers of a table, in milliseconds. Whoever wants to read the table next waits
/// behind us for as long.
const LOCK_MS: u32 = 2_000;
/// How often to see to everything, and how long to leave it after a failure.
pub(super) const INTERVAL: Duration = Duration::from_secs(600);
/// Readings may come late; older ones, and those of days too far ahead, go to the default partition, so that devices
/// with a wrong clock do not make partitions without end.
const PARTITION_DAYS_BACK: i64 = 400;
/// Rows without a partition of their own are deleted this many at once, and so often at a time, so that no
/// transaction is long; the rest waits for the next time.
const DELETE_ROWS_MAX: i64 = 20_000;
const DELETE_ROUNDS_MAX: u32 = 10;

/// What is known of the state of the tables.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The days that have a partition, as far as known; counted from 1970-01-01.
    days: HashSet<i64>,
    /// When it was last seen to.
    checked: Option<Instant>,
    /// Whether the last attempt to make partitions failed.
    partitions_failed: bool,
    /// Why the role of the readers was last not made; told once.
    reader_problem: Option<String>,
}

impl Session {
    /// Until when nothing is to be done.
    pub(super) fn maintain_at(&self) -> Instant {
        self.upkeep.checked.map_or_else(Instant::now, |checked| checked + INTERVAL)
    }

    /// Makes the partitions from yesterday on, drops and deletes what is older than its retention, and lets the
    /// reader's role read.
    pub(super) async fn maintain(&mut self) {
        self.upkeep.checked = Some(Instant::now());
        let today = today();
        self.make_partitions(today - 1, today + i64::from(self.config.partition_days_ahead)).await;
        if let Some(days) = self.config.retention_days {
            // What is dropped with its day shall be in the rollups. Should they fail, storing will tell.
            let _ = self.follower.settled().await;
            self.retain("readings", days, drop_days(today - i64::from(days))).await;
        }
        if let Some(days) = self.config.rollup_retention_days {
            self.retain("rollups", days, delete_rollups(today - i64::from(days))).await;
        }
        self.admit_reader().await;
    }

    /// Makes the partitions of `days`. Rows of days without one go to the default partition, so a failure is no reason
    /// to stop; it is tried again.
    pub(super) async fn make_partitions_for(&mut self, days: &[i64]) {
        if self.maintain_at() <= Instant::now() {
            self.maintain().await;
        }
        let today = today();
        // A day that is about to be dropped needs no partition.
        let back = self.config.retention_days.map_or(PARTITION_DAYS_BACK, i64::from).min(PARTITION_DAYS_BACK);
        let window = today - back..=today + i64::from(self.config.partition_days_ahead);
        for day in days {
            if !self.upkeep.partitions_failed && window.contains(day) && !self.upkeep.days.contains(day) {
                self.make_partitions(*day, *day).await;
            }
        }
    }

    async fn make_partitions(&mut self, first: i64, last: i64) {
        let sql = format!(
            "SELECT \"{}\".make_partitions(date '1970-01-01' + {first}, date '1970-01-01' + {last})",
            self.config.internal_schema(),
        );
        let made = self.briefly("making partitions", &sql).await;
        self.upkeep.partitions_failed = made.is_err();
        match made {
            Ok(_) => self.upkeep.days.extend(first..=last),
            Err(error) => {
                warn!(%error, "partitions could not be made; readings of days without one go to the default partition");
            }
        }
    }

    /// Removes `what` beyond its `days`, a step at a time, until nothing is left or others are in the way.
    async fn retain(&mut self, what: &'static str, days: u32, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            let sql = step.sql.replace("{internal}", &format!("\"{}\"", self.config.internal_schema()));
            for _ in 0..step.rounds_max {
                match self.briefly("removing what is older than its retention", &sql).await {
                    Ok(0) => break,
                    Ok(removed) => {
                        counter!(step.counter, "of" => what).increment(removed.unsigned_abs());
                        info!(
                            of = what,
                            removed,
                            unit = step.unit,
                            retention_days = days,
                            "removed what is older than its retention"
                        );
                        // It may be made again, should a late reading want it.
                        self.upkeep.days.clear();
                    }
                    Err(error) => {
                        counter!("tidegate_postgres_retention_failures_total", "of" => what).increment(1);
                        warn!(
                            %error,
                            of = what,
                            again_in_seconds = INTERVAL.as_secs(),
                            "what is older than its retention could not be removed; it is tried again"
                        );
                        return;
                    }
                }
            }
        }
    }

    /// The number that a statement gives which waits for no lock for long.
    async fn briefly(&self, doing: &str, sql: &str) -> Result<i64, SinkError> {
        self.connection.simple(doing, &format!("SET lock_timeout = {LOCK_MS}")).await?;
        let answer = self.connection.within(doing, self.connection.client.query_one(sql, &[])).await;
        self.connection.simple(doing, "SET lock_timeout = 0").await?;
        Ok(i64::from(answer?.get::<_, i32>(0)))
    }

    async fn admit_reader(&mut self) {
        if self.config.reader_role.is_empty() {
            return;
        }
        let problem = match reader::admit(
            &self.connection.client,
            &self.config,
            &self.connection.place.target,
        )
        .await
        {
            Ok(false) => None,
            Ok(true) => {
                info!(role = %self.config.reader_role, schema = %self.config.schema, "the role may read the schema");
                None
            }
            Err(problem) => Some(problem),
        };
        if problem != self.upkeep.reader_problem
            && let Some(problem) = &problem
        {
            warn!("{problem}");
        }
        self.upkeep.reader_problem = problem;
    }
}

/// A statement that removes something and says how much; repeated until it says 0.
struct Step {
    sql: String,
    rounds_max: u32,
    counter: &'static str,
    unit: &'static str,
}

/// Drops the partitions of the days before `first`, counted from 1970-01-01; then the rows without one, and the series
/// that have nothing later.
fn drop_days(first: i64) -> [Step; 3] {
    let partitions = Step {
        sql: format!("SELECT {{internal}}.drop_partition_before(date '1970-01-01' + {first})"),
        rounds_max: u32::MAX,
        counter: "tidegate_postgres_partitions_dropped_total",
        unit: "partitions",
    };
    let series = Step {
        sql: format!("SELECT {{internal}}.forget_series(date '1970-01-01' + {first})"),
        rounds_max: 1,
        counter: "tidegate_postgres_rows_removed_total",
        unit: "series",
    };
    [partitions, delete("readings_default", first), series]
}

fn delete_rollups(first: i64) -> [Step; 2] {
    [delete("readings_per_minute", first), delete("readings_per_hour", first)]
}

fn delete(table: &str, first: i64) -> Step {
    Step {
        sql: format!(
            "SELECT {{internal}}.delete_before('{table}', date '1970-01-01' + {first}, {DELETE_ROWS_MAX})"
        ),
        rounds_max: DELETE_ROUNDS_MAX,
        counter: "tidegate_postgres_rows_removed_total",
        unit: "rows",
    }
}

/// What is forgotten of a series is older, in microseconds since 2000.
pub(super) fn retained_since_us(config: &Config) -> i64 {
    config
        .retention_days
        .map_or(i64::MIN, |days| since_2000((today() - i64::from(days)).saturating_mul(DAY_US)))
}

/// The day in UTC, counted from 1970-01-01.
fn today() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs() / 86_400).expect("seconds divided by 86,400 are below 2^63")
}
