//! A client that takes a listing of everything slowly, beside what is measured.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that the slow reader takes every `SLOW_EVERY`: 16 MB/s.
const SLOW_BYTES: usize = 16 * 1024;
const SLOW_EVERY: Duration = Duration::from_millis(1);

/// A client that reads a listing of everything slowly, on a thread of its own: what it does must not delay
/// the one that takes the times of others. It ends when it goes out of scope.
pub(super) struct SlowReader {
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowReader {
    /// Asks with a small receive buffer, so that the server soon waits for the reader.
    pub(super) fn start(address: SocketAddr) -> io::Result<SlowReader> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_recv_buffer_size(64 * 1024)?;
        socket.connect(&address.into())?;
        let mut stream: std::net::TcpStream = socket.into();
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /getAll HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (bytes, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut reader = SlowReader { bytes: Arc::clone(&bytes), over: Arc::clone(&over), thread: None };
        let read = move || {
            let mut buffer = vec![0; SLOW_BYTES];
            while !over.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(read) if read > 0 => bytes.fetch_add(read as u64, Ordering::Relaxed),
                    // The end; or nothing came, which the figure of bytes shows.
                    _ => return,
                };
                std::thread::sleep(SLOW_EVERY);
            }
        };
        reader.thread = Some(std::thread::Builder::new().spawn(read)?);
        Ok(reader)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for SlowReader {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It has nothing to say that its count does not.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
