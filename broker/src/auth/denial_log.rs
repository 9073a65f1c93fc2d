//! How many denials are logged: a client that publishes where it may not, again and again, must not fill the disk.

use std::time::Duration;

/// Lines in one second; what comes beyond is counted and told with the next line.
const LINES_PER_SECOND: u32 = 10;

/// Decides which denials are logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenialLog {
    second: u64,
    lines: u32,
    unlogged: u64,
}

impl DenialLog {
    /// A denial happened at `now`. `Some` if it is to be logged, with the number of those before it that were not.
    pub fn note(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            self.lines = 0;
        }
        if self.lines >= LINES_PER_SECOND {
            self.unlogged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_logged() {
        let mut log = DenialLog::default();
        let at = |millis| Duration::from_millis(millis);
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(log.note(at(1_000)), Some(0));
        }
        for _ in 0..500 {
            assert_eq!(log.note(at(1_999)), None);
        }
        assert_eq!(log.note(at(2_000)), Some(500));
        assert_eq!(log.note(at(2_000)), Some(0));
    }
}
