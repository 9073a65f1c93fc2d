//! `tidegate check`: whether the configuration can be used, and what is in effect.

use tidegate::config::Loaded;

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print every key with its default and what it means, as a configuration file.
    #[arg(long)]
    pub(crate) example: bool,
}

/// Prints every key with its value, and where it was set. `Err` if files with secrets cannot be read.
pub(crate) fn run(loaded: &Loaded) -> Result<(), Failure> {
    print!("{}", loaded.effective());
    loaded.config.check_secrets().map_err(Failure::usage)
}
