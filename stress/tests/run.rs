//! Goal: the tool sends exactly what it was asked to and tells every kind of failure from success. Method:
//! the real binary against a small server that answers as it is told to.

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Script, balanced, command, n, ok, report, right, run, serve, stress};

#[test]
fn exactly_as_many_requests_as_asked_for_and_all_of_them_verified() {
    for arguments in [&["-n", "1003"][..], &["-n", "1003", "--pipeline", "7", "--mix", "set=1,get=3,is=1"]] {
        let fixture = serve(|_, request| Some(right(request)));
        let (code, text) = stress(&fixture.url, arguments);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("1003 sent, 1003 ok, 0 failed"), "{text}");
        assert_eq!(fixture.requests(), 1003);
    }
}

#[test]
fn the_help_shows_what_a_template_may_hold() {
    let (code, text) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(text.contains(" ({n}, {k}, {v}), for servers"), "{text}");
    assert!(!text.contains('\u{1b}'), "no escapes where there is no terminal");
}

/// Such runs showed several cores a thread, since CPU time was counted in ticks, and were INVALID for it.
#[test]
fn a_run_of_a_few_milliseconds_is_not_called_limited_by_the_client() {
    let fixture = serve(|_, request| Some(right(request)));
    for _ in 0..5 {
        for (arguments, reason) in [
            (&["-n", "20"][..], "client-limited"),
            (&["-n", "20", "--rate", "10000"], "a client thread used"),
        ] {
            let (_, text, report) = report(&fixture.url, arguments);
            let share = report["client"]["max_thread_util"].as_f64().expect("a number");
            assert!((0.0..=1.0).contains(&share) && !text.contains(reason), "{text}");
        }
    }
}

#[test]
fn each_kind_of_failure_has_its_class_and_exit_code_1() {
    let cases: [(&str, Script, &[&str], &str); 6] = [
        (
            "a refusal, unverified",
            |n, r| {
                let bad = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
                Some(if n == 7 { bad.to_owned() } else { right(r) })
            },
            &["--verify", "none"],
            "http [1 x 503]",
        ),
        (
            "a wrong body",
            |n, r| Some(if n == 50 { ok("{\"success\":nope}") } else { right(r) }),
            &[],
            "verify 1,",
        ),
        (
            "a status",
            |n, r| {
                let bad = "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n";
                Some(if n % 50 == 0 { bad.to_owned() } else { right(r) })
            },
            &[],
            "http [4 x 507]",
        ),
        ("a reset", |n, r| (n != 50).then(|| right(r)), &[], "reset 1,"),
        (
            "silence",
            |n, r| {
                if n == 50 {
                    std::thread::sleep(Duration::from_secs(2));
                }
                Some(right(r))
            },
            &["--timeout", "0.5"],
            "timeout 1,",
        ),
        (
            "no HTTP",
            |n, r| Some(if n == 50 { "hello\r\n\r\n".to_owned() } else { right(r) }),
            &[],
            "reset 1,",
        ),
    ];
    for (name, script, arguments, expected) in cases {
        let fixture = serve(script);
        let (code, text, report) = report(&fixture.url, &[&["-n", "200"], arguments].concat());
        assert_eq!(code, Some(1), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(text.contains("200 sent"), "{name}: {text}");
        balanced(&report);
    }
}

#[test]
fn chunked_and_closing_servers_are_understood() {
    let fixture = serve(|_, _| {
        let body = "{\"success\":true}";
        let (first, second) = body.split_at(5);
        Some(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            second.len()
        ))
    });
    let (code, text) = stress(&fixture.url, &["-n", "300"]);
    assert_eq!(code, Some(0), "{text}");
    let fixture = serve(|_, _| {
        Some(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{\"success\":true}".to_owned(),
        )
    });
    let (code, text) = stress(&fixture.url, &["-n", "300"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("300 ok"), "{text}");
}

#[test]
fn interim_answers_answer_nothing() {
    let fixture = serve(|_, request| Some(format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", right(request))));
    let (code, text) = stress(&fixture.url, &["-n", "300", "--mix", "get=1"]);
    assert!(code == Some(0) && text.contains("300 sent, 300 ok"), "{text}");
}

/// A server that is gone in the middle of a run ends the run, with a class for what was lost and the rest told.
#[test]
fn a_server_that_dies_does_not_hold_the_run_for_ever() {
    for arguments in
        [&["-d", "60", "--warmup", "0"][..], &["-n", "10m"], &["-d", "60", "--warmup", "0", "--rate", "2000"]]
    {
        let fixture = Dying::start();
        let begun = Instant::now();
        let (code, text, report) = report(&fixture.url, &[arguments, &["--timeout", "0.5"]].concat());
        assert!(begun.elapsed() < Duration::from_secs(30), "{text}");
        // On a busy machine an open loop may have been late as well.
        assert!(code == Some(1) || (arguments.contains(&"--rate") && code == Some(4)), "{text}");
        balanced(&report);
        assert!(n(&report, "/counts/errors/reset") > 0, "{text}");
        assert!(n(&report, "/counts/errors/connect") > 0, "{text}");
        assert!(text.contains("gave up: no server could be reached"), "{text}");
    }
}

/// Answers for a while, then takes no more connections and drops those it has.
struct Dying {
    url: String,
}

impl Dying {
    fn start() -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        std::thread::spawn(move || {
            let mut threads = Vec::new();
            let died = Instant::now() + Duration::from_millis(400);
            // The first asks for /status, eight come for the run.
            for stream in listener.incoming().take(9) {
                let mut stream = stream.expect("a connection");
                threads.push(std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(400)));
                    // It dies between a request and its answer: a connection that is idle loses nothing.
                    while let Ok(bytes @ 1..) = stream.read(&mut buffer)
                        && Instant::now() < died
                    {
                        let heads = buffer[..bytes].windows(4).filter(|four| *four == b"\r\n\r\n").count();
                        let _ = stream.write_all(ok("{\"success\":true}").repeat(heads).as_bytes());
                    }
                }));
            }
            // The listener goes first, so that nothing waits in its queue.
            drop(listener);
            for thread in threads {
                let _ = thread.join();
            }
        });
        Self { url }
    }
}

/// What has no answer when the time is over is neither right nor wrong: it is told apart.
#[test]
fn what_is_in_flight_at_the_end_is_unfinished() {
    let fixture = serve(|n, request| {
        if n >= 100 {
            std::thread::sleep(Duration::from_secs(20));
        }
        Some(right(request))
    });
    let arguments = ["-d", "0.5", "--warmup", "0", "--timeout", "2"];
    let (code, text, report) = report(&fixture.url, &arguments);
    assert_eq!(code, Some(1), "{text}");
    balanced(&report);
    assert_eq!((n(&report, "/counts/unfinished"), n(&report, "/counts/failed")), (8, 0), "{text}");
}

/// The warm-up's requests are sent and not counted.
#[test]
fn the_warm_up_is_discarded() {
    for arguments in [&["-d", "0.5", "--warmup", "0.3"][..], &["-n", "2000", "--warmup", "0.3"]] {
        for open in [&[][..], &["--rate", "2000"]] {
            // What the server does wrong at first is no part of the run.
            let fixture = serve(|n, r| Some(if n < 20 { ok("nonsense") } else { right(r) }));
            let (code, text, report) = report(&fixture.url, &[arguments, open].concat());
            balanced(&report);
            assert!(matches!(code, Some(0 | 4)), "{text}");
            let sent = n(&report, "/counts/sent");
            assert!(fixture.requests() >= sent + 20, "{} requests, {text}", fixture.requests());
            assert_eq!(n(&report, "/counts/failed"), 0, "{text}");
            if arguments[0] == "-n" {
                assert_eq!(sent, 2000);
            }
        }
    }
}

/// The last one is due ten microseconds before the end, less than it takes to wake for it.
#[test]
fn what_comes_due_in_the_last_moment_is_sent() {
    let fixture = serve(|_, request| Some(right(request)));
    let arguments = ["-d", "1", "--warmup", "0", "--rate", "1000.01", "--arrival", "constant"];
    let (code, text, report) = report(&fixture.url, &arguments);
    // INVALID on a machine that is busy with other work.
    assert!(matches!(code, Some(0 | 4)), "{text}");
    assert_eq!((n(&report, "/counts/sent"), n(&report, "/counts/late")), (1001, 0), "{text}");
}

/// A server that is too slow for the rate makes responses wait and arrivals late, which is not the client's fault.
#[test]
fn an_open_loop_blames_a_slow_server_and_not_itself() {
    let fixture = serve(|_, request| {
        std::thread::sleep(Duration::from_millis(50));
        Some(right(request))
    });
    // Eight connections of 20 a second each are asked for 400.
    let (code, text, report) = report(&fixture.url, &["-d", "2", "--warmup", "0", "--rate", "400"]);
    balanced(&report);
    let late = n(&report, "/counts/late");
    assert!(late > 100 && n(&report, "/client/backlog_max") > 50, "{text}");
    assert!(matches!(code, Some(1 | 4)), "{text}");
    assert!(text.contains("never sent: all connections were busy"), "{text}");
    let (response, service) =
        (n(&report, "/latency/response/all/p50"), n(&report, "/latency/service/all/p50"));
    assert!(response > 4 * service, "waiting is part of the response: {text}");
    // Poisson: 800 are due, give or take five standard deviations.
    let due = n(&report, "/counts/sent") + late;
    assert!((800 - 142..800 + 142).contains(&due), "{due} due");
}

/// Ctrl-C: the report of what was done, and 130.
#[test]
fn an_interrupted_run_reports_what_it_did() {
    let fixture = serve(|_, request| Some(right(request)));
    let child = command()
        .args(["-d", "60", "--warmup", "0", "-c", "4", &fixture.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    while fixture.requests() < 500 {
        std::thread::sleep(Duration::from_millis(5));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .expect("it runs");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("interrupted: the report covers") && !text.contains(" 0 ok"), "{text}");
}

#[test]
fn templates_reach_other_servers() {
    let fixture = serve(|_, request| {
        let number = request.split(['/', ' ']).nth(3).unwrap_or("?").to_owned();
        Some(ok(&format!("page {number}")))
    });
    let arguments = ["-n", "100", "--template", "/page/{n}", "--expect", "page {n}"];
    let (code, text) = stress(&fixture.url, &arguments);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn what_cannot_work_says_so() {
    let (code, text) = stress("http://127.0.0.1:1", &["-n", "10"]);
    assert!(code == Some(1) && text.contains("cannot connect to http://127.0.0.1:1"), "{text}");
    for arguments in
        [&["-n", "x"][..], &["--mix", "put=1"], &["--key-dist", "normal"], &["--verify", "maybe"]]
    {
        let (code, text) = stress("http://127.0.0.1:1", arguments);
        assert_eq!(code, Some(2), "{text}");
    }
    let (code, text) = stress("https://127.0.0.1:1", &[]);
    assert!(code == Some(2) && text.contains("only http://"), "{text}");
}
