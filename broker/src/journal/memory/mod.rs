//! A simulated disk: [`MemoryStorage`], memory that can lose power and whose calls can fail.
//!
//! It is as unkind as POSIX allows, and as disks are beyond that. Until a file is synced, any subset of its writes
//! may survive a power loss, each torn at any byte, in any order; until the folder is synced, any subset of its name
//! changes may. A failed sync leaves the writes readable but forgotten: no later sync makes them durable, as in the
//! Linux page cache. It can be full, down to the byte at which a write stops short, and have room again. And what
//! is on it can change by itself.
//!
//! Everything follows from the seeds, so a failing run can be repeated.

mod disk;
mod faults;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use self::disk::Kept;
use self::disk::{Change, Disk, FileContent, NameChange};
pub use self::faults::{Call, Fault};
use super::storage::{self, Storage, StorageFile};

/// Memory that can lose power: what was not synced may be lost, in any part, when it does.
///
/// Clones are the same disk. A power loss cuts off every clone and file opened before it, except the clone it was
/// called on: what a dead process would still do to the disk fails.
#[derive(Debug)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
    life: AtomicU64,
}

impl Default for MemoryStorage {
    /// An empty disk. Its faults are always the same ones; what it gives out as random is not, until
    /// [`MemoryStorage::seed`].
    fn default() -> Self {
        let mut disk = Disk::default();
        disk.random = Rng(storage::random());
        Self { disk: Arc::new(Mutex::new(disk)), life: AtomicU64::new(0) }
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
        self.end_life(|disk| {
            disk.rng = Rng(seed);
            disk.settle(None, None);
        });
    }

    /// Like [`MemoryStorage::lose_power`], but says what survives: of created, renamed and removed names, and of
    /// writes.
    pub fn lose_power_keeping(&self, names: Kept, writes: Kept, seed: u64) {
        self.end_life(|disk| {
            disk.rng = Rng(seed);
            disk.settle(Some(names), Some(writes));
        });
    }

    /// Ends the process but not the machine: everything written stays readable, synced or not.
    pub fn kill(&self) {
        self.end_life(|_| {});
    }

    fn end_life(&self, then: impl FnOnce(&mut Disk)) {
        let mut disk = self.locked();
        disk.life += 1;
        disk.faults.clear();
        then(&mut disk);
        self.life.store(disk.life, Ordering::Relaxed);
    }

    /// Lets the `nth` call of this kind from now on (of any kind for `None`) fail with an input/output error. The
    /// first is 1. A write that fails may have been done in part; a sync that fails, too.
    pub fn fail(&self, call: Option<Call>, nth: u64) {
        self.fail_with(call, nth, Fault::Io);
    }

    /// Like [`MemoryStorage::fail`], in this way.
    pub fn fail_with(&self, call: Option<Call>, nth: u64, fault: Fault) {
        self.locked().faults.plan(call, nth, fault);
    }

    /// Lets the power go off in the `nth` call from now on: it is done in part or not at all, and everything after
    /// it fails, until [`MemoryStorage::lose_power`].
    pub fn power_off_at(&self, nth: u64) {
        self.locked().faults.power_off_in(nth);
    }

    /// Gives the disk a size in bytes, or none. A write beyond it is done up to the byte where the disk is full, and
    /// fails; so it goes until files are removed or the size is raised. It stays across power losses.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.locked().faults.capacity = bytes;
    }

    /// What all files take.
    pub fn used_bytes(&self) -> u64 {
        self.locked().used_bytes()
    }

    /// Inverts bits of one byte of a file, wherever it is kept, as a failing disk does.
    ///
    /// # Panics
    ///
    /// If there is no such byte.
    pub fn flip(&self, name: &str, at: usize, bits: u8) {
        self.locked().damage(name, at, |byte| byte ^ bits);
    }

    /// Fills a part of a file with random bytes.
    ///
    /// # Panics
    ///
    /// If there is no such part.
    pub fn garble(&self, name: &str, range: std::ops::Range<usize>, seed: u64) {
        let (mut disk, mut rng) = (self.locked(), Rng(seed));
        range.for_each(|at| disk.damage(name, at, |_| (rng.next() >> 32) as u8));
    }

    /// Another disk with the same content, to try something out on.
    pub fn fork(&self) -> Self {
        let mut disk = self.locked().clone();
        disk.faults.clear();
        let life = AtomicU64::new(disk.life);
        Self { disk: Arc::new(Mutex::new(disk)), life }
    }

    /// What a file holds now.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.locked();
        disk.names.get(name).map(|file| disk.files[*file].visible.clone())
    }

    /// A hash of all names and all content.
    pub fn digest(&self) -> u64 {
        self.locked().digest()
    }

    /// Where the randomness of faults, and what it gives out as random, begin.
    pub fn seed(&self, seed: u64) {
        let mut disk = self.locked();
        disk.rng = Rng(seed);
        disk.random = Rng(!seed);
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.locked().faults.calls
    }

    fn locked(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no thread panics while it holds the disk")
    }

    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.locked();
        match self.admit(&mut disk, call) {
            None => Ok(disk),
            Some(error) => Err(error),
        }
    }

    fn admit(&self, disk: &mut Disk, call: Call) -> Option<io::Error> {
        if !self.is_alive(disk) {
            return Some(io::Error::other("the power was lost since this was opened"));
        }
        disk.faults.admit(call)
    }

    fn is_alive(&self, disk: &Disk) -> bool {
        self.life.load(Ordering::Relaxed) == disk.life
    }

    fn file(&self, file: usize, disk: &Disk) -> Arc<dyn StorageFile> {
        let storage = Self { disk: self.disk.clone(), life: AtomicU64::new(disk.life) };
        Arc::new(MemoryFile { storage, file })
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
        disk.rename(NameChange::Add(name.to_owned(), file));
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
        disk.rename(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.call(Call::Remove)?;
        if !disk.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.rename(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.call(Call::SyncFolder)?.sync_names();
        Ok(())
    }

    fn display(&self, name: &str) -> String {
        format!("memory:{name}")
    }

    fn random(&self) -> u64 {
        self.locked().random.next()
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
        let Some(error) = self.storage.admit(&mut disk, call) else { return Ok(disk) };
        if self.storage.is_alive(&disk) && disk.faults.half_done() {
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
        let mut disk = self.changing(Call::Write, |file, rng| {
            file.change(Change::Write(at, bytes.to_vec()).torn(rng));
        })?;
        let growth = disk.files[self.file].growth(at, bytes.len());
        let missing = match disk.faults.capacity {
            Some(capacity) if growth > 0 => (disk.used_bytes() + growth).saturating_sub(capacity).min(growth),
            Some(_) | None => 0,
        };
        let missing = usize::try_from(missing).expect("a part of a slice");
        let (fits, stays_out) = bytes.split_at(bytes.len() - missing);
        disk.files[self.file].change(Change::Write(at, fits.to_vec()));
        if stays_out.is_empty() { Ok(()) } else { Err(Fault::NoSpace.error()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.changing(Call::Sync, FileContent::sync_in_part)?.files[self.file].sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.storage.call(Call::Len)?.files[self.file].visible.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.changing(Call::SetLen, |_, _| {})?.files[self.file].change(Change::Length(bytes));
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let disk = &mut *self.storage.locked();
        if !self.storage.is_alive(disk) || disk.faults.is_off() {
            return Ok(());
        }
        let growth = disk.files[self.file].growth(bytes, 0);
        let free = disk.faults.capacity.map_or(u64::MAX, |size| size.saturating_sub(disk.used_bytes()));
        if growth > free {
            // Some file systems take what there is before they say that it is not enough.
            let part = if disk.rng.below(2) == 0 { free } else { 0 };
            let length = disk.files[self.file].visible.len() as u64;
            disk.files[self.file].change(Change::Reserve(length + part));
            return Err(Fault::NoSpace.error());
        }
        disk.files[self.file].change(Change::Reserve(bytes));
        Ok(())
    }
}

/// Small seeded random numbers (SplitMix64, Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug, Default)]
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
}
