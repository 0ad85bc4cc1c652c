//! Opening listeners: TCP sockets, one a worker, and a UNIX socket that all workers share.

use super::StartError;
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

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

/// The UNIX socket at `path`, once for each worker. A socket that nobody listens on any more is replaced.
pub(super) fn unix(path: &Path, workers: usize) -> Result<Vec<mio::net::UnixListener>, StartError> {
    let fail = |cause| StartError::Listen { address: format!("unix:{}", path.display()), cause };
    let bound = match std::os::unix::net::UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            use std::os::unix::fs::FileTypeExt;
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
            if !is_socket || UnixStream::connect(path).is_ok() {
                return Err(fail(error));
            }
            std::fs::remove_file(path).and_then(|()| std::os::unix::net::UnixListener::bind(path))
        }
        bound => bound,
    };
    let open_all = |listener: std::os::unix::net::UnixListener| {
        listener.set_nonblocking(true)?;
        (0..workers).map(|_| listener.try_clone().map(mio::net::UnixListener::from_std)).collect()
    };
    bound.and_then(open_all).map_err(fail)
}
