//! The commit, for the reports: from `MESHKV_COMMIT` where it is set, else from git, else `unknown`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MESHKV_COMMIT");
    let commit = std::env::var("MESHKV_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let commit = commit.or_else(commit_of_git).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=MESHKV_STRESS_COMMIT={}", commit.trim());
}

/// `None` without git, or where an unpacked archive lies inside somebody else's repository.
fn commit_of_git() -> Option<String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let expected = std::path::Path::new(&here).parent()?.canonicalize().ok()?;
    if std::path::Path::new(&top).canonicalize().ok()? != expected {
        return None;
    }
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name])
            && std::path::Path::new(&path).exists()
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
