//! A node on the network: listeners, worker threads, start and stop. Moves bytes, time and nothing else;
//! what the bytes mean is decided in [`crate::node`].

mod clock;
mod connection;
mod discovery;
mod listen;
mod peers;
mod process;
mod table;
mod waiting;
mod worker;

use self::clock::MachineClock;
use crate::base::version::Incarnation;
use crate::config::{ConfigError, NodeConfig, PEER_PORT_DEFAULT};
use crate::limits::{FORGET_MS, LOG_BYTES, LOG_WORKER_BYTES_MIN, TOMBSTONE_LIMIT_BYTES, TOMBSTONES_MAX};
use crate::mesh::{MeshConfig, Mutation, Portions};
use crate::node::extension::Extensions;
use crate::node::{Node, Settings};
use crate::peer::frame::MemberInfo;
use crate::peer::link::Keys;
use crate::store::{MemoryStore, Storage, StoreConfig};
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

/// Between two looks at what could be settled, when there was nothing.
const SETTLE_EVERY: Duration = Duration::from_millis(250);

/// Why a node could not start. Nothing is left behind.
#[derive(Debug)]
pub enum StartError {
    /// The configuration cannot work.
    Config(ConfigError),
    /// A listener could not be opened; `address` says which.
    Listen { address: String, cause: std::io::Error },
    /// Memory for the store could not be reserved.
    Store(std::io::Error),
    /// The system gave no event queue, randomness or thread.
    System(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Config(error) => error.fmt(f),
            StartError::Listen { address, cause } => write!(f, "cannot listen on {address}: {cause}"),
            StartError::Store(cause) => write!(f, "cannot reserve memory for the store: {cause}"),
            StartError::System(cause) => write!(f, "the system refused what a node needs: {cause}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Why a node that had started ended without being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeError {
    /// A worker's event queue failed.
    Poll(String),
    /// A worker panicked: a bug of this program. The whole node stops rather than serve with a part missing.
    WorkerPanicked,
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeError::Poll(cause) => write!(f, "waiting for events failed: {cause}"),
            ServeError::WorkerPanicked => f.write_str("a worker panicked; this is a bug in meshkv"),
        }
    }
}

impl std::error::Error for ServeError {}

/// What the threads of a server share beside the node.
#[derive(Debug)]
struct Control {
    stopping: AtomicBool,
    /// Client connections open, over all workers.
    connections: AtomicUsize,
    max_connections: usize,
    idle_connection_ms: u64,
    head_arrival_ms: u64,
    failure: Mutex<Option<ServeError>>,
    extensions: Extensions,
    /// The observers know that it is over.
    is_told: AtomicBool,
    wakers: Mutex<Vec<mio::Waker>>,
    settler: OnceLock<Thread>,
    discovery: OnceLock<Thread>,
}

impl Control {
    /// Discovery has something to ask.
    fn look_around(&self) {
        if let Some(discovery) = self.discovery.get() {
            discovery.unpark();
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for waker in &*self.wakers.lock() {
            // A worker that cannot be woken looks by itself within a tick.
            let _ = waker.wake();
        }
        self.look_around();
        if let Some(settler) = self.settler.get() {
            settler.unpark();
        }
    }

    fn fail(&self, error: ServeError) {
        self.failure.lock().get_or_insert(error);
        self.stop();
        // Nobody may be waiting for the end.
        self.tell_end();
    }

    /// Tells the observers that the node has ended, and why, once.
    fn tell_end(&self) {
        if self.is_told.swap(true, Ordering::AcqRel) {
            return;
        }
        let failure = self.failure.lock().as_ref().map(ToString::to_string);
        for observer in &self.extensions.snapshot().observers {
            observer.server_disconnected(failure.as_deref());
        }
    }
}

/// A running node.
///
/// ```
/// use meshkv::node::extension::{Extensions, Reply};
/// use meshkv::server::Server;
/// use std::io::{Read, Write};
///
/// let extensions = Extensions::new();
/// let config = meshkv::config::NodeConfig { port: 0, workers: 1, ..Default::default() };
/// let server = Server::start(config, extensions.clone())?;
///
/// // Routes can be added while it runs.
/// extensions.route("/hello", |request| {
///     let name = request.param("name").unwrap_or_else(|| "world".into());
///     Reply::text(format!("hello {name}"))
/// })?;
///
/// let mut client = std::net::TcpStream::connect(server.http_address())?;
/// client.write_all(b"GET /hello?name=mesh HTTP/1.0\r\n\r\n")?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer)?;
/// assert!(answer.ends_with("hello mesh"));
///
/// server.stop();
/// server.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server<S: Storage = MemoryStore> {
    node: Arc<Node<S>>,
    control: Arc<Control>,
    address: SocketAddr,
    peer_address: SocketAddr,
    unix: Option<listen::UnixPath>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Server<MemoryStore> {
    /// Starts a node with the store in memory; it listens when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start(config: NodeConfig, extensions: Extensions) -> Result<Server, StartError> {
        config.validate().map_err(StartError::Config)?;
        let store = MemoryStore::new(StoreConfig {
            stripes: config.stripes,
            memory_limit_bytes: config.max_memory_bytes,
            seed: None,
        })
        .map_err(StartError::Store)?;
        Server::start_with(store, config, extensions)
    }
}

impl<S: Storage> Server<S> {
    /// Starts a node over a store of the caller's choice.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start_with(store: S, config: NodeConfig, extensions: Extensions) -> Result<Server<S>, StartError> {
        config.validate().map_err(StartError::Config)?;
        let workers = config.workers.max(1);
        let (address, tcp) = listen::tcp(SocketAddr::new(config.host, config.port), workers)?;
        let unix = config.unix.as_deref().map(|path| listen::unix(path, workers)).transpose()?;
        let (unix_path, mut unix) = unix.unzip();
        let clock = MachineClock::new();
        let settings = Settings {
            name: config.name.clone(),
            port: address.port(),
            max_key_chars: config.max_key_chars,
            max_value_chars: config.max_value_chars,
            acks: config.acks,
            cors_origin: config.cors_origin.clone(),
            workers,
            max_connections: config.max_connections,
        };
        let random = {
            let state = ahash::RandomState::new();
            u128::from(state.hash_one(0u8)) << 64 | u128::from(state.hash_one(1u8))
        };
        let incarnation = Incarnation::new(clock.raw().wall_ms, random);
        let (peer_address, mut peers) = open_peers(&config, workers)?;
        let secret = config.secret.as_ref().map(|secret| secret.expose().to_vec());
        let secrets: Vec<&[u8]> =
            secret.iter().flat_map(|s| s.split(|b| *b == b'\n')).filter(|s| !s.is_empty()).collect();
        let mesh = MeshConfig {
            me: MemberInfo {
                incarnation,
                name: config.name.clone(),
                address: advertised(&config, peer_address.port())?,
                http_port: address.port(),
                workers: workers as u16,
            },
            seeds_expected: !config.join.is_empty(),
            keys: Keys::new(&secrets),
            log_bytes: (LOG_BYTES / workers).max(LOG_WORKER_BYTES_MIN),
            portions: Portions::default(),
            forget_ms: FORGET_MS,
            tombstones_max: TOMBSTONES_MAX.min(config.max_memory_bytes / TOMBSTONE_LIMIT_BYTES),
            compare_ms: compare_ms(),
            random: random as u64,
            mutation: Mutation::None,
        };
        let told = extensions.clone();
        let node = Arc::new(Node::new(store, settings, mesh, clock.raw(), extensions, process::facts));
        let control = Arc::new(Control {
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            max_connections: config.max_connections,
            idle_connection_ms: config.idle_connection_ms,
            head_arrival_ms: config.head_arrival_ms,
            failure: Mutex::new(None),
            extensions: told,
            is_told: AtomicBool::new(false),
            wakers: Mutex::new(Vec::new()),
            settler: OnceLock::new(),
            discovery: OnceLock::new(),
        });
        let mut server =
            Server { node, control, address, peer_address, unix: unix_path, threads: Mutex::new(Vec::new()) };
        for (index, listener) in tcp.into_iter().enumerate() {
            let started = worker::Worker::new(
                index,
                Arc::clone(&server.node),
                Arc::clone(&server.control),
                clock,
                listener,
                unix.as_mut().and_then(Vec::pop),
                peers::Links::new(peers.pop(), !secrets.is_empty()),
            )
            .and_then(|worker| {
                let control = Arc::clone(&server.control);
                std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                    let run = std::panic::AssertUnwindSafe(|| worker.run());
                    match std::panic::catch_unwind(run) {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => control.fail(ServeError::Poll(error.to_string())),
                        Err(_) => control.fail(ServeError::WorkerPanicked),
                    }
                })
            });
            match started {
                Ok(thread) => server.threads.get_mut().push(thread),
                Err(error) => {
                    server.stop();
                    let _ = server.wait();
                    return Err(StartError::System(error));
                }
            }
        }
        server.start_settler();
        let (control, mesh) = (Arc::clone(&server.control), Arc::clone(&server.node.mesh));
        let urls = config.join;
        let discovery = move || discovery::run(&urls, &mesh, &control);
        // Not waited for at the end: looking up a name may take as long as it likes.
        if let Err(error) = std::thread::Builder::new().name("discovery".to_owned()).spawn(discovery) {
            server.stop();
            let _ = server.wait();
            return Err(StartError::System(error));
        }
        for observer in &server.node.extensions.snapshot().observers {
            observer.server_connected(address);
        }
        Ok(server)
    }

    /// Starts the thread that does what no worker has the time for. A node without it is a little slower.
    fn start_settler(&mut self) {
        let (node, control) = (Arc::clone(&self.node), Arc::clone(&self.control));
        let settle = move || {
            // Gives way to the workers; where it may not say so, it does the same work.
            let _ = rustix::process::nice(10);
            while !control.stopping.load(Ordering::Acquire) {
                if !node.store.settle() {
                    std::thread::park_timeout(SETTLE_EVERY);
                }
            }
        };
        if let Ok(thread) = std::thread::Builder::new().name("settler".to_owned()).spawn(settle) {
            let _ = self.control.settler.set(thread.thread().clone());
            self.threads.get_mut().push(thread);
        }
    }

    /// Where clients reach it; with port 0, the port that was chosen.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.address
    }

    /// Where peers reach it.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// The node itself: its store, its state, its settings.
    #[must_use]
    pub fn node(&self) -> &Arc<Node<S>> {
        &self.node
    }

    /// Says that it will leave, and goes on serving: health turns 503, and connections end behind their
    /// answers. For balancers, which need a moment to notice.
    pub fn announce_leave(&self) {
        self.node.become_parting();
    }

    /// The drain has begun, by request or because something failed.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.control.stopping.load(Ordering::Acquire)
    }

    /// Begins the drain and returns at once: listeners close, answers in flight are finished, everything
    /// ends within [`crate::limits::DRAIN_MS`].
    pub fn stop(&self) {
        self.control.stop();
        self.node.become_leaving();
        self.node.mesh.leave();
    }

    /// Returns when the node has ended.
    ///
    /// # Errors
    /// [`ServeError`] if it was not asked to.
    pub fn wait(&self) -> Result<(), ServeError> {
        let threads = std::mem::take(&mut *self.threads.lock());
        let last = !threads.is_empty();
        for thread in threads {
            // A worker's panic was caught and recorded inside its thread.
            let _ = thread.join();
        }
        let failure = self.control.failure.lock().clone();
        if last {
            if let Some(path) = &self.unix {
                path.remove();
            }
            self.control.tell_end();
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Listeners for peers, one a worker. The default port gives way to a free one where it is taken.
fn open_peers(
    config: &NodeConfig,
    workers: usize,
) -> Result<(SocketAddr, Vec<mio::net::TcpListener>), StartError> {
    let at = |port| SocketAddr::new(config.host, port);
    let opened = match config.peer_port {
        Some(port) => listen::tcp(at(port), workers),
        None => listen::tcp(at(PEER_PORT_DEFAULT), workers).or_else(|_| listen::tcp(at(0), workers)),
    };
    opened.map_err(|error| match error {
        StartError::Listen { address, cause } => {
            StartError::Listen { address: address.replace("http://", "peer port "), cause }
        }
        other => other,
    })
}

/// The address that peers are told: with an unspecified IP they take the one that they see.
fn advertised(config: &NodeConfig, peer_port: u16) -> Result<SocketAddr, StartError> {
    use std::net::ToSocketAddrs;
    let Some(told) = &config.advertise else {
        return Ok(SocketAddr::from(([0, 0, 0, 0], peer_port)));
    };
    if let Ok(ip) = told.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(ip, peer_port));
    }
    let target = if told.rsplit_once(':').is_some() { told.clone() } else { format!("{told}:{peer_port}") };
    let found = target
        .to_socket_addrs()
        .and_then(|mut all| all.next().ok_or_else(|| std::io::Error::other("the name has no address")));
    found.map_err(|cause| StartError::Listen { address: format!("advertised {told}"), cause })
}

impl<S: Storage> Drop for Server<S> {
    /// A server that goes out of scope stops and waits for its threads.
    fn drop(&mut self) {
        self.stop();
        let _ = self.wait();
    }
}
/// For tests: `MESHKV_TEST_COMPARE_MS`, the pause between comparisons.
fn compare_ms() -> u64 {
    let asked = std::env::var("MESHKV_TEST_COMPARE_MS").ok().and_then(|ms| ms.parse().ok());
    asked.unwrap_or(crate::limits::COMPARE_MS)
}
