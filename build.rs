//! What `meshkv --version` tells beside the version: commit, target and features.
//!
//! The commit comes from `MESHKV_COMMIT` where it is set (an image is built without the repository), else
//! from git, else it is `unknown`: a source archive builds without git.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MESHKV_COMMIT");
    let commit = std::env::var("MESHKV_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let commit = commit.or_else(commit_of_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=MESHKV_BUILD_COMMIT={}", commit.trim());
    println!("cargo::rustc-env=MESHKV_BUILD_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    let mut features: Vec<String> = std::env::vars()
        .filter_map(|(name, _)| name.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase))
        .filter(|feature| feature != "default")
        .collect();
    features.sort();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(" ").replace('_', "-") };
    println!("cargo::rustc-env=MESHKV_BUILD_FEATURES={features}");
}

/// The short commit of the repository whose top is this package; `None` without git, or where an unpacked
/// archive lies inside somebody else's repository.
fn commit_of_git() -> Option<String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    // HEAD changes with the branch, its log with every commit; a packed or absent log falls back to HEAD.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=7", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
