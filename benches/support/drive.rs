//! The load generator: one thread, the same code for every server that is measured.
//!
//! A connection sends `depth` requests in one write and sends the next ones when all are answered: a closed
//! loop. With a `rate` requests are due at random times instead, whether earlier ones are answered or not,
//! and their latency counts from when they were due. Every answer of a run has the same length, which `probe`
//! has learnt, or, where a write is named in its answer, the same body; the first bytes of each are compared,
//! so a refusal, a miss or a shifted stream ends the run with an error.

use super::arrivals::{Arrivals, TIMER};
use super::slow::SlowReader;
use meshkv_stress::workload::{Zipf, unit};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Resp,
    Memcached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Set,
}

/// What to ask, of whom, and how hard.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) address: Address,
    pub(crate) protocol: Protocol,
    pub(crate) operation: Operation,
    /// Keys are drawn uniformly from the first `keys` ones, unless `each` says otherwise.
    pub(crate) keys: u64,
    /// Every key of the range once, in order, and then the end: for loading.
    pub(crate) each: Option<Range<u64>>,
    pub(crate) key_bytes: usize,
    /// Lengths of values to set; drawn uniformly.
    pub(crate) value_bytes: Range<usize>,
    pub(crate) connections: usize,
    pub(crate) depth: usize,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    /// CPU time of all threads of this process is read at both ends of the window.
    pub(crate) pid: u32,
    /// A listing of everything is read meanwhile, slowly, on a connection of its own.
    pub(crate) slow_listing: bool,
    /// Behind the query of each request over HTTP, such as `&w=all`.
    pub(crate) query: &'static str,
    /// Answers carry a number, so that only their bodies are of the same length.
    pub(crate) varies: bool,
    /// Requests due a second, at random times; 0: a closed loop. Only with a depth of 1.
    pub(crate) rate: f64,
    /// Of the connections, so many set while the others do `operation`: a mix. Answers of each have one length.
    pub(crate) setters: usize,
    /// Keys are drawn by Zipf's law with this exponent instead; 0: uniformly.
    pub(crate) zipf: f64,
    /// Ends the window early.
    pub(crate) over: Option<Arc<AtomicBool>>,
}

/// What a window showed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Those before the window as well.
    pub(crate) requests_total: u64,
    pub(crate) seconds: f64,
    pub(crate) server_cpu_ns: u64,
    pub(crate) client_cpu_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    /// What the slow reader got.
    pub(crate) listed_bytes: u64,
}

impl Outcome {
    pub(crate) fn cpu_ns_per_request(&self) -> f64 {
        self.server_cpu_ns as f64 / self.requests as f64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// SplitMix64: a fast full-period generator. Every run starts from the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`, by multiplication.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// The key of the records numbered `n`, in 16 bytes.
pub(crate) fn key(n: u64) -> String {
    let mut bytes = Vec::new();
    put_key(n, 16, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The key numbered `n`: 16 hexadecimal digits, then `k` up to the length.
fn put_key(n: u64, length: usize, out: &mut Vec<u8>) {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let from = out.len();
    out.extend((0..16).rev().map(|digit| b"0123456789abcdef"[((mixed >> (digit * 4)) & 15) as usize]));
    out.resize(from + length, b'k');
}

impl Plan {
    fn put_request(&self, n: u64, value_bytes: usize, out: &mut Vec<u8>) {
        use Operation::{Get, Set};
        const VALUE: [u8; 512] = [b'v'; 512];
        let (key, value) = (self.key_bytes, &VALUE[..value_bytes]);
        match (self.protocol, self.operation) {
            (Protocol::Http, Get) => {
                out.extend_from_slice(b"GET /get?k=");
                put_key(n, key, out);
                out.extend_from_slice(self.query.as_bytes());
                out.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n\r\n");
            }
            (Protocol::Http, Set) => {
                out.extend_from_slice(b"GET /set?k=");
                put_key(n, key, out);
                out.extend_from_slice(b"&v=");
                out.extend_from_slice(value);
                out.extend_from_slice(self.query.as_bytes());
                out.extend_from_slice(b" HTTP/1.1\r\nHost: localhost\r\n\r\n");
            }
            (Protocol::Resp, Get) => {
                let _ = write!(out, "*2\r\n$3\r\nGET\r\n${key}\r\n");
                put_key(n, key, out);
                out.extend_from_slice(b"\r\n");
            }
            (Protocol::Resp, Set) => {
                let _ = write!(out, "*3\r\n$3\r\nSET\r\n${key}\r\n");
                put_key(n, key, out);
                let _ = write!(out, "\r\n${value_bytes}\r\n");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
            (Protocol::Memcached, Get) => {
                out.extend_from_slice(b"get ");
                put_key(n, key, out);
                out.extend_from_slice(b"\r\n");
            }
            (Protocol::Memcached, Set) => {
                out.extend_from_slice(b"set ");
                put_key(n, key, out);
                let _ = write!(out, " 0 0 {value_bytes}\r\n");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// How long a request is, if all are as long.
    pub(crate) fn request_bytes(&self) -> usize {
        let mut request = Vec::new();
        self.put_request(0, self.value_bytes.start, &mut request);
        request.len()
    }

    /// Asks once and returns the whole answer, which must be a success.
    pub(crate) fn probe(&self) -> io::Result<Vec<u8>> {
        let mut stream = connect(&self.address)?;
        let mut request = Vec::new();
        let first = self.each.as_ref().map_or(0, |each| each.start);
        self.put_request(first, self.value_bytes.start, &mut request);
        stream.write_all(&request)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while !self.is_whole(&answer) {
            match stream.read(&mut chunk)? {
                0 => return Err(other(format!("closed after {:?}", String::from_utf8_lossy(&answer)))),
                bytes => answer.extend_from_slice(&chunk[..bytes]),
            }
        }
        let success: &[u8] = match (self.protocol, self.operation) {
            (Protocol::Http, _) => b"HTTP/1.1 200",
            (Protocol::Resp, Operation::Get) => b"$",
            (Protocol::Resp, Operation::Set) => b"+OK",
            (Protocol::Memcached, Operation::Get) => b"VALUE ",
            (Protocol::Memcached, Operation::Set) => b"STORED",
        };
        let missing = answer.starts_with(b"$-1");
        if !answer.starts_with(success) || missing {
            return Err(other(format!("refused: {:?}", String::from_utf8_lossy(&answer))));
        }
        Ok(answer)
    }

    fn is_whole(&self, answer: &[u8]) -> bool {
        let text = String::from_utf8_lossy(answer);
        match (self.protocol, self.operation) {
            (Protocol::Http, _) => text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                length.and_then(|length| length.parse().ok()) == Some(body.len())
            }),
            (Protocol::Resp, Operation::Get) => text.matches("\r\n").count() == 2 || text == "$-1\r\n",
            (Protocol::Memcached, Operation::Get) => text.ends_with("END\r\n"),
            _ => text.ends_with("\r\n"),
        }
    }
}

/// A transport, blocking or not.
pub(crate) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

pub(crate) fn connect(address: &Address) -> io::Result<Box<dyn Duplex>> {
    Ok(match address {
        Address::Tcp(address) => {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(std::os::unix::net::UnixStream::connect(path)?),
    })
}

struct Connection {
    stream: Box<dyn Duplex>,
    /// What of the batch has not been written: only if the socket was full.
    unsent: Vec<u8>,
    inflight: usize,
    /// It sets, whatever the others do.
    sets: bool,
    /// Bytes of the batch's answers so far.
    got: usize,
    /// The answers themselves that are not whole yet, if their length varies.
    partial: Vec<u8>,
    sent_ns: u64,
}

/// The state of a run, beside its connections.
struct Run<'p> {
    plan: &'p Plan,
    answer: Vec<u8>,
    /// For the connections that set in a mix, and their answer.
    setting: Option<(Plan, Vec<u8>)>,
    random: Random,
    zipf: Option<Zipf>,
    next: u64,
    began: Instant,
    done: u64,
    latencies: hdrhistogram::Histogram<u64>,
    arrivals: Option<Arrivals>,
}

/// Runs the plan until its window or its range ends.
///
/// # Errors
/// The first connection that fails and the first answer that is not as expected end the run.
pub(crate) fn run(plan: &Plan) -> io::Result<Outcome> {
    let answer = plan.probe()?;
    let mut poll = Poll::new()?;
    let mut connections = Vec::new();
    for index in 0..plan.connections {
        connections.push(Connection {
            stream: open(&plan.address, &poll, Token(index))?,
            unsent: Vec::new(),
            inflight: 0,
            sets: index < plan.setters,
            got: 0,
            partial: Vec::new(),
            sent_ns: 0,
        });
    }
    let listing = match (&plan.address, plan.slow_listing) {
        (Address::Tcp(address), true) => Some(SlowReader::start(*address)?),
        _ => None,
    };
    let latencies = hdrhistogram::Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(other)?;
    let next = plan.each.as_ref().map_or(0, |each| each.start);
    let arrivals = match plan.rate > 0.0 {
        true => Some(Arrivals::new(plan.rate, plan.connections, &poll)?),
        false => None,
    };
    let zipf = (plan.zipf > 0.0).then(|| Zipf::new(plan.keys, plan.zipf));
    let setting = match plan.setters {
        0 => None,
        _ => {
            let plan = Plan { operation: Operation::Set, ..plan.clone() };
            let answer = plan.probe()?;
            Some((plan, answer))
        }
    };
    let began = Instant::now();
    let mut run =
        Run { plan, answer, setting, random: Random(1), zipf, next, began, done: 0, latencies, arrivals };
    if run.arrivals.is_none() {
        for connection in &mut connections {
            run.send(connection)?;
        }
    }
    let mut outcome = Outcome::default();
    let mut listed_before = 0;
    let mut window: Option<(Instant, u64, u64, u64)> = None;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        run.send_due(&mut connections)?;
        match poll.poll(&mut events, Some(Duration::from_secs(10))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if events.is_empty() {
            return Err(other("no answer for ten seconds"));
        }
        for event in &events {
            if event.token() == TIMER {
                continue;
            }
            let connection = &mut connections[event.token().0];
            if !connection.unsent.is_empty() && event.is_writable() {
                run.write(connection)?;
            }
            if event.is_readable()
                && run.receive(connection, &mut buffer)?
                && let Some(arrivals) = &mut run.arrivals
            {
                arrivals.free.push(event.token().0);
            }
        }
        if plan.each.is_some() {
            if connections.iter().all(|connection| connection.inflight == 0) {
                (outcome.requests, outcome.requests_total) = (run.done, run.done);
                outcome.seconds = began.elapsed().as_secs_f64();
                return Ok(outcome);
            }
            continue;
        }
        match window {
            None if began.elapsed() >= plan.warm_up => {
                run.latencies.clear();
                listed_before = listing.as_ref().map_or(0, SlowReader::bytes);
                window = Some((Instant::now(), run.done, cpu_ns_of(plan.pid), own_cpu_ns()));
            }
            Some((from, done, server_cpu, client_cpu))
                if from.elapsed() >= plan.window
                    || plan.over.as_ref().is_some_and(|over| over.load(Ordering::Relaxed)) =>
            {
                outcome.server_cpu_ns = cpu_ns_of(plan.pid) - server_cpu;
                outcome.client_cpu_ns = own_cpu_ns() - client_cpu;
                outcome.seconds = from.elapsed().as_secs_f64();
                outcome.requests = run.done - done;
                // Those under way are not waited for, and may take effect.
                outcome.requests_total = run.done;
                outcome.listed_bytes = listing.as_ref().map_or(0, SlowReader::bytes) - listed_before;
                outcome.p50_ns = run.latencies.value_at_quantile(0.5);
                outcome.p99_ns = run.latencies.value_at_quantile(0.99);
                outcome.p999_ns = run.latencies.value_at_quantile(0.999);
                if outcome.requests == 0 {
                    return Err(other("no request was answered in the window"));
                }
                return Ok(outcome);
            }
            _ => {}
        }
    }
}

impl Run<'_> {
    /// Sends what is due, in an open loop.
    fn send_due(&mut self, connections: &mut [Connection]) -> io::Result<()> {
        let Some(arrivals) = &mut self.arrivals else { return Ok(()) };
        arrivals.advance(&mut self.random, self.began.elapsed().as_nanos() as u64)?;
        while let Some(arrivals) = &mut self.arrivals
            && !arrivals.due.is_empty()
            && let Some(free) = arrivals.free.pop()
            && let Some(due_ns) = arrivals.due.pop_front()
        {
            self.send(&mut connections[free])?;
            connections[free].sent_ns = due_ns;
        }
        Ok(())
    }

    /// Sends the next batch, if there is one.
    fn send(&mut self, connection: &mut Connection) -> io::Result<()> {
        connection.got = 0;
        connection.inflight = self.plan.depth;
        if let Some(each) = &self.plan.each {
            connection.inflight = ((each.end - self.next) as usize).min(self.plan.depth);
        }
        let lengths = &self.plan.value_bytes;
        for _ in 0..connection.inflight {
            let n = match self.plan.each {
                Some(_) => self.next,
                None => match &self.zipf {
                    None => self.random.below(self.plan.keys),
                    Some(zipf) => zipf.sample(unit(self.random.next())),
                },
            };
            self.next += 1;
            let value = match lengths.len() {
                0 | 1 => lengths.start,
                several => lengths.start + self.random.below(several as u64) as usize,
            };
            let plan = match &self.setting {
                Some((setting, _)) if connection.sets => setting,
                _ => self.plan,
            };
            plan.put_request(n, value, &mut connection.unsent);
        }
        connection.sent_ns = self.began.elapsed().as_nanos() as u64;
        self.write(connection)
    }

    fn write(&self, connection: &mut Connection) -> io::Result<()> {
        while !connection.unsent.is_empty() {
            match connection.stream.write(&connection.unsent) {
                Ok(sent) if sent == connection.unsent.len() => connection.unsent.clear(),
                Ok(sent) => drop(connection.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what has come. True if the batch is answered.
    fn receive(&mut self, connection: &mut Connection, buffer: &mut [u8]) -> io::Result<bool> {
        let bytes = match connection.stream.read(buffer) {
            Ok(0) => return Err(other("the server closed a connection")),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let answered = match self.plan.varies {
            true => self.count_varying(connection, &buffer[..bytes])?,
            false => self.count_equal(connection, &buffer[..bytes])?,
        };
        if answered {
            self.done += connection.inflight as u64;
            let took = (self.began.elapsed().as_nanos() as u64).saturating_sub(connection.sent_ns);
            self.latencies.saturating_record(took);
            if self.arrivals.is_none() {
                self.send(connection)?;
            }
        }
        Ok(answered)
    }

    /// Answers of one length. True if the batch is answered.
    fn count_equal(&self, connection: &mut Connection, received: &[u8]) -> io::Result<bool> {
        let answer = match &self.setting {
            Some((_, answer)) if connection.sets => answer,
            _ => &self.answer,
        };
        let length = answer.len();
        // Where the first answer that begins in these bytes begins.
        let mut at = (length - connection.got % length) % length;
        while at < received.len() {
            let compared = (received.len() - at).min(6).min(length);
            if received[at..at + compared] != answer[..compared] {
                return Err(unexpected(&received[at..]));
            }
            at += length;
        }
        connection.got += received.len();
        if connection.got > connection.inflight * length {
            return Err(other("more answers than requests"));
        }
        Ok(connection.got == connection.inflight * length)
    }

    /// Answers with one body behind heads of different lengths; `got` counts answers.
    fn count_varying(&self, connection: &mut Connection, received: &[u8]) -> io::Result<bool> {
        const SUCCESS: &[u8] = b"HTTP/1.1 200";
        let end = |answer: &[u8]| memchr::memmem::find(answer, b"\r\n\r\n").map(|at| at + 4);
        let body = end(&self.answer).map_or(&[][..], |from| &self.answer[from..]);
        let Connection { partial, .. } = connection;
        let carried = !partial.is_empty();
        if carried {
            partial.extend_from_slice(received);
        }
        let bytes = if carried { &partial[..] } else { received };
        let (mut at, mut answers) = (0, 0);
        while let Some(head) = end(&bytes[at..])
            && let Some(found) = bytes.get(at + head..at + head + body.len())
        {
            if !bytes[at..].starts_with(SUCCESS) || found != body {
                return Err(unexpected(&bytes[at..]));
            }
            at += head + body.len();
            answers += 1;
        }
        match carried {
            true => drop(partial.drain(..at)),
            false => partial.extend_from_slice(&received[at..]),
        }
        connection.got += answers;
        if connection.got > connection.inflight {
            return Err(other("more answers than requests"));
        }
        Ok(connection.got == connection.inflight)
    }
}

fn unexpected(bytes: &[u8]) -> io::Error {
    other(format!("unexpected: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)])))
}

fn open(address: &Address, poll: &Poll, token: Token) -> io::Result<Box<dyn Duplex>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    Ok(match address {
        Address::Tcp(address) => {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, token, interest)?;
            Box::new(stream)
        }
        Address::Unix(path) => {
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::UnixStream::from_std(stream);
            poll.registry().register(&mut stream, token, interest)?;
            Box::new(stream)
        }
    })
}

/// Nanoseconds that all living threads of a process have run.
pub(crate) fn cpu_ns_of(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks.flatten().map(|task| run_ns(&task.path().join("schedstat"))).sum()
}

fn own_cpu_ns() -> u64 {
    run_ns(std::path::Path::new("/proc/thread-self/schedstat"))
}

fn run_ns(path: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split(' ').next().and_then(|run| run.parse().ok()).unwrap_or(0)
}

pub(crate) fn other(reason: impl ToString) -> io::Error {
    io::Error::other(reason.to_string())
}
