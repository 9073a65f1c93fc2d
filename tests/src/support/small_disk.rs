//! A file system of its own, small enough to be filled.
//!
//! It is mounted in a mount namespace that one child process holds and that the tested program enters, so the machine never sees
//! it and the kernel takes it away with the last process inside, however the test ends. Root mounts directly, everybody else in a
//! user namespace.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{process, target};

const STEP_BYTES: usize = 64 << 10;
const BALLAST: &str = "ballast";

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// In memory.
    Tmpfs,
    /// ext4 in a file; only root may mount it.
    Ext4,
}

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    /// The mount lives as long as the standard input of this process is open.
    holder: Child,
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts an empty one of this size.
    pub(crate) fn mount(file_system: FileSystem, bytes: u64) -> Self {
        let parent = target().join("tests");
        fs::create_dir_all(&parent).expect("target/ can be written");
        let folder = tempfile::tempdir_in(parent).expect("target/ can be written");
        let at = folder.path().join("disk");
        fs::create_dir(&at).expect("target/ can be written");
        let mount = match file_system {
            FileSystem::Tmpfs => format!("mount -t tmpfs -o size={bytes} tidegate \"$1\""),
            FileSystem::Ext4 => {
                format!(
                    "truncate -s {bytes} \"$1.image\" && mkfs.ext4 -q -F -m 0 \"$1.image\" && mount -o loop \"$1.image\" \"$1\""
                )
            }
        };
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("--map-root-user");
        }
        let script = format!("{mount} && chmod 777 \"$1\" && echo mounted && exec cat");
        command.args(["--mount", "--", "sh", "-c", &script, "sh"]).arg(&at);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = process::spawn(&mut command);
        let mut said = String::new();
        let output = holder.stdout.as_mut().expect("it is a pipe");
        // Byte by byte would be the same: the line is all it ever says.
        let _ = BufReader::new(output).read_line(&mut said);
        assert_eq!(
            said.trim(),
            "mounted",
            "cannot mount a small file system, see above: run the tests as root, or allow user namespaces"
        );
        Self { holder, folder }
    }

    /// Where it is mounted, for whoever has entered.
    pub(crate) fn mounted_at(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// The same place, as seen from outside.
    pub(crate) fn seen_from_outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.mounted_at().strip_prefix("/").expect("target/ is an absolute path"))
    }

    /// The words in front of a command line that make it run inside.
    pub(crate) fn enter(&self) -> Vec<String> {
        let user: &[&str] = if is_root() { &[] } else { &["--user", "--preserve-credentials"] };
        let holder = self.holder.id().to_string();
        let words =
            ["nsenter", "--target", &holder, "--mount"].into_iter().chain(user.iter().copied()).chain(["--"]);
        words.map(str::to_owned).collect()
    }

    /// Fills it, but for `bytes`.
    pub(crate) fn fill(&self, leave_bytes: u64) {
        let ballast = self.seen_from_outside().join(BALLAST);
        let mut file =
            File::options().create(true).append(true).open(&ballast).expect("the disk takes files");
        let step = vec![0xA5; STEP_BYTES];
        loop {
            match file.write_all(&step) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{}: {error}", ballast.display()),
            }
        }
        let filled = file.metadata().expect("the file is open").len();
        file.set_len(filled.saturating_sub(leave_bytes)).expect("files can be cut");
        file.sync_all().expect("what is there can be synced");
    }

    /// Frees what [`Self::fill`] took.
    pub(crate) fn free(&self) {
        fs::remove_file(self.seen_from_outside().join(BALLAST)).expect("the disk was filled before");
    }

    /// The name of the file system, as the kernel tells it to those inside.
    pub(crate) fn kind(&self) -> String {
        let path = format!("/proc/{}/mounts", self.holder.id());
        let mut text = String::new();
        File::open(path).and_then(|mut file| file.read_to_string(&mut text)).expect("the holder lives");
        let at = self.mounted_at();
        let line =
            text.lines().find(|line| line.split(' ').nth(1).is_some_and(|place| Path::new(place) == at));
        line.and_then(|line| line.split(' ').nth(2)).expect("it is mounted").to_owned()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").expect("there is /proc").uid() == 0
}
