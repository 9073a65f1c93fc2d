//! `tidegate journal`: looking into the journal of an appliance that does not run, checking it, copying from it,
//! repairing it, and moving its cursors.
//!
//! What only reads opens the files for reading and changes nothing; what writes takes the folder's lock. Either refuses
//! while the appliance runs, which tells the same in `/health`.

mod cursors;
mod dump;
mod export;
mod filters;
mod info;
mod output;
mod repair;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate::config::Config;
use tidegate_broker::broker::checkpoint_offset;
use tidegate_broker::journal::{FileStorage, OpenError, ReadOnlyFolder, Storage};
use tidegate_broker::record::Offset;
use tidegate_broker::server::checkpoint;

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The journal's own folder, if it is not the one in the data folder: a copy, or the queue of an agent.
    #[arg(long, global = true, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print what is in it and how far each cursor is.
    Info {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of it and tell everything that is not as it was written. Changes nothing. Exit code 65 if
    /// anything that was acknowledged is damaged.
    Verify {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print its records as JSON, one per line, past whatever is damaged (then the exit code is 65).
    Dump(dump::Arguments),
    /// Copy it, or a part of it, into a new data folder or a file of JSON lines.
    #[command(long_about = export::ABOUT)]
    Export(export::Arguments),
    /// Print the cursors, or move or remove one.
    Cursors(cursors::Arguments),
    /// After damage: tell what is lost, and with --yes make the journal usable again.
    #[command(long_about = repair::ABOUT)]
    Repair(repair::Arguments),
    /// Forget a cursor: the same as `cursors remove`.
    #[command(hide = true)]
    Forget {
        /// The cursor, as `journal info` names it.
        cursor: String,
    },
}

pub(crate) fn run(arguments: &Arguments, config: &Config) -> Result<(), Failure> {
    let path = arguments.folder.clone().unwrap_or_else(|| config.data_dir.join("journal"));
    if !path.is_dir() {
        return Err(Failure::files(format!("there is no journal in {}", path.display())));
    }
    let place = Place { path, config };
    match &arguments.command {
        Command::Info { json } => info::run(&place, *json),
        Command::Verify { json } => verify::run(&place, *json),
        Command::Dump(arguments) => dump::run(&place, arguments),
        Command::Export(arguments) => export::run(&place, arguments),
        Command::Cursors(arguments) => cursors::run(&place, arguments),
        Command::Repair(arguments) => repair::run(&place, arguments),
        Command::Forget { cursor } => cursors::remove(&place, cursor),
    }
}

/// Where the journal is.
#[derive(Debug)]
struct Place<'a> {
    path: PathBuf,
    config: &'a Config,
}

impl Place<'_> {
    /// Its files, to be read only.
    fn read(&self) -> Result<Arc<dyn Storage>, Failure> {
        ReadOnlyFolder::open(&self.path).map_err(|error| refused(&error))
    }

    /// Its files, locked against everybody else.
    fn lock(&self) -> Result<Arc<dyn Storage>, Failure> {
        FileStorage::open(&self.path).map_err(|error| refused(&error))
    }

    /// The folder with the checkpoint that belongs to it, if there is one.
    fn state_folder(&self) -> Option<PathBuf> {
        Some(self.path.parent()?.join("broker")).filter(|folder| folder.is_dir())
    }

    /// What the checkpoint says.
    fn checkpoint(&self) -> Result<Checkpoint, Failure> {
        let Some(folder) = self.state_folder() else { return Ok(Checkpoint::Missing) };
        let storage = ReadOnlyFolder::open(&folder).map_err(|error| refused(&error))?;
        match checkpoint::read(&storage) {
            Ok(None) => Ok(Checkpoint::Missing),
            Ok(Some(bytes)) => Ok(match checkpoint_offset(&bytes) {
                Ok(offset) => Checkpoint::Sound(offset),
                Err(error) => {
                    let file = storage.display("checkpoint");
                    Checkpoint::Damaged(format!("{file} is damaged: {error}"))
                }
            }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Ok(Checkpoint::Damaged(error.to_string()))
            }
            Err(error) => Err(Failure::files(error)),
        }
    }
}

/// The file with the broker's state.
#[derive(Debug)]
enum Checkpoint {
    Missing,
    Sound(Offset),
    /// With what is wrong.
    Damaged(String),
}

impl Checkpoint {
    fn offset(&self) -> Option<Offset> {
        match self {
            Self::Sound(offset) => Some(*offset),
            Self::Missing | Self::Damaged(_) => None,
        }
    }

    fn damage(&self) -> Option<&str> {
        match self {
            Self::Damaged(found) => Some(found),
            Self::Missing | Self::Sound(_) => None,
        }
    }
}

fn refused(error: &io::Error) -> Failure {
    match error.kind() == io::ErrorKind::ResourceBusy {
        true => Failure::taken(format!("{error}; a running tidegate tells how it is in /health")),
        false => Failure::files(error),
    }
}

/// The exit code for why a journal cannot be opened or read.
fn unusable(error: OpenError) -> Failure {
    match error {
        OpenError::Damaged { .. } | OpenError::Foreign { .. } => Failure::damaged(error),
        OpenError::Io { .. } | OpenError::Version { .. } | OpenError::Thread(_) => Failure::files(error),
    }
}

/// A folder that does not exist or is empty.
fn is_free(path: &Path) -> io::Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}
