//! `tidegate-agent`: publishes a device's sensors over MQTT and keeps its readings on disk until they are
//! acknowledged.
//!
//! Exit codes, as in sysexits.h: 0 it was told to end or has sent everything there was; 64 something in the
//! options, the environment or the file is wrong; 73 its folder cannot be used; 74 the disk failed.

mod agent;
mod config;
mod lines;
mod link;
mod queue;
mod reading;
mod sensors;
mod window;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::agent::Agent;
use crate::config::{Config, Options};
use crate::lines::Answers;
use crate::queue::QueueError;

const USAGE: u8 = 64;
const SOFTWARE: u8 = 70;
const CANNOT_CREATE: u8 = 73;
const IO_ERROR: u8 = 74;

fn main() -> ExitCode {
    let config = match configure() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Ok(filter) = EnvFilter::try_new(format!("rumqttc=off,{}", config.log_level)) else {
        eprintln!("tidegate-agent: log_level {:?} is neither a level nor a filter", config.log_level);
        return ExitCode::from(USAGE);
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate-agent: {error:#}");
            ExitCode::from(match error.downcast_ref() {
                Some(QueueError::Folder(..) | QueueError::Open(_)) => CANNOT_CREATE,
                Some(QueueError::Read(_) | QueueError::Cursor(_) | QueueError::Failed(_)) => IO_ERROR,
                None => SOFTWARE,
            })
        }
    }
}

/// The configuration, or the exit code after every mistake was told.
fn configure() -> Result<Config, ExitCode> {
    let options = Options::try_parse().map_err(|error| {
        // If that cannot be written there is nobody to tell.
        let _ = error.print();
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
    })?;
    options.load().map_err(|mistakes| {
        for mistake in mistakes.0 {
            eprintln!("tidegate-agent: {mistake}");
        }
        ExitCode::from(USAGE)
    })
}

/// One thread runs everything but the disk and standard input and output.
fn run(config: Config) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    runtime.block_on(async {
        let lines = if config.stdin { Some(lines::read_lines(std::io::stdin())?) } else { None };
        let answers = if config.ack { Some(Answers::write_to(std::io::stdout())?) } else { None };
        Agent::new(config, lines, answers)?.run().await
    })?;
    // A look-up of the broker's name may still hang in its thread; nobody waits for it.
    runtime.shutdown_background();
    Ok(())
}
