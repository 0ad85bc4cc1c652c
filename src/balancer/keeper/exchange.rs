//! One question on a connection of its own, and its answer, without waiting: to the engine, or to a backend
//! whose health is in question.

use crate::balancer::core::response::{Head, ResponseReader};
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) => stream,
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Stream::Tcp(stream) => stream.take_error(),
            Stream::Unix(stream) => stream.take_error(),
        }
    }

    fn is_connected(&self) -> bool {
        match self {
            // A connection to oneself, which loopback can come to, reaches nobody.
            Stream::Tcp(stream) => {
                stream.peer_addr().is_ok_and(|peer| stream.local_addr().is_ok_and(|own| own != peer))
            }
            Stream::Unix(stream) => stream.peer_addr().is_ok(),
        }
    }
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Check { slot: u64 },
    Version,
    List { asked_ms: u64 },
    Events,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) stream: Stream,
    pub(super) purpose: Purpose,
    /// `None`: it may last for ever.
    pub(super) deadline_ms: Option<u64>,
    connected: bool,
    /// To connect is all: nothing is asked.
    connect_only: bool,
    question: Vec<u8>,
    sent: usize,
    pub(super) reader: ResponseReader,
    pub(super) body: Vec<u8>,
}

/// How far it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    /// The answer is complete; a connection without a question has no head.
    Done(Head),
}

impl Exchange {
    pub(super) fn tcp(
        address: SocketAddr,
        purpose: Purpose,
        question: Vec<u8>,
        most: u64,
    ) -> io::Result<Exchange> {
        let stream = TcpStream::connect(address)?;
        let _ = stream.set_nodelay(true);
        // A stream of events says nothing for hours; if its other end vanished it would say as little.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&super::super::relay::listen::keepalive());
        Ok(Exchange::new(Stream::Tcp(stream), purpose, question, most))
    }

    pub(super) fn unix(path: &Path, purpose: Purpose, question: Vec<u8>, most: u64) -> io::Result<Exchange> {
        Ok(Exchange::new(Stream::Unix(UnixStream::connect(path)?), purpose, question, most))
    }

    fn new(stream: Stream, purpose: Purpose, question: Vec<u8>, most: u64) -> Exchange {
        Exchange {
            stream,
            purpose,
            deadline_ms: None,
            connected: false,
            connect_only: question.is_empty(),
            question,
            sent: 0,
            reader: ResponseReader::new(most),
            body: Vec::new(),
        }
    }

    /// Goes on after an event.
    ///
    /// # Errors
    /// A sentence; the exchange has ended.
    pub(super) fn go_on(&mut self, scratch: &mut [u8]) -> Result<Progress, String> {
        if !self.connected {
            if let Some(error) = self.stream.take_error().map_err(|e| e.to_string())? {
                return Err(plain(&error));
            }
            if !self.stream.is_connected() {
                return Ok(Progress::Waiting);
            }
            self.connected = true;
            if self.connect_only {
                return Ok(Progress::Done(Head::default()));
            }
        }
        while self.sent < self.question.len() {
            match self.stream.write(&self.question[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(&error)),
            }
        }
        // Edges come once: read until there is nothing.
        loop {
            match self.stream.read(scratch) {
                Ok(0) => self.reader.end().map_err(|fault| fault.to_string())?,
                Ok(length) => {
                    self.reader
                        .feed(&scratch[..length], &mut self.body)
                        .map_err(|fault| fault.to_string())?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(plain(&error)),
            }
            if self.reader.is_done() {
                return Ok(Progress::Done(self.reader.head().cloned().unwrap_or_default()));
            }
            if self.purpose == Purpose::Events && !self.body.is_empty() {
                // The stream has no end: what there is, is dealt with before more is read.
                return Ok(Progress::Waiting);
            }
        }
    }
}

/// An error without its number.
pub(super) fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no way there".to_owned(),
        _ => error.to_string(),
    }
}
