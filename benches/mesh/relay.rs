//! A wire between two nodes that counts bytes and can be cut: what one node is told as the other's address.

use super::support::drive::other;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Shared {
    /// Bytes to the node behind, and from it.
    to: AtomicU64,
    from: AtomicU64,
    cut: AtomicBool,
    over: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

/// See the module. It ends with its value.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    pub(crate) fn new(target: SocketAddr) -> io::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new().spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.over.load(Ordering::Acquire) {
                    return;
                }
                // Whoever comes while it is cut is turned away at once.
                if !accepting.cut.load(Ordering::Acquire) {
                    let _ = accepting.connect(client, target);
                }
            }
        })?;
        Ok(Relay { address, shared })
    }

    /// Bytes that have gone to the node behind it, and that have come from it.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.shared.to.load(Ordering::Acquire), self.shared.from.load(Ordering::Acquire))
    }

    pub(crate) fn cut(&self) -> io::Result<()> {
        self.shared.cut.store(true, Ordering::Release);
        let streams = &mut *self.shared.streams.lock().map_err(other)?;
        for stream in streams.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    pub(crate) fn heal(&self) {
        self.shared.cut.store(false, Ordering::Release);
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream, target: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let (reverse_from, reverse_to) = (server.try_clone()?, client.try_clone()?);
        self.streams.lock().map_err(other)?.extend([client.try_clone()?, server.try_clone()?]);
        for (from, to, forward) in [(client, server, true), (reverse_from, reverse_to, false)] {
            let shared = Arc::clone(self);
            std::thread::Builder::new().spawn(move || shared.carry(from, to, forward))?;
        }
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream, forward: bool) {
        let count = if forward { &self.to } else { &self.from };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(bytes) = from.read(&mut buffer) {
            if bytes == 0 || to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
            count.fetch_add(bytes as u64, Ordering::AcqRel);
        }
        // The other direction ends with this one.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let _ = self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}
