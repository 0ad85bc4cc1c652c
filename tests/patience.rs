//! Goal: a connection that is idle, or whose request dribbles in, is closed when its time is up and not
//! before; the times are 75 s and 30 s by default. Method: a node in this process with short times. Deadlines
//! are looked at once a second, which bounds how late a close may be.

mod support;

use meshkv::config::NodeConfig;
use meshkv::node::extension::Extensions;
use meshkv::server::Server;
use std::time::{Duration, Instant};
use support::Client;

/// What a look once a second and a busy machine may add.
const LATE: Duration = Duration::from_secs(4);

fn start(idle_connection_ms: u64, head_arrival_ms: u64) -> (Server, String) {
    let config =
        NodeConfig { port: 0, workers: 1, idle_connection_ms, head_arrival_ms, ..NodeConfig::default() };
    let server = Server::start(config, Extensions::new()).expect("starts");
    let address = server.http_address().to_string();
    (server, address)
}

#[track_caller]
fn within(begun: Instant, limit_ms: u64) {
    let (took, limit) = (begun.elapsed(), Duration::from_millis(limit_ms));
    // The tick that a deadline is counted from may be almost over.
    assert!(took + Duration::from_millis(200) >= limit && took <= limit + LATE, "{took:?} for {limit:?}");
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = NodeConfig::default();
    assert_eq!((config.idle_connection_ms, config.head_arrival_ms), (75_000, 30_000));
    assert!(NodeConfig { idle_connection_ms: 0, ..NodeConfig::default() }.validate().is_err());
    assert!(NodeConfig { head_arrival_ms: u64::MAX, ..NodeConfig::default() }.validate().is_err());
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let (_server, address) = start(1_500, 60_000);
    let begun = Instant::now();
    let mut silent = Client::connect(&address);
    let mut busy = Client::connect(&address);
    for _ in 0..8 {
        assert_eq!(busy.get("/healthcheck").status, 200, "each request starts the time again");
        std::thread::sleep(Duration::from_millis(300));
    }
    let begun_idle = Instant::now();
    assert_eq!(busy.get("/healthcheck").status, 200);
    assert!(silent.is_closed());
    assert!(begun.elapsed() < LATE + Duration::from_millis(1_500));
    assert!(busy.is_closed());
    within(begun_idle, 1_500);
}

#[test]
fn a_request_that_dribbles_in_is_refused_however_steady() {
    let (_server, address) = start(60_000, 1_500);
    let mut idle = Client::connect(&address);
    assert_eq!(idle.get("/healthcheck").status, 200);
    let mut slow = Client::connect(&address);
    let begun = Instant::now();
    let mut writer = slow.stream.try_clone().expect("cloned");
    let dribble = std::thread::spawn(move || {
        use std::io::Write;
        for byte in b"GET /healthcheck HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if writer.write_all(&[*byte]).is_err() || begun.elapsed() > Duration::from_secs(10) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(slow.answer().status, 408);
    within(begun, 1_500);
    drop(slow.stream.shutdown(std::net::Shutdown::Both));
    dribble.join().expect("joined");
    assert_eq!(idle.get("/healthcheck").status, 200, "another connection is not judged by it");
}

#[test]
fn a_client_whose_reads_always_end_within_a_request_is_not_slow() {
    let (_server, address) = start(60_000, 1_500);
    let mut client = Client::connect(&address);
    let begun = Instant::now();
    let (first, second) = ("GET /healthcheck HT", "TP/1.1\r\nHost: x\r\n\r\n");
    client.send(first);
    // Longer than the time of a head, a look once a second, and a tick.
    while begun.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(200));
        client.send([second, first].concat());
        assert_eq!(client.answer().status, 200, "after {:?}", begun.elapsed());
    }
    let last = Instant::now();
    assert_eq!(client.answer().status, 408, "this one is");
    within(last, 1_500);
}

#[test]
fn a_body_that_does_not_come_brings_no_second_answer() {
    let (_server, address) = start(60_000, 1_500);
    for (field, part) in [("Content-Length: 5", "abc"), ("Transfer-Encoding: chunked", "5\r\nabc")] {
        let mut client = Client::connect(&address);
        let begun = Instant::now();
        client.send(format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n{part}"));
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.read_answer(false), None, "{field}");
        within(begun, 1_500);
    }
}
