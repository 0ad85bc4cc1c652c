//! The balancer's listeners: one socket a worker on one address.

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 4096;

/// One listener for each worker, and the address with its port resolved.
pub(crate) fn tcp(
    wanted: SocketAddr,
    workers: usize,
) -> io::Result<(SocketAddr, Vec<mio::net::TcpListener>)> {
    let mut address = wanted;
    // With SO_REUSEPORT a second balancer of the same user could bind the port as well and take half of the
    // connections; a socket without it finds out that the port is taken.
    let claim = open(address, false)?;
    address = claim.local_addr()?.as_socket().unwrap_or(address);
    drop(claim);
    let open_one = |_| -> io::Result<_> {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        Ok(mio::net::TcpListener::from_std(socket.into()))
    };
    Ok((address, (0..workers).map(open_one).collect::<io::Result<Vec<_>>>()?))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit both.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A peer that is gone without a word is found out within about two minutes.
pub(in crate::balancer) fn keepalive() -> TcpKeepalive {
    let minute = Duration::from_secs(60);
    TcpKeepalive::new().with_time(minute).with_interval(Duration::from_secs(20)).with_retries(3)
}
