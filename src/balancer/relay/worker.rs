//! One worker of the relay: an event loop on one thread, its listener and its sessions.
//!
//! Budget of a request on a warm connection: its share of two waits, two reads and two writes; no
//! allocation, no lock. A session's client is not even watched before its backend is connected: nothing
//! that it sent has been read by then, so another backend can be tried.

use super::listen;
use super::pipe::Pipes;
use super::session::{Phase, Pumped, Session, Side};
use crate::balancer::core::patience::{End, Patience, Standing};
use crate::balancer::core::pick::{SLOW_TRIES_MAX, Selection, TRIES_MAX};
use crate::balancer::shared::{Failure, Shared, Table, is_ours, reserve};
use crate::limits::{
    BALANCER_DRAIN_MS, CONNECT_ATTEMPT_MS, CONNECT_TOTAL_MS, RELAY_BUFFER_BYTES, RELAY_ROUNDS_MAX,
    TURN_ACCEPTS_MAX,
};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const EVENTS: usize = 1024;
const WAKER: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);
/// All sessions are looked at this often.
const SWEEP_MS: u64 = 1_000;
/// While there are as many connections as there may be, one that ended elsewhere is noticed within this.
const FULL_MS: u64 = 20;

/// Pipes that stay open though nothing moves through them.
const PIPES_KEPT: usize = 4;

const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Content-Length: 22\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{\"error\":\"NO_BACKEND\"}";

/// How a worker works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ways {
    pub(crate) selection: Selection,
    pub(crate) splice: bool,
    pub(crate) patience: Patience,
}

pub(crate) struct Worker {
    poll: Poll,
    shared: Arc<Shared>,
    ways: Ways,
    listener: Option<TcpListener>,
    sessions: Slab<Session>,
    /// Ended in this round; their places are free only after it, so that no event goes astray.
    ended: Vec<usize>,
    /// Would go on without an event.
    again: VecDeque<usize>,
    /// Attempts under way: deadline, place, serial. All last as long, so the first is the next to end.
    attempts: VecDeque<(u64, usize, u64)>,
    /// Sessions that wait for a backend.
    waiting: VecDeque<(u64, usize, u64)>,
    table: Arc<Table>,
    table_seen: u64,
    scratch: Box<[u8]>,
    pipes: Pipes,
    turn: u64,
    serial: u64,
    started: Instant,
    now_ms: u64,
    swept_ms: u64,
    accept_more: bool,
    /// As many connections as there may be.
    full: bool,
    draining_since: Option<u64>,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        ways: Ways,
        mut listener: TcpListener,
    ) -> io::Result<Worker> {
        let poll = Poll::new()?;
        shared.add_worker(mio::Waker::new(poll.registry(), WAKER)?);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Worker {
            poll,
            shared,
            ways,
            listener: Some(listener),
            sessions: Slab::new(),
            ended: Vec::new(),
            again: VecDeque::new(),
            attempts: VecDeque::new(),
            waiting: VecDeque::new(),
            table: Arc::default(),
            table_seen: 0,
            scratch: vec![0; RELAY_BUFFER_BYTES].into_boxed_slice(),
            pipes: Pipes::default(),
            // Workers that start at the same backend would go round in step.
            turn: index as u64,
            serial: 0,
            started: Instant::now(),
            now_ms: 0,
            swept_ms: 0,
            accept_more: false,
            full: false,
            draining_since: None,
        })
    }

    /// Serves until the balancer has stopped.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.is_done() {
            match self.poll.poll(&mut events, Some(Duration::from_millis(self.wait_ms()))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now_ms = self.started.elapsed().as_millis() as u64;
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTENER => self.accept_more = true,
                    Token(token) => self.notice(token / 2, token % 2 == 1, event),
                }
            }
            if let Some(table) = self.shared.changed_table(&mut self.table_seen) {
                self.table = table;
                self.retry_waiting();
            }
            for _ in 0..self.again.len() {
                if let Some(key) = self.again.pop_front() {
                    self.sessions[key].queued = false;
                    self.relay(key);
                }
            }
            self.expire();
            if self.now_ms >= self.swept_ms + SWEEP_MS {
                self.sweep();
            }
            self.bury();
            if self.accept_more || self.full {
                self.accept();
                self.bury();
            }
            if self.draining_since.is_none() && self.shared.is_stopping() {
                self.begin_drain();
            }
        }
        Ok(())
    }

    fn wait_ms(&self) -> u64 {
        if !self.again.is_empty() || self.accept_more {
            return 0;
        }
        let mut until = self.swept_ms + SWEEP_MS;
        for (deadline, ..) in self.attempts.front().into_iter().chain(self.waiting.front()) {
            until = until.min(*deadline);
        }
        let wait = until.saturating_sub(self.now_ms).max(1);
        if self.full { wait.min(FULL_MS) } else { wait }
    }

    fn notice(&mut self, key: usize, of_backend: bool, event: &Event) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.phase {
            Phase::Relaying => {}
            Phase::Connecting if of_backend => return self.attempted(key, event),
            Phase::Refused => return self.drop_input(key),
            Phase::Connecting | Phase::Waiting | Phase::Over => return,
        }
        if event.is_error() && self.broke(key, of_backend) {
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (from, to) = if of_backend {
            (&mut session.down, &mut session.up)
        } else {
            (&mut session.up, &mut session.down)
        };
        from.readable |= event.is_readable() || event.is_read_closed();
        from.closing |= event.is_read_closed();
        if from.readable || event.is_writable() && to.holds() {
            if !of_backend && session.up.moved > 0 && !session.undelayed {
                // The first write leaves at once anyway, and many a connection has no second.
                session.undelayed = true;
                if let Some(backend) = &session.backend {
                    let _ = backend.set_nodelay(true);
                }
            }
            self.relay(key);
        }
    }

    /// One side has an error to tell, perhaps without being read any more.
    fn broke(&mut self, key: usize, of_backend: bool) -> bool {
        let session = &mut self.sessions[key];
        let direction = if of_backend { &mut session.down } else { &mut session.up };
        if !direction.done {
            // What came before the error is still read; the read then tells.
            direction.readable = true;
            direction.closing = true;
            return false;
        }
        let side = if of_backend { session.backend.as_ref() } else { Some(&session.client) };
        let error = side.and_then(|stream| stream.take_error().ok().flatten());
        if error.is_some() {
            self.cut(key, if of_backend { Side::Backend } else { Side::Client });
        }
        error.is_some()
    }

    /// An attempt to connect has ended, one way or the other.
    fn attempted(&mut self, key: usize, event: &Event) {
        let session = &mut self.sessions[key];
        let Some(backend) = &session.backend else { return };
        let failure = if event.is_error() {
            Some(match backend.take_error() {
                Ok(None) => Failure::Other,
                Ok(Some(error)) | Err(error) => failure_of(&error),
            })
        } else if !event.is_writable() {
            return;
        } else {
            // Nobody listened on a port of the range that the kernel takes ours from, and took this very one:
            // on loopback a socket can reach itself.
            let itself = session.loops_back && backend.local_addr().ok() == backend.peer_addr().ok();
            itself.then_some(Failure::Refused)
        };
        match failure {
            None => self.connected(key),
            Some(failure) => self.attempt_failed(key, failure),
        }
    }

    fn connected(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        session.phase = Phase::Relaying;
        session.progress_ms = self.now_ms;
        if let Some(counters) = &session.counters {
            counters.total.fetch_add(1, Ordering::Relaxed);
        }
        session.client_watched = true;
        let token = Token(key * 2);
        if self.poll.registry().register(&mut session.client, token, Interest::READABLE).is_err() {
            return self.close(key);
        }
        // Most clients have spoken by now.
        session.up.readable = true;
        self.relay(key);
    }

    fn attempt_failed(&mut self, key: usize, failure: Failure) {
        let session = &mut self.sessions[key];
        session.backend = None;
        session.slow_tries += usize::from(failure == Failure::TimedOut);
        if let Some(counters) = session.counters.take() {
            counters.active.fetch_sub(1, Ordering::Relaxed);
            counters.failed(failure);
        }
        self.shared.report(session.slot, failure);
        self.shared.totals.retries.fetch_add(1, Ordering::Relaxed);
        self.try_backend(key);
    }

    /// Connects to the next backend that this session has not tried.
    fn try_backend(&mut self, key: usize) {
        loop {
            let session = &mut self.sessions[key];
            let too_late = self.now_ms >= session.begun_ms + CONNECT_TOTAL_MS;
            let enough = session.tried().len() >= TRIES_MAX || session.slow_tries >= SLOW_TRIES_MAX;
            if too_late || enough {
                return self.refuse(key);
            }
            let table = &self.table;
            let active = |tier: usize, at: usize| table.counters[tier][at].active.load(Ordering::Relaxed);
            self.turn += 1;
            let picked = table.routes.pick(self.ways.selection, self.turn, session.tried(), &active);
            let Some((tier, at)) = picked else { return self.wait(key) };
            let target = &table.routes.tiers[tier][at];
            let counters = Arc::clone(&table.counters[tier][at]);
            session.phase = Phase::Connecting;
            session.try_next(target.slot, Arc::clone(&counters));
            session.loops_back = target.address.ip().is_loopback();
            counters.active.fetch_add(1, Ordering::Relaxed);
            let token = Token(key * 2 + 1);
            let connecting = TcpStream::connect(target.address).and_then(|mut stream| {
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, token, both)?;
                Ok(stream)
            });
            match connecting {
                Ok(stream) => {
                    session.backend = Some(stream);
                    self.attempts.push_back((self.now_ms + CONNECT_ATTEMPT_MS, key, session.serial));
                    return;
                }
                Err(error) => {
                    session.counters = None;
                    counters.active.fetch_sub(1, Ordering::Relaxed);
                    if is_ours(&error) {
                        // No fault of the backend.
                        self.shared.totals.out_of_descriptors.fetch_add(1, Ordering::Relaxed);
                        self.refuse(key);
                        // To wait until it has read that would keep the only descriptor from the next.
                        return self.close(key);
                    }
                    counters.failed(failure_of(&error));
                    self.shared.report(session.slot, failure_of(&error));
                }
            }
        }
    }

    fn wait(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        let patience = &self.ways.patience;
        let deadline = patience.waits_until(self.now_ms, session.begun_ms, self.waiting.len());
        let Some(deadline) = deadline else { return self.refuse(key) };
        session.phase = Phase::Waiting;
        self.shared.totals.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting.push_back((deadline, key, session.serial));
    }

    fn retry_waiting(&mut self) {
        for (_, key, serial) in std::mem::take(&mut self.waiting) {
            if self.is_at(key, serial, Phase::Waiting) {
                self.shared.totals.waiting.fetch_sub(1, Ordering::Relaxed);
                self.try_backend(key);
            }
        }
    }

    fn is_at(&self, key: usize, serial: u64, phase: Phase) -> bool {
        self.sessions.get(key).is_some_and(|session| session.serial == serial && session.phase == phase)
    }

    /// Ends the attempts and the waits that took too long.
    fn expire(&mut self) {
        while let Some(&(deadline, key, serial)) = self.attempts.front() {
            if deadline > self.now_ms {
                break;
            }
            self.attempts.pop_front();
            if self.is_at(key, serial, Phase::Connecting) {
                self.attempt_failed(key, Failure::TimedOut);
            }
        }
        while let Some(&(deadline, key, serial)) = self.waiting.front() {
            if deadline > self.now_ms {
                break;
            }
            self.waiting.pop_front();
            if self.is_at(key, serial, Phase::Waiting) {
                self.shared.totals.waiting.fetch_sub(1, Ordering::Relaxed);
                self.refuse(key);
            }
        }
    }

    /// Answers 503, and listens until the client has closed: to close first would make a reset of its
    /// request, which may overtake the answer.
    fn refuse(&mut self, key: usize) {
        self.shared.totals.unavailable.fetch_add(1, Ordering::Relaxed);
        let session = &mut self.sessions[key];
        session.phase = Phase::Refused;
        session.progress_ms = self.now_ms;
        session.client_watched = true;
        let token = Token(key * 2);
        let watched = self.poll.registry().register(&mut session.client, token, Interest::READABLE);
        // A fresh socket takes so few bytes at once, or it is gone.
        let written = session.client.write(UNAVAILABLE);
        if watched.is_err() || written.is_err() || session.client.shutdown(Shutdown::Write).is_err() {
            return self.close(key);
        }
        self.drop_input(key);
    }

    fn drop_input(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        loop {
            match session.client.read(&mut self.scratch) {
                Ok(0) => return self.close(key),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.close(key),
            }
        }
    }

    fn relay(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.phase == Phase::Relaying)
        else {
            return;
        };
        let pipes = self.ways.splice.then_some(&mut self.pipes);
        match session.relay(&mut self.scratch, pipes, RELAY_ROUNDS_MAX, self.now_ms) {
            Err(side) => return self.cut(key, side),
            Ok(Pumped::More) if !session.queued => {
                session.queued = true;
                self.again.push_back(key);
            }
            Ok(_) => {}
        }
        if session.down.blocked && !session.client_writable_watched {
            session.client_writable_watched = true;
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().reregister(&mut session.client, Token(key * 2), both).is_err() {
                return self.close(key);
            }
        }
        if session.is_finished() {
            self.close(key);
        }
    }

    /// One side was reset: so is the other.
    fn cut(&mut self, key: usize, side: Side) {
        let session = &mut self.sessions[key];
        if side == Side::Backend && session.down.moved == 0 {
            if let Some(counters) = &session.counters {
                counters.failed(Failure::Reset);
            }
            self.shared.report(session.slot, Failure::Reset);
        }
        session.reset_both();
        self.close(key);
    }

    /// The sockets close when the round ends.
    fn close(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        if session.phase != Phase::Over {
            session.phase = Phase::Over;
            self.ended.push(key);
        }
    }

    fn bury(&mut self) {
        while let Some(key) = self.ended.pop() {
            if self.sessions[key].queued {
                self.again.retain(|queued| *queued != key);
            }
            let mut session = self.sessions.remove(key);
            session.count();
            let spliced = session.up.spliced + session.down.spliced;
            if spliced > 0 {
                self.shared.totals.spliced_bytes.fetch_add(spliced, Ordering::Relaxed);
            }
            for direction in [&mut session.up, &mut session.down] {
                if let Some(pipe) = direction.take_pipe() {
                    self.pipes.give_back(pipe);
                }
            }
            if let Some(counters) = &session.counters {
                counters.active.fetch_sub(1, Ordering::Relaxed);
            }
            self.shared.totals.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn accept(&mut self) {
        for _ in 0..TURN_ACCEPTS_MAX {
            let Some(listener) = &self.listener else { break };
            let totals = &self.shared.totals;
            self.full = totals.active.fetch_add(1, Ordering::Relaxed) >= self.shared.max_connections;
            if self.full {
                totals.active.fetch_sub(1, Ordering::Relaxed);
                self.accept_more = false;
                return;
            }
            // The edge may have passed while there was no room.
            self.accept_more = true;
            match listener.accept() {
                Ok((client, _)) => {
                    totals.accepted.fetch_add(1, Ordering::Relaxed);
                    self.serial += 1;
                    let key = self.sessions.insert(Session::new(client, self.serial, self.now_ms));
                    self.try_backend(key);
                }
                Err(error) => {
                    totals.active.fetch_sub(1, Ordering::Relaxed);
                    if error.kind() == io::ErrorKind::WouldBlock {
                        self.accept_more = false;
                        return;
                    }
                    if is_ours(&error) {
                        return self.turn_away();
                    }
                    // Any other: that client is gone again, the next may be there.
                }
            }
        }
    }

    /// There is no descriptor left to accept with: the reserve makes room for one client to be told. Those
    /// who come behind it wait in the kernel until the next round.
    fn turn_away(&mut self) {
        self.shared.totals.out_of_descriptors.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.shared.reserve.lock();
        *kept = None;
        if let Some(Ok((mut client, _))) = self.listener.as_ref().map(TcpListener::accept) {
            let _ = client.write(UNAVAILABLE);
        }
        *kept = reserve();
        drop(kept);
        // The edge of those that wait has passed.
        self.full = true;
        self.accept_more = false;
    }

    /// Looks at every session: those that stand still, or whose backend is dead.
    fn sweep(&mut self) {
        self.swept_ms = self.now_ms;
        self.pipes.trim(PIPES_KEPT);
        let is_draining = self.draining_since.is_some();
        let patience = self.ways.patience;
        let mut over = Vec::new();
        for (key, session) in &mut self.sessions {
            let quiet_ms = self.now_ms - session.progress_ms.min(self.now_ms);
            let end = match session.phase {
                Phase::Connecting | Phase::Waiting | Phase::Over => continue,
                Phase::Refused => patience.with_refused(quiet_ms).then_some(End::Close),
                Phase::Relaying => {
                    session.count();
                    if !session.kept_alive
                        && let Some(backend) = &session.backend
                    {
                        // Not at the start: most connections do not live to need it.
                        session.kept_alive = true;
                        let _ = SockRef::from(backend).set_tcp_keepalive(&listen::keepalive());
                    }
                    patience.with_relayed(Standing {
                        quiet_ms,
                        is_half_closed: session.is_half_closed(),
                        is_dead: self.table.dead.binary_search(&session.slot).is_ok(),
                        is_answered: session.answered && !session.down.holds(),
                        is_draining,
                    })
                }
            };
            if let Some(end) = end {
                if end == End::Reset {
                    session.reset_both();
                }
                over.push(key);
            }
        }
        for key in over {
            self.close(key);
        }
    }

    /// Takes in what has already arrived, and nothing after that.
    fn begin_drain(&mut self) {
        self.draining_since = Some(self.now_ms);
        self.accept_more = true;
        while self.accept_more && !self.full {
            self.accept();
        }
        self.accept_more = false;
        self.full = false;
        if let Some(mut listener) = self.listener.take() {
            let _ = self.poll.registry().deregister(&mut listener);
        }
    }

    fn is_done(&self) -> bool {
        let Some(since) = self.draining_since else { return false };
        let waited_for = self.sessions.iter().any(|(_, session)| session.phase != Phase::Refused);
        !waited_for || self.now_ms >= since + BALANCER_DRAIN_MS
    }
}

fn failure_of(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::TimedOut => Failure::TimedOut,
        io::ErrorKind::ConnectionReset => Failure::Reset,
        _ => Failure::Other,
    }
}
