//! A node without its sockets: what the routes do, composed of the store and the HTTP state machine.
//!
//! [`Node`] is what the workers of a node share; each worker has an [`engine::Engine`], which turns a
//! turn's bytes into answers. Time comes in with every turn; nothing here reads a clock or knows a socket,
//! so the same code runs under a server and under a simulator.

pub mod acks;
pub mod engine;
pub mod extension;
mod info;
mod keys;
pub mod listing;
mod mesh_info;
pub mod metrics;
pub mod routes;

use crate::base::clock::{HybridClock, Now};
use crate::base::version::Hlc;
use crate::config::AckLevel;
use crate::http::answer::{Answers, Framing, Persistence};
use crate::http::error::ErrorCode;
use crate::limits::TOMBSTONE_KEEP_MS;
use crate::mesh::view::View;
use crate::mesh::{Context, Mesh, MeshConfig, Mutation};
use crate::store::Storage;
use extension::Extensions;
use metrics::{ProcessFacts, WorkerMetrics};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a node is told about itself; the part of the configuration that the routes need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name (`hostname` in `/status`).
    pub name: String,
    /// The HTTP port that clients use.
    pub port: u16,
    /// Characters of a key.
    pub max_key_chars: usize,
    /// Characters of a value.
    pub max_value_chars: usize,
    /// Acknowledgements that a write waits for unless it says otherwise.
    pub acks: AckLevel,
    /// `Access-Control-Allow-Origin`, if any.
    pub cors_origin: Option<String>,
    /// Worker threads.
    pub workers: usize,
    /// Connections open at once.
    pub max_connections: usize,
}

/// Whether the node serves data, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Holds what the mesh holds; serves everything.
    Ready,
    /// Still loading: data routes answer 503.
    Warming,
    /// Going away: data routes answer 503, connections end behind their answers.
    Leaving,
}

impl State {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::Ready => "ok",
            State::Warming => "warming",
            State::Leaving => "leaving",
        }
    }
}

/// What all workers of a node share.
pub struct Node<S> {
    pub store: S,
    pub clock: HybridClock,
    pub settings: Settings,
    pub mesh: Arc<Mesh>,
    pub extensions: Extensions,
    pub(crate) answers: Answers,
    pub(crate) started_mono_ns: AtomicU64,
    /// It will leave soon, and says so, but still serves.
    parting: AtomicBool,
    is_leaving: AtomicBool,
    workers: Mutex<Vec<Arc<WorkerMetrics>>>,
    /// Asks the system about this process for `/metrics`; the simulator has none.
    process: fn() -> ProcessFacts,
}

impl<S: Storage> Node<S> {
    /// A node; whether it begins alone or waits for others is the mesh's configuration.
    pub fn new(
        store: S,
        settings: Settings,
        mesh: MeshConfig,
        now: Now,
        extensions: Extensions,
        process: fn() -> ProcessFacts,
    ) -> Node<S> {
        let answers = Answers::new(settings.cors_origin.as_deref());
        // A fresh table of writers has room.
        let _ = store.become_writer(mesh.me.incarnation);
        Node {
            store,
            clock: HybridClock::new(),
            settings,
            mesh: Arc::new(Mesh::new(mesh, now)),
            extensions,
            answers,
            started_mono_ns: AtomicU64::new(0),
            parting: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            workers: Mutex::new(Vec::new()),
            process,
        }
    }

    #[must_use]
    pub fn state(&self) -> State {
        match (self.is_leaving.load(Ordering::Acquire), self.mesh.is_ready()) {
            (true, _) => State::Leaving,
            (false, true) => State::Ready,
            (false, false) => State::Warming,
        }
    }

    /// Health turns 503 and connections end behind their answers, but everything is still served: who routes
    /// requests here gets the time to notice.
    pub fn become_parting(&self) {
        self.parting.store(true, Ordering::Release);
    }

    #[must_use]
    pub fn is_parting(&self) -> bool {
        self.parting.load(Ordering::Acquire)
    }

    /// Says to everybody who asks that the node goes away; each worker stops serving by itself.
    pub fn become_leaving(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    /// The members as last published.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.mesh.view()
    }

    /// What the mesh needs to be called.
    pub fn context(&self, now: Now) -> Context<'_, S> {
        Context { store: &self.store, clock: &self.clock, now }
    }

    /// A worker's counters, which `/metrics` sums up with the others'.
    pub fn register_worker(&self) -> Arc<WorkerMetrics> {
        let metrics = Arc::new(WorkerMetrics::default());
        self.workers.lock().push(Arc::clone(&metrics));
        metrics
    }

    pub(crate) fn worker_metrics(&self) -> Vec<Arc<WorkerMetrics>> {
        self.workers.lock().clone()
    }

    /// Client connections open now, over all workers.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.workers.lock().iter().map(|worker| worker.connections.get()).sum()
    }

    /// Removals at or below this stamp need no tombstone any more: they are older than
    /// [`TOMBSTONE_KEEP_MS`], and every member holds them.
    #[must_use]
    pub fn floor(&self, wall_ms: u64) -> Hlc {
        let old = Hlc::from_millis(wall_ms.saturating_sub(TOMBSTONE_KEEP_MS));
        match self.mesh.floor() {
            Some(floor) if self.mesh.config.mutation != Mutation::CollectByAge => old.min(floor),
            // Alone, only requests that are still being served could care, and they are long over.
            _ => old,
        }
    }

    /// A whole error answer that closes its connection, for refusals outside of a turn.
    #[must_use]
    pub fn refusal(&self, code: ErrorCode) -> Vec<u8> {
        let mut out = Vec::new();
        let framing = Framing { persistence: Persistence::Close, head_only: false };
        self.answers.error(code, framing, &mut out);
        out
    }
}

/// What the routes may ask about the connection that a request came on.
pub trait Connection {
    /// The address that the client reached us at; `None` for UNIX sockets.
    fn local_address(&self) -> Option<SocketAddr>;
}
