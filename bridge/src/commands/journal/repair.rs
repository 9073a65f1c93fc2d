//! `tidegate journal repair`: tells what damage has cost, and with `--yes` makes the journal usable again.

use std::path::Path;

use tidegate_broker::journal::inspect::{Examined, examine};
use tidegate_broker::journal::repair::{Change, KEPT, Plan};
use tidegate_broker::journal::{FileStorage, Storage};
use tidegate_broker::server::SESSIONS_CURSOR;

use super::output::{Output, now, stamp, told};
use super::verify::{losses, outside};
use super::{Checkpoint, Place, refused, unusable};
use crate::Failure;

/// What `--help` says.
pub(super) const ABOUT: &str = "After damage: tell what is lost, and with --yes make the journal usable again.\n\n\
    Without --yes nothing is changed. With --yes every file that is changed is first kept beside itself, as \
    NAME.damaged-TIME. Everything that is readable keeps its offset; the offsets of what is lost stay empty for ever, \
    sinks go on behind them and count what they miss. A repair that is interrupted is run again. If there is an intact \
    copy of the journal's folder, restoring that loses less.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Do it.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(place: &Place<'_>, arguments: &Arguments) -> Result<(), Failure> {
    // Locked from the look to the last change, so that what was told is what is done.
    let storage = if arguments.yes { place.lock()? } else { place.read()? };
    let checkpoint = place.checkpoint()?;
    let examined = examine(&*storage, outside(&checkpoint)).map_err(unusable)?;
    let seem: Vec<_> = examined.cursors_that_seem().to_vec();
    let is_damaged = examined.is_damaged() || checkpoint.damage().is_some();
    let mut output = Output::new();
    if !is_damaged {
        told(output.line("nothing is damaged, and nothing is to be done").and_then(|()| output.flush()))?;
        return Ok(());
    }
    let stamp = stamp(now());
    let written = tell_faults(&examined, &mut output);
    let plan = Plan::new(examined, place.config.journal.segment_bytes);
    let told_plan = written.and_then(|()| tell(&plan, &checkpoint, &seem, &stamp, &*storage, &mut output));
    told(told_plan.and_then(|()| output.flush()))?;
    if !arguments.yes {
        return Err(Failure::damaged(
            "nothing is changed. Restore an intact copy of the journal's folder if there is one; else add --yes",
        ));
    }
    // The journal first: the checkpoint may be what proves where it ended.
    plan.apply(&*storage, &stamp, now()).map_err(|error| again(&error))?;
    if checkpoint.damage().is_some()
        && let Some(folder) = place.state_folder()
    {
        set_aside(&folder, &stamp)?;
    }
    let after = examine(&*storage, outside(&place.checkpoint_after(&checkpoint)?)).map_err(unusable)?;
    if after.is_damaged() {
        return Err(again(&"something is still damaged, see `tidegate journal verify`"));
    }
    told(
        output
            .line(format_args!("repaired: entries {} to {} (the next one)", after.start, after.end))
            .and_then(|()| output.flush()),
    )
}

impl Place<'_> {
    /// The checkpoint once a damaged one is set aside.
    fn checkpoint_after(&self, before: &Checkpoint) -> Result<Checkpoint, Failure> {
        if before.damage().is_some() { Ok(Checkpoint::Missing) } else { self.checkpoint() }
    }
}

fn again(error: &dyn std::fmt::Display) -> Failure {
    Failure::files(format!("{error}. What was changed is kept beside it; run the repair again"))
}

fn set_aside(folder: &Path, stamp: &str) -> Result<(), Failure> {
    let storage = FileStorage::open(folder).map_err(|error| refused(&error))?;
    let moved = storage.rename("checkpoint", &Plan::kept_name("checkpoint", stamp));
    moved.and_then(|()| storage.sync_folder()).map_err(|error| again(&error))
}

fn tell_faults(examined: &Examined, output: &mut Output) -> std::io::Result<()> {
    for fault in &examined.faults {
        if fault.meaning == tidegate_broker::journal::inspect::Meaning::Damage {
            output.line(format_args!("damaged    {} byte {}: {}", fault.file, fault.at, fault.found))?;
        }
    }
    Ok(())
}

fn tell(
    plan: &Plan,
    checkpoint: &Checkpoint,
    seem: &[(String, tidegate_broker::record::Offset)],
    stamp: &str,
    storage: &dyn Storage,
    output: &mut Output,
) -> std::io::Result<()> {
    losses(plan.losses.iter(), output)?;
    output.line(format_args!("total      {} entries are lost by the damage", plan.entries_lost()))?;
    if let Some((from, to)) = plan.unused {
        output.line(format_args!(
            "unused     offsets {from} to {}: nobody knows whether entries had them, so no entry will get them",
            to.0 - 1
        ))?;
    }
    if plan.new_id {
        output
            .line("new id     nothing tells the journal's id any more: sinks take it for another journal")?;
    }
    for change in &plan.changes {
        match change {
            Change::SetAside { name } => output.line(format_args!(
                "set aside  {}, as {}",
                storage.display(name),
                Plan::kept_name(name, stamp)
            ))?,
            Change::Make { name, from, to } => output.line(format_args!(
                "make       {}, with nothing but the offsets {from} to {}",
                storage.display(name),
                to.0.saturating_sub(1)
            ))?,
            Change::Rewrite { name } => output.line(format_args!(
                "rewrite    {} from what is sound in it; it is kept as {}",
                storage.display(name),
                Plan::kept_name(name, stamp)
            ))?,
            Change::ForgetCursors => {
                output.line(format_args!(
                    "forget     all cursors: sinks begin again at the oldest entry, and deliver again what they had \
                     (PostgreSQL remembers its place by itself); the file is kept as cursors{KEPT}{stamp}"
                ))?;
                for (name, position) in seem.iter().filter(|(name, _)| name != SESSIONS_CURSOR) {
                    output.line(format_args!(
                        "           the damaged file seems to say {name} at {position}; if that can be right, run \
                         afterwards: tidegate journal cursors set {name} {position} --yes"
                    ))?;
                }
            }
        }
    }
    if let Some(damage) = checkpoint.damage() {
        output.line(format_args!(
            "set aside  the checkpoint ({damage}), as checkpoint{KEPT}{stamp}: the next start replays the whole journal; \
             sessions and retained records from before its oldest entry are lost"
        ))?;
    }
    Ok(())
}
