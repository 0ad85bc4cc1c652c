//! The output of the original stress tool, line for line, with a true mean for its average.

use crate::options::Options;
use crate::report::Report;
use crate::run::Thousand;
use std::collections::BTreeMap;
use std::fmt::Write;

const RULE: &str = "\n==================\n";

pub(crate) fn head(options: &Options) -> String {
    format!(
        "Stress test with:\n - Requests: {}\n - Clusters: {}\n - Workers per cluster: {}\n{RULE}\n\
         [<] Left Requests / [!] Errors / [^] Success\n\n",
        options.requests, options.clusters, options.workers
    )
}

/// The lines in order: threads may tell theirs out of turn.
pub(crate) struct Lines {
    next: Option<u64>,
    waiting: BTreeMap<u64, Thousand>,
}

impl Lines {
    pub(crate) fn new(requests: u64) -> Self {
        // The first is told at the first multiple of 1000 below what there was.
        Self { next: Some((requests - 1) / 1000 * 1000), waiting: BTreeMap::new() }
    }

    /// What can be printed now.
    pub(crate) fn add(&mut self, thousand: Thousand) -> String {
        self.waiting.insert(thousand.left, thousand);
        let mut out = String::new();
        while let Some(next) = self.next
            && let Some(Thousand { left, errors, success }) = self.waiting.remove(&next)
        {
            let _ = writeln!(out, "[<] {left} / [!] {errors} / [^] {success}");
            self.next = next.checked_sub(1000);
        }
        out
    }
}

pub(crate) fn report(report: &Report) -> String {
    let mean = report.latency.service.get("all").map_or(0.0, |all| all.mean);
    format!(
        "{RULE}\nReport:\n - Total requests: {}\n - Total time: {:.2} sec\n - Avg request response: {:.2} ms\n \
         - Errors: {}\n - Success: {}\n",
        report.counts.sent,
        report.elapsed_ns as f64 / 1e9,
        mean / 1e6,
        report.counts.bad(),
        report.counts.ok
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_order_whatever_order_they_are_told_in() {
        let mut lines = Lines::new(2500);
        let line = |left, success| Thousand { left, errors: 1, success };
        assert_eq!(lines.add(line(1000, 1499)), "");
        assert_eq!(lines.add(line(2000, 499)), "[<] 2000 / [!] 1 / [^] 499\n[<] 1000 / [!] 1 / [^] 1499\n");
        assert_eq!(lines.add(line(0, 2499)), "[<] 0 / [!] 1 / [^] 2499\n");
    }
}
