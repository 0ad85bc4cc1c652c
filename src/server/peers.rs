//! A worker's links to other nodes, as sockets. Bytes go in and out of [`crate::mesh::worker::Worker`], which
//! decides everything; this file dials, accepts, reads, writes and closes.

use super::worker::Worker;
use crate::limits::{LINK_OUTPUT_BYTES, TURN_ACCEPTS_MAX};
use crate::mesh::worker::{Effect, LinkId};
use crate::store::Storage;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

/// Tokens from here on are links; client connections never come near.
pub(super) const LINKS: usize = 1 << 48;
/// Bytes read from one link before others have their turn.
const READ_BYTES_PER_TURN: usize = 4 * LINK_OUTPUT_BYTES;
const READ_BYTES: usize = 64 * 1024;
/// The same complaint is logged again after this.
const SAID_AGAIN_NS: u64 = 60_000_000_000;
/// Complaints in that time.
const SAID_MAX: usize = 256;

struct Socket {
    stream: TcpStream,
    connecting: bool,
    /// The kernel may hold more than was read.
    unread: bool,
    /// The kernel takes no more just now.
    blocked: bool,
}

/// The sockets of one worker's links.
pub(super) struct Links {
    listener: Option<TcpListener>,
    sockets: HashMap<LinkId, Socket>,
    /// Whether strangers beyond private networks may come: only where a secret keeps them out.
    has_secret: bool,
    accept_more: bool,
    buffer: Vec<u8>,
    writable: Vec<LinkId>,
    tick_ns: u64,
    said: Said,
}

/// Complaints that were logged lately, by their cause.
#[derive(Debug, Default)]
struct Said(HashMap<String, u64>);

impl Said {
    fn is_news(&mut self, cause: String, now_ns: u64) -> bool {
        let is_recent = |said_ns: &u64| now_ns < said_ns + SAID_AGAIN_NS;
        if self.0.get(&cause).is_some_and(is_recent) {
            return false;
        }
        if self.0.len() >= SAID_MAX {
            self.0.retain(|_, said_ns| is_recent(said_ns));
        }
        // With so many causes at once nobody would read more lines.
        let has_room = self.0.len() < SAID_MAX;
        if has_room {
            self.0.insert(cause, now_ns);
        }
        has_room
    }
}

impl Links {
    pub(super) fn new(listener: Option<TcpListener>, has_secret: bool) -> Links {
        Links {
            listener,
            sockets: HashMap::new(),
            has_secret,
            accept_more: true,
            buffer: Vec::new(),
            writable: Vec::new(),
            tick_ns: 0,
            said: Said::default(),
        }
    }

    pub(super) fn listener(&mut self) -> Option<&mut TcpListener> {
        self.listener.as_mut()
    }

    pub(super) fn accept_soon(&mut self) {
        self.accept_more = true;
    }

    fn insert(&mut self, registry: &Registry, id: LinkId, mut stream: TcpStream, connecting: bool) -> bool {
        let both = Interest::READABLE | Interest::WRITABLE;
        // Small frames must not wait for more.
        let _ = stream.set_nodelay(true);
        if registry.register(&mut stream, Token(LINKS + id as usize), both).is_err() {
            return false;
        }
        self.sockets.insert(id, Socket { stream, connecting, unread: false, blocked: connecting });
        true
    }
}

/// Loopback, link-local and private networks: where an operator may do without a secret.
fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

impl<S: Storage> Worker<S> {
    /// How long the worker may sleep before its mesh needs a tick, in milliseconds.
    pub(super) fn mesh_wait_ms(&self) -> u64 {
        let wait_ns = self.engine.mesh.due_ns().saturating_sub(self.now.mono_ns);
        wait_ns.div_ceil(1_000_000).max(1)
    }

    /// Clients have perhaps named nodes in this turn.
    pub(super) fn follow_hints(&self) {
        if self.engine.was_pinged() && self.node().mesh.has_hints() {
            self.control.look_around();
        }
    }

    /// Something has happened on a link's socket.
    pub(super) fn link_event(&mut self, id: LinkId, event: &mio::event::Event) {
        let Some(socket) = self.links.sockets.get_mut(&id) else { return };
        if event.is_writable() {
            socket.blocked = false;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            socket.unread = true;
        }
        if socket.connecting {
            let failure = match socket.stream.take_error() {
                Ok(None) => match socket.stream.peer_addr() {
                    Ok(_) => None,
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                    Err(error) => Some(error),
                },
                Ok(Some(error)) | Err(error) => Some(error),
            };
            socket.connecting = false;
            match failure {
                None => {
                    let (mesh, context) = self.engine.mesh_at(self.now);
                    mesh.connected(id, context);
                }
                Some(error) => self.dial_failed(id, &error),
            }
        }
    }

    fn dial_failed(&mut self, id: LinkId, error: &io::Error) {
        self.drop_socket(id);
        let refused = error.kind() == io::ErrorKind::ConnectionRefused;
        let (mesh, context) = self.engine.mesh_at(self.now);
        mesh.dial_failed(id, refused, context);
    }

    fn drop_socket(&mut self, id: LinkId) {
        if let Some(mut socket) = self.links.sockets.remove(&id) {
            let _ = self.poll.registry().deregister(&mut socket.stream);
        }
    }

    /// Reads what has come on links. True if there may be more. `is_busy`: something has happened at all.
    pub(super) fn read_links(&mut self, is_busy: bool) -> bool {
        self.engine.mesh.set_busy(is_busy);
        let ready: Vec<LinkId> =
            self.links.sockets.iter().filter(|(_, s)| s.unread && !s.connecting).map(|(id, _)| *id).collect();
        if ready.is_empty() {
            return false;
        }
        let mut buffer = std::mem::take(&mut self.links.buffer);
        buffer.resize(READ_BYTES, 0);
        let mut more = false;
        let (mesh, context) = self.engine.mesh_at(self.now);
        mesh.begin(context);
        for id in ready {
            let mut left = READ_BYTES_PER_TURN;
            while let Some(socket) = self.links.sockets.get_mut(&id) {
                match socket.stream.read(&mut buffer) {
                    Ok(0) => {
                        self.link_ended(id);
                        break;
                    }
                    Ok(bytes) => {
                        let (mesh, context) = self.engine.mesh_at(self.now);
                        mesh.received(id, &buffer[..bytes], context);
                        left = left.saturating_sub(bytes);
                        if bytes < buffer.len() {
                            if let Some(socket) = self.links.sockets.get_mut(&id) {
                                socket.unread = false;
                            }
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.unread = false;
                        break;
                    }
                    Err(_) => {
                        self.link_ended(id);
                        break;
                    }
                }
                if left == 0 {
                    more = true;
                    break;
                }
            }
        }
        self.links.buffer = buffer;
        more
    }

    fn link_ended(&mut self, id: LinkId) {
        self.drop_socket(id);
        let (mesh, context) = self.engine.mesh_at(self.now);
        mesh.closed(id, context);
    }

    /// The mesh's part of a round: time, new links, what is to be sent. True if there is more to do at once.
    pub(super) fn mesh_round(&mut self) -> bool {
        const TICK_NS: u64 = 10_000_000;
        let mut ticked = false;
        if self.now.mono_ns >= self.links.tick_ns + TICK_NS {
            self.links.tick_ns = self.now.mono_ns;
            ticked = true;
            let (mesh, context) = self.engine.mesh_at(self.now);
            mesh.tick(context);
            let log_bytes = mesh.log().bytes() as u64;
            self.engine.metrics().log_bytes.set(log_bytes);
        }
        if self.links.accept_more {
            self.accept_links();
        }
        if self.links.sockets.is_empty() && !ticked {
            return false;
        }
        let (mesh, context) = self.engine.mesh_at(self.now);
        let more = mesh.pump(context);
        self.act();
        self.write_links();
        more
    }

    fn accept_links(&mut self) {
        for _ in 0..TURN_ACCEPTS_MAX {
            let Some(listener) = &self.links.listener else { return };
            match listener.accept() {
                Ok((stream, remote)) => self.welcome_link(stream, remote),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.links.accept_more = false;
                    return;
                }
                // Out of descriptors, or gone before it was accepted: looked at again with the next event.
                Err(_) => {
                    self.links.accept_more = false;
                    return;
                }
            }
        }
    }

    fn welcome_link(&mut self, stream: TcpStream, remote: SocketAddr) {
        if !self.links.has_secret && !is_near(remote.ip()) {
            self.engine.mesh.mesh().turned_away(remote);
            return;
        }
        let (mesh, context) = self.engine.mesh_at(self.now);
        let id = mesh.accepted(remote, context);
        if !self.links.insert(self.poll.registry(), id, stream, false) {
            self.link_ended(id);
        }
    }

    /// Does what the mesh has asked for.
    fn act(&mut self) {
        for effect in self.engine.mesh.take_effects() {
            match effect {
                Effect::Dial { link, address } => match TcpStream::connect(address) {
                    Ok(stream) => {
                        if !self.links.insert(self.poll.registry(), link, stream, true) {
                            self.dial_failed(link, &io::ErrorKind::Other.into());
                        }
                    }
                    Err(error) => self.dial_failed(link, &error),
                },
                Effect::Close { link } => {
                    if let Some(socket) = self.links.sockets.get_mut(&link) {
                        // A reason, if there is one; a fresh piece of output is small, and if it does not
                        // fit the close says enough.
                        let _ = socket.stream.write(self.engine.mesh.output(link));
                    }
                    self.drop_socket(link);
                    self.engine.mesh.forget_last_words(link);
                }
            }
        }
    }

    fn write_links(&mut self) {
        let mut writable = std::mem::take(&mut self.links.writable);
        self.engine.mesh.writable(&mut writable);
        for &id in &writable {
            while let Some(socket) = self.links.sockets.get_mut(&id).filter(|socket| !socket.blocked) {
                let output = self.engine.mesh.output(id);
                if output.is_empty() {
                    // What fits now may be followed by more of the log.
                    break;
                }
                match socket.stream.write(output) {
                    Ok(written) => {
                        let all = written == output.len();
                        self.engine.mesh.wrote(id, written);
                        if !all {
                            continue;
                        }
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.blocked = true;
                        break;
                    }
                    Err(_) => {
                        self.link_ended(id);
                        break;
                    }
                }
            }
        }
        self.links.writable = writable;
    }

    /// Logs what the mesh has to say; one worker does it for all. A complaint that comes again is left out for a while:
    /// a neighbour that is set up wrongly tries several times a second.
    pub(super) fn log_notes(&mut self) {
        let now_ns = self.now.mono_ns;
        for note in self.node().mesh.take_notes() {
            if note.cause.is_some_and(|cause| !self.links.said.is_news(cause, now_ns)) {
                continue;
            }
            match note.is_warning {
                true => tracing::warn!("{}", note.text),
                false => tracing::info!("{}", note.text),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_addresses_are_near() {
        for near in
            ["127.0.0.1", "10.1.2.3", "192.168.0.9", "172.17.0.2", "::1", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert!(is_near(near.parse().expect("an address")), "{near}");
        }
        for far in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "0.0.0.0"] {
            assert!(!is_near(far.parse().expect("an address")), "{far}");
        }
    }
}
