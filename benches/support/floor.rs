//! The yardstick: a server that reads, counts requests by their known length, and writes prebuilt answers.
//! What it spends is spent by the kernel and by mio; a server that also parses and looks up cannot spend
//! less. Its event loop is made like the node's: edge-triggered, registered once, one read a readiness, one
//! write a turn and connection.

use super::drive::other;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

const LISTENER: Token = Token(usize::MAX);
const BUFFER: usize = 64 * 1024;

/// Answers every `request_bytes` bytes with `answer`, for ever.
pub(crate) fn serve(address: SocketAddr, request_bytes: usize, answer: &[u8]) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let answers = answer.repeat(BUFFER / request_bytes + 1);
    let mut connections: slab::Slab<(TcpStream, usize)> = slab::Slab::new();
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; BUFFER];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let entry = connections.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    entry.insert((stream, 0));
                }
                continue;
            }
            let key = event.token().0;
            if !event.is_readable() || !connections.contains(key) {
                continue;
            }
            let (stream, partial) = &mut connections[key];
            match stream.read(&mut buffer) {
                Ok(0) => drop(connections.remove(key)),
                Ok(BUFFER) => return Err(other("the floor serves no batches this large")),
                Ok(bytes) => {
                    let complete = (*partial + bytes) / request_bytes;
                    *partial = (*partial + bytes) % request_bytes;
                    if complete > 0 && stream.write(&answers[..complete * answer.len()]).is_err() {
                        drop(connections.remove(key));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => drop(connections.remove(key)),
            }
        }
    }
}
