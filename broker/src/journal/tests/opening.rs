//! What opening costs: the tail is read, sealed segments are trusted by their footers.

use std::io;

use super::*;

/// A disk that counts what is read from it.
#[derive(Debug)]
struct Counting {
    disk: MemoryStorage,
    read_bytes: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountingFile {
    file: Arc<dyn StorageFile>,
    read_bytes: Arc<AtomicU64>,
}

impl Counting {
    fn counted(&self, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(CountingFile { file, read_bytes: self.read_bytes.clone() })
    }
}

impl Storage for Counting {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.disk.create(name).map(|file| self.counted(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.disk.open(name).map(|file| self.counted(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.disk.sync_folder()
    }

    fn display(&self, name: &str) -> String {
        self.disk.display(name)
    }
}

impl StorageFile for CountingFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn reserve(&self, bytes: u64) -> std::io::Result<()> {
        self.file.reserve(bytes)
    }
}

/// Segments of which a batch is a small part, in a journal that keeps them all.
fn options() -> Options {
    Options { segment_bytes: 50_000, max_bytes: 100 << 20, batch_bytes: 2_000, ..small() }
}

/// Fills a journal until it has so many segments, ends the process, and opens it again: the bytes of the journal, and
/// those that were read to open it.
fn cost_of_opening(segments: usize) -> (u64, u64) {
    let disk = MemoryStorage::default();
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    let mut number = 0;
    while journal.status().segments < segments {
        for _ in 0..50 {
            push(&mut appender, number);
            number += 1;
        }
        appender.submit();
        writer.step();
    }
    disk.kill();
    let read_bytes = Arc::new(AtomicU64::new(0));
    let counting = Counting { disk, read_bytes: read_bytes.clone() };
    let (journal, ..) = Journal::open_stepped(Arc::new(counting), options()).unwrap();
    assert_eq!(journal.durable_end(), Offset(number));
    (journal.status().bytes, read_bytes.load(Ordering::Relaxed))
}

#[test]
fn opening_reads_the_tail_and_a_footer_of_each_segment() {
    let (small_bytes, small_read) = cost_of_opening(5);
    let (large_bytes, large_read) = cost_of_opening(105);
    assert!(large_bytes - small_bytes > 100 * 45_000, "{small_bytes} and {large_bytes}");
    let per_segment = (large_read - small_read) / 100;
    assert!(per_segment < 1_000, "{per_segment} bytes of each sealed segment of 50,000 are read");
}
