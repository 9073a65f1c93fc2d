//! A simulated disk: [`MemoryStorage`], memory that can lose power and whose calls can fail.
//!
//! It is as unkind as POSIX allows. Until a file is synced, any subset of its writes may survive a power loss,
//! each torn at any byte, in any order; until the folder is synced, any subset of its name changes may. A failed
//! sync leaves the writes readable but forgotten: no later sync makes them durable, as in the Linux page cache.
//! Everything follows from the seeds, so a failing run can be repeated.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{Storage, StorageFile};

/// A kind of call to a [`MemoryStorage`], for its fault plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Storage::list`].
    List,
    /// [`Storage::create`].
    Create,
    /// [`Storage::open`].
    Open,
    /// [`Storage::rename`].
    Rename,
    /// [`Storage::remove`].
    Remove,
    /// [`Storage::sync_folder`].
    SyncFolder,
    /// [`StorageFile::read_at`].
    Read,
    /// [`StorageFile::write_at`].
    Write,
    /// [`StorageFile::sync`].
    Sync,
    /// [`StorageFile::len`].
    Len,
    /// [`StorageFile::set_len`].
    SetLen,
}

/// Memory that can lose power: what was not synced may be lost, in any part, when it does.
///
/// Clones are the same disk. A power loss cuts off every clone and file opened before it, except the clone it was
/// called on: what a dead process would still do to the disk fails.
#[derive(Debug)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
    life: AtomicU64,
}

#[derive(Debug, Default)]
struct Disk {
    life: u64,
    files: Vec<FileContent>,
    names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    names_pending: Vec<NameChange>,
    calls: u64,
    plan: Vec<(Option<Call>, u64)>,
    power_off_at: Option<u64>,
    rng: Rng,
}

#[derive(Debug, Default)]
struct FileContent {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    /// At least so long.
    Reserve(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self { disk: Arc::default(), life: AtomicU64::new(0) }
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> Self {
        let life = AtomicU64::new(self.locked().life);
        Self { disk: self.disk.clone(), life }
    }
}

impl MemoryStorage {
    /// Cuts the power and restores it: what was not synced survives or not, in parts, as `seed` says. Planned
    /// faults are forgotten.
    pub fn lose_power(&self, seed: u64) {
        let mut disk = self.locked();
        disk.life += 1;
        disk.plan.clear();
        disk.power_off_at = None;
        disk.rng = Rng(seed);
        disk.settle();
        self.life.store(disk.life, Ordering::Relaxed);
    }

    /// Ends the process but not the machine: everything written stays readable, synced or not.
    pub fn kill(&self) {
        let mut disk = self.locked();
        disk.life += 1;
        disk.plan.clear();
        disk.power_off_at = None;
        self.life.store(disk.life, Ordering::Relaxed);
    }

    /// Lets the `nth` call of this kind from now on (of any kind for `None`) fail with an input/output error. The
    /// first is 1. A write that fails may have been done in part; a sync that fails, too.
    pub fn fail(&self, call: Option<Call>, nth: u64) {
        self.locked().plan.push((call, nth));
    }

    /// Lets the power go off in the `nth` call from now on: it is done in part or not at all, and everything after
    /// it fails, until [`MemoryStorage::lose_power`].
    pub fn power_off_at(&self, nth: u64) {
        let mut disk = self.locked();
        disk.power_off_at = Some(disk.calls + nth);
    }

    /// Where the randomness of faults begins.
    pub fn seed(&self, seed: u64) {
        self.locked().rng = Rng(seed);
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.locked().calls
    }

    fn locked(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no thread panics while it holds the disk")
    }

    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.locked();
        match disk.admit(self.life.load(Ordering::Relaxed), call) {
            None => Ok(disk),
            Some(error) => Err(error),
        }
    }
}

impl Disk {
    /// Counts a call; the error that it is to fail with.
    fn admit(&mut self, life: u64, call: Call) -> Option<io::Error> {
        if life != self.life {
            return Some(io::Error::other("the power was lost since this was opened"));
        }
        self.calls += 1;
        if self.power_off_at.is_some_and(|at| self.calls >= at) {
            return Some(io::Error::other("the power is off"));
        }
        let mut fails = false;
        self.plan.retain_mut(|(kind, nth)| {
            if kind.is_some_and(|kind| kind != call) {
                return true;
            }
            *nth -= 1;
            fails |= *nth == 0;
            *nth > 0
        });
        fails.then(|| io::Error::other("simulated input/output error"))
    }

    /// Whether this life goes on and the power is on.
    fn is_on(&self, life: u64) -> bool {
        life == self.life && self.power_off_at.is_none_or(|at| self.calls < at)
    }

    /// Whether the call that just failed may have been done in part.
    fn half_done(&self, life: u64) -> bool {
        life == self.life && self.power_off_at.is_none_or(|at| self.calls == at)
    }

    fn settle(&mut self) {
        let mut rng = std::mem::take(&mut self.rng);
        let keep_names = rng.below(3);
        for change in std::mem::take(&mut self.names_pending) {
            if rng.survives(keep_names) {
                change.apply(&mut self.names_durable);
            }
        }
        self.names = self.names_durable.clone();
        for file in &mut self.files {
            file.settle(&mut rng);
        }
        self.rng = rng;
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, file) => {
                names.insert(name, file);
            }
            Self::Rename(from, to, file) => {
                names.remove(&from);
                names.insert(to, file);
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl FileContent {
    fn write(content: &mut Vec<u8>, bytes: &[u8], at: u64) {
        let at = usize::try_from(at).expect("a simulated file fits into memory");
        if content.len() < at + bytes.len() {
            content.resize(at + bytes.len(), 0);
        }
        content[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn apply(content: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, bytes) => Self::write(content, bytes, *at),
            Change::Length(bytes) => {
                content.resize(usize::try_from(*bytes).expect("a simulated file fits into memory"), 0);
            }
            Change::Reserve(bytes) => {
                let bytes = usize::try_from(*bytes).expect("a simulated file fits into memory");
                content.resize(bytes.max(content.len()), 0);
            }
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.visible, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            Self::apply(&mut self.durable, &change);
        }
    }

    /// Keeps some of what is pending, in parts and in any order, and forgets the rest.
    fn keep_some(&mut self, rng: &mut Rng) {
        let keep = rng.below(3);
        let mut kept = Vec::new();
        for change in self.pending.drain(..) {
            if rng.survives(keep) {
                kept.push(change.torn(rng));
            }
        }
        if rng.below(2) == 0 {
            for at in (1..kept.len()).rev() {
                kept.swap(at, rng.index(at + 1));
            }
        }
        for change in &kept {
            Self::apply(&mut self.durable, change);
        }
    }

    fn settle(&mut self, rng: &mut Rng) {
        self.keep_some(rng);
        self.visible = self.durable.clone();
    }
}

impl Change {
    /// Itself, or the part of a write in front of or behind some byte.
    fn torn(self, rng: &mut Rng) -> Self {
        let Self::Write(at, mut bytes) = self else { return self };
        let cut = rng.index(bytes.len() + 1);
        match rng.below(4) {
            0 => {
                bytes.truncate(cut);
                Self::Write(at, bytes)
            }
            1 => Self::Write(at + cut as u64, bytes.split_off(cut)),
            _ => Self::Write(at, bytes),
        }
    }
}

impl Storage for MemoryStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.call(Call::List)?.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.call(Call::Create)?;
        let file = disk.files.len();
        disk.files.push(FileContent::default());
        let change = NameChange::Add(name.to_owned(), file);
        change.clone().apply(&mut disk.names);
        disk.names_pending.push(change);
        Ok(self.file(file, &disk))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let disk = self.call(Call::Open)?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(file, &disk))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.call(Call::Rename)?;
        let file = *disk.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), file);
        change.clone().apply(&mut disk.names);
        disk.names_pending.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.call(Call::Remove)?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.names_pending.push(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut disk = self.call(Call::SyncFolder)?;
        disk.names_durable = disk.names.clone();
        disk.names_pending.clear();
        Ok(())
    }

    fn display(&self, name: &str) -> String {
        format!("memory:{name}")
    }
}

impl MemoryStorage {
    fn file(&self, file: usize, disk: &Disk) -> Arc<dyn StorageFile> {
        let storage = Self { disk: self.disk.clone(), life: AtomicU64::new(disk.life) };
        Arc::new(MemoryFile { storage, file })
    }
}

#[derive(Debug)]
struct MemoryFile {
    storage: MemoryStorage,
    file: usize,
}

impl MemoryFile {
    /// Admits a call that changes the file; `in_part` is what a failing one may still have done.
    fn changing(
        &self,
        call: Call,
        in_part: impl FnOnce(&mut FileContent, &mut Rng),
    ) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.storage.locked();
        let life = self.storage.life.load(Ordering::Relaxed);
        let Some(error) = disk.admit(life, call) else { return Ok(disk) };
        if disk.half_done(life) {
            let disk = &mut *disk;
            in_part(&mut disk.files[self.file], &mut disk.rng);
        }
        Err(error)
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let disk = self.storage.call(Call::Read)?;
        let content = &disk.files[self.file].visible;
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let found = content.get(at..at.saturating_add(buffer.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let change = Change::Write(at, bytes.to_vec());
        let partly = change.clone();
        let mut disk = self.changing(Call::Write, |file, rng| file.change(partly.torn(rng)))?;
        disk.files[self.file].change(change);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.changing(Call::Sync, FileContent::keep_some)?;
        disk.files[self.file].sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.storage.call(Call::Len)?.files[self.file].visible.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.changing(Call::SetLen, |_, _| {})?.files[self.file].change(Change::Length(bytes));
        Ok(())
    }

    fn reserve(&self, bytes: u64) {
        let mut disk = self.storage.locked();
        if disk.is_on(self.storage.life.load(Ordering::Relaxed)) {
            disk.files[self.file].change(Change::Reserve(bytes));
        }
    }
}

/// Small seeded random numbers (SplitMix64, Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug, Default)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An index below `limit`, which is not 0.
    pub(super) fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).expect("below a usize")
    }

    /// Whether one change survives a power loss that keeps none (0), some (1) or all (2) of them.
    fn survives(&mut self, keep: u64) -> bool {
        keep == 2 || keep == 1 && self.below(2) == 0
    }
}
