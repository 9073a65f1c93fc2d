//! How many descriptors clients may take. Everything else that opens files, the journal above all, must find some left:
//! a journal that cannot begin its next segment fails for good.
//!
//! The operating system gives the lowest number that is free, so a socket below the limit proves that there is room,
//! and nothing has to be counted.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Descriptors that are kept from clients: for segments, catching up, checkpoints, certificates, sinks.
const KEPT: u64 = 64;
/// The part of them that HTTP may use too: however many devices there are, an operator can look at `/health`.
const FOR_HTTP: u64 = 32;
/// Where there are few at all, this part of them is kept.
const KEPT_PART: u64 = 4;
/// That no more clients are accepted is told in the log this often at most.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// The descriptors that clients may have: the numbers below a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    limit: RawFd,
}

impl Descriptors {
    /// Those for clients of MQTT. To be asked after the process has raised its limit.
    pub fn for_mqtt() -> Self {
        Self::of(open_files_max(), KEPT)
    }

    /// Those for clients of HTTP: a few more.
    pub fn for_http() -> Self {
        Self::of(open_files_max(), KEPT - FOR_HTTP)
    }

    fn of(open_files: u64, kept: u64) -> Self {
        let kept = kept.min((open_files / KEPT_PART).saturating_mul(kept) / KEPT);
        Self { limit: RawFd::try_from(open_files - kept).unwrap_or(RawFd::MAX) }
    }

    /// Whether a socket lies below the limit.
    pub fn hold(self, socket: &impl AsFd) -> bool {
        socket.as_fd().as_raw_fd() < self.limit
    }

    /// The socket of a client that was accepted, where that is below the limit, or as it is where there is no room.
    pub fn place<S: AsFd + From<OwnedFd>>(self, socket: S) -> Result<S, S> {
        if self.hold(&socket) {
            return Ok(socket);
        }
        // The copy gets the lowest number that is free; the original ends with it.
        match socket.as_fd().try_clone_to_owned() {
            Ok(lower) if self.hold(&lower) => Ok(S::from(lower)),
            Ok(_) | Err(_) => Err(socket),
        }
    }
}

/// Why a client waits, where no number below the limit is free.
pub fn none_left() -> io::Error {
    io::Error::other("the files that are left are kept for the journal")
}

fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// When it was last told that no more clients can be accepted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told(Option<Duration>);

impl Told {
    /// Whether to tell it at `now`; if so, it counts as told.
    pub fn is_news(&mut self, now: Duration) -> bool {
        let is_news = self.0.is_none_or(|last| now.saturating_sub(last) >= TOLD_INTERVAL);
        if is_news {
            self.0 = Some(now);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_part_of_few_and_a_number_of_many_are_kept() {
        for (open_files, mqtt, http) in [
            (0, 0, 0),
            (3, 3, 3),
            (100, 75, 88),
            (256, 192, 224),
            (1_024, 960, 992),
            (u64::MAX, RawFd::MAX, RawFd::MAX),
        ] {
            assert_eq!(Descriptors::of(open_files, KEPT).limit, mqtt, "{open_files}");
            assert_eq!(Descriptors::of(open_files, KEPT - FOR_HTTP).limit, http, "{open_files}");
        }
    }

    #[test]
    fn a_socket_takes_the_lowest_place_that_is_free() {
        let socket = File::open("/dev/null").unwrap();
        let number = socket.as_raw_fd();
        let socket = Descriptors { limit: number + 1 }.place(socket).unwrap();
        assert_eq!(socket.as_raw_fd(), number, "it has a place");
        let socket = Descriptors { limit: 0 }.place(socket).unwrap_err();
        assert_eq!(socket.as_raw_fd(), number, "there is no room, and it is kept");
        // Far above anything that other tests open meanwhile.
        let high = rustix::io::fcntl_dupfd_cloexec(&socket, 900).unwrap();
        let low = Descriptors { limit: 900 }.place(high).unwrap();
        assert!(low.as_raw_fd() < 900);
    }

    #[test]
    fn it_is_told_once_a_minute() {
        let mut told = Told::default();
        let at = [0, 1, 59, 60, 61, 119, 120].map(|second| told.is_news(Duration::from_secs(second)));
        assert_eq!(at, [true, false, false, true, false, false, true]);
    }
}
