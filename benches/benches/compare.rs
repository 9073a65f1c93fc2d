//! Runs tidegate, mosquitto and rumqttd in turn under the same load and prints, for each: publishes delivered
//! per second, the broker's CPU seconds per million of them (user and system, all threads, in and out), the
//! peak of its resident memory, and the ratios. With idle clients there is only memory to tell: what each of
//! them adds to the broker's.
//!
//! Every run starts its broker afresh, connects all clients and subscribes; then the clocks start. The brokers
//! take turns within each round, so that what else the machine does hits all alike; the tables show the median
//! over the rounds with the least and the greatest in brackets, and the greatest peak memory. How the loads work
//! is said in `load.rs` and `crowd.rs`, how each broker is configured in `peer.rs`.
//!
//! ```text
//! cargo bench -p tidegate-benches --bench compare
//! cargo bench -p tidegate-benches --bench compare -- --broker rumqttd --load sparse --rounds 1
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tidegate_benches::crowd::{Crowd, FanOut, Idle};
use tidegate_benches::load::{Clients, Crew, Load, Outcome};
use tidegate_benches::peer::{self, Broker, Peer, RUMQTTD_ARGUMENT};
use tidegate_benches::report::{self, IdleMeasurement, Measurement};

/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(180);

const LOADS: [Work; 6] = [
    Work::Publishers(Load { name: "qos0", publishers: 50, in_flight: 100, qos: 0, publishes: 2_000_000 }),
    Work::Publishers(Load { name: "qos1", publishers: 50, in_flight: 100, qos: 1, publishes: 1_000_000 }),
    Work::Publishers(Load { name: "sparse", publishers: 1_000, in_flight: 1, qos: 1, publishes: 300_000 }),
    Work::FanOut(FanOut { name: "fanout0", subscribers: 1_000, in_flight: 20, qos: 0, publishes: 3_000 }),
    Work::FanOut(FanOut { name: "fanout1", subscribers: 1_000, in_flight: 20, qos: 1, publishes: 3_000 }),
    Work::Idle(Idle { name: "idle", clients: 8_000 }),
];

/// What the brokers are put under.
#[derive(Clone, Debug)]
enum Work {
    Publishers(Load),
    FanOut(FanOut),
    Idle(Idle),
}

impl Work {
    const fn name(&self) -> &'static str {
        match self {
            Self::Publishers(Load { name, .. })
            | Self::FanOut(FanOut { name, .. })
            | Self::Idle(Idle { name, .. }) => name,
        }
    }

    /// How many publishes there are.
    const fn publishes(&self) -> u64 {
        match self {
            Self::Publishers(Load { publishes, .. }) | Self::FanOut(FanOut { publishes, .. }) => *publishes,
            Self::Idle(_) => 0,
        }
    }

    /// How many deliveries they make.
    const fn deliveries(&self) -> u64 {
        match self {
            Self::Publishers(_) | Self::Idle(_) => self.publishes(),
            Self::FanOut(load) => load.publishes * load.subscribers as u64,
        }
    }

    const fn qos(&self) -> u8 {
        match self {
            Self::Publishers(Load { qos, .. }) | Self::FanOut(FanOut { qos, .. }) => *qos,
            Self::Idle(_) => 0,
        }
    }

    /// With another number of publishes, and a twentieth of everything if it is to be quick.
    fn adjusted(mut self, number: Option<u64>, quick: bool) -> Self {
        match &mut self {
            Self::Publishers(Load { publishes, .. }) | Self::FanOut(FanOut { publishes, .. }) => {
                *publishes = number.unwrap_or(*publishes) / if quick { 20 } else { 1 };
            }
            Self::Idle(idle) => idle.clients /= if quick { 20 } else { 1 },
        }
        self
    }

    fn connect(&self, address: SocketAddr) -> Result<Box<dyn Crew>> {
        match self {
            Self::Publishers(load) => Ok(Box::new(Clients::connect(address, load)?)),
            Self::FanOut(load) => Ok(Box::new(Crowd::connect(address, load)?)),
            Self::Idle(_) => bail!("idle clients have nothing to run"),
        }
    }
}

/// Runs tidegate, mosquitto and rumqttd in turn under the same load and compares them.
///
/// Loads with payloads of 16 to 100 bytes and one subscriber to #: qos0 and qos1 are 50 publishers with 100
/// publishes in flight each; sparse is 1,000 publishers with one in flight each, at QoS 1. Loads with one publisher
/// that has 20 publishes of 40 bytes in flight, and 1,000 subscribers: fanout0 and fanout1. idle is 8,000
/// clients that are connected, each with a subscription of its own, and say nothing.
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Options {
    /// Only this broker (tidegate, mosquitto or rumqttd); may be repeated.
    #[arg(long)]
    broker: Vec<String>,
    /// Only this load (qos0, qos1, sparse, fanout0, fanout1 or idle); may be repeated.
    #[arg(long)]
    load: Vec<String>,
    /// How often each broker has its turn under each load.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many publishes a run has, of all publishers together, instead of each load's own number.
    #[arg(long, value_name = "NUMBER")]
    publishes: Option<u64>,
    /// The tidegate to run; without it the release build of this workspace, which is made first.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Loads a broker that runs already, instead of starting one; its CPU time and memory are not measured.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<SocketAddr>,
    /// A twentieth of the publishes or idle clients and one round: to see that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(RUMQTTD_ARGUMENT) {
        return be_rumqttd(&arguments.next().context("the address is missing")?);
    }
    let options = Options::parse();
    peer::raise_open_files_limit()?;
    let loads = chosen_loads(&options)?;
    if let Some(address) = options.address {
        return loads.iter().try_for_each(|load| print_outcome(load, &run_clients(address, load)?));
    }
    let brokers = chosen_brokers(&options)?;
    let built = built_folder()?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None if brokers.contains(&Broker::Tidegate) => build_tidegate(&built)?,
        None => PathBuf::new(),
    };
    let rounds = if options.quick { 1 } else { options.rounds };
    // Beside the binaries, so that tidegate's journal lies on the disk that holds the workspace.
    let folder = tempfile::tempdir_in(&built).context("making a folder for the brokers' files")?;
    print_versions(&brokers, &binary)?;
    let (mut measurements, mut idle_measurements) = (Vec::new(), Vec::new());
    for load in &loads {
        for round in 1..=rounds {
            for &broker in &brokers {
                let folder = folder.path().join(format!("{}-{}-{round}", load.name(), broker.name()));
                let context = || format!("{} under {}, round {round}", broker.name(), load.name());
                if let Work::Idle(idle) = load {
                    let measurement = measure_idle(broker, idle, &folder, &binary).with_context(context)?;
                    print_idle(round, &measurement);
                    idle_measurements.push(measurement);
                } else {
                    let measurement = measure(broker, load, &folder, &binary).with_context(context)?;
                    print_measurement(round, &measurement);
                    measurements.push(measurement);
                }
                std::fs::remove_dir_all(&folder)?;
            }
        }
    }
    if !measurements.is_empty() {
        print!("\n{}", report::markdown(&measurements));
    }
    if !idle_measurements.is_empty() {
        print!("\n{}", report::idle_markdown(&idle_measurements));
    }
    Ok(())
}

fn print_versions(brokers: &[Broker], binary: &Path) -> Result<()> {
    let versions = brokers.iter().map(|broker| broker.version(binary)).collect::<Result<Vec<_>>>()?;
    println!("{}", versions.join(", "));
    Ok(())
}

fn chosen_loads(options: &Options) -> Result<Vec<Work>> {
    if let Some(unknown) = options.load.iter().find(|name| LOADS.iter().all(|load| load.name() != **name)) {
        let names = LOADS.map(|load| load.name()).join(", ");
        bail!("there is no load called {unknown:?}; there are {names}");
    }
    let chosen = |load: &Work| options.load.is_empty() || options.load.iter().any(|name| name == load.name());
    let adjusted = |load: Work| load.adjusted(options.publishes, options.quick);
    let loads: Vec<Work> = LOADS.into_iter().filter(chosen).map(adjusted).collect();
    ensure!(
        loads.iter().all(|load| load.publishes() > 0 || matches!(load, Work::Idle(_))),
        "there must be publishes"
    );
    Ok(loads)
}

fn chosen_brokers(options: &Options) -> Result<Vec<Broker>> {
    if options.broker.is_empty() {
        return Ok(Broker::ALL.to_vec());
    }
    let from_name = |name: &String| {
        Broker::from_name(name).with_context(|| {
            format!("there is no broker called {name:?}; there are tidegate, mosquitto and rumqttd")
        })
    };
    options.broker.iter().map(from_name).collect()
}

/// The folder of the release build this program belongs to: it lies in `deps` there.
fn built_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().and_then(Path::parent).context("this program lies in no build folder")?;
    Ok(folder.to_owned())
}

fn build_tidegate(built: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "tidegate", "--bin", "tidegate"])
        .status();
    ensure!(
        status.context("starting cargo")?.success(),
        "tidegate does not build; --binary names one that exists"
    );
    Ok(built.join("tidegate"))
}

fn measure(broker: Broker, load: &Work, folder: &Path, binary: &Path) -> Result<Measurement> {
    let peer = Peer::start(broker, folder, binary)?;
    let run = || -> Result<Measurement> {
        let mut clients = load.connect(peer.address())?;
        let user_before = peer.user_time()?;
        let (cpu_before, own_before) = (peer.cpu_time()?, peer::process_cpu_time(None)?);
        let outcome = clients.run(RUN_LIMIT)?;
        clients.settle()?;
        let (cpu, own) = (peer.cpu_time()? - cpu_before, peer::process_cpu_time(None)? - own_before);
        ensure!(outcome.delivered > 0, "nothing was delivered");
        check(load, &outcome)?;
        let millions = outcome.delivered as f64 / 1e6;
        Ok(Measurement {
            broker,
            load: load.name(),
            delivered_per_second: outcome.delivered as f64 / outcome.elapsed.as_secs_f64(),
            cpu_seconds_per_million: cpu.as_secs_f64() / millions,
            user_seconds_per_million: (peer.user_time()? - user_before).as_secs_f64() / millions,
            generator_cpu_seconds_per_million: own.as_secs_f64() / millions,
            peak_memory_bytes: peer.peak_memory()?,
            delivered_fraction: outcome.delivered as f64 / load.deliveries() as f64,
        })
    };
    run().with_context(|| peer.last_words())
}

fn measure_idle(broker: Broker, idle: &Idle, folder: &Path, binary: &Path) -> Result<IdleMeasurement> {
    let peer = Peer::start(broker, folder, binary)?;
    let run = || -> Result<IdleMeasurement> {
        // The first client brings in what any client needs once.
        let first = Idle { clients: 1, ..idle.clone() }.connect(peer.address())?;
        drop(first);
        let before = peer.resident_memory()?;
        let clients = idle.connect(peer.address())?;
        let after = peer.resident_memory()?;
        let grown = after.saturating_sub(before) as f64;
        Ok(IdleMeasurement { broker, clients: clients.len(), bytes_per_client: grown / clients.len() as f64 })
    };
    run().with_context(|| peer.last_words())
}

fn run_clients(address: SocketAddr, load: &Work) -> Result<Outcome> {
    let mut clients = load.connect(address)?;
    let outcome = clients.run(RUN_LIMIT)?;
    clients.settle()?;
    Ok(outcome)
}

/// Says on standard error what a broker did that it must not do; the figures stand nevertheless.
fn check(load: &Work, outcome: &Outcome) -> Result<()> {
    let (publishes, deliveries) = (load.publishes(), load.deliveries());
    if load.qos() == 1 && outcome.acknowledged < publishes {
        eprintln!("warning: only {} of {publishes} publishes were acknowledged", outcome.acknowledged);
    }
    if outcome.delivered < deliveries {
        eprintln!("warning: {} of {deliveries} deliveries never arrived", deliveries - outcome.delivered);
    }
    if outcome.repeated > 0 {
        eprintln!("warning: {} deliveries were repeated or out of order", outcome.repeated);
    }
    ensure!(outcome.delivered <= deliveries, "more was delivered than published");
    Ok(())
}

fn print_idle(round: usize, measurement: &IdleMeasurement) {
    println!(
        "round {round} idle    {:<9} {:>7.0} bytes for each of {} clients",
        measurement.broker.name(),
        measurement.bytes_per_client,
        measurement.clients,
    );
}

fn print_measurement(round: usize, measurement: &Measurement) {
    println!(
        "round {round} {:<7} {:<9} {:>9.0} delivered/s  {:>6.2} CPU s/million (user {:.2}, generator {:.2})  {:>4} MiB",
        measurement.load,
        measurement.broker.name(),
        measurement.delivered_per_second,
        measurement.cpu_seconds_per_million,
        measurement.user_seconds_per_million,
        measurement.generator_cpu_seconds_per_million,
        measurement.peak_memory_bytes >> 20,
    );
}

fn print_outcome(load: &Work, outcome: &Outcome) -> Result<()> {
    check(load, outcome)?;
    let per_second = outcome.delivered as f64 / outcome.elapsed.as_secs_f64();
    println!(
        "{:<7} {per_second:>9.0} delivered/s, {} of {}",
        load.name(),
        outcome.delivered,
        load.deliveries()
    );
    Ok(())
}

/// Is rumqttd, with its shipped settings, until standard input ends.
fn be_rumqttd(address: &str) -> Result<()> {
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 60_000,
        max_payload_size: 20_480,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = rumqttd::ServerSettings {
        name: "v4-1".into(),
        listen: address.parse()?,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let config = rumqttd::Config {
        router: rumqttd::RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 200,
            max_segment_size: 104_857_600,
            max_segment_count: 10,
            ..Default::default()
        },
        v4: Some([("1".to_owned(), server)].into()),
        ..Default::default()
    };
    std::thread::spawn(|| {
        // Standard input is a pipe from the program that started this one; it never carries anything.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    rumqttd::Broker::new(config).start().context("rumqttd")
}
