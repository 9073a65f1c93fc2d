//! Child processes that end with the test, signals, and what the kernel says about a process.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use super::eventually;

/// What can be sent to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Please finish.
    Term,
    /// Please finish, says who sits at the terminal.
    Interrupt,
    /// Read your files again.
    Hangup,
    /// End at once, without tidying up (PostgreSQL's immediate shutdown).
    Quit,
    /// Be gone.
    Kill,
    /// Stand still.
    Stop,
    /// Go on.
    Continue,
}

/// Sends `signal` to the process `pid`.
pub(crate) fn send(pid: u32, signal: Signal) {
    let number = match signal {
        Signal::Term => libc::SIGTERM,
        Signal::Interrupt => libc::SIGINT,
        Signal::Hangup => libc::SIGHUP,
        Signal::Quit => libc::SIGQUIT,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    let pid = libc::pid_t::try_from(pid).expect("process ids are positive and small");
    // SAFETY: `kill` takes two integers and touches no memory of ours.
    let sent = unsafe { libc::kill(pid, number) };
    assert_eq!(sent, 0, "cannot send {signal:?} to process {pid}: {}", std::io::Error::last_os_error());
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.split_whitespace().map(|child| child.parse().expect("the kernel lists process ids")).collect()
}

/// Whether the process `pid` has not ended; one that nobody has asked for its exit code yet has.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

/// Processes that stand still until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen(Vec<u32>);

impl Frozen {
    /// Stops `pid` and then its children, which can become no more.
    pub(crate) fn with_children(pid: u32) -> Self {
        send(pid, Signal::Stop);
        let mut frozen = Self(vec![pid]);
        for child in children(pid) {
            send(child, Signal::Stop);
            frozen.0.push(child);
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().rev().for_each(|pid| send(*pid, Signal::Continue));
    }
}

/// Starts `command` as a child that the kernel ends when the thread that started it ends, however that happens.
pub(crate) fn spawn(command: &mut Command) -> Child {
    // SAFETY: the closure runs between fork and exec and makes one system call that is safe there; it allocates
    // nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!(
            "cannot start {}: {error}; tests/run builds and installs what the tests need",
            command.get_program().display()
        ),
    }
}

/// Waits until `child` has ended.
pub(crate) async fn ended(child: &mut Child, patience: Duration) -> ExitStatus {
    eventually("the process ends", patience, async || child.try_wait().expect("the child is ours")).await
}

/// From now on no file of the process `pid` can grow beyond `bytes`: its writes fail, as they do on a full disk.
pub(crate) fn limit_files(pid: u32, bytes: u64) {
    limit(pid, libc::RLIMIT_FSIZE, bytes);
}

/// From now on the process `pid` can open no more files than it has open, except in the place of one that it closes.
pub(crate) fn limit_to_open_files(pid: u32) {
    let is_open = |number: &u64| std::fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
    let lowest_free = (0..).find(|number| !is_open(number)).expect("there are more numbers than files");
    limit(pid, libc::RLIMIT_NOFILE, lowest_free);
}

fn limit(pid: u32, resource: libc::__rlimit_resource_t, to: u64) {
    let pid = libc::pid_t::try_from(pid).expect("process ids are positive and small");
    let limit = libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: the new limit is read from a live value, the old one is not asked for.
    let set = unsafe { libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "cannot limit process {pid}: {}", std::io::Error::last_os_error());
}

/// The most memory the process ever had resident, in bytes.
pub(crate) fn peak_memory_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// The memory that the process has resident now, in bytes.
pub(crate) fn memory_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("it is told in kB");
    kib * 1024
}

/// How many files this process may open, after asking for as many as it may ask for.
pub(crate) fn open_files_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the limit into a live value of its type, and reads the new one from it.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0, "the limit can be read");
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0, "it may be raised so far");
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}
