//! One worker's turns: the bytes of many connections in, their answers out, everything in between batched.
//!
//! A turn takes the input of up to 64 connections into one buffer, finds their requests, hashes the keys,
//! starts all the memory accesses that they will need, executes in order and leaves each connection's
//! answers in one piece, to be written with one syscall. A cold lookup costs about 2 µs right after a
//! syscall and a fraction of that when the misses of a batch overlap; hence the shape.
//!
//! Budget of a hot request (`get`, `set`, `is`, `rm` with texts that need no decoding): no allocation, no
//! formatting, no syscall, no clock; one copy of the value, under the stripe's lock, into the output.

mod observed;
mod plan;
#[cfg(test)]
mod tests;
mod writes;

use super::acks::Held;
use super::extension::Snapshot;
use super::listing::{Listing, Plan};
use super::metrics::WorkerMetrics;
use super::routes::Route;
use super::{Connection, Node, State};
use crate::base::clock::Now;
use crate::http::answer::{Answers, CONTINUE, Framing, Persistence};
use crate::http::error::{ErrorCode, Status, reason};
use crate::http::head::Body;
use crate::http::json;
use crate::http::repeat::Repeat;
use crate::http::session::{Event, Session};
use crate::limits::{READ_SLOT_BYTES, TURN_CONNECTIONS_MAX, TURN_REQUESTS_PER_CONNECTION_MAX};
use crate::mesh::Context;
use crate::mesh::worker::Worker as MeshWorker;
use crate::peer::operation::Kind;
use crate::store::{Applied, KeyHash, Marks, NewRecord, Record, Stamp, Storage};
pub use observed::Unended;
use plan::{Action, Operation, Span};
use std::ops::Range;
use std::sync::Arc;

/// Requests whose memory accesses are in flight together.
const GROUP: usize = 32;
/// Input of one turn: one connection may use a whole slot, all of them together this much.
const INPUT_BYTES: usize = 16 * READ_SLOT_BYTES;

/// What one connection's part of a turn came to.
#[derive(Debug, Default)]
pub struct Turn {
    /// Its answers in [`Engine::output`].
    output: Range<usize>,
    /// Its operations.
    operations: Range<usize>,
    /// Bytes that belong to no complete request yet, in the input.
    rest: Range<usize>,
    /// The rest may hold complete requests: serve the connection again without waiting for it.
    pub more: bool,
    /// Close behind the answers.
    pub close: bool,
    /// The client may still be sending: close so that its last answer is not lost to a reset.
    pub linger: bool,
    /// Its answers may not leave before other nodes hold its writes; see [`Engine::release`].
    pub held: Option<Box<Held>>,
    /// The rest begins with a request that waits for a write made elsewhere: serve the connection again soon,
    /// and without patience once [`crate::limits::AFTER_WAIT_MS`] are over.
    pub parked: bool,
    /// Streams on after the answers; nothing else is served on the connection until it has ended.
    pub listing: Option<Box<Listing>>,
}

/// A listing cannot go on: what it was reading was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartedOver;

/// One worker's engine; see the module.
pub struct Engine<S> {
    node: Arc<Node<S>>,
    /// This worker's part in the mesh.
    pub mesh: MeshWorker,
    /// The constant part of this worker's tokens, and whose it is.
    token: (crate::base::version::Incarnation, Vec<u8>),
    metrics: Arc<WorkerMetrics>,
    worker: usize,
    now: Now,
    state: State,
    /// This worker drains: what comes now has come too late.
    leaving: bool,
    /// Every answer is its connection's last.
    closing: bool,
    /// Writes are refused: the clock is wrong.
    is_skewed: bool,
    /// Data is served, and nothing but the request itself decides about its answer.
    takes_plain: bool,
    input: Box<[u8]>,
    repeat: Repeat,
    used: usize,
    carried: usize,
    scratch: Vec<u8>,
    operations: Vec<Operation>,
    turns: Vec<Turn>,
    listings: Vec<Option<Plan>>,
    pings: Vec<Option<std::net::SocketAddr>>,
    output: Vec<u8>,
    hashes: Vec<KeyHash>,
    extensions: Arc<Snapshot>,
    generation: u64,
    serial: u64,
    /// Where the turn's operations are no requests, if there are observers.
    interim: Vec<usize>,
}

/// Answers with a record's value.
#[inline]
fn tell_value(answers: &Answers, record: &Record<'_>, framing: Framing, out: &mut Vec<u8>) {
    if record.marks.has(Marks::VALUE_CLEAN) {
        answers.clean_value(record.value, framing, out);
        return;
    }
    let mut body = Vec::with_capacity(record.value.len() + 16);
    json::quote(record.value, false, &mut body);
    answers.value_head(body.len(), framing.persistence, out);
    if !framing.head_only {
        out.extend_from_slice(&body);
    }
}

impl<S: Storage> Engine<S> {
    #[must_use]
    pub fn new(node: Arc<Node<S>>, worker: usize) -> Engine<S> {
        let metrics = node.register_worker();
        let extensions = node.extensions.snapshot();
        Engine {
            mesh: MeshWorker::new(Arc::clone(&node.mesh), worker),
            token: (crate::base::version::Incarnation(0), Vec::new()),
            metrics,
            worker,
            now: Now::default(),
            state: node.state(),
            leaving: false,
            closing: false,
            takes_plain: false,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            repeat: Repeat::default(),
            used: 0,
            carried: 0,
            is_skewed: false,
            scratch: Vec::new(),
            operations: Vec::with_capacity(1024),
            turns: Vec::with_capacity(TURN_CONNECTIONS_MAX),
            listings: Vec::new(),
            pings: Vec::new(),
            output: Vec::with_capacity(64 * 1024),
            hashes: Vec::with_capacity(GROUP),
            extensions,
            generation: u64::MAX,
            serial: 0,
            interim: Vec::new(),
            node,
        }
    }

    #[must_use]
    pub fn metrics(&self) -> &WorkerMetrics {
        &self.metrics
    }

    #[must_use]
    pub fn node(&self) -> &Arc<Node<S>> {
        &self.node
    }

    /// This worker's part in the mesh, with what its calls need.
    pub fn mesh_at(&mut self, now: Now) -> (&mut MeshWorker, Context<'_, S>) {
        (&mut self.mesh, self.node.context(now))
    }

    /// Starts a turn: forgets the one before.
    pub fn begin(&mut self, now: Now) {
        self.now = now;
        self.mesh.begin(self.node.context(now));
        self.state = match (self.leaving, self.mesh.is_ready()) {
            (true, _) => State::Leaving,
            (false, true) => State::Ready,
            (false, false) => State::Warming,
        };
        self.closing = self.state == State::Leaving || self.node.is_parting();
        self.is_skewed = self.node.mesh.is_skewed();
        self.takes_plain = self.state == State::Ready && !self.closing && !self.is_skewed;
        let generation = self.node.extensions.generation();
        if generation != self.generation {
            self.generation = generation;
            self.extensions = self.node.extensions.snapshot();
        }
        self.used = 0;
        self.scratch.clear();
        self.operations.clear();
        self.turns.clear();
        self.listings.clear();
        self.pings.clear();
        self.output.clear();
        // A turn of long answers must not keep its memory for ever.
        if self.output.capacity() > 4 << 20 {
            self.output = Vec::with_capacity(64 * 1024);
        }
    }

    /// From the next turn on, answers are those of a node that goes away.
    pub fn become_leaving(&mut self) {
        self.leaving = true;
    }

    /// Serves what had arrived before the node was told to leave, each connection for the last time.
    pub fn serve_last(&mut self) {
        if self.mesh.is_ready() {
            self.state = State::Ready;
        }
        self.closing = true;
        self.takes_plain = false;
    }

    /// Whether the turn can take another connection.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.turns.len() < TURN_CONNECTIONS_MAX && self.input.len() - self.used >= READ_SLOT_BYTES
    }

    /// Connections in the turn so far; the next one gets this index.
    #[must_use]
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Takes what an earlier turn left over of the next connection (at most a slot) and returns the room
    /// behind it, to read into.
    pub fn slot(&mut self, carry: &[u8]) -> &mut [u8] {
        debug_assert!(self.has_room() && carry.len() <= READ_SLOT_BYTES);
        self.carried = carry.len();
        let slot = &mut self.input[self.used..self.used + READ_SLOT_BYTES];
        slot[..carry.len()].copy_from_slice(carry);
        &mut slot[carry.len()..]
    }

    /// Finds the requests in the slot, of which `filled` bytes behind the carried ones are new, and adds the
    /// connection to the turn.
    ///
    /// `patient`: a request that names a write which is not here yet may wait for it ([`Turn::parked`]).
    pub fn ingest(
        &mut self,
        session: &mut Session,
        filled: usize,
        connection: &dyn Connection,
        patient: bool,
    ) {
        let base = self.used;
        let end = base + self.carried + filled;
        let index = self.turns.len();
        let first = self.operations.len();
        let mut turn = Turn::default();
        let mut at = base;
        // Taken out, so that a request can borrow the input while operations are added.
        let input = std::mem::take(&mut self.input);
        loop {
            if self.operations.len() - first >= TURN_REQUESTS_PER_CONNECTION_MAX {
                turn.more = true;
                break;
            }
            if self.takes_plain
                && let Some((plain, bytes)) = session.plain(&self.repeat, &input[..end], at)
                && self.plan_plain(&input, at, &plain, index as u16)
            {
                at += bytes;
                continue;
            }
            let before = at;
            match session.next_repeating(&mut self.repeat, &input[..end], &mut at) {
                Event::Request(head) => {
                    let planned = self.plan(&input, &head, index as u16, connection);
                    if matches!(planned.action, Action::Error(ErrorCode::AfterNotSeen))
                        && patient
                        && head.body == Body::None
                    {
                        // As if it had not come yet, even if it was the connection's last.
                        self.operations.pop();
                        session.put_back();
                        at = before;
                        turn.parked = true;
                        break;
                    }
                    if !head.keep_alive || planned.framing.persistence == Persistence::Close {
                        session.end();
                        turn.close = true;
                        turn.linger = at < end || head.body != Body::None;
                        break;
                    }
                    if matches!(planned.action, Action::List(_)) {
                        turn.more = true;
                        break;
                    }
                }
                Event::Refuse(code) => {
                    // Who asked for a head alone would take a body for what comes next.
                    let head_only = input[at..end].trim_ascii_start().starts_with(b"HEAD ");
                    let framing = Framing { persistence: Persistence::Close, head_only };
                    let operation =
                        Operation::new(Action::Error(code), Route::Invalid, framing, index as u16);
                    self.operations.push(operation);
                    turn.close = true;
                    turn.linger = true;
                    break;
                }
                Event::BadBody(code) => {
                    // The last request's. In an earlier turn it had its answer, and has no claim to another.
                    if let Some(operation) = self.operations[first..].last_mut() {
                        operation.action = Action::Error(code);
                        operation.framing.persistence = Persistence::Close;
                    }
                    turn.close = true;
                    turn.linger = true;
                    break;
                }
                Event::NeedMore => break,
            }
        }
        self.input = input;
        turn.more &= at < end;
        turn.rest = if turn.close { end..end } else { at..end };
        turn.operations = first..self.operations.len();
        self.turns.push(turn);
        // The next connection starts on a cache line of its own.
        self.used = end.next_multiple_of(64).min(self.input.len());
    }

    /// Serves the turn: afterwards the answers are in [`Engine::output`].
    pub fn execute(&mut self) {
        if self.observed() {
            self.started();
        }
        let mut operations = std::mem::take(&mut self.operations);
        let mut output = std::mem::take(&mut self.output);
        let mut current = usize::MAX;
        for group in operations.chunks_mut(GROUP) {
            if group.len() > 1
                && group.iter().all(|operation| matches!(operation.action, Action::Get | Action::Is))
            {
                self.look_up(group, &mut current, &mut output);
                continue;
            }
            self.hashes.clear();
            let keyed = |operation: &&Operation| {
                matches!(operation.action, Action::Get | Action::Is | Action::Rm | Action::Set)
            };
            self.hashes.extend(group.iter().filter(keyed).map(|operation| operation.hash));
            // A single key would only be looked up three times instead of once.
            if self.hashes.len() > 1 {
                self.node.store.prefetch(&self.hashes);
            }
            for operation in group {
                let connection = usize::from(operation.connection);
                if connection != current {
                    self.turns[connection].output = output.len()..output.len();
                    current = connection;
                }
                let start = output.len();
                operation.status = self.perform(operation, &mut output);
                if operation.waits_for > 0 {
                    self.hold(operation, start, output.len());
                }
                self.turns[connection].output.end = output.len();
                // What waits is counted when it is known how it came out.
                if operation.waits_for == 0 && operation.is_request() {
                    self.metrics.commands[operation.route as usize][operation.status as usize].add(1);
                }
            }
        }
        self.output = output;
        self.operations = operations;
        if self.observed() {
            self.completed();
        }
    }

    /// Serves a group that only reads: all of it under locks that are taken once.
    #[inline]
    fn look_up(&mut self, group: &mut [Operation], current: &mut usize, output: &mut Vec<u8>) {
        let Engine { node, input, scratch, turns, metrics, .. } = self;
        let mut keys: [(KeyHash, &[u8]); GROUP] = [(KeyHash(0), &[]); GROUP];
        for (key, operation) in keys.iter_mut().zip(&*group) {
            *key = (operation.hash, operation.key.of(input, scratch));
        }
        node.store.get_many(&keys[..group.len()], self.now.wall_ms, |number, found| {
            let operation = &mut group[number];
            let turn = &mut turns[usize::from(operation.connection)];
            if *current != usize::from(operation.connection) {
                *current = usize::from(operation.connection);
                turn.output = output.len()..output.len();
            }
            let (answers, framing) = (&node.answers, operation.framing);
            operation.status = if found.is_some() { Status::Ok } else { ErrorCode::MissingRecord.status() };
            match (found, operation.action) {
                (Some(record), Action::Get) => tell_value(answers, &record, framing, output),
                (Some(_), _) => answers.success(framing, output),
                (None, _) => answers.error(ErrorCode::MissingRecord, framing, output),
            }
            turn.output.end = output.len();
            metrics.commands[operation.route as usize][operation.status as usize].add(1);
        });
    }

    /// Whether this turn had pings, which may name other nodes.
    #[must_use]
    pub fn was_pinged(&self) -> bool {
        !self.pings.is_empty()
    }

    /// Counts the turn's requests as having taken this long each, from read to answered; not those that wait.
    pub fn record_duration(&self, duration_ns: u64) {
        let mut counts = [0u64; Route::COUNT];
        let is_answered = |operation: &&Operation| operation.waits_for == 0 && operation.is_request();
        for operation in self.operations.iter().filter(is_answered) {
            counts[operation.route as usize] += 1;
        }
        for (route, count) in Route::ALL.into_iter().zip(counts) {
            if count > 0 {
                self.metrics.record_duration(route, count, duration_ns);
            }
        }
    }

    #[inline]
    fn perform(&mut self, operation: &mut Operation, out: &mut Vec<u8>) -> Status {
        let node = &*self.node;
        let now_ms = self.now.wall_ms;
        let framing = operation.framing;
        let fail = |code: ErrorCode, out: &mut Vec<u8>| {
            node.answers.error(code, framing, out);
            code.status()
        };
        match operation.action {
            Action::Get => {
                let key = self.text(operation.key);
                let found = node.store.get(operation.hash, key, now_ms, |record| {
                    tell_value(&node.answers, &record, framing, out);
                });
                if found.is_some() { Status::Ok } else { fail(ErrorCode::MissingRecord, out) }
            }
            Action::Is => match node.store.exist(operation.hash, self.text(operation.key), now_ms) {
                true => {
                    node.answers.success(framing, out);
                    Status::Ok
                }
                false => fail(ErrorCode::MissingRecord, out),
            },
            Action::Set => {
                let record = NewRecord {
                    key: self.text(operation.key),
                    value: self.text(operation.value),
                    marks: operation.marks,
                    expires_at_ms: if operation.ttl_ms == 0 { 0 } else { now_ms + operation.ttl_ms },
                };
                match node.store.set(operation.hash, record, Stamp::Local(&node.clock), now_ms) {
                    Ok(applied) => self.written(operation, Kind::Set, applied, out),
                    Err(_) => fail(ErrorCode::OutOfMemory, out),
                }
            }
            Action::Rm => {
                let key = self.text(operation.key);
                match node.store.rm(operation.hash, key, Stamp::Local(&node.clock), now_ms) {
                    Ok(Applied::Missing) => fail(ErrorCode::MissingRecord, out),
                    Ok(applied) => self.written(operation, Kind::Rm, applied, out),
                    Err(_) => fail(ErrorCode::OutOfMemory, out),
                }
            }
            Action::Clear => {
                let applied = node.store.clear(Stamp::Local(&node.clock), now_ms);
                self.written(operation, Kind::Clear, applied, out)
            }
            Action::Error(code) => fail(code, out),
            Action::Options => {
                let allow = if operation.route.is_write() { "GET, OPTIONS" } else { "GET, HEAD, OPTIONS" };
                node.answers.options(out, framing.persistence, allow);
                Status::NoContent
            }
            Action::Continue => {
                out.extend_from_slice(CONTINUE);
                Status::Ok
            }
            Action::NotFound => {
                let path = String::from_utf8_lossy(self.text(operation.path));
                let body =
                    format!("{{\"error\":{}}}", json::quoted(&format!("No register handler for [{path}]")));
                let line = Status::NotFound.line();
                node.answers.with_body(out, line, framing, crate::http::answer::JSON, "", body.as_bytes());
                Status::NotFound
            }
            Action::Info => node.info(operation.route, framing, self.now, self.state, out),
            Action::Ping(index) => node.ping(self.pings[index as usize], framing, out),
            Action::Custom(index) => self.custom(index as usize, operation, out),
            Action::List(index) => {
                let plan = self.listings[index as usize].take();
                let Some(plan) = plan else { return fail(ErrorCode::BadRequest, out) };
                let mut listing =
                    Box::new(Listing::begin(plan, &node.answers, framing, self.mesh.life(), out));
                let turn = &mut self.turns[usize::from(operation.connection)];
                if !listing.step(&node.store, &node.answers, now_ms, out) {
                    turn.listing = Some(listing);
                }
                Status::Ok
            }
        }
    }

    fn custom(&self, index: usize, operation: &mut Operation, out: &mut Vec<u8>) -> Status {
        use super::extension::CustomRequest;
        let node = &*self.node;
        let (path, handler) = &self.extensions.routes[index];
        let request = CustomRequest { path, query: self.text(operation.query) };
        // A handler that panics must not take the worker, and with it all its connections, along.
        let call = std::panic::AssertUnwindSafe(|| handler(&request));
        let Ok(reply) = std::panic::catch_unwind(call) else {
            node.answers.error(ErrorCode::HandlerFailed, operation.framing, out);
            return Status::Internal;
        };
        let known = Status::ALL.into_iter().find(|status| status.label().parse() == Ok(reply.status));
        let status = known.unwrap_or(Status::Other);
        operation.other_status = reply.status;
        let other = format!("{} {}", reply.status, reason(reply.status));
        let line = if status == Status::Other { &other } else { status.line() };
        match reply.status {
            204 | 304 => node.answers.without_body(out, line, operation.framing.persistence),
            _ => node.answers.with_body(out, line, operation.framing, reply.content_type, "", &reply.body),
        }
        status
    }

    #[inline]
    fn text(&self, span: Span) -> &[u8] {
        span.of(&self.input, &self.scratch)
    }

    /// The turn's answers to one connection.
    #[must_use]
    pub fn answers_of(&self, index: usize) -> &[u8] {
        &self.output[self.turns[index].output.clone()]
    }

    /// What one connection must bring along to its next turn.
    #[must_use]
    pub fn rest_of(&self, index: usize) -> &[u8] {
        &self.input[self.turns[index].rest.clone()]
    }

    /// What one connection's part of the turn came to.
    pub fn turn(&mut self, index: usize) -> &mut Turn {
        &mut self.turns[index]
    }

    /// Goes on with a listing: appends its next piece to `out`. True at its end.
    ///
    /// # Errors
    /// The node has started over since it began: what is left would be taken for the whole. The connection has to be closed.
    pub fn continue_listing(
        &self,
        listing: &mut Listing,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<bool, StartedOver> {
        if listing.life != self.mesh.life() {
            return Err(StartedOver);
        }
        Ok(listing.step(&self.node.store, &self.node.answers, now.wall_ms, out))
    }
}
