//! Rows, verdicts, and the record of a run.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// A figure against its target.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    measured: String,
    target: String,
    verdict: &'static str,
}

/// The middle, the lowest and the highest of several rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    /// `rounds` must not be empty.
    pub(crate) fn of(mut rounds: Vec<f64>) -> Spread {
        rounds.sort_by(f64::total_cmp);
        let (low, high) = (rounds[0], rounds[rounds.len() - 1]);
        Spread { median: rounds[rounds.len() / 2], low, high }
    }

    fn show(self) -> String {
        let digits = if self.high >= 1000.0 { 0 } else { 3 };
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.low, self.high)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Other tables, as Markdown, behind that of the rows.
    pub(crate) more: String,
}

impl Report {
    pub(crate) fn at_most(&mut self, what: impl Into<String>, measured: Spread, limit: f64) {
        self.judge(what.into(), measured, format!("<= {limit}"), measured.median <= limit);
    }

    pub(crate) fn at_least(&mut self, what: impl Into<String>, measured: Spread, limit: f64) {
        self.judge(what.into(), measured, format!(">= {limit}"), measured.median >= limit);
    }

    /// A figure without a target.
    pub(crate) fn tell(&mut self, what: impl Into<String>, measured: Spread) {
        self.push(what.into(), measured.show(), String::new(), "");
    }

    fn judge(&mut self, what: String, measured: Spread, target: String, met: bool) {
        self.push(what, measured.show(), target, if met { "met" } else { "MISSED" });
    }

    fn push(&mut self, what: String, measured: String, target: String, verdict: &'static str) {
        eprintln!("  {what}: {measured} {target} {verdict}");
        self.rows.push(Row { what, measured, target, verdict });
    }

    /// As a Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut text =
            String::from("| | measured (lowest to highest round) | target | |\n|---|---|---|---|\n");
        for Row { what, measured, target, verdict } in &self.rows {
            let _ = writeln!(text, "| {what} | {measured} | {target} | {verdict} |");
        }
        text.push_str(&self.more);
        text
    }

    /// Appends the table to this benchmark's record of this day and commit; returns where that is.
    pub(crate) fn record(&self, bench: &str, how: &str) -> std::io::Result<PathBuf> {
        let (date, commit) = (said("date", &["-u", "+%F"]), said("git", &["rev-parse", "--short", "HEAD"]));
        let sources =
            ["src", "Cargo.toml", "benches/node", "benches/mesh", "benches/peers", "benches/support"];
        let status = [&["status", "--porcelain", "--"][..], &sources].concat();
        let dirty = !said("git", &status).is_empty();
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/records");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(match bench {
            // As the first records are named.
            "node" => format!("{date}-{commit}.md"),
            _ => format!("{date}-{commit}-{bench}.md"),
        });
        let mut text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.is_empty() {
            let _ = write!(text, "# Benchmarks of the {bench} at {commit}, {date}\n\n{}", machine());
        }
        let changed = if dirty { " (with uncommitted changes)" } else { "" };
        let _ = write!(text, "\n## `cargo bench --bench {bench} -- {how}`{changed}\n\n{}", self.table());
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// The machine, its kernel, and the versions of the peers.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or("?: ?").to_owned();
    let model = model.split_once(": ").map_or("?", |(_, model)| model);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
    let kernel = read("/proc/sys/kernel/osrelease");
    let peers = [("redis-server", "--version"), ("memcached", "--version"), ("/usr/sbin/nginx", "-v")];
    let peers: Vec<String> = peers.iter().map(|(program, flag)| said(program, &[flag])).collect();
    format!(
        "- machine: {model}, {cores} cores, memory {}\n- kernel: {}\n- peers: {}\n\
         - CPU: run time of all threads of the server (schedstat) per request, in nanoseconds; ratios are\n\
         \x20 taken within a round, the median over rounds is judged\n",
        memory.trim(),
        kernel.trim(),
        peers.join("; "),
    )
}

/// The first line that a program says, or nothing.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let bytes = output.map(|output| if output.stdout.is_empty() { output.stderr } else { output.stdout });
    String::from_utf8_lossy(&bytes.unwrap_or_default()).lines().next().unwrap_or_default().to_owned()
}
