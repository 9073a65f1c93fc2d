//! Which calls to the simulated disk fail, and how.

use std::io;

/// A kind of call to a [`super::MemoryStorage`], for its fault plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`super::Storage::list`].
    List,
    /// [`super::Storage::create`].
    Create,
    /// [`super::Storage::open`].
    Open,
    /// [`super::Storage::rename`].
    Rename,
    /// [`super::Storage::remove`].
    Remove,
    /// [`super::Storage::sync_folder`].
    SyncFolder,
    /// [`super::StorageFile::read_at`].
    Read,
    /// [`super::StorageFile::write_at`].
    Write,
    /// [`super::StorageFile::sync`].
    Sync,
    /// [`super::StorageFile::len`].
    Len,
    /// [`super::StorageFile::set_len`].
    SetLen,
}

/// How a call fails. A write may have been done in part then, a sync too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`.
    Io,
    /// `ENOSPC`.
    NoSpace,
}

impl Fault {
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Io => io::Error::other("simulated input/output error"),
            Self::NoSpace => io::Error::new(io::ErrorKind::StorageFull, "simulated: no space left on device"),
        }
    }
}

/// Faults that are to come, and how many calls there were.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) calls: u64,
    plan: Vec<(Option<Call>, u64, Fault)>,
    power_off_at: Option<u64>,
    pub(super) capacity: Option<u64>,
}

impl Faults {
    pub(super) fn plan(&mut self, call: Option<Call>, nth: u64, fault: Fault) {
        self.plan.push((call, nth, fault));
    }

    pub(super) fn power_off_in(&mut self, calls: u64) {
        self.power_off_at = Some(self.calls + calls);
    }

    /// Forgets what was planned. A disk that is full stays full.
    pub(super) fn clear(&mut self) {
        self.plan.clear();
        self.power_off_at = None;
    }

    /// Counts a call; the error that it is to fail with.
    pub(super) fn admit(&mut self, call: Call) -> Option<io::Error> {
        self.calls += 1;
        if self.is_off() {
            return Some(io::Error::other("the power is off"));
        }
        if self.plan.is_empty() {
            return None;
        }
        let mut fails = None;
        self.plan.retain_mut(|(kind, nth, fault)| {
            if kind.is_some_and(|kind| kind != call) {
                return true;
            }
            *nth -= 1;
            if *nth == 0 {
                fails = Some(fault.error());
            }
            *nth > 0
        });
        fails
    }

    pub(super) fn is_off(&self) -> bool {
        self.power_off_at.is_some_and(|at| self.calls >= at)
    }

    /// Whether the call that just failed may have been done in part: the power was on when it began.
    pub(super) fn half_done(&self) -> bool {
        self.power_off_at.is_none_or(|at| self.calls == at)
    }
}
