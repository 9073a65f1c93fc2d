//! The program `tidegate`: arguments, environment, exit codes.
//!
//! Every failure is told on stderr in a line that says what to do, and ends with a code of `sysexits.h`: 64 a mistake
//! in the configuration or the command, 65 a damaged journal, 69 something needed is taken or away, 70 our own mistake, 74 files.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use tidegate::appliance;
use tidegate::config::{self, Loaded, Sources};

mod commands;

const ABOUT: &str = "An edge IoT ingest appliance and realtime MQTT broker.\n\n\
    Devices publish over MQTT; what is acknowledged is on disk, and goes on from there to Kafka, PostgreSQL, \
    browsers and other MQTT clients. Nothing has to be configured to begin.";

const AFTER: &str = "Every key of the configuration can be set by a variable: [journal] max_bytes is \
    TIDEGATE_JOURNAL_MAX_BYTES.\n`tidegate check` shows what is in effect, `tidegate check --example` all keys with \
    their meaning.";

#[derive(Parser)]
#[command(name = "tidegate", version, about = ABOUT, after_help = AFTER, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Options {
    /// The configuration file.
    #[arg(long, short, global = true, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Folder for everything that must survive a restart.
    #[arg(long, short, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Where MQTT is accepted.
    #[arg(long, global = true, value_name = "IP:PORT")]
    mqtt_listen: Option<String>,
    /// Where HTTP, WebSocket and SSE are accepted.
    #[arg(long, global = true, value_name = "IP:PORT")]
    http_listen: Option<String>,
    /// Who may connect without credentials: loopback, never, always.
    #[arg(long, global = true, value_name = "WHO")]
    anonymous: Option<String>,
    /// error, warn, info, debug, trace, or a filter by module.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Sets any key, as in --set journal.max_bytes=64GiB.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Start the appliance (the default).
    Run,
    /// Check the configuration and print what is in effect, without secrets.
    Check(commands::check::Arguments),
    /// Add, change or remove a user in the password file.
    Passwd(commands::passwd::Arguments),
    /// Look into the journal of an appliance that does not run, check it, copy from it, repair it.
    Journal(commands::journal::Arguments),
}

/// Why the program ends before its time: the exit code and one line for each thing that is wrong.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    const USAGE: u8 = 64;
    const DAMAGED: u8 = 65;
    const TAKEN: u8 = 69;
    const FILES: u8 = 74;

    fn usage(message: impl ToString) -> Self {
        Self { code: Self::USAGE, message: message.to_string() }
    }

    fn damaged(message: impl ToString) -> Self {
        Self { code: Self::DAMAGED, message: message.to_string() }
    }

    fn taken(message: impl ToString) -> Self {
        Self { code: Self::TAKEN, message: message.to_string() }
    }

    fn files(message: impl ToString) -> Self {
        Self { code: Self::FILES, message: message.to_string() }
    }
}

impl From<appliance::StartError> for Failure {
    fn from(error: appliance::StartError) -> Self {
        Self { code: error.exit_code(), message: error.to_string() }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Nobody may be reading, as in `tidegate --help | head -1`.
            _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            _ = error.print();
            return ExitCode::from(Failure::USAGE);
        }
        Err(error) => return report(&Failure::usage(first_line(&error))),
    };
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    for line in failure.message.lines() {
        eprintln!("tidegate: {line}");
    }
    ExitCode::from(failure.code)
}

/// The first line of what clap has to say, with where to read on.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    format!("{}; see tidegate --help", line.strip_prefix("error: ").unwrap_or(line))
}

fn start(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(Command::Check(check)) = &arguments.command
        && check.example
    {
        print!("{}", config::example());
        return Ok(());
    }
    let loaded = load(&arguments.options)?;
    match &arguments.command {
        None | Some(Command::Run) => Ok(appliance::run(&loaded.config)?),
        Some(Command::Check(_)) => commands::check::run(&loaded),
        Some(Command::Journal(journal)) => commands::journal::run(journal, &loaded.config),
        Some(Command::Passwd(passwd)) => commands::passwd::run(passwd, &loaded.config),
    }
}

/// Reads the file and the environment and puts the configuration together.
fn load(options: &Options) -> Result<Loaded, Failure> {
    let file = match options.config.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::usage(format!("cannot read the configuration file {}: {error}", path.display()))
            })?;
            Some((path.display().to_string(), text))
        }
        None => None,
    };
    let sources = Sources { file, environment: std::env::vars_os().collect(), options: options.settings()? };
    Loaded::load(&sources).map_err(Failure::usage)
}

impl Options {
    /// What was typed, the key it sets, the value.
    fn settings(&self) -> Result<Vec<(String, String, String)>, Failure> {
        let named = [
            ("--data-dir", "data_dir", &self.data_dir),
            ("--mqtt-listen", "mqtt.listen", &self.mqtt_listen),
            ("--http-listen", "http.listen", &self.http_listen),
            ("--anonymous", "auth.anonymous", &self.anonymous),
            ("--log-level", "log.level", &self.log_level),
        ];
        let mut settings: Vec<_> = named
            .into_iter()
            .filter_map(|(typed, key, value)| Some((typed.to_owned(), key.to_owned(), value.clone()?)))
            .collect();
        for each in &self.set {
            let (key, value) = each
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("--set {each}: write --set KEY=VALUE")))?;
            settings.push(("--set".to_owned(), key.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(settings)
    }
}
