//! The brokers under comparison: each a process of its own with a fresh folder, ended by its own id, so that
//! its CPU time and memory are its own.
//!
//! What each is configured to be:
//!
//! - **tidegate**: its defaults, which means every publish is synced to disk before it is acknowledged. Its data
//!   folder lies beside the built binary, on whatever disk that is.
//! - **mosquitto**: no persistence (its default), no limit on what is in flight or queued for a subscriber, so
//!   that nothing of the load is dropped, and TCP_NODELAY, so that no small write waits. It never syncs.
//! - **rumqttd**: the router and connection settings of the configuration file it ships with (10,010
//!   connections, 200 outgoing packets per batch, 10 segments of 100 MiB per filter); these hold the load. It
//!   keeps everything in memory, so its memory grows with the publishes until the segments are full. It is a
//!   library: this program starts itself again to be that process. It never syncs, and stores nothing.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The first argument that makes this program be rumqttd, listening at the address in the second.
pub const RUMQTTD_ARGUMENT: &str = "be-rumqttd";

const START_TIMEOUT: Duration = Duration::from_secs(20);
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// A broker that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    /// This one.
    Tidegate,
    /// Eclipse Mosquitto, as installed.
    Mosquitto,
    /// rumqttd 0.20.
    Rumqttd,
}

impl Broker {
    /// All of them, in the order in which they take turns.
    pub const ALL: [Self; 3] = [Self::Tidegate, Self::Mosquitto, Self::Rumqttd];

    /// What the command line and the table call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
        }
    }

    /// Which version of it is measured; `tidegate` is the binary to run as tidegate.
    pub fn version(self, tidegate: &Path) -> Result<String> {
        let mut command = match self {
            Self::Tidegate => Command::new(tidegate),
            Self::Mosquitto => Command::new(mosquitto_program()),
            Self::Rumqttd => return Ok(format!("rumqttd {}", locked_version("rumqttd")?)),
        };
        command.arg(if self == Self::Tidegate { "--version" } else { "-h" }).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let words = text.lines().next().unwrap_or_default().split_whitespace();
        Ok(words.filter(|&word| word != "version").collect::<Vec<_>>().join(" "))
    }

    /// The broker called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|broker| broker.name() == name)
    }
}

/// A running broker; it is killed when this is dropped.
#[derive(Debug)]
pub struct Peer {
    broker: Broker,
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Peer {
    /// Starts `broker` with everything it writes in `folder`, and waits until it accepts connections.
    ///
    /// `tidegate` is the binary to run as tidegate.
    pub fn start(broker: Broker, folder: &Path, tidegate: &Path) -> Result<Self> {
        Self::start_with(broker, folder, tidegate, &[])
    }

    /// The same with more variables in its environment. In a `folder` that was used before, tidegate finds its data.
    pub fn start_with(
        broker: Broker,
        folder: &Path,
        tidegate: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let address = free_address()?;
        let mut command = match broker {
            Broker::Tidegate => tidegate_command(tidegate, folder, address)?,
            Broker::Mosquitto => mosquitto_command(folder, address)?,
            Broker::Rumqttd => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(RUMQTTD_ARGUMENT).arg(address.to_string());
                command
            }
        };
        let log = folder.join("log");
        let output = File::create(&log)?;
        // rumqttd's process ends when its standard input does, should this program be killed.
        let stdin = if broker == Broker::Rumqttd { Stdio::piped() } else { Stdio::null() };
        command.envs(variables.iter().copied());
        command.stdin(stdin).stdout(output.try_clone()?).stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("starting {:?}: is it installed?", command.get_program()))?;
        let mut peer = Self { broker, child, address, log };
        peer.wait_until_it_accepts()?;
        Ok(peer)
    }

    /// Ends it at once, as a crash does, and leaves its files.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Where it accepts MQTT connections.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time of all its threads, user and system, since it started.
    pub fn cpu_time(&self) -> Result<Duration> {
        process_cpu_time(Some(self.child.id()))
    }

    /// The part of its CPU time that it spent in user mode, in steps of the kernel's clock tick (10 ms).
    pub fn user_time(&self) -> Result<Duration> {
        /// Ticks per second; Linux shows 100 to programs whatever it counts with.
        const TICKS: u64 = 100;
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The name in brackets may hold spaces; utime is the twelfth field behind it, proc(5).
        let ticks = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(11));
        let ticks: u64 = ticks.with_context(|| format!("{path} has no utime"))?.parse()?;
        Ok(Duration::from_millis(ticks * 1_000 / TICKS))
    }

    /// The most memory it has had resident, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// The memory it has resident now, in bytes: what is its own, not what the kernel keeps for its sockets.
    pub fn resident_memory(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
            .with_context(|| {
                format!("{path} names no {name} the process has ended; {}", self.last_words())
            })?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// The end of what it wrote to its output, for a message.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!(
            "{} wrote: {}",
            self.broker.name(),
            if lines.is_empty() { "nothing".into() } else { lines.join(" / ") }
        )
    }

    fn wait_until_it_accepts(&mut self) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect_timeout(&self.address, PROBE_PAUSE).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; {}", self.broker.name(), self.last_words());
            }
            ensure!(
                started.elapsed() < START_TIMEOUT,
                "{} does not listen at {} after {START_TIMEOUT:?}; {}",
                self.broker.name(),
                self.address,
                self.last_words()
            );
            std::thread::sleep(PROBE_PAUSE);
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tidegate_command(binary: &Path, folder: &Path, address: SocketAddr) -> Result<Command> {
    ensure!(binary.is_file(), "{} does not exist: `cargo build --release` makes it", binary.display());
    let mut command = Command::new(binary);
    // Nothing of the caller's environment may configure it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    command
        .env("TIDEGATE_DATA_DIR", folder.join("data"))
        .env("TIDEGATE_MQTT_LISTEN", address.to_string())
        .env("TIDEGATE_HTTP_LISTEN", free_address()?.to_string());
    Ok(command)
}

fn mosquitto_command(folder: &Path, address: SocketAddr) -> Result<Command> {
    let path = folder.join("mosquitto.conf");
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    let text = format!(
        "listener {} {}\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\n\
         max_queued_messages 0\nset_tcp_nodelay true\nlog_dest stderr\nlog_type error\nlog_type warning\n\
         connection_messages false\nuser {user}\n",
        address.port(),
        address.ip(),
    );
    fs::write(&path, text)?;
    let mut command = Command::new(mosquitto_program());
    command.arg("-c").arg(path);
    Ok(command)
}

/// Debian keeps it where the search path of an ordinary user does not look.
fn mosquitto_program() -> &'static Path {
    let installed = Path::new("/usr/sbin/mosquitto");
    if installed.is_file() { installed } else { Path::new("mosquitto") }
}

/// The version of a library that this program is built with.
fn locked_version(package: &str) -> Result<&'static str> {
    let lock = include_str!("../../Cargo.lock");
    lock.split("[[package]]")
        .find_map(|entry| {
            entry.split_once(&format!("name = \"{package}\"\nversion = \""))?.1.split('"').next()
        })
        .with_context(|| format!("Cargo.lock names no {package}"))
}

/// An address on loopback where nothing listens.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr()?)
}

/// CPU time of all threads of a process, user and system, to the nanosecond; `None` is this process.
pub fn process_cpu_time(process: Option<u32>) -> Result<Duration> {
    let mut clock = libc::CLOCK_PROCESS_CPUTIME_ID;
    if let Some(process) = process {
        let process = libc::pid_t::try_from(process)?;
        // SAFETY: `clock` is valid for writing; the call does nothing else.
        let error = unsafe { libc::clock_getcpuclockid(process, &raw mut clock) };
        ensure!(error == 0, "process {process} has no CPU clock: it has ended");
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; the call does nothing else.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "the CPU time cannot be read: {}", std::io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// Lets this process and those it starts open as many files as the system permits.
pub fn raise_open_files_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing; the call does nothing else.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(result == 0, "reading the limit of open files: {}", std::io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for reading; the call does nothing else.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(result == 0, "raising the limit of open files: {}", std::io::Error::last_os_error());
    Ok(())
}
