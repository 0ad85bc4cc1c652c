//! Goal: clients of a balancer before real nodes notice nothing when nodes stop, pause and come back. Method:
//! `meshkv balance` and nodes as processes, load with a connection for each request, every answer checked.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::Node;
use support::balance::Balance;

const SOON: Duration = Duration::from_secs(20);

/// Four clients that never stop asking; what failed, and how many requests there were.
struct Load {
    stop: AtomicBool,
    done: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Load {
    fn during(address: &str, act: impl FnOnce(&Load)) -> (usize, Vec<String>) {
        let load = Load { stop: AtomicBool::new(false), done: AtomicUsize::new(0), failed: Mutex::default() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !load.stop.load(Ordering::Relaxed) {
                        if let Err(reason) = one_request(address) {
                            load.failed.lock().unwrap().push(reason);
                        }
                        load.done.fetch_add(1, Ordering::Relaxed);
                        // A pause leaves room for the nodes on a small machine.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            // Also when the act panics: the clients must end, or the scope never does.
            let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&load)));
            load.stop.store(true, Ordering::Relaxed);
            if let Err(panic) = acted {
                std::panic::resume_unwind(panic);
            }
        });
        (load.done.into_inner(), load.failed.into_inner().unwrap())
    }

    /// Waits until so many more requests are done.
    fn go_on(&self, requests: usize) {
        let until = self.done.load(Ordering::Relaxed) + requests;
        while self.done.load(Ordering::Relaxed) < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn one_request(address: &str) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(SOON)).expect("set");
    stream.write_all(b"GET /getKeys?limit=1 HTTP/1.0\r\n\r\n").map_err(|error| format!("write: {error}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("read after {answer:?}: {error}"))?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    Err(format!("{answer:?}"))
}

fn node(port: &str) -> Node {
    Node::start(&["--port", port, "--workers", "1", "--leave-notice", "2"])
}

#[test]
fn no_request_fails_while_nodes_stop_pause_and_come_back() {
    let mut nodes: Vec<Node> = (0..3).map(|_| node("0")).collect();
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let mut balance = Balance::start(&["--backends", &addresses.join(",")], &[]);
    let mut sorted = addresses.clone();
    sorted.sort();
    let all_up = |balance: &Balance| {
        let wanted: Vec<(&str, &str)> = sorted.iter().map(|address| (address.as_str(), "up")).collect();
        balance.becomes(SOON, &wanted);
    };
    let is_down = |balance: &Balance, address: &str| {
        let of = |one: &String| if one == address { "down" } else { "up" };
        let wanted: Vec<(&str, &str)> = sorted.iter().map(|one| (one.as_str(), of(one))).collect();
        balance.becomes(SOON, &wanted);
    };
    all_up(&balance);
    let (done, failed) = Load::during(&balance.address, |load| {
        load.go_on(300);
        // Paused: those who reached it before that is known wait for it; later ones go elsewhere.
        nodes[0].signal("STOP");
        is_down(&balance, &addresses[0]);
        for _ in 0..30 {
            one_request(&balance.address).expect("served by another");
        }
        nodes[0].signal("CONT");
        all_up(&balance);
        load.go_on(300);
        // Stopped, with the notice that a list without events needs, and started again at its old place.
        nodes[1].signal("TERM");
        nodes[1].wait(SOON);
        load.go_on(300);
        let port = addresses[1].rsplit(':').next().expect("a port").to_owned();
        nodes[1] = node(&port);
        all_up(&balance);
        load.go_on(300);
    });
    assert!(failed.is_empty(), "{} of {done}: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    balance.signal("TERM");
    assert_eq!(balance.wait(SOON).code(), Some(0));
}

#[test]
fn a_killed_node_costs_its_requests_in_flight_and_no_others() {
    let mut nodes: Vec<Node> = (0..3).map(|_| node("0")).collect();
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let balance = Balance::start(&["--backends", &addresses.join(",")], &[]);
    let (done, failed) = Load::during(&balance.address, |load| {
        load.go_on(300);
        nodes[2].child.kill().expect("killed");
        nodes[2].child.wait().expect("ended");
        load.go_on(1000);
    });
    // Four clients, one request each at a time.
    assert!(failed.len() <= 4, "{} of {done}: {:?}", failed.len(), &failed[..failed.len().min(5)]);
}

#[test]
fn the_file_of_backends_is_read_again_on_a_hang_up() {
    let nodes: Vec<Node> = (0..2).map(|_| node("0")).collect();
    let path = std::env::temp_dir().join(format!("meshkv-backends-{}", std::process::id()));
    std::fs::write(&path, format!("# the first\n{}\n", nodes[0].address)).expect("written");
    let balance = Balance::start(&["--backends-file", path.to_str().expect("text")], &[]);
    balance.becomes(SOON, &[(&nodes[0].address, "up")]);
    std::fs::write(&path, format!("{}\n", nodes[1].address)).expect("written");
    balance.signal("HUP");
    balance.becomes(SOON, &[(&nodes[1].address, "up")]);
    std::fs::write(&path, "not a backend\n").expect("written");
    balance.signal("HUP");
    balance.says("expected host:port; the backends stay as they are");
    balance.becomes(SOON, &[(&nodes[1].address, "up")]);
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn a_name_is_looked_up_and_its_addresses_are_the_backends() {
    let node = node("0");
    let port = node.address.rsplit(':').next().expect("a port");
    let balance = Balance::start(&["--dns-name", "localhost", "--group-port", port, "--check", "tcp"], &[]);
    let begun = std::time::Instant::now();
    while !balance.states().iter().any(|(name, state)| *name == node.address && state == "up") {
        assert!(begun.elapsed() < SOON, "{:#}", balance.page());
        std::thread::sleep(Duration::from_millis(10));
    }
    one_request(&balance.address).expect("served");
    let unknown = Balance::start(&["--backends", "no-such-name.invalid:80"], &[]);
    unknown.says("cannot be resolved");
    let error = one_request(&unknown.address).expect_err("nobody is there");
    assert!(error.contains("503"), "{error}");
}

#[test]
fn the_balancer_is_never_its_own_backend() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let own = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let port = own.rsplit(':').next().expect("a port");
    let balance = Balance::start(&["--port", port, "--backends", &own], &[]);
    balance.becomes(SOON, &[(&own, "unreachable")]);
    assert_eq!(balance.page()["backends"][0]["reason"], "it is this balancer itself");
    assert!(one_request(&balance.address).expect_err("nobody").contains("503"));
}

#[test]
fn the_pages_tell_whether_it_is_ready_and_stopping() {
    let node = node("0");
    let balance = Balance::start(&["--backends", &node.address], &[]);
    balance.becomes(SOON, &[(&node.address, "up")]);
    let status = |path: &str| support::Client::connect(&balance.status).get(path).status;
    assert_eq!((status("/live"), status("/ready"), status("/nothing")), (200, 200, 404));
    let lone = Balance::start(&["--backends", "127.0.0.1:1"], &[]);
    let mut client = support::Client::connect(&lone.status);
    assert_eq!(client.get("/ready").status, 503);
    // A connection that is served keeps it from ending, and it says that it is about to.
    let mut held = TcpStream::connect(&balance.address).expect("connects");
    held.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: t\r\n").expect("half a request");
    std::thread::sleep(Duration::from_millis(100));
    balance.signal("TERM");
    balance.says("draining");
    let begun = std::time::Instant::now();
    while status("/ready") != 503 {
        assert!(begun.elapsed() < SOON, "it says that it is ready");
    }
    assert_eq!(status("/live"), 200);
    while TcpStream::connect(&balance.address).is_ok() {
        assert!(begun.elapsed() < SOON, "new connections are still taken in");
    }
    held.write_all(b"\r\n").expect("the rest");
    let mut answer = [0; 12];
    held.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
}
