//! Goal: a node as a process among bad company: slow, silent and greedy clients, signals, no descriptors
//! left. Method: real nodes, one a test.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Client, Node, seed, signal};

const SOON: Duration = Duration::from_secs(10);
const DATA_ROUTES: [&str; 8] =
    ["/set?k=a&v=2", "/get?k=a", "/is?k=a", "/rm?k=a", "/clear", "/getKeys", "/getValues", "/getAll?limit=1"];

#[test]
fn sigterm_drains_and_exits_cleanly() {
    let mut node = Node::start(&[]);
    let mut idle = Client::connect(&node.address);
    assert_eq!(idle.get("/set?k=a&v=1").status, 200);
    let mut data: Vec<_> = DATA_ROUTES.iter().map(|_| Client::connect(&node.address)).collect();
    for client in &mut data {
        assert_eq!(client.get("/healthcheck").status, 200);
    }
    node.signal("TERM");
    std::thread::sleep(Duration::from_millis(150));
    // A connection that was open hears of it; new ones are refused.
    let answer = idle.get("/healthcheck");
    assert_eq!((answer.status, answer.body.as_str()), (503, r#"{"status":"leaving"}"#));
    assert_eq!(answer.header("Connection"), Some("close"));
    for (mut client, target) in data.into_iter().zip(DATA_ROUTES) {
        let answer = client.get(target);
        assert_eq!((answer.status, answer.body.as_str()), (503, r#"{"error":"LEAVING"}"#), "{target}");
        assert_eq!(answer.header("Retry-After"), Some("1"), "{target}");
        assert_eq!(answer.header("Connection"), Some("close"), "{target}");
        assert!(client.is_closed(), "{target}");
    }
    assert!(std::net::TcpStream::connect(&node.address).is_err());
    assert_eq!(node.wait(SOON).code(), Some(0));
}

#[test]
fn a_listing_under_way_is_finished_while_draining() {
    let mut node = Node::start(&["--workers", "1"]);
    let mut client = Client::connect(&node.address);
    for n in 0..20_000 {
        client.send(format!("GET /set?k=key{n}&v={} HTTP/1.1\r\nHost: x\r\n\r\n", "v".repeat(200)));
        assert_eq!(client.answer().status, 200);
    }
    client.send("GET /getAll HTTP/1.1\r\nHost: x\r\n\r\n");
    std::thread::sleep(Duration::from_millis(200));
    node.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    let all: Vec<serde_json::Value> = serde_json::from_str(&client.answer().body).expect("whole");
    assert_eq!(all.len(), 20_000);
    assert_eq!(node.wait(SOON).code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut node = Node::start(&[]);
    let mut client = Client::connect(&node.address);
    // Half a request keeps the drain waiting.
    client.send("GET /get?k=a HT");
    std::thread::sleep(Duration::from_millis(100));
    node.signal("INT");
    std::thread::sleep(Duration::from_millis(200));
    assert!(node.child.try_wait().expect("a child").is_none(), "still draining");
    node.signal("TERM");
    let begun = Instant::now();
    assert_eq!(node.wait(SOON).code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_taken_port_is_named_with_the_cause() {
    let node = Node::start(&[]);
    let port = node.address.rsplit(':').next().expect("a port");
    let output = Command::new(env!("CARGO_BIN_EXE_meshkv")).args(["--port", port]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&node.address) && error.contains("in use"), "{error}");
}

/// A loopback address where nobody else has the ports of a node, not even another run of these tests.
fn own_host(number: u32) -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", number * 64 + (pid >> 16 & 63), pid >> 8 & 255, pid & 255)
}

/// What a process says of its own accord; it is ended when all of it has been heard, or goes on for too long.
fn heard(arguments: &[&str], lines: usize) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
    command.env_clear().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
    let said = (0..lines).map_while(|_| receive.recv_timeout(SOON).ok()).collect();
    child.kill().expect("killed");
    child.wait().expect("a child");
    said
}

#[test]
fn a_port_that_the_system_chose_is_told_at_every_level() {
    let port = |text: &str| text.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0u16);
    let host = own_host(1);
    for level in ["error", "warn"] {
        for (asked, chosen) in [
            (["--host", "127.0.0.1", "--port", "0"], "http"),
            (["--host", &host, "--peer-port", "0"], "peers"),
        ] {
            let told = heard(&[&asked[..], &["--log-level", level, "--log-format", "json"]].concat(), 1);
            let told: serde_json::Value = serde_json::from_str(told.first().expect("a line")).expect("JSON");
            assert_ne!(port(told[chosen].as_str().expect("an address")), 0, "{told}");
            let told = heard(&[&asked[..], &["--log-level", level, "--name", "n"]].concat(), 1);
            let line = told.first().expect("a line");
            assert!(line.starts_with("http   http://127.") && line.ends_with("   node n"), "{line}");
        }
        let asked = ["balance", "--backends", "127.0.0.1:9", "--port", "0", "--status-port", "0"];
        let told = heard(&[&asked[..], &["--log-level", level]].concat(), 2);
        assert_ne!(port(told.first().expect("a line")), 0, "{told:?}");
        assert!(told.get(1).is_some_and(|line| line.starts_with("status http://127.0.0.1:")), "{told:?}");
    }
}

#[test]
fn a_port_that_was_asked_for_is_not_told_at_a_level_that_hides_it() {
    let host = own_host(2);
    let arguments = ["--host", &host, "--log-level", "error"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
    command.env_clear().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let begun = Instant::now();
    while std::net::TcpStream::connect((host.as_str(), 8080)).is_err() {
        assert!(begun.elapsed() < SOON, "it does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(Client::connect(&format!("{host}:8080")).get("/healthcheck").status, 200);
    signal(&child, "TERM");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!((child.wait().expect("a child").code(), said.as_str()), (Some(0), ""));
}

#[test]
fn killed_nodes_leave_the_port_to_their_successors() {
    let mut node = Node::start(&[]);
    let mut client = Client::connect(&node.address);
    assert_eq!(client.get("/set?k=a&v=1").status, 200);
    node.child.kill().expect("killed");
    node.wait(SOON);
    let port = node.address.rsplit(':').next().expect("a port").to_owned();
    let next = Node::start(&["--port", &port]);
    assert_eq!(next.address, node.address);
    assert_eq!(Client::connect(&next.address).get("/get?k=a").status, 404, "memory is gone with the process");
}

#[test]
fn a_client_that_never_reads_costs_nobody_else_anything() {
    let node = Node::start(&["--workers", "1"]);
    let mut good = Client::connect(&node.address);
    for n in 0..3000 {
        good.get(&format!("/set?k=k{n}&v={}", "v".repeat(250)));
    }
    let mut greedy = Vec::new();
    for _ in 0..20 {
        let client = Client::connect(&node.address);
        client.stream.set_nonblocking(true).expect("set");
        let request = b"GET /getAll HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
        let _ = (&client.stream).write(&request);
        greedy.push(client);
    }
    let begun = Instant::now();
    for n in 0..3000 {
        assert_eq!(good.get(&format!("/get?k=k{n}")).status, 200);
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let metrics = good.get("/metrics").body;
    let resident =
        metrics.lines().find(|line| line.starts_with("process_resident_memory_bytes")).expect("there");
    let bytes: u64 = resident.rsplit(' ').next().expect("a value").parse().expect("a number");
    assert!(bytes < 200 << 20, "{resident}");
}

#[test]
fn thousands_of_idle_connections_are_kept() {
    let mut limit = Command::new("bash");
    limit.args(["-c", "ulimit -n \"$(ulimit -Hn)\"; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_meshkv")]);
    let node = Node::start_command(limit, &["--workers", "2"]);
    let soft = Command::new("bash").args(["-c", "ulimit -n"]).output().expect("runs").stdout;
    let soft: usize = String::from_utf8_lossy(&soft).trim().parse().unwrap_or(1024);
    let count = 10_000.min(soft.saturating_sub(200));
    if count < 10_000 {
        println!("the descriptor limit of the tests is {soft}: {count} connections instead of 10000");
    }
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(Client::connect(&node.address));
    }
    let mut busy = Client::connect(&node.address);
    for n in 0..200 {
        assert_eq!(busy.get(&format!("/set?k=k{n}&v=1")).status, 200);
    }
    // Every fiftieth is still served.
    for client in idle.iter_mut().step_by(50) {
        assert_eq!(client.get("/is?k=k1").status, 200);
    }
    assert!(busy.get("/metrics").body.contains(&format!("meshkv_connections {}\n", count + 1)));
}

#[test]
fn without_descriptors_the_node_goes_on_and_recovers() {
    let mut limit = Command::new("bash");
    limit.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_meshkv")]);
    let node = Node::start_command(limit, &["--workers", "1"]);
    let mut first = Client::connect(&node.address);
    assert_eq!(first.get("/set?k=a&v=1").status, 200);
    let crowd: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(&node.address)).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(first.get("/get?k=a").status, 200, "those who are in are served");
    drop(crowd);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(Client::connect(&node.address).get("/get?k=a").status, 200, "and new ones again");
}

#[test]
fn connections_over_the_limit_are_told() {
    let node = Node::start(&["--workers", "1", "--max-connections", "3"]);
    let mut inside: Vec<_> = (0..3).map(|_| Client::connect(&node.address)).collect();
    for client in &mut inside {
        assert_eq!(client.get("/healthcheck").status, 200);
    }
    let mut outside = Client::connect(&node.address);
    assert_eq!(outside.answer().status, 503);
    assert!(outside.is_closed());
    inside.pop();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(Client::connect(&node.address).get("/healthcheck").status, 200);
}

#[test]
fn the_unix_socket_serves_too_and_is_removed() {
    let path = std::env::temp_dir().join(format!("meshkv-test-{}.sock", std::process::id()));
    let mut node = Node::start(&["--unix", path.to_str().expect("UTF-8")]);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("connects");
    stream.write_all(b"GET /healthcheck HTTP/1.0\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    node.signal("TERM");
    assert_eq!(node.wait(SOON).code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn garbage_of_every_kind_never_takes_the_node_down() {
    let node = Node::start(&["--workers", "1"]);
    let mut state = seed() | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let request = b"GET /set?k=%41&v=b&ttl=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /getAll?limit=3 HTTP/1.1\r\nHost: x\r\n\r\n";
    for _ in 0..500 {
        let mut bytes = request.repeat(1 + random() as usize % 4);
        for _ in 0..random() % 12 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(1 + random() as usize % bytes.len());
        let mut client = Client::connect(&node.address);
        let _ = client.stream.write_all(&bytes);
        if random() % 2 == 0 {
            let _ = client.stream.shutdown(std::net::Shutdown::Write);
            let _ = client.stream.read_to_end(&mut Vec::new());
        }
    }
    assert_eq!(Client::connect(&node.address).get("/healthcheck").status, 200);
}

#[test]
fn healthcheck_check_and_usage_have_their_exit_codes() {
    let node = Node::start(&[]);
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
        for name in ["PORT", "HOSTNAME", "MESH_NETWORK_URL"] {
            command.env_remove(name);
        }
        let output = command.args(arguments).envs(environment.iter().copied()).output().expect("runs");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let port = node.address.rsplit(':').next().expect("a port");
    assert_eq!(run(&["healthcheck"], &[("PORT", port)]).0, Some(0));
    assert_eq!(run(&["healthcheck", "--url", &format!("http://{}", node.address)], &[]).0, Some(0));
    assert_eq!(run(&["healthcheck"], &[("PORT", "1")]).0, Some(1));
    // Flag, then environment, then default.
    let (code, text) = run(&["check"], &[("PORT", "7001")]);
    assert!(code == Some(0) && text.contains("7001"), "{text}");
    let (code, text) = run(&["check", "--port", "7002"], &[("PORT", "7001"), ("MESHKV_PORT", "7003")]);
    assert!(code == Some(0) && text.contains("7002") && !text.contains("7001"), "{text}");
    let (code, text) = run(&["check"], &[("PORT", "x")]);
    assert!(code == Some(2) && text.contains("PORT"), "{text}");
    let (code, text) = run(&["--prot", "1"], &[]);
    assert!(code == Some(2) && text.contains("--port"), "{text}");
    let (code, text) = run(&["check"], &[("MESHKV_SECRET", "short-and-secret")]);
    assert!(code == Some(2) && !text.contains("short-and-secret"), "{text}");
    assert!(run(&["completions", "bash"], &[]).1.contains("meshkv"));
    assert!(run(&["man"], &[]).1.contains(".TH"));
    assert!(run(&["-V"], &[]).1.starts_with("meshkv 0."));
}
