//! Goal: at its bounds a balancer stays what it is: without descriptors, with more clients than may wait, with
//! connections on which nothing happens, and after a load. Method: real sockets; where a bound is an hour, a
//! shorter one is set (the hour itself passes in `balancer::core::patience`'s tests, on virtual time).

mod support;

use meshkv::balancer::config::{BalanceConfig, Source};
use meshkv::balancer::core::patience::Patience;
use meshkv::balancer::core::pool::CheckMode;
use meshkv::balancer::{Balancer, Member};
use socket2::{Domain, SockRef, Socket, Type};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use support::balance::Balance;

const SOON: Duration = Duration::from_secs(20);

/// A backend. What a connection's first byte is, it does: `e` gives back what comes, `h` holds the connection
/// and says nothing, `d` waits for the client's end and then says something ten times a second, thirty times.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    let Ok(length @ 1..) = stream.read(&mut buffer[..1]) else { return };
    let manner = buffer[0];
    let mut filled = length;
    loop {
        if manner == b'e' && stream.write_all(&buffer[..filled]).is_err() {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(length @ 1..) => filled = length,
            _ => break,
        }
    }
    if manner == b'd' {
        for _ in 0..30 {
            if stream.write_all(b".").is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    if manner == b'h' {
        // The client has ended; this side has not, and never will by itself.
        loop {
            std::thread::park();
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(SOON)).expect("set");
    stream.set_write_timeout(Some(SOON)).expect("set");
    stream
}

/// Sends something and takes it back.
#[track_caller]
fn echo(stream: &mut TcpStream) {
    stream.write_all(b"echo").expect("sent");
    let mut back = [0; 4];
    stream.read_exact(&mut back).expect("an answer");
    assert_eq!(&back, b"echo");
}

#[track_caller]
fn is_told_503(stream: &mut TcpStream) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer and an end");
    assert!(text.starts_with("HTTP/1.1 503 "), "{text:?}");
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < SOON, "not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn descriptors(pid: u32) -> BTreeSet<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Those that are there all the time: others are of checks and of clients that have just gone.
fn lasting_descriptors(pid: u32) -> BTreeSet<u64> {
    let mut lasting = descriptors(pid);
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(50));
        lasting = &lasting & &descriptors(pid);
    }
    lasting
}

fn limit_descriptors(pid: u32, soft: u64) {
    let nofile = format!("--nofile={soft}:");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &nofile]).status();
    assert!(status.expect("prlimit runs").success());
}

fn metric(status: &str, name: &str) -> u64 {
    let page = support::Client::connect(status).get("/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("meshkv_balancer_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
}

#[test]
fn without_descriptors_clients_are_told_and_nobody_else_suffers() {
    let balance = Balance::start(&["--backends", &backend().to_string(), "--check", "tcp"], &[]);
    let page = balance.page();
    let name = page["backends"][0]["name"].as_str().expect("one").to_owned();
    balance.becomes(SOON, &[(&name, "up")]);
    let address = balance.address.parse().expect("an address");
    let mut held: Vec<TcpStream> = (0..8).map(|_| connect(address)).collect();
    held.iter_mut().for_each(echo);
    let pid = balance.child.id();
    let before = lasting_descriptors(pid);
    let lowest_free = (0..).find(|number| !before.contains(number)).expect("some number");
    // The kernel gives the lowest number that is free; from now on there is none.
    limit_descriptors(pid, lowest_free);
    let scarce = Instant::now();
    let mut told: Vec<TcpStream> = (0..6).map(|_| connect(address)).collect();
    told.iter_mut().for_each(is_told_503);
    // Someone who asks for the status now is answered when it is over, without another one who comes.
    let mut asker = support::Client::connect(&balance.status);
    asker.send("GET /ready HTTP/1.1\r\nHost: test\r\n\r\n");
    // Long enough for three checks that cannot be made.
    while scarce.elapsed() < Duration::from_millis(3_500) {
        held.iter_mut().for_each(echo);
        std::thread::sleep(Duration::from_millis(100));
    }
    is_told_503(&mut connect(address));
    limit_descriptors(pid, 1024);
    let lasted_ms = scarce.elapsed().as_millis() as u64;
    assert_eq!(asker.answer().status, 200);
    eventually("new clients are served", || {
        let mut stream = connect(address);
        let mut back = [0; 1];
        stream.write_all(b"e").is_ok() && stream.read_exact(&mut back).is_ok() && back == *b"e"
    });
    held.iter_mut().for_each(echo);
    let page = balance.page();
    let told = page["connections"]["out_of_descriptors"].as_u64().expect("a number");
    assert!(told >= 7, "{told}");
    // It has been up all the time: that it could not be checked was not its fault.
    assert_eq!(page["backends"][0]["state"], "up");
    assert!(page["backends"][0]["for_ms"].as_u64().expect("a number") >= lasted_ms, "{page:#}");
    drop(held);
    // Less than before: the eight are gone.
    eventually("every descriptor is closed", || descriptors(pid).len() < before.len());
}

fn balancer(source: Source, patience: Patience) -> Balancer {
    let config = BalanceConfig {
        check: CheckMode::Off,
        workers: 1,
        status: Some(([127, 0, 0, 1], 0).into()),
        patience,
        ..BalanceConfig::new(source)
    };
    Balancer::start(config).expect("starts")
}

#[test]
fn more_clients_than_may_wait_are_told_at_once_and_the_others_are_served() {
    // Who waits would wait for longer than this test takes.
    let patience = Patience { waiting_max: 3, wait_ms: 600_000, ..Patience::default() };
    let balancer = balancer(Source::Given(Vec::new()), patience);
    let status = balancer.status_address().expect("asked for").to_string();
    let mut waiting: Vec<TcpStream> = (0..3).map(|_| connect(balancer.address())).collect();
    eventually("three wait", || metric(&status, "waiting") == 3);
    for _ in 0..4 {
        is_told_503(&mut connect(balancer.address()));
    }
    assert_eq!((metric(&status, "waiting"), metric(&status, "unavailable_total")), (3, 4));
    balancer.set_members(vec![Member { name: "late".into(), address: backend() }]);
    waiting.iter_mut().for_each(echo);
    assert_eq!((metric(&status, "waiting"), metric(&status, "unavailable_total")), (0, 4));
}

#[test]
fn connections_on_which_nothing_moves_end_and_those_that_speak_in_time_do_not() {
    let backends = vec![backend().to_string()];
    let patience = Patience { idle_ms: 4_000, half_closed_ms: 2_000, ..Patience::default() };
    let balancer = balancer(Source::Static { backends, file: None }, patience);
    let address = balancer.address();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut idle = connect(address);
            echo(&mut idle);
            let begun = Instant::now();
            assert_eq!(idle.read(&mut [0; 1]).expect("a clean end"), 0);
            assert!(begun.elapsed() >= Duration::from_millis(3_900), "{:?}", begun.elapsed());
        });
        scope.spawn(|| {
            let mut busy = connect(address);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(7) {
                echo(&mut busy);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        scope.spawn(|| {
            let mut stuck = connect(address);
            stuck.write_all(b"h").expect("sent");
            stuck.shutdown(Shutdown::Write).expect("shut");
            let begun = Instant::now();
            // Whoever waits for an answer must not take this for its end.
            let error = stuck.read(&mut [0; 1]).expect_err("no clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
        });
        scope.spawn(|| {
            // Half closed for three seconds, but never silent for two.
            let mut dripping = connect(address);
            dripping.write_all(b"d").expect("sent");
            dripping.shutdown(Shutdown::Write).expect("shut");
            let mut text = String::new();
            dripping.read_to_string(&mut text).expect("a clean end");
            assert_eq!(text.len(), 30);
        });
    });
}

#[test]
fn a_backend_that_never_takes_a_connection_costs_an_attempt_and_no_client() {
    // Its queue is full, and the kernel drops whoever comes after that.
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("binds");
    deaf.listen(0).expect("listens");
    let deaf_address = deaf.local_addr().expect("bound").as_socket().expect("an address");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&deaf_address, Duration::from_millis(200)) {
        queued.push(stream);
        assert!(queued.len() < 10, "its queue does not fill");
    }
    let backends = vec![deaf_address.to_string(), backend().to_string()];
    let balancer = balancer(Source::Static { backends, file: None }, Patience::default());
    for _ in 0..12 {
        echo(&mut connect(balancer.address()));
    }
    let member = balancer.members().into_iter().find(|member| member.address == Some(deaf_address));
    let member = member.expect("known");
    // After three of them nobody is sent there any more.
    assert_eq!((member.state, member.reason.as_str()), ("down", "connections time out"));
    let status = balancer.status_address().expect("asked for").to_string();
    assert_eq!(metric(&status, "unavailable_total"), 0);
    // It was the first choice of six; one more than three may come while the third failure is on its way.
    let retries = metric(&status, "retries_total");
    assert!((3..6).contains(&retries), "{retries}");
}

/// A hundred connections at once, fewer than the backend's queue of those that it has not accepted yet: most are
/// given back what they send, some are reset with bytes under way.
fn wave(address: SocketAddr) {
    std::thread::scope(|scope| {
        for thread in 0..10 {
            scope.spawn(move || {
                let mut sent = vec![b'e'; 96 * 1024];
                sent[1] = thread;
                let mut streams: Vec<TcpStream> = (0..10).map(|_| connect(address)).collect();
                for stream in &mut streams {
                    stream.write_all(&sent).expect("sent");
                }
                for (at, mut stream) in streams.into_iter().enumerate() {
                    if at % 3 == 0 {
                        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
                        continue;
                    }
                    let mut back = vec![0; sent.len()];
                    stream.read_exact(&mut back).expect("all of it");
                    assert!(back == sent);
                }
            });
        }
    });
}

#[test]
fn after_a_load_descriptors_and_memory_are_where_they_were() {
    let balance = Balance::start(&["--backends", &backend().to_string(), "--check", "off"], &[]);
    let pid = balance.child.id();
    let address = balance.address.parse().expect("an address");
    let resident = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it lives");
        text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
    };
    let workers = std::thread::available_parallelism().expect("known").get();
    let settled = |what: &str, most: usize| {
        eventually(what, || metric(&balance.status, "connections") == 0);
        eventually(what, || descriptors(pid).len() <= most);
    };
    let before = descriptors(pid).len();
    // A worker keeps four pipes for the next bulk.
    let most = before + workers * 4 * 2;
    for _ in 0..3 {
        wave(address);
    }
    settled("all is closed after the first waves", most);
    let first = resident();
    for _ in 0..24 {
        wave(address);
    }
    settled("all is closed in the end", most);
    let last = resident();
    println!("{before} descriptors before; resident {first} bytes after 3 waves, {last} after 27");
    assert!(last <= first + (4 << 20), "{first} bytes after 3 waves, {last} after 27");
}
