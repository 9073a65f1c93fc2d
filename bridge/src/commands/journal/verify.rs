//! `tidegate journal verify`.

use serde_json::{Value, json};
use tidegate_broker::journal::inspect::{Examined, Fault, Loss, Meaning, Outside, examine};
use tidegate_broker::session::control::Control;

use super::output::{Output, told};
use super::{Checkpoint, Place, unusable};
use crate::Failure;

pub(super) fn run(place: &Place<'_>, json: bool) -> Result<(), Failure> {
    let storage = place.read()?;
    let checkpoint = place.checkpoint()?;
    let examined = examine(&*storage, outside(&checkpoint)).map_err(unusable)?;
    let is_damaged = examined.is_damaged() || checkpoint.damage().is_some();
    let mut output = Output::new();
    let written = match json {
        true => output.json(&value(&examined, &checkpoint, is_damaged)),
        false => text(&examined, &checkpoint, is_damaged, &mut output),
    };
    told(written.and_then(|()| output.flush()))?;
    if is_damaged {
        return Err(Failure::damaged(
            "the journal is damaged: restore it from a copy, or let `tidegate journal repair` tell what can be saved",
        ));
    }
    Ok(())
}

/// What is known beside the journal's own files.
pub(super) fn outside(checkpoint: &Checkpoint) -> Outside<'static> {
    Outside { checkpoint: checkpoint.offset(), control: Some(&check_control) }
}

fn check_control(body: &[u8]) -> Result<(), String> {
    Control::decode(body).map(drop).map_err(|error| error.to_string())
}

const fn meaning(fault: &Fault) -> &'static str {
    match fault.meaning {
        Meaning::Damage => "damage",
        Meaning::Tail => "tail",
        Meaning::Remark => "remark",
    }
}

fn value(examined: &Examined, checkpoint: &Checkpoint, is_damaged: bool) -> Value {
    let faults = examined.faults.iter().map(|fault| {
        json!({ "file": fault.file, "at": fault.at, "found": fault.found, "meaning": meaning(fault) })
    });
    let counts = examined.counts;
    json!({
        "sound": !is_damaged,
        "id": examined.id.map(|id| format!("{:032x}", id.0)),
        "start": examined.start,
        "end": examined.end,
        "faults": faults.collect::<Vec<_>>(),
        "checkpoint": { "offset": checkpoint.offset(), "damage": checkpoint.damage() },
        "losses": examined.losses.iter().map(loss_value).collect::<Vec<_>>(),
        "counts": {
            "segments": counts.segments, "bytes": counts.bytes, "frames": counts.frames, "batches": counts.batches,
            "records": counts.records, "controls": counts.controls, "unused": counts.unused,
        },
    })
}

/// A loss as JSON.
pub(super) fn loss_value(loss: &Loss) -> Value {
    json!({
        "from": loss.from, "to": loss.to, "file": loss.file, "at": loss.at, "bytes": loss.bytes,
        "records_by_client_estimate": loss.clients,
    })
}

fn text(
    examined: &Examined,
    checkpoint: &Checkpoint,
    is_damaged: bool,
    output: &mut Output,
) -> std::io::Result<()> {
    for fault in &examined.faults {
        let means = match fault.meaning {
            Meaning::Damage => "DAMAGED, below the durable end",
            Meaning::Tail => "harmless, beyond the durable end",
            Meaning::Remark => "remark",
        };
        output.line(format_args!("{} byte {}: {} ({means})", fault.file, fault.at, fault.found))?;
    }
    if let Some(found) = checkpoint.damage() {
        output.line(format_args!("{found} (DAMAGED)"))?;
    }
    losses(examined.losses.iter(), output)?;
    let counts = examined.counts;
    output.line(format_args!(
        "read       {} segments, {} bytes, {} frames, {} records, {} control entries",
        counts.segments, counts.bytes, counts.frames, counts.records, counts.controls
    ))?;
    if counts.unused > 0 {
        output.line(format_args!(
            "gaps       {} offsets that hold nothing, since a repair or an export",
            counts.unused
        ))?;
    }
    output.line(format_args!("entries    {} to {} (the next one)", examined.start, examined.end))?;
    output.line(format_args!("result     {}", if is_damaged { "damaged" } else { "sound" }))
}

/// One line for each loss, and one for each client in it.
pub(super) fn losses<'l>(losses: impl Iterator<Item = &'l Loss>, output: &mut Output) -> std::io::Result<()> {
    for loss in losses {
        let entries = loss.to.since(loss.from);
        let place = match loss.bytes {
            0 => format!("missing in {} at byte {}", loss.file, loss.at),
            bytes => format!("{bytes} bytes of {} from byte {} on", loss.file, loss.at),
        };
        output.line(format_args!(
            "lost       entries {} to {} ({entries}): {place}",
            loss.from,
            loss.to.0.saturating_sub(1)
        ))?;
        for (client, records) in &loss.clients {
            output.line(format_args!(
                "           about {records} records of {client}, as far as the bytes tell"
            ))?;
        }
    }
    Ok(())
}
