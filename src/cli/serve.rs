//! `meshkv serve`: starts a node, says so, and stops it when a signal asks.

use super::settings::{Environment, Resolved, resolve};
use super::{Failure, NodeArgs, log};
use meshkv::config::{NodeConfig, PEER_PORT_DEFAULT};
use meshkv::limits::DRAIN_MS;
use meshkv::node::State;
use meshkv::node::extension::Extensions;
use meshkv::server::Server;
use meshkv::store::Storage;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a drain may take beyond its own bound before the process ends without it.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// A running node, as far as a process around it cares.
pub(super) trait Running: Send + Sync + 'static {
    /// Where clients reach it.
    fn http_address(&self) -> SocketAddr;
    /// Says that it will leave, and goes on serving.
    fn announce_leave(&self);
    /// Where peers reach it.
    fn peer_address(&self) -> SocketAddr;
    /// Holds what the mesh holds, and has said how it came to that.
    fn is_ready(&self) -> bool;
    /// Members of its mesh, itself included.
    fn members(&self) -> usize;
    /// Records that it holds.
    fn records(&self) -> u64;
    /// Has ended, or is about to.
    fn is_stopping(&self) -> bool;
    /// Begins the drain; returns at once.
    fn stop(&self);
    /// Returns when the node has ended.
    fn wait(&self) -> Result<(), String>;
}

impl Running for Server {
    fn http_address(&self) -> SocketAddr {
        Server::http_address(self)
    }

    fn announce_leave(&self) {
        Server::announce_leave(self);
    }

    fn peer_address(&self) -> SocketAddr {
        Server::peer_address(self)
    }

    fn is_ready(&self) -> bool {
        self.node().state() == State::Ready && !self.node().mesh.has_notes()
    }

    fn members(&self) -> usize {
        self.node().mesh.view().size
    }

    fn records(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.node().store.size(since_1970.as_millis() as u64)
    }

    fn is_stopping(&self) -> bool {
        Server::is_stopping(self)
    }

    fn stop(&self) {
        Server::stop(self);
    }

    fn wait(&self) -> Result<(), String> {
        Server::wait(self).map_err(|error| error.to_string())
    }
}

fn start(config: NodeConfig) -> Result<Server, String> {
    Server::start(config, Extensions::new()).map_err(|error| error.to_string())
}

/// Runs until a signal or a failure.
pub(super) fn run(flags: NodeArgs, environment: Environment<'_>) -> Result<(), Failure> {
    meshkv::system::raise_descriptor_limit();
    let resolved = resolve(flags, environment).map_err(Failure::Usage)?;
    log::start(resolved.log_format, resolved.log_level);
    supervise(&resolved, start)
}

/// The facts before the start, the start, the facts after it, and the wait.
fn supervise<N: Running>(
    resolved: &Resolved,
    start: impl FnOnce(NodeConfig) -> Result<N, String>,
) -> Result<(), Failure> {
    let config = &resolved.config;
    announce_plan(config);
    // Before the start, so that a signal is never met by the default action, which an init process (the
    // first of a container) does not even have.
    let node: Arc<OnceLock<Arc<N>>> = Arc::new(OnceLock::new());
    watch_signals(Arc::clone(&node), resolved.leave_notice)?;
    let begun = Instant::now();
    let started = start(config.clone()).map_err(logged)?;
    let started = Arc::clone(node.get_or_init(|| Arc::new(started)));
    announce_start(config, started.http_address(), started.peer_address());
    warn_of(resolved);
    let is_ready = loop {
        if started.is_stopping() || started.is_ready() {
            break !started.is_stopping();
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if is_ready {
        if !config.join.is_empty() {
            let (members, records, seconds) =
                (started.members(), started.records(), begun.elapsed().as_secs_f64());
            tracing::info!(
                target: log::START_UP,
                members, records, seconds,
                "mesh   {}  {}  after {seconds:.1} s",
                counted(members as u64, "member"),
                counted(records, "record")
            );
        }
        tracing::info!(target: log::START_UP, "ready");
    }
    started.wait().map_err(logged)?;
    tracing::info!("stop   done");
    Ok(())
}

/// How many of what, in words that fit one as well.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Logs why the process is about to fail.
fn logged(reason: String) -> Failure {
    tracing::error!("{reason}");
    Failure::Logged
}

fn announce_plan(config: &NodeConfig) {
    let version = env!("CARGO_PKG_VERSION");
    let commit = env!("MESHKV_BUILD_COMMIT");
    let pid = std::process::id();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    tracing::info!(target: log::START_UP, version, commit, pid, "meshkv {version} ({commit}) pid {pid} {os}/{arch}");
    let NodeConfig { workers, stripes, max_connections, max_memory_bytes, .. } = *config;
    let memory = human_bytes(max_memory_bytes);
    tracing::info!(
        target: log::START_UP,
        workers, stripes, max_connections, max_memory_bytes,
        "workers {workers}  stripes {stripes}  connections {max_connections}  memory limit {memory}"
    );
}

fn announce_start(config: &NodeConfig, address: SocketAddr, peers: SocketAddr) {
    let (node, http) = (&config.name, format!("http://{address}"));
    let chosen = config.port == 0 || config.peer_port.unwrap_or(PEER_PORT_DEFAULT) != peers.port();
    match chosen {
        true => {
            tracing::info!(target: log::CHOSEN, http, %peers, node, "http   {http}   peers {peers}   node {node}");
        }
        false => {
            tracing::info!(target: log::START_UP, http, %peers, node, "http   {http}   peers {peers}   node {node}");
        }
    }
    for url in &config.join {
        tracing::info!(target: log::START_UP, url, "mesh   joining through {url}");
    }
    if let Some(path) = &config.unix {
        let path = path.display();
        tracing::info!(target: log::START_UP, unix = %path, "unix   {path}");
    }
}

/// What is allowed but should not go unnoticed.
pub(super) fn warn_of(resolved: &Resolved) {
    let config = &resolved.config;
    if !config.host.is_loopback() {
        tracing::warn!("listening beyond loopback: anyone who reaches this port can read and write");
    }
    if !config.host.is_loopback() && config.secret.is_none() {
        tracing::warn!("no secret: any machine of a private network can join the mesh");
    }
    for remark in &resolved.remarks {
        tracing::warn!("{remark}");
    }
}

/// Binary units, one decimal unless it is a zero.
fn human_bytes(bytes: u64) -> String {
    let (scale, unit) = match bytes {
        _ if bytes >= 1 << 40 => (40, "TiB"),
        _ if bytes >= 1 << 30 => (30, "GiB"),
        _ => (20, "MiB"),
    };
    // Rounded down: a limit must not look higher than it is.
    let tenths = (u128::from(bytes) * 10) >> scale;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        decimal => format!("{}.{decimal} {unit}", tenths / 10),
    }
}

/// The first SIGTERM or SIGINT drains; a second one, or one before there is a node, ends the process at
/// once with 128 plus its number. A broken pipe is an error of its write, never a signal: the standard
/// library ignores SIGPIPE before `main`.
fn watch_signals<N: Running>(node: Arc<OnceLock<Arc<N>>>, notice: Duration) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::Runtime(format!("cannot watch for signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(cannot)?;
    let watch = move || {
        let mut draining = false;
        for signal in signals.forever() {
            match node.get() {
                Some(node) if !draining => {
                    draining = true;
                    let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                    let seconds = DRAIN_MS / 1000;
                    tracing::info!(
                        "stop   {name}: draining, at most {seconds} s; a second signal ends at once"
                    );
                    node.announce_leave();
                    drain_after(notice, Arc::clone(node));
                }
                _ => signal_hook::low_level::exit(128 + signal),
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(cannot)?;
    Ok(())
}

/// Begins the drain once those who route requests here have had time to notice. The drain bounds itself; the
/// rest is for the case that it fails to.
fn drain_after<N: Running>(notice: Duration, node: Arc<N>) {
    let stopped = Arc::clone(&node);
    let watch = move || {
        std::thread::sleep(notice);
        node.stop();
        std::thread::sleep(Duration::from_millis(DRAIN_MS) + DRAIN_GRACE);
        tracing::error!("the drain did not end in time");
        signal_hook::low_level::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("drain".to_owned()).spawn(watch) {
        tracing::warn!("cannot watch over the drain: {error}");
        stopped.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        for (count, shown) in [(0, "0 members"), (1, "1 member"), (2, "2 members")] {
            assert_eq!(counted(count, "member"), shown);
        }
    }

    #[test]
    fn bytes_are_shown_rounded_down() {
        for (bytes, shown) in [
            (1 << 20, "1 MiB"),
            ((1 << 20) * 3 / 2, "1.5 MiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (18 << 30, "18 GiB"),
            ((18 << 30) + (1 << 29), "18.5 GiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(human_bytes(bytes), shown);
        }
    }
}
