//! The closed loop: connections that each keep a fixed number of requests in flight, spread over threads of
//! which each has its own event loop, its own histograms and a share of the requests.
//!
//! Exactly so many requests are sent as were asked for: threads take request numbers from one counter, and
//! a request that fails is counted, never repeated.

use crate::response::{Parsed, Parser};
use crate::stats::{Failure, Stats};
use crate::target::Target;
use crate::workload::{OPS, Op, Workload};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of one answer; a server that sends more is not answering what was asked.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A connection that cannot be opened again this often in a row is given up.
const RECONNECTS_MAX: u32 = 20;

/// How closely answers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    Body,
    Status,
    None,
}

/// What all threads of a run share.
pub struct Plan {
    pub targets: Vec<Target>,
    pub workload: Workload,
    /// Requests to send; `u64::MAX` with a deadline.
    pub requests: u64,
    pub deadline: Option<Duration>,
    pub pipeline: usize,
    pub timeout: Duration,
    pub verify: Verify,
    /// The next request's number.
    pub next: AtomicU64,
    /// Answered or failed so far, for the progress line.
    pub done: AtomicU64,
    pub failed: AtomicU64,
    /// Stop sending: the deadline has come or somebody pressed Ctrl-C.
    pub stop: AtomicBool,
}

struct Flight {
    op: Op,
    key: u64,
    sent: Instant,
}

struct Connection {
    stream: Option<TcpStream>,
    target: usize,
    parser: Parser,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    flights: VecDeque<Flight>,
    failures_in_a_row: u32,
}

/// One thread's part: `connections` of them, the first of them numbered `first`.
///
/// # Errors
/// The event queue could not be made, or not one connection could be opened.
pub fn thread(plan: &Plan, connections: usize, first: usize) -> Result<Stats, String> {
    let poll = Poll::new().map_err(|error| format!("no event queue: {error}"))?;
    let mut worker =
        Worker { plan, poll, stats: Stats::default(), scratch: Vec::new(), begun: Instant::now() };
    let mut all: Vec<Connection> = (0..connections)
        .map(|number| Connection {
            stream: None,
            target: (first + number) % plan.targets.len(),
            parser: Parser::default(),
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            flights: VecDeque::new(),
            failures_in_a_row: 0,
        })
        .collect();
    // All connections are open before the clock starts.
    for (number, connection) in all.iter_mut().enumerate() {
        worker.open(number, connection)?;
    }
    worker.begun = Instant::now();
    worker.serve(&mut all);
    Ok(worker.stats)
}

struct Worker<'p> {
    plan: &'p Plan,
    poll: Poll,
    stats: Stats,
    scratch: Vec<u8>,
    begun: Instant,
}

impl Worker<'_> {
    fn open(&mut self, number: usize, connection: &mut Connection) -> Result<(), String> {
        let target = &self.plan.targets[connection.target];
        let fail = |error: std::io::Error| format!("cannot connect to {}: {error}", target.url);
        let stream = std::net::TcpStream::connect_timeout(&target.addr, self.plan.timeout).map_err(fail)?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(fail)?;
        let mut stream = TcpStream::from_std(stream);
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(number), both).map_err(fail)?;
        connection.stream = Some(stream);
        connection.output.clear();
        connection.written = 0;
        connection.input.clear();
        connection.parser = Parser::default();
        Ok(())
    }

    fn serve(&mut self, all: &mut [Connection]) {
        let mut events = Events::with_capacity(1024);
        for (number, connection) in all.iter_mut().enumerate() {
            self.go_on(number, connection);
        }
        let mut checked = Instant::now();
        while all.iter().any(|connection| !connection.flights.is_empty()) {
            if self.poll.poll(&mut events, Some(Duration::from_millis(50))).is_err() {
                continue;
            }
            for event in &events {
                let Token(number) = event.token();
                self.read(number, &mut all[number]);
            }
            if self.plan.deadline.is_some_and(|deadline| self.begun.elapsed() >= deadline) {
                self.plan.stop.store(true, Ordering::Relaxed);
            }
            if checked.elapsed() > Duration::from_millis(100) {
                checked = Instant::now();
                for (number, connection) in all.iter_mut().enumerate() {
                    if connection
                        .flights
                        .front()
                        .is_some_and(|flight| flight.sent.elapsed() > self.plan.timeout)
                    {
                        self.lose(number, connection, Failure::Timeout);
                    }
                }
            }
        }
    }

    /// Fills the pipeline and writes.
    fn go_on(&mut self, number: usize, connection: &mut Connection) {
        let plan = self.plan;
        let target = &plan.targets[connection.target];
        let now = Instant::now();
        while connection.flights.len() < plan.pipeline && !plan.stop.load(Ordering::Relaxed) {
            let index = plan.next.fetch_add(1, Ordering::Relaxed);
            if index >= plan.requests {
                break;
            }
            let (op, key) = plan.workload.pick(index);
            plan.workload.request(&mut connection.output, op, key, &target.prefix, &target.tail);
            connection.flights.push_back(Flight { op, key, sent: now });
            self.stats.sent += 1;
        }
        let Some(stream) = &mut connection.stream else { return };
        while connection.written < connection.output.len() {
            match stream.write(&connection.output[connection.written..]) {
                Ok(bytes) => connection.written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The read that follows says what became of the connection.
                Err(_) => return self.lose(number, connection, Failure::Reset),
            }
        }
        connection.output.clear();
        connection.written = 0;
    }

    fn read(&mut self, number: usize, connection: &mut Connection) {
        let mut buffer = [0; 64 * 1024];
        loop {
            let Some(stream) = &mut connection.stream else { return };
            match stream.read(&mut buffer) {
                Ok(0) => {
                    self.answers(connection, true);
                    if connection.stream.is_some() {
                        self.lose(number, connection, Failure::Reset);
                    }
                    return;
                }
                Ok(bytes) => {
                    connection.input.extend_from_slice(&buffer[..bytes]);
                    let open = self.answers(connection, false);
                    if connection.input.len() > ANSWER_BYTES_MAX {
                        return self.lose(number, connection, Failure::Verify);
                    }
                    if !open {
                        return self.lose(number, connection, Failure::Reset);
                    }
                    if bytes < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.lose(number, connection, Failure::Reset),
            }
        }
        self.go_on(number, connection);
    }

    /// Takes the answers that have come; false if the server closes behind the last of them.
    fn answers(&mut self, connection: &mut Connection, eof: bool) -> bool {
        let now = Instant::now();
        let mut used_all = 0;
        let mut open = true;
        while let Some(flight) = connection.flights.front() {
            match connection.parser.parse(&connection.input[used_all..], eof) {
                Parsed::Partial => break,
                Parsed::Bad => {
                    open = false;
                    break;
                }
                Parsed::Done { status, close, used, start, end, chunked } => {
                    let body = match chunked {
                        true => connection.parser.body.as_slice(),
                        false => &connection.input[used_all + start..used_all + end],
                    };
                    let latency = now.duration_since(flight.sent).as_nanos() as u64;
                    let plan = self.plan;
                    let failure = if plan.verify == Verify::None {
                        None
                    } else if status != 200 {
                        Some(Failure::Http(status))
                    } else {
                        let right = plan.verify == Verify::Status
                            || plan.workload.body_is_right(&mut self.scratch, flight.op, flight.key, body);
                        (!right).then_some(Failure::Verify)
                    };
                    match failure {
                        Some(failure) => {
                            plan.failed.fetch_add(1, Ordering::Relaxed);
                            self.stats.fail(failure, latency);
                        }
                        None => {
                            let op = OPS.iter().position(|(op, _)| *op == flight.op).unwrap_or(0);
                            self.stats.service[op].saturating_record(latency.max(1));
                        }
                    }
                    plan.done.fetch_add(1, Ordering::Relaxed);
                    self.stats.end_ns = self.begun.elapsed().as_nanos() as u64;
                    connection.failures_in_a_row = 0;
                    connection.flights.pop_front();
                    used_all += used;
                    if close {
                        open = false;
                        break;
                    }
                }
            }
        }
        connection.input.drain(..used_all);
        open
    }

    /// The connection is over: what was in flight has failed; another one takes its place.
    fn lose(&mut self, number: usize, connection: &mut Connection, why: Failure) {
        connection.stream = None;
        while let Some(flight) = connection.flights.pop_front() {
            self.stats.fail(why, flight.sent.elapsed().as_nanos() as u64);
            self.plan.failed.fetch_add(1, Ordering::Relaxed);
            self.plan.done.fetch_add(1, Ordering::Relaxed);
        }
        let more = self.plan.next.load(Ordering::Relaxed) < self.plan.requests;
        while more && !self.plan.stop.load(Ordering::Relaxed) {
            self.stats.reconnects += 1;
            match self.open(number, connection) {
                Ok(()) => return self.go_on(number, connection),
                Err(_) if connection.failures_in_a_row < RECONNECTS_MAX => {
                    connection.failures_in_a_row += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => {
                    // Its next request fails without having been sent, so that the count comes out.
                    let index = self.plan.next.fetch_add(1, Ordering::Relaxed);
                    if index >= self.plan.requests {
                        return;
                    }
                    self.stats.fail(Failure::Connect, 1);
                    self.plan.failed.fetch_add(1, Ordering::Relaxed);
                    self.plan.done.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}
