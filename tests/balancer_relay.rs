//! Goal: the relay changes nothing: every byte arrives, in order, both ways, ends are ends and resets are
//! resets, and nothing is left behind. Method: random transfers through a balancer in this process, by copying
//! and by splicing, checked byte by byte at both ends.

mod support;

use meshkv::balancer::Balancer;
use meshkv::balancer::config::{BalanceConfig, Source};
use meshkv::balancer::core::pool::CheckMode;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Tests here count the descriptors of the process they share.
static ALONE: Mutex<()> = Mutex::new(());

/// Transfers per way of moving bytes; `MESHKV_TRANSFERS` asks for another number.
fn transfers() -> u64 {
    std::env::var("MESHKV_TRANSFERS").ok().map_or(10_000, |text| text.parse().expect("a number"))
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The bytes of one direction, which both ends can make.
struct Stream(Random);

impl Stream {
    fn new(seed: u64) -> Stream {
        Stream(Random(seed | 1))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            let value = self.0.next().to_le_bytes();
            eight.copy_from_slice(&value[..eight.len()]);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client ends first, the backend answers after that.
    ClientFirst,
    BackendFirst,
    ClientResets,
    BackendResets,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    up: u64,
    down: u64,
    ending: Ending,
}

impl Plan {
    fn random(random: &mut Random) -> Plan {
        let seed = random.next();
        let mut size = || {
            let most =
                [1, 3_000, 70_000, 1_500_000][[0, 1, 1, 1, 1, 2, 2, 2, 2, 3][(random.next() % 10) as usize]];
            // Whole eights, so that a stream can be made in pieces of any such size.
            random.next() % most / 8 * 8
        };
        let (up, down) = (size(), size());
        let endings =
            [Ending::ClientFirst, Ending::BackendFirst, Ending::ClientResets, Ending::BackendResets];
        let ending = endings[[0, 0, 0, 1, 1, 1, 2, 3][(random.next() % 8) as usize]];
        Plan { seed, up, down, ending }
    }

    fn encode(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (place, value) in bytes.chunks_mut(8).zip([self.seed, self.up, self.down, self.ending as u64]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; 32]) -> Plan {
        let value = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight"));
        let endings =
            [Ending::ClientFirst, Ending::BackendFirst, Ending::ClientResets, Ending::BackendResets];
        Plan { seed: value(0), up: value(1), down: value(2), ending: endings[value(3) as usize] }
    }

    fn up_stream(self) -> Stream {
        Stream::new(self.seed)
    }

    fn down_stream(self) -> Stream {
        Stream::new(!self.seed)
    }
}

fn send(stream: &mut TcpStream, source: &mut Stream, bytes: u64) -> std::io::Result<()> {
    let mut left = bytes;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        source.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// Reads until the end or an error; all that comes must be what the stream says. How much it was, and how it
/// ended.
fn receive(stream: &mut TcpStream, expected: &mut Stream, most: u64) -> (u64, Option<ErrorKind>) {
    let mut taken = 0;
    let mut buffer = vec![0; 48 * 1024];
    let mut wanted = vec![0; 48 * 1024];
    let mut held = 0;
    loop {
        match stream.read(&mut buffer[held..]) {
            Ok(0) => {
                assert_eq!(held, 0, "an end in the middle of a word");
                return (taken, None);
            }
            Ok(length) => {
                let whole = (held + length) / 8 * 8;
                expected.fill(&mut wanted[..whole]);
                assert!(buffer[..whole] == wanted[..whole], "wrong bytes behind {taken}");
                taken += whole as u64;
                assert!(taken <= most, "more than was sent");
                buffer.copy_within(whole..held + length, 0);
                held = held + length - whole;
            }
            Err(error) => return (taken, Some(error.kind())),
        }
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
    drop(stream);
}

fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.set_write_timeout(Some(Duration::from_secs(30))).expect("set");
}

/// The backend's end of one transfer.
fn serve(mut stream: TcpStream) {
    limit(&stream);
    let mut plan = [0; 32];
    if stream.read_exact(&mut plan).is_err() {
        return;
    }
    let plan = Plan::decode(&plan);
    let (mut up, mut down) = (plan.up_stream(), plan.down_stream());
    match plan.ending {
        Ending::ClientFirst => {
            assert_eq!(receive(&mut stream, &mut up, plan.up), (plan.up, None), "{plan:?}");
            send(&mut stream, &mut down, plan.down).expect("sent");
        }
        Ending::BackendFirst => {
            send(&mut stream, &mut down, plan.down).expect("sent");
            stream.shutdown(Shutdown::Write).expect("shut");
            assert_eq!(receive(&mut stream, &mut up, plan.up), (plan.up, None), "{plan:?}");
        }
        Ending::ClientResets => {
            let (taken, ended) = receive(&mut stream, &mut up, plan.up);
            assert_eq!(ended, Some(ErrorKind::ConnectionReset), "{plan:?}: after {taken}");
        }
        Ending::BackendResets => {
            send(&mut stream, &mut down, plan.down / 2 / 8 * 8).expect("sent");
            reset(stream);
        }
    }
}

/// The client's end.
fn transfer(address: SocketAddr, plan: Plan) {
    let mut stream = TcpStream::connect(address).expect("connects");
    limit(&stream);
    stream.write_all(&plan.encode()).expect("sent");
    let (mut up, mut down) = (plan.up_stream(), plan.down_stream());
    match plan.ending {
        Ending::ClientFirst => {
            send(&mut stream, &mut up, plan.up).expect("sent");
            stream.shutdown(Shutdown::Write).expect("shut");
            assert_eq!(receive(&mut stream, &mut down, plan.down), (plan.down, None), "{plan:?}");
        }
        Ending::BackendFirst => {
            assert_eq!(receive(&mut stream, &mut down, plan.down), (plan.down, None), "{plan:?}");
            send(&mut stream, &mut up, plan.up).expect("sent");
        }
        Ending::ClientResets => {
            send(&mut stream, &mut up, plan.up / 2 / 8 * 8).expect("sent");
            reset(stream);
        }
        Ending::BackendResets => {
            let (taken, ended) = receive(&mut stream, &mut down, plan.down);
            assert_eq!(ended, Some(ErrorKind::ConnectionReset), "{plan:?}: a clean end after {taken}");
        }
    }
}

fn backend(failures: &'static AtomicUsize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("accepts");
            std::thread::spawn(move || {
                if std::panic::catch_unwind(move || serve(stream)).is_err() {
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    address
}

fn balancer(backends: &[SocketAddr], splice: bool) -> Balancer {
    let source = Source::Static { backends: backends.iter().map(ToString::to_string).collect(), file: None };
    let config = BalanceConfig {
        check: CheckMode::Off,
        workers: 2,
        splice,
        status: Some(([127, 0, 0, 1], 0).into()),
        ..BalanceConfig::new(source)
    };
    let balancer = Balancer::start(config).expect("starts");
    eventually("the backends are up", || {
        balancer.members().iter().filter(|m| m.state == "up").count() == backends.len()
    });
    balancer
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not so after 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn metric(balancer: &Balancer, name: &str) -> u64 {
    let address = balancer.status_address().expect("asked for").to_string();
    let page = support::Client::connect(&address).get("/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("meshkv_balancer_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux").count()
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').nth(1).expect("a field").parse().expect("a number");
    pages * 4096
}

fn transfers_are_exact(splice: bool) {
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seed = support::seed();
    let backends = [backend(&FAILURES), backend(&FAILURES)];
    // Threads that serve may still be closing what an earlier test left.
    std::thread::sleep(Duration::from_millis(50));
    let before = descriptors();
    let balancer = balancer(&backends, splice);
    let address = balancer.address();
    let run = |from: u64, to: u64| {
        let next = AtomicU64::new(from);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= to {
                            return;
                        }
                        let mut random =
                            Random(seed.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1);
                        for _ in 0..4 {
                            random.next();
                        }
                        transfer(address, Plan::random(&mut random));
                    }
                });
            }
        });
    };
    let count = transfers();
    run(0, count / 4);
    let resident = resident_bytes();
    run(count / 4, count);
    let grown = resident_bytes().saturating_sub(resident);
    assert!(grown < 64 << 20, "{grown} bytes more after four times the transfers");
    eventually("no connection is left", || metric(&balancer, "connections") == 0);
    let spliced = metric(&balancer, "spliced_bytes_total");
    assert_eq!(spliced > 0, splice, "{spliced} bytes spliced");
    assert!(metric(&balancer, "connections_total") >= count);
    balancer.stop();
    balancer.wait().expect("ends well");
    drop(balancer);
    eventually("every descriptor is closed", || descriptors() <= before);
    assert_eq!(FAILURES.load(Ordering::Relaxed), 0, "backends saw something wrong");
}

#[test]
fn random_transfers_are_exact_when_copied() {
    transfers_are_exact(false);
}

#[test]
fn random_transfers_are_exact_when_spliced() {
    transfers_are_exact(true);
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for splice in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let balancer = balancer(&[listener.local_addr().expect("bound")], splice);
        let mut client = TcpStream::connect(balancer.address()).expect("connects");
        limit(&client);
        let (mut backend, _) = listener.accept().expect("accepts");
        backend.set_nonblocking(true).expect("set");
        let mut source = Stream::new(5);
        let mut sent = 0u64;
        let mut piece = vec![0; 8 * 1024];
        // Until nobody takes any more: buffers are bounded, so that point comes.
        let mut stuck = Instant::now();
        let mut offset = piece.len();
        while stuck.elapsed() < Duration::from_millis(300) {
            if offset == piece.len() {
                source.fill(&mut piece);
                offset = 0;
            }
            match backend.write(&piece[offset..]) {
                Ok(length) => {
                    offset += length;
                    sent += length as u64;
                    stuck = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Err(error) => panic!("{error}"),
            }
            assert!(sent < 256 << 20, "it takes everything and keeps it somewhere");
        }
        assert!(sent > 64 * 1024, "{sent}");
        backend.set_nonblocking(false).expect("set");
        let rest = piece[offset..].to_vec();
        let writer = std::thread::spawn(move || backend.write_all(&rest).expect("sent"));
        let (taken, ended) = receive(&mut client, &mut Stream::new(5), u64::MAX);
        writer.join().expect("sent");
        assert_eq!((taken, ended), (sent + (piece.len() - offset) as u64, None));
    }
}

#[test]
fn a_backend_that_refuses_is_passed_over_and_without_any_the_answer_is_503() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    let closed = TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let good = backend(&FAILURES);
    let balancer = balancer(&[closed, good], false);
    for seed in 1..40 {
        transfer(balancer.address(), Plan { seed, up: 64, down: 64, ending: Ending::ClientFirst });
    }
    let down = balancer.members().into_iter().find(|member| member.address == Some(closed)).expect("known");
    assert_eq!((down.state, down.reason.as_str()), ("down", "connections are refused"));
    balancer.stop();
    drop(balancer);

    let alone = self::balancer(&[closed], false);
    let mut client = support::Client::connect(&alone.address().to_string());
    let answer = client.get("/");
    assert_eq!((answer.status, answer.body.as_str()), (503, r#"{"error":"NO_BACKEND"}"#));
    assert!(client.is_closed());
    assert_eq!(metric(&alone, "unavailable_total"), 1);
}

#[test]
fn a_client_waits_for_a_backend_that_comes_soon() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    let config = BalanceConfig { check: CheckMode::Tcp, ..BalanceConfig::new(Source::Given(Vec::new())) };
    let balancer = Balancer::start(config).expect("starts");
    let address = balancer.address();
    let client = std::thread::spawn(move || {
        transfer(address, Plan { seed: 3, up: 800, down: 80_000, ending: Ending::ClientFirst });
    });
    std::thread::sleep(Duration::from_millis(100));
    let member = meshkv::balancer::Member { name: "late".into(), address: backend(&FAILURES) };
    balancer.set_members(vec![member]);
    client.join().expect("served");
}

#[test]
fn at_the_bound_of_connections_the_next_one_waits() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    let source = Source::Static { backends: vec![backend(&FAILURES).to_string()], file: None };
    let config = BalanceConfig { check: CheckMode::Off, max_connections: 2, ..BalanceConfig::new(source) };
    let balancer = Balancer::start(config).expect("starts");
    let held: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(balancer.address()).expect("connects")).collect();
    for mut one in &held {
        // Served, so that both count.
        let plan = Plan { seed: 1, up: 8, down: 8, ending: Ending::BackendFirst };
        one.write_all(&plan.encode()).expect("sent");
        let mut byte = [0; 8];
        limit(one);
        one.read_exact(&mut byte).expect("an answer");
    }
    let mut third = TcpStream::connect(balancer.address()).expect("the kernel keeps it");
    third.write_all(&Plan { seed: 2, up: 0, down: 8, ending: Ending::BackendFirst }.encode()).expect("sent");
    third.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let mut byte = [0; 8];
    let early = third.read_exact(&mut byte).expect_err("nobody accepted it");
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    drop(held);
    limit(&third);
    third.read_exact(&mut byte).expect("its turn has come");
}
