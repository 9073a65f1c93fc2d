//! The file of dead letters that no Kafka topic takes: one JSON object a line, for its owner only.
//!
//! What is appended is on disk when [`DeadLetterFile::sync`] has returned. At half of what is allowed the file is put
//! aside as `.1` and a new one begun; the one that was put aside before goes, with a warning and counted. So the two
//! hold at least half of what is allowed, and never more, except that a single line may be larger.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The file, and the one before it.
#[derive(Debug)]
pub(in super::super) struct DeadLetterFile {
    folder: PathBuf,
    sink: &'static str,
    /// When a file is full.
    bytes_max: u64,
    /// Opened with the first line: most never have one.
    open: Option<Open>,
    unsynced: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl DeadLetterFile {
    /// The file of `sink` in `folder`, which is made when it is needed; both files together hold `bytes_max`.
    pub(in super::super) const fn new(folder: PathBuf, sink: &'static str, bytes_max: u64) -> Self {
        Self { folder, sink, bytes_max: bytes_max / 2, open: None, unsynced: false }
    }

    /// Where it lies.
    pub(in super::super) fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.jsonl", self.sink))
    }

    /// Where the one before it lies.
    fn path_before(&self) -> PathBuf {
        self.folder.join(format!("{}.1.jsonl", self.sink))
    }

    /// Adds a line, which ends in a line feed.
    pub(in super::super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        if open.bytes > 0 && open.bytes + bytes > self.bytes_max {
            open.file.sync_data()?;
            self.put_aside()?;
            open = self.begin()?;
        }
        // After a write that failed the file is opened anew, which cuts off what was written of the line.
        open.file.write_all(line)?;
        open.bytes += bytes;
        self.open = Some(open);
        self.unsynced = true;
        Ok(())
    }

    /// Returns when everything appended is on disk.
    pub(in super::super) fn sync(&mut self) -> io::Result<()> {
        if !self.unsynced {
            return Ok(());
        }
        if let Some(open) = &self.open
            && let Err(error) = open.file.sync_data()
        {
            // What was not synced may be gone although the next sync succeeds.
            self.open = None;
            return Err(error);
        }
        self.unsynced = false;
        Ok(())
    }

    /// Opens the file, and cuts off a line that a crash has left unfinished.
    fn begin(&self) -> io::Result<Open> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(self.path())?;
        let mut held = Vec::new();
        file.read_to_end(&mut held)?;
        let whole = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last as u64 + 1);
        if whole < held.len() as u64 {
            file.set_len(whole)?;
        }
        sync_folder(&self.folder)?;
        Ok(Open { file, bytes: whole })
    }

    fn put_aside(&self) -> io::Result<()> {
        let before = self.path_before();
        if let Ok(file) = File::open(&before) {
            let lines = BufReader::new(file).split(b'\n').map_while(Result::ok).count() as u64;
            metrics::counter!("tidegate_sink_dead_letters_discarded_total", "sink" => self.sink)
                .increment(lines);
            tracing::warn!(
                sink = self.sink,
                "{} is removed with the {lines} oldest dead letters: the two files hold no more than \
                 kafka.dead_letter.max_file_bytes",
                before.display()
            );
        }
        fs::rename(self.path(), before)?;
        sync_folder(&self.folder)
    }
}

/// A new name in a folder is durable when the folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn what_is_appended_is_there_for_its_owner_only_and_is_added_to_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("dead-letters");
        let mut file = DeadLetterFile::new(inner.clone(), "kafka", 1 << 20);
        assert!(!inner.exists(), "nothing is made before there is a dead letter");
        file.append(b"{\"a\":1}\n").unwrap();
        file.sync().unwrap();
        let path = file.path();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&path)), (0o700, 0o600));
        drop(file);
        let mut file = DeadLetterFile::new(inner, "kafka", 1 << 20);
        file.append(b"{\"a\":2}\n").unwrap();
        file.sync().unwrap();
        assert_eq!(read(&path), "{\"a\":1}\n{\"a\":2}\n");
    }

    #[test]
    fn a_line_that_a_crash_has_cut_off_goes() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = DeadLetterFile::new(folder.path().into(), "kafka", 1 << 20);
        fs::write(file.path(), "{\"a\":1}\n{\"a\":").unwrap();
        file.append(b"{\"a\":2}\n").unwrap();
        assert_eq!(read(&file.path()), "{\"a\":1}\n{\"a\":2}\n");
    }

    #[test]
    fn the_two_files_hold_the_newest_and_no_more_than_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = DeadLetterFile::new(folder.path().into(), "kafka", 200);
        for number in 0..100 {
            file.append(format!("{number:09}\n").as_bytes()).unwrap();
            let held = read(&file.path_before()) + &read(&file.path());
            assert!(held.len() <= 200, "{} bytes", held.len());
            let oldest = held.lines().next().unwrap().parse::<usize>().unwrap();
            assert_eq!(held.lines().count(), number - oldest + 1, "none is missing in between");
            assert!(held.len() >= 100.min((number + 1) * 10), "half of what is allowed is kept");
        }
        // A line that is larger than a file may be is kept all the same.
        let large = format!("{}\n", "x".repeat(500));
        file.append(large.as_bytes()).unwrap();
        assert_eq!(read(&file.path()), large);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        let mut file = DeadLetterFile::new(in_the_way.join("dead-letters"), "kafka", 200);
        file.append(b"x\n").unwrap_err();
        file.append(b"x\n").unwrap_err();
    }
}
