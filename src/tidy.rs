//! The house rules, as a test: which folder may import which, what pure folders may not call, how long a
//! file may be, where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Folder, and the folders of this crate that it may import.
const IMPORTS: [(&str, &[&str]); 5] = [
    ("base", &[]),
    ("store", &["base", "limits"]),
    ("http", &["base", "limits"]),
    ("node", &["base", "limits", "config", "http", "store"]),
    ("server", &["base", "limits", "config", "system", "http", "store", "node"]),
];

/// Folders in which time, threads, sockets and randomness come in as arguments.
const PURE: [&str; 4] = ["base", "store", "http", "node"];
const BANNED: [&str; 6] =
    ["Instant::now", "SystemTime::now", "thread::spawn", "TcpStream", "println!(", "std::fs"];

/// Lines that a file may have; those that have more are listed with what they may not exceed.
const LINES_MAX: usize = 600;
const LONGER: [(&str, usize); 0] = [];
/// Lines of an inline `mod tests`.
const INLINE_TESTS_MAX: usize = 150;

/// Files that may hold `unsafe`.
const UNSAFE: [&str; 1] = ["src/base/prefetch.rs"];

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "stress"] {
        if root.join(folder).is_dir() {
            walk(&root.join(folder), &mut found);
        }
    }
    found.retain(|path| !path.components().any(|part| part.as_os_str() == "target"));
    found.sort();
    let name = |path: &Path| path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).expect("text"))).collect()
}

/// The code of a file without comments and without its tests.
fn code(text: &str) -> String {
    let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    production.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name == "src/tidy.rs"
}

#[test]
fn folders_import_only_what_lies_below_them() {
    let sources = sources();
    for (folder, allowed) in IMPORTS {
        let prefix = format!("src/{folder}/");
        let files: Vec<_> = sources.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
        assert!(!files.is_empty(), "{folder} is gone");
        for (name, text) in files.into_iter().filter(|(name, _)| !is_test(name)) {
            for import in code(text).split("crate::").skip(1) {
                let module: String =
                    import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let known = IMPORTS.iter().any(|(folder, _)| *folder == module)
                    || ["limits", "config", "system"].contains(&module.as_str());
                let fine = module == folder || allowed.contains(&module.as_str());
                assert!(!known || fine, "{name} may not import {module}");
            }
        }
    }
}

#[test]
fn pure_folders_read_no_clock_and_touch_no_socket() {
    for (name, text) in sources().iter().filter(|(name, _)| !is_test(name)) {
        if PURE.iter().any(|folder| name.starts_with(&format!("src/{folder}/"))) {
            for banned in BANNED {
                assert!(!code(text).contains(banned), "{name} uses {banned}");
            }
        }
    }
}

#[test]
fn files_stay_readable() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        let most = LONGER.iter().find(|(longer, _)| *longer == name).map_or(LINES_MAX, |(_, most)| *most);
        assert!(lines <= most, "{name} has {lines} lines, more than {most}");
        if let Some((_, tests)) = text.split_once("#[cfg(test)]\nmod tests {") {
            let lines = tests.lines().count();
            assert!(lines <= INLINE_TESTS_MAX, "{name}: {lines} lines of inline tests");
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_is_expected_and_nothing_is_left_undone() {
    for (name, text) in sources().iter().filter(|(name, _)| name != "src/tidy.rs") {
        let code = code(text);
        assert!(!code.contains("unsafe ") || UNSAFE.contains(&name.as_str()), "{name} holds unsafe");
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("dbg", "!(")] {
            assert!(!text.contains(word), "{name}: {word}");
        }
    }
}
