//! Two reports side by side: what has changed, and whether that is more than noise.

use crate::report::{Change, Compared, Comparison, Config, Report, RunSummary, Verdict};
use crate::significance::welch;

/// A difference this improbable without a cause counts, all deciding metrics of a comparison taken together. Of
/// twenty comparisons of a build with itself all are to come out right in nineteen of twenty cases: 0.05 / 20.
const ALPHA: f64 = 0.0025;

struct Metric {
    name: &'static str,
    of: fn(&RunSummary) -> f64,
    more_is_better: bool,
    decides: bool,
}

/// A closed loop measures capacity: its rate decides. An open loop's rate was given: its response times decide.
fn metrics(open_loop: bool) -> [Metric; 5] {
    let time = |name, of, decides| Metric { name, of, more_is_better: false, decides };
    [
        Metric { name: "rate, 1/s", of: |run| run.rate, more_is_better: true, decides: !open_loop },
        time("p50, us", |run| run.p50 as f64 / 1e3, open_loop),
        time("p99, us", |run| run.p99 as f64 / 1e3, open_loop),
        time("p99.9, us", |run| run.p99_9 as f64 / 1e3, false),
        time("client CPU, us", |run| run.cpu_ns_per_req as f64 / 1e3, false),
    ]
}

/// Compares `new` with `base`; changes of at most `noise` (0.01 is 1 %) are none.
///
/// # Errors
/// The two did different things, or one of them is INVALID: there is nothing to compare.
pub fn compare(base: &Report, base_name: &str, new: &Report, noise: f64) -> Result<Comparison, String> {
    let different = differences(&base.config, base.target.len(), &new.config, new.target.len());
    if !different.is_empty() {
        return Err(format!("{base_name} is of another workload: {}", different.join("; ")));
    }
    for (report, name) in [(base, base_name), (new, "the new report")] {
        if report.verdict == Verdict::Invalid {
            return Err(format!("{name} is INVALID: {}", report.reasons.join("; ")));
        }
    }
    let metrics = metrics(new.config.rate.is_some());
    let deciding = metrics.iter().filter(|metric| metric.decides).count();
    let metrics: Vec<Compared> = metrics
        .iter()
        .map(|metric| one(metric, &base.runs, &new.runs, noise, ALPHA / deciding as f64))
        .collect();
    let regression = metrics.iter().any(|metric| metric.decides && metric.outcome == Change::Worse);
    Ok(Comparison { base: base_name.to_owned(), noise, metrics, regression })
}

/// Several reports of one workload as one, with the runs of all. A machine that gets slower for a minute slows what
/// is measured in that minute; runs of two builds that alternate, in reports of their own, both meet it.
///
/// # Errors
/// The reports are of different workloads, or there is none.
pub fn pool(reports: Vec<Report>) -> Result<Report, String> {
    let mut reports = reports.into_iter();
    let mut all = reports.next().ok_or("no report")?;
    for report in reports {
        let different = differences(&all.config, all.target.len(), &report.config, report.target.len());
        if !different.is_empty() {
            return Err(format!("reports of different workloads: {}", different.join("; ")));
        }
        if report.verdict == Verdict::Invalid {
            all.verdict = Verdict::Invalid;
        }
        all.reasons.extend(report.reasons);
        all.runs.extend(report.runs);
    }
    Ok(all)
}

fn one(metric: &Metric, base: &[RunSummary], new: &[RunSummary], noise: f64, alpha: f64) -> Compared {
    let values = |runs: &[RunSummary]| runs.iter().map(metric.of).collect::<Vec<f64>>();
    let (base, new) = (values(base), values(new));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (base_mean, new_mean) = (mean(&base), mean(&new));
    let change = if base_mean == 0.0 { 0.0 } else { (new_mean - base_mean) / base_mean };
    let p = welch(&base, &new);
    let outcome = match p {
        None => Change::Unknown,
        Some(p) if p >= alpha || change.abs() <= noise => Change::Same,
        Some(_) if (change > 0.0) == metric.more_is_better => Change::Better,
        Some(_) => Change::Worse,
    };
    let decides = metric.decides;
    Compared { name: metric.name.to_owned(), base: base_mean, new: new_mean, change, p, outcome, decides }
}

/// What shapes the load and differs. The servers' addresses may, and how long it was looked at.
fn differences(base: &Config, base_targets: usize, new: &Config, new_targets: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |name: &str, base: String, new: String| {
        if base != new {
            found.push(format!("{name} {base} there, {new} here"));
        }
    };
    check("mode", base.mode.clone(), new.mode.clone());
    check("servers", base_targets.to_string(), new_targets.to_string());
    check("mix", base.mix.clone(), new.mix.clone());
    check("keys", base.keys.to_string(), new.keys.to_string());
    check("key-dist", base.key_dist.clone(), new.key_dist.clone());
    check("value-size", format!("{:?}", base.value_size), format!("{:?}", new.value_size));
    check("connections", base.connections.to_string(), new.connections.to_string());
    check("pipeline", base.pipeline.to_string(), new.pipeline.to_string());
    check("threads", base.threads.to_string(), new.threads.to_string());
    check("rate", format!("{:?}", base.rate), format!("{:?}", new.rate));
    check("arrival", format!("{:?}", base.arrival), format!("{:?}", new.arrival));
    check("verify", format!("{:?}", base.verify), format!("{:?}", new.verify));
    check("template", format!("{:?}", base.template), format!("{:?}", new.template));
    check("expect", format!("{:?}", base.expect), format!("{:?}", new.expect));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(rates: &[f64]) -> Vec<RunSummary> {
        let run = |rate: &f64| RunSummary {
            target_rate: None,
            elapsed_ns: 1,
            ok: 1,
            bad: 0,
            rate: *rate,
            p50: 1000,
            p90: 1000,
            p99: 1000,
            p99_9: 1000,
            max: 1000,
            cpu_ns_per_req: 1000,
            timely_ratio: None,
            verdict: Verdict::Valid,
            slo_pass: None,
        };
        rates.iter().map(run).collect()
    }

    #[test]
    fn a_change_counts_when_it_is_neither_noise_nor_chance() {
        let metric = &metrics(false)[0];
        let base = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2, 99.8];
        for (factor, outcome) in
            [(1.0, Change::Same), (0.995, Change::Same), (0.95, Change::Worse), (1.05, Change::Better)]
        {
            let new: Vec<f64> = base.iter().map(|rate| rate * factor).collect();
            let compared = one(metric, &runs(&base), &runs(&new), 0.01, ALPHA);
            assert_eq!(compared.outcome, outcome, "{compared:?}");
            assert!((compared.change - (factor - 1.0)).abs() < 1e-9);
        }
        // As far apart, but scattered so widely that it may be chance.
        let (wild, wilder) = ([60.0, 140.0, 80.0, 120.0], [55.0, 135.0, 75.0, 115.0]);
        assert_eq!(one(metric, &runs(&wild), &runs(&wilder), 0.01, ALPHA).outcome, Change::Same);
        assert_eq!(one(metric, &runs(&[100.0]), &runs(&[50.0]), 0.01, ALPHA).outcome, Change::Unknown);
    }

    /// Goal: with seven runs a side, a build compared with itself is hardly ever called different and 5 % are hardly
    /// ever missed, on a machine whose runs scatter by 1.5 %. Method: two thousand comparisons of normal rates.
    #[test]
    fn seven_runs_tell_five_percent_from_noise() {
        let mut drawn = 0;
        let mut normal = || {
            drawn += 2;
            let unit = |n| crate::workload::unit(crate::workload::mix64(n));
            (-2.0 * unit(drawn).ln()).sqrt() * (std::f64::consts::TAU * unit(drawn + 1)).cos()
        };
        let mut called_different = |factor: f64| {
            let metric = &metrics(false)[0];
            let differs = (0..2000).filter(|_| {
                let base: Vec<f64> = (0..7).map(|_| 1000.0 * (1.0 + 0.015 * normal())).collect();
                let new: Vec<f64> = (0..7).map(|_| 1000.0 * factor * (1.0 + 0.015 * normal())).collect();
                one(metric, &runs(&base), &runs(&new), 0.01, ALPHA).outcome != Change::Same
            });
            differs.count()
        };
        let (same, slower) = (called_different(1.0), called_different(0.95));
        assert!(same <= 15, "{same} of 2000: {ALPHA} are 5");
        assert!(slower >= 1900, "{slower} of 2000");
    }
}
