//! One client, its backend, and what flows between them.
//!
//! A direction reads and writes at once through a buffer that its worker has only one of. Only what the
//! other side does not take stays with the direction, and then nothing more is read: an idle connection holds
//! no buffer, a slow one at most one. A direction that moves bulk goes through a pipe inside the kernel.

use super::pipe::{Pipe, Pipes};
use crate::balancer::core::pick::TRIES_MAX;
use crate::balancer::shared::Counters;
use crate::limits::RELAY_BUFFER_BYTES;
use mio::net::TcpStream;
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// What a session is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// An attempt to reach a backend is under way; nothing has been read from the client.
    Connecting,
    /// There is no backend to try; one may come.
    Waiting,
    Relaying,
    /// It was answered 503; what the client still sends is dropped until it closes as well.
    Refused,
    /// It has ended; its place is free after this round.
    Over,
}

/// Which side of a session broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// One way through a session.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Read, and not taken by the other side yet.
    pending: Vec<u8>,
    sent: usize,
    pipe: Option<Pipe>,
    /// The source may have more.
    pub(super) readable: bool,
    /// The source will not send more than it has: read to the end.
    pub(super) closing: bool,
    /// All was read.
    ended: bool,
    /// ... and passed on, the end included.
    pub(super) done: bool,
    /// Waits for the other side to take more.
    pub(super) blocked: bool,
    pub(super) moved: u64,
    /// ... of these through a pipe.
    pub(super) spliced: u64,
    /// Bytes that the counters know of.
    pub(super) counted: u64,
}

/// Why a direction cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Source,
    Sink,
}

/// What pumping came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more can be done before an event.
    Settled,
    /// It would go on, but it is the others' turn.
    More,
}

impl Direction {
    /// Moves what can be moved, for so many rounds.
    #[inline]
    pub(super) fn pump(
        &mut self,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        scratch: &mut [u8],
        pipes: Option<&mut Pipes>,
        rounds: usize,
        last: bool,
    ) -> Result<Pumped, Broken> {
        let mut bulk = false;
        let mut left = rounds;
        let outcome = loop {
            if self.pipe.is_some() {
                break self.pump_pipe(source, sink, left)?;
            }
            if !self.pending.is_empty() && !self.flush(sink)? {
                break Pumped::Settled;
            }
            if !self.readable || self.ended {
                break Pumped::Settled;
            }
            if left == 0 {
                break Pumped::More;
            }
            if bulk && pipes.is_some() {
                break Pumped::More;
            }
            left -= 1;
            match source.read(scratch) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    // A short read has emptied the socket; what comes later makes a new event.
                    bulk = length == scratch.len();
                    self.readable = bulk || self.closing;
                    self.moved += length as u64;
                    self.pass_on(sink, &scratch[..length])?;
                    if self.blocked {
                        break Pumped::Settled;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Source),
            }
        };
        if let Some(pipes) = pipes {
            self.choose_way(bulk, pipes);
        }
        if self.ended && !self.done && self.pending.is_empty() && self.pipe.is_none() {
            self.done = true;
            // With the other direction done already, the sockets close now, which says the same.
            if !last {
                // If the other side is gone its own direction finds out.
                let _ = sink.shutdown(Shutdown::Write);
            }
        }
        Ok(outcome)
    }

    /// Takes a pipe for bulk; gives it back once the source has paused and the pipe is empty.
    fn choose_way(&mut self, bulk: bool, pipes: &mut Pipes) {
        match &self.pipe {
            Some(pipe) if pipe.held() == 0 && (!self.readable || self.ended) => {
                if let Some(pipe) = self.pipe.take() {
                    pipes.give_back(pipe);
                }
            }
            None if bulk && self.readable && self.pending.is_empty() => self.pipe = pipes.take(),
            _ => {}
        }
    }

    fn pump_pipe(&mut self, source: &TcpStream, sink: &TcpStream, rounds: usize) -> Result<Pumped, Broken> {
        let Some(pipe) = &mut self.pipe else { return Ok(Pumped::Settled) };
        for _ in 0..rounds {
            let mut idle = true;
            if self.readable && !self.ended {
                match pipe.fill(source) {
                    Ok(0) => self.ended = true,
                    Ok(length) => {
                        self.moved += length as u64;
                        self.spliced += length as u64;
                        idle = false;
                    }
                    // With bytes in the pipe this may mean that it is full.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readable = pipe.held() > 0;
                    }
                    Err(_) => return Err(Broken::Source),
                }
            }
            if pipe.held() > 0 {
                match pipe.drain(sink) {
                    Ok(_) => idle = false,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.blocked = true;
                        return Ok(Pumped::Settled);
                    }
                    Err(_) => return Err(Broken::Sink),
                }
            }
            self.blocked = false;
            if pipe.held() == 0 && (idle || self.ended || !self.readable) {
                return Ok(Pumped::Settled);
            }
        }
        Ok(Pumped::More)
    }

    fn pass_on(&mut self, sink: &mut TcpStream, bytes: &[u8]) -> Result<(), Broken> {
        let mut sent = 0;
        while sent < bytes.len() {
            match sink.write(&bytes[sent..]) {
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pending.extend_from_slice(&bytes[sent..]);
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Sink),
            }
        }
        Ok(())
    }

    /// Writes what is pending; whether all of it has left.
    fn flush(&mut self, sink: &mut TcpStream) -> Result<bool, Broken> {
        while self.sent < self.pending.len() {
            match sink.write(&self.pending[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Sink),
            }
        }
        self.blocked = false;
        self.sent = 0;
        self.pending = Vec::new();
        Ok(true)
    }

    pub(super) fn take_pipe(&mut self) -> Option<Pipe> {
        self.pipe.take()
    }

    /// Bytes under way.
    pub(super) fn holds(&self) -> bool {
        !self.pending.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// Worth pumping.
    pub(super) fn wants(&self) -> bool {
        !self.done && (self.readable || self.holds() || self.ended)
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: TcpStream,
    pub(super) backend: Option<TcpStream>,
    pub(super) phase: Phase,
    /// Tells this session from one that had its place before.
    pub(super) serial: u64,
    pub(super) begun_ms: u64,
    /// The last time that bytes moved.
    pub(super) progress_ms: u64,
    /// The backend at present, or the last one.
    pub(super) slot: u64,
    pub(super) counters: Option<Arc<Counters>>,
    tried: [u64; TRIES_MAX],
    tries: usize,
    /// Attempts that ended for lack of time.
    pub(super) slow_tries: usize,
    /// From the client to the backend, and back.
    pub(super) up: Direction,
    pub(super) down: Direction,
    /// Its events include that it can be written to.
    pub(super) client_writable_watched: bool,
    pub(super) client_watched: bool,
    /// Is in the queue of those that would go on.
    pub(super) queued: bool,
    /// Long enough alive to have keepalive set.
    pub(super) kept_alive: bool,
    /// The backend's socket does not wait to fill its packets.
    pub(super) undelayed: bool,
    /// A socket could reach itself at this address.
    pub(super) loops_back: bool,
    /// The last bytes went to the client.
    pub(super) answered: bool,
}

impl Session {
    pub(super) fn new(client: TcpStream, serial: u64, now_ms: u64) -> Session {
        Session {
            client,
            backend: None,
            phase: Phase::Connecting,
            serial,
            begun_ms: now_ms,
            progress_ms: now_ms,
            slot: 0,
            counters: None,
            tried: [0; TRIES_MAX],
            tries: 0,
            slow_tries: 0,
            up: Direction::default(),
            down: Direction::default(),
            client_writable_watched: false,
            client_watched: false,
            queued: false,
            kept_alive: false,
            undelayed: false,
            loops_back: false,
            answered: false,
        }
    }

    pub(super) fn tried(&self) -> &[u64] {
        &self.tried[..self.tries]
    }

    pub(super) fn try_next(&mut self, slot: u64, counters: Arc<Counters>) {
        if self.tries < TRIES_MAX {
            self.tried[self.tries] = slot;
            self.tries += 1;
        }
        self.slot = slot;
        self.counters = Some(counters);
    }

    /// Pumps both ways.
    #[inline]
    pub(super) fn relay(
        &mut self,
        scratch: &mut [u8],
        mut pipes: Option<&mut Pipes>,
        rounds: usize,
        now_ms: u64,
    ) -> Result<Pumped, Side> {
        let Some(backend) = &mut self.backend else { return Ok(Pumped::Settled) };
        let mut outcome = Pumped::Settled;
        let (up, down) = (self.up.moved, self.down.moved);
        if self.up.wants() {
            let pumped = self.up.pump(
                &mut self.client,
                backend,
                scratch,
                pipes.as_deref_mut(),
                rounds,
                self.down.done,
            );
            match pumped {
                Ok(Pumped::More) => outcome = Pumped::More,
                Ok(Pumped::Settled) => {}
                Err(Broken::Source) => return Err(Side::Client),
                Err(Broken::Sink) => return Err(self.broken_backend(scratch)),
            }
        }
        if self.down.wants() {
            match self.down.pump(backend, &mut self.client, scratch, pipes, rounds, self.up.done) {
                Ok(Pumped::More) => outcome = Pumped::More,
                Ok(Pumped::Settled) => {}
                Err(Broken::Source) => return Err(Side::Backend),
                Err(Broken::Sink) => return Err(Side::Client),
            }
        }
        if self.up.moved != up || self.down.moved != down {
            self.progress_ms = now_ms;
            self.answered = self.down.moved != down;
        }
        Ok(outcome)
    }

    /// The backend takes no more, but it may have answered before it closed: that much is passed on.
    fn broken_backend(&mut self, scratch: &mut [u8]) -> Side {
        if let Some(backend) = &mut self.backend {
            self.down.readable = true;
            let _ = self.down.pump(backend, &mut self.client, scratch, None, 4, false);
        }
        Side::Backend
    }

    /// The end of one side was a reset, so the other side's will be as well, never a clean end.
    pub(super) fn reset_both(&self) {
        let _ = SockRef::from(&self.client).set_linger(Some(Duration::ZERO));
        if let Some(backend) = &self.backend {
            let _ = SockRef::from(backend).set_linger(Some(Duration::ZERO));
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.up.done && self.down.done
    }

    pub(super) fn is_half_closed(&self) -> bool {
        self.up.done || self.down.done
    }

    /// Adds what has moved since the last time to the counters.
    pub(super) fn count(&mut self) {
        let Some(counters) = &self.counters else { return };
        counters.count_bytes(self.up.moved - self.up.counted, self.down.moved - self.down.counted);
        self.up.counted = self.up.moved;
        self.down.counted = self.down.moved;
    }
}

const _: () = assert!(RELAY_BUFFER_BYTES >= 16 * 1024);
