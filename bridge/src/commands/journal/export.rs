//! `tidegate journal export`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use tidegate_broker::journal::inspect::{Outside, Source};
use tidegate_broker::journal::{self, FileStorage};
use tidegate_broker::record::Entry;

use super::dump::{Lines, say_lost};
use super::filters::Filters;
use super::{Place, is_free, unusable};
use crate::Failure;

/// What `--help` says.
pub(super) const ABOUT: &str = "Copy the journal, or a part of it, into a new data folder or a file of JSON lines.\n\n\
    A TARGET that ends in .jsonl becomes a file with the lines of `journal dump`: for a support case, or for other \
    programs. Any other TARGET becomes a data folder, which `tidegate --data-dir TARGET` starts on and \
    `tidegate journal --data-dir TARGET` looks into: for moving an appliance, or for a support case that has to be tried. \
    Every record keeps its offset and the journal its id, so that Kafka and PostgreSQL go on where they were; what is \
    left out leaves a gap, and the cursors come along. Without filters everything is copied, also sessions, \
    subscriptions and retained records; with filters only the records that match (and control entries with --control).\n\n\
    Let only one of the two go on as this journal: both would give the same offsets to different records. Passwords, \
    access rules and the configuration are not copied.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A folder that is empty or does not exist, or a file that ends in .jsonl and does not exist.
    target: PathBuf,
    #[command(flatten)]
    filters: Filters,
    /// Also control entries, when there are filters.
    #[arg(long)]
    control: bool,
}

pub(super) fn run(place: &Place<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let storage = place.read()?;
    let checkpoint = place.checkpoint()?;
    let outside = Outside { checkpoint: checkpoint.offset(), control: None };
    let source = Source::open(&*storage, outside).map_err(unusable)?;
    let target = &arguments.target;
    if target.extension().is_some_and(|extension| extension == "jsonl") {
        return lines(&source, target, arguments);
    }
    let free = is_free(target).map_err(|error| Failure::files(format!("{}: {error}", target.display())))?;
    if !free {
        return Err(Failure::usage(format!("{} is not empty: name a new folder", target.display())));
    }
    let (filters, whole) = (&arguments.filters, arguments.filters.is_empty());
    let copy = FileStorage::open(&target.join("journal")).map_err(Failure::files)?;
    let exported = journal::export(
        &source,
        &*copy,
        (filters.from(), filters.to()),
        place.config.journal.segment_bytes,
        &mut |_, time, entry: &Entry<'_>| filters.wants_entry(entry, time, whole || arguments.control),
    )
    .map_err(unusable)?;
    if whole && checkpoint.offset().is_some() {
        copy_checkpoint(place, target)?;
    }
    println!(
        "{} entries of {} to {} are in {}; the next one will be {}",
        exported.entries,
        source.start,
        source.end,
        target.display(),
        source.end
    );
    for fault in &exported.faults {
        eprintln!("tidegate: {} byte {}: {}", fault.file, fault.at, fault.found);
    }
    say_lost(exported.faults.len() as u64)
}

/// The broker's state: what is behind the checkpoint lies in the journal.
fn copy_checkpoint(place: &Place<'_>, target: &Path) -> Result<(), Failure> {
    let Some(folder) = place.state_folder() else { return Ok(()) };
    let bytes = std::fs::read(folder.join("checkpoint")).map_err(Failure::files)?;
    let storage = FileStorage::open(&target.join("broker")).map_err(Failure::files)?;
    journal::replace_file(&*storage, "checkpoint", &bytes).map_err(Failure::files)
}

fn lines(source: &Source<'_>, target: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::files(format!("cannot write {}: {error}", target.display()));
    let file = match File::create_new(target) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format!("{} exists: name a new file", target.display())));
        }
        file => file.map_err(failed)?,
    };
    let mut file = BufWriter::new(file);
    let mut lines = Lines::new(&arguments.filters, arguments.control, None);
    let mut count: u64 = 0;
    let lost = lines.write_all(source, &mut |line| {
        count += 1;
        file.write_all(line)
    })?;
    std::mem::replace(&mut lines.failed, Ok(())).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    println!("{count} lines are in {}", target.display());
    say_lost(lost)
}
