//! From counts to the report, and the judgement whether its numbers mean what they say.

use super::{
    Client, Config, Counts, Errors, H, IntervalSummary, Latency, Rate, Report, RunSummary, SCHEMA,
    TargetInfo, Tool, Verdict,
};
use crate::machine::Host;
use crate::run::{Outcome, Plan};
use crate::significance;
use crate::stats::{Stats, all};
use crate::worker::TIMELY_NS;
use crate::workload::OPS;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Fewer timely sends than this make an open loop invalid.
const TIMELY_MIN: f64 = 0.999;
/// A thread that uses more of a core than this may have been what limited the run.
const UTIL_MAX: f64 = 0.85;
/// Sent over due, where connections were free.
const ACHIEVED_MIN: f64 = 0.99;

/// One run and the time its rate is computed over.
pub struct Part {
    pub outcome: Outcome,
    pub elapsed_ns: u64,
    /// The rate asked for, in an open loop.
    pub target_rate: Option<f64>,
}

impl Part {
    pub fn new(outcome: Outcome, plan: &Plan) -> Self {
        let elapsed_ns = outcome.elapsed_ns(plan);
        Self { outcome, elapsed_ns, target_rate: plan.pace.map(|pace| pace.rate) }
    }

    fn rate(&self) -> f64 {
        self.outcome.stats.ok_in_window as f64 * 1e9 / self.elapsed_ns as f64
    }

    pub fn summary(&self) -> RunSummary {
        let stats = &self.outcome.stats;
        let times = all(if self.target_rate.is_some() { &stats.response } else { &stats.service });
        let counts = counts(stats);
        RunSummary {
            target_rate: self.target_rate,
            elapsed_ns: self.elapsed_ns,
            ok: counts.ok,
            bad: counts.bad(),
            rate: self.rate(),
            p50: times.value_at_quantile(0.5),
            p90: times.value_at_quantile(0.9),
            p99: times.value_at_quantile(0.99),
            p99_9: times.value_at_quantile(0.999),
            max: times.max(),
            cpu_ns_per_req: cpu_per_request(stats),
            timely_ratio: self.target_rate.and_then(|_| timely_ratio(stats)),
            verdict: judge(stats, self.target_rate.is_some()).0,
            slo_pass: None,
        }
    }
}

pub fn counts(stats: &Stats) -> Counts {
    Counts {
        sent: stats.sent,
        ok: stats.ok(),
        failed: stats.failed,
        unfinished: stats.unfinished,
        late: stats.late,
        errors: Errors {
            connect: stats.errors.connect,
            timeout: stats.errors.timeout,
            reset: stats.errors.reset,
            verify: stats.errors.verify,
            http: stats.errors.http.iter().map(|(status, count)| (status.to_string(), *count)).collect(),
        },
    }
}

fn cpu_per_request(stats: &Stats) -> u64 {
    (stats.cpu_user_ns + stats.cpu_sys_ns) / stats.sent.max(1)
}

fn timely_ratio(stats: &Stats) -> Option<f64> {
    (stats.sent > 0).then(|| stats.timely as f64 / stats.sent as f64)
}

/// Whether the client kept what it promised. A closed loop promises no rate, so it is only warned about.
fn judge(stats: &Stats, open_loop: bool) -> (Verdict, Vec<String>) {
    let mut reasons = Vec::new();
    if stats.sent == 0 {
        reasons.push("nothing was sent".to_owned());
        return (Verdict::Invalid, reasons);
    }
    let util = stats.judged_util_max;
    if !open_loop {
        if util > UTIL_MAX {
            reasons.push(format!(
                "client-limited: a client thread used {:.0} % of a core; the server may be able to do more",
                util * 100.0
            ));
        }
        return (Verdict::Valid, reasons);
    }
    let timely = timely_ratio(stats).unwrap_or(0.0);
    if timely < TIMELY_MIN {
        reasons.push(format!(
            "only {:.2} % of the sends left within {} ms of their time although a connection was free (at least \
             {:.1} % must)",
            timely * 100.0,
            TIMELY_NS / 1_000_000,
            TIMELY_MIN * 100.0
        ));
    }
    if util > UTIL_MAX {
        reasons
            .push(format!("a client thread used {:.0} % of a core: the client was at its end", util * 100.0));
    }
    let due = stats.sent + stats.late_client;
    let achieved = stats.sent as f64 / due as f64;
    if achieved < ACHIEVED_MIN {
        reasons.push(format!(
            "only {:.1} % of what was due was sent although connections were free",
            achieved * 100.0
        ));
    }
    let verdict = if reasons.is_empty() { Verdict::Valid } else { Verdict::Invalid };
    (verdict, reasons)
}

fn histograms(of: &[Histogram<u64>; OPS.len()]) -> BTreeMap<String, H> {
    let used = OPS.iter().zip(of).filter(|(_, times)| !times.is_empty());
    let mut map: BTreeMap<String, H> =
        used.map(|((_, name), times)| ((*name).to_owned(), H::of(times))).collect();
    map.insert("all".to_owned(), H::of(&all(of)));
    map
}

fn intervals(parts: &[Part]) -> Vec<IntervalSummary> {
    let mut out = Vec::new();
    let mut offset_ns = 0;
    for part in parts {
        for second in &part.outcome.seconds {
            let times = second.latency();
            out.push(IntervalSummary {
                t_ns: offset_ns + second.index * 1_000_000_000,
                ok: times.len(),
                failed: second.failed,
                p50: times.value_at_quantile(0.5),
                p99: times.value_at_quantile(0.99),
                max: times.max(),
            });
        }
        // The next run's seconds stand behind the last of this one's.
        offset_ns = out.last().map_or(offset_ns, |last| last.t_ns + 1_000_000_000);
    }
    out
}

/// What surrounds the counts.
#[derive(Clone)]
pub struct Frame {
    pub config: Config,
    pub host: Host,
    pub target: Vec<TargetInfo>,
    pub started: String,
    /// Requests asked for in each run; what was never begun is told.
    pub requests: Option<u64>,
}

/// Puts runs together: histograms are merged, the rate is the mean over them.
pub fn report(frame: Frame, parts: &[Part]) -> Report {
    let mut stats = Stats::default();
    for part in parts {
        stats.add(&part.outcome.stats);
    }
    let open_loop = parts.iter().any(|part| part.target_rate.is_some());
    let interrupted = parts.iter().any(|part| part.outcome.interrupted);
    let (verdict, mut reasons) = judge(&stats, open_loop);
    if stats.gave_up > 0 {
        let never = frame.requests.map(|each| (each * parts.len() as u64).saturating_sub(stats.sent));
        let never = never.map_or(String::new(), |never| format!("; {never} requests were never sent"));
        reasons.push(format!("gave up: no server could be reached for as long as the timeout{never}"));
    }
    if stats.late > stats.late_client {
        let count = stats.late - stats.late_client;
        reasons.push(format!("{count} requests came due and were never sent: all connections were busy"));
    }
    if interrupted {
        reasons.push("interrupted: the report covers what was done".to_owned());
    }
    let rates: Vec<f64> = parts.iter().map(Part::rate).collect();
    let elapsed_ns: u64 = parts.iter().map(|part| part.elapsed_ns).sum();
    let (mean, ci95) = significance::mean_ci95(&rates);
    Report {
        schema: SCHEMA,
        tool: Tool {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("MESHKV_STRESS_COMMIT").to_owned(),
        },
        verdict,
        reasons,
        host: frame.host,
        target: frame.target,
        started: frame.started,
        interrupted,
        elapsed_ns,
        counts: counts(&stats),
        rate: Rate {
            target: frame.config.rate,
            achieved: stats.ok_in_window as f64 * 1e9 / elapsed_ns.max(1) as f64,
            mean,
            ci95,
        },
        client: Client {
            cpu_user_ns: stats.cpu_user_ns,
            cpu_sys_ns: stats.cpu_sys_ns,
            cpu_ns_per_req: cpu_per_request(&stats),
            timely_ratio: if open_loop { timely_ratio(&stats) } else { None },
            max_thread_util: stats.thread_util_max,
            backlog_max: stats.backlog_max,
            reconnects: stats.reconnects,
        },
        latency: Latency {
            response: open_loop.then(|| histograms(&stats.response)),
            service: histograms(&stats.service),
            failed: H::of(&stats.failures),
            replication_lag: None,
        },
        intervals: intervals(parts),
        runs: parts.iter().map(Part::summary).collect(),
        baseline: None,
        slo: Vec::new(),
        config: frame.config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::JUDGED_NS;

    fn stats(sent: u64, timely: u64, late_client: u64, util: f64) -> Stats {
        let mut stats = Stats { sent, timely, late_client, ..Stats::default() };
        stats.thread_used(((util * 1e9) as u64, 0), 1_000_000_000);
        stats
    }

    /// Ticks are longer than a short run, and a short run is no measure of the client.
    #[test]
    fn a_run_that_is_too_short_to_measure_is_not_judged_by_its_cpu_time() {
        for (used_ns, wall_ns, shown, judged) in [
            (18_000_000, 4_000_000, 1.0, false),
            (99_000_000, JUDGED_NS - 1, 0.99, false),
            (99_000_000, JUDGED_NS, 0.99, true),
            (200_000_000, JUDGED_NS, 1.0, true),
        ] {
            let mut one = Stats { sent: 1000, timely: 1000, ..Stats::default() };
            one.thread_used((used_ns / 2, used_ns / 2), wall_ns);
            let mut stats = Stats::default();
            stats.add(&one);
            assert!((stats.thread_util_max - shown).abs() < 1e-6, "{used_ns} of {wall_ns}");
            for open_loop in [false, true] {
                assert_eq!(!judge(&stats, open_loop).1.is_empty(), judged, "{used_ns} of {wall_ns}");
            }
        }
    }

    /// Every limit at its edge; a closed loop is warned, never invalid.
    #[test]
    fn verdicts() {
        for (stats, open_loop, verdict, reasons) in [
            (stats(1000, 999, 0, 0.85), true, Verdict::Valid, 0),
            (stats(1000, 998, 0, 0.5), true, Verdict::Invalid, 1),
            (stats(1000, 1000, 0, 0.86), true, Verdict::Invalid, 1),
            (stats(990, 990, 10, 0.5), true, Verdict::Valid, 0),
            (stats(989, 989, 11, 0.5), true, Verdict::Invalid, 1),
            (stats(900, 800, 100, 0.99), true, Verdict::Invalid, 3),
            (stats(1000, 0, 0, 0.99), false, Verdict::Valid, 1),
            (stats(1000, 0, 0, 0.5), false, Verdict::Valid, 0),
            (stats(0, 0, 0, 0.0), false, Verdict::Invalid, 1),
        ] {
            let (found, why) = judge(&stats, open_loop);
            assert_eq!((found, why.len()), (verdict, reasons), "{why:?}");
        }
    }
}
