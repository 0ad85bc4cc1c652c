//! Goal: each mode does what it says, and comparisons and objectives decide rightly. Method: the real binary
//! against servers with a known capacity or delay, and reports that were changed by a known amount.

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Temporary, n, ok, report, right, run, serve, stress, temporary};

fn schema(report: &serde_json::Value) {
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../report.schema.json")).expect("JSON");
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let wrong: Vec<String> =
        validator.iter_errors(report).map(|error| format!("{}: {error}", error.instance_path)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Eight connections that are answered after 20 ms each can carry 400 a second and no more.
#[test]
fn a_sweep_finds_what_a_server_can_take() {
    let fixture = serve(|_, request| {
        std::thread::sleep(Duration::from_millis(20));
        Some(right(request))
    });
    let arguments = [
        "sweep",
        "--from",
        "100",
        "--step",
        "2",
        "-d",
        "0.5",
        "--warmup",
        "0",
        "--arrival",
        "constant",
        "--slo",
        "p90<150ms",
    ];
    // On a busy machine a send may be late, which makes a step of some hundred INVALID and the sweep end early.
    let mut attempts = 0;
    let (code, text, report, invalid) = loop {
        let (code, text, report) = report(&fixture.url, &arguments);
        let steps = report["runs"].as_array().expect("a list");
        let invalid = steps.iter().any(|step| step["verdict"] == "invalid" && step["slo_pass"] == true);
        attempts += 1;
        if !invalid || attempts == 4 {
            break (code, text, report, invalid);
        }
    };
    assert!(matches!(code, Some(0 | 1 | 3 | 4)), "{text}");
    schema(&report);
    let steps = report["runs"].as_array().expect("a list");
    let rate = |step: &serde_json::Value| step["target_rate"].as_f64().expect("a number");
    let met = steps.iter().filter(|step| step["slo_pass"] == true && step["verdict"] == "valid");
    let knee = met.map(rate).fold(0.0, f64::max);
    assert!(invalid || steps.iter().map(rate).fold(0.0, f64::max) > 400.0, "until it broke: {text}");
    // Half a second at 600 makes the last arrivals wait for a quarter of one: far over the objective.
    assert!(knee < 600.0, "knee {knee}: {text}");
    assert!(invalid || knee >= 200.0, "half of what it can take is no trouble: {text}");
    assert!(text.contains("knee: "), "{text}");
    assert!(knee == 0.0 || report["rate"]["target"].as_f64() == Some(knee), "{text}");
}

#[test]
fn a_sweep_whose_first_step_misses_says_so() {
    let fixture = serve(|_, request| Some(right(request)));
    let arguments = ["sweep", "--from", "50", "-d", "0.3", "--warmup", "0", "--slo", "p50<1ns"];
    let (code, text) = stress(&fixture.url, &arguments);
    assert!(matches!(code, Some(3 | 4)) && text.contains("knee: none"), "{text}");
    for wrong in [&["--rate", "5"][..], &["--runs", "2"], &["--compat"]] {
        assert_eq!(stress(&fixture.url, &[&["sweep"], wrong].concat()).0, Some(2));
    }
}

type Store = Arc<Mutex<HashMap<String, (Instant, String)>>>;

/// Two servers with one store; what is written shows after `delay`.
fn store(delay: Duration) -> String {
    let store: Store = Arc::default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // One request at a time is all that this mode sends.
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    let head = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or("").to_owned();
                    let query: HashMap<_, _> = path
                        .split(['?', '&'])
                        .filter_map(|part| part.split_once('='))
                        .map(|(name, value)| (name.to_owned(), value.to_owned()))
                        .collect();
                    let mut store = store.lock().expect("no panics");
                    let answer = match (query.get("k"), query.get("v")) {
                        (Some(key), Some(value)) => {
                            store.insert(key.clone(), (Instant::now() + delay, value.clone()));
                            ok("{\"success\":true}")
                        }
                        (Some(key), None) => match store.get(key) {
                            Some((when, value)) if *when <= Instant::now() => ok(&format!("\"{value}\"")),
                            _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                        },
                        _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
                    };
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    url
}

#[test]
fn lag_measures_when_a_write_shows_elsewhere() {
    let url = store(Duration::from_millis(30));
    // Written through one connection, read through others: as good as three servers.
    let (code, text, report) = report(&url, &["lag", &url, &url, "-n", "20"]);
    assert_eq!(code, Some(0), "{text}");
    schema(&report);
    assert_eq!((n(&report, "/counts/sent"), n(&report, "/counts/ok")), (20, 20), "{text}");
    assert_eq!(n(&report, "/latency/replication_lag/count"), 20);
    assert!(n(&report, "/latency/replication_lag/min") >= 29_900_000, "{text}");
    assert!(n(&report, "/latency/replication_lag/p50") < 60_000_000, "a read is far shorter: {text}");
    assert!(n(&report, "/latency/service/set/p50") < 29_000_000, "the write itself does not wait: {text}");
    assert!(n(&report, "/latency/service/get/count") > 40, "it is read again and again: {text}");
    assert!(text.contains("replication lag"), "{text}");
}

#[test]
fn a_write_that_never_shows_is_a_timeout() {
    let url = store(Duration::from_secs(3600));
    let (code, text, report) = report(&url, &["lag", &url, "-n", "3", "--timeout", "0.2"]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(n(&report, "/counts/errors/timeout"), 3, "{text}");
    let (code, text) = stress(&url, &["lag"]);
    assert!(code == Some(2) && text.contains("one or more to read from"), "{text}");
}

#[test]
fn objectives_are_met_or_missed() {
    let fixture = serve(|_, request| Some(right(request)));
    let met = ["-n", "500", "--slo", "p99<30s,errors=0,rate>1"];
    let (code, text, written) = report(&fixture.url, &met);
    assert_eq!(code, Some(0), "{text}");
    schema(&written);
    assert!(text.contains("slo       errors=0 met (0)"), "{text}");
    let missed = ["-n", "500", "--slo", "service.set.p50<1ns,rate>1"];
    let (code, text, written) = report(&fixture.url, &missed);
    assert_eq!(code, Some(3), "{text}");
    assert_eq!((&written["slo"][0]["pass"], &written["slo"][1]["pass"]), (&false.into(), &true.into()));
    assert_eq!(written["slo"][0]["value"].as_f64(), written["latency"]["service"]["set"]["p50"].as_f64());
    // Nobody measured a get.
    assert_eq!(stress(&fixture.url, &["-n", "500", "--slo", "get.p50<30s"]).0, Some(3));
    assert_eq!(stress(&fixture.url, &["--slo", "p99"]).0, Some(2));
}

/// Seven runs, and a copy of their report whose every run was this much faster.
fn runs_and_a_faster_copy(factor: f64) -> (Temporary, Temporary) {
    let fixture = serve(|_, request| {
        std::thread::sleep(Duration::from_millis(2));
        Some(right(request))
    });
    let (slow, fast) = (temporary("json"), temporary("json"));
    let arguments = ["-n", "400", "--runs", "7", "--json", slow.path()];
    let (code, text) = stress(&fixture.url, &arguments);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("runs      7, mean ") && text.contains("(95 %)"), "{text}");
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&slow.0).expect("written")).expect("JSON");
    schema(&json);
    assert_eq!(json["runs"].as_array().map(Vec::len), Some(7));
    assert_eq!(n(&json, "/counts/sent"), 2800);
    assert!(json["rate"]["ci95"].as_f64() > Some(0.0));
    for run in json["runs"].as_array_mut().expect("a list") {
        run["rate"] = (run["rate"].as_f64().expect("a number") * factor).into();
    }
    std::fs::write(&fast.0, json.to_string()).expect("written");
    (slow, fast)
}

#[test]
fn compare_tells_a_change_from_none_and_refuses_other_workloads() {
    let (slow, fast) = runs_and_a_faster_copy(3.0);
    let (code, text) = run(&["compare", slow.path(), slow.path()]);
    assert!(code == Some(0) && text.contains("no regression"), "{text}");
    let (code, text) = run(&["compare", slow.path(), fast.path()]);
    assert!(code == Some(0) && text.contains("better"), "{text}");
    let (code, text) = run(&["compare", fast.path(), slow.path()]);
    assert!(code == Some(3) && text.contains("REGRESSION"), "{text}");
    // Known to be noise: no regression, however sure it is.
    let (code, text) = run(&["compare", fast.path(), slow.path(), "--noise", "90%"]);
    assert_eq!(code, Some(0), "{text}");
    let fixture = serve(|_, request| Some(right(request)));
    let other = temporary("json");
    stress(&fixture.url, &["-n", "400", "--mix", "get=1", "--json", other.path()]);
    let (code, text) = run(&["compare", slow.path(), other.path()]);
    assert!(code == Some(2) && text.contains("mix set=1 there, get=1 here"), "{text}");
    // Several reports count as one: half of these runs are three times as fast, which is scatter and no change.
    let both = format!("{},{}", slow.path(), fast.path());
    let (code, text) = run(&["compare", &both, &both]);
    assert!(code == Some(0) && text.contains("no regression"), "{text}");
    let (code, text) = run(&["compare", &format!("{0},{0}", fast.path()), slow.path()]);
    assert!(code == Some(3) && text.contains("REGRESSION"), "{text}");
    let (code, text) = run(&["compare", &format!("{},{}", slow.path(), other.path()), slow.path()]);
    assert!(code == Some(2) && text.contains("reports of different workloads: mix"), "{text}");
}

#[test]
fn a_baseline_decides_about_a_run() {
    let (slow, fast) = runs_and_a_faster_copy(3.0);
    let fixture = serve(|_, request| {
        std::thread::sleep(Duration::from_millis(2));
        Some(right(request))
    });
    let against = |base: &Temporary, more: &[&str]| {
        report(&fixture.url, &[&["-n", "400", "--runs", "5", "--baseline", base.path()], more].concat())
    };
    let (code, text, json) = against(&fast, &[]);
    assert!(code == Some(3) && text.contains("REGRESSION"), "{text}");
    schema(&json);
    assert_eq!(json["baseline"]["regression"], true);
    let (code, text, _) = against(&slow, &["--noise", "60%"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text, json) = against(&slow, &["--pipeline", "2"]);
    assert!(code == Some(0) && text.contains("not compared: ") && json.get("baseline").is_none(), "{text}");
}

/// The original tool's output, line for line; the errors and the average are what was seen.
#[test]
fn compat_prints_what_the_original_tool_printed() {
    let fixture = serve(|n, request| {
        std::thread::sleep(Duration::from_millis(3));
        Some(if n % 100 == 7 { ok("no") } else { right(request) })
    });
    let output = support::command()
        .args(["--compat", &fixture.url])
        .env("STRESS_AMOUNT", "3500")
        .env("STRESS_CLUSTERS", "4")
        .env("STRESS_WORKERS", "3")
        .output()
        .expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let head = [
        "Stress test with:",
        " - Requests: 3500",
        " - Clusters: 4",
        " - Workers per cluster: 3",
        "",
        "==================",
        "",
        "[<] Left Requests / [!] Errors / [^] Success",
        "",
    ];
    assert_eq!(lines[..9], head, "{text}");
    for (line, left) in lines[9..13].iter().zip([3000, 2000, 1000, 0]) {
        let numbers: Vec<u64> = line.split([' ', '/']).filter_map(|word| word.parse().ok()).collect();
        assert_eq!(**line, format!("[<] {} / [!] {} / [^] {}", numbers[0], numbers[1], numbers[2]));
        assert_eq!((numbers[0], numbers[1] + numbers[2]), (left, 3500 - left), "{text}");
    }
    assert_eq!(lines[12], "[<] 0 / [!] 35 / [^] 3465");
    assert_eq!(lines[13..17], ["", "==================", "", "Report:"]);
    assert_eq!(lines[17], " - Total requests: 3500");
    let between = |line: &str, before: &str, after: &str| -> f64 {
        line.strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .and_then(|n| n.parse().ok())
            .expect(before)
    };
    let time = between(lines[18], " - Total time: ", " sec");
    let mean = between(lines[19], " - Avg request response: ", " ms");
    // Twelve at a time, 3 ms each at least.
    assert!(mean >= 3.0 && time * 1e3 >= 3.0 * 3500.0 / 12.0, "{text}");
    assert_eq!(lines[20..], [" - Errors: 35", " - Success: 3465"], "{text}");
}
