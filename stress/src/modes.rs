//! What each mode does, from the options to the exit code.

use crate::compare::{compare, pool};
use crate::machine::{Host, now_rfc3339, raise_descriptor_limit};
use crate::options::{Cli, Files, Mode, Options};
use crate::progress::Shower;
use crate::report::build::{self, Frame, Part, counts};
use crate::report::{self, H, Report, TargetInfo, Verdict, files, text};
use crate::run::{Pace, Plan, run};
use crate::slo::{self, Slo};
use crate::target::Target;
use crate::{compat, lag, status, sweep};
use clap::ColorChoice;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Exit codes.
pub const ERRORS: u8 = 1;
pub const USAGE: u8 = 2;
pub const MISSED: u8 = 3;
pub const INVALID: u8 = 4;
pub const INTERRUPTED: u8 = 130;

/// An error for people, with its exit code.
pub type Failed = (u8, String);

fn usage(message: String) -> Failed {
    (USAGE, message)
}

fn errors(message: String) -> Failed {
    (ERRORS, message)
}

/// # Errors
/// What kept the mode from coming to a report.
pub fn main(cli: Cli) -> Result<u8, Failed> {
    match cli.mode {
        None => execute("run", &cli.options),
        Some(Mode::Run(options)) => execute("run", &options),
        Some(Mode::Load(options)) => execute("load", &options.each_key_once("set").map_err(usage)?),
        Some(Mode::Verify(options)) => execute("verify", &options.each_key_once("get").map_err(usage)?),
        Some(Mode::Sweep { from, step, options }) => sweeping(from, step, *options),
        Some(Mode::Lag(options)) => lagging(&options),
        Some(Mode::Compare { base, new, noise, color }) => {
            let read = |files: &Files| -> Result<Report, Failed> {
                let reports: Result<Vec<Report>, _> = files.0.iter().map(|path| files::read(path)).collect();
                pool(reports.map_err(usage)?).map_err(usage)
            };
            let (old, new) = (read(&base)?, read(&new)?);
            let found = compare(&old, &base.to_string(), &new, noise).map_err(usage)?;
            warn_of_comparison(&old, &new);
            print(&text::comparison(&found, paint(color)));
            Ok(if found.regression { MISSED } else { 0 })
        }
        Some(Mode::Plot { file, html, svg, baseline }) => {
            let report = files::read(&file).map_err(usage)?;
            let base = baseline.map(|path| files::read(&path)).transpose().map_err(usage)?;
            if html.is_none() && svg.is_none() {
                print(&report::svg::file(&report, base.as_ref()));
            }
            for (path, drawn) in drawings(&html, &svg, &report, base.as_ref()) {
                std::fs::write(&path, drawn)
                    .map_err(|error| errors(format!("cannot write {}: {error}", path.display())))?;
            }
            Ok(0)
        }
        Some(Mode::Show { file, color }) => {
            let report = files::read(&file).map_err(usage)?;
            print(&text::text(&report, paint(color)));
            Ok(exit_code(&report))
        }
    }
}

/// The pictures that were asked for, and where they go.
fn drawings(
    html: &Option<PathBuf>,
    svg: &Option<PathBuf>,
    report: &Report,
    baseline: Option<&Report>,
) -> Vec<(PathBuf, String)> {
    let html = html.iter().map(|path| (path.clone(), report::html::page(report, baseline)));
    let svg = svg.iter().map(|path| (path.clone(), report::svg::file(report, baseline)));
    html.chain(svg).collect()
}

/// A closed pipe (`| head`) is no reason to fail.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn paint(color: ColorChoice) -> text::Paint {
    text::Paint(match color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            std::io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    })
}

/// What surrounds every run: descriptors, signals, the state of the machine and of the servers before it; and what
/// it is judged by, read before anything is sent.
struct Stage {
    plan: Plan,
    interrupted: Arc<AtomicBool>,
    frame: Frame,
    slos: Vec<Slo>,
    baseline: Option<(String, Report)>,
}

fn stage(mode: &str, options: &Options) -> Result<Stage, Failed> {
    let nofile = raise_descriptor_limit();
    let (plan, warning) = options.plan(nofile).map_err(usage)?;
    let slos = options.slo.as_deref().map_or(Ok(Vec::new()), slo::parse).map_err(usage)?;
    let baseline = match &options.baseline {
        None => None,
        Some(path) => Some((path.display().to_string(), files::read(path).map_err(usage)?)),
    };
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            INTERRUPTED.into(),
            Arc::clone(&interrupted),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
        .map_err(|error| errors(format!("cannot watch for signals: {error}")))?;
    }
    let target = plan.targets.iter().map(|target| info(target, options)).collect();
    let frame = Frame {
        config: options.config(mode, &plan),
        host: Host::look(nofile),
        target,
        started: now_rfc3339(),
        requests: plan.requests,
    };
    Ok(Stage { plan, interrupted, frame, slos, baseline })
}

/// A server that is asked by a template is not asked for what only meshkv has.
fn info(target: &Target, options: &Options) -> TargetInfo {
    let status = if options.template.is_some() { None } else { status::ask(target) };
    TargetInfo {
        url: target.url.clone(),
        version: status.as_ref().map(|status| status.version.clone()),
        keys: status.map(|status| status.keys),
        keys_after: None,
        counts: None,
    }
}

/// How many records the servers have after the run.
fn ask_again(frame: &mut Frame) {
    for info in frame.target.iter_mut().filter(|info| info.version.is_some()) {
        let status = Target::new(&info.url).ok().and_then(|target| status::ask(&target));
        info.keys_after = status.map(|status| status.keys);
    }
}

/// `run`, `load` and `verify`: one run, or some, or one for each server.
fn execute(mode: &str, options: &Options) -> Result<u8, Failed> {
    if options.arrival.is_some() && options.rate.is_none() {
        return Err(usage("--arrival needs --rate: without one, requests follow answers".to_owned()));
    }
    let Stage { mut plan, interrupted, mut frame, slos, baseline } = stage(mode, options)?;
    let mut shower = Shower::new(options, &plan);
    let mut parts = Vec::new();
    if options.compat {
        print(&compat::head(options));
    }
    // `verify` reads every key from every server: one after the other, so that each has its own counts.
    let of_each = mode == "verify";
    let all = plan.targets.clone();
    let rounds = if of_each { all.len() as u64 } else { options.runs };
    for round in 0..rounds {
        if of_each {
            plan.targets = vec![all[round as usize].clone()];
        }
        let outcome = run(&plan, &interrupted, |progress| shower.show(progress)).map_err(errors)?;
        if of_each {
            frame.target[round as usize].counts = Some(counts(&outcome.stats));
        }
        parts.push(Part::new(outcome, &plan));
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    shower.finish();
    ask_again(&mut frame);
    let mut report = build::report(frame, &parts);
    judge(&mut report, &slos, baseline.as_ref());
    conclude(options, &report, &parts, baseline.as_ref().map(|(_, base)| base))
}

/// Objectives and baseline. One that cannot be compared with is told as a reason, after a run that took its time.
fn judge(report: &mut Report, slos: &[Slo], baseline: Option<&(String, Report)>) {
    report.slo = slos.iter().map(|slo| slo.judge(report)).collect();
    if let Some((name, base)) = baseline {
        match compare(base, name, report, report.config.noise) {
            Ok(found) => report.baseline = Some(found),
            Err(message) => report.reasons.push(format!("not compared: {message}")),
        }
        warn_of_comparison(base, report);
    }
}

fn warn_of_comparison(base: &Report, new: &Report) {
    if base.host.cpu_model != new.host.cpu_model || base.host.cpus != new.host.cpus {
        eprintln!("warning: the two were measured on different machines");
    }
    if base.runs.len() < 5 || new.runs.len() < 5 {
        eprintln!("warning: indicative: fewer than 5 runs ({} and {})", base.runs.len(), new.runs.len());
    }
}

/// What a sweep holds its steps to when it is not told.
const SWEEP_SLO: &str = "p99<10ms,errors=0";

fn sweeping(from: f64, factor: f64, mut options: Options) -> Result<u8, Failed> {
    for (given, flag) in [
        (options.rate.is_some(), "--rate"),
        (options.runs > 1, "--runs"),
        (options.baseline.is_some(), "--baseline"),
        (options.compat, "--compat"),
    ] {
        if given {
            return Err(usage(format!("{flag} has no place in a sweep")));
        }
    }
    options.slo.get_or_insert(SWEEP_SLO.to_owned());
    options.duration.get_or_insert(Duration::from_secs(5));
    options.warmup.get_or_insert(Duration::from_secs(1));
    let Stage { mut plan, interrupted, mut frame, slos, .. } = stage("sweep", &options)?;
    let mut shower = Shower::new(&options, &plan);
    let mut steps: Vec<(Report, Part)> = Vec::new();
    let swept = sweep::sweep(from, factor, |rate, again| {
        plan.pace = Some(Pace { rate, arrival: options.arrival() });
        (frame.config.rate, frame.config.arrival) = (Some(rate), Some(options.arrival()));
        let outcome = run(&plan, &interrupted, |progress| shower.show(progress))?;
        let part = Part::new(outcome, &plan);
        let mut step = build::report(frame.clone(), std::slice::from_ref(&part));
        step.slo = slos.iter().map(|slo| slo.judge(&step)).collect();
        step.runs[0].slo_pass = Some(step.slo.iter().all(|slo| slo.pass));
        if again {
            steps.pop();
        }
        steps.push((step, part));
        let stop = interrupted.load(Ordering::Relaxed);
        Ok(steps.last().map(|(step, _)| step.runs[0].clone()).filter(|_| !stop))
    })
    .map_err(errors)?;
    shower.finish();
    let runs: Vec<_> = steps.iter().map(|(step, _)| step.runs[0].clone()).collect();
    // Without a knee, the first step shows what is wrong.
    let (mut report, part) = steps.swap_remove(swept.knee.unwrap_or(0));
    report.runs = runs;
    report.interrupted = interrupted.load(Ordering::Relaxed);
    let knee = match swept.knee {
        Some(number) => format!(
            "{:.0}/s is the greatest rate that met the objectives",
            report.runs[number].target_rate.unwrap_or(0.0)
        ),
        None => "none, the first step did not meet the objectives".to_owned(),
    };
    report.reasons.push(format!("knee: {knee}; what follows is of that step"));
    if swept.client_limited {
        report.reasons.push(
            "the steps beyond were INVALID: the limit may be the client's, not the server's".to_owned(),
        );
    }
    let code = conclude(&options, &report, &[part], None)?;
    Ok(match (code, swept.knee) {
        // A step that breaks is what the sweep was looking for, but not the first one.
        (ERRORS, None) => MISSED,
        (0, Some(_)) if swept.client_limited => INVALID,
        (code, _) => code,
    })
}

fn lagging(options: &Options) -> Result<u8, Failed> {
    for (given, flag) in [
        (options.runs > 1, "--runs"),
        (options.baseline.is_some(), "--baseline"),
        (options.template.is_some(), "--template"),
        (options.compat, "--compat"),
    ] {
        if given {
            return Err(usage(format!("{flag} has no place here: one write at a time is timed")));
        }
    }
    let Stage { plan, interrupted, mut frame, slos, .. } = stage("lag", options)?;
    if plan.targets.len() < 2 {
        return Err(usage("lag needs a server to write to and one or more to read from".to_owned()));
    }
    let found = lag::run(&plan, options, &interrupted).map_err(errors)?;
    // One write at a time is neither kind of loop.
    (frame.config.rate, frame.config.arrival) = (None, None);
    ask_again(&mut frame);
    let part = Part { outcome: found.outcome, elapsed_ns: found.elapsed_ns, target_rate: None };
    let mut report = build::report(frame, std::slice::from_ref(&part));
    report.latency.service.insert("get".to_owned(), H::of(&found.reads));
    report.latency.replication_lag = Some(H::of(&found.lag));
    judge(&mut report, &slos, None);
    conclude(options, &report, &[part], None)
}

/// Prints, writes the files, and says how it ended.
fn conclude(
    options: &Options,
    report: &Report,
    parts: &[Part],
    baseline: Option<&Report>,
) -> Result<u8, Failed> {
    let told = !options.quiet && !options.compat;
    let mut out = match (options.compat, options.quiet) {
        (true, _) => compat::report(report),
        (false, true) => String::new(),
        (false, false) => text::text(report, paint(options.color)),
    };
    let mut write = |path: &Path, make: &dyn Fn(&Path) -> std::io::Result<()>| {
        make(path).map_err(|error| errors(format!("cannot write {}: {error}", path.display())))?;
        if told {
            out.push_str(&format!("written   {}\n", path.display()));
        }
        Ok(())
    };
    let mut written = Ok(());
    if let Some(path) = &options.json {
        written = written.and(write(path, &|path| files::json(report, path)));
    }
    if let Some(path) = &options.csv {
        written = written.and(write(path, &|path| files::csv(report, path)));
    }
    if let Some(path) = &options.hdr_log {
        written = written.and(write(path, &|path| files::hdr_log(report, parts, path)));
    }
    for (path, drawn) in drawings(&options.html, &options.svg, report, baseline) {
        written = written.and(write(&path, &|path| std::fs::write(path, &drawn)));
    }
    // The report is told even when a file could not be written.
    print(&out);
    written?;
    Ok(exit_code(report))
}

fn exit_code(report: &Report) -> u8 {
    let missed = report.slo.iter().any(|slo| !slo.pass);
    if report.interrupted {
        INTERRUPTED
    } else if report.verdict == Verdict::Invalid && report.counts.sent > 0 {
        INVALID
    } else if report.counts.bad() > 0 || report.counts.ok == 0 || never_sent(report) {
        ERRORS
    } else if missed || report.baseline.as_ref().is_some_and(|baseline| baseline.regression) {
        MISSED
    } else {
        0
    }
}

/// A run that gave up before all of its requests were sent.
fn never_sent(report: &Report) -> bool {
    let runs = report.runs.len() as u64;
    report.config.requests.is_some_and(|each| report.counts.sent < each * runs)
}
