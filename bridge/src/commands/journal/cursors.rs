//! `tidegate journal cursors`: how far everybody has read, and letting one read again, skip, or go.

use std::io;
use std::str::FromStr;

use serde_json::json;
use tidegate::appliance::sinks;
use tidegate_broker::journal::inspect::{Outside, Survey, survey};
use tidegate_broker::journal::{CursorError, Journal, Status};
use tidegate_broker::record::Offset;
use tidegate_broker::server::SESSIONS_CURSOR;

use super::output::{Output, told};
use super::{Place, unusable};
use crate::Failure;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Forget a cursor, so that it holds nothing back any more. What its sink has not delivered it never will.
    Remove {
        /// The cursor.
        name: String,
    },
    /// Put a cursor somewhere else: back, so that what follows is delivered again, or forward, so that it is skipped
    /// (with --yes). PostgreSQL remembers its place in the database as well and goes on there.
    Set {
        /// The cursor: that of a sink, or any that exists but the broker's own.
        name: String,
        /// An offset, `oldest` or `end`.
        to: Target,
        /// Skip what lies between.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Oldest,
    End,
    Offset(Offset),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "oldest" => Ok(Self::Oldest),
            "end" => Ok(Self::End),
            offset => offset
                .parse()
                .map(|offset| Self::Offset(Offset(offset)))
                .map_err(|_| "write an offset, oldest or end".to_owned()),
        }
    }
}

pub(super) fn run(place: &Place<'_>, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        None => print(place, arguments.json),
        Some(Command::Remove { name }) => remove(place, name),
        Some(Command::Set { name, to, yes }) => set(place, name, *to, *yes),
    }
}

fn print(place: &Place<'_>, json: bool) -> Result<(), Failure> {
    let storage = place.read()?;
    let outside = Outside { checkpoint: place.checkpoint()?.offset(), control: None };
    let survey = survey(&*storage, outside).map_err(unusable)?;
    let mut output = Output::new();
    let written = if json { output.json(&value(&survey)) } else { lines(&survey, &mut output) };
    told(written.and_then(|()| output.flush()))
}

/// The cursors as JSON.
pub(super) fn value(survey: &Survey) -> serde_json::Value {
    let cursors = survey.cursors.iter().map(|cursor| {
        json!({
            "name": cursor.name, "position": cursor.position, "lag_entries": survey.end.since(cursor.position),
            "lag_bytes": cursor.lag_bytes, "skipped": cursor.skipped,
        })
    });
    cursors.collect()
}

/// One line for each cursor.
pub(super) fn lines(survey: &Survey, output: &mut Output) -> io::Result<()> {
    for cursor in &survey.cursors {
        let behind = survey.end.since(cursor.position);
        let (name, position, bytes) = (&cursor.name, cursor.position, cursor.lag_bytes);
        let skipped = match cursor.skipped {
            0 => String::new(),
            skipped => format!("; {skipped} entries were trimmed, lost or skipped before it had read them"),
        };
        output.line(format_args!(
            "cursor     {name} at {position}, {behind} entries behind (about {bytes} bytes){skipped}"
        ))?;
    }
    Ok(())
}

/// The journal, opened for writing. It is not run: only cursors are saved.
fn open(place: &Place<'_>) -> Result<Journal, Failure> {
    let storage = place.lock()?;
    let opened = Journal::open_stepped(storage, place.config.journal.clone());
    opened.map(|(journal, _appender, _writer)| journal).map_err(unusable)
}

/// Whether an operator may move the cursor called `name`; `make` if it may be new.
fn check_name(status: &Status, name: &str, make: bool) -> Result<(), Failure> {
    if name == SESSIONS_CURSOR {
        return Err(Failure::usage(
            "sessions is not the cursor of a sink: it holds what a restart needs, and the broker moves it",
        ));
    }
    let exists = status.cursors.iter().any(|cursor| cursor.name == name);
    if exists || (make && sinks::NAMES.contains(&name)) {
        return Ok(());
    }
    let names: Vec<&str> = status.cursors.iter().map(|cursor| cursor.name.as_str()).collect();
    Err(Failure::usage(format!(
        "there is no cursor {name}: that sink was never on, or is forgotten; there are: {}",
        names.join(", ")
    )))
}

pub(super) fn remove(place: &Place<'_>, name: &str) -> Result<(), Failure> {
    let journal = open(place)?;
    let status = journal.status();
    check_name(&status, name, false)?;
    let position = status.cursors.iter().find(|cursor| cursor.name == name).map(|cursor| cursor.position);
    journal.remove_cursor(name).map_err(Failure::files)?;
    let behind = status.durable_end.since(position.unwrap_or(status.durable_end));
    println!("{name} is forgotten; it had not read {behind} entries");
    Ok(())
}

fn set(place: &Place<'_>, name: &str, to: Target, yes: bool) -> Result<(), Failure> {
    let journal = open(place)?;
    let status = journal.status();
    check_name(&status, name, true)?;
    let to = match to {
        Target::Oldest => status.start,
        Target::End => status.durable_end,
        Target::Offset(offset) => offset,
    };
    if to < status.start || to > status.durable_end {
        let (start, end) = (status.start, status.durable_end);
        return Err(Failure::usage(CursorError::Outside { to, start, end }));
    }
    let found = status.cursors.iter().find(|cursor| cursor.name == name);
    let at = found.map_or(status.start, |cursor| cursor.position.max(status.start));
    let skipped = records_between(&journal, at, to)?;
    if to > at && !yes {
        return Err(Failure::usage(format!(
            "{name} stands at {at}: {skipped} records up to {to} would be skipped and never delivered; nothing is changed. \
             Add --yes to skip them"
        )));
    }
    journal.place_cursor(name, to, skipped).map_err(Failure::files)?;
    let more = match to > at {
        true => format!("{skipped} records are skipped"),
        false => format!("{} entries from there on are delivered again", at.since(to)),
    };
    println!("{name} stands at {to} now, it stood at {at}: {more}");
    Ok(())
}

fn records_between(journal: &Journal, from: Offset, to: Offset) -> Result<u64, Failure> {
    let mut reader = journal.reader(from);
    let mut records = 0;
    while reader.offset() < to
        && let Some(batch) = reader.next().map_err(Failure::damaged)?
    {
        records += batch.records().filter(|(offset, _)| *offset < to).count() as u64;
    }
    Ok(records)
}
