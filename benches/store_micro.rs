//! The store by itself: bytes an entry, memory after churn, growth pauses, lookups alone and in batches; and
//! what the engine adds to a lookup between the socket's bytes and its answer's.
//!
//! `cargo bench --bench store_micro` prints the table; `-- --tiny` does it with small numbers in a second;
//! `-- --only memory,churn,pauses,lookups,engine` chooses (of the last `engine-get16,engine-get1,engine-set16`).
//! Times are CPU time of the thread; absolute values are this machine's. `--untimed` is for profilers.

use meshkv::base::clock::{HybridClock, Now};
use meshkv::base::version::{Hlc, Incarnation};
use meshkv::config::AckLevel;
use meshkv::http::session::Session;
use meshkv::mesh::MeshConfig;
use meshkv::node::engine::Engine;
use meshkv::node::extension::Extensions;
use meshkv::node::{Connection, Node, Settings};
use meshkv::store::{Marks, MemoryStore, NewRecord, Stamp, Storage, StoreConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW_MS: u64 = 1_700_000_000_000;

fn key(n: u64, length: usize) -> Vec<u8> {
    let mut key = format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes();
    key.resize(length, b'k');
    key
}

fn set(store: &MemoryStore, clock: &HybridClock, key: &[u8], value: &[u8]) {
    let record = NewRecord { key, value, marks: Marks::KEY_CLEAN.with(Marks::VALUE_CLEAN), expires_at_ms: 0 };
    store.set(store.hash(key), record, Stamp::Local(clock), NOW_MS).expect("fits");
}

fn filled(entries: u64, key_bytes: usize, value_bytes: usize) -> (MemoryStore, HybridClock) {
    let store = MemoryStore::new(StoreConfig::default()).expect("a power of two");
    let clock = HybridClock::new();
    let value = vec![b'v'; value_bytes];
    for n in 0..entries {
        set(&store, &clock, &key(n, key_bytes), &value);
    }
    (store, clock)
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// `--untimed`: no clock is read, for profilers that count instructions (valgrind stops at how it is read).
static UNTIMED: AtomicBool = AtomicBool::new(false);

fn thread_cpu_ns() -> u64 {
    if UNTIMED.load(Ordering::Relaxed) {
        return 0;
    }
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn row(name: &str, measured: String, target: &str, met: bool) {
    println!("{name:<52} {measured:>26}   {target:<16} {}", if met { "met" } else { "MISSED" });
}

fn main() {
    let tiny = std::env::args().any(|argument| argument == "--tiny");
    UNTIMED.store(std::env::args().any(|argument| argument == "--untimed"), Ordering::Relaxed);
    let million: u64 = if tiny { 10_000 } else { 1_000_000 };
    println!("{:<52} {:>26}   {:<16} verdict", "store", "measured", "target");

    let only = std::env::args().skip_while(|argument| argument != "--only").nth(1).unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|name| name == part);
    if wanted("memory") {
        memory(million);
    }
    if wanted("churn") {
        churn(2 * million);
    }
    if wanted("pauses") {
        pauses(10 * million);
    }
    if wanted("lookups") {
        lookups(10 * million);
    }
    if wanted("engine") || only.contains("engine-") {
        engine(10 * million, &|part| wanted("engine") || wanted(part));
    }
}

/// What an entry takes, everything included, at many sizes of the store.
fn memory(million: u64) {
    for (key_bytes, value_bytes, target) in [(16, 32, 76.0), (24, 128, 182.0)] {
        let mut all = Vec::new();
        for millions in [1, 2, 3, 5, 7, 10, 14, 20] {
            let entries = millions * million;
            let before = resident_bytes();
            let (store, _) = filled(entries, key_bytes, value_bytes);
            let each = store.usage(NOW_MS).memory_bytes as f64 / entries as f64;
            let resident = resident_bytes().saturating_sub(before) as f64 / entries as f64;
            let name = format!("bytes an entry, {key_bytes}+{value_bytes}, {entries} entries");
            row(
                &name,
                format!("{each:.1} ({resident:.1} resident)"),
                &format!("<= {target}"),
                each <= target,
            );
            all.push(each);
        }
        let ratio = all.iter().copied().fold(0.0, f64::max) / all.iter().copied().fold(f64::MAX, f64::min);
        row("  highest / lowest", format!("{ratio:.3}"), "<= 1.10", ratio <= 1.10);
    }
}

/// Resident memory against live data after values have changed size, and after they have shrunk.
fn churn(entries: u64) {
    let before = resident_bytes();
    let (store, clock) = filled(entries, 16, 32);
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let live = |lengths: &[u8]| -> u64 {
        lengths.iter().map(|&value| (12 + 16 + u64::from(value)).next_multiple_of(8) + 64 / 9).sum()
    };
    let mut lengths = vec![32u8; entries as usize];
    let value = [b'w'; 256];
    for _ in 0..4 * entries {
        let n = random() % entries;
        lengths[n as usize] = (random() % 128) as u8;
        set(&store, &clock, &key(n, 16), &value[..usize::from(lengths[n as usize])]);
    }
    let settle = || {
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 300 {
            store.maintain(NOW_MS + begun.elapsed().as_millis() as u64 * 1000, Hlc::ZERO, 4096);
        }
    };
    settle();
    let lengths_bytes = lengths.len() as u64;
    let ratio = |lengths: &[u8]| {
        resident_bytes().saturating_sub(before + lengths_bytes) as f64 / live(lengths) as f64
    };
    let churned = ratio(&lengths);
    row("resident / live after value sizes churn", format!("{churned:.3}"), "<= 1.25", churned <= 1.25);
    for n in 0..entries {
        lengths[n as usize] = 8;
        set(&store, &clock, &key(n, 16), &value[..8]);
    }
    settle();
    let shrunk = ratio(&lengths);
    row("resident / live after shrinking", format!("{shrunk:.3}"), "<= 1.4", shrunk <= 1.4);
}

/// The longest that the thread has run between two looks, if nothing is done but looking: what the machine
/// itself takes from it (a hypervisor's other guests count as its CPU time).
fn longest_of_nothing(looks: u64) -> u64 {
    let mut before = thread_cpu_ns();
    let longest = (0..looks).map(|_| {
        let now = thread_cpu_ns();
        let took = now - before;
        before = now;
        took
    });
    longest.max().unwrap_or(0)
}

/// How long single inserts take while the table grows.
fn pauses(entries: u64) {
    const RUNS: usize = 5;
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3).expect("digits");
    // What the store does at an insert it does each time, for the hash has the same seed; what the machine does
    // meanwhile, it does now and then. So of each insert the fastest of all runs counts.
    let mut fastest = vec![u32::MAX; entries as usize];
    let mut longest_at_all = 0;
    for _ in 0..RUNS {
        let store =
            MemoryStore::new(StoreConfig { seed: Some(1), ..Default::default() }).expect("a power of two");
        let clock = HybridClock::new();
        for (n, fastest) in (0..).zip(&mut fastest) {
            let key = key(n, 16);
            let before = thread_cpu_ns();
            set(&store, &clock, &key, &[b'v'; 32]);
            let took = thread_cpu_ns() - before;
            histogram.record(took.max(1)).expect("in range");
            *fastest = (*fastest).min(u32::try_from(took).unwrap_or(u32::MAX));
            longest_at_all = longest_at_all.max(took);
        }
    }
    let p999 = histogram.value_at_quantile(0.999) as f64 / 1000.0;
    row("growth pause an insert, p99.9, CPU time", format!("{p999:.1} us"), "<= 20 us", p999 <= 20.0);
    let longest = f64::from(fastest.into_iter().max().unwrap_or(0)) / 1000.0;
    let nothing = longest_of_nothing(4 * entries) as f64 / 1000.0;
    let at_all = longest_at_all as f64 / 1000.0;
    let shown = format!("{longest:.0} us (once: {at_all:.0} us; of nothing: {nothing:.0} us)");
    let name = format!("growth pause an insert, longest in each of {RUNS} runs, CPU time");
    row(&name, shown, "<= 200 us", longest <= 200.0);
}

/// Lookups of random keys, one by one and in batches whose misses overlap; overwrites likewise.
fn lookups(entries: u64) {
    let (store, clock) = filled(entries, 16, 32);
    while store.settle() {}
    let count = entries.min(4_000_000);
    let keys: Vec<Vec<u8>> = (0..count).map(|n| key(n.wrapping_mul(2_654_435_761) % entries, 16)).collect();
    let time = |work: &mut dyn FnMut()| {
        let begun = thread_cpu_ns();
        work();
        (thread_cpu_ns() - begun) as f64 / count as f64
    };
    let mut found = 0;
    let single = time(&mut || {
        for key in &keys {
            found += store.get(store.hash(key), key, NOW_MS, |record| record.value.len()).unwrap_or(0);
        }
    });
    let batched = time(&mut || {
        for batch in keys.chunks(16) {
            let mut hashes = [Default::default(); 16];
            for (hash, key) in hashes.iter_mut().zip(batch) {
                *hash = store.hash(key);
            }
            let hashes = &hashes[..batch.len()];
            store.prefetch(hashes);
            for (hash, key) in hashes.iter().zip(batch) {
                found += store.get(*hash, key, NOW_MS, |record| record.value.len()).unwrap_or(0);
            }
        }
    });
    let together = time(&mut || {
        for batch in keys.chunks(32) {
            let mut asked = [(Default::default(), &[][..]); 32];
            for (asked, key) in asked.iter_mut().zip(batch) {
                *asked = (store.hash(key), &key[..]);
            }
            store.get_many(&asked[..batch.len()], NOW_MS, |_, record| {
                found += record.map_or(0, |record| record.value.len());
            });
        }
    });
    assert_eq!(found as u64, 3 * 32 * count);
    let overwrite = time(&mut || {
        for key in &keys {
            set(&store, &clock, key, &[b'w'; 32]);
        }
    });
    row("lookup, one by one", format!("{single:.0} ns"), "<= 300 ns", single <= 300.0);
    row("lookup, in batches of 16", format!("{batched:.0} ns"), "<= 150 ns", batched <= 150.0);
    row("lookup, 32 together", format!("{together:.0} ns"), "<= 150 ns", together <= 150.0);
    row("overwrite, one by one", format!("{overwrite:.0} ns"), "<= 450 ns", overwrite <= 450.0);
}

struct Nowhere;

impl Connection for Nowhere {
    fn local_address(&self) -> Option<std::net::SocketAddr> {
        None
    }
}

/// One turn of a worker but for its sockets: what `--only engine` measures. Not inlined, so that a profiler that
/// counts instructions can be told to count here: `valgrind --tool=callgrind --toggle-collect='*serve_turn*'`.
#[inline(never)]
fn serve_turn(engine: &mut Engine<MemoryStore>, sessions: &mut [Session], input: &[u8]) {
    engine.begin(Now { wall_ms: NOW_MS, mono_ns: 0 });
    let each = input.len() / sessions.len();
    for (session, bytes) in sessions.iter_mut().zip(input.chunks(each)) {
        engine.slot(&[])[..bytes.len()].copy_from_slice(bytes);
        engine.ingest(session, bytes.len(), &Nowhere, true);
    }
    engine.execute();
    engine.record_duration(1000);
}

/// One worker's turns of 32 connections: everything but the sockets.
fn engine(entries: u64, wanted: &dyn Fn(&str) -> bool) {
    const CONNECTIONS: usize = 32;
    let (store, _) = filled(entries, 16, 32);
    while store.settle() {}
    let settings = Settings {
        name: "n1".to_owned(),
        port: 8080,
        max_key_chars: 64,
        max_value_chars: 256,
        acks: AckLevel::All,
        cors_origin: None,
        workers: 1,
        max_connections: 64,
    };
    let node = Node::new(
        store,
        settings,
        MeshConfig::alone(Incarnation(1)),
        Now::default(),
        Extensions::new(),
        Default::default,
    );
    let mut engine = Engine::new(Arc::new(node), 0);
    let mut sessions: Vec<Session> = (0..CONNECTIONS).map(|_| Session::new()).collect();
    let mut next = 0u64;
    let mut input = Vec::new();
    for (part, name, depth, value, target) in [
        ("engine-get16", "a GET in the engine, 16 deep", 16, "", 200.0),
        ("engine-get1", "a GET in the engine, unpipelined", 1, "", 250.0),
        ("engine-set16", "a SET in the engine, 16 deep", 16, "&v=wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww", 350.0),
    ] {
        if !wanted(part) {
            continue;
        }
        let requests = CONNECTIONS as u64 * depth;
        let turns = (entries / requests).clamp(4, 320_000 / depth);
        let mut took = 0;
        for turn in 0..turns + turns / 8 {
            input.clear();
            for _ in 0..requests {
                next = next.wrapping_add(2_654_435_761);
                input.extend_from_slice(if value.is_empty() { b"GET /get?k=" } else { b"GET /set?k=" });
                input.extend_from_slice(&key(next % entries, 16));
                input.extend_from_slice(value.as_bytes());
                input.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n\r\n");
            }
            let begun = thread_cpu_ns();
            serve_turn(&mut engine, &mut sessions, &input);
            if turn >= turns / 8 {
                took += thread_cpu_ns() - begun;
            }
            for index in 0..CONNECTIONS {
                let answers = engine.answers_of(index);
                assert!(answers.starts_with(b"HTTP/1.1 200") && answers.len() > 100 * depth as usize);
            }
        }
        let each = took as f64 / (turns * requests) as f64;
        row(name, format!("{each:.0} ns"), &format!("<= {target} ns"), each <= target);
    }
}
