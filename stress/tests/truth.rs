//! Goal: the numbers are true where other tools lie. Method: the real binary against a server of this test's own
//! in another process, which is frozen or killed while it runs; the same for the client, which is slowed down by
//! stopping it nine tenths of the time. What must come out is computed from what was done.
//!
//! This file is its own main: started with `PLAY_SERVER` it is the server.

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use support::{Temporary, balanced, command, n, right, temporary};

fn main() {
    if std::env::var_os("PLAY_SERVER").is_some() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        println!("http://{}", listener.local_addr().expect("bound"));
        support::accept(&listener, &Arc::new(AtomicU64::new(0)), |_, request| Some(right(request)));
        return;
    }
    // The usual arguments of a test binary: a name to choose by, and lists of names for tools that ask.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let checks: [(&str, fn()); 3] = [
        ("a_frozen_server_shows_as_theory_says", a_frozen_server_shows_as_theory_says),
        ("a_squeezed_client_ends_invalid", a_squeezed_client_ends_invalid),
        (
            "a_node_killed_during_verify_gives_classed_errors",
            a_node_killed_during_verify_gives_classed_errors,
        ),
    ];
    let wanted = |name: &str| {
        let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
    };
    for (name, check) in checks.iter().filter(|(name, _)| wanted(name)) {
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{name}: test");
        } else {
            check();
            println!("test {name} ... ok");
        }
    }
}

/// A process that does not outlive the test.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("it is there");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server() -> (Process, String) {
    let mut child = Command::new(std::env::current_exe().expect("known"))
        .env("PLAY_SERVER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("tells its address");
    (Process(child), line.trim().to_owned())
}

fn start(arguments: &[&str]) -> Child {
    command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs")
}

fn end(child: Child, json: &Temporary) -> (Option<i32>, String, serde_json::Value) {
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json = std::fs::read_to_string(&json.0).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code(), text, serde_json::from_str(&json).expect("JSON"))
}

/// A server that lies still for F seconds of D, under arrivals that do not wait for it: the arrival at x seconds
/// into the freeze is answered F - x later, and the rest nearly at once. So the slowest part q of all arrivals
/// begins at F - q * D. A closed loop would have sent nothing meanwhile and shown nothing of it at p99.
fn a_frozen_server_shows_as_theory_says() {
    const RUN: f64 = 6.0;
    let json = temporary("json");
    let (server, url) = server();
    let arguments =
        ["-d", "6", "--warmup", "1", "--rate", "5000", "-c", "100", "-t", "2", "--json", json.path(), &url];
    let client = start(&arguments);
    std::thread::sleep(Duration::from_millis(3500));
    // The freeze begins and ends somewhere between the two readings around each signal.
    let before = Instant::now();
    server.signal(Signal::SIGSTOP);
    let stopped = before + before.elapsed() / 2;
    std::thread::sleep(Duration::from_millis(500));
    server.signal(Signal::SIGCONT);
    let freeze = stopped.elapsed().as_secs_f64();
    let (code, text, report) = end(client, &json);
    println!("frozen for {:.1} ms\n{text}", freeze * 1e3);
    assert!(matches!(code, Some(0 | 4)), "{text}");
    balanced(&report);
    let due = n(&report, "/counts/sent") + n(&report, "/counts/late");
    let met = freeze * 5000.0 / due as f64;
    assert!((0.075..0.095).contains(&met), "{:.2} % of the arrivals met the freeze", met * 100.0);
    for (quantile, name) in [(0.99, "p99"), (0.999, "p99_9")] {
        let theory = freeze - (1.0 - quantile) * RUN;
        let seen = n(&report, &format!("/latency/response/all/{name}")) as f64 / 1e9;
        println!("{name}: {:.1} ms, theory {:.1} ms", seen * 1e3, theory * 1e3);
        assert!((seen / theory - 1.0).abs() < 0.05, "{name} {seen}, theory {theory}: {text}");
    }
    // Of the two clocks only one can show it: of thousands of requests a hundred at most were under way.
    assert!(n(&report, "/latency/service/all/p95") < 100_000_000, "{text}");
}

/// A client that gets a tenth of a core at most cannot keep its schedule, and says so.
fn a_squeezed_client_ends_invalid() {
    let json = temporary("json");
    let (_server, url) = server();
    let arguments =
        ["-d", "3", "--warmup", "0", "--rate", "2000", "-c", "20", "-t", "1", "--json", json.path(), &url];
    let mut client = Process(start(&arguments));
    while client.0.try_wait().expect("a child").is_none() {
        client.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(18));
        client.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(2));
    }
    let status = client.0.wait().expect("ended");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json.0).expect("written")).expect("JSON");
    balanced(&report);
    println!("squeezed: {} {}", report["verdict"], report["reasons"]);
    assert_eq!(status.code(), Some(4), "{report}");
    assert_eq!(report["verdict"], "invalid");
    assert!(report["client"]["timely_ratio"].as_f64().expect("open loop") < 0.9, "{report}");
}

/// Two nodes; the second dies while its keys are read. The first one's counts stay clean.
fn a_node_killed_during_verify_gives_classed_errors() {
    let json = temporary("json");
    let (_first, first) = server();
    let (mut second, second_url) = server();
    // The script answers the gets of the whole run, so that the second node dies in the middle of its own.
    let arguments = [
        "verify",
        "-n",
        "300k",
        "-c",
        "8",
        "-t",
        "2",
        "--timeout",
        "1",
        "--json",
        json.path(),
        &first,
        &second_url,
    ];
    let client = start(&arguments);
    let begun = Instant::now();
    while !busy(&second) {
        assert!(begun.elapsed() < Duration::from_secs(120), "the second node was never asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    second.0.kill().expect("running");
    second.0.wait().expect("dead");
    let (code, text, report) = end(client, &json);
    println!("{text}");
    assert_eq!(code, Some(1), "{text}");
    balanced(&report);
    assert_eq!(n(&report, "/target/0/counts/ok"), 300_000, "{text}");
    assert_eq!(n(&report, "/target/0/counts/failed"), 0, "{text}");
    assert!(n(&report, "/target/1/counts/errors/reset") > 0, "{text}");
    assert!(n(&report, "/target/1/counts/errors/connect") > 0, "{text}");
    assert!(n(&report, "/target/1/counts/ok") > 0, "{text}");
    assert!(text.contains("requests were never sent"), "{text}");
}

/// Whether a server has used a few hundredths of a second of CPU: it is being asked.
fn busy(server: &Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.0.id())).expect("running");
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks > 3
}
