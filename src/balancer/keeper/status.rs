//! The status server: a few pages for people and for health checks, on the keeper's own thread. One request
//! a connection; everything is bounded, since its port may be published by mistake.

use crate::limits::{STATUS_CLIENTS_MAX, STATUS_MS};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use slab::Slab;
use std::io::{self, Read, Write};
use std::net::Shutdown;

/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) body: String,
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
    deadline_ms: u64,
}

pub(super) struct StatusServer {
    listener: TcpListener,
    clients: Slab<Client>,
    /// Somebody may wait who could not be accepted.
    stalled: bool,
}

impl StatusServer {
    pub(super) fn new(registry: &Registry, mut listener: TcpListener) -> io::Result<StatusServer> {
        registry.register(&mut listener, super::STATUS, Interest::READABLE)?;
        Ok(StatusServer { listener, clients: Slab::new(), stalled: false })
    }

    pub(super) fn accept(&mut self, registry: &Registry, now_ms: u64) {
        self.stalled = false;
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    self.stalled = error.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            };
            if self.clients.len() >= STATUS_CLIENTS_MAX {
                continue;
            }
            let entry = self.clients.vacant_entry();
            let token = Token(super::STATUS_CLIENTS + entry.key());
            let both = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, token, both).is_ok() {
                let deadline_ms = now_ms + STATUS_MS;
                entry.insert(Client {
                    stream,
                    request: Vec::new(),
                    answer: Vec::new(),
                    sent: 0,
                    deadline_ms,
                });
            }
        }
    }

    /// There was no descriptor for who came: accept again before long.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(super) fn go_on(&mut self, key: usize, answer: &mut dyn FnMut(&str) -> Answer) {
        if self.clients.get_mut(key).is_some_and(|client| client.go_on(answer).is_none()) {
            self.clients.remove(key);
        }
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        self.clients.retain(|_, client| client.deadline_ms > now_ms);
    }
}

impl Client {
    /// `None`: it is over.
    fn go_on(&mut self, answer: &mut dyn FnMut(&str) -> Answer) -> Option<()> {
        let mut chunk = [0; 2048];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                // Behind the request: dropped, so that the close is no reset.
                Ok(_) if !self.answer.is_empty() => {}
                Ok(length) => {
                    self.request.extend_from_slice(&chunk[..length]);
                    if self.request.len() > REQUEST_BYTES_MAX {
                        return None;
                    }
                    if let Some(path) = path_of(&self.request)? {
                        self.answer = written(&answer(&path));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        if self.answer.is_empty() || self.sent == self.answer.len() {
            return Some(());
        }
        while self.sent < self.answer.len() {
            match self.stream.write(&self.answer[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        self.stream.shutdown(Shutdown::Write).ok()
    }
}

/// The path of a complete request; an inner `None`: more must come; an outer one: it is no request.
fn path_of(request: &[u8]) -> Option<Option<String>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    if head.parse(request).ok()?.is_partial() {
        return Some(None);
    }
    let target = if matches!(head.method, Some("GET" | "HEAD")) { head.path? } else { "" };
    Some(Some(target.split('?').next().unwrap_or("").to_owned()))
}

fn written(answer: &Answer) -> Vec<u8> {
    let Answer { status, kind, body } = answer;
    let reason = match status {
        200 => "OK",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let length = body.len();
    let head = "Cache-Control: no-store\r\nConnection: close";
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{head}\r\n\r\n{body}")
        .into_bytes()
}
