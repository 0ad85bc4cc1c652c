//! What the tool costs, whether its rates are right and what its comparisons are worth, measured:
//! `cargo bench -p meshkv-stress --bench proof -- [cost] [agreement] [comparisons] [--rounds 7] [--seconds 5]
//! [--trials 20] [--requests 500] [--runs N]`.
//!
//! Cost: CPU time a request against wrk's, in turns, on the same nginx; wrk asks for one fixed URL, this tool for a
//! new key each time, and compares every body. In a closed loop over loopback the slower side of the two decides the
//! rate, and beside an nginx that only returns a constant that is wrk: it changes what it waits for twice a request
//! (epoll_ctl) and keeps its core busy all the time. A client that spends less gets more answers there, which is no
//! disagreement about the truth. So the rates of that part are told and not judged.
//!
//! Agreement is judged where the server decides the rate and the client has time left, at equal numbers of
//! connections: an nginx that works some 20 us on a request, on a core of its own; and a server that waits 10 ms
//! before each answer, whose rate is known beforehand (connections by delay) and which counts what it is asked, so
//! that neither tool is taken at its word.
//!
//! Comparisons: runs of the same server, which must not be called different; and of a server that takes 5 % longer,
//! which must. How many runs a side it takes depends on how much they scatter on this machine: that is measured first,
//! and the runs that it calls for are made, seven at least.
//!
//! Started by `cargo test` it does the same with tiny inputs and judges nothing but that it works. With
//! `PLAY_SERVER` it is the server of the comparisons.

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::resource::{UsageWho, getrusage};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Temporary, command, n, temporary};

/// How much of everything.
struct Size {
    rounds: u32,
    seconds: u32,
    /// A/A trials; half as many of the planted slow-down.
    trials: u32,
    /// In each run.
    requests: u32,
    /// Of a side; 0: as many as the scatter calls for.
    runs: u32,
}

fn main() {
    if let Ok(spin) = std::env::var("PLAY_SERVER") {
        return play(spin.parse().expect("nanoseconds"));
    }
    let mut size = match std::env::args().any(|argument| argument == "--bench") {
        true => Size { rounds: 7, seconds: 5, trials: 20, requests: 500, runs: 0 },
        false => Size { rounds: 1, seconds: 1, trials: 1, requests: 40, runs: RUNS_MIN },
    };
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> u32 {
            let text = arguments.next().unwrap_or_default();
            text.parse().ok().filter(|number| *number > 0).unwrap_or_else(|| panic!("{argument}: a number"))
        };
        match argument.as_str() {
            "--rounds" => size.rounds = number(),
            "--seconds" => size.seconds = number(),
            "--trials" => size.trials = number(),
            "--requests" => size.requests = number(),
            "--runs" => size.runs = number(),
            _ if argument.starts_with('-') => {}
            _ => names.push(argument),
        }
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|given| given == name);
    if wanted("cost") {
        cost(&size);
    }
    if wanted("agreement") {
        agreement(&size);
    }
    if wanted("comparisons") {
        comparisons(&size);
    }
}

/// Takes `spin` nanoseconds of CPU for each request, whatever else the machine does.
fn play(spin: u64) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("http://{}", listener.local_addr().expect("bound"));
    let spin = Duration::from_nanos(spin);
    support::accept(&listener, &std::sync::Arc::default(), move |_, request| {
        let begun = Instant::now();
        while begun.elapsed() < spin {
            std::hint::spin_loop();
        }
        Some(support::right(request))
    });
}

/// Ends with the benchmark.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.0.wait();
    }
}

/// CPU time of children that have ended, in microseconds.
fn cpu_of_children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("known");
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    micros(usage.user_time()) + micros(usage.system_time())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One tool's run.
struct Measured {
    requests: f64,
    rate: f64,
    /// Microseconds of the client's CPU a request.
    cpu_us: f64,
    /// The part of a core that the client used.
    busy: f64,
}

/// On a core of its own, or wherever the system likes.
fn pinned(core: Option<&str>, program: &std::ffi::OsStr) -> Command {
    let Some(core) = core else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// What a client spent while it ran.
fn watched(run: impl FnOnce() -> (f64, f64)) -> Measured {
    let (cpu_us, begun) = (cpu_of_children(), Instant::now());
    let (requests, rate) = run();
    let cpu_us = cpu_of_children() - cpu_us;
    let busy = cpu_us / 1e6 / begun.elapsed().as_secs_f64();
    Measured { requests, rate, cpu_us: cpu_us / requests, busy }
}

fn wrk(url: &str, core: Option<&str>, seconds: u32) -> Measured {
    watched(|| {
        let url = format!("{url}/set?k=stress:12345&v=value:12345");
        let mut command = pinned(core, "wrk".as_ref());
        let output = command.args(["-t1", "-c32", "-d", &seconds.to_string(), &url]).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let before = |word: &str| words[words.iter().position(|known| *known == word)? - 1].parse().ok();
        let requests: f64 = before("requests").unwrap_or_else(|| panic!("{text}"));
        let rate = text.rsplit("Requests/sec:").next().and_then(|rest| rest.split_whitespace().next());
        (requests, rate.and_then(|rate| rate.parse().ok()).unwrap_or_else(|| panic!("{text}")))
    })
}

fn ours(url: &str, core: Option<&str>, seconds: u32) -> Measured {
    watched(|| {
        let json = temporary("json");
        let plain = command();
        let mut command = pinned(core, plain.get_program());
        for (name, _) in plain.get_envs() {
            command.env_remove(name);
        }
        command.args(["-t", "1", "-c", "32", "-d", &seconds.to_string(), "--warmup", "0"]);
        let status =
            command.args(["--keys", "100m", "-q", "--json", json.path(), url]).status().expect("runs");
        let report = read(&json);
        assert_eq!(status.code(), Some(0), "{}", report["counts"]);
        let rate = report["rate"]["achieved"].as_f64().expect("a number");
        (n(&report, "/counts/sent") as f64, rate)
    })
}

fn has_wrk() -> bool {
    let found = Command::new("wrk").arg("-v").output().is_ok();
    if !found {
        println!("SKIPPED: wrk is not installed; nothing is compared with it");
    }
    found
}

/// Several rounds of both, and the ratios of this tool to wrk within a round.
struct Rounds(Vec<(Measured, Measured)>);

impl Rounds {
    fn of(&self, figure: impl Fn(&Measured) -> f64) -> (f64, f64, f64, f64, f64) {
        let ratios = || self.0.iter().map(|(wrk, ours)| figure(ours) / figure(wrk));
        let (low, high) = (ratios().fold(f64::MAX, f64::min), ratios().fold(0.0, f64::max));
        let wrk = median(self.0.iter().map(|(wrk, _)| figure(wrk)).collect());
        let ours = median(self.0.iter().map(|(_, ours)| figure(ours)).collect());
        (wrk, ours, median(ratios().collect()), low, high)
    }

    fn tell(&self, what: &str, figure: impl Fn(&Measured) -> f64, aim: &str) {
        let (wrk, ours, ratio, low, high) = self.of(figure);
        println!(
            "  {what:<20} wrk {wrk:>9.2}   meshkv-stress {ours:>9.2}   ratio {ratio:.3} ({low:.3} to {high:.3}){aim}"
        );
    }
}

fn cost(size: &Size) {
    let answer = "location /set { return 200 '{\"success\":true}'; }";
    let Some(nginx) = support::nginx(answer, u64::from(u32::MAX)) else { return };
    if !has_wrk() {
        return;
    }
    let seconds = size.seconds;
    let round = |_| (wrk(&nginx.url, None, seconds), ours(&nginx.url, None, seconds));
    let rounds = Rounds((0..size.rounds).map(round).collect());
    println!(
        "cost: nginx returns a constant, 32 connections, one thread, medians of {} rounds of {seconds} s in turns",
        size.rounds
    );
    rounds.tell("CPU a request, us", |one| one.cpu_us, " (aim: at most 1.25)");
    rounds.tell("busy, of a core", |one| one.busy, "");
    rounds.tell("requests a second", |one| one.rate, " (the client decides: not judged)");
}

/// What the server with a delay waits before each answer.
const DELAY: Duration = Duration::from_millis(10);

fn agreement(size: &Size) {
    if !has_wrk() {
        return;
    }
    waiting(size);
    working(size);
}

/// A server that waits: connections by delay is what it can do, however little a client costs.
fn waiting(size: &Size) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let counted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&counted);
    std::thread::spawn(move || {
        support::accept(&listener, &counter, |_, request| {
            std::thread::sleep(DELAY);
            Some(support::right(request))
        });
    });
    let seconds = size.seconds;
    let mut off = Vec::new();
    let mut checked = |measure: &dyn Fn() -> Measured| {
        let before = counted.load(Ordering::SeqCst);
        let measured = measure();
        // What was under way at the end: wrk leaves it, and it may still reach the server.
        std::thread::sleep(DELAY * 3);
        let asked = (counted.load(Ordering::SeqCst) - before) as f64;
        off.push((asked - measured.requests).abs());
        assert!(measured.requests <= asked, "{} answers of {asked} requests", measured.requests);
        measured
    };
    let round = |_| (checked(&|| wrk(&url, None, seconds)), checked(&|| ours(&url, None, seconds)));
    let rounds = Rounds((0..size.rounds).map(round).collect());
    let known = 32.0 / DELAY.as_secs_f64();
    println!(
        "agreement: the server waits {} ms, 32 connections (at most {known:.0}/s), {} rounds of {seconds} s in turns",
        DELAY.as_millis(),
        size.rounds
    );
    rounds.tell("requests a second", |one| one.rate, " (aim: 0.95 to 1.05)");
    rounds.tell("busy, of a core", |one| one.busy, "");
    let off = off.into_iter().fold(0.0, f64::max);
    println!(
        "  requests that the server counted and the tool did not: at most {off} (32 are under way at the end)"
    );
}

/// A server that works: it has a core of its own, is busy all the time, and decides.
fn working(size: &Size) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 || Command::new("taskset").arg("-V").output().is_err() {
        println!("SKIPPED: no second core or no taskset; rates beside a server that works are not compared");
        return;
    }
    // Some twenty microseconds: texts put together from each other.
    let work: String = (0..80).map(|at| format!("set $a{} \"$a{at}$uri\"; ", at + 1)).collect();
    let answer = format!("location /set {{ set $a0 \"\"; {work} return 200 '{{\"success\":true}}'; }}");
    let Some(nginx) = support::nginx(&answer, u64::from(u32::MAX)) else { return };
    let pid = nginx.pid().to_string();
    let moved = Command::new("taskset").args(["-p", "-c", "0", &pid]).stdout(Stdio::null()).status();
    assert!(moved.expect("runs").success(), "nginx cannot be given a core");
    let server_ns = || -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("nginx runs");
        text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number")
    };
    let seconds = size.seconds;
    let mut busy = Vec::new();
    let mut checked = |measure: &dyn Fn() -> Measured| {
        let (before, begun) = (server_ns(), Instant::now());
        let measured = measure();
        busy.push((server_ns() - before) / begun.elapsed().as_nanos() as f64);
        measured
    };
    let core = Some("1");
    let round =
        |_| (checked(&|| wrk(&nginx.url, core, seconds)), checked(&|| ours(&nginx.url, core, seconds)));
    let rounds = Rounds((0..size.rounds).map(round).collect());
    println!(
        "agreement: nginx works for each answer, on a core of its own, 32 connections, {} rounds of {seconds} s in turns",
        size.rounds
    );
    rounds.tell("requests a second", |one| one.rate, " (aim: 0.95 to 1.05)");
    rounds.tell("busy, of a core", |one| one.busy, "");
    println!("  nginx used {:.2} of its core, and other programs may have used it too", median(busy));
}

fn read(json: &Temporary) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(&json.0).expect("written")).expect("JSON")
}

fn server(spin_ns: u64) -> (Process, String) {
    let mut child = Command::new(std::env::current_exe().expect("known"))
        .env("PLAY_SERVER", spin_ns.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("an address");
    (Process(child), line.trim().to_owned())
}

/// Runs of a side, at least and at most.
const RUNS_MIN: u32 = 7;
const RUNS_MAX: u32 = 60;
/// Runs from which the scatter is taken.
const PILOT: u32 = 40;

/// Runs of a side that find a difference of `effect` in 99 of 100 trials, where single runs scatter by `scatter`, both
/// relative to the mean: 2 ((3.02 + 2.33) scatter ÷ effect)², with the normal quantiles of the level of `compare`
/// (0.0025, two-sided) and of 0.99, and two more for the scatter being known from the runs alone.
fn runs_for(effect: f64, scatter: f64) -> u32 {
    let runs = 2.0 * ((3.02 + 2.33) * scatter / effect).powi(2);
    (runs.ceil() as u32 + 2).clamp(RUNS_MIN, RUNS_MAX)
}

/// One run, and how many requests a second it came to.
fn measure(url: &str, requests: u32) -> (Temporary, f64) {
    let json = temporary("json");
    let requests = requests.to_string();
    let arguments = ["-t", "1", "-c", "1", "-n", &requests, "-q", "--json", json.path(), url];
    let status = command().args(arguments).status().expect("runs");
    let report = read(&json);
    assert_eq!(status.code(), Some(0), "{}", report["counts"]);
    let rate = report["rate"]["mean"].as_f64().expect("a number");
    (json, rate)
}

/// Whether two servers are told apart by their rates, and the line that says so. Their runs alternate, and so does
/// which of them comes first: what slows the machine for longer than a run slows both.
fn trial(base: &str, new: &str, requests: u32, runs: u32) -> (bool, String) {
    let (mut bases, mut news) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let mut measure_base = || bases.push(measure(base, requests).0);
        if run % 2 == 0 {
            measure_base();
            news.push(measure(new, requests).0);
        } else {
            news.push(measure(new, requests).0);
            measure_base();
        }
    }
    let list = |files: &[Temporary]| files.iter().map(Temporary::path).collect::<Vec<_>>().join(",");
    let output = command().args(["compare", &list(&bases), &list(&news)]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("rate, 1/s")).unwrap_or_else(|| {
        panic!("{text}{}", String::from_utf8_lossy(&output.stderr));
    });
    (!line.contains("no difference"), line.trim().to_owned())
}

fn comparisons(size: &Size) {
    const SPIN_NS: u64 = 200_000;
    let (same_trials, slow_trials, requests) = (size.trials, size.trials.div_ceil(2), size.requests);
    let begun = Instant::now();
    let (_same, same_url) = server(SPIN_NS);
    // A second process of the same program: what differs between two of them by chance is part of the question.
    let (_again, again_url) = server(SPIN_NS);
    let rates: Vec<f64> =
        (0..if size.runs == 0 { PILOT } else { RUNS_MIN }).map(|_| measure(&same_url, requests).1).collect();
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (rates.len() - 1) as f64;
    let scatter = variance.sqrt() / mean;
    let runs = if size.runs == 0 { runs_for(0.05, scatter) } else { size.runs };
    println!(
        "compare: runs of {requests} requests scatter by {:.1} % here, {} of them; {runs} runs a side",
        scatter * 100.0,
        rates.len()
    );
    let rate = median(rates);
    // 5 % of all that a request takes, the way to the server and back included.
    let (_slow, slow_url) = server(SPIN_NS + (0.05 * 1e9 / rate) as u64);
    let (mut different, mut found) = (0, 0);
    for _ in 0..same_trials {
        let (differs, line) = trial(&same_url, &again_url, requests, runs);
        different += u32::from(differs);
        println!("  same      {line}");
    }
    for _ in 0..slow_trials {
        let (differs, line) = trial(&same_url, &slow_url, requests, runs);
        found += u32::from(differs && line.ends_with("worse"));
        println!("  5 % more  {line}");
    }
    println!(
        "compare, {runs} runs of {requests} requests a side, alternating, {:.0} s for all:",
        begun.elapsed().as_secs_f64()
    );
    println!("  the same server called different: {different} of {same_trials} (aim: 0)");
    println!("  5 % more time a request found: {found} of {slow_trials} (aim: all)");
}
