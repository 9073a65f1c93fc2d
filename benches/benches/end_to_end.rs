//! From MQTT into one real Kafka, end to end, in turn in one run:
//!
//! - a bare rdkafka producer that sends the same bytes from memory, with no broker in front: the most there is to have;
//! - tidegate: publishers at QoS 1, every publish synced to disk before its PUBACK, Kafka confirmed record by record;
//! - mosquitto with a small forwarder: a client subscribed to `#` at QoS 1 that hands everything to the same producer.
//!
//! The clock runs from the first publish until the last record lies in Kafka. CPU is that of the process or processes
//! between publisher and Kafka, all threads, user and system; publishers and Kafka share the machine and are not counted.
//!
//! ```text
//! eval "$(tests/services start kafka)" && cargo bench -p tidegate-benches --bench end_to_end
//! ```

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use tidegate_benches::filler::fill;
use tidegate_benches::kafka::{self, Bare, Counter};
use tidegate_benches::peer::{Broker, Peer, process_cpu_time};
use tidegate_benches::report::Spread;

const FORWARDER_ARGUMENT: &str = "be-forwarder";
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// From MQTT into Kafka, end to end: tidegate, a bare rdkafka producer, mosquitto with a forwarder.
#[derive(Debug, Parser)]
#[command(name = "end_to_end")]
struct Options {
    /// How often each has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Records per turn.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 60)]
    payload_bytes: usize,
    /// Only these headers (cloudevents or none); without it both.
    #[arg(long)]
    headers: Option<String>,
    /// Leave mosquitto out.
    #[arg(long)]
    without_mosquitto: bool,
    /// The tidegate to run; without it the release build of this workspace.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [FORWARDER_ARGUMENT, address, servers, topic, headers] => {
            forward(address, servers, topic, headers == "cloudevents")
        }
        _ => run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("end_to_end: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Who brings records into Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bare,
    Tidegate,
    Mosquitto,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "rdkafka alone, from memory",
            Self::Tidegate => "tidegate",
            Self::Mosquitto => "mosquitto + forwarder",
        }
    }
}

/// What one turn came to.
#[derive(Clone, Copy, Debug)]
struct Turn {
    seconds: f64,
    cpu_seconds: f64,
}

fn run() -> Result<()> {
    let options = Options::parse();
    let Ok(servers) = std::env::var("TIDEGATE_TEST_KAFKA") else {
        // `cargo test --benches` and a plain `cargo bench` have no Kafka.
        println!("end_to_end: TIDEGATE_TEST_KAFKA is not set; eval \"$(tests/services start kafka)\" first");
        return Ok(());
    };
    let program = std::env::current_exe()?;
    let built = program.parent().and_then(Path::parent).context("this program lies in no build folder")?;
    let binary = options.binary.clone().unwrap_or_else(|| built.join("tidegate"));
    let styles: Vec<&str> = match options.headers.as_deref() {
        None => vec!["cloudevents", "none"],
        Some(style @ ("cloudevents" | "none")) => vec![style],
        Some(other) => bail!("--headers takes cloudevents or none, not {other:?}"),
    };
    let ways: &[Way] = if options.without_mosquitto {
        &[Way::Bare, Way::Tidegate]
    } else {
        &[Way::Bare, Way::Tidegate, Way::Mosquitto]
    };
    let bench = Bench { options: &options, servers: &servers, binary: &binary, built };
    println!("{} records of {} bytes per turn", options.records, options.payload_bytes);
    println!("| headers | way | records/s | ratio | CPU µs per record | ratio |");
    println!("|---|---|---:|---:|---:|---:|");
    for headers in styles {
        let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); ways.len()];
        for round in 0..options.rounds {
            for (way, turns) in ways.iter().zip(&mut turns) {
                let turn = bench.turn(*way, headers, round).with_context(|| way.name())?;
                turns.push(turn);
            }
        }
        print_table(headers, ways, &turns, options.records)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn print_table(headers: &str, ways: &[Way], turns: &[Vec<Turn>], records: u64) -> Result<()> {
    let mut first: Option<(f64, f64)> = None;
    for (way, turns) in ways.iter().zip(turns) {
        let rates = Spread::of(turns.iter().map(|turn| records as f64 / turn.seconds));
        let costs = Spread::of(turns.iter().map(|turn| turn.cpu_seconds * 1e6 / records as f64));
        let (rate, cost) = rates.zip(costs).context("there must be at least one round")?;
        let (base_rate, base_cost) = *first.get_or_insert((rate.median, cost.median));
        println!(
            "| {headers} | {} | {:.0} ({:.0}–{:.0}) | {:.2} | {:.2} ({:.2}–{:.2}) | {:.1} |",
            way.name(),
            rate.median,
            rate.least,
            rate.greatest,
            rate.median / base_rate,
            cost.median,
            cost.least,
            cost.greatest,
            cost.median / base_cost,
        );
    }
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    servers: &'a str,
    binary: &'a Path,
    built: &'a Path,
}

impl Bench<'_> {
    fn turn(&self, way: Way, headers: &str, round: usize) -> Result<Turn> {
        let topic = format!("end-to-end-{}-{way:?}-{headers}-{round}", std::process::id()).to_lowercase();
        kafka::create_topic(self.servers, &topic)?;
        let counter = Counter::new(self.servers, &topic)?;
        let folder = tempfile::tempdir_in(self.built)?;
        match way {
            Way::Bare => {
                let bare = Bare::new(self.servers, &topic, headers == "cloudevents", [])?;
                let own = || process_cpu_time(None);
                self.measure(&counter, &[&own], || {
                    kafka::send_from_memory(&bare, self.options.records, self.options.payload_bytes)
                })
            }
            Way::Tidegate => {
                let routes = format!("[{{ filter = \"#\", topic = \"{topic}\", key = \"device\" }}]");
                let variables = [
                    ("TIDEGATE_KAFKA_BOOTSTRAP_SERVERS", self.servers),
                    ("TIDEGATE_KAFKA_ROUTES", routes.as_str()),
                    ("TIDEGATE_KAFKA_HEADERS", headers),
                ];
                let peer = Peer::start_with(Broker::Tidegate, folder.path(), self.binary, &variables)?;
                self.measure(&counter, &[&|| peer.cpu_time()], || self.publish(peer.address()))
            }
            Way::Mosquitto => {
                let peer = Peer::start(Broker::Mosquitto, folder.path(), self.binary)?;
                let forwarder = Forwarder::start(peer.address(), self.servers, &topic, headers)?;
                let (broker, client) = (|| peer.cpu_time(), || forwarder.cpu_time());
                self.measure(&counter, &[&broker, &client], || self.publish(peer.address()))
            }
        }
    }

    fn publish(&self, address: SocketAddr) -> Result<()> {
        use std::fmt::Write as _;
        fill(address, self.options.records, self.options.payload_bytes, |topic, number| {
            write!(topic, "sensors/device-{:03}/temperature", number % kafka::DEVICES)
                .expect("writing to a String does not fail");
        })
    }

    fn measure(
        &self,
        counter: &Counter,
        clocks: &[&dyn Fn() -> Result<Duration>],
        send: impl FnOnce() -> Result<()>,
    ) -> Result<Turn> {
        let cpu = || clocks.iter().map(|clock| clock()).sum::<Result<Duration>>();
        let (begun, before) = (Instant::now(), cpu()?);
        send()?;
        counter.wait_for(self.options.records, RUN_LIMIT)?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Turn { seconds, cpu_seconds: (cpu()? - before).as_secs_f64() })
    }
}

/// The forwarder as a process of its own; it ends with this.
struct Forwarder(Child);

impl Forwarder {
    /// Starts it and waits until it has subscribed.
    fn start(address: SocketAddr, servers: &str, topic: &str, headers: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([FORWARDER_ARGUMENT, &address.to_string(), servers, topic, headers]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut forwarder = Self(child);
        let output = forwarder.0.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == "subscribed", "the forwarder said {line:?} instead of that it has subscribed");
        Ok(forwarder)
    }

    fn cpu_time(&self) -> Result<Duration> {
        process_cpu_time(Some(self.0.id()))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Subscribes to everything and hands it to Kafka under the device's key, until it is killed.
fn forward(address: &str, servers: &str, topic: &str, headers: bool) -> Result<()> {
    let address: SocketAddr = address.parse().context("the broker's address")?;
    let mut options = MqttOptions::new("forwarder", address.ip().to_string(), address.port());
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = Client::new(options, 1_000);
    client.subscribe("#", QoS::AtLeastOnce)?;
    let bare = Bare::new(servers, topic, headers, [])?;
    let mut number = 0;
    for event in connection.iter() {
        match event? {
            Event::Incoming(Packet::SubAck(_)) => println!("subscribed"),
            Event::Incoming(Packet::Publish(publish)) => {
                let device = publish.topic.split('/').nth(1).unwrap_or_default();
                bare.send(device, &kafka::id(number), &publish.payload)?;
                number += 1;
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
    Ok(())
}
