//! `tidegate journal info`.

use serde_json::json;
use tidegate::config::size;
use tidegate_broker::journal::FORMAT;
use tidegate_broker::journal::inspect::{Outside, Survey, survey};

use super::output::{Output, rfc3339, told};
use super::{Place, unusable};
use crate::Failure;

pub(super) fn run(place: &Place<'_>, json: bool) -> Result<(), Failure> {
    let storage = place.read()?;
    let outside = Outside { checkpoint: place.checkpoint()?.offset(), control: None };
    let survey = survey(&*storage, outside).map_err(unusable)?;
    let mut output = Output::new();
    let written = if json { output.json(&value(place, &survey)) } else { text(place, &survey, &mut output) };
    told(written.and_then(|()| output.flush()))?;
    if survey.damaged.is_empty() {
        return Ok(());
    }
    let files = survey.damaged.join(", ");
    Err(Failure::damaged(format!("damaged: {files}; `tidegate journal verify` tells everything that is")))
}

fn value(place: &Place<'_>, survey: &Survey) -> serde_json::Value {
    let segments = survey.segments.iter().map(|segment| {
        json!({
            "file": segment.name, "base": segment.base, "end": segment.end, "bytes": segment.bytes,
            "newest": rfc3339(segment.newest), "sealed": segment.sealed,
        })
    });
    json!({
        "folder": place.path.display().to_string(),
        "id": survey.id.map(|id| format!("{:032x}", id.0)),
        "format": FORMAT,
        "start": survey.start,
        "end": survey.end,
        "bytes": survey.bytes,
        "bytes_max": place.config.journal.max_bytes,
        "segments": segments.collect::<Vec<_>>(),
        "cursors": super::cursors::value(survey),
        "damaged": survey.damaged,
    })
}

fn text(place: &Place<'_>, survey: &Survey, output: &mut Output) -> std::io::Result<()> {
    output.line(format_args!("folder     {}", place.path.display()))?;
    let id = survey.id.map_or_else(|| "unknown".to_owned(), |id| format!("{:032x}", id.0));
    output.line(format_args!("id         {id}, format {FORMAT}"))?;
    output.line(format_args!("entries    {} to {} (the next one)", survey.start, survey.end))?;
    output.line(format_args!("segments   {}", survey.segments.len()))?;
    let (bytes, max) = (size(survey.bytes), size(place.config.journal.max_bytes));
    output.line(format_args!("size       {bytes} of {max}"))?;
    for segment in &survey.segments {
        let state = if segment.sealed { "sealed" } else { "open" };
        output.line(format_args!(
            "segment    {} to {}, {} bytes, newest {}, {state}",
            segment.base,
            segment.end,
            segment.bytes,
            rfc3339(segment.newest)
        ))?;
    }
    super::cursors::lines(survey, output)
}
