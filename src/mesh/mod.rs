//! Replication: who is in the mesh, what each member has, and how the rest gets there.
//!
//! Everything here is sans-IO. [`Mesh`] is what the workers of a node share; each worker has a
//! [`worker::Worker`], which owns its log and its links. Bytes, time and connections come in as calls;
//! bytes to write and addresses to dial come out. The server drives it with sockets, the simulator with
//! virtual ones. `ARCHITECTURE.md` has the rules and why they hold.

pub mod compare;
pub mod figures;
mod fitness;
pub mod log;
pub mod members;
mod notes;
pub mod progress;
mod rebirth;
mod scan;
mod surplus;
pub mod time;
pub mod view;
pub mod worker;

pub use notes::Note;

use crate::base::clock::HybridClock;
use crate::base::clock::Now;
use crate::base::random::Random;
use crate::base::version::{Hlc, Incarnation};
use crate::peer::frame::{Held, MemberInfo, Openness, OriginVector, Phase};
use crate::peer::link::{Keys, LinkError};
use crate::store::Storage;
use compare::Comparisons;
use figures::{Figures, StreamSum};
use members::Members;
use parking_lot::{Mutex, RwLock};
use progress::Progress;
use rebirth::Rebirth;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use view::View;

/// What the calls of a turn need beside the mesh itself.
#[derive(Debug)]
pub struct Context<'a, S> {
    pub store: &'a S,
    pub clock: &'a HybridClock,
    pub now: Now,
}

impl<S> Clone for Context<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Context<'_, S> {}

/// What a node's mesh is told before it starts.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// This node: its first incarnation, its name, the address to advertise (unspecified: as seen).
    pub me: MemberInfo,
    /// Was told whom to join, and so waits for them before it begins by itself.
    pub seeds_expected: bool,
    pub keys: Keys,
    /// Bytes of log of each worker.
    pub log_bytes: usize,
    pub portions: Portions,
    /// An absent member is fenced after this, in milliseconds.
    pub forget_ms: u64,
    /// With more tombstones than this, sooner: after [`crate::limits::FORGET_CROWDED_MS`].
    pub tombstones_max: u64,
    /// The least pause between two comparisons with other members, in milliseconds.
    pub compare_ms: u64,
    /// Seeds jitter, later incarnations and a lineage.
    pub random: u64,
    /// Rules that are switched off; only the simulator's mutation gate sets any.
    pub mutation: Mutation,
}

impl MeshConfig {
    /// For a node of one worker that begins alone and that nobody will meet.
    #[must_use]
    pub fn alone(incarnation: Incarnation) -> MeshConfig {
        MeshConfig {
            me: MemberInfo {
                incarnation,
                name: "alone".to_owned(),
                address: SocketAddr::from(([0, 0, 0, 0], 0)),
                http_port: 0,
                workers: 1,
            },
            seeds_expected: false,
            keys: Keys::default(),
            log_bytes: crate::limits::LOG_WORKER_BYTES_MIN,
            portions: Portions::default(),
            forget_ms: crate::limits::FORGET_MS,
            tombstones_max: crate::limits::TOMBSTONES_MAX,
            compare_ms: crate::limits::COMPARE_MS,
            random: 1,
            mutation: Mutation::None,
        }
    }
}

/// How much a link and a scan take at a time. Nothing but speed depends on them, which the simulator shows by
/// making them tiny.
#[derive(Clone, Copy, Debug)]
pub struct Portions {
    /// See [`crate::limits::LINK_OUTPUT_BYTES`].
    pub output_bytes: usize,
    /// See [`crate::limits::OPS_FRAME_BYTES`]; of a pull's frames.
    pub frame_bytes: usize,
    /// See [`crate::limits::SCAN_RECORDS_PER_TURN`].
    pub scan_records: usize,
    /// See [`crate::limits::RANGES_OWN_MAX`].
    pub ranges: usize,
    /// Workers rest while nothing happens.
    pub rests: bool,
}

impl Default for Portions {
    fn default() -> Portions {
        use crate::limits::{LINK_OUTPUT_BYTES, OPS_FRAME_BYTES, RANGES_OWN_MAX, SCAN_RECORDS_PER_TURN};
        Portions {
            output_bytes: LINK_OUTPUT_BYTES,
            frame_bytes: OPS_FRAME_BYTES,
            scan_records: SCAN_RECORDS_PER_TURN,
            ranges: RANGES_OWN_MAX,
            rests: true,
        }
    }
}

/// A rule of replication that can be switched off, to see the simulator notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    #[default]
    None,
    /// Tombstones are collected by age alone.
    CollectByAge,
    /// The floor advances whatever view a member reports.
    FloorIgnoresViews,
    /// The floor is what this node holds, whatever the others do.
    FloorWithoutOthers,
    /// A stream that starts anew counts as whole.
    AcceptGaps,
    /// What comes later wins, whatever its stamp.
    LaterArrivalWins,
    /// Nothing is pulled after a member has gone.
    NoReconciliation,
    /// A member counts as closed up to its last mark although operations before it are missing.
    ClosedDespiteGap,
    /// Ready as soon as the first pull is complete.
    ReadyWithoutBeingCounted,
    /// What comes at or below the floor is taken.
    BelowTheFloor,
    /// Who finds that the others have gone on without it stays as it is.
    LeftBehindStays,
    /// A member that is away for long enough is removed by each by itself.
    ForgetsWithoutMajority,
    /// What this node has said to hold binds it only once it has heard what others made of that.
    ClaimsForgotten,
    /// Whoever brings it in a pull, it does not wait for that.
    PullsNeverWait,
    /// What was taken in doubt stays, whoever has decided without it.
    DoubtsForgotten,
    /// What a pull brings beyond what it counts is not spoken of.
    SurplusIsSilent,
    /// A lifetime that no view lists is never over.
    UnlistedForgotten,
}

impl Mutation {
    pub const ALL: [Mutation; 16] = {
        use Mutation::*;
        [
            FloorWithoutOthers,
            CollectByAge,
            FloorIgnoresViews,
            AcceptGaps,
            LaterArrivalWins,
            NoReconciliation,
            ClosedDespiteGap,
            ReadyWithoutBeingCounted,
            BelowTheFloor,
            LeftBehindStays,
            ForgetsWithoutMajority,
            ClaimsForgotten,
            PullsNeverWait,
            DoubtsForgotten,
            SurplusIsSilent,
            UnlistedForgotten,
        ]
    };
}

/// Counters of the mesh, for `/metrics`; any worker adds to them.
#[derive(Debug, Default)]
pub struct Counters {
    pub link_errors: [AtomicU64; LinkError::LABELS.len()],
    pub refusals: [AtomicU64; crate::peer::frame::Reason::ALL.len()],
    pub resumes: AtomicU64,
    pub restarts: AtomicU64,
    pub pulls_full: AtomicU64,
    pub pulls_partial: AtomicU64,
    pub pulls_complete: AtomicU64,
    /// Those that ended with their link, or that came to nothing.
    pub pulls_abandoned: AtomicU64,
    pub pull_records_sent: AtomicU64,
    pub pull_records_received: AtomicU64,
    pub below_floor: AtomicU64,
    /// Times that this node had to start over under a new incarnation.
    pub rebirths: AtomicU64,
}

/// What one worker publishes to the others.
#[derive(Debug, Default)]
struct WorkerFacts {
    /// The last operation that it logged.
    head: AtomicU64,
    /// It stamps nothing at or below this any more.
    closed: AtomicU64,
    /// The view it works with.
    view_seen: AtomicU64,
    epoch_seen: AtomicU64,
    logging_seen: AtomicBool,
}

/// What the workers of a node share; see the module.
#[derive(Debug)]
pub struct Mesh {
    pub config: MeshConfig,
    pub counters: Counters,
    members: Mutex<Members>,
    progress: Progress,
    figures: Figures,
    comparisons: Comparisons,
    view: RwLock<Arc<View>>,
    view_version: AtomicU64,
    /// Writes go into the log: there is, or was, a peer.
    logging: AtomicBool,
    workers: Vec<WorkerFacts>,
    /// Counts lifetimes; a worker that sees it change drops its links and its log.
    epoch: AtomicU64,
    rebirth: Mutex<Option<Rebirth>>,
    /// It is certain: workers drop their links and logs when they see the epoch change.
    drops: AtomicBool,
    is_reborn: AtomicBool,
    leaving: AtomicBool,
    /// It leaves, and its lifetime was found to be over: there is nothing more to say.
    is_over: AtomicBool,
    /// Messages for the node's log, bounded.
    notes: Mutex<Vec<Note>>,
    /// HTTP addresses that a client has told us of, to be asked for their members.
    hints: Mutex<Vec<String>>,
    floor: AtomicU64,
    /// See `members/claim.rs`.
    claimed: AtomicU64,
    /// See `members/doubt.rs`.
    doubted: AtomicU64,
    /// Half of the lineage, 0 for none: to tell on every frame whether a link still belongs.
    lineage: AtomicU64,
    /// The jump of the machine's clock that is being ignored, in milliseconds.
    jump_ms: AtomicI64,
    /// Discovery has found a node that is ready and is not this one.
    sees_mesh: AtomicBool,
    /// Counts jumps that turned out right; a driver that sees it change follows its clock.
    jumps_followed: AtomicU64,
    is_skewed: AtomicBool,
    /// When a write that another node had accepted did not fit here last, by the monotonic clock; 0: never.
    unfit_ns: AtomicU64,
}

const HINTS_MAX: usize = 64;

impl Mesh {
    /// A node's mesh, not started: it joins, or begins by itself, as soon as its workers tick.
    #[must_use]
    pub fn new(config: MeshConfig, now: Now) -> Mesh {
        let workers = (0..config.me.workers).map(|_| WorkerFacts::default()).collect();
        let mut members = Members::new(config.me.clone(), now.mono_ns, Random::new(config.random));
        if !config.seeds_expected {
            members.begin_alone();
        }
        let (view, lineage) = (members.view(0), members.lineage());
        let doubted = members.doubted_upto();
        Mesh {
            config,
            counters: Counters::default(),
            members: Mutex::new(members),
            progress: Progress::default(),
            figures: Figures::default(),
            comparisons: Comparisons::default(),
            view: RwLock::new(Arc::new(view)),
            view_version: AtomicU64::new(0),
            logging: AtomicBool::new(false),
            workers,
            epoch: AtomicU64::new(1),
            rebirth: Mutex::new(None),
            drops: AtomicBool::new(false),
            is_reborn: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            notes: Mutex::new(Vec::new()),
            hints: Mutex::new(Vec::new()),
            floor: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
            doubted: AtomicU64::new(doubted.0),
            lineage: AtomicU64::new(lineage_tag(lineage)),
            jump_ms: AtomicI64::new(0),
            sees_mesh: AtomicBool::new(false),
            jumps_followed: AtomicU64::new(0),
            is_skewed: AtomicBool::new(false),
            unfit_ns: AtomicU64::new(0),
        }
    }

    /// The members as last published.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    /// The tombstone floor: every live member of the mesh holds every write up to it. `None` while the
    /// node is alone and has always been: then nobody else can matter.
    #[must_use]
    pub fn floor(&self) -> Option<Hlc> {
        self.logging.load(Ordering::Acquire).then(|| self.decided())
    }

    /// Writes at or below this were decided before: they are not taken any more. Zero before there is a copy.
    fn decided(&self) -> Hlc {
        Hlc(self.floor.load(Ordering::Acquire))
    }

    /// The state behind the view, for `/status` and tests.
    pub fn with_members<R>(&self, read: impl FnOnce(&Members) -> R) -> R {
        read(&self.members.lock())
    }

    /// The state of the membership in a few lines, for whoever looks for a fault.
    #[must_use]
    pub fn describe(&self) -> String {
        use std::fmt::Write;
        let members = self.members.lock();
        let me = members.me();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {:?}: {}, stable {:?}, floor {:?}, {:?}",
            me.name,
            me.incarnation,
            members.phase().label(),
            members.stable(),
            members.floor(),
            members.pull_state()
        );
        for origin in self.progress.all() {
            let (incarnation, held) = (origin.incarnation, origin.vector());
            let is_gone = members.is_removed(incarnation);
            let _ = writeln!(
                text,
                "  {incarnation:?} gone {is_gone} {:?} {:?} surplus {:?}",
                held.openness, held.workers, held.surplus
            );
        }
        text
    }

    /// What is held of other origins.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What this node's workers have sent to a member.
    #[must_use]
    pub fn streams_to(&self, peer: Incarnation) -> StreamSum {
        self.figures.sum(peer)
    }

    /// What comparing itself with the others came to.
    #[must_use]
    pub fn comparisons(&self) -> &Comparisons {
        &self.comparisons
    }

    /// Takes note of a node's HTTP address, which anybody may have named; not where there is a secret, nor if there are too
    /// many.
    pub fn hint(&self, address: String) {
        let mut hints = self.hints.lock();
        if self.config.keys.is_empty() && hints.len() < HINTS_MAX && !hints.contains(&address) {
            hints.push(address);
        }
    }

    /// The hints since the last call.
    pub fn take_hints(&self) -> Vec<String> {
        std::mem::take(&mut *self.hints.lock())
    }

    #[must_use]
    pub fn has_hints(&self) -> bool {
        !self.hints.lock().is_empty()
    }

    /// Addresses that may be peers', from discovery. Dialed in their turn; unknown ones at most this many.
    pub fn discovered(&self, addresses: &[SocketAddr]) {
        self.members.lock().discovered(addresses);
    }

    /// The same of addresses that a hint has led to.
    pub fn hinted(&self, addresses: &[SocketAddr]) {
        self.members.lock().hinted(addresses);
    }

    /// Whether the last round of discovery found a ready node other than this one: then there is a mesh to join, and
    /// beginning another would part the two.
    pub fn saw_mesh(&self, is_there: bool) {
        self.sees_mesh.store(is_there, Ordering::Release);
    }

    /// Begins to leave: writes have stopped; the rest of the log goes out, then the members are told.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether everybody that is alive has what this node accepted, and knows that it leaves.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.is_over() || self.members.lock().farewell_heard()
    }

    /// It leaves, and was told that its lifetime is over: the farewell has come around, or it was given up before.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// The heads of this node's own logs, by worker.
    #[must_use]
    pub fn heads(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.head.load(Ordering::Acquire)).collect()
    }

    /// Below this every own write is in the store: no worker stamps there any more.
    fn own_closed(&self) -> Hlc {
        let closed = self.workers.iter().map(|worker| worker.closed.load(Ordering::Acquire)).min();
        Hlc(closed.unwrap_or(0))
    }

    /// Whether a write, named by its token, is held here. `None`: it is not known who wrote it.
    #[must_use]
    pub fn holds(&self, origin: Incarnation, worker: usize, seq: u64) -> Option<bool> {
        if origin == self.view().me {
            return Some(self.workers.get(worker)?.head.load(Ordering::Acquire) >= seq);
        }
        if let Some(origin) = self.progress.get(origin) {
            return Some(origin.holds(worker, seq));
        }
        self.members.lock().settled_holds(origin, worker, seq)
    }

    /// What each worker has logged, and what it has closed.
    fn own_vector(&self) -> OriginVector {
        let own = self.workers.iter().map(|worker| {
            // The mark first: what it closes is in the log before it is published.
            let closed = Hlc(worker.closed.load(Ordering::Acquire));
            Held { applied: worker.head.load(Ordering::Acquire), closed, ranges: Vec::new() }
        });
        OriginVector {
            origin: self.view().me,
            openness: Openness::Open,
            workers: own.collect(),
            surplus: Vec::new(),
        }
    }

    fn publish(&self, members: &Members) {
        let version = self.view_version.load(Ordering::Relaxed) + 1;
        *self.view.write() = Arc::new(members.view(version));
        self.publish_floor(members);
        self.lineage.store(lineage_tag(members.lineage()), Ordering::Release);
        self.view_version.store(version, Ordering::Release);
    }

    fn publish_floor(&self, members: &Members) {
        self.floor.store(members.floor().0, Ordering::Release);
        self.claimed.store(members.open_claim().0, Ordering::Release);
        self.doubted.store(members.doubted_upto().0, Ordering::Release);
    }

    /// Writes at or below this may have been decided elsewhere without this node's knowledge.
    fn claimed(&self) -> Hlc {
        Hlc(self.claimed.load(Ordering::Acquire))
    }

    /// What comes at or below this is taken in doubt.
    fn doubted(&self) -> Hlc {
        Hlc(self.doubted.load(Ordering::Acquire))
    }

    /// The driver's clock has jumped by so much and is not followed; 0: it is followed. To be said whenever
    /// that changes.
    pub fn clock_jumped(&self, jump_ms: i64) {
        self.jump_ms.store(jump_ms, Ordering::Release);
    }

    /// How often drivers were told to follow their clocks.
    #[inline]
    #[must_use]
    pub fn jumps_followed(&self) -> u64 {
        self.jumps_followed.load(Ordering::Acquire)
    }

    /// The oldest view that any worker still works with.
    fn view_seen(&self) -> u64 {
        self.workers.iter().map(|worker| worker.view_seen.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    fn begin_logging(&self) {
        self.logging.store(true, Ordering::Release);
    }

    /// Every worker logs what it accepts: only then may a scan begin.
    fn everybody_logs(&self) -> bool {
        self.workers.iter().all(|worker| worker.logging_seen.load(Ordering::Acquire))
    }

    /// Whether the node may serve data, as far as the mesh is concerned.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.rebirth_under_way() && self.view().phase == Phase::Ready
    }
}

/// Enough of a lineage to tell two apart; 0 for none.
fn lineage_tag(lineage: u128) -> u64 {
    if lineage == 0 { 0 } else { (lineage as u64 ^ (lineage >> 64) as u64) | 1 }
}

/// Holds no data and never has, as far as anyone can tell.
fn is_empty<S: Storage>(store: &S, wall_ms: u64) -> bool {
    let usage = store.usage(wall_ms);
    usage.live_records == 0 && usage.tombstones == 0 && store.clear_version().hlc == Hlc::ZERO
}
