//! What the balancer's listeners pass on to the connections that they accept.

use socket2::{Socket, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// One listener for each worker, and the address with its port resolved.
pub(crate) fn tcp(
    wanted: SocketAddr,
    workers: usize,
) -> io::Result<(SocketAddr, Vec<mio::net::TcpListener>)> {
    crate::listeners::tcp(wanted, workers, |socket: &Socket| {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())
    })
}

/// A peer that is gone without a word is found out within about two minutes.
pub(in crate::balancer) fn keepalive() -> TcpKeepalive {
    let minute = Duration::from_secs(60);
    TcpKeepalive::new().with_time(minute).with_interval(Duration::from_secs(20)).with_retries(3)
}
