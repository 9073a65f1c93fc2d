//! The lists of normative statements are whole, and what they name exists.
//!
//! `tests/clauses/*.md` have one line for each statement: its identifier, what it asks for in a few words, and either the
//! tests that show it, in backticks, or the reason why nothing here can show it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The numbers that the standard itself leaves out.
const SKIPPED: [(&str, &[&str]); 2] = [("mqtt-3.1.1.md", &[]), ("mqtt-5.0.md", &["2.2.1-1"])];

/// How many numbered statements each standard has.
const STATEMENTS: [(&str, usize); 2] = [("mqtt-3.1.1.md", 141), ("mqtt-5.0.md", 251)];

/// One line of a list.
#[derive(Debug)]
struct Statement {
    /// Such as `3.1.2-24`.
    id: String,
    says: String,
    tests: Vec<String>,
    reason: String,
}

fn folder() -> PathBuf {
    root().join("tests/clauses")
}

fn list(file: &str) -> Vec<Statement> {
    let text = fs::read_to_string(folder().join(file)).expect("the list is there");
    text.lines().filter_map(statement).collect()
}

/// Reads `| MQTT-x.y.z-n | what it says | shown by |`; other lines are for people.
fn statement(line: &str) -> Option<Statement> {
    let cells: Vec<&str> = line.strip_prefix("| MQTT-")?.trim_end().strip_suffix('|')?.split(" | ").collect();
    let [id, says, shown] = cells[..] else { panic!("three cells belong into {line:?}") };
    let tests = shown.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let reason = shown.split('`').step_by(2).collect::<String>();
    Some(Statement {
        id: id.trim().to_owned(),
        says: says.trim().to_owned(),
        tests,
        reason: reason.trim_matches([' ', ',', ';']).to_owned(),
    })
}

#[track_caller]
fn none(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}:\n    {}", wrong.join("\n    "));
}

#[test]
fn every_statement_is_listed_once_and_without_gaps() {
    let mut wrong = Vec::new();
    for (file, skipped) in SKIPPED {
        let mut sections: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for statement in list(file) {
            // One is printed with a hyphen for its first point.
            let id = statement.id.replacen("3-8.3", "3.8.3", 1);
            let (section, number) = id.rsplit_once('-').expect("an identifier ends with -n");
            let number = number.parse().expect("an identifier ends with a number");
            sections.entry(section.to_owned()).or_default().push(number);
        }
        let mut count = 0;
        for (section, numbers) in sections {
            count += numbers.len();
            let mut awaited = 1;
            for number in numbers {
                while skipped.contains(&format!("{section}-{awaited}").as_str()) {
                    awaited += 1;
                }
                if number != awaited {
                    wrong.push(format!("{file}: MQTT-{section}-{awaited} is missing before -{number}"));
                }
                awaited = number + 1;
            }
        }
        let expected = STATEMENTS.iter().find(|(name, _)| *name == file).map(|(_, count)| *count);
        if expected != Some(count) {
            wrong.push(format!("{file}: {count} statements are listed, and the standard has {expected:?}"));
        }
    }
    none("a list follows the numbering of its standard", &wrong);
}

#[test]
fn every_statement_has_a_test_or_a_reason() {
    let mut wrong = Vec::new();
    for (file, _) in SKIPPED {
        for statement in list(file) {
            if statement.says.is_empty() {
                wrong.push(format!("{file}: MQTT-{} does not say what it asks for", statement.id));
            }
            if statement.tests.is_empty() && statement.reason.len() < 10 {
                wrong.push(format!("{file}: MQTT-{} has neither a test nor a reason", statement.id));
            }
        }
    }
    none("a statement is shown, or it is said why it cannot be", &wrong);
}

#[test]
fn every_test_that_is_named_exists() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder()).expect("the folder is there") {
        let name = entry.expect("the folder can be read").file_name().to_string_lossy().into_owned();
        for statement in list(&name) {
            let missing = statement.tests.iter().filter(|test| !exists(test));
            wrong.extend(
                missing.map(|test| format!("{name}: MQTT-{}: there is no test {test}", statement.id)),
            );
        }
    }
    none("a list names tests by their paths", &wrong);
}

/// Whether `path` names a test: of this crate, or of the broker's if it begins with `tidegate_broker`.
fn exists(path: &str) -> bool {
    let (folder, path) = match path.strip_prefix("tidegate_broker::") {
        Some(rest) => (root().join("broker/src"), rest),
        None => (root().join("tests/src"), path),
    };
    let Some((modules, name)) = path.rsplit_once("::") else { return false };
    let modules = modules.replace("::", "/");
    // A module lies in a file of its name, in a folder of its name, or at the end of the file above it.
    let inline = modules.strip_suffix("/tests").unwrap_or(&modules);
    let files = [format!("{modules}.rs"), format!("{modules}/mod.rs"), format!("{inline}.rs")];
    files.iter().any(|file| has_test(&folder.join(file), name))
}

fn has_test(file: &Path, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let attribute = |line: &str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let named = |line: &str| line.trim_start_matches("async ").starts_with(&format!("fn {name}("));
    lines.windows(2).any(|pair| attribute(pair[0]) && named(pair[1]))
}

#[test]
fn every_clause_that_is_cited_is_listed() {
    let known: BTreeSet<String> =
        SKIPPED.iter().flat_map(|(file, _)| list(file)).map(|statement| statement.id).collect();
    let mut files = Vec::new();
    for part in ["broker", "bridge", "edge-agent", "benches", "tests"] {
        sources(&root().join(part), &mut files);
    }
    let mut wrong = Vec::new();
    let mut cited = 0;
    for file in &files {
        let text = fs::read_to_string(file).expect("a source is text");
        for (index, line) in text.lines().enumerate() {
            for id in citations(line) {
                cited += 1;
                if !known.contains(id) {
                    wrong.push(format!("{}:{}: MQTT-{id}", file.display(), index + 1));
                }
            }
        }
    }
    none("a clause that is cited stands in a list", &wrong);
    assert!(cited > 100, "the sources cite clauses, and only {cited} were found");
}

/// The identifiers of the form `MQTT-x.y.z-n` in a line.
fn citations(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("MQTT-").filter_map(|(at, mark)| {
        let rest = &line[at + mark.len()..];
        let end = rest.find(|next: char| !next.is_ascii_digit() && next != '.' && next != '-');
        let id = rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', '-']);
        (id.contains('.') && id.contains('-')).then_some(id)
    })
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("the tree can be read").path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn citations_are_found() {
    let check =
        |line: &str, expected: &[&str]| assert_eq!(citations(line).collect::<Vec<_>>(), expected, "{line}");
    check("// It is kept [MQTT-3.1.2-23]. See [MQTT-4.1.0-1]", &["3.1.2-23", "4.1.0-1"]);
    check("a clause MQTT-3-8.3-4, as it is printed", &["3-8.3-4"]);
    check("MQTT-5 and MQTT 5.0", &[]);
    let statement = statement("| MQTT-1.5.3-1 | text | `a::b`, `c::d` |").unwrap();
    assert_eq!(
        (statement.id.as_str(), &statement.tests[..]),
        ("1.5.3-1", &["a::b".to_owned(), "c::d".to_owned()][..])
    );
}
