//! TCP listeners: one a worker, all on one address (SO_REUSEPORT), which no other process gets into.
//!
//! With SO_REUSEPORT alone a second process of the same user could listen on the port as well and would take half of
//! the connections. So the first socket does without: any number can be bound to a port, but only one can begin to
//! listen, and nobody can be bound beside one that listens. Once it does, it shares the port with the sockets of its
//! own process, which alone ask for that.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 4096;
/// Two that begin to listen in the same microsecond may both be refused.
const ATTEMPTS: usize = 10;

/// So many listeners, all on the same address, and that address with its port resolved. `prepare` sets what accepted
/// sockets shall inherit.
pub(crate) fn tcp(
    wanted: SocketAddr,
    count: usize,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<(SocketAddr, Vec<mio::net::TcpListener>)> {
    let mut attempt = 1;
    let first = loop {
        match Bound::new(wanted, &prepare)?.listen() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS => attempt += 1,
            first => break first?,
        }
    };
    first.share(count, &prepare)
}

/// Has an address, which others may have as well.
struct Bound(Socket);

/// Has an address for itself.
struct Listening(Socket);

impl Bound {
    fn new(wanted: SocketAddr, prepare: impl Fn(&Socket) -> io::Result<()>) -> io::Result<Bound> {
        let socket = open(wanted, prepare)?;
        // Connections of a process that just ended must not keep its successor from the port. A port that the system
        // chooses has none; without this it is nobody else's from the beginning.
        socket.set_reuse_address(wanted.port() != 0)?;
        socket.bind(&wanted.into())?;
        Ok(Bound(socket))
    }

    fn listen(self) -> io::Result<Listening> {
        self.0.listen(BACKLOG)?;
        Ok(Listening(self.0))
    }
}

impl Listening {
    fn share(
        self,
        count: usize,
        prepare: impl Fn(&Socket) -> io::Result<()>,
    ) -> io::Result<(SocketAddr, Vec<mio::net::TcpListener>)> {
        let Listening(first) = self;
        let address = first.local_addr()?;
        first.set_reuse_address(true)?;
        first.set_reuse_port(true)?;
        let address = address.as_socket().ok_or_else(|| io::Error::other("a listener without an address"))?;
        let another = |_| -> io::Result<Socket> {
            let socket = open(address, &prepare)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        let others = (1..count).map(another).collect::<io::Result<Vec<_>>>()?;
        let listener = |socket: Socket| mio::net::TcpListener::from_std(socket.into());
        Ok((address, std::iter::once(first).chain(others).map(listener).collect()))
    }
}

fn open(address: SocketAddr, prepare: impl Fn(&Socket) -> io::Result<()>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn plain(_: &Socket) -> io::Result<()> {
        Ok(())
    }

    /// On a loopback address where nobody else has ports, not even another run of these tests.
    fn own_address(number: u32) -> SocketAddr {
        let pid = std::process::id();
        let text =
            format!("127.{}.{}.{}:7070", 64 + number * 64 + (pid >> 16 & 63), pid >> 8 & 255, pid & 255);
        text.parse().expect("an address")
    }

    /// How far one of two that want the same address has come.
    enum Stage {
        Begins,
        Bound(Bound),
        Listening(Listening),
        Serves(Vec<mio::net::TcpListener>),
        Refused(io::ErrorKind),
    }

    impl Stage {
        fn next(self, wanted: SocketAddr) -> Stage {
            let next = match self {
                Stage::Begins => Bound::new(wanted, plain).map(Stage::Bound),
                Stage::Bound(bound) => bound.listen().map(Stage::Listening),
                Stage::Listening(first) => first.share(3, plain).map(|(_, all)| Stage::Serves(all)),
                end => Ok(end),
            };
            next.unwrap_or_else(|error| Stage::Refused(error.kind()))
        }
    }

    /// Goal: of two that start at once one gets the port, and the other hears that it is in use. Method: both take
    /// their three steps, in every order.
    #[test]
    fn of_two_that_start_at_once_one_gets_the_port() {
        let wanted = own_address(0);
        for order in (0u32..64).filter(|order| order.count_ones() == 3) {
            let mut both = [Stage::Begins, Stage::Begins];
            for step in 0..6 {
                let who = (order >> step & 1) as usize;
                both[who] = std::mem::replace(&mut both[who], Stage::Begins).next(wanted);
            }
            let serve = both.iter().filter(|stage| matches!(stage, Stage::Serves(all) if all.len() == 3));
            let is_refused = |stage: &&Stage| matches!(stage, Stage::Refused(io::ErrorKind::AddrInUse));
            let outcome = (serve.count(), both.iter().filter(is_refused).count());
            assert_eq!(outcome, (1, 1), "serve and are refused, order {order:06b}");
        }
    }

    /// Goal: every worker gets its part. Method: many connections to four listeners; a port that is asked for, one
    /// that the system chooses, and IPv6 where this machine has it.
    #[test]
    fn connections_are_spread_over_the_listeners() {
        let chosen = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().expect("an address"));
        for wanted in std::iter::once(own_address(1)).chain(chosen) {
            if wanted.is_ipv6() && std::net::TcpListener::bind(wanted).is_err() {
                continue;
            }
            let (address, listeners) = tcp(wanted, 4, plain).expect("opened");
            assert!(address.port() != 0 && listeners.len() == 4);
            let refused = tcp(address, 1, plain).err().map(|error| error.kind());
            assert_eq!(refused, Some(io::ErrorKind::AddrInUse));
            let clients: Vec<_> = (0..400).map(|_| TcpStream::connect(address).expect("connects")).collect();
            let taken = listeners.iter().map(|one| std::iter::from_fn(|| one.accept().ok()).count());
            let taken: Vec<usize> = taken.collect();
            assert_eq!(taken.iter().sum::<usize>(), clients.len());
            assert!(taken.iter().all(|count| *count >= 40), "{taken:?}");
        }
    }
}
