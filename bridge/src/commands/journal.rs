//! `tidegate journal`: what is in the journal of an appliance that does not run, and letting go of a cursor.
//!
//! A running appliance has its journal locked; it tells the same in `/health`.

use tidegate::config::{Config, size};
use tidegate_broker::journal::{FileStorage, Journal, Status};

use tidegate::appliance::sinks;

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print what is in it and how far each cursor is.
    Info,
    /// Forget a cursor, so that it holds nothing back any more. What its sink has not delivered it never will.
    Forget {
        /// The cursor, as `journal info` names it.
        cursor: String,
    },
}

pub(crate) fn run(arguments: &Arguments, config: &Config) -> Result<(), Failure> {
    let path = config.data_dir.join("journal");
    if !path.is_dir() {
        return Err(Failure::files(format!("there is no journal in {}", path.display())));
    }
    let storage =
        FileStorage::open(&path).map_err(|error| match error.kind() == std::io::ErrorKind::ResourceBusy {
            true => Failure::taken(format!("{error}; a running tidegate tells the same in /health")),
            false => Failure::files(error),
        })?;
    let (journal, _appender) = Journal::open(storage, config.journal.clone()).map_err(Failure::files)?;
    let status = journal.status();
    let done = match &arguments.command {
        Command::Info => {
            print!("{}", info(&path.display().to_string(), &status));
            Ok(())
        }
        Command::Forget { cursor } => forget(&journal, &status, cursor),
    };
    journal.close();
    done
}

fn forget(journal: &Journal, status: &Status, name: &str) -> Result<(), Failure> {
    if !sinks::NAMES.contains(&name) {
        let names = sinks::NAMES.join(", ");
        return Err(Failure::usage(format!("{name} is not the cursor of a sink; those are: {names}")));
    }
    let Some(cursor) = status.cursors.iter().find(|cursor| cursor.name == name) else {
        return Err(Failure::usage(format!(
            "there is no cursor {name}: that sink was never on, or is forgotten"
        )));
    };
    journal.remove_cursor(name).map_err(Failure::files)?;
    println!("{name} is forgotten; it had not read {} entries", status.durable_end.since(cursor.position));
    Ok(())
}

fn info(path: &str, status: &Status) -> String {
    let mut text = format!(
        "folder     {path}\nentries    {} to {} (the next one)\nsegments   {}\nsize       {} of {}\n",
        status.start,
        status.durable_end,
        status.segments,
        size(status.bytes),
        size(status.max_bytes),
    );
    for cursor in &status.cursors {
        let behind = status.durable_end.since(cursor.position);
        text += &format!("cursor     {} at {}, {behind} entries behind", cursor.name, cursor.position);
        if cursor.skipped > 0 {
            text += &format!(", {} entries were trimmed before it had read them", cursor.skipped);
        }
        text += "\n";
    }
    text
}
