//! What is on the simulated disk: content and names, each as they look now and as a power loss would leave them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Rng;
use super::faults::Faults;

/// How much of what was not synced a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// Any subset, in any order, writes torn at any byte.
    Some,
    /// Everything, though writes may still be torn and reordered.
    Everything,
}

impl Kept {
    fn any(rng: &mut Rng) -> Self {
        [Self::Nothing, Self::Some, Self::Everything][rng.index(3)]
    }

    fn survives(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Some => rng.below(2) == 0,
            Self::Everything => true,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) life: u64,
    pub(super) files: Vec<FileContent>,
    pub(super) names: BTreeMap<String, usize>,
    names_durable: BTreeMap<String, usize>,
    names_pending: Vec<NameChange>,
    pub(super) faults: Faults,
    /// For faults.
    pub(super) rng: Rng,
    /// For whoever asks for random bits.
    pub(super) random: Rng,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileContent {
    pub(super) visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    /// At least so long.
    Reserve(u64),
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Add(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

impl Disk {
    /// Changes a name. It is durable when the folder is synced.
    pub(super) fn rename(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.names_pending.push(change);
    }

    pub(super) fn sync_names(&mut self) {
        self.names_durable.clone_from(&self.names);
        self.names_pending.clear();
    }

    /// What the power loss leaves; what nobody can reach any more is forgotten.
    pub(super) fn settle(&mut self, names: Option<Kept>, writes: Option<Kept>) {
        let mut rng = std::mem::take(&mut self.rng);
        let keep_names = names.unwrap_or_else(|| Kept::any(&mut rng));
        for change in std::mem::take(&mut self.names_pending) {
            if keep_names.survives(&mut rng) {
                change.apply(&mut self.names_durable);
            }
        }
        self.names = self.names_durable.clone();
        let mut reachable = vec![false; self.files.len()];
        self.names.values().for_each(|file| reachable[*file] = true);
        for (file, reachable) in self.files.iter_mut().zip(reachable) {
            if !reachable {
                *file = FileContent::default();
            } else if !file.pending.is_empty() {
                let keep = writes.unwrap_or_else(|| Kept::any(&mut rng));
                file.keep(keep, &mut rng);
                file.visible.clone_from(&file.durable);
            } else if file.visible.len() != file.durable.len() || file.visible != file.durable {
                // A sync failed once: what it had forgotten is gone now.
                file.visible.clone_from(&file.durable);
            }
        }
        self.rng = rng;
    }

    /// What all files with names take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].visible.len() as u64).sum()
    }

    /// Changes content that is on disk and in every cache, as a failing disk does.
    pub(super) fn damage(&mut self, name: &str, at: usize, byte: impl FnOnce(u8) -> u8) {
        let file = &mut self.files[self.names[name]];
        let changed = byte(file.visible[at]);
        file.visible[at] = changed;
        if let Some(durable) = file.durable.get_mut(at) {
            *durable = changed;
        }
    }

    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, file) in &self.names {
            (name, &self.files[*file].visible).hash(&mut hasher);
        }
        hasher.finish()
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

fn place(at: u64) -> usize {
    usize::try_from(at).expect("a simulated file fits into memory")
}

impl FileContent {
    fn apply(content: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, bytes) => {
                let at = place(*at);
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Change::Length(bytes) => content.resize(place(*bytes), 0),
            Change::Reserve(bytes) => content.resize(place(*bytes).max(content.len()), 0),
        }
    }

    /// How much longer a write of `bytes` at `at` makes it.
    pub(super) fn growth(&self, at: u64, bytes: usize) -> u64 {
        (at + bytes as u64).saturating_sub(self.visible.len() as u64)
    }

    pub(super) fn change(&mut self, change: Change) {
        Self::apply(&mut self.visible, &change);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            Self::apply(&mut self.durable, &change);
        }
    }

    /// A sync that fails writes some of what is pending, in parts and in any order, and forgets the rest.
    pub(super) fn sync_in_part(&mut self, rng: &mut Rng) {
        let keep = Kept::any(rng);
        self.keep(keep, rng);
    }

    fn keep(&mut self, keep: Kept, rng: &mut Rng) {
        let mut kept = Vec::new();
        for change in self.pending.drain(..) {
            if keep.survives(rng) {
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
}

impl Change {
    /// Itself, or the part of a write in front of or behind some byte.
    pub(super) fn torn(self, rng: &mut Rng) -> Self {
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
