//! The house rules, as a test: which folder may import which, what pure folders may not call, how long a
//! file may be, where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Folder, and the modules of this crate that it may import. `peer`, `mesh`, `balancer` and `sim` may come; a
/// folder that is not listed may not.
const IMPORTS: [(&str, &[&str]); 11] = [
    ("base", &[]),
    ("store", &["base", "limits"]),
    ("http", &["base", "limits"]),
    ("peer", &["base", "limits"]),
    ("mesh", &["base", "limits", "peer", "store"]),
    ("node", &["base", "limits", "config", "http", "store", "peer", "mesh"]),
    ("server", &["base", "limits", "config", "system", "listeners", "http", "store", "peer", "mesh", "node"]),
    ("balancer", &["base", "limits", "config", "system", "listeners", "http"]),
    ("bin", &["mesh", "sim"]),
    ("sim", &["base", "limits", "config", "http", "store", "peer", "mesh", "node"]),
    ("cli", &["base", "limits", "config", "system", "http", "store", "node", "server", "balancer"]),
];
/// Folders that hold nothing but the tests of the module beside them.
const TEST_FOLDERS: [&str; 1] = ["config"];
/// Modules that are no folders.
const MODULES: [&str; 4] = ["limits", "config", "system", "listeners"];

/// Folders in which time, threads, sockets and randomness come in as arguments.
const PURE: [&str; 8] = ["base", "store", "http", "peer", "mesh", "node", "sim", "balancer/core"];
const BANNED: [&str; 14] = [
    "Instant::now",
    "SystemTime::now",
    "thread_rng",
    "rand::",
    "getrandom",
    "std::thread",
    "thread::spawn",
    "thread::sleep",
    "mio::",
    "socket2::",
    // With what ends in them: eprintln!, eprint!.
    "print!(",
    "println!(",
    "std::fs",
    "std::env",
];
/// What pure folders may take from `std::net`: an address is a value, a socket is not.
const ADDRESSES: [&str; 6] = ["IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr", "SocketAddrV4", "SocketAddrV6"];
/// Their order differs from run to run, so that a walk would not replay. A `BTreeMap` serves as well.
const UNORDERED: [&str; 2] = ["HashMap", "HashSet"];

/// Lines that a file may have; those that have more are listed with what they may not exceed.
const LINES_MAX: usize = 600;
const LONGER: [(&str, usize); 0] = [];
/// Lines of an inline `mod tests`.
const INLINE_TESTS_MAX: usize = 150;

/// Files that may hold `unsafe`.
const UNSAFE: [&str; 1] = ["src/base/memory.rs"];

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
        for (name, text) in files.into_iter().filter(|(name, _)| !is_test(name)) {
            for module in imports(&code(text)) {
                let known =
                    IMPORTS.iter().any(|(folder, _)| *folder == module) || MODULES.contains(&module.as_str());
                let fine = module == folder || allowed.contains(&module.as_str());
                assert!(!known || fine, "{name} may not import {module}");
            }
        }
    }
}

/// The modules of this crate that `code` names, behind `crate::` or, in the binary, `meshkv::`.
fn imports(code: &str) -> Vec<String> {
    let mut names = names_from(code, "crate::");
    names.extend(names_from(code, "meshkv::"));
    names
}

/// The first names behind each `path`: one of `path::a::b`, two of `path::{a::{b, c}, d}`.
fn names_from(code: &str, path: &str) -> Vec<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for rest in code.split(path).skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.push(rest.chars().take_while(|c| is_name(*c)).collect());
            continue;
        };
        let mut depth = 1;
        let mut outer = String::new();
        for character in group.chars() {
            depth += i32::from(character == '{') - i32::from(character == '}');
            match depth {
                0 => break,
                1 => outer.push(character),
                _ => {}
            }
        }
        let part = |part: &str| part.trim().chars().take_while(|c| is_name(*c)).collect();
        names.extend(outer.split(',').map(part));
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

#[test]
fn groups_of_imports_are_taken_apart() {
    for (text, names) in [
        ("use crate::store::Storage;", &["store"][..]),
        ("use crate::{base::clock::Now, server};", &["base", "server"]),
        (
            "use crate::{\n    http::{json, query},\n    server::Server,\n};\nuse crate::node;",
            &["http", "server", "node"],
        ),
        ("call({ crate::limits::A }, meshkv::server::B)", &["limits", "server"]),
    ] {
        assert_eq!(imports(text), names, "{text}");
    }
}

#[test]
fn every_folder_has_its_place() {
    let sources = sources();
    for (name, _) in &sources {
        let Some((folder, _)) = name.strip_prefix("src/").and_then(|path| path.split_once('/')) else {
            continue;
        };
        let known = IMPORTS.iter().any(|(known, _)| *known == folder) || TEST_FOLDERS.contains(&folder);
        assert!(known, "{name}: say in tidy.rs what src/{folder} may import");
    }
    // A folder that was renamed would pass every rule here.
    for folder in ["base", "store", "http", "node", "server", "balancer/core", "cli"] {
        let prefix = format!("src/{folder}/");
        assert!(sources.iter().any(|(name, _)| name.starts_with(&prefix)), "{folder} is gone");
    }
}

#[test]
fn pure_folders_read_no_clock_and_touch_no_socket() {
    for (name, text) in sources().iter().filter(|(name, _)| !is_test(name)) {
        if PURE.iter().any(|folder| name.starts_with(&format!("src/{folder}/"))) {
            let code = code(text);
            for banned in BANNED.iter().chain(&UNORDERED) {
                assert!(!code.contains(banned), "{name} uses {banned}");
            }
            for taken in names_from(&code, "std::net::") {
                assert!(ADDRESSES.contains(&taken.as_str()), "{name} uses std::net::{taken}");
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
