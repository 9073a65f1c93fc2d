//! What is logged: to stderr, as text or as one JSON object per line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

use super::StartError;

/// Sets the process's log up. Once per process.
pub(super) fn begin(log: &Log) -> Result<(), StartError> {
    let internal = |error: &dyn ToString| StartError::Internal { part: "the log", error: error.to_string() };
    let filter = EnvFilter::builder().parse(&log.level).map_err(|error| internal(&error))?;
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| internal(&error))
}
