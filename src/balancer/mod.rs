//! The TCP balancer: finds the containers of a compose service by itself and routes connections to those
//! that are healthy. [`core`] decides; the keeper, one thread, brings it news and publishes its routes; the
//! relay, one thread a core, moves bytes.

pub mod config;
pub mod core;
mod keeper;
mod relay;
mod shared;

use self::config::{BalanceConfig, Source, connections_for, parse_backend};
use self::core::pool::Backend;
use self::keeper::Keeper;
use self::relay::Worker;
use self::shared::Shared;
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// A backend that the balancer's owner names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub address: SocketAddr,
}

/// How a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberState {
    pub id: String,
    pub name: String,
    pub address: Option<SocketAddr>,
    pub state: &'static str,
    pub reason: String,
}

impl MemberState {
    fn of(backend: &Backend) -> MemberState {
        MemberState {
            id: backend.id.clone(),
            name: backend.name.clone(),
            address: backend.address,
            state: backend.state.name(),
            reason: backend.reason.clone(),
        }
    }
}

/// Why a balancer could not start. Nothing is left behind.
#[derive(Debug)]
pub enum StartError {
    /// What it was told cannot work: the caller's mistake.
    Config(String),
    /// An address could not be listened on.
    Listen { address: SocketAddr, cause: io::Error },
    /// The system gave no event queue or thread, or a file could not be read.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Config(reason) => f.write_str(reason),
            StartError::Listen { address, cause } => write!(f, "cannot listen on {address}: {cause}"),
            StartError::System(cause) => write!(f, "{cause}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running balancer.
pub struct Balancer {
    shared: Arc<Shared>,
    address: SocketAddr,
    status: Option<SocketAddr>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Balancer {
    /// Starts a balancer; it listens when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start(mut config: BalanceConfig) -> Result<Balancer, StartError> {
        let workers = config.workers.max(1);
        let most = connections_for(crate::system::descriptor_limit(), workers);
        if config.max_connections == 0 || config.max_connections > most {
            return Err(StartError::Config(format!(
                "{} connections are more than the descriptor limit leaves room for ({most}), or none",
                config.max_connections
            )));
        }
        if let Source::Static { backends, .. } = &config.source {
            for backend in backends {
                parse_backend(backend).map_err(StartError::Config)?;
            }
        }
        let cannot = |address| move |cause| StartError::Listen { address, cause };
        let (address, listeners) =
            relay::listen::tcp(config.listen, workers).map_err(cannot(config.listen))?;
        config.listen = address;
        let (mut status, mut page_listener) = (None, None);
        if let Some(wanted) = config.status {
            let listener = mio::net::TcpListener::bind(wanted).map_err(cannot(wanted))?;
            status = Some(listener.local_addr().map_err(cannot(wanted))?);
            page_listener = Some(listener);
        }
        let given = if let Source::Given(members) = &config.source { members.clone() } else { Vec::new() };
        let shared = Arc::new(Shared::new(config.max_connections, workers, given));
        let ways =
            relay::Ways { selection: config.selection, splice: config.splice, patience: config.patience };
        let balancer = Balancer { shared, address, status, threads: Mutex::new(Vec::new()) };
        let started = balancer.start_threads(config, ways, listeners, page_listener);
        if let Err(error) = started {
            balancer.shared.workers_left.store(0, Ordering::Release);
            balancer.stop();
            let _ = balancer.wait();
            return Err(StartError::System(error));
        }
        Ok(balancer)
    }

    fn start_threads(
        &self,
        config: BalanceConfig,
        ways: relay::Ways,
        listeners: Vec<mio::net::TcpListener>,
        page: Option<mio::net::TcpListener>,
    ) -> io::Result<()> {
        let keeper = Keeper::new(Arc::clone(&self.shared), config, page)?;
        self.spawn("keeper".to_owned(), move || keeper.run(), |_| {})?;
        for (index, listener) in listeners.into_iter().enumerate() {
            let worker = Worker::new(index, Arc::clone(&self.shared), ways, listener)?;
            self.spawn(
                format!("relay-{index}"),
                move || worker.run(),
                |shared| {
                    shared.workers_left.fetch_sub(1, Ordering::AcqRel);
                    shared.wake_keeper();
                },
            )?;
        }
        Ok(())
    }

    /// A thread whose failure, or panic, ends the whole balancer rather than leave it with a part missing.
    fn spawn(
        &self,
        name: String,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
        after: impl FnOnce(&Shared) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(format!("waiting for events failed: {error}")),
                Err(_) => shared.fail(format!("{name} panicked; this is a bug in meshkv")),
            }
            after(&shared);
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Where clients reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the status pages are.
    #[must_use]
    pub fn status_address(&self) -> Option<SocketAddr> {
        self.status
    }

    /// How the backends are.
    #[must_use]
    pub fn members(&self) -> Vec<MemberState> {
        self.shared.members.lock().clone()
    }

    /// Replaces the backends of [`Source::Given`]; other sources take no notice.
    pub fn set_members(&self, members: Vec<Member>) {
        *self.shared.given.lock() = members;
        self.shared.look.store(true, Ordering::Release);
        self.shared.wake_keeper();
    }

    /// Reads the file of a static list again.
    pub fn reload(&self) {
        self.shared.reload.store(true, Ordering::Release);
        self.shared.wake_keeper();
    }

    /// Begins the drain; returns at once.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Returns when the balancer has ended.
    ///
    /// # Errors
    /// Why it ended without being asked to.
    pub fn wait(&self) -> Result<(), String> {
        loop {
            // Not under the lock: who else waits must not keep a thread from being joined.
            let Some(thread) = self.threads.lock().pop() else { break };
            let _ = thread.join();
        }
        self.shared.failure().map_or(Ok(()), Err)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop();
        let _ = self.wait();
    }
}
