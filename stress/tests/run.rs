//! Goal: the tool sends exactly what it was asked to and tells every kind of failure from success. Method:
//! the real binary against a small server that answers as it is told to.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the server does about its n-th request; `None`: it closes the connection.
type Script = fn(u64, &str) -> Option<String>;

struct Fixture {
    url: String,
    requests: Arc<AtomicU64>,
}

fn serve(script: Script) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    held.extend_from_slice(&buffer[..bytes]);
                    while let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                        let head: Vec<u8> = held.drain(..end + 4).collect();
                        let number = counted.fetch_add(1, Ordering::SeqCst);
                        let Some(answer) = script(number, &String::from_utf8_lossy(&head)) else { return };
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    Fixture { url, requests }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn right(request: &str) -> String {
    let Some(key) = request.strip_prefix("GET /get?k=stress:") else { return ok("{\"success\":true}") };
    ok(&format!("\"value:{}\"", key.split(' ').next().unwrap_or("")))
}

fn stress(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_meshkv-stress"))
        .args(["-c", "8", "-t", "2"])
        .args(arguments)
        .arg(url)
        .env_remove("STRESS_AMOUNT")
        .output()
        .expect("runs");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn exactly_as_many_requests_as_asked_for_and_all_of_them_verified() {
    for arguments in [&["-n", "1003"][..], &["-n", "1003", "--pipeline", "7", "--mix", "set=1,get=3,is=1"]] {
        let fixture = serve(|_, request| Some(right(request)));
        let (code, text) = stress(&fixture.url, arguments);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("1003 sent, 1003 ok, 0 failed"), "{text}");
        assert_eq!(fixture.requests.load(Ordering::SeqCst), 1003);
    }
}

#[test]
fn each_kind_of_failure_has_its_class_and_exit_code_1() {
    let cases: [(&str, Script, &[&str], &str); 5] = [
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
        let (code, text) = stress(&fixture.url, &[&["-n", "200"], arguments].concat());
        assert_eq!(code, Some(1), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(text.contains("200 sent"), "{name}: {text}");
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
