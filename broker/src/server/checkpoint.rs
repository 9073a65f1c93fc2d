//! The checkpoint file: written whole or not at all, and checked when it is read.

use std::io;
use std::sync::Arc;

use crate::broker::Broker;
use crate::journal::Storage;
use crate::plant::{self, Bug};
use crate::record::Offset;

const NAME: &str = "checkpoint";
const TEMPORARY: &str = "checkpoint.new";
const MAGIC: [u8; 8] = *b"TGCHKPT1";
const HEADER_BYTES: usize = 16;

/// A checkpoint that was taken and is not written yet.
#[derive(Debug)]
pub struct Taken {
    /// What it is the state at: a restart needs the journal from there on.
    pub offset: Offset,
    /// What sessions have not read yet begins here.
    pub position: Offset,
    /// The state.
    pub body: Vec<u8>,
}

impl Taken {
    /// The state of `broker`, at the `end` of what was accepted.
    pub fn of(broker: &Broker, end: Offset) -> Self {
        let position = broker.lowest_position().map_or(end, |lowest| lowest.min(end));
        Self { offset: end, position, body: broker.checkpoint(end) }
    }

    /// Whether every entry in it is durable: a crash must not leave a checkpoint that knows more than the journal.
    pub fn may_be_written(&self, durable_end: Offset) -> bool {
        self.offset <= durable_end || plant::is(Bug::CheckpointBeforeDurable)
    }
}

/// Reads the checkpoint, if there is one.
pub fn read(storage: &Arc<dyn Storage>) -> io::Result<Option<Vec<u8>>> {
    if !storage.list()?.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let damaged = |what: &str| {
        let file = storage.display(NAME);
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{file} is damaged ({what}): restore it from a backup, or move it away to replay the whole journal"
            ),
        )
    };
    let file = storage.open(NAME)?;
    let bytes = usize::try_from(file.len()?).map_err(|_| damaged("its size"))?;
    let mut content = vec![0; bytes];
    file.read_at(&mut content, 0)?;
    let (header, body) = content.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged("too short"))?;
    if header[..8] != MAGIC {
        return Err(damaged("not a checkpoint"));
    }
    if header[8..12] != crc32fast::hash(body).to_le_bytes() && !plant::is(Bug::CheckpointUnchecked) {
        return Err(damaged("wrong checksum"));
    }
    content.drain(..HEADER_BYTES);
    Ok(Some(content))
}

/// Writes the checkpoint in place of the one before.
pub fn write(storage: &Arc<dyn Storage>, body: &[u8]) -> io::Result<()> {
    if storage.list()?.iter().any(|name| name == TEMPORARY) {
        storage.remove(TEMPORARY)?;
    }
    let file = storage.create(TEMPORARY)?;
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    file.write_at(&header, 0)?;
    file.write_at(body, HEADER_BYTES as u64)?;
    if !plant::is(Bug::CheckpointNotSynced) {
        file.sync()?;
    }
    storage.rename(TEMPORARY, NAME)?;
    storage.sync_folder()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::MemoryStorage;

    fn disk(body: &[u8]) -> (MemoryStorage, Arc<dyn Storage>) {
        let disk = MemoryStorage::default();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        write(&storage, body).unwrap();
        (disk, storage)
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let (disk, storage) = disk(b"the state of a broker");
        for at in 0..disk.content(NAME).unwrap().len() {
            disk.flip(NAME, at, 0x40);
            // The last bytes of the header hold nothing.
            let is_unused = (12..HEADER_BYTES).contains(&at);
            match read(&storage) {
                Ok(_) => assert!(is_unused, "byte {at}"),
                Err(error) => assert!(error.to_string().contains("restore it"), "{error}"),
            }
            disk.flip(NAME, at, 0x40);
        }
        assert_eq!(read(&storage).unwrap().unwrap(), b"the state of a broker");
    }

    #[test]
    fn a_cut_file_is_noticed() {
        let (disk, storage) = disk(b"the state of a broker");
        for length in 0..disk.content(NAME).unwrap().len() {
            let shorter = disk.fork();
            shorter.open(NAME).unwrap().set_len(length as u64).unwrap();
            let storage: Arc<dyn Storage> = Arc::new(shorter);
            assert!(read(&storage).is_err(), "cut at {length}");
        }
        assert!(read(&storage).is_ok());
    }

    /// Whichever call fails, and whatever a power loss leaves: it is the one before or the new one.
    #[test]
    fn after_a_fault_at_any_call_there_is_the_old_one_or_the_new_one() {
        for fault in 1..12 {
            for seed in 0..12 {
                let (disk, storage) = disk(b"old");
                disk.seed(seed);
                if seed % 3 == 0 {
                    disk.power_off_at(fault);
                } else {
                    disk.fail(None, fault);
                }
                let written = write(&storage, b"new").is_ok();
                disk.lose_power(seed);
                let storage: Arc<dyn Storage> = Arc::new(disk.clone());
                let found = read(&storage).unwrap().unwrap();
                assert!(found == b"new" || (found == b"old" && !written), "call {fault}, seed {seed}");
                write(&storage, b"newer").unwrap();
                assert_eq!(read(&storage).unwrap().unwrap(), b"newer");
            }
        }
    }
}
