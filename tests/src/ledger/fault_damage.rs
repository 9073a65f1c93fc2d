//! The files of the journal are damaged by hand while it does not run.
//!
//! Below the durable end it must not start, and name the file and the place; when the damage is undone it must start and have lost
//! nothing. What a crash can leave behind the durable end is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::PATIENCE;
use super::row::Place;
use super::stage::{Plan, Stage};
use crate::journal_tools::journal;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, report};

/// Everything that belongs to the journal, oldest first; the last one is being written.
fn segments(tidegate: &Tidegate) -> Vec<PathBuf> {
    let folder = tidegate.folder().join("data/journal");
    let files = fs::read_dir(folder).expect("it has a journal").map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// One bit is another one, at this share of the file in thousandths.
    Flip(usize),
    /// A bit of the first bytes.
    FlipHead,
    /// A bit of the last bytes.
    FlipTail,
    /// The file ends at this share.
    Cut(usize),
    /// The file ends at this byte.
    CutAt(usize),
    /// Bytes like any others, somewhere.
    Overwrite(usize),
    /// It is not there.
    Remove,
}

impl Damage {
    fn apply(self, path: &Path, whole: &[u8]) {
        let mut bytes = whole.to_vec();
        let at = |share: usize| whole.len() * share / 1_000;
        match self {
            Self::Flip(share) => bytes[at(share)] ^= 1,
            Self::FlipHead => bytes[20] ^= 1,
            Self::FlipTail => bytes[whole.len() - 20] ^= 1,
            Self::Cut(share) => bytes.truncate(at(share)),
            Self::CutAt(end) => bytes.truncate(end),
            Self::Overwrite(share) => bytes[at(share)..][..4_096.min(whole.len() - at(share))].fill(0x2A),
            Self::Remove => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_below_the_durable_end_is_named_and_nothing_is_lost_when_it_is_undone() {
    let mut stage = small_segments("damage").await;
    let sealed = sealed_segments(&stage, 2).await;
    end_is_proved(&stage).await;
    stage.will_be_restarted();
    stage.tidegate.kill();
    let files = segments(&stage.tidegate);
    let (oldest, active) = (&sealed[0], files.last().unwrap());
    let cursors = stage.tidegate.folder().join("data/journal/cursors");
    assert!(cursors.is_file(), "the cursors lie in {}", cursors.display());
    let damages = [
        (active, Damage::FlipHead),
        (active, Damage::Flip(100)),
        (active, Damage::Overwrite(200)),
        (active, Damage::CutAt(PROVED_BYTES / 2)),
        (oldest, Damage::FlipHead),
        (oldest, Damage::FlipTail),
        (oldest, Damage::Cut(500)),
        (&sealed[1], Damage::Remove),
        (&cursors, Damage::Flip(500)),
    ];
    for (path, damage) in damages {
        let whole = fs::read(path).unwrap();
        damage.apply(path, &whole[..used_bytes(&whole)]);
        refuses_to_start(&mut stage.tidegate, path, damage).await;
        fs::write(path, whole).unwrap();
    }
    let ended = Instant::now();
    stage.tidegate.spawn();
    stage.tidegate.ready().await;
    let findings = stage.finish(ended).await;
    let places = damages.len();
    let fault = format!(
        "journal damaged at {places} places below its durable end: did not start, named each; undone"
    );
    findings.row(fault).record(Place::Damaged);
}

/// Sealed segments are not read as a whole at the start; who reads such a place is told where it is, and goes on when it is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_inside_a_sealed_segment_is_named_by_whoever_reads_it() {
    let mut stage = small_segments("sealed").await;
    let sealed = sealed_segments(&stage, 1).await;
    stage.will_be_restarted();
    // So that the state of the broker is behind the damage: else it would need what it cannot read, and not start.
    assert_eq!(stage.tidegate.drain().await.code(), Some(0));
    // The database is set back, as from a copy of yesterday: its sink reads from there on again.
    stage.database.query("UPDATE tidegate_internal.cursor SET position = 10", &[]).await;
    let whole = fs::read(&sealed[0]).unwrap();
    Damage::Flip(500).apply(&sealed[0], &whole);
    stage.tidegate.spawn();
    stage.tidegate.ready().await;
    let detail = eventually("the sink says what it cannot read", PATIENCE, async || {
        let sink = stage.tidegate.sink("postgres").await;
        (sink.state != "up" && sink.detail.contains("damaged")).then_some(sink.detail)
    })
    .await;
    let name = sealed[0].file_name().unwrap().to_str().unwrap();
    assert!(detail.contains(name) && detail.contains("at byte "), "{detail}");
    // Who does not need it goes on.
    stage.load.more_acknowledged(500).await;
    stage.is_keeping_up("kafka").await;
    fs::write(&sealed[0], whole).unwrap();
    let ended = Instant::now();
    stage.is_keeping_up("postgres").await;
    let findings = stage.finish(ended).await;
    let fault = "a sealed segment damaged: its reader waits and names file and byte; undone";
    findings.row(fault).record(Place::DamagedSealed);
}

/// The way out when there is no copy: what was damaged is lost, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_that_is_repaired_has_lost_what_the_repair_tells_and_nothing_else() {
    let mut stage = small_segments("repair").await;
    let sealed = sealed_segments(&stage, 1).await;
    for sink in ["kafka", "postgres"] {
        stage.is_keeping_up(sink).await;
    }
    end_is_proved(&stage).await;
    stage.will_be_restarted();
    stage.tidegate.kill();
    let data = stage.tidegate.folder().join("data");
    assert_eq!(journal(&data, &["verify"]).await.code, Some(0), "what a crash leaves is sound");
    let whole = fs::read(&sealed[0]).unwrap();
    Damage::Flip(500).apply(&sealed[0], &whole);
    refuses_to_start(&mut stage.tidegate, &sealed[0], Damage::Flip(500)).await;
    let verified = journal(&data, &["verify"]).await;
    assert_eq!(verified.code, Some(65), "{verified:?}");
    let told = journal(&data, &["repair"]).await;
    assert!(told.code == Some(65) && told.stdout.contains("lost "), "{told:?}");
    assert_eq!(fs::read(&sealed[0]).unwrap().len(), whole.len(), "without --yes nothing is changed");
    let lost: Vec<&str> = told.stdout.lines().filter(|line| line.starts_with("lost")).collect();
    report("ledger", &lost.join("; "));
    let repaired = journal(&data, &["repair", "--yes"]).await;
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    let ended = Instant::now();
    stage.tidegate.spawn();
    stage.tidegate.ready().await;
    // Every output had passed the damaged place, so that none of them misses what it held.
    let findings = stage.finish(ended).await;
    findings.row("a sealed segment damaged, then `journal repair --yes`").record(Place::DamagedRepaired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_may_leave_behind_the_durable_end_is_dropped() {
    let mut stage = small_segments("torn").await;
    let mut torn = 0;
    for garbage in [&b"\xd7TgF half a frame"[..], &[0xFF; 5_000], &[0; 70_000]] {
        stage.load.more_acknowledged(500).await;
        stage.will_be_restarted();
        stage.tidegate.kill();
        let active = segments(&stage.tidegate).pop().unwrap();
        let mut bytes = fs::read(&active).unwrap();
        bytes.truncate(used_bytes(&bytes));
        bytes.extend_from_slice(garbage);
        fs::write(&active, bytes).unwrap();
        torn += 1;
        stage.tidegate.spawn();
        stage.tidegate.ready().await;
    }
    let ended = Instant::now();
    stage.load.more_acknowledged(100).await;
    let findings = stage.finish(ended).await;
    findings.row(format!("torn tail behind the durable end, {torn} times: dropped")).record(Place::TornTail);
}

async fn small_segments(name: &str) -> Stage {
    let settings = Settings::default().set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB");
    Stage::start(name, Plan { settings, ..Plan::usual() }).await
}

/// Waits until there are so many segments that are not written any more.
async fn sealed_segments(stage: &Stage, count: usize) -> Vec<PathBuf> {
    eventually("segments are sealed", PATIENCE, async || {
        let mut segments = segments(&stage.tidegate);
        segments.pop();
        (segments.len() >= count).then_some(segments)
    })
    .await
}

/// So much of the segment that is being written is proved to have been there, whatever happens to the rest of it.
const PROVED_BYTES: usize = 100_000;

/// Waits until the file of cursors proves it. It is saved once a second; what was synced since then only its own segment proves, as
/// long as it is not cut off.
async fn end_is_proved(stage: &Stage) {
    let cursors = stage.tidegate.folder().join("data/journal/cursors");
    let saved = || fs::metadata(&cursors).and_then(|file| file.modified()).ok();
    let (mut active, mut saves) = (PathBuf::new(), Vec::new());
    eventually("the cursors are saved behind some of a new segment", PATIENCE, async || {
        let now = segments(&stage.tidegate).pop()?;
        if now != active {
            (active, saves) = (now, Vec::new());
        }
        if saves.is_empty() && used_bytes(&fs::read(&active).ok()?) < PROVED_BYTES {
            return None;
        }
        if saves.last() != Some(&saved()) {
            saves.push(saved());
        }
        // The first was there before, the second may have been begun before.
        (saves.len() > 2).then_some(())
    })
    .await;
}

/// Files grow ahead of what is written; the rest holds nothing.
fn used_bytes(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

async fn refuses_to_start(tidegate: &mut Tidegate, damaged: &Path, damage: Damage) {
    let before = tidegate.log().len();
    tidegate.spawn();
    eventually(&format!("{damage:?} of {}: it does not start", damaged.display()), PATIENCE, async || {
        (!tidegate.is_running()).then_some(())
    })
    .await;
    let status = tidegate.ended().await;
    let said = tidegate.log().split_off(before);
    assert_ne!(status.code(), Some(0), "{damage:?} of {}: {said}", damaged.display());
    // A file that is missing shows in the one behind it.
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(matches!(damage, Damage::Remove) || said.contains(name), "{damage:?} of {name}: {said}");
    assert!(said.contains("is damaged at byte "), "{damage:?} of {name}: {said}");
}
