//! One connection: what is in flight on it and what of its answers has been read.

use crate::response::Parser;
use crate::workload::Op;
use mio::net::TcpStream;
use std::collections::VecDeque;

/// A request that was written and not answered; times in nanoseconds from the origin of the run.
pub(crate) struct Flight {
    pub(crate) op: Op,
    pub(crate) key: u64,
    /// When it ought to have been sent; in a closed loop, when it was.
    pub(crate) intended_ns: u64,
    pub(crate) sent_ns: u64,
    /// Not part of the warm-up.
    pub(crate) counted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Requests can be sent.
    Open,
    /// The handshake is under way.
    Connecting { since_ns: u64 },
    /// Could not be opened; tried again later.
    Down { retry_ns: u64 },
    /// Lost when nothing was to be sent any more.
    Over,
}

pub(crate) struct Connection {
    pub(crate) stream: Option<TcpStream>,
    pub(crate) state: State,
    pub(crate) target: usize,
    pub(crate) parser: Parser,
    pub(crate) output: Vec<u8>,
    pub(crate) written: usize,
    /// The beginning of an answer whose end has not come.
    pub(crate) input: Vec<u8>,
    pub(crate) flights: VecDeque<Flight>,
    /// Attempts in a row that failed.
    pub(crate) attempts: u32,
    /// Open loop: since when it has had room.
    pub(crate) free_since_ns: u64,
    /// Open loop: it waits in the queue of those that have room.
    pub(crate) queued: bool,
}

impl Connection {
    pub(crate) fn new(target: usize, stream: TcpStream, pipeline: usize) -> Self {
        Self {
            stream: Some(stream),
            state: State::Open,
            target,
            parser: Parser::default(),
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            flights: VecDeque::with_capacity(pipeline),
            attempts: 0,
            free_since_ns: 0,
            queued: false,
        }
    }

    /// Forgets the stream and what was half written or half read on it.
    pub(crate) fn drop_stream(&mut self) {
        self.stream = None;
        self.parser = Parser::default();
        self.output.clear();
        self.written = 0;
        self.input.clear();
    }
}
