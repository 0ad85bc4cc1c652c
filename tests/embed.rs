//! Goal: a program can embed a node, add routes while it runs, and see every request's start, outcome and
//! end in that order. Method: a real node in this process, observed.

mod support;

use meshkv::config::NodeConfig;
use meshkv::node::extension::{Extensions, Observer, Reply, RequestEvent};
use meshkv::server::Server;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Client, Node};

#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, line: String) {
        self.0.lock().expect("whole").push(line);
    }
}

impl Observer for Diary {
    fn server_connected(&self, address: SocketAddr) {
        self.note(format!("connected {}", address.ip()));
    }

    fn server_disconnected(&self, error: Option<&str>) {
        self.note(format!("disconnected {error:?}"));
    }

    fn request_started(&self, request: RequestEvent<'_>) {
        self.note(format!("start {} {}", request.serial, request.path));
    }

    fn request_completed(&self, request: RequestEvent<'_>, status: u16) {
        self.note(format!("complete {} {} {status}", request.serial, request.path));
    }

    fn request_ended(&self, request: RequestEvent<'_>) {
        self.note(format!("end {} {}", request.serial, request.path));
    }
}

fn config() -> NodeConfig {
    NodeConfig { port: 0, workers: 1, ..NodeConfig::default() }
}

#[test]
fn observers_see_every_request_from_start_to_end() {
    let (extensions, diary) = (Extensions::new(), Diary::default());
    extensions.observe(diary.clone());
    let server = Server::start(config(), extensions).expect("starts");
    let mut client = Client::connect(&server.http_address().to_string());
    client.send("GET /set?k=a&v=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /get?k=b HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((client.answer().status, client.answer().status), (200, 404));
    assert_eq!(client.get("/getAll").status, 200);
    server.stop();
    server.wait().expect("clean");
    let lines = diary.0.lock().expect("whole").clone();
    assert_eq!(lines.first().map(String::as_str), Some("connected 127.0.0.1"));
    assert_eq!(lines.last().map(String::as_str), Some("disconnected None"));
    let position = |line: &str| {
        let found: Vec<_> = lines.iter().enumerate().filter(|(_, l)| *l == line).map(|(at, _)| at).collect();
        assert_eq!(found.len(), 1, "{line} once in {lines:#?}");
        found[0]
    };
    for (serial, path, status) in [(0, "/set", 200), (1, "/get", 404), (2, "/getAll", 200)] {
        let start = position(&format!("start {serial} {path}"));
        let complete = position(&format!("complete {serial} {path} {status}"));
        assert!(start < complete && complete < position(&format!("end {serial} {path}")), "{lines:#?}");
    }
}

#[test]
fn a_failure_is_told_once_and_at_once_though_nobody_waits_for_the_end() {
    struct Faulty;

    impl Observer for Faulty {
        fn request_started(&self, _: RequestEvent<'_>) {
            panic!("on purpose");
        }
    }

    let (extensions, diary) = (Extensions::new(), Diary::default());
    extensions.observe(diary.clone());
    extensions.observe(Faulty);
    let server = Server::start(config(), extensions).expect("starts");
    let mut client = Client::connect(&server.http_address().to_string());
    client.send("GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n");
    let ends = || {
        let lines = diary.0.lock().expect("whole").clone();
        lines.into_iter().filter(|line| line.starts_with("disconnected")).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while ends().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody was told");
        std::thread::sleep(Duration::from_millis(10));
    }
    let error = server.wait().expect_err("a worker failed");
    assert_eq!(ends(), [format!("disconnected {:?}", Some(error.to_string()))]);
    drop(server);
    assert_eq!(ends().len(), 1);
}

#[test]
fn an_end_is_told_even_if_the_client_never_reads() {
    let (extensions, diary) = (Extensions::new(), Diary::default());
    let server = Server::start(config(), extensions.clone()).expect("starts");
    let address = server.http_address().to_string();
    let mut client = Client::connect(&address);
    for n in 0..2000 {
        client.get(&format!("/set?k=k{n}&v={}", "v".repeat(250)));
    }
    extensions.observe(diary.clone());
    let mut greedy = Client::connect(&address);
    greedy.send("GET /getAll HTTP/1.1\r\nHost: x\r\n\r\n".repeat(30));
    std::thread::sleep(std::time::Duration::from_millis(300));
    drop(greedy);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let lines = diary.0.lock().expect("whole").clone();
    let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
    assert!(count("start") > 0);
    assert_eq!(count("start"), count("end"), "{lines:#?}");
}

#[test]
fn routes_can_be_added_at_run_time_and_a_panic_is_an_answer() {
    let extensions = Extensions::new();
    let server = Server::start(config(), extensions.clone()).expect("starts");
    let mut client = Client::connect(&server.http_address().to_string());
    assert_eq!(client.get("/hello").status, 404);
    extensions.route("/hello", |request| Reply::json(format!("{:?}", request.param("name")))).expect("free");
    extensions.route("/teapot", |_| Reply::text("short").with_status(418)).expect("free");
    extensions.route("/panic", |_| panic!("on purpose")).expect("free");
    assert_eq!(client.get("/hello?name=a+b").body, "Some(\"a b\")");
    let diary = Diary::default();
    extensions.observe(diary.clone());
    let teapot = client.get("/teapot");
    assert_eq!((teapot.status, teapot.body.as_str()), (418, "short"));
    let lines = diary.0.lock().expect("whole").clone();
    assert!(lines.contains(&"complete 0 /teapot 418".to_owned()), "before the answer leaves: {lines:?}");
    assert_eq!(client.get("/panic").status, 500);
    assert_eq!(client.get("/hello").status, 200, "the worker lives on");
    assert!(client.get("/").body.contains("\"/teapot\""));
}

#[test]
fn a_reply_whose_status_has_no_body_is_sent_without() {
    let extensions = Extensions::new();
    let server = Server::start(config(), extensions.clone()).expect("starts");
    extensions.route("/204", |_| Reply::text("nobody reads this").with_status(204)).expect("free");
    extensions.route("/304", |_| Reply::text("nor this").with_status(304)).expect("free");
    let mut client = Client::connect(&server.http_address().to_string());
    for status in [204, 304] {
        for method in ["GET", "HEAD"] {
            let request = format!("{method} /{status} HTTP/1.1\r\nHost: x\r\n\r\n");
            client.send(request + "GET /get HTTP/1.1\r\nHost: x\r\n\r\n");
            let answer = client.answer();
            assert_eq!((answer.status, answer.header("Content-Length")), (status, None), "{method}");
            assert_eq!(client.answer().body, r#"{"error":"MISSING_KEY_PARAM"}"#, "the next answer is whole");
        }
    }
}

#[test]
fn a_status_of_a_route_has_the_words_that_belong_to_it() {
    let extensions = Extensions::new();
    let server = Server::start(config(), extensions.clone()).expect("starts");
    for (status, line) in [
        (201, "201 Created"),
        (304, "304 Not Modified"),
        (404, "404 Not Found"),
        (418, "418 I'm a Teapot"),
        (429, "429 Too Many Requests"),
        (599, "599 Server Error"),
    ] {
        let path = format!("/{status}");
        extensions.route(&path, move |_| Reply::text("").with_status(status)).expect("free");
        let mut stream = std::net::TcpStream::connect(server.http_address()).expect("connects");
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        assert_eq!(answer.lines().next(), Some(format!("HTTP/1.1 {line}").as_str()));
    }
}

/// A path for a UNIX socket that no other test uses.
fn unix_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("meshkv-embed-{}-{name}.sock", std::process::id()))
}

#[test]
fn a_failed_start_leaves_no_unix_socket_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let path = unix_path("failed");
    let unix = NodeConfig { unix: Some(path.clone()), ..config() };
    for (fault, config) in [
        (
            "peer port 127.0.0.1:",
            NodeConfig { peer_port: Some(taken.local_addr().expect("bound").port()), ..unix.clone() },
        ),
        ("advertised nobody.invalid", NodeConfig { advertise: Some("nobody.invalid".to_owned()), ..unix }),
    ] {
        let error = Server::start(config, Extensions::new()).err().expect("it cannot start").to_string();
        assert!(error.contains(fault), "{error}");
        assert!(std::fs::symlink_metadata(&path).is_err(), "{fault}");
    }
}

#[test]
fn a_node_that_ends_leaves_its_successor_the_unix_socket() {
    let path = unix_path("successor");
    let config = NodeConfig { unix: Some(path.clone()), ..config() };
    let first = Server::start(config.clone(), Extensions::new()).expect("starts");
    assert!(Server::start(config.clone(), Extensions::new()).is_err(), "it is in use");
    first.stop();
    let begun = Instant::now();
    let next = loop {
        match Server::start(config.clone(), Extensions::new()) {
            Ok(next) => break next,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    first.wait().expect("clean");
    drop(first);
    let mut stream = UnixStream::connect(&path).expect("the next one's is still there");
    stream.write_all(b"GET /healthcheck HTTP/1.0\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    drop(next);
    assert!(std::fs::symlink_metadata(&path).is_err());
}

#[test]
fn a_node_that_will_leave_says_so_in_its_health_and_its_status_and_serves_on() {
    let server = Server::start(config(), Extensions::new()).expect("starts");
    let address = server.http_address().to_string();
    let said = || {
        let [health, status] = ["/healthcheck", "/status"].map(|path| {
            let body = Client::connect(&address).get(path).body;
            serde_json::from_str::<serde_json::Value>(&body).expect("JSON")
        });
        assert_eq!((&health["status"], &health["reason"]), (&status["state"], &status["reason"]));
        status["state"].clone()
    };
    assert_eq!(said(), "ok");
    server.announce_leave();
    assert_eq!(said(), "leaving");
    assert_eq!(Client::connect(&address).get("/set?k=a&v=1").status, 200);
}

#[test]
fn a_write_that_waits_is_counted_and_told_when_its_outcome_is_known() {
    let (extensions, diary) = (Extensions::new(), Diary::default());
    extensions.observe(diary.clone());
    let config = NodeConfig { peer_port: Some(0), name: "a".into(), ..config() };
    let server = Server::start(config, extensions).expect("starts");
    let address = server.http_address().to_string();
    let peer = Node::start(&["--name", "b", "--peer-port", "0", "--join", &format!("http://{address}")]);
    let mut client = Client::connect(&address);
    assert_eq!(client.get("/set?k=a&v=1&w=2").status, 200);
    peer.signal("STOP");
    // Until all its threads have stopped it may still acknowledge.
    let has_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.expect("a thread").path().join("stat")).expect("it lives");
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    let threads = format!("/proc/{}/task", peer.child.id());
    while !std::fs::read_dir(&threads).expect("it lives").all(has_stopped) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    // What comes behind it is answered after it, but is known at once.
    client.send("GET /rm?k=a&w=2 HTTP/1.1\r\nHost: x\r\n\r\nGET /is?k=b HTTP/1.1\r\nHost: x\r\n\r\n");
    std::thread::sleep(Duration::from_millis(500));
    let early = diary.0.lock().expect("whole").clone();
    assert!(begun.elapsed() < Duration::from_millis(900), "too late to tell: {:?}", begun.elapsed());
    assert!(early.iter().any(|line| line.starts_with("complete") && line.ends_with("/is 404")), "{early:#?}");
    assert!(!early.iter().any(|line| line.starts_with("complete") && line.contains("/rm")), "{early:#?}");
    assert_eq!((client.answer().status, client.answer().status), (503, 404));
    let page = client.get("/metrics").body;
    let value = |name: &str| {
        let line =
            page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {page}"));
        line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()).expect("a number")
    };
    let count = |route: &str, status: &str| {
        let line = format!("meshkv_commands_total{{command=\"{route}\",status=\"{status}\"}}");
        if page.contains(&line) { value(&line) } else { 0.0 }
    };
    assert_eq!((count("set", "200"), count("set", "503")), (1.0, 0.0));
    assert_eq!((count("rm", "200"), count("rm", "503")), (0.0, 1.0));
    assert!(value("meshkv_command_duration_seconds_sum{command=\"rm\"}") >= 0.9, "{page}");
    let lines = diary.0.lock().expect("whole").clone();
    let told: Vec<_> = lines.iter().filter(|line| line.contains(" /rm")).map(String::as_str).collect();
    let serial = told[0].split(' ').nth(1).expect("a serial");
    let expected =
        [format!("start {serial} /rm"), format!("complete {serial} /rm 503"), format!("end {serial} /rm")];
    assert_eq!(told, expected, "{lines:#?}");
}
