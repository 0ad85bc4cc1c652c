//! The report for the terminal.

use super::{Change, Comparison, Config, Counts, H, Report, Verdict};
use crate::slo;
use std::fmt::Write;

/// Whether and how to colour.
#[derive(Clone, Copy)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    pub fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }
}

pub fn seconds(ns: u64) -> String {
    let text = format!("{:.3}", ns as f64 / 1e9);
    format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
}

fn ms(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e6)
}

pub fn workload(config: &Config) -> String {
    let amount = match (config.duration_ns, config.requests) {
        (Some(duration), _) => seconds(duration),
        (None, requests) => requests.unwrap_or(0).to_string(),
    };
    let what = config.template.as_deref().unwrap_or(&config.mix);
    let values = match config.value_size {
        None => "value:N".to_owned(),
        Some((low, high)) if low == high => format!("of {low} bytes"),
        Some((low, high)) => format!("of {low} to {high} bytes"),
    };
    format!(
        "{amount} of {what}, {} keys {}, values {values}, verify {}, seed {}",
        config.keys,
        config.key_dist,
        name(&config.verify),
        config.seed
    )
}

/// The name that serde gives a variant.
fn name(of: &impl serde::Serialize) -> String {
    serde_json::to_value(of).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub fn load(config: &Config) -> String {
    if config.mode == "lag" {
        return "sets on the first server, gets on the others until they show it".to_owned();
    }
    let kind = match (config.rate, &config.arrival) {
        (Some(rate), Some(arrival)) => format!("open loop, {rate:.0}/s {}", name(arrival)),
        _ => "closed loop (not safe from coordinated omission)".to_owned(),
    };
    let mut text = format!(
        "{kind}, {} connections x {} deep, {} threads, warm-up {}",
        config.connections,
        config.pipeline,
        config.threads,
        seconds(config.warmup_ns)
    );
    if config.runs > 1 {
        let _ = write!(text, ", {} runs", config.runs);
    }
    text
}

fn counts(counts: &Counts) -> String {
    let mut text = format!(
        "{} sent, {} ok, {} failed, {} unfinished, {} mismatched",
        counts.sent, counts.ok, counts.failed, counts.unfinished, counts.errors.verify
    );
    if counts.late > 0 {
        let _ = write!(text, ", {} late (never sent)", counts.late);
    }
    text
}

fn errors(counts: &Counts) -> String {
    let errors = &counts.errors;
    let http: Vec<_> = errors.http.iter().map(|(status, count)| format!("{count} x {status}")).collect();
    format!(
        "connect {}, timeout {}, reset {}, verify {}, http [{}]",
        errors.connect,
        errors.timeout,
        errors.reset,
        errors.verify,
        http.join(", ")
    )
}

fn row(out: &mut String, name: &str, h: &H) {
    let columns = [h.p50, h.p90, h.p99, h.p99_9, h.p99_99, h.max];
    let _ = write!(out, "  {name:<20}");
    for column in columns {
        let _ = write!(out, " {:>10}", ms(column));
    }
    out.push('\n');
}

fn table(out: &mut String, report: &Report) {
    let _ = write!(out, "{:<22}", "latency, ms");
    for head in ["p50", "p90", "p99", "p99.9", "p99.99", "max"] {
        let _ = write!(out, " {head:>10}");
    }
    out.push('\n');
    let latency = &report.latency;
    let clocks = [("response", latency.response.as_ref()), ("service", Some(&latency.service))];
    for (clock, map) in clocks {
        let Some(map) = map else { continue };
        let mut operations: Vec<_> = map.iter().filter(|(name, _)| *name != "all").collect();
        // One operation alone is all of them.
        operations.retain(|_| map.len() > 2);
        for (name, h) in map.iter().filter(|(name, _)| *name == "all").chain(operations) {
            row(out, &format!("{clock} {name}"), h);
        }
    }
    if latency.failed.count > 0 {
        row(out, "failed", &latency.failed);
    }
    if let Some(lag) = &latency.replication_lag {
        row(out, "replication lag", lag);
    }
}

/// Everything a person decides from, in the order of the deciding.
pub fn text(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    let config = &report.config;
    if config.mode == "sweep" {
        steps(&mut out, report);
    }
    let _ = writeln!(out, "workload  {}", workload(config));
    for target in &report.target {
        let mut known = String::new();
        if let Some(version) = &target.version {
            let _ = write!(known, " (meshkv {version}");
            for (when, keys) in [("before", target.keys), ("after", target.keys_after)] {
                if let Some(keys) = keys {
                    let _ = write!(known, ", {keys} keys {when}");
                }
            }
            known.push(')');
        }
        let _ = writeln!(out, "target    {}{known}", target.url);
        if let Some(own) = &target.counts {
            let _ = writeln!(out, "          {}", counts(own));
            if own.failed > 0 {
                let _ = writeln!(out, "          {}", errors(own));
            }
        }
    }
    let _ = writeln!(out, "load      {}", load(config));
    let verdict = match report.verdict {
        Verdict::Valid => paint.good("VALID"),
        Verdict::Invalid => paint.bad("INVALID"),
    };
    let _ = write!(out, "verdict   {verdict}");
    if let Some(timely) = report.client.timely_ratio {
        let _ = write!(out, "  timely {:.2} %,", timely * 100.0);
    }
    let _ = writeln!(
        out,
        "  busiest client thread {:.0} % of a core, backlog {}, {} reconnects",
        report.client.max_thread_util * 100.0,
        report.client.backlog_max,
        report.client.reconnects
    );
    for reason in &report.reasons {
        let _ = writeln!(out, "          {reason}");
    }
    let _ = writeln!(out, "counts    {}", counts(&report.counts));
    if report.counts.failed > 0 {
        let _ = writeln!(out, "errors    {}", paint.bad(&errors(&report.counts)));
    }
    rate(&mut out, report);
    let each = |ns: u64| ns as f64 / 1e3 / report.counts.sent.max(1) as f64;
    let _ = writeln!(
        out,
        "client    {:.2} us of CPU a request ({:.2} user, {:.2} system)",
        report.client.cpu_ns_per_req as f64 / 1e3,
        each(report.client.cpu_user_ns),
        each(report.client.cpu_sys_ns)
    );
    table(&mut out, report);
    if let Some(worst) = report.intervals.iter().max_by_key(|second| (second.p99, second.failed))
        && report.intervals.len() > 1
    {
        let _ = writeln!(
            out,
            "worst     second {}: {} ok, {} failed, p50 {} p99 {} max {} ms",
            worst.t_ns / 1_000_000_000,
            worst.ok,
            worst.failed,
            ms(worst.p50),
            ms(worst.p99),
            ms(worst.max)
        );
    }
    if let Some(baseline) = &report.baseline {
        out.push_str(&comparison(baseline, paint));
    }
    for slo in &report.slo {
        let verdict = if slo.pass { paint.good("met") } else { paint.bad("MISSED") };
        let _ = writeln!(
            out,
            "slo       {} {verdict} ({})",
            slo.expr,
            slo::parse(&slo.expr).map_or_else(|_| number(slo.value), |parsed| parsed[0].shown(slo.value))
        );
    }
    out
}

/// The steps of a sweep, one a line.
fn steps(out: &mut String, report: &Report) {
    let _ = writeln!(out, "  rate asked    answered      p50      p99    p99.9   errors  (ms)");
    for step in &report.runs {
        let outcome = match (step.verdict, step.slo_pass) {
            (Verdict::Invalid, _) => "INVALID",
            (Verdict::Valid, Some(false)) => "missed",
            (Verdict::Valid, _) => "met",
        };
        let _ = writeln!(
            out,
            "  {:>10.0} {:>11.0} {:>8} {:>8} {:>8} {:>8}  {outcome}",
            step.target_rate.unwrap_or(0.0),
            step.rate,
            ms(step.p50),
            ms(step.p99),
            ms(step.p99_9),
            step.bad
        );
    }
}

fn rate(out: &mut String, report: &Report) {
    let rate = &report.rate;
    let kind = match report.config.verify {
        crate::run::Verify::Body => "verified",
        crate::run::Verify::Status => "status-checked",
        crate::run::Verify::None => "unverified",
    };
    let _ = write!(out, "rate      {:.0} {kind} answers/s in {}", rate.achieved, seconds(report.elapsed_ns));
    if let Some(target) = rate.target {
        let _ = write!(out, ", {target:.0}/s asked for");
    }
    out.push('\n');
    if report.runs.len() > 1 && report.config.mode == "run" {
        let _ = write!(out, "runs      {}, mean {:.0}/s", report.runs.len(), rate.mean);
        if let Some(half) = rate.ci95 {
            let _ = write!(out, " +- {half:.0} (95 %)");
        }
        let _ = writeln!(out, "{}", if report.runs.len() < 5 { ", indicative: fewer than 5" } else { "" });
    }
}

/// Seven digits at most, whatever the size.
pub fn number(value: f64) -> String {
    let text = if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

pub fn comparison(comparison: &Comparison, paint: Paint) -> String {
    let mut out =
        format!("compare   with {}, noise below {:.1} %\n", comparison.base, comparison.noise * 100.0);
    for metric in &comparison.metrics {
        let outcome = match metric.outcome {
            Change::Same => "no difference".to_owned(),
            Change::Better => paint.good("better"),
            Change::Worse => paint.bad("worse"),
            Change::Unknown => "too few runs to tell".to_owned(),
        };
        let p = metric.p.map_or(String::new(), |p| format!(", p = {p:.4}"));
        let _ = writeln!(
            out,
            "  {:<20} {:>12} -> {:>12}  {:>+7.2} %{p}  {outcome}{}",
            metric.name,
            number(metric.base),
            number(metric.new),
            metric.change * 100.0,
            if metric.decides { "" } else { " (for information)" }
        );
    }
    let verdict = if comparison.regression { paint.bad("REGRESSION") } else { paint.good("no regression") };
    let _ = writeln!(out, "          {verdict}");
    out
}
