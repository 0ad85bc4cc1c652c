//! One client connection as its worker sees it. An idle one holds no buffer: what is needed only while a
//! request is incomplete or an answer waits is allocated then and given back.

use crate::http::session::Session;
use crate::node::Connection as Asked;
use crate::node::acks::Held;
use crate::node::engine::Unended;
use crate::node::listing::Listing;
use mio::event::Source;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

/// The transport.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

impl Stream {
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    pub(super) fn shutdown_write(&self) {
        // If it fails the connection is gone already.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    pub(super) fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) => stream,
        }
    }
}

impl Asked for Stream {
    fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

/// What waits for a client to read.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) bytes: Vec<u8>,
    /// How many of the bytes have left.
    pub(super) sent: usize,
    /// The bytes may not leave before other nodes hold what they answer.
    pub(super) held: Option<Box<Held>>,
    /// What comes behind the bytes.
    pub(super) listing: Option<Box<Listing>>,
    /// Requests whose end the observers have not been told of.
    pub(super) unended: Vec<Unended>,
}

impl Backlog {
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }
}

/// What a connection is at. The deadline means something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between requests; idle too long: closed without a word.
    Idle,
    /// Some of a request has come; too slow: 408 (not for a body: its request is answered) and closed.
    Arriving,
    /// Answers wait for the client to read; no progress: dropped.
    Sending,
    /// Answers wait for other nodes; those that do not come in time are changed.
    Holding,
    /// We said our last; what still comes is dropped until the client closes as well.
    Lingering,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) session: Session,
    /// The bytes of an incomplete request.
    #[allow(
        clippy::box_collection,
        reason = "a pointer is a third of a vector, and most connections are idle"
    )]
    pub(super) carry: Option<Box<Vec<u8>>>,
    pub(super) backlog: Option<Box<Backlog>>,
    /// In ticks of the worker.
    pub(super) deadline: u32,
    pub(super) phase: Phase,
    /// Is in the queue of those to be read.
    pub(super) queued: bool,
    /// The kernel may hold more than was read: edges come only once.
    pub(super) unread: bool,
    /// The client will send no more.
    pub(super) ended: bool,
    /// Close when the backlog is gone.
    pub(super) close: bool,
    /// Close so that the last answer is not lost to a reset.
    pub(super) linger: bool,
}

const _: () = assert!(size_of::<Connection>() <= 96, "10,000 idle connections are to cost under 1 MB");

impl Connection {
    pub(super) fn new(stream: Stream, deadline: u32) -> Connection {
        Connection {
            stream,
            session: Session::new(),
            carry: None,
            backlog: None,
            deadline,
            phase: Phase::Idle,
            queued: false,
            unread: false,
            ended: false,
            close: false,
            linger: false,
        }
    }
}
