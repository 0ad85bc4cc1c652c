//! Opening listeners: one TCP socket a worker on one address (SO_REUSEPORT), and a UNIX socket that all
//! workers share.

use super::StartError;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 4096;

/// One listener for each worker, all on the same address, and that address with its port resolved.
pub(super) fn tcp(
    wanted: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<mio::net::TcpListener>), StartError> {
    let fail = |cause| StartError::Listen { address: format!("http://{wanted}"), cause };
    let mut address = wanted;
    // With SO_REUSEPORT a second node of the same user could bind the port as well and take half of the
    // connections; a socket without it finds out that the port is taken.
    let claim = open(address, false).map_err(fail)?;
    address = claim.local_addr().map_err(fail)?.as_socket().unwrap_or(address);
    drop(claim);
    let open_one = |_| -> io::Result<_> {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        Ok(mio::net::TcpListener::from_std(socket.into()))
    };
    let listeners = (0..workers).map(open_one).collect::<io::Result<Vec<_>>>().map_err(fail)?;
    Ok((address, listeners))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a node that just ended must not keep its successor from the port.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit it: answers leave in whole writes, waiting for more would only delay them.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
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
