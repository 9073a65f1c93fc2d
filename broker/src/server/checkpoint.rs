//! The checkpoint file: written whole or not at all, and checked when it is read.

use std::io;
use std::sync::Arc;

use crate::journal::Storage;

const NAME: &str = "checkpoint";
const TEMPORARY: &str = "checkpoint.new";
const MAGIC: [u8; 8] = *b"TGCHKPT1";
const HEADER_BYTES: usize = 16;

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
    if header[8..12] != crc32fast::hash(body).to_le_bytes() {
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
    file.sync()?;
    storage.rename(TEMPORARY, NAME)?;
    storage.sync_folder()
}
