//! `tidegate passwd`: adds, changes or removes a user in the password file or the SCRAM file.
//!
//! The password is asked for twice without being shown, or is the first line of stdin when that is not a terminal;
//! it is never an argument, where every user of the machine could read it.

use std::io::{self, BufRead, IsTerminal};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tidegate::config::Config;
use tidegate_broker::auth::{PasswordFile, ScramFile};

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The user.
    username: String,
    /// Remove the user.
    #[arg(long, short = 'D')]
    delete: bool,
    /// Write the SCRAM file (SCRAM-SHA-256 of MQTT 5) instead of the password file.
    #[arg(long)]
    scram: bool,
    /// The file; if not given, the one of the configuration.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments, config: &Config) -> Result<(), Failure> {
    let configured = || if arguments.scram { config.scram_path() } else { config.password_path() };
    let path = arguments.file.clone().unwrap_or_else(configured);
    let name = &arguments.username;
    let exists = path.try_exists().map_err(|error| Failure::files(format!("{}: {error}", path.display())))?;
    let mut file = Users::open(&path, exists, arguments.scram)?;

    if arguments.delete {
        if !file.remove(name) {
            return Err(Failure::usage(format!("there is no user {name} in {}", path.display())));
        }
    } else {
        file.set(name, password(name)?.as_bytes())?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|error| Failure::files(format!("cannot make {}: {error}", folder.display())))?;
        }
    }
    file.save(&path)?;
    give_to_owner_of_folder(&path);

    let done = if arguments.delete { "removed from" } else { "can connect with its password; it is in" };
    println!("{name} {done} {}", path.display());
    println!("A running tidegate reads it within seconds.");
    Ok(())
}

/// The file that is changed.
enum Users {
    Passwords(PasswordFile),
    Scram(ScramFile),
}

impl Users {
    fn open(path: &Path, exists: bool, scram: bool) -> Result<Self, Failure> {
        Ok(match (scram, exists) {
            (false, true) => Self::Passwords(PasswordFile::open(path).map_err(Failure::usage)?),
            (false, false) => Self::Passwords(PasswordFile::default()),
            (true, true) => Self::Scram(ScramFile::open(path).map_err(Failure::usage)?),
            (true, false) => Self::Scram(ScramFile::default()),
        })
    }

    fn set(&mut self, name: &str, password: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Passwords(file) => file.set(name, password).map_err(Failure::usage),
            Self::Scram(file) => file.set(name, password).map_err(Failure::usage),
        }
    }

    fn remove(&mut self, name: &str) -> bool {
        match self {
            Self::Passwords(file) => file.remove(name),
            Self::Scram(file) => file.remove(name),
        }
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        match self {
            Self::Passwords(file) => file.save(path).map_err(Failure::files),
            Self::Scram(file) => file.save(path).map_err(Failure::files),
        }
    }
}

/// Written as root into the folder of a service, the file would be unreadable to that service.
fn give_to_owner_of_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(owner) = std::fs::metadata(folder) {
        // Only root may do it; everybody else owns the file anyway, or has to see to it.
        _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
    }
}

fn password(name: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::usage(format!("no password was read: {error}"));
    let password = if io::stdin().is_terminal() {
        let first = rpassword::prompt_password(format!("Password for {name}: ")).map_err(failed)?;
        if first != rpassword::prompt_password("The same again: ").map_err(failed)? {
            return Err(Failure::usage("the two passwords are not the same; nothing was changed"));
        }
        first
    } else {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(failed)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() {
        return Err(Failure::usage("the password is empty; nothing was changed"));
    }
    Ok(password)
}
