//! One worker: an event loop on one thread, its listeners, its connections, its engine.
//!
//! A round is: wait for events; write to those who were slow; serve the ready connections in turns of up
//! to 64; accept; take one step of every listing under way; do a little background work. Readiness is
//! edge-triggered, so what a turn leaves unread is remembered. Sockets are registered once, for reading and
//! writing: no syscall but read, write and the wait itself is made for a request.
//!
//! Budget of a request on a warm connection: its share of one wait, one read, one write and two clock
//! readings; no allocation.

use super::connection::{Backlog, Connection, Phase, Stream};
use super::peers::{LINKS, Links};
use super::table::Table;
use super::{Control, MachineClock};
use crate::base::clock::Now;
use crate::http::error::ErrorCode;
use crate::limits::{
    DRAIN_IDLE_MS, DRAIN_MS, LINGER_MS, MAINTENANCE_BUDGET, OUTPUT_STALL_MS, OUTPUT_WAITING_BYTES_MAX,
    TURN_ACCEPTS_MAX,
};
use crate::node::Node;
use crate::node::engine::Engine;
use crate::node::routes::Route;
use crate::store::Storage;
use mio::net::{TcpListener, UnixListener};
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) const TICK_MS: u64 = 100;
/// Deadlines of all connections are looked at once in this many ticks, some at each tick.
const SWEEP_TICKS: usize = 10;
const EVENTS: usize = 1024;
const WAKER: Token = Token(usize::MAX);
const TCP: Token = Token(usize::MAX - 1);
const UNIX: Token = Token(usize::MAX - 2);
const PEERS: Token = Token(usize::MAX - 3);

pub(super) struct Worker<S> {
    index: usize,
    pub(super) poll: Poll,
    pub(super) control: Arc<Control>,
    clock: MachineClock,
    pub(super) engine: Engine<S>,
    pub(super) links: Links,
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    pub(super) connections: Table,
    /// Connections to be read, and those whose listing can go on.
    ready: VecDeque<usize>,
    streams: VecDeque<usize>,
    /// The connections of the current turn, in its order.
    turn: Vec<usize>,
    /// Connections whose answers wait for other nodes.
    pub(super) holding: Vec<usize>,
    /// Connections whose next request waits for a write made elsewhere, and until when.
    pub(super) parked: Vec<(usize, u64)>,
    /// Bytes that wait for clients to read.
    pub(super) waiting_bytes: usize,
    pub(super) now: Now,
    pub(super) tick: u32,
    sweep_from: usize,
    accept_more: bool,
    /// At the next tick: there were no descriptors left.
    accept_again: bool,
    maintain_more: bool,
    /// Given up for a moment when there are no descriptors left, to turn a client away.
    reserve: Option<File>,
    /// When the drain began.
    draining_since: Option<u64>,
}

impl<S: Storage> Worker<S> {
    pub(super) fn new(
        index: usize,
        node: Arc<Node<S>>,
        control: Arc<Control>,
        clock: MachineClock,
        mut tcp: TcpListener,
        mut unix: Option<UnixListener>,
        mut links: Links,
    ) -> io::Result<Worker<S>> {
        let poll = Poll::new()?;
        control.wakers.lock().push(mio::Waker::new(poll.registry(), WAKER)?);
        poll.registry().register(&mut tcp, TCP, Interest::READABLE)?;
        if let Some(unix) = &mut unix {
            poll.registry().register(unix, UNIX, Interest::READABLE)?;
        }
        if let Some(peers) = links.listener() {
            poll.registry().register(peers, PEERS, Interest::READABLE)?;
        }
        Ok(Worker {
            index,
            poll,
            control,
            clock,
            engine: Engine::new(node, index),
            links,
            tcp: Some(tcp),
            unix,
            connections: Table::default(),
            ready: VecDeque::new(),
            streams: VecDeque::new(),
            turn: Vec::new(),
            holding: Vec::new(),
            parked: Vec::new(),
            waiting_bytes: 0,
            now: clock.raw(),
            tick: 0,
            sweep_from: 0,
            accept_more: false,
            accept_again: false,
            maintain_more: false,
            reserve: File::open("/dev/null").ok(),
            draining_since: None,
        })
    }

    /// Serves until the node has stopped.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut mesh_more = false;
        while !self.is_done() {
            let busy = !self.ready.is_empty()
                || !self.streams.is_empty()
                || self.accept_more
                || self.maintain_more
                || mesh_more;
            let next_tick_ms = (u64::from(self.tick) + 1) * TICK_MS;
            let until_tick_ms = next_tick_ms.saturating_sub(self.now.mono_ns / 1_000_000).max(1);
            let wait_ms = match (busy, self.parked.is_empty()) {
                (true, _) => 0,
                (false, true) => until_tick_ms.min(self.mesh_wait_ms()),
                (false, false) => 1,
            };
            match self.poll.poll(&mut events, Some(Duration::from_millis(wait_ms))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now = self.clock.now(&self.engine.node().mesh);
            for event in &events {
                match event.token() {
                    WAKER => {}
                    TCP | UNIX => self.accept_more = true,
                    PEERS => self.links.accept_soon(),
                    Token(link) if link >= LINKS => self.link_event((link - LINKS) as u64, event),
                    Token(key) => {
                        if event.is_writable() {
                            self.flush(key);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            self.noticed(key, event.is_read_closed());
                        }
                    }
                }
            }
            mesh_more = self.read_links(!events.is_empty());
            self.serve(false);
            if self.accept_more {
                self.accept();
            }
            self.continue_listings();
            mesh_more |= self.mesh_round();
            self.release_held();
            self.retry_parked();
            self.each_tick();
            if self.draining_since.is_none() && self.control.stopping.load(Ordering::Acquire) {
                self.begin_drain();
            }
        }
        Ok(())
    }

    pub(super) fn node(&self) -> &Arc<Node<S>> {
        self.engine.node()
    }

    fn noticed(&mut self, key: usize, read_closed: bool) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.unread = true;
        connection.ended |= read_closed;
        self.enqueue(key);
    }

    pub(super) fn enqueue(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        if !connection.queued {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Serves the connections that were ready when this began, in turns.
    fn serve(&mut self, last: bool) {
        let mut left = self.ready.len();
        while left > 0 {
            self.engine.begin(self.now);
            if last {
                self.engine.serve_last();
            }
            self.turn.clear();
            while left > 0 && self.engine.has_room() {
                left -= 1;
                if let Some(key) = self.ready.pop_front() {
                    self.read(key);
                }
            }
            if self.turn.is_empty() {
                continue;
            }
            let begun_ns = self.now.mono_ns;
            self.engine.execute();
            self.follow_hints();
            self.now.mono_ns = self.clock.mono_ns();
            self.engine.record_duration(self.now.mono_ns - begun_ns);
            for index in 0..self.turn.len() {
                self.answer(index);
            }
        }
    }

    /// Reads a ready connection and adds it to the turn, if that brings anything.
    fn read(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.queued {
            return;
        }
        connection.queued = false;
        match connection.phase {
            // Not before it has read what it was sent.
            Phase::Sending | Phase::Holding => return,
            Phase::Lingering => return self.discard(key),
            Phase::Idle | Phase::Arriving => {}
        }
        let carry = connection.carry.take();
        let carried = carry.as_deref().map_or(&[][..], Vec::as_slice);
        let slot = self.engine.slot(carried);
        let mut filled = 0;
        if connection.unread && !slot.is_empty() {
            match connection.stream.read(slot) {
                Ok(0) => {
                    connection.ended = true;
                    connection.unread = false;
                }
                Ok(bytes) => {
                    filled = bytes;
                    // A short read has emptied the socket, unless its end has come meanwhile.
                    connection.unread = bytes == slot.len() || connection.ended;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.unread = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.close(key),
            }
        }
        if filled == 0 && carried.is_empty() {
            if connection.ended && !connection.unread {
                self.close(key);
            }
            return;
        }
        self.engine.metrics().read_bytes_total.add(filled as u64);
        let patient = self.is_patient(key);
        let connection = &mut self.connections[key];
        self.engine.ingest(&mut connection.session, filled, &connection.stream, patient);
        self.turn.push(key);
    }

    /// Writes the turn's answers to one of its connections and decides how that goes on.
    fn answer(&mut self, index: usize) {
        let key = self.turn[index];
        let connection = &mut self.connections[key];
        let turn = self.engine.turn(index);
        let (more, close, linger, listing) = (turn.more, turn.close, turn.linger, turn.listing.take());
        let (parked, held) = (turn.parked, turn.held.take());
        let rest = self.engine.rest_of(index);
        connection.carry = (!rest.is_empty()).then(|| Box::new(rest.to_vec()));
        connection.close |= close;
        connection.linger |= linger;
        self.park(key, parked);
        let connection = &mut self.connections[key];
        let answers = self.engine.answers_of(index);
        let sent = match answers.is_empty() || held.is_some() {
            true => 0,
            false => match connection.stream.write(answers) {
                Ok(sent) => sent,
                Err(error) if would_wait(&error) => 0,
                Err(_) => {
                    self.engine.ended(index);
                    return self.close(key);
                }
            },
        };
        self.engine.metrics().written_bytes_total.add(sent as u64);
        let (waiting, served) = (&answers[sent..], !answers.is_empty());
        if !waiting.is_empty() || listing.is_some() {
            let unended = if self.engine.observed() { self.engine.unended(index) } else { Vec::new() };
            if listing.is_some() && waiting.is_empty() {
                self.streams.push_back(key);
            }
            self.waiting_bytes += waiting.len();
            connection.phase = if held.is_some() { Phase::Holding } else { Phase::Sending };
            if held.is_some() {
                self.holding.push(key);
            }
            connection.backlog =
                Some(Box::new(Backlog { bytes: waiting.to_vec(), sent: 0, held, listing, unended }));
            connection.deadline = self.tick + ticks(OUTPUT_STALL_MS);
            if self.waiting_bytes > OUTPUT_WAITING_BYTES_MAX {
                self.close(key);
            }
            return;
        }
        self.engine.ended(index);
        self.settle(key, more, served);
    }

    /// What a connection does when all its answers have left; `served`: if there were any.
    fn settle(&mut self, key: usize, more: bool, served: bool) {
        let waits = more || self.is_parked(key);
        let connection = &mut self.connections[key];
        // A client that will send no more has had all its answers, unless complete requests are left.
        let over = connection.ended && !connection.unread && !waits;
        if connection.close || over {
            if connection.linger && !connection.ended {
                return self.linger(key);
            }
            return self.close(key);
        }
        let arriving = connection.carry.is_some() || !connection.session.between_requests();
        if !arriving {
            connection.phase = Phase::Idle;
            connection.deadline = self.tick + ticks(self.control.idle_connection_ms);
        } else if served || connection.phase != Phase::Arriving {
            // Counted from its first byte: dripping does not extend it, the request before it is another one.
            connection.phase = Phase::Arriving;
            connection.deadline = self.tick + ticks(self.control.head_arrival_ms);
        }
        if more || connection.unread {
            self.enqueue(key);
        }
    }

    /// Writes what waits for a client, now that it reads again.
    pub(super) fn flush(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(backlog) = connection.backlog.as_mut().filter(|backlog| backlog.held.is_none()) else {
            return;
        };
        while backlog.sent < backlog.bytes.len() {
            match connection.stream.write(&backlog.bytes[backlog.sent..]) {
                Ok(sent) => {
                    backlog.sent += sent;
                    self.waiting_bytes -= sent;
                    connection.deadline = self.tick + ticks(OUTPUT_STALL_MS);
                    self.engine.metrics().written_bytes_total.add(sent as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if would_wait(&error) => return,
                Err(_) => return self.close(key),
            }
        }
        if backlog.listing.is_some() {
            backlog.bytes.clear();
            backlog.sent = 0;
            if !self.streams.contains(&key) {
                self.streams.push_back(key);
            }
            return;
        }
        self.engine.ended_late(&backlog.unended);
        connection.backlog = None;
        // What was left over may hold complete requests.
        let more = connection.carry.is_some();
        self.settle(key, more, true);
    }

    /// Takes one step of every listing whose client has read the last one.
    fn continue_listings(&mut self) {
        for _ in 0..self.streams.len() {
            let Some(key) = self.streams.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(key) else { continue };
            let Some(backlog) = &mut connection.backlog else { continue };
            let Some(listing) = &mut backlog.listing else { continue };
            let before = backlog.bytes.len();
            let is_whole = self.engine.continue_listing(listing, self.now, &mut backlog.bytes);
            if let Ok(true) = is_whole {
                backlog.listing = None;
            }
            self.waiting_bytes += backlog.bytes.len() - before;
            let unfinished = backlog.listing.is_some();
            if backlog.bytes.is_empty() && unfinished && is_whole.is_ok() {
                // Nothing to send yet: the step found no matching record, or a page is not whole.
                connection.deadline = self.tick + ticks(OUTPUT_STALL_MS);
                self.streams.push_back(key);
                continue;
            }
            if self.waiting_bytes > OUTPUT_WAITING_BYTES_MAX || is_whole.is_err() {
                self.close(key);
                continue;
            }
            self.flush(key);
        }
    }

    fn accept(&mut self) {
        for _ in 0..TURN_ACCEPTS_MAX {
            let accepted = match (&self.tcp, &self.unix) {
                (Some(tcp), _) => tcp.accept().map(|(stream, _)| Stream::Tcp(stream)),
                (None, _) => Err(io::ErrorKind::WouldBlock.into()),
            };
            let accepted = match (accepted, &self.unix) {
                (Err(error), Some(unix)) if error.kind() == io::ErrorKind::WouldBlock => {
                    unix.accept().map(|(stream, _)| Stream::Unix(stream))
                }
                (accepted, _) => accepted,
            };
            match accepted {
                Ok(stream) => self.welcome(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.accept_more = false;
                    return;
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    self.turn_away();
                    return;
                }
                // A connection that was gone before it was accepted, and the like.
                Err(_) => {}
            }
        }
    }

    fn welcome(&mut self, mut stream: Stream) {
        let metrics = self.engine.metrics();
        metrics.connections_total.add(1);
        if self.control.connections.fetch_add(1, Ordering::Relaxed) >= self.control.max_connections {
            self.control.connections.fetch_sub(1, Ordering::Relaxed);
            metrics.connections_rejected_total.add(1);
            // A fresh socket has room for this; if not, the close says enough.
            let _ = stream.write(&self.engine.node().refusal(ErrorCode::TooManyConnections));
            return;
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(stream.source(), Token(self.connections.next_key()), both).is_err() {
            self.control.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        metrics.connections.add(1);
        self.connections.insert(Connection::new(stream, self.tick + ticks(self.control.idle_connection_ms)));
    }

    /// There are no descriptors left: with the reserve, tell one client so by closing its connection,
    /// instead of leaving it hanging. The others wait in the kernel until descriptors come back.
    fn turn_away(&mut self) {
        if self.reserve.take().is_some()
            && let Some(tcp) = &self.tcp
            && tcp.accept().is_ok()
        {
            self.engine.metrics().connections_rejected_total.add(1);
        }
        self.reserve = File::open("/dev/null").ok();
        // Tried again at the next tick: an edge that was seen does not come twice.
        (self.accept_more, self.accept_again) = (false, true);
    }

    /// Says that nothing more will come, and waits for the client to hear it.
    fn linger(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        connection.stream.shutdown_write();
        connection.carry = None;
        connection.phase = Phase::Lingering;
        connection.deadline = self.tick + ticks(LINGER_MS);
        connection.unread = true;
        self.enqueue(key);
    }

    /// Drops what a lingering client still sends.
    fn discard(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let scratch = self.engine.slot(&[]);
        for _ in 0..4 {
            match connection.stream.read(scratch) {
                Ok(0) => return self.close(key),
                Ok(_) => {}
                Err(error) if would_wait(&error) => return,
                Err(_) => return self.close(key),
            }
        }
        // More than this at once can wait for the next round.
        self.enqueue(key);
    }

    fn close(&mut self, key: usize) {
        let Some(mut connection) = self.connections.remove(key) else { return };
        self.parked.retain(|(parked, _)| *parked != key);
        self.holding.retain(|holding| *holding != key);
        if let Some(backlog) = &connection.backlog {
            self.waiting_bytes -= backlog.waiting();
            self.engine.abandon(backlog.held.as_deref(), &backlog.unended, self.now);
        }
        // Closing the descriptor would do, but mio asks for it.
        let _ = self.poll.registry().deregister(connection.stream.source());
        self.engine.metrics().connections.sub(1);
        self.control.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// What time brings: deadlines, accepting again, background work, the end of the drain.
    fn each_tick(&mut self) {
        let due = (self.now.mono_ns / 1_000_000 / TICK_MS) as u32;
        let ticked = due > self.tick;
        if ticked {
            self.tick = due;
            self.accept_more |= std::mem::take(&mut self.accept_again) && self.tcp.is_some();
            let slots = self.connections.slots();
            let share = slots.div_ceil(SWEEP_TICKS).max(1);
            for _ in 0..share.min(slots) {
                self.sweep_from = if self.sweep_from + 1 >= slots { 0 } else { self.sweep_from + 1 };
                self.check_deadline(self.sweep_from);
            }
        }
        if self.index == 0 && ticked {
            self.log_notes();
        }
        // One worker is enough: the work is bounded by what writes leave behind.
        if self.index == 0 && (ticked || self.maintain_more) {
            let node = self.engine.node();
            let floor = node.floor(self.now.wall_ms);
            self.maintain_more = node.store.maintain(self.now.wall_ms, floor, MAINTENANCE_BUDGET);
        }
    }

    fn check_deadline(&mut self, key: usize) {
        let tick = self.tick;
        let Some(connection) = self.connections.get_mut(key).filter(|c| c.deadline <= tick) else { return };
        // The request whose body does not come has had its answer.
        if connection.phase == Phase::Arriving && !connection.session.is_in_body() {
            let metrics = self.engine.metrics();
            let code = ErrorCode::HeadTimeout;
            metrics.commands[Route::Invalid as usize][code.status() as usize].add(1);
            let answer = self.engine.node().refusal(code);
            let _ = connection.stream.write(&answer);
            return self.linger(key);
        }
        self.close(key);
    }

    /// Takes in what has already arrived, closes the listeners, and serves everybody once more.
    fn begin_drain(&mut self) {
        self.draining_since = Some(self.now.mono_ns);
        if self.tcp.is_some() {
            self.accept();
        }
        self.accept_more = false;
        if let Some(mut tcp) = self.tcp.take() {
            let _ = self.poll.registry().deregister(&mut tcp);
        }
        if let Some(mut unix) = self.unix.take() {
            let _ = self.poll.registry().deregister(&mut unix);
        }
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.noticed(key, false);
        }
        self.serve(true);
        self.engine.become_leaving();
        let soon = self.tick + ticks(DRAIN_IDLE_MS);
        for (_, connection) in self.connections.iter_mut() {
            if connection.phase == Phase::Idle {
                connection.deadline = soon;
            }
        }
    }

    fn is_done(&self) -> bool {
        let Some(since) = self.draining_since else { return false };
        let elapsed_ms = self.now.mono_ns.saturating_sub(since) / 1_000_000;
        // Lingering ones have had their answers; nobody waits for them.
        let waiting = self.connections.iter().any(|(_, connection)| match connection.phase {
            Phase::Lingering => false,
            Phase::Idle => elapsed_ms < DRAIN_IDLE_MS,
            Phase::Arriving | Phase::Sending | Phase::Holding => true,
        });
        // What it accepted has to reach the others, and they have to hear that it goes.
        (!waiting && self.node().mesh.has_left()) || elapsed_ms >= DRAIN_MS
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A duration in ticks, rounded up, at least one.
pub(super) const fn ticks(ms: u64) -> u32 {
    ms.div_ceil(TICK_MS) as u32
}
