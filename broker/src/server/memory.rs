//! How much memory the process uses, and how much there is for it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

/// Measures the resident memory of this process.
#[derive(Debug)]
pub(super) struct Meter {
    status: Option<File>,
    text: String,
}

impl Meter {
    /// Where the operating system does not tell, nothing is ever measured.
    pub(super) fn new() -> Self {
        Self { status: File::open("/proc/self/status").ok(), text: String::new() }
    }

    /// Bytes of resident memory.
    pub(super) fn resident_bytes(&mut self) -> Option<u64> {
        let status = self.status.as_mut()?;
        self.text.clear();
        let read = status.rewind().and_then(|()| status.read_to_string(&mut self.text));
        read.ok()?;
        kib(&self.text, "VmRSS:")
    }
}

/// The memory of the machine, or of the container where that is less.
pub(super) fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib(&text, "MemTotal:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files).filter_map(|path| limit(&path).ok().flatten());
    machine.into_iter().chain(limits).min()
}

/// The line of `name` in a file of the kernel that gives its values in kB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().trim_end_matches("kB").trim_end().parse().ok()?;
    number.checked_mul(1_024)
}

/// Where the limits lie that hold for a process with this line in its list of control groups: those of its group and
/// of every group around that, in the first or the second version of control groups.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    let group = Path::new(group.trim_start_matches('/'));
    group.ancestors().map(|ancestor| Path::new(root).join(ancestor).join(file)).collect()
}

/// A limit; `None` where it says `max`.
fn limit(path: &Path) -> io::Result<Option<u64>> {
    Ok(fs::read_to_string(path)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_some_of_the_memory_there_is() {
        let used = Meter::new().resident_bytes().unwrap();
        let available = available_bytes().unwrap();
        assert!(used > 100_000 && used < available, "{used} of {available}");
        let mut meter = Meter::new();
        let before = meter.resident_bytes().unwrap();
        let more = vec![1_u8; 64 << 20];
        let after = meter.resident_bytes().unwrap();
        assert!(after > before + (60 << 20), "{before} and {} make {after}", more.len());
    }

    #[test]
    fn limits_are_looked_for_in_the_groups_of_both_versions() {
        let files =
            |line| limit_files(line).iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(files("0::/"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(
            files("0::/a.slice/b"),
            [
                "/sys/fs/cgroup/a.slice/b/memory.max",
                "/sys/fs/cgroup/a.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(files("9:memory:/"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert_eq!(files("8:cpu,cpuacct:/x"), <[&str; 0]>::default());
        assert_eq!(files("nonsense"), <[&str; 0]>::default());
    }
}
