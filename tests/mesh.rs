//! Goal: real nodes make one data set of many. Method: processes on loopback, seen from outside over HTTP,
//! killed, stopped, restarted and lied to. What the simulator cannot show: sockets, threads, signals, names.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Client, Node, get};

const SOON: Duration = Duration::from_secs(20);

fn node(name: &str, join: Option<&Node>) -> Node {
    let url = join.map(|node| format!("http://{}", node.address));
    let mut arguments = vec!["--name", name, "--workers", "2", "--peer-port", "0"];
    if let Some(url) = &url {
        arguments.extend(["--join", url]);
    }
    Node::start(&arguments)
}

/// Asks until the answer is as it should be.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn body(node: &Node, path: &str) -> String {
    get(&node.address, path).body
}

fn status(node: &Node) -> serde_json::Value {
    serde_json::from_str(&body(node, "/status")).expect("JSON")
}

/// The state in which `node` sees the member of this name.
fn sees(node: &Node, name: &str) -> Option<String> {
    let status = status(node);
    let peers = status["mesh"]["peers"].as_array()?.clone();
    let peer = peers.iter().find(|peer| peer["name"] == name)?;
    Some(peer["state"].as_str()?.to_owned())
}

fn metric(node: &Node, name: &str) -> f64 {
    let page = body(node, "/metrics");
    let line = page.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn what_one_node_takes_all_nodes_have_when_it_answers() {
    let a = node("a", None);
    assert_eq!(body(&a, "/set?k=before&v=1"), "{\"success\":true}");
    let b = node("b", Some(&a));
    let c = node("c", Some(&b));
    let nodes = [&a, &b, &c];
    for node in nodes {
        assert_eq!(body(node, "/get?k=before"), "\"1\"", "ready means: holds what the mesh holds");
    }
    for round in 0..200 {
        let (writer, reader) = (nodes[round % 3], nodes[(round + 1) % 3]);
        assert_eq!(body(writer, &format!("/set?k=k&v={round}")), "{\"success\":true}");
        assert_eq!(body(reader, "/get?k=k"), format!("\"{round}\""));
    }
    // 67 of a's writes, and the one before; its peers say so with their next beats.
    let told = |field: &str| {
        let mesh = &status(&a)["mesh"];
        let peers = mesh["peers"].as_array().expect("peers").iter();
        peers.map(|peer| peer[field].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    until("nothing is pending", || told("pending") == [0, 0]);
    let accepted = status(&a)["mesh"]["accepted"].as_u64().expect("a number");
    assert!(accepted >= 67, "{accepted}");
    assert_eq!(told("acked"), [accepted; 2]);
    assert_eq!(metric(&a, "meshkv_replication_acked_total"), accepted as f64);
    assert_eq!(metric(&a, "meshkv_replication_pending_operations"), 0.0);
    // What was there before the others came they have copied; the rest was sent, once to each.
    assert_eq!((accepted, told("sent")), (67, vec![67, 67]));
    for peer in ["b", "c"] {
        let of = |name: &str| metric(&a, &format!("meshkv_{name}{{peer=\"{peer}\"}}"));
        assert_eq!(of("replication_sent_total"), 67.0);
        until("no byte is pending", || of("replication_pending_bytes") == 0.0);
        let before = (of("peer_round_trip_seconds_count"), of("peer_round_trip_seconds_sum"));
        until("another beat", || of("peer_round_trip_seconds_count") > before.0);
        until("which took its time", || of("peer_round_trip_seconds_sum") > before.1);
    }
    assert_eq!(metric(&c, "meshkv_repair_sessions_total{outcome=\"complete\"}"), 1.0, "its copy");
    assert_eq!(metric(&c, "meshkv_repair_sessions_total{outcome=\"abandoned\"}"), 0.0);
    assert_eq!(metric(&c, "meshkv_repair_entries_total{direction=\"received\"}"), 1.0);
    until("the lag is that of a mark", || metric(&a, "meshkv_replication_lag_seconds") < 1.0);
    let log = c.log.lock().expect("a log").clone();
    assert!(log.contains("mesh   3 members  1 record  after "), "{log}");
    let donor = |name: &str| log.contains(&format!("mesh   copied 1 records from {name} in "));
    assert!(donor("a") || donor("b"), "{log}");
    assert_eq!(body(&b, "/rm?k=k"), "{\"success\":true}");
    assert_eq!(get(&c.address, "/get?k=k").status, 404);
    assert_eq!(body(&c, "/clear"), "{\"success\":true}");
    assert_eq!(body(&a, "/getAll"), "[]");
    assert_eq!(status(&a)["mesh"]["size"], 3);
    let ping: serde_json::Value = serde_json::from_str(&body(&b, "/ping")).expect("JSON");
    assert_eq!(ping["nodes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn what_a_peer_lacks_is_told_in_bytes() {
    const LOG: u64 = 64 * 1024 * 1024;
    let a = node("a", None);
    let b = node("b", Some(&a));
    let peer = |field: &str| status(&a)["mesh"]["peers"][0][field].as_u64().expect("a number");
    let pending = || metric(&a, "meshkv_replication_pending_bytes{peer=\"b\"}") as u64;
    until("all the room that there is", || peer("cursorRoomBytes") == LOG / 2);
    b.signal("STOP");
    let value = "v".repeat(200);
    for key in 0..1000 {
        assert_eq!(get(&a.address, &format!("/set?k=key{key:04}&v={value}&w=local")).status, 200);
    }
    // 13 bytes before key and value; more only by the block of each of the two workers.
    let bytes = 1000 * (13 + 7 + 200);
    until("published", || pending() >= bytes);
    assert!(pending() <= bytes + 2 * 64 * 1024, "{}", pending());
    let room = peer("cursorRoomBytes");
    assert!((LOG / 2 - bytes - 64 * 1024..LOG / 2 - bytes / 8).contains(&room), "{room}");
    b.signal("CONT");
    until("all is sent and held", || pending() == 0 && peer("acked") == 1000 && peer("sent") == 1000);
    until("and the room is back", || peer("cursorRoomBytes") == LOG / 2);
    assert_eq!(body(&b, "/get?k=key0999"), format!("\"{value}\""));
}

#[test]
fn nodes_compare_what_they_hold_while_they_take_writes() {
    let start = |name: &str, join: Option<&Node>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meshkv"));
        command.env("MESHKV_TEST_COMPARE_MS", "300");
        let url = join.map(|node| format!("http://{}", node.address));
        let mut arguments = vec!["--name", name, "--workers", "2", "--peer-port", "0"];
        if let Some(url) = &url {
            arguments.extend(["--join", url]);
        }
        Node::start_command(command, &arguments)
    };
    let a = start("a", None);
    let b = start("b", Some(&a));
    let c = start("c", Some(&a));
    let nodes = [&a, &b, &c];
    let of = |node: &Node, verdict: &str| {
        metric(node, &format!("meshkv_comparisons_total{{verdict=\"{verdict}\"}}"))
    };
    let all_equal = |node: &Node| {
        let peers = status(node)["mesh"]["peers"].clone();
        let fresh = |peer: &serde_json::Value| {
            let comparison = &peer["comparison"];
            comparison["verdict"] == "equal"
                && comparison["keys"] == 0
                && comparison["ageMs"].as_u64() < Some(5_000)
        };
        peers.as_array().is_some_and(|peers| peers.len() == 2 && peers.iter().all(fresh))
    };
    let enough: Vec<f64> = nodes.iter().map(|node| of(node, "equal") + of(node, "unknown") + 6.0).collect();
    let mut round = 0;
    until("each has compared itself several times meanwhile", || {
        for _ in 0..50 {
            let node = nodes[round % 3];
            let path = match round % 10 {
                0 => format!("/rm?k=key{}", round % 97),
                1 => format!("/set?k=key{}&v={round}&ttl=0.5", round % 89),
                _ => format!("/set?k=key{}&v={round}", round % 101),
            };
            assert!([200, 404].contains(&get(&node.address, &path).status), "{path}");
            round += 1;
        }
        nodes.iter().zip(&enough).all(|(node, enough)| of(node, "equal") + of(node, "unknown") >= *enough)
    });
    for node in nodes {
        until("all are equal", || all_equal(node));
        assert_eq!(of(node, "diverged"), 0.0);
    }
}

#[test]
fn a_token_makes_a_local_write_visible_elsewhere() {
    let a = node("a", None);
    let b = node("b", Some(&a));
    for round in 0..100 {
        let answer = get(&a.address, &format!("/set?k=k&v={round}&w=local"));
        let token = answer.header("X-Mesh-Token").expect("a token").to_owned();
        // Whether it has to wait is chance; it may be the last request of its connection.
        let end = ["HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.0\r\n\r\n"][round % 2];
        let read = Client::connect(&b.address).request(&format!("GET /get?k=k&after={token} {end}"));
        assert_eq!((read.status, read.body), (200, format!("\"{round}\"")));
    }
    let never = format!("{}-0-1", "0".repeat(32));
    let read = get(&b.address, &format!("/get?k=k&after={never}"));
    assert_eq!((read.status, read.body.contains("WRITE_NOT_SEEN")), (412, true));
    assert_eq!(get(&b.address, "/get?k=k&after=nonsense").status, 400);
    assert_eq!(get(&b.address, "/set?k=k&v=1&w=3").status, 503, "there are only two");
}

#[test]
fn a_node_that_was_killed_comes_back_with_everything() {
    let a = node("a", None);
    let mut b = node("b", Some(&a));
    let c = node("c", Some(&a));
    for key in 0..500 {
        assert_eq!(get(&a.address, &format!("/set?k=k{key}&v={key}")).status, 200);
    }
    b.child.kill().expect("killed");
    b.child.wait().expect("ended");
    // Nobody else is disturbed, and after a while nobody waits for it.
    until("writes at all go on", || get(&c.address, "/set?k=more&v=1").status == 200);
    until("it is seen as down", || sees(&a, "b").is_none_or(|state| state == "down"));
    assert_eq!(body(&a, "/rm?k=k7"), "{\"success\":true}");
    let b = node("b", Some(&c));
    assert_eq!(status(&b)["availableRecords"], 500);
    assert_eq!(get(&b.address, "/get?k=k7").status, 404);
    assert_eq!(body(&b, "/get?k=k8"), "\"8\"");
    until("the old lifetime is forgotten", || status(&a)["mesh"]["size"] == 3);
    assert_eq!(sees(&a, "b").as_deref(), Some("alive"));
}

#[test]
fn who_leaves_hands_over_what_it_alone_had() {
    let a = node("a", None);
    for round in 0..3 {
        let mut b = node("b", Some(&a));
        for key in 0..2000 {
            assert_eq!(get(&b.address, &format!("/set?k=r{round}k{key}&v=1&w=local")).status, 200);
        }
        b.signal("TERM");
        assert_eq!(b.wait(SOON).code(), Some(0));
        assert_eq!(status(&a)["availableRecords"], 2000 * (round + 1));
        until("it is gone", || status(&a)["mesh"]["size"] == 1);
    }
}

#[test]
fn strangers_on_the_peer_port_do_no_harm() {
    let a = node("a", None);
    let b = node("b", Some(&a));
    let peer = status(&b)["mesh"]["peers"][0]["address"].as_str().expect("an address").to_owned();
    let mut half_open = Vec::new();
    for round in 0..300u32 {
        let mut stream = TcpStream::connect(&peer).expect("connected");
        let _ = match round % 5 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            // A preamble, and a frame of 4 GiB.
            1 => stream.write_all(b"meshkv\x01\x01\0\0\0\0\0\0\0\0\xff\xff\xff\xff\x01"),
            // A version that nobody speaks.
            2 => stream.write_all(b"meshkv\x09\x0a\0\0\0\0\0\0\0\0"),
            // Says that it has a secret.
            3 => stream.write_all(b"meshkv\x01\x01\x01\0\0\0\0\0\0\0"),
            _ => Ok(()),
        };
        half_open.push(stream);
    }
    assert_eq!(body(&a, "/set?k=k&v=1"), "{\"success\":true}");
    assert_eq!(body(&b, "/get?k=k"), "\"1\"");
    for kind in ["not_a_peer", "version", "secret_missing", "frame"] {
        let name = format!("meshkv_peer_link_errors_total{{kind=\"{kind}\"}}");
        until(kind, || metric(&a, &name) + metric(&b, &name) >= 60.0);
    }
    // Refused with a preamble that says why.
    let mut answer = [0; 16];
    half_open[2].set_read_timeout(Some(SOON)).expect("set");
    half_open[2].read_exact(&mut answer).expect("an answer");
    assert_eq!((&answer[..6], answer[9]), (&b"meshkv"[..], 1));
    // More that say nothing at all than are kept: 256 a worker.
    half_open.clear();
    half_open.extend((0..620).map(|_| TcpStream::connect(&peer).expect("connected")));
    let full = "meshkv_peer_refusals_total{reason=\"full\"}";
    until("some are turned away", || metric(&a, full) > 0.0);
    assert_eq!(body(&b, "/set?k=k&v=2"), "{\"success\":true}");
    assert_eq!(body(&a, "/get?k=k"), "\"2\"");
    // The others are within seconds.
    for stream in &mut half_open {
        stream.set_read_timeout(Some(SOON)).expect("set");
        let ended = std::io::copy(stream, &mut std::io::sink());
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    assert_eq!(status(&a)["mesh"]["size"], 2);
    let log = a.log.lock().expect("a log").clone();
    for what in ["what came is not the peer protocol", "speaks versions", "not a frame", "refused: full"] {
        assert_eq!(log.matches(what).count(), 1, "{what}, once a minute: {log}");
    }
}

#[test]
fn a_stamp_too_far_ahead_ends_the_link_and_leaves_nothing() {
    use meshkv::base::version::{Hlc, Incarnation};
    use meshkv::peer::Frame;
    use meshkv::peer::frame::{Hello, MemberInfo, Reason};
    use meshkv::peer::link::{Keys, Link};
    use meshkv::peer::operation::{Kind, Operation};

    let a = node("a", None);
    let b = node("b", Some(&a));
    let peer = status(&b)["mesh"]["peers"][0]["address"].as_str().expect("an address").to_owned();
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    let mut stream = TcpStream::connect(&peer).expect("connected");
    stream.set_read_timeout(Some(SOON)).expect("set");
    let mut link = Link::dial(Keys::default());
    let info = MemberInfo {
        incarnation: Incarnation(u128::from(now_ms) << 80 | 7),
        name: "stranger".to_owned(),
        address: "127.0.0.1:9".parse().expect("an address"),
        http_port: 9,
        workers: 1,
    };
    let set = |key: &'static str, ahead_ms: u64, bytes: &mut Vec<u8>| {
        let hlc = Hlc::from_millis(now_ms + ahead_ms);
        let (key, value) = (key.as_bytes(), b"v");
        Operation { kind: Kind::Set, hlc, expires_at_ms: 0, marks: 0, key, value }.encode(bytes);
    };
    // One that is taken, one 70 s ahead, and one behind that.
    let mut bytes = Vec::new();
    for (key, ahead_ms) in [("soon", 30_000), ("later", 70_000), ("never", 0)] {
        set(key, ahead_ms, &mut bytes);
    }
    let mut refusal = None;
    let mut buffer = [0; 4096];
    while refusal.is_none() {
        stream.write_all(link.output()).expect("sent");
        link.wrote(link.output().len());
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "closed without a word");
        if link.receive(&buffer[..count]).expect("the protocol") {
            link.send(&Frame::Hello(Hello { member: info.clone(), lineage: 0, empty: true, worker: 0 }));
        }
        let mut lineage = None;
        while let Some(frame) = link.next_frame().expect("a frame") {
            match frame {
                Frame::Welcome(welcome) => lineage = Some(welcome.lineage),
                Frame::Refuse { reason, detail } => refusal = Some((reason, detail.to_owned())),
                _ => {}
            }
        }
        if let Some(lineage) = lineage {
            link.send(&Frame::Lineage(lineage));
            link.send(&Frame::Ops { first: 1, count: 3, ack_now: true, bytes: &bytes });
        }
    }
    let (reason, detail) = refusal.expect("a refusal");
    assert_eq!(reason, Reason::Clock, "{detail}");
    assert!(detail.starts_with("a stamp ") && detail.contains("ms ahead of this node's clock"), "{detail}");
    assert_eq!(body(&a, "/get?k=soon"), "\"v\"");
    assert_eq!((get(&a.address, "/get?k=later").status, get(&a.address, "/get?k=never").status), (404, 404));
    assert!(metric(&a, "meshkv_peer_refusals_total{reason=\"clock\"}") >= 1.0);
    until("it is logged", || a.log.lock().expect("a log").contains("refused: clock"));
    assert_eq!(body(&b, "/set?k=k&v=1"), "{\"success\":true}");
}

#[test]
fn a_secret_keeps_others_out_and_encrypts() {
    let folder = std::env::temp_dir().join(format!("meshkv-secret-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let secret = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    };
    let right = secret("right", "0123456789abcdef0123456789abcdef0123456789a=");
    let wrong = secret("wrong", "ffffffffffffffff0123456789abcdef0123456789a=");
    let start = |name: &str, join: Option<&Node>, secret: &str, until: &str| {
        let url = join.map_or_else(String::new, |node| format!("http://{}", node.address));
        let mut arguments = vec!["--name", name, "--peer-port", "0", "--secret-file", secret];
        if join.is_some() {
            arguments.extend(["--join", &url]);
        }
        Node::start_until(Command::new(env!("CARGO_BIN_EXE_meshkv")), &arguments, until)
    };
    let a = start("a", None, &right, "ready");
    let b = start("b", Some(&a), &right, "ready");
    assert_eq!(body(&a, "/set?k=k&v=1"), "{\"success\":true}");
    assert_eq!(body(&b, "/get?k=k"), "\"1\"");
    // What it has to say of joining comes before the last line of starting up.
    let log = b.log.lock().expect("a log").clone();
    let place = |line: &str| log.find(line).unwrap_or_else(|| panic!("no {line:?} in {log}"));
    assert!(place("mesh   ready, 2 members\n") < place("\nready\n"), "{log}");
    // There is a mesh, so it does not begin another; it says why it waits, and serves nothing.
    let mut c = start("c", Some(&a), &wrong, "waiting for one");
    assert_eq!(get(&c.address, "/set?k=k&v=2").status, 503);
    assert_eq!(status(&a)["mesh"]["size"], 2);
    until("counted", || metric(&a, "meshkv_peer_link_errors_total{kind=\"secret\"}") > 2.0);
    let complaints = a.log.lock().expect("a log").matches("closed").count();
    assert_eq!(complaints, 1, "several times a second is too often");
    let logs = [&a, &b, &c].map(|node| std::sync::Arc::clone(&node.log));
    // When there is nobody to join any more, it begins.
    drop((a, b));
    until("it has begun", || get(&c.address, "/set?k=k&v=2").status == 200);
    c.signal("TERM");
    c.wait(SOON);
    for log in logs {
        let log = log.lock().expect("a log");
        assert!(!log.contains("0123456789abcdef"), "the secret is in the log: {log}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn many_nodes_find_each_other_through_one() {
    let first = node("n0", None);
    let others: Vec<Node> = std::thread::scope(|scope| {
        let start = |n: usize| {
            let first = &first;
            scope.spawn(move || node(&format!("n{n}"), Some(first)))
        };
        let started: Vec<_> = (1..9).map(start).collect();
        started.into_iter().map(|thread| thread.join().expect("ready")).collect()
    });
    assert_eq!(body(&others[3], "/set?k=k&v=1&w=9"), "{\"success\":true}");
    for node in &others {
        until("everybody knows everybody", || status(node)["mesh"]["size"] == 9);
        assert_eq!(body(node, "/get?k=k"), "\"1\"");
    }
}

#[test]
fn the_one_to_join_may_come_later_than_the_one_who_joins() {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = placeholder.local_addr().expect("an address").port().to_string();
    drop(placeholder);
    let url = format!("http://127.0.0.1:{port}");
    // Nobody answers: after a while it begins by itself. The other begins by itself at once.
    let b = Node::start(&["--name", "b", "--peer-port", "0", "--join", &url]);
    let a = Node::start(&["--name", "a", "--peer-port", "0", "--port", &port]);
    until("they are one mesh", || status(&a)["mesh"]["size"] == 2 && status(&b)["mesh"]["size"] == 2);
    until("both serve", || get(&b.address, "/set?k=k&v=1").status == 200);
    until("and share", || body(&a, "/get?k=k") == "\"1\"");
}

#[test]
fn the_url_is_asked_for_ever() {
    let mut a = node("a", None);
    let (b, c) = (node("b", Some(&a)), node("c", Some(&a)));
    let port = a.address.rsplit(':').next().expect("a port").to_owned();
    assert_eq!(get(&b.address, "/set?k=k&v=1").status, 200);
    a.signal("TERM");
    assert_eq!(a.wait(SOON).code(), Some(0));
    until("the two go on by themselves", || status(&c)["mesh"]["size"] == 2);
    // Told of nobody, with another peer port than before: only those that were given its URL can find it.
    let a = Node::start(&["--name", "a", "--peer-port", "0", "--port", &port]);
    until("they have found it", || [&a, &b, &c].iter().all(|node| status(node)["mesh"]["size"] == 3));
    until("it has what they hold", || body(&a, "/get?k=k") == "\"1\"");
}

/// A node whose wall clock is wrong, as `MESHKV_TEST_CLOCK` says.
fn node_with_clock(name: &str, join: &Node, clock: &str) -> Node {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meshkv"));
    command.env("MESHKV_TEST_CLOCK", clock);
    let url = format!("http://{}", join.address);
    Node::start_command(command, &["--name", name, "--workers", "2", "--peer-port", "0", "--join", &url])
}

#[test]
fn who_has_another_time_than_most_takes_no_writes() {
    let a = node("a", None);
    let b = node("b", Some(&a));
    let c = node_with_clock("c", &a, "5000");
    until("c knows that its clock is wrong", || get(&c.address, "/healthcheck").status == 503);
    assert_eq!(body(&c, "/healthcheck"), "{\"status\":\"degraded\",\"reason\":\"clock\"}");
    let says = |node: &Node| (status(node)["state"].clone(), status(node)["reason"].clone());
    assert_eq!(says(&c), ("degraded".into(), "clock".into()));
    assert_eq!(says(&a), ("ok".into(), serde_json::Value::Null));
    for path in ["/set?k=k&v=v", "/set?k=k&v=v&w=local", "/set?v=v&k=k", "/rm?k=k", "/clear"] {
        let answer = get(&c.address, path);
        assert_eq!((answer.status, answer.body.contains("CLOCK_SKEW")), (503, true), "{path}");
    }
    assert_eq!(body(&a, "/set?k=k&v=1"), "{\"success\":true}");
    assert_eq!(body(&c, "/get?k=k"), "\"1\"", "it still takes what others write, and serves it");
    assert_eq!(get(&b.address, "/healthcheck").status, 200);
    assert_eq!(body(&b, "/set?k=k&v=2"), "{\"success\":true}");
    assert_eq!(body(&c, "/get?k=k"), "\"2\"");
}

#[test]
fn a_clock_that_jumps_by_an_hour_is_not_followed() {
    let a = node("a", None);
    let _b = node("b", Some(&a));
    let c = node_with_clock("c", &a, "3600000@2");
    std::thread::sleep(Duration::from_millis(4_000));
    for round in 0..100 {
        // Were c's stamps an hour ahead, its writes would win over everybody's for an hour, or be refused.
        assert_eq!(body(&c, &format!("/set?k=k&v=c{round}")), "{\"success\":true}");
        assert_eq!(body(&a, "/get?k=k"), format!("\"c{round}\""));
        assert_eq!(body(&a, &format!("/set?k=k&v=a{round}")), "{\"success\":true}");
        assert_eq!(body(&c, "/get?k=k"), format!("\"a{round}\""));
    }
    assert_eq!(get(&c.address, "/healthcheck").status, 200);
}

#[test]
fn a_node_that_cannot_take_what_others_have_accepted_is_not_healthy() {
    let roomy = Node::start(&["--name", "roomy", "--peer-port", "0", "--max-memory", "64M"]);
    let url = format!("http://{}", roomy.address);
    let small = Node::start(&["--name", "small", "--peer-port", "0", "--join", &url, "--max-memory", "1M"]);
    let is_healthy = || get(&small.address, "/healthcheck").status == 200;
    assert!(is_healthy());
    let mut client = support::Client::connect(&roomy.address);
    let value = "v".repeat(200);
    for n in 0..10_000 {
        assert_eq!(client.get(&format!("/set?k=key{n}&v={value}&w=local")).status, 200);
    }
    until("it says so", || get(&small.address, "/healthcheck").body.contains("\"reason\":\"memory\""));
    assert!(small.log.lock().expect("a log").contains("refused: memory"));
    // What it takes itself goes on; with room it catches up, and is healthy again.
    assert_eq!(body(&small, "/clear"), "{\"success\":true}");
    // It is tried again after some seconds, which is longer than a write waits for an answer: hence w=local.
    assert_eq!(body(&roomy, "/set?k=k&v=1&w=local"), "{\"success\":true}");
    until("it holds what the other has accepted", || body(&small, "/get?k=k") == "\"1\"");
    until("it is healthy", is_healthy);
    assert_eq!(body(&roomy, "/set?k=k&v=2"), "{\"success\":true}");
    assert_eq!(body(&small, "/get?k=k"), "\"2\"");
}
