//! The rules of the tree, as tests: each failure names file, line and the rule.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

/// The tree without what is made in it.
const PARTS: [&str; 7] = [".ci", "benches", "bridge", "broker", "deploy", "edge-agent", "tests"];

/// A text file of the tree.
#[derive(Debug)]
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_under(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path == *prefix || self.path.starts_with(&format!("{prefix}/")))
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
            || self.is_under(&["tests", "benches"])
    }

    /// The lines that are built into a program, without comments; each with its number.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let whole = if self.is_test() { "" } else { &self.text };
        let shipped = whole.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let numbered = shipped.lines().enumerate().map(|(index, line)| (index + 1, line));
        numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Every line of Rust or other text.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Every text file of the tree but the lock file.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for part in PARTS {
        collect(&root().join(part), &mut sources);
    }
    for entry in fs::read_dir(root()).expect("the root can be read") {
        let path = entry.expect("the root can be read").path();
        // In a linked worktree .git is a file with a path of this machine.
        if path.is_file() && !path.ends_with("Cargo.lock") && !path.ends_with(".git") {
            add(&path, &mut sources);
        }
    }
    assert!(sources.len() > 100, "the tree is here");
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            collect(&path, sources);
        } else {
            add(&path, sources);
        }
    }
}

fn add(path: &Path, sources: &mut Vec<Source>) {
    if let Ok(text) = fs::read_to_string(path) {
        let path = path.strip_prefix(root()).expect("it lies under the root");
        sources.push(Source { path: path.to_string_lossy().into_owned(), text });
    }
}

fn rust() -> Vec<Source> {
    let mut sources = sources();
    sources.retain(Source::is_rust);
    sources
}

/// Fails and shows everything that is wrong.
fn none(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{rule}\n{}", wrong.join("\n"));
}

/// Whether `word` stands in `line` between characters that no name has.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].bytes().next_back().is_some_and(is_name);
        let after = line[at + word.len()..].bytes().next().is_some_and(is_name);
        !before && !after
    })
}

#[test]
fn pure_files_know_no_sockets_files_clocks_threads_or_async() {
    const PURE: [&str; 10] = [
        "broker/src/broker",
        "broker/src/broker.rs",
        "broker/src/mqtt",
        "broker/src/record.rs",
        "broker/src/retained.rs",
        "broker/src/router.rs",
        "broker/src/session",
        "broker/src/topic.rs",
        "bridge/src/pump.rs",
        "bridge/src/route.rs",
    ];
    const IMPURE: [&str; 17] = [
        "Condvar",
        "File",
        "Instant",
        "Mutex",
        "RwLock",
        "SystemTime",
        "TcpListener",
        "TcpStream",
        "UdpSocket",
        "async",
        "await",
        "env",
        "fs",
        "mio",
        "mpsc",
        "thread",
        "tokio",
    ];
    let sources = rust();
    for pure in PURE {
        assert!(
            sources.iter().any(|source| source.is_under(&[pure])),
            "{pure} is gone: say here where it went"
        );
    }
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.is_under(&PURE)) {
        for (number, line) in source.code() {
            let found = IMPURE.iter().filter(|word| has_word(line, word));
            wrong.extend(found.map(|word| format!("{}:{number}: {word}", source.path)));
        }
    }
    none("a pure file takes input and time as arguments and gives output; the shell does the rest", &wrong);
}

#[test]
fn parts_import_only_what_lies_below_them() {
    // Whoever lies in the first must not name the second.
    const FORBIDDEN: [(&[&str], &[&str]); 9] = [
        (&["broker"], &["tidegate::", "rdkafka", "tokio", "axum"]),
        (
            &["broker/src/record.rs", "broker/src/topic.rs"],
            &[
                "crate::mqtt",
                "crate::session",
                "crate::broker",
                "crate::journal",
                "crate::server",
                "crate::auth",
            ],
        ),
        (
            &["broker/src/mqtt"],
            &[
                "crate::session",
                "crate::broker",
                "crate::journal",
                "crate::server",
                "crate::auth",
                "crate::router",
            ],
        ),
        (
            &["broker/src/session", "broker/src/router.rs", "broker/src/retained.rs"],
            &["crate::broker", "crate::journal", "crate::server", "crate::auth"],
        ),
        (&["broker/src/broker", "broker/src/broker.rs"], &["crate::journal", "crate::server"]),
        (
            &["broker/src/journal"],
            &[
                "crate::mqtt",
                "crate::session",
                "crate::broker",
                "crate::server",
                "crate::auth",
                "crate::router",
            ],
        ),
        (
            &[
                "bridge/src/kafka",
                "bridge/src/postgres",
                "bridge/src/pump.rs",
                "bridge/src/pump",
                "bridge/src/route.rs",
            ],
            &[
                "tidegate_broker::mqtt",
                "tidegate_broker::session",
                "tidegate_broker::server",
                "crate::gateway",
            ],
        ),
        (
            &[
                "bridge/src/kafka",
                "bridge/src/postgres",
                "bridge/src/gateway",
                "bridge/src/pump",
                "bridge/src/config",
            ],
            &["crate::appliance", "std::env"],
        ),
        (&["edge-agent"], &["tidegate::", "tidegate_broker::server"]),
    ];
    // What comes from Kafka is published as the gateway publishes: it is no output.
    const PUBLISHES: &str = "bridge/src/kafka/consume/";
    const SERVER: &str = "tidegate_broker::server";
    let mut wrong = Vec::new();
    for source in &rust() {
        for (files, names) in FORBIDDEN.iter().filter(|(files, _)| source.is_under(files)) {
            for (number, line) in source.code() {
                let found = names.iter().filter(|name| has_path(line, name));
                let found = found.filter(|name| **name != SERVER || !source.path.starts_with(PUBLISHES));
                wrong.extend(found.map(|name| format!("{}:{number}: {name} (from {files:?})", source.path)));
            }
        }
    }
    none("imports go down: server -> broker -> session -> mqtt -> record; outputs know no MQTT", &wrong);
}

/// Whether the path `name` is named in `line`, itself or something in it.
fn has_path(line: &str, name: &str) -> bool {
    match name.strip_suffix("::") {
        Some(of_crate) => line.match_indices(name).any(|(at, _)| {
            let before = line[..at].bytes().next_back();
            !before.is_some_and(|byte| byte == b'_' || byte == b':' || byte.is_ascii_alphanumeric())
                && !of_crate.is_empty()
        }),
        None => has_word(line, name),
    }
}

#[test]
fn names_are_the_terms_of_the_field() {
    // What they would be called here stands beside them.
    const AVOIDED: [(&str, &str); 12] = [
        ("bookmark", "cursor"),
        ("common", "what it is about"),
        ("compact", "trim"),
        ("helper", "what it does"),
        ("manager", "what it does"),
        ("poison", "reject"),
        ("purge", "trim"),
        ("shutdown", "drain"),
        ("snapshot", "checkpoint"),
        ("stuff", "what it is"),
        ("util", "what it is about"),
        ("utils", "what it is about"),
    ];
    // Methods of traits that others named.
    const GIVEN: [&str; 1] = ["poll_shutdown"];
    let mut wrong = Vec::new();
    for source in &rust() {
        for (number, line) in source.lines() {
            let Some(name) = declared(line).filter(|name| !GIVEN.contains(name)) else { continue };
            let parts = words(name);
            let avoided = AVOIDED.iter().filter(|(word, _)| parts.iter().any(|part| part == word));
            wrong.extend(
                avoided.map(|(word, say)| format!("{}:{number}: {name}: {word} is {say}", source.path)),
            );
            if name.starts_with("get_") && name != "get_mut" && line.contains("fn ") {
                wrong.push(format!("{}:{number}: {name}: leave get_ out", source.path));
            }
        }
        let file = Path::new(&source.path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let avoided = AVOIDED.iter().filter(|(word, _)| *word == file);
        wrong.extend(avoided.map(|(_, say)| format!("{}: {file} is {say}", source.path)));
    }
    none("names say what the field says", &wrong);
}

/// The name that a line declares.
fn declared(line: &str) -> Option<&str> {
    const KEYWORDS: [&str; 8] = ["fn ", "struct ", "enum ", "trait ", "mod ", "type ", "const ", "static "];
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) => rest.trim_start_matches(|character| character != ' ').trim_start(),
        None => line,
    };
    let line = line.trim_start_matches("async ").trim_start_matches("unsafe ");
    let line = line.strip_prefix("const ").filter(|rest| rest.starts_with("fn ")).unwrap_or(line);
    let rest = KEYWORDS.iter().find_map(|keyword| line.strip_prefix(keyword))?;
    let end = rest.find(|character: char| character != '_' && !character.is_alphanumeric())?;
    (end > 0).then(|| &rest[..end])
}

/// The words of a name, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for character in name.chars() {
        if character == '_' || character.is_uppercase() && after_small {
            words.push(String::new());
        }
        if character != '_' {
            words.last_mut().expect("there is always a word").extend(character.to_lowercase());
        }
        after_small = character.is_lowercase() || character.is_numeric();
    }
    words
}

#[test]
fn the_words_of_a_name_are_found() {
    let check = |line: &str, name: Option<&str>, parts: &[&str]| {
        assert_eq!(declared(line), name, "{line}");
        assert_eq!(name.map(words).unwrap_or_default(), parts, "{line}");
    };
    check("pub(crate) struct PacketIdPool {", Some("PacketIdPool"), &["packet", "id", "pool"]);
    check("    pub const fn free_port() -> u16 {", Some("free_port"), &["free", "port"]);
    check("const MQTT_PORT: u16 = 1;", Some("MQTT_PORT"), &["mqtt", "port"]);
    check("    let manager = 1;", None, &[]);
    check("async fn run(self) {", Some("run"), &["run"]);
}

#[test]
fn every_file_says_what_it_is_and_stays_one_idea() {
    const LINES_MAX: usize = 800;
    let mut wrong = Vec::new();
    for source in &rust() {
        if !source.text.starts_with("//! ") {
            wrong.push(format!("{}: it does not open with //! and what it is", source.path));
        }
        let lines = source.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines are more than one idea", source.path));
        }
    }
    none("a file opens with what it is, and is one idea", &wrong);
}

#[test]
fn tests_are_never_ignored_and_wait_for_events() {
    let ignore = concat!("#[", "ignore");
    let mut wrong = Vec::new();
    for source in &rust() {
        for (number, line) in source.lines() {
            if line.trim_start().starts_with(ignore) {
                wrong.push(format!("{}:{number}: a test that is ignored proves nothing", source.path));
            }
            if source.is_under(&["tests"]) && line.contains(concat!("thread::", "sleep")) {
                wrong.push(format!("{}:{number}: wait for the event, with a deadline", source.path));
            }
        }
    }
    none("every test runs, and waits for what it waits for", &wrong);
}

#[test]
fn nothing_is_left_unwritten() {
    let unwritten =
        [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut wrong = Vec::new();
    for source in &sources() {
        for (number, line) in source.lines() {
            let found = unwritten.iter().filter(|mark| line.contains(**mark));
            wrong.extend(found.map(|mark| format!("{}:{number}: {mark}", source.path)));
        }
    }
    none("what is in the tree is finished", &wrong);
}

#[test]
fn unsafe_stands_only_where_a_foreign_interface_asks_for_it() {
    // Benches measure with the kernel's own counters.
    const ALLOWED: [&str; 7] = [
        "benches",
        "bridge/src/appliance/folder.rs",
        "bridge/src/kafka/native",
        "bridge/src/kafka/native.rs",
        "tests/src/support/kafka.rs",
        "tests/src/support/process.rs",
        "tests/src/tidy.rs",
    ];
    let mut wrong = Vec::new();
    for source in rust().iter().filter(|source| !source.is_under(&ALLOWED)) {
        let code = source.lines().filter(|(_, line)| !line.trim_start().starts_with("//"));
        let found = code.filter(|(_, line)| has_word(line, "unsafe"));
        wrong.extend(found.map(|(number, _)| format!("{}:{number}", source.path)));
    }
    none("unsafe needs a foreign interface and a line in this list", &wrong);
}

#[test]
fn the_tree_speaks_of_itself_alone() {
    // Written in two halves, so that this file is not found.
    let foreign = [
        concat!("/wo", "rk/"),
        concat!("/tmp", "/wt"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("index.cra", "tes.io"),
        concat!("static.cra", "tes.io"),
        concat!("repo.", "maven"),
        concat!("registry.", "npmjs"),
        concat!("deb.deb", "ian.org"),
        concat!("Co-Authored", "-By"),
    ];
    let mut wrong = Vec::new();
    for source in &sources() {
        for (number, line) in source.lines() {
            let found = foreign.iter().filter(|word| line.contains(**word));
            wrong.extend(found.map(|word| format!("{}:{number}: {word}", source.path)));
            if names_an_issue(line) {
                wrong.push(format!("{}:{number}: say it here instead of pointing to a tracker", source.path));
            }
        }
    }
    none("nothing points to one machine, one registry or one tracker", &wrong);
}

/// Whether a line points to an entry of a tracker: the word, then a number.
fn names_an_issue(line: &str) -> bool {
    let line = line.to_lowercase();
    ["issue ", "issue #", "ticket ", "ticket #"].iter().any(|word| {
        line.match_indices(word)
            .any(|(at, _)| line[at + word.len()..].starts_with(|next: char| next.is_ascii_digit()))
    })
}

#[test]
fn every_crate_keeps_to_the_lints_and_versions_of_the_workspace() {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().expect("members are a list");
    let mut wrong = Vec::new();
    for member in members {
        let path = PathBuf::from(member.as_str().expect("members are folders")).join("Cargo.toml");
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&toml::Value::Boolean(true))
        {
            wrong.push(format!("{}: [lints] workspace = true is missing", path.display()));
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for (name, dependency) in dependencies {
                if dependency.get("workspace") != Some(&toml::Value::Boolean(true)) {
                    wrong.push(format!("{}: {name} has a version of its own", path.display()));
                }
            }
        }
    }
    none("lints and versions are the workspace's", &wrong);
}

#[test]
fn planted_bugs_are_in_no_program() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.path.ends_with("Cargo.toml")) {
        let manifest: toml::Table = source.text.parse().unwrap();
        let dependencies = manifest.get("dependencies").map(toml::Value::to_string).unwrap_or_default();
        let default = manifest.get("features").and_then(|features| features.get("default"));
        let default = default.map(toml::Value::to_string).unwrap_or_default();
        if dependencies.contains("planted-bugs") || default.contains("planted-bugs") {
            wrong.push(source.path.clone());
        }
    }
    none("only dev-dependencies may switch planted bugs on", &wrong);
}

#[test]
fn the_root_holds_the_parts_and_nothing_else() {
    // What the two commands make, and what .gitignore names.
    const MADE: [&str; 2] = ["target", "tidegate-data"];
    const FILES: [&str; 4] = ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md"];
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root()).expect("the root can be read") {
        let name = entry.expect("the root can be read").file_name().to_string_lossy().into_owned();
        let known = [&PARTS[..], &MADE, &FILES].concat().contains(&name.as_str());
        if !known && !name.starts_with('.') {
            wrong.push(name);
        }
    }
    none("what else is there belongs into one of the parts", &wrong);
}

#[test]
fn the_readme_shows_both_commands() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo run --release", "tests/run"] {
        let stands_alone = readme.lines().any(|line| line.trim() == command);
        assert!(stands_alone, "README.md shows `{command}` on a line of its own");
    }
}
