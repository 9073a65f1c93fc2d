//! The files that say who may do what: read at the start, on SIGHUP, and when they change.
//!
//! What always holds: a file with a mistake in it changes nothing, and says so once for each change. A file that has
//! changed is read when it has stayed as it is from one check to the next, so that one which is just being written is
//! not taken for a short one. A file in the data folder need not exist; one that was asked for must.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_broker::auth::{
    Access, AclFile, AclFileError, DefaultRules, PasswordFile, PasswordFileError, Rules, ScramFile,
    ScramFileError,
};

use crate::config::{Auth, Config};
use crate::jwt::{Expected, JwksThread, KeyError, NamedKey, Tokens};

/// How often the files are looked at.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why one of the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessFileError {
    /// The password file.
    #[error("{0}; `tidegate passwd` writes such a file")]
    Passwords(#[from] PasswordFileError),
    /// The ACL file.
    #[error("{0}; it has the format of mosquitto's acl_file")]
    Acl(#[from] AclFileError),
    /// The SCRAM file.
    #[error("{0}; `tidegate passwd --scram` writes such a file")]
    Scram(#[from] ScramFileError),
    /// The file with the key of tokens cannot be read.
    #[error("cannot read the key of tokens {}: {error} (auth.jwt_key_file)", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// It holds no key.
    #[error("the key of tokens {} cannot be used: {error} (auth.jwt_key_file)", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: KeyError,
    },
    /// The thread that fetches keys could not be started.
    #[error("cannot start the thread that fetches keys: {0}")]
    Thread(io::Error),
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Passwords,
    Acl,
    Scram,
    TokenKey,
}

impl Content {
    /// What is said when it was read.
    const fn name(self) -> &'static str {
        match self {
            Self::Passwords => "users",
            Self::Acl => "rules",
            Self::Scram => "users of SCRAM",
            Self::TokenKey => "keys of tokens",
        }
    }
}

/// By what a change is seen. A file that is not there has none.
type Stamp = Option<(u64, u64, i64, i64)>;

#[derive(Debug)]
struct AccessFile {
    content: Content,
    path: PathBuf,
    /// Whether it was asked for.
    required: bool,
    /// When it was read last.
    read: Stamp,
    /// At the last check.
    seen: Stamp,
}

impl AccessFile {
    fn new(content: Content, configured: Option<&PathBuf>, path: PathBuf) -> Self {
        Self { content, path, required: configured.is_some(), read: None, seen: None }
    }

    fn stamp(&self) -> Stamp {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    }

    fn is_absent(&self) -> bool {
        let found = fs::metadata(&self.path);
        !self.required && found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

/// The files, and what is made of them.
#[derive(Debug)]
pub(super) struct AccessFiles {
    access: Arc<Access>,
    default_rules: DefaultRules,
    expected: Expected,
    files: Vec<AccessFile>,
}

impl AccessFiles {
    /// Reads all of them.
    pub(super) fn open(config: &Config) -> Result<Self, AccessFileError> {
        let auth = &config.auth;
        let mut files = vec![
            AccessFile::new(Content::Passwords, auth.password_file.as_ref(), config.password_path()),
            AccessFile::new(Content::Acl, auth.acl_file.as_ref(), config.acl_path()),
            AccessFile::new(Content::Scram, auth.scram_file.as_ref(), config.scram_path()),
        ];
        if let Some(path) = &auth.jwt_key_file {
            files.push(AccessFile::new(Content::TokenKey, Some(path), path.clone()));
        }
        let access = Arc::new(Access::new(auth.anonymous, None));
        let expected = expected(auth);
        if let Some(url) = auth.jwt_jwks_url.as_ref().filter(|_| auth.jwt_key_file.is_none()) {
            let tokens = JwksThread::start(url.clone(), expected.clone()).map_err(AccessFileError::Thread)?;
            access.replace_tokens(Some(tokens));
        }
        let mut all = Self { access, default_rules: auth.default_rules, expected, files };
        for at in 0..all.files.len() {
            all.read(at)?;
        }
        Ok(all)
    }

    /// What decides.
    pub(super) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// Reads all of them again.
    pub(super) fn reload(&mut self) {
        for at in 0..self.files.len() {
            self.read_again(at, "SIGHUP");
        }
    }

    /// Reads those again that have changed.
    pub(super) fn check(&mut self) {
        for at in 0..self.files.len() {
            let file = &mut self.files[at];
            let stamp = file.stamp();
            let settled = stamp == file.seen;
            file.seen = stamp;
            if settled && stamp != file.read {
                self.read_again(at, "changed");
            }
        }
    }

    fn read_again(&mut self, at: usize, why: &str) {
        let result = self.read(at);
        let file = &self.files[at];
        let (name, path) = (file.content.name(), file.path.display());
        match result {
            Ok(()) if file.read.is_none() => tracing::info!("{why}: there is no {path}"),
            Ok(()) => tracing::info!("{why}: {name} are read again from {path}"),
            Err(error) => tracing::error!("{why}: {error}; the {name} are those of before"),
        }
    }

    fn read(&mut self, at: usize) -> Result<(), AccessFileError> {
        let file = &mut self.files[at];
        // Before it is read: what is written meanwhile is a change.
        file.read = file.stamp();
        file.seen = file.read;
        let absent = file.is_absent();
        match file.content {
            Content::Passwords => {
                let passwords = if absent { None } else { Some(PasswordFile::open(&file.path)?) };
                self.access.replace_passwords(passwords);
            }
            Content::Acl => {
                let rules = if absent {
                    Rules::Default(self.default_rules)
                } else {
                    Rules::Acl(AclFile::open(&file.path)?)
                };
                self.access.replace_rules(rules);
            }
            Content::Scram => {
                let users = if absent { None } else { Some(ScramFile::open(&file.path)?) };
                self.access.replace_scram(users);
            }
            Content::TokenKey => {
                let path = || file.path.clone();
                let content =
                    fs::read(&file.path).map_err(|error| AccessFileError::KeyFile { path: path(), error })?;
                let key = NamedKey::from_file(&content)
                    .map_err(|error| AccessFileError::Key { path: path(), error })?;
                let tokens = Tokens::new(vec![key], self.expected.clone());
                self.access.replace_tokens(Some(Arc::new(tokens)));
            }
        }
        Ok(())
    }
}

fn expected(auth: &Auth) -> Expected {
    Expected {
        issuer: auth.jwt_issuer.clone(),
        audience: auth.jwt_audience.clone(),
        username_claim: auth.jwt_username_claim.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use tidegate_broker::auth::{Identity, Login};
    use tidegate_broker::record::Timestamp;
    use tidegate_broker::topic::TopicName;

    use super::*;

    fn config(folder: &Path) -> Config {
        Config { data_dir: folder.to_owned(), ..Config::default() }
    }

    fn admits(files: &AccessFiles, name: &str) -> bool {
        let peer = IpAddr::from([192, 0, 2, 1]);
        let login =
            Login { username: Some(name), password: Some(name.as_bytes()), ..Login::anonymous(peer, "c") };
        files.access.connect(&login, Timestamp(0)).is_ok()
    }

    fn may(files: &AccessFiles, topic: &str) -> bool {
        let topic = TopicName::new(topic).unwrap();
        files.access.may_publish(&Identity::user("ada", "c"), topic).is_allowed()
    }

    /// Replaces a file, as editors do.
    fn write(folder: &Path, name: &str, content: &str) {
        fs::write(folder.join("new"), content).unwrap();
        fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }

    fn user(name: &str) -> String {
        let mut file = PasswordFile::default();
        file.set(name, name.as_bytes()).unwrap();
        file.to_string()
    }

    #[test]
    fn a_change_counts_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = AccessFiles::open(&config(folder.path())).unwrap();
        assert!(!admits(&files, "ada") && may(&files, "sensors/ada/t") && !may(&files, "x"));

        write(folder.path(), "passwords", &user("ada"));
        write(folder.path(), "acl", "user ada\ntopic x\n");
        files.check();
        assert!(!admits(&files, "ada") && !may(&files, "x"), "it could be half written");
        files.check();
        assert!(admits(&files, "ada") && may(&files, "x") && !may(&files, "sensors/ada/t"));

        fs::remove_file(folder.path().join("passwords")).unwrap();
        fs::remove_file(folder.path().join("acl")).unwrap();
        files.check();
        files.check();
        assert!(!admits(&files, "ada") && may(&files, "sensors/ada/t") && !may(&files, "x"));
    }

    #[test]
    fn a_file_with_mistakes_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "passwords", &user("ada"));
        write(folder.path(), "acl", "user ada\ntopic x\n");
        let mut files = AccessFiles::open(&config(folder.path())).unwrap();
        for (passwords, acl) in [("ada:plain\n", "topic nonsense x\n"), ("ada:$6$\n", "x\n")] {
            write(folder.path(), "passwords", passwords);
            write(folder.path(), "acl", acl);
            files.check();
            files.check();
            files.reload();
            assert!(admits(&files, "ada") && may(&files, "x"));
        }
        write(folder.path(), "acl", "user ada\ntopic y\n");
        files.reload();
        assert!(
            admits(&files, "ada") && may(&files, "y") && !may(&files, "x"),
            "each file counts for itself"
        );
    }

    #[test]
    fn a_bad_file_is_read_once_per_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = AccessFiles::open(&config(folder.path())).unwrap();
        write(folder.path(), "acl", "nonsense\n");
        files.check();
        files.check();
        let read = files.files[1].read;
        assert!(read.is_some() && read == files.files[1].stamp(), "the next check finds no change");
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.auth.acl_file = Some(folder.path().join("rules"));
        assert!(matches!(AccessFiles::open(&config), Err(AccessFileError::Acl(_))));
        write(folder.path(), "rules", "user ada\ntopic x\n");
        let mut files = AccessFiles::open(&config).unwrap();
        fs::remove_file(folder.path().join("rules")).unwrap();
        files.check();
        files.check();
        assert!(may(&files, "x"), "the rules are those of before");
    }
}
