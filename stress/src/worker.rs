//! One thread of a run: its connections, its event queue, its counts.
//!
//! Budget of a request on the way that is taken a million times: one read, one write, one reading of the clock,
//! no allocation; answers are looked at where they were read. Closed loop: an answer is followed at once by the
//! connection's next request. Open loop: requests leave when the schedule says so, on the connection that has
//! been free the longest; what is late because no connection was free is the server's doing, what is late
//! although one was free is the client's, and makes the run invalid.

use crate::arrival::Schedule;
use crate::connection::{Connection, Flight, State};
use crate::machine::ThreadCpu;
use crate::run::{Block, Message, Plan, Shared};
use crate::stats::{Failure, Stats};
use crate::tally::Counts;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Bytes of one answer; a server that sends more is not answering what was asked.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;
/// A send this late, with a connection free, is still what the schedule asked for.
pub(crate) const TIMELY_NS: u64 = 1_000_000;
/// Pauses between attempts to open a connection again double from the first to the last.
const RETRY_NS: u64 = 10_000_000;
const RETRY_NS_MAX: u64 = 320_000_000;
/// After Ctrl-C, answers are waited for this long.
const DRAIN_NS_INTERRUPTED: u64 = 1_000_000_000;
/// How often timeouts, the end and Ctrl-C are looked for.
const CHECK_NS: u64 = 20_000_000;
/// Sends between two readings of the clock when many are due.
const SENDS_A_CLOCK: u32 = 32;
const TIMER: Token = Token(usize::MAX);

pub(crate) struct Worker {
    poll: Poll,
    timer: TimerFd,
    number: usize,
    threads: usize,
    connections: Vec<Connection>,
    sender: Sender<Message>,
}

impl Worker {
    pub(crate) fn new(
        plan: &Plan,
        number: usize,
        threads: usize,
        streams: Vec<(usize, std::net::TcpStream)>,
        sender: Sender<Message>,
    ) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut connections = Vec::with_capacity(streams.len());
        for (place, (target, stream)) in streams.into_iter().enumerate() {
            let mut stream = mio::net::TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(place), both)?;
            connections.push(Connection::new(target, stream, plan.pipeline));
        }
        Ok(Self { poll, timer, number, threads, connections, sender })
    }

    pub(crate) fn run(self, shared: &Shared<'_>) -> Stats {
        let plan = shared.plan;
        let schedule = plan
            .pace
            .map(|pace| Schedule::new(pace.rate, pace.arrival, self.number, self.threads, plan.seed));
        let connections = self.connections;
        let mut thread = Thread {
            free: VecDeque::with_capacity(connections.len()),
            dirty: Vec::with_capacity(connections.len()),
            down: Vec::with_capacity(connections.len()),
            counts: Counts::new(shared, self.sender),
            shared,
            plan,
            poll: self.poll,
            timer: self.timer,
            armed_ns: 0,
            number: self.number,
            open: connections.len(),
            connections,
            buffer: vec![0; READ_BYTES],
            block: Block::default(),
            due: schedule.clone(),
            schedule,
            in_flight: 0,
            sending: true,
            drain_until_ns: None,
            alive_ns: 0,
        };
        thread.serve();
        thread.finish()
    }
}

struct Thread<'s> {
    shared: &'s Shared<'s>,
    plan: &'s Plan,
    counts: Counts<'s>,
    poll: Poll,
    timer: TimerFd,
    armed_ns: u64,
    number: usize,
    connections: Vec<Connection>,
    /// Connections that are open.
    open: usize,
    buffer: Vec<u8>,
    block: Block,
    /// Open loop: what is sent next, and the same schedule up to now, for the backlog.
    schedule: Option<Schedule>,
    due: Option<Schedule>,
    /// Open loop: connections with room, the one that has had it longest in front.
    free: VecDeque<u32>,
    /// Connections with output to write.
    dirty: Vec<u32>,
    /// Connections that wait for their next attempt.
    down: Vec<u32>,
    in_flight: usize,
    sending: bool,
    /// When what is still in flight is left unfinished; `None` where each request has its timeout.
    drain_until_ns: Option<u64>,
    /// When a connection was last open.
    alive_ns: u64,
}

impl Thread<'_> {
    fn now(&self) -> u64 {
        self.shared.origin.elapsed().as_nanos() as u64
    }

    fn serve(&mut self) {
        let mut events = Events::with_capacity(1024);
        let mut cpu_before = (self.now(), ThreadCpu::now());
        let mut warm = self.counts.warm_ns > 0;
        let mut now = self.now();
        let mut check_ns = now + CHECK_NS;
        for place in 0..self.connections.len() {
            self.ready(place, now);
        }
        loop {
            if warm && now >= self.counts.warm_ns {
                warm = false;
                cpu_before = (now, ThreadCpu::now());
            }
            let end_ns = if self.sending { self.counts.end_ns } else { u64::MAX };
            let wake_ns = self.dispatch(now).min(check_ns).min(end_ns);
            self.flush(now);
            if !self.sending && self.in_flight == 0 {
                break;
            }
            self.wait(&mut events, wake_ns);
            now = self.now();
            for event in &events {
                if event.token() != TIMER {
                    let writable = event.is_writable();
                    now = self.event(event.token().0, writable);
                    // Not in one burst when all have been read: that would suit the server more than its users do,
                    // and the first ones' service times would hold the reading of the others.
                    if self.schedule.is_none() {
                        self.flush(now);
                    }
                }
            }
            let at_end = self.sending && now >= self.counts.end_ns;
            if at_end {
                // What came due in the last moment has had no chance yet.
                self.dispatch(now);
                self.flush(now);
            }
            if now >= check_ns || at_end {
                check_ns = now + CHECK_NS;
                if self.check(now, at_end) {
                    break;
                }
            }
            self.counts.show(self.number);
        }
        let (began_ns, before) = cpu_before;
        let used = ThreadCpu::now().since(before);
        let wall_ns = self.now().saturating_sub(began_ns);
        self.counts.stats.thread_used(used, wall_ns);
    }

    /// Sleeps until something comes or the time is there. The event queue alone would round to milliseconds.
    fn wait(&mut self, events: &mut Events, wake_ns: u64) {
        let now = self.now();
        let left_ns = wake_ns.saturating_sub(now);
        if self.schedule.is_some() && left_ns > 0 && self.armed_ns != wake_ns {
            self.armed_ns = wake_ns;
            let left = TimeSpec::nanoseconds(left_ns as i64);
            // Should it fail, the queue's own milliseconds have to do, and the lateness is counted.
            let _ = self.timer.set(Expiration::OneShot(left), TimerSetTimeFlags::empty());
        }
        let timeout = Duration::from_nanos(left_ns);
        if self.poll.poll(events, Some(timeout)).is_err() {
            events.clear();
        }
    }

    /// Open loop: sends what is due. When to look again.
    fn dispatch(&mut self, mut now: u64) -> u64 {
        let Some(mut schedule) = self.schedule.take() else { return u64::MAX };
        let mut sends = 0;
        while self.sending && schedule.next_ns() <= now && schedule.next_ns() < self.counts.end_ns {
            let Some(&place) = self.free.front() else { break };
            let place = place as usize;
            let connection = &self.connections[place];
            if connection.state != State::Open || connection.flights.len() >= self.plan.pipeline {
                self.connections[place].queued = false;
                self.free.pop_front();
                continue;
            }
            let intended_ns = schedule.next_ns();
            let since = intended_ns.max(connection.free_since_ns);
            if !self.begin(place, intended_ns, now) {
                break;
            }
            schedule.advance();
            if intended_ns >= self.counts.warm_ns && now - since <= TIMELY_NS {
                self.counts.stats.timely += 1;
            }
            self.free.pop_front();
            let connection = &mut self.connections[place];
            if connection.flights.len() < self.plan.pipeline {
                self.free.push_back(place as u32);
            } else {
                connection.queued = false;
            }
            sends += 1;
            if sends % SENDS_A_CLOCK == 0 {
                self.flush(now);
                now = self.now();
            }
        }
        if let Some(due) = &mut self.due {
            while due.next_ns() <= now && due.next_ns() < self.counts.end_ns {
                due.advance();
            }
            let backlog = due.taken.saturating_sub(schedule.taken);
            self.counts.stats.backlog_max = self.counts.stats.backlog_max.max(backlog);
        }
        // A free connection waits for the schedule; without one the next answer is what wakes.
        let wake_ns = if self.free.is_empty() || !self.sending { u64::MAX } else { schedule.next_ns() };
        self.schedule = Some(schedule);
        wake_ns
    }

    /// Begins the next request on a connection; false when there is none any more.
    fn begin(&mut self, place: usize, intended_ns: u64, now: u64) -> bool {
        let counted = intended_ns >= self.counts.warm_ns;
        let Some(index) = self.shared.take(&mut self.block, !counted) else {
            self.sending = false;
            return false;
        };
        let plan = self.plan;
        let (op, key) = plan.workload.pick(index);
        let connection = &mut self.connections[place];
        let target = &plan.targets[connection.target];
        if connection.output.is_empty() {
            self.dirty.push(place as u32);
        }
        plan.workload.request(&mut connection.output, op, key, &target.prefix, &target.tail);
        connection.flights.push_back(Flight { op, key, intended_ns, sent_ns: now, counted });
        self.in_flight += 1;
        self.counts.stats.sent += u64::from(counted);
        true
    }

    /// A connection can take requests.
    fn ready(&mut self, place: usize, now: u64) {
        if self.schedule.is_some() {
            let connection = &mut self.connections[place];
            if !connection.queued && connection.flights.len() < self.plan.pipeline {
                connection.queued = true;
                connection.free_since_ns = now;
                self.free.push_back(place as u32);
            }
            return;
        }
        while self.sending
            && now < self.counts.end_ns
            && self.connections[place].flights.len() < self.plan.pipeline
        {
            if !self.begin(place, now, now) {
                break;
            }
        }
    }

    fn flush(&mut self, now: u64) {
        while let Some(place) = self.dirty.pop() {
            self.write(place as usize, now);
        }
    }

    fn write(&mut self, place: usize, now: u64) {
        let connection = &mut self.connections[place];
        let Some(stream) = &mut connection.stream else { return };
        while connection.written < connection.output.len() {
            match stream.write(&connection.output[connection.written..]) {
                Ok(bytes) => connection.written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The queue tells when there is room.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.lost(place, Failure::Reset, now),
            }
        }
        connection.output.clear();
        connection.written = 0;
    }

    /// The time after it was dealt with.
    fn event(&mut self, place: usize, writable: bool) -> u64 {
        match self.connections[place].state {
            State::Open => {
                if writable && !self.connections[place].output.is_empty() {
                    let now = self.now();
                    self.write(place, now);
                }
                self.read(place)
            }
            State::Connecting { .. } => {
                let now = self.now();
                self.connected(place, now);
                now
            }
            State::Down { .. } | State::Over => self.now(),
        }
    }

    fn read(&mut self, place: usize) -> u64 {
        loop {
            let connection = &mut self.connections[place];
            let Some(stream) = &mut connection.stream else { return self.now() };
            let read = stream.read(&mut self.buffer);
            let now = self.shared.origin.elapsed().as_nanos() as u64;
            let bytes = match read {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return now,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.lost(place, Failure::Reset, now);
                    return now;
                }
            };
            let flights = connection.flights.len();
            let open = if connection.input.is_empty() {
                let (used, open) = self.counts.answers(connection, &self.buffer[..bytes], bytes == 0, now);
                connection.input.extend_from_slice(&self.buffer[used..bytes]);
                open
            } else {
                connection.input.extend_from_slice(&self.buffer[..bytes]);
                let input = std::mem::take(&mut connection.input);
                let (used, open) = self.counts.answers(connection, &input, bytes == 0, now);
                connection.input = input;
                connection.input.drain(..used);
                open
            };
            self.in_flight -= flights - connection.flights.len();
            if !open || bytes == 0 {
                self.lost(place, Failure::Reset, now);
                return now;
            }
            // An answer without end, or one that nobody asked for.
            if connection.input.len() > ANSWER_BYTES_MAX
                || (connection.flights.is_empty() && !connection.input.is_empty())
            {
                self.lost(place, Failure::Verify, now);
                return now;
            }
            if bytes < self.buffer.len() {
                self.ready(place, now);
                return now;
            }
        }
    }

    /// The connection is over: what was in flight on it has failed; another one takes its place.
    fn lost(&mut self, place: usize, why: Failure, now: u64) {
        let connection = &mut self.connections[place];
        if connection.state == State::Open {
            self.open -= 1;
        }
        connection.drop_stream();
        self.in_flight -= connection.flights.len();
        while let Some(flight) = connection.flights.pop_front() {
            self.counts.failed(&flight, why, now);
        }
        if self.sending {
            self.counts.stats.reconnects += 1;
            self.connect(place, now);
        } else {
            connection.state = State::Over;
        }
    }

    fn connect(&mut self, place: usize, now: u64) {
        let connection = &mut self.connections[place];
        let both = Interest::READABLE | Interest::WRITABLE;
        let opened =
            mio::net::TcpStream::connect(self.plan.targets[connection.target].addr).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(place), both)?;
                Ok(stream)
            });
        match opened {
            Ok(stream) => {
                connection.stream = Some(stream);
                connection.state = State::Connecting { since_ns: now };
            }
            Err(_) => self.refused(place, now),
        }
    }

    /// Something came from a connection that was being opened.
    fn connected(&mut self, place: usize, now: u64) {
        let connection = &mut self.connections[place];
        let Some(stream) = &connection.stream else { return };
        match (stream.take_error(), stream.peer_addr()) {
            (Ok(None), Ok(_)) => {
                // Without it small requests would wait for each other; it cannot fail on a fresh socket.
                let _ = stream.set_nodelay(true);
                connection.state = State::Open;
                connection.attempts = 0;
                connection.free_since_ns = now;
                self.open += 1;
                self.ready(place, now);
            }
            (Ok(None), Err(error)) if error.kind() == ErrorKind::NotConnected => {}
            _ => self.refused(place, now),
        }
    }

    /// The connection could not be opened: the request that it was to carry has failed.
    fn refused(&mut self, place: usize, now: u64) {
        let connection = &mut self.connections[place];
        connection.drop_stream();
        let pause_ns = (RETRY_NS << connection.attempts.min(8)).min(RETRY_NS_MAX);
        connection.attempts += 1;
        connection.state = State::Down { retry_ns: now + pause_ns };
        self.down.push(place as u32);
        let intended_ns = match &mut self.schedule {
            Some(schedule) if schedule.next_ns() > now => return,
            Some(schedule) => {
                let intended_ns = schedule.next_ns();
                schedule.advance();
                intended_ns
            }
            None => now,
        };
        let counted = intended_ns >= self.counts.warm_ns;
        match self.shared.take(&mut self.block, !counted) {
            Some(index) => {
                let (op, key) = self.plan.workload.pick(index);
                self.counts.stats.sent += u64::from(counted);
                // It failed for want of a server, which says nothing about the client's punctuality.
                self.counts.stats.timely += u64::from(counted);
                let flight = Flight { op, key, intended_ns, sent_ns: now, counted };
                self.counts.failed(&flight, Failure::Connect, now);
            }
            None => self.sending = false,
        }
    }

    /// Timeouts, attempts to reconnect, the end. True when nothing is to be waited for any more.
    fn check(&mut self, now: u64, at_end: bool) -> bool {
        if self.open > 0 {
            self.alive_ns = now;
        }
        let timeout_ns = self.plan.timeout.as_nanos() as u64;
        let stopped = self.shared.stop.load(Ordering::Relaxed);
        if self.sending && (at_end || stopped) {
            self.end_of_sending(now);
            let drain_ns = if stopped { timeout_ns.min(DRAIN_NS_INTERRUPTED) } else { timeout_ns };
            self.drain_until_ns = Some(now + drain_ns);
        } else if self.sending && now - self.alive_ns > timeout_ns {
            self.counts.stats.gave_up += 1;
            self.end_of_sending(now);
        } else if stopped && self.drain_until_ns.is_none() {
            self.drain_until_ns = Some(now + timeout_ns.min(DRAIN_NS_INTERRUPTED));
        }
        if let Some(until_ns) = self.drain_until_ns {
            if now < until_ns {
                return false;
            }
            for flight in self.connections.iter_mut().flat_map(|connection| connection.flights.drain(..)) {
                self.counts.stats.unfinished += u64::from(flight.counted);
            }
            self.in_flight = 0;
            return true;
        }
        for place in 0..self.connections.len() {
            let connection = &self.connections[place];
            let late = connection.flights.front().is_some_and(|flight| now - flight.sent_ns > timeout_ns);
            match connection.state {
                State::Open if late => self.lost(place, Failure::Timeout, now),
                State::Connecting { since_ns } if now - since_ns > timeout_ns => self.refused(place, now),
                _ => {}
            }
        }
        let mut at = 0;
        while let Some(&place) = self.down.get(at) {
            match self.connections[place as usize].state {
                State::Down { retry_ns } if retry_ns > now && self.sending => at += 1,
                _ => {
                    self.down.swap_remove(at);
                    if self.sending {
                        self.connect(place as usize, now);
                    }
                }
            }
        }
        false
    }

    /// Sends no more. What came due and was not sent is late, for want of a connection or of time.
    fn end_of_sending(&mut self, now: u64) {
        self.sending = false;
        let Some(schedule) = &mut self.schedule else { return };
        let free = self.free.iter().any(|place| {
            let connection = &self.connections[*place as usize];
            connection.state == State::Open && connection.flights.len() < self.plan.pipeline
        });
        let until_ns = now.min(self.counts.end_ns);
        while schedule.next_ns() < until_ns {
            let counted = u64::from(schedule.next_ns() >= self.counts.warm_ns);
            self.counts.stats.late += counted;
            self.counts.stats.late_client += if free { counted } else { 0 };
            schedule.advance();
        }
    }

    fn finish(mut self) -> Stats {
        self.counts.hand_in(0);
        self.counts.show(self.number);
        self.counts.stats
    }
}
