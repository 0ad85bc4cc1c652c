//! Opening listeners: TCP sockets, one a worker, and a UNIX socket that all workers share.

use super::StartError;
use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long who else opens or removes the same UNIX socket is waited for. It takes less than a millisecond.
const TURN_LIMIT: Duration = Duration::from_secs(1);
const TURN_LOOK: Duration = Duration::from_millis(2);

/// One listener for each worker, all on the same address, and that address with its port resolved.
pub(super) fn tcp(
    wanted: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<mio::net::TcpListener>), StartError> {
    // Accepted sockets inherit it: answers leave in whole writes, waiting for more would only delay them.
    let prepare = |socket: &Socket| socket.set_tcp_nodelay(true);
    crate::listeners::tcp(wanted, workers, prepare)
        .map_err(|cause| StartError::Listen { address: format!("http://{wanted}"), cause })
}

/// A UNIX socket's place among the files, given up when this is dropped.
#[derive(Debug)]
pub(super) struct UnixPath {
    path: PathBuf,
    /// The socket as a file. While it is open no other file gets its number.
    ours: File,
}

/// The UNIX socket at `path`, once for each worker. A socket that nobody listens on any more is replaced.
pub(super) fn unix(
    path: &Path,
    workers: usize,
) -> Result<(UnixPath, Vec<mio::net::UnixListener>), StartError> {
    let open = || {
        let (listener, place) = take(path)?;
        listener.set_nonblocking(true)?;
        let clones = (0..workers).map(|_| listener.try_clone().map(mio::net::UnixListener::from_std));
        Ok((place, clones.collect::<io::Result<_>>()?))
    };
    open().map_err(|cause| StartError::Listen { address: format!("unix:{}", path.display()), cause })
}

fn take(path: &Path) -> io::Result<(UnixListener, UnixPath)> {
    let _turn = Turn::wait(path)?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_abandoned(path) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
    match options.open(path) {
        Ok(ours) => Ok((listener, UnixPath { path: path.to_owned(), ours })),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// A socket that refuses connections: whoever listened has ended. One that does not take them at once is busy.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refuses = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    is_socket && refuses().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether `path` is this file, still.
fn leads_to(path: &Path, file: &File) -> bool {
    let number = |found: Metadata| (found.dev(), found.ino());
    let found = std::fs::symlink_metadata(path).map(number);
    matches!((found, file.metadata().map(number)), (Ok(found), Ok(ours)) if found == ours)
}

impl UnixPath {
    /// Removes the socket, unless another one has taken its place: a node that started while this one drained.
    pub(super) fn remove(&self) {
        // Who cannot have the turn leaves the socket behind; the next node finds that nobody listens on it.
        let Ok(_turn) = Turn::wait(&self.path) else { return };
        if leads_to(&self.path, &self.ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The right to open or remove the socket at a path. Without it, of two nodes that find the same abandoned socket the
/// second would remove what the first has just opened.
struct Turn {
    lock: PathBuf,
    _held: File,
}

impl Turn {
    fn wait(socket: &Path) -> io::Result<Turn> {
        let mut lock = socket.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let until = Instant::now() + TURN_LIMIT;
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&lock)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if leads_to(&lock, &file) => return Ok(Turn { lock, _held: file }),
                // Whoever had it before has removed it.
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(TURN_LOOK);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let reason = format!("another process holds {}", lock.display());
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Still locked: it is closed behind this.
        let _ = std::fs::remove_file(&self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    /// A folder of its own, removed with all that is in it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("meshkv-listen-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).expect("made");
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).expect("there").flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn is_in_use(refused: &StartError) -> bool {
        matches!(refused, StartError::Listen { cause, .. } if cause.kind() == io::ErrorKind::AddrInUse)
    }

    /// Goal: of nodes that find the same abandoned socket at once one gets its place, and can be reached there.
    /// Method: threads that start together, often.
    #[test]
    fn of_many_that_replace_an_abandoned_socket_one_gets_its_place() {
        const RIVALS: usize = 4;
        let folder = Folder::new("rivals");
        let path = folder.0.join("socket");
        for round in 0..100 {
            drop(UnixListener::bind(&path).expect("bound"));
            let together = Barrier::new(RIVALS);
            let start = || {
                together.wait();
                unix(&path, 1)
            };
            let outcomes: Vec<_> = std::thread::scope(|scope| {
                let rivals: Vec<_> = (0..RIVALS).map(|_| scope.spawn(start)).collect();
                rivals.into_iter().map(|rival| rival.join().expect("no panic")).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1, "round {round}");
            assert!(lost.into_iter().filter_map(Result::err).all(|error| is_in_use(&error)));
            UnixStream::connect(&path).expect("the one is reached");
            drop(won);
            assert!(folder.names().is_empty(), "{:?}", folder.names());
        }
    }

    #[test]
    fn nobody_opens_or_removes_a_socket_while_another_one_does() {
        let folder = Folder::new("turn");
        let path = folder.0.join("socket");
        let opened = unix(&path, 1).expect("opened");
        let turn = Turn::wait(&path).expect("free");
        let refused = unix(&path, 1).expect_err("held").to_string();
        assert!(refused.contains("socket.lock"), "{refused}");
        drop(opened);
        assert!(path.exists());
        drop(turn);
        drop(unix(&path, 1).expect("it was abandoned"));
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }

    #[test]
    fn a_socket_that_took_the_place_of_ours_stays() {
        let folder = Folder::new("successor");
        let path = folder.0.join("socket");
        let (place, listeners) = unix(&path, 2).expect("opened");
        assert!(is_in_use(&unix(&path, 1).expect_err("in use")));
        // As while it drains: nobody listens any more, but the node has not ended.
        drop(listeners);
        let successor = unix(&path, 1).expect("abandoned");
        drop(place);
        UnixStream::connect(&path).expect("still there");
        drop(successor);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_abandoned_socket_is_left_alone() {
        let folder = Folder::new("others");
        let path = folder.0.join("file");
        std::fs::write(&path, "text").expect("written");
        assert!(is_in_use(&unix(&path, 1).expect_err("a file")));
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "text");
        let path = folder.0.join("datagrams");
        let other = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
        assert!(is_in_use(&unix(&path, 1).expect_err("a socket of another kind")));
        drop(other);
        assert!(path.exists());
    }
}
