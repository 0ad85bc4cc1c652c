//! What the tool costs and what its comparisons are worth, measured: `cargo bench -p meshkv-stress --bench proof`.
//!
//! Cost: CPU time a request against wrk's, in turns, on the same nginx; wrk asks for one fixed URL, this tool for a
//! new key each time, and compares every body. Comparisons: two times seven runs of the same server, which must not
//! be called different; and of a server that takes 5 % longer, which must.
//!
//! Started by `cargo test` it does the same with tiny inputs and judges nothing but that it works. With
//! `PLAY_SERVER` it is the server of the comparisons.

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::resource::{UsageWho, getrusage};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Temporary, command, n, temporary};

fn main() {
    if let Ok(spin) = std::env::var("PLAY_SERVER") {
        return play(spin.parse().expect("nanoseconds"));
    }
    let full = std::env::args().any(|argument| argument == "--bench");
    // A name chooses one of the two.
    let wanted = |name: &str| {
        let mut names = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|argument| argument == name)
    };
    if wanted("cost") {
        cost(full);
    }
    if wanted("comparisons") {
        comparisons(full);
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

fn cost(full: bool) {
    let Some(nginx) =
        support::nginx("location /set { return 200 '{\"success\":true}'; }", u64::from(u32::MAX))
    else {
        return;
    };
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("SKIPPED: wrk is not installed; the cost of a request is not compared");
        return;
    }
    let (rounds, seconds) = if full { (7, "5") } else { (1, "1") };
    let (mut wrk, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = cpu_of_children();
        let url = format!("{}/set?k=stress:12345&v=value:12345", nginx.url);
        let output = Command::new("wrk").args(["-t1", "-c32", "-d", seconds, &url]).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let requests: f64 = words
            .iter()
            .position(|word| *word == "requests")
            .and_then(|at| words[at - 1].parse().ok())
            .unwrap_or_else(|| panic!("{text}"));
        let rate: f64 = text
            .rsplit("Requests/sec:")
            .next()
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("a rate");
        wrk.push(((cpu_of_children() - before) / requests, rate));
        let json = temporary("json");
        let before = cpu_of_children();
        let arguments = [
            "-t",
            "1",
            "-c",
            "32",
            "-d",
            seconds,
            "--warmup",
            "0",
            "--keys",
            "100m",
            "-q",
            "--json",
            json.path(),
            &nginx.url,
        ];
        let status = command().args(arguments).stdout(Stdio::null()).status().expect("runs");
        let cpu = cpu_of_children() - before;
        let report = read(&json);
        assert_eq!(status.code(), Some(0), "{}", report["counts"]);
        ours.push((
            cpu / n(&report, "/counts/sent") as f64,
            report["rate"]["achieved"].as_f64().expect("a number"),
        ));
    }
    let of = |list: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| median(list.iter().map(which).collect());
    let (wrk_cpu, our_cpu) = (of(&wrk, |one| one.0), of(&ours, |one| one.0));
    let (wrk_rate, our_rate) = (of(&wrk, |one| one.1), of(&ours, |one| one.1));
    println!(
        "against wrk on nginx, 32 connections, one thread, medians of {rounds} rounds of {seconds} s in turns"
    );
    println!(
        "  CPU a request, us    wrk {wrk_cpu:.2}   meshkv-stress {our_cpu:.2}   ratio {:.3} (aim: at most 1.25)",
        our_cpu / wrk_cpu
    );
    println!(
        "  requests a second    wrk {wrk_rate:.0}   meshkv-stress {our_rate:.0}   ratio {:.3} (aim: 0.95 to 1.05)",
        our_rate / wrk_rate
    );
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

/// Seven runs, and how many requests a second they came to.
fn measure(url: &str, requests: &str) -> (Temporary, f64) {
    let json = temporary("json");
    let arguments = ["-t", "1", "-c", "1", "-n", requests, "--runs", "7", "-q", "--json", json.path(), url];
    let status = command().args(arguments).status().expect("runs");
    let report = read(&json);
    assert_eq!(status.code(), Some(0), "{}", report["counts"]);
    let rate = report["rate"]["mean"].as_f64().expect("a number");
    (json, rate)
}

/// The verdict on the rate, and the line that gives it.
fn verdict(base: &Temporary, new: &Temporary) -> (bool, String) {
    let output = command().args(["compare", base.path(), new.path()]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("rate, 1/s")).unwrap_or_else(|| panic!("{text}"));
    (!line.contains("no difference"), line.trim().to_owned())
}

fn comparisons(full: bool) {
    const SPIN_NS: u64 = 200_000;
    let (same_trials, slow_trials, requests) = if full { (20, 10, "1000") } else { (1, 1, "40") };
    let (_same, same_url) = server(SPIN_NS);
    let (_, rate) = measure(&same_url, requests);
    // 5 % of all that a request takes, the way to the server and back included.
    let (_slow, slow_url) = server(SPIN_NS + (0.05 * 1e9 / rate) as u64);
    let mut different = 0;
    for _ in 0..same_trials {
        let ((base, _), (new, _)) = (measure(&same_url, requests), measure(&same_url, requests));
        let (differs, line) = verdict(&base, &new);
        different += u32::from(differs);
        println!("  same      {line}");
    }
    let mut found = 0;
    for _ in 0..slow_trials {
        let ((base, _), (new, _)) = (measure(&same_url, requests), measure(&slow_url, requests));
        let (differs, line) = verdict(&base, &new);
        found += u32::from(differs);
        println!("  5 % more  {line}");
    }
    println!("compare, 7 runs of {requests} requests a side:");
    println!("  the same server called different: {different} of {same_trials} (aim: 0)");
    println!("  5 % more time a request found: {found} of {slow_trials} (aim: all)");
}
