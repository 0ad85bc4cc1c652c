//! What each mode does, from the options to the exit code.

use crate::machine::{Host, now_rfc3339, raise_descriptor_limit};
use crate::options::{Cli, Mode, Options};
use crate::progress::Shower;
use crate::report::build::{Frame, Part, counts, report};
use crate::report::{Report, TargetInfo, Verdict, files, text};
use crate::run::{Plan, run};
use crate::status;
use crate::target::Target;
use clap::ColorChoice;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit codes.
pub const ERRORS: u8 = 1;
pub const USAGE: u8 = 2;
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
        Some(Mode::Show { file, color }) => {
            let report = files::read(&file).map_err(usage)?;
            print(&text::text(&report, paint(color)));
            Ok(exit_code(&report))
        }
    }
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

/// What surrounds every run: descriptors, signals, the state of the machine and of the servers before it.
struct Stage {
    plan: Plan,
    interrupted: Arc<AtomicBool>,
    frame: Frame,
}

fn stage(mode: &str, options: &Options) -> Result<Stage, Failed> {
    let nofile = raise_descriptor_limit();
    let (plan, warning) = options.plan(nofile).map_err(usage)?;
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
    Ok(Stage { plan, interrupted, frame })
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

/// `run`, `load` and `verify`: one run, or one for each server.
fn execute(mode: &str, options: &Options) -> Result<u8, Failed> {
    let Stage { mut plan, interrupted, mut frame } = stage(mode, options)?;
    let mut shower = Shower::new(options, &plan);
    let mut parts = Vec::new();
    if mode == "verify" {
        // Every key from every server: one after the other, so that each has its own counts.
        for (number, target) in std::mem::take(&mut plan.targets).into_iter().enumerate() {
            plan.targets = vec![target];
            let outcome = run(&plan, &interrupted, |progress| shower.show(progress)).map_err(errors)?;
            frame.target[number].counts = Some(counts(&outcome.stats));
            parts.push(Part::new(outcome, &plan));
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
        }
    } else {
        let outcome = run(&plan, &interrupted, |progress| shower.show(progress)).map_err(errors)?;
        parts.push(Part::new(outcome, &plan));
    }
    shower.finish();
    for info in &mut frame.target {
        if info.version.is_some() {
            info.keys_after =
                Target::new(&info.url).ok().and_then(|target| status::ask(&target)).map(|s| s.keys);
        }
    }
    let report = report(frame, &parts);
    conclude(options, &report, &parts)
}

/// Prints, writes the files, and says how it ended.
fn conclude(options: &Options, report: &Report, parts: &[Part]) -> Result<u8, Failed> {
    let mut out = if options.quiet { String::new() } else { text::text(report, paint(options.color)) };
    let mut write = |path: &Option<std::path::PathBuf>, make: &dyn Fn(&Path) -> std::io::Result<()>| {
        let Some(path) = path else { return Ok(()) };
        make(path).map_err(|error| errors(format!("cannot write {}: {error}", path.display())))?;
        if !options.quiet {
            out.push_str(&format!("written   {}\n", path.display()));
        }
        Ok(())
    };
    let written = write(&options.json, &|path| files::json(report, path))
        .and_then(|()| write(&options.csv, &|path| files::csv(report, path)))
        .and_then(|()| write(&options.hdr_log, &|path| files::hdr_log(report, parts, path)));
    // The report is told even when a file could not be written.
    print(&out);
    written?;
    Ok(exit_code(report))
}

fn exit_code(report: &Report) -> u8 {
    if report.interrupted {
        INTERRUPTED
    } else if report.verdict == Verdict::Invalid && report.counts.sent > 0 {
        INVALID
    } else if report.counts.bad() > 0 || report.counts.ok == 0 || never_sent(report) {
        ERRORS
    } else {
        0
    }
}

/// A run that gave up before all of its requests were sent.
fn never_sent(report: &Report) -> bool {
    let runs = report.runs.len() as u64;
    report.config.requests.is_some_and(|each| report.counts.sent < each * runs)
}
