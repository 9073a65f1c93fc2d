//! A password file, as an operator may have damaged it.

use std::path::Path;

use tidegate_broker::auth::{PasswordFile, PasswordFileError};

/// Reads `bytes` as a password file.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match PasswordFile::parse(Path::new("passwords"), text) {
        Ok(mut file) => {
            let users: Vec<String> = file.usernames().map(str::to_owned).collect();
            assert_eq!(users.len(), file.len());
            assert!(users.iter().all(|user| file.contains(user)));
            for user in &users {
                assert!(file.remove(user), "{user:?} is in it");
            }
            assert!(file.is_empty());
        }
        Err(PasswordFileError::Malformed { mistakes, .. }) => {
            let lines = text.lines().count();
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|(line, what)| (1..=lines).contains(line) && !what.is_empty()));
            assert!(mistakes.is_sorted_by_key(|(line, _)| *line));
        }
        Err(other) => panic!("reading text fails with {other}"),
    }
}
