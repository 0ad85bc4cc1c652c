//! Nodes as members of a mesh, Redis as a primary with replicas, and a client that asks one thing at a time.

use super::support::drive::{Address, Duplex};
use super::support::drive::{Operation, Plan, Protocol, connect, cpu_ns_of, other};
use super::support::fleet::{Peer, SERVER_CORE, Yard, free_address, installed};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);

/// How a member is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) join: Option<SocketAddr>,
    /// Of the servers' core if `None`.
    pub(crate) cores: Option<String>,
    /// As many as cores if `None`.
    pub(crate) workers: Option<usize>,
    /// Stands for another machine although it shares the client's core: runs only while the client has nothing to do
    /// (SCHED_IDLE; the lowest priority alone may finish its slice of some milliseconds first), and joins no pages to
    /// huge ones, for which the kernel keeps a core for milliseconds whatever the priority.
    pub(crate) yields: bool,
    /// The peer port, and the address that others are told instead of it.
    pub(crate) relayed: Option<(u16, SocketAddr)>,
}

/// Starts a member; it may still have to copy the data.
pub(crate) fn start(yard: &Yard, spec: &Spec) -> io::Result<Peer> {
    let address = free_address()?;
    let mut command = Command::new(if spec.yields { "chrt".as_ref() } else { yard.node.as_os_str() });
    if spec.yields {
        command.args(["--idle", "0"]).arg(&yard.node);
    }
    command.args(["serve", "--log-level", "warn", "--name", spec.name]);
    command.args(["--port", &address.port().to_string()]);
    if let Some(workers) = spec.workers {
        command.args(["--workers", &workers.to_string()]);
    }
    if let Some(join) = spec.join {
        command.args(["--join", &format!("http://{join}")]);
    }
    match spec.relayed {
        Some((port, advertised)) => {
            command.args(["--peer-port", &port.to_string(), "--advertise", &advertised.to_string()])
        }
        None => command.args(["--peer-port", "0"]),
    };
    let cores = spec.cores.clone().unwrap_or_else(|| SERVER_CORE.to_string());
    if !spec.yields {
        return yard.start_on(&cores, spec.name, Protocol::Http, address, command);
    }
    // Inherited by what is started meanwhile.
    rustix::thread::disable_transparent_huge_pages(true)?;
    let started = yard.start_on(&cores, spec.name, Protocol::Http, address, command);
    rustix::thread::disable_transparent_huge_pages(false)?;
    started
}

/// A mesh of as many nodes of one worker, all on the servers' core, that see each other.
pub(crate) fn mesh(yard: &Yard, size: usize) -> io::Result<Vec<Peer>> {
    let mut nodes: Vec<Peer> = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"].into_iter().take(size) {
        let join = nodes.first().map(|first| first.address);
        nodes.push(start(yard, &Spec { name, join, workers: Some(1), ..Spec::default() })?);
    }
    await_mesh(&nodes)?;
    Ok(nodes)
}

/// Waits until each of them is ready and sees all of them, alive.
pub(crate) fn await_mesh(nodes: &[Peer]) -> io::Result<()> {
    for node in nodes {
        until(&format!("{} sees the mesh", node.name), || {
            let status = status(node)?;
            let mesh = &status["mesh"];
            let peers = mesh["peers"].as_array().cloned().unwrap_or_default();
            let alive = peers.iter().filter(|peer| peer["state"] == "alive").count();
            Ok(mesh["phase"] == "ready" && alive + 1 == nodes.len() && peers.len() == alive)
        })?;
    }
    Ok(())
}

pub(crate) fn status(node: &Peer) -> io::Result<serde_json::Value> {
    let page = node.ask("/status")?;
    let body = page.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(other)
}

/// Whether it serves: it holds what the mesh holds.
pub(crate) fn is_ready(node: &Peer) -> io::Result<bool> {
    Ok(status(node)?["mesh"]["phase"] == "ready")
}

/// Asks every few milliseconds until it is so.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> io::Result<bool>) -> io::Result<Duration> {
    let begun = Instant::now();
    while !holds()? {
        if begun.elapsed() > SOON {
            return Err(other(format!("not within {SOON:?}: {what}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(begun.elapsed())
}

/// SETs to a member of a mesh, answered as soon as it has them itself.
pub(crate) fn local_sets(node: &Peer, keys: u64, depth: usize) -> Plan {
    let mut plan = node.plan(Operation::Set, keys, depth);
    (plan.query, plan.varies) = ("&w=local", true);
    plan
}

/// Sets the keys from 0 up to `keys` through one of the nodes and waits until all have them.
pub(crate) fn load(nodes: &[Peer], keys: u64) -> io::Result<()> {
    let mut plan = local_sets(&nodes[0], keys, 64);
    (plan.each, plan.connections) = (Some(0..keys), 8);
    // Alone it names no writes in its answers, which is all the same to the count.
    super::support::drive::run(&plan)?;
    await_held(&nodes[0])?;
    nodes.iter().for_each(Peer::settle);
    Ok(())
}

/// Waits until every other node has what this one took so far: a write at `w=all` comes behind it in the
/// stream of the only worker, `WAIT` says the same for Redis.
pub(crate) fn await_held(writer: &Peer) -> io::Result<()> {
    if writer.protocol == Protocol::Resp {
        let mut stream = connect(&Address::Tcp(writer.address))?;
        stream.write_all(
            b"*3\r\n$3\r\nSET\r\n$4\r\nheld\r\n$1\r\n1\r\n*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n",
        )?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer)?;
        return if &answer == b"+OK\r\n:2\r\n" { Ok(()) } else { Err(other("the replicas have gone")) };
    }
    let mut client = Client::new(writer.address)?;
    until("all have everything", || Ok(client.ask("/set?k=held&v=1&w=all")?.0 == 200)).map(drop)
}

/// CPU nanoseconds a second that these take when nothing happens.
pub(crate) fn idle_cpu_ns(nodes: &[&Peer], window: Duration) -> f64 {
    let sum = || nodes.iter().map(|node| cpu_ns_of(node.pid())).sum::<u64>();
    let (before, begun) = (sum(), Instant::now());
    std::thread::sleep(window);
    (sum() - before) as f64 / begun.elapsed().as_secs_f64()
}

/// A Redis primary and two replicas in step with it, all on the servers' core, nothing on disk. `None` if it
/// is not installed.
pub(crate) fn redis(yard: &Yard) -> io::Result<Option<Vec<Peer>>> {
    let Some(program) = installed("redis-server") else {
        eprintln!("SKIPPED: redis-server is not installed; its rows will be missing");
        return Ok(None);
    };
    let mut nodes: Vec<Peer> = Vec::new();
    for name in ["redis", "replica 1", "replica 2"] {
        let address = free_address()?;
        let mut command = Command::new(&program);
        command.current_dir(&yard.directory);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes"]);
        command.args(["--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb"]);
        // On one core a replica may lag; to be cut off for it would be no comparison.
        command.args(["--client-output-buffer-limit", "replica 0 0 0"]);
        if let Some(primary) = nodes.first() {
            command.args(["--replicaof", &format!("127.0.0.1 {}", primary.address.port())]);
        }
        let cores = SERVER_CORE.to_string();
        nodes.push(yard.start_on(&cores, name, Protocol::Resp, address, command)?);
    }
    until("the replicas are in step", || {
        let mut stream = connect(&Address::Tcp(nodes[0].address))?;
        stream.write_all(b"INFO replication\r\nQUIT\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page.matches("state=online").count() == 2)
    })?;
    Ok(Some(nodes))
}

/// One connection, one request at a time.
pub(crate) struct Client {
    stream: Box<dyn Duplex>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> io::Result<Client> {
        Ok(Client { stream: connect(&Address::Tcp(address))?, buffer: vec![0; 16 * 1024] })
    }

    /// The status and the body, which must be short.
    pub(crate) fn ask(&mut self, path: &str) -> io::Result<(u16, &[u8])> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        let mut got = 0;
        loop {
            match self.stream.read(&mut self.buffer[got..])? {
                0 => return Err(other("the server closed the connection")),
                bytes => got += bytes,
            }
            let Some(head) = memchr::memmem::find(&self.buffer[..got], b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.buffer[..head]).map_err(other)?;
            let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
            if got >= head + 4 + length {
                return Ok((status, &self.buffer[head + 4..got]));
            }
        }
    }
}
