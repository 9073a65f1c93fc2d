//! What durability costs, and what a long journal costs, measured at the release binary:
//!
//! - `sync`: the policies of `journal.sync` in turn under the same load: publishes per second, CPU, and how long one
//!   more client that publishes one at a time at QoS 1 waits for its PUBACK.
//! - `opening`: from the start of the program until MQTT is accepted, with journals of several sizes, after SIGKILL.
//! - `catchup`: a session with a narrow filter comes back after millions of records for others: how long until it has
//!   everything, and the CPU for that, where its records are in every segment, in few of them, and in none.
//!
//! ```text
//! cargo bench -p tidegate-benches --bench durable
//! cargo bench -p tidegate-benches --bench durable -- --part catchup --publishes 1000000
//! ```

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tidegate_benches::filler::fill;
use tidegate_benches::load::{Clients, Crew, Load};
use tidegate_benches::peer::{Broker, Peer};
use tidegate_benches::wire::Incoming;
use tidegate_benches::{link, wire};

const PARTS: [&str; 3] = ["sync", "opening", "catchup"];
const RUN_LIMIT: Duration = Duration::from_secs(180);
/// Room for the longest journal of all parts.
const MAX_BYTES: (&str, &str) = ("TIDEGATE_JOURNAL_MAX_BYTES", "16GiB");
/// Devices that publish while the session is away.
const DEVICES: u64 = 1_000;
/// The one whose records it subscribed to.
const WANTED: &str = "sensors/wanted/temperature";
/// How many of those there are, where there are any.
const WANTED_RECORDS: u64 = 2_000;

#[derive(Debug, Parser)]
#[command(name = "durable")]
struct Options {
    /// Only this part (sync, opening or catchup); may be repeated.
    #[arg(long)]
    part: Vec<String>,
    /// How often each policy or case has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Records that lie before the session that comes back.
    #[arg(long, default_value_t = 10_000_000)]
    publishes: u64,
    /// The longest journal that is opened, in GiB.
    #[arg(long, default_value_t = 10)]
    gib: u64,
    /// The tidegate to run; without it the release build of this workspace.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("durable: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse();
    if let Some(unknown) = options.part.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!("there is no part called {unknown:?}; there are {}", PARTS.join(", "));
    }
    let program = std::env::current_exe()?;
    let built = program.parent().and_then(Path::parent).context("this program lies in no build folder")?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => build(built)?,
    };
    // Beside the binaries, so that the journal lies on the disk that holds the workspace.
    let folder = tempfile::tempdir_in(built)?;
    let wanted = |part: &str| options.part.is_empty() || options.part.iter().any(|name| name == part);
    if wanted("sync") {
        compare_policies(&options, folder.path(), &binary)?;
    }
    if wanted("opening") {
        measure_opening(&options, folder.path(), &binary)?;
    }
    if wanted("catchup") {
        measure_catching_up(&options, folder.path(), &binary)?;
    }
    Ok(())
}

fn build(built: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--package", "tidegate", "--bin", "tidegate"];
    let status = Command::new(cargo).args(arguments).status().context("starting cargo")?;
    ensure!(status.success(), "tidegate does not build; --binary names one that exists");
    Ok(built.join("tidegate"))
}

/// The middle of `values`; they are not empty.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// --- sync ---

const POLICIES: [(&str, &str); 3] = [("always", "always"), ("every 100 ms", "100ms"), ("never", "never")];

/// What runs beside the client that publishes one at a time.
const LOADS: [Option<Load>; 3] = [
    None,
    Some(Load { name: "1,000 x 1", publishers: 1_000, in_flight: 1, qos: 1, publishes: 300_000 }),
    Some(Load { name: "50 x 100", publishers: 50, in_flight: 100, qos: 1, publishes: 2_000_000 }),
];
/// Publishes of the client that is alone.
const ALONE: usize = 2_000;

#[derive(Debug, Default)]
struct PolicyRuns {
    per_second: Vec<f64>,
    cpu: Vec<f64>,
    middle_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

fn compare_policies(options: &Options, folder: &Path, binary: &Path) -> Result<()> {
    println!("| others | journal.sync | publishes/s | CPU s per million | PUBACK p50 ms | p99 ms |");
    println!("|---|---|---:|---:|---:|---:|");
    for load in &LOADS {
        let mut runs: [PolicyRuns; POLICIES.len()] = Default::default();
        for _ in 0..options.rounds {
            for ((_, policy), runs) in POLICIES.iter().zip(&mut runs) {
                let data = folder.join("sync");
                run_policy(load.as_ref(), policy, &data, binary, runs).context(*policy)?;
                std::fs::remove_dir_all(&data)?;
            }
        }
        let name = load.as_ref().map_or("none", |load| load.name);
        for ((told, _), runs) in POLICIES.iter().zip(runs) {
            println!(
                "| {name} | {told} | {:.0} | {:.2} | {:.2} | {:.2} |",
                median(runs.per_second),
                median(runs.cpu),
                median(runs.middle_ms),
                median(runs.p99_ms)
            );
        }
    }
    Ok(())
}

fn run_policy(
    load: Option<&Load>,
    policy: &str,
    data: &Path,
    binary: &Path,
    runs: &mut PolicyRuns,
) -> Result<()> {
    let peer =
        Peer::start_with(Broker::Tidegate, data, binary, &[("TIDEGATE_JOURNAL_SYNC", policy), MAX_BYTES])?;
    let mut clients = load.map(|load| Clients::connect(peer.address(), load)).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let cpu_before = peer.cpu_time()?;
    let started = Instant::now();
    let probe = probe(peer.address(), Arc::clone(&stop), if load.is_some() { usize::MAX } else { ALONE })?;
    let (published, elapsed) = match &mut clients {
        Some(clients) => {
            let outcome = clients.run(RUN_LIMIT)?;
            stop.store(true, Ordering::Relaxed);
            (outcome.acknowledged, outcome.elapsed)
        }
        None => (0, Duration::ZERO),
    };
    let mut took = probe.join().map_err(|_| anyhow::anyhow!("the probe panicked"))??;
    let elapsed = if load.is_some() { elapsed } else { started.elapsed() };
    let published = (published + took.len() as u64) as f64;
    let cpu = (peer.cpu_time()? - cpu_before).as_secs_f64();
    took.sort();
    let ms = |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() * 1e3;
    runs.per_second.push(published / elapsed.as_secs_f64());
    runs.cpu.push(cpu / published * 1e6);
    runs.middle_ms.push(ms(50));
    runs.p99_ms.push(ms(99));
    Ok(())
}

/// A client that publishes at QoS 1, the next one after the PUBACK of the last: how long each took.
fn probe(
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    publishes_max: usize,
) -> Result<JoinHandle<Result<Vec<Duration>>>> {
    let mut stream = link::open(address, "probe")?;
    let mut publish = Vec::new();
    // The subscriber of the load, to `#`, does not see it [MQTT-4.7.2-1].
    wire::put_publish(&mut publish, "$probe/one", Some(1), [b"22.5", b""]);
    Ok(std::thread::spawn(move || {
        let mut took = Vec::new();
        let mut answer = [0; 4];
        while took.len() < publishes_max && !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            stream.write_all(&publish)?;
            stream.read_exact(&mut answer)?;
            took.push(started.elapsed());
        }
        Ok(took)
    }))
}

// --- opening ---

fn measure_opening(options: &Options, folder: &Path, binary: &Path) -> Result<()> {
    println!("\n| journal | opens after SIGKILL, seconds | of it CPU |");
    println!("|---:|---:|---:|");
    let data = folder.join("opening");
    let mut filled = 0;
    let sizes = [0, 1, 2, 5, 10, 20, 50].into_iter().filter(|gib| *gib <= options.gib);
    for gib in sizes {
        let peer = Peer::start_with(Broker::Tidegate, &data, binary, &[MAX_BYTES])?;
        // 1,000 bytes of payload take about 1,060 in the journal.
        let publishes = (gib - filled) * ((1 << 30) / 1_060);
        fill(peer.address(), publishes.max(1_000), 1_000, of_devices)?;
        filled = gib;
        peer.kill()?;
        let mut took = Vec::new();
        let mut cpu = Vec::new();
        for _ in 0..options.rounds {
            let started = Instant::now();
            let peer = Peer::start_with(Broker::Tidegate, &data, binary, &[MAX_BYTES])?;
            took.push(started.elapsed().as_secs_f64());
            cpu.push(peer.cpu_time()?.as_secs_f64());
            peer.kill()?;
        }
        println!("| {} | {:.2} | {:.2} |", size_of_folder(&data)?, median(took), median(cpu));
    }
    std::fs::remove_dir_all(&data)?;
    Ok(())
}

fn of_devices(topic: &mut String, number: u64) {
    write!(topic, "sensors/device-{}/temperature", number % DEVICES).expect("a String takes everything");
}

fn size_of_folder(folder: &Path) -> Result<String> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder.join("data/journal"))? {
        bytes += entry?.metadata()?.len();
    }
    Ok(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))
}

// --- catchup ---

/// Where the records lie that the session subscribed to.
const CASES: [&str; 3] = ["in every segment", "at both ends only", "nowhere"];

fn measure_catching_up(options: &Options, folder: &Path, binary: &Path) -> Result<()> {
    let publishes = options.publishes;
    println!(
        "\n| {publishes} records, of them for the session | records for it | seconds | CPU s | per record passed, ns |"
    );
    println!("|---|---:|---:|---:|---:|");
    for case in CASES {
        let (mut took, mut cpu) = (Vec::new(), Vec::new());
        let mut wanted = 0;
        for _ in 0..options.rounds {
            let data = folder.join("catchup");
            let peer = Peer::start_with(Broker::Tidegate, &data, binary, &[MAX_BYTES])?;
            let mut stream = link::open_kept(peer.address(), "away", false)?;
            link::subscribe(&mut stream, "sensors/wanted/#", 1)?;
            drop(stream);
            wanted = (0..publishes).filter(|number| is_wanted(case, publishes, *number)).count();
            fill(peer.address(), publishes, 40, |topic, number| {
                if is_wanted(case, publishes, number) {
                    topic.push_str(WANTED)
                } else {
                    of_devices(topic, number)
                }
            })?;
            // What comes behind everything else, so that there is an end to wait for.
            fill(peer.address(), 1, 40, |topic, _| topic.push_str("sensors/wanted/last"))?;
            let cpu_before = peer.cpu_time()?;
            let started = Instant::now();
            let stream = link::open_kept(peer.address(), "away", true)?;
            receive(stream, wanted + 1)?;
            took.push(started.elapsed().as_secs_f64());
            cpu.push((peer.cpu_time()? - cpu_before).as_secs_f64());
            drop(peer);
            std::fs::remove_dir_all(&data)?;
        }
        let (took, cpu) = (median(took), median(cpu));
        println!("| {case} | {wanted} | {took:.3} | {cpu:.3} | {:.1} |", cpu / publishes as f64 * 1e9);
    }
    Ok(())
}

fn is_wanted(case: &str, publishes: u64, number: u64) -> bool {
    let every = publishes / WANTED_RECORDS;
    match case {
        "nowhere" => false,
        "in every segment" => number.is_multiple_of(every),
        _ => number < WANTED_RECORDS / 2 || number >= publishes - WANTED_RECORDS / 2,
    }
}

/// Receives and acknowledges so many publishes at QoS 1.
fn receive(mut stream: TcpStream, mut expected: usize) -> Result<()> {
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    while expected > 0 {
        let bytes = stream.read(&mut buffer).context("nothing more comes")?;
        ensure!(bytes > 0, "the broker closed the connection");
        input.extend_from_slice(&buffer[..bytes]);
        let mut rest = &input[..];
        while let Some(packet) = wire::take_packet(&mut rest)? {
            let Incoming::Publish { packet_id: Some(packet_id), .. } = packet else {
                bail!("instead of a publish at QoS 1 came {packet:?}");
            };
            wire::put_puback(&mut out, packet_id);
            expected = expected.checked_sub(1).context("more came than was published")?;
        }
        input = rest.to_vec();
        stream.write_all(&out)?;
        out.clear();
    }
    Ok(())
}
