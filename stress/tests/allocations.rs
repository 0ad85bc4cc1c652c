//! Goal: a request costs no allocation, in either loop. Method: an allocator that counts; ten times the requests
//! may not need noticeably more of it.

mod support;

use meshkv_stress::arrival::Arrival;
use meshkv_stress::run::{Pace, Plan, Verify, run};
use meshkv_stress::target::Target;
use meshkv_stress::workload::{KeyDist, Workload, Zipf};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

#[global_allocator]
static COUNTED: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Answers gets and sets without allocating; every key's value has three letters more than nothing to look up.
fn server() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                let mut held = 0;
                while let Ok(bytes @ 1..) = stream.read(&mut buffer[held..]) {
                    held += bytes;
                    let mut at = 0;
                    while let Some(end) = buffer[at..held].windows(4).position(|four| four == b"\r\n\r\n") {
                        let request = &buffer[at..at + end];
                        let answer: &[u8] = if request.starts_with(b"GET /set") {
                            b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}"
                        } else {
                            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
                        };
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                        at += end + 4;
                    }
                    buffer.copy_within(at..held, 0);
                    held -= at;
                }
            });
        }
    });
    url
}

fn plan(url: &str, requests: u64, pace: Option<Pace>) -> Plan {
    let dist = KeyDist::Zipf(Zipf::new(10_000, 0.99));
    Plan {
        targets: vec![Target::new(url).expect("a URL")],
        workload: Workload::new([3, 1, 0, 0], 10_000, dist, Some((10, 50)), 1, None),
        requests: Some(requests),
        duration: None,
        warmup: Duration::ZERO,
        pace,
        connections: 8,
        threads: 2,
        pipeline: 4,
        timeout: Duration::from_secs(20),
        verify: Verify::Body,
        seed: 1,
        tell_thousands: false,
    }
}

#[test]
fn requests_do_not_allocate() {
    let url = server();
    for pace in [None, Some(Pace { rate: 40_000.0, arrival: Arrival::Poisson })] {
        let allocations = |requests| {
            let plan = plan(&url, requests, pace);
            let region = Region::new(COUNTED);
            let outcome = run(&plan, &AtomicBool::new(false), |_| {}).expect("runs");
            let change = region.change();
            assert_eq!(outcome.stats.sent, requests);
            // A quarter are gets of what is not there: failing does not allocate either.
            assert!(outcome.stats.failed > requests / 5, "{} failed", outcome.stats.failed);
            change.allocations + change.reallocations
        };
        allocations(2_000);
        let (few, many) = (allocations(4_000), allocations(40_000));
        // Buffers grow to their size, and each second has its histograms; 36,000 requests more have nothing.
        println!("{few} allocations for 4,000 requests, {many} for 40,000");
        assert!(many < few + 500, "{few} allocations for 4,000 requests, {many} for 40,000");
    }
}
