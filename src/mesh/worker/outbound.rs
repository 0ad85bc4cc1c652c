//! The dialer's end of a link: this worker's log goes out, acknowledgements come back. On the first
//! worker's links also beats and echoes, and the pulls that this node makes.

use super::apply::{BATCH, Intake, Pull};
use super::brought::Brought;
use super::ending::Ending;
use super::{Context, LinkId, MS, Rebirth, Worker, cursor_for};
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::figures::Stream;
use crate::mesh::log::{Cursor, Log};
use crate::mesh::members::{Meeting, Members, PullPlan};
use crate::mesh::surplus::latest as latest_surplus;
use crate::mesh::{Counters, Mesh, is_empty};
use crate::peer::frame::{Frame, Hello, PullBegin, Reason, Welcome};
use crate::peer::link::Link;
use crate::store::Storage;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Links that another mesh has refused are tried again after this, in milliseconds.
const REFUSED_PAUSE_MS: u64 = 5_000;
/// How often the membership hears that a pull goes on, in milliseconds.
const ANSWER_NOTED_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) address: SocketAddr,
    /// Who is expected there; `None`: a seed.
    pub(super) target: Option<Incarnation>,
    /// Who answered.
    pub(super) peer: Option<Incarnation>,
    /// Where its stream stands, once it is welcome.
    pub(super) cursor: Option<Cursor>,
    /// Since when something that was sent is not acknowledged.
    pub(super) waits_ns: Option<u64>,
    /// A restart that has to be said before anything else.
    restart: Option<u64>,
    /// The other side knows which mesh this node belongs to.
    pub(super) said_lineage: bool,
    /// The target's, once it is welcome.
    pub(super) figures: Arc<Stream>,
}

impl Outbound {
    pub(super) fn new(address: SocketAddr, target: Option<Incarnation>) -> Outbound {
        Outbound {
            address,
            target,
            peer: None,
            cursor: None,
            waits_ns: None,
            restart: None,
            said_lineage: false,
            figures: Arc::default(),
        }
    }

    pub(super) fn peer(&self) -> Option<Incarnation> {
        self.peer.or(self.target)
    }

    /// The copy is here, or a mesh was begun: the other side is told which, once.
    pub(super) fn say_lineage(&mut self, link: &mut Link, lineage: u128) {
        if !self.said_lineage && lineage != 0 {
            self.said_lineage = true;
            link.send(&Frame::Lineage(lineage));
        }
    }

    /// Has said who it is.
    pub(super) fn is_met(&self) -> bool {
        self.peer.is_some()
    }

    /// Sends what the frames so far have called for.
    pub(super) fn answer(&mut self, link: &mut Link) {
        if let Some(base) = self.restart.take() {
            link.send(&Frame::Restart { base });
        }
    }
}

/// A pull that this node makes.
#[derive(Debug)]
pub(super) struct Pulling {
    pub(super) link: LinkId,
    id: u32,
    is_full: bool,
    is_copy: bool,
    begin: Option<PullBegin>,
    begun_ns: u64,
    /// When the membership was told last that it goes on.
    noted_ns: u64,
    records: u64,
    brought: Brought,
}

impl Pulling {
    /// Records may have come.
    pub(super) fn has_begun(&self) -> bool {
        self.begin.is_some()
    }
}

impl Worker {
    pub(super) fn say_hello<S: Storage>(&mut self, id: LinkId, context: Context<'_, S>) {
        let members = self.mesh.members.lock();
        let hello = Hello {
            member: members.me().clone(),
            lineage: members.own_lineage(),
            empty: members.is_loaded() && is_empty(context.store, context.now.wall_ms),
            worker: self.index as u16,
        };
        drop(members);
        if let Some(slot) = self.slots.get_mut(&id) {
            if let super::Role::Out(out) = &mut slot.role {
                out.said_lineage = hello.lineage != 0;
            }
            slot.link.send(&Frame::Hello(hello));
        }
    }

    pub(super) fn ask(&mut self, plan: &PullPlan) {
        let link = self.targets.get(&plan.donor).and_then(|target| target.link);
        let Some((link, slot)) = link.and_then(|link| self.slots.get_mut(&link).map(|slot| (link, slot)))
        else {
            self.mesh.members.lock().fail_pull(false, &self.mesh.progress, 0);
            return;
        };
        let id = self.next_pull;
        self.next_pull = self.next_pull.wrapping_add(1);
        slot.link.send(&Frame::Pull { id, above: plan.above });
        let is_full = plan.above == Hlc::ZERO;
        let counter =
            if is_full { &self.mesh.counters.pulls_full } else { &self.mesh.counters.pulls_partial };
        counter.fetch_add(1, Ordering::Relaxed);
        self.pulling = Some(Pulling {
            link,
            id,
            is_full,
            is_copy: plan.is_copy(),
            begin: None,
            begun_ns: 0,
            noted_ns: 0,
            records: 0,
            brought: Brought::new(plan.is_copy()),
        });
    }
}

/// Moves what is new in the log into the link's output, as far as there is room.
pub(super) fn stream(log: &Log, out: &mut Outbound, link: &mut Link, awaited: u64, mesh: &Mesh) {
    let Outbound { cursor: Some(cursor), figures, .. } = out else { return };
    while link.output().len() < mesh.config.portions.output_bytes {
        match log.take(cursor) {
            Ok(Some(piece)) => {
                let ack_now = awaited >= piece.first;
                link.send(&Frame::Ops {
                    first: piece.first,
                    count: piece.count,
                    ack_now,
                    bytes: piece.bytes,
                });
                figures.count(piece.count);
            }
            Ok(None) => return,
            Err(_) => {
                // It fell off while it lagged: go on with what is new, the peer pulls the rest.
                mesh.counters.restarts.fetch_add(1, Ordering::Relaxed);
                *cursor = Cursor::behind(log.head());
                figures.restarted(log.head());
                link.send(&Frame::Restart { base: log.head() });
            }
        }
    }
}

pub(super) fn on_frame<S: Storage>(
    worker: &mut Worker,
    id: LinkId,
    out: &mut Outbound,
    frame: Frame<'_>,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    match frame {
        Frame::Welcome(welcome) if out.peer.is_none() => on_welcome(worker, id, out, &welcome, context),
        Frame::Refuse { reason, detail } => on_refusal(worker, out, reason, detail, context),
        Frame::Unknown(_) => Ok(()),
        _ if out.cursor.is_none() => Err(Ending::protocol("a frame before WELCOME")),
        Frame::Ack { applied, base, upto } => {
            if applied.max(upto) > worker.log.head() {
                return Err(Ending::protocol("an acknowledgement of what was never sent"));
            }
            if let Some(target) = out.peer.and_then(|peer| worker.targets.get_mut(&peer)) {
                target.acked = target.acked.max(applied);
                target.segment = (base, upto);
                worker.acked = true;
            }
            Ok(())
        }
        Frame::Echo(echo) => {
            if let Some(peer) = out.peer {
                let now = context.now;
                worker.mesh.members.lock().on_echo(peer, echo, now.wall_ms, now.mono_ns);
            }
            Ok(())
        }
        Frame::PullBegin(begin) => {
            let pulling = worker.pulling.as_mut().filter(|p| p.id == begin.id && p.link == id);
            let Some(pulling) = pulling else { return Ok(()) };
            let (clear, writer) = begin.clear;
            let latest = begin.stable.max(begin.floor).max(clear).max(latest_surplus(&begin.vectors));
            Ending::unless_in_time(latest, "a copy", context)?;
            let pull = Pull { brought: &mut pulling.brought, begin: &begin, donor: out.peer };
            Intake::of_pull(&worker.mesh, pull, context).clear(clear, writer)?;
            pulling.begun_ns = context.now.mono_ns;
            pulling.begin = Some(begin);
            Ok(())
        }
        Frame::Records { id: pull, writers, bytes } => {
            let pulling = worker.pulling.as_mut().filter(|p| p.id == pull && p.link == id);
            let Some(pulling) = pulling else { return Ok(()) };
            // Echoes wait behind them, on a slow link for long.
            if let Some(peer) =
                out.peer.filter(|_| context.now.mono_ns >= pulling.noted_ns + ANSWER_NOTED_MS * MS)
            {
                pulling.noted_ns = context.now.mono_ns;
                worker.mesh.members.lock().on_answer(peer, context.now.mono_ns);
            }
            let Some(begin) = &pulling.begin else {
                return Err(Ending::protocol("records before PULL_BEGIN"));
            };
            let decided = if pulling.is_copy { begin.floor } else { Hlc::ZERO };
            let pull = Pull { brought: &mut pulling.brought, begin, donor: out.peer };
            let mut intake = Intake::of_pull(&worker.mesh, pull, context);
            let mut records = Frame::records(writers, bytes);
            let mut batch = Vec::with_capacity(BATCH);
            loop {
                batch.clear();
                for record in records.by_ref().take(BATCH) {
                    let (writer, operation) =
                        record.map_err(|defect| Ending::protocol(&defect.to_string()))?;
                    // Their names would fill the table of writers, for good: nobody here will see them go.
                    let writer = if operation.hlc <= decided { Incarnation(0) } else { writer };
                    batch.push((writer, operation));
                }
                if batch.is_empty() {
                    return Ok(());
                }
                let taken = intake.take(&batch);
                pulling.records += taken.applied as u64;
                taken.ending?;
            }
        }
        Frame::Digest(digest) => {
            worker.on_digest(id, digest);
            Ok(())
        }
        Frame::PullEnd(end) => {
            if worker.pulling.as_ref().is_some_and(|p| p.id == end.id && p.link == id)
                && let Some(pulling) = worker.pulling.take()
            {
                finish(worker, pulling, &end.grown, out, context);
            }
            Ok(())
        }
        _ => Err(Ending::protocol("a frame that only a dialer sends")),
    }
}

fn finish<S>(
    worker: &Worker,
    pulling: Pulling,
    grown: &[Incarnation],
    out: &Outbound,
    context: Context<'_, S>,
) {
    let mesh = &worker.mesh;
    mesh.counters.pull_records_received.fetch_add(pulling.records, Ordering::Relaxed);
    let mut members = mesh.members.lock();
    let Some(begin) = pulling.begin else {
        mesh.counters.pulls_abandoned.fetch_add(1, Ordering::Relaxed);
        return members.fail_pull(false, &mesh.progress, context.now.mono_ns);
    };
    context.clock.observe(begin.stable.max(begin.floor));
    let latest = context.clock.latest().next();
    let is_complete = members.finish_pull(&begin, grown, &mesh.progress, latest, mesh.config.mutation);
    if !is_complete {
        members.fail_pull(true, &mesh.progress, context.now.mono_ns);
    }
    mesh.publish_floor(&members);
    let donor = out.peer.and_then(|peer| members.others().find(|member| member.info.incarnation == peer));
    let donor = donor.map_or_else(|| out.address.to_string(), |member| member.info.name.clone());
    drop(members);
    let Counters { pulls_complete, pulls_abandoned, .. } = &mesh.counters;
    let outcome = if is_complete { pulls_complete } else { pulls_abandoned };
    outcome.fetch_add(1, Ordering::Relaxed);
    if pulling.is_full && is_complete {
        let seconds = context.now.mono_ns.saturating_sub(pulling.begun_ns) as f64 / 1e9;
        let records = pulling.records;
        mesh.note(false, format!("mesh   copied {records} records from {donor} in {seconds:.1} s"));
    }
}

fn on_welcome<S: Storage>(
    worker: &mut Worker,
    id: LinkId,
    out: &mut Outbound,
    welcome: &Welcome,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    let mesh = worker.mesh.clone();
    let now_ns = context.now.mono_ns;
    let peer = welcome.member.incarnation;
    let mut info = welcome.member.clone();
    // Where it was reached is where it is.
    info.address = out.address;
    let mut members = mesh.members.lock();
    if let Some(expected) = out.target.filter(|expected| *expected != peer) {
        // Another lifetime lives there now: the one we knew is not where it was.
        members.on_refused(expected);
    }
    let empty = members.is_loaded() && is_empty(context.store, context.now.wall_ms);
    match members.meet(welcome.lineage, peer, welcome.empty, empty) {
        Meeting::Fine => {}
        // It has seen the same and starts over.
        Meeting::TheyYield => return Err(Ending::Close),
        Meeting::WeYield => return yield_to_them(&mesh, &mut members, out.address, welcome.lineage),
        Meeting::Conflict => {
            members.met_stranger(peer, &mesh.progress);
            let lasts = members.has_mesh();
            drop(members);
            // Whoever was here before may be looked for for long.
            pause_dials(worker, out, now_ns);
            return conflict(&mesh, &info.name, lasts);
        }
    }
    if let Err((reason, detail)) = members.add(&info, &mesh.progress, false, now_ns) {
        if reason == Reason::Fenced {
            members.contested(peer, now_ns);
        }
        return Err(Ending::Refuse(reason, detail.to_owned()));
    }
    if !welcome.joining {
        members.adopt_lineage(welcome.lineage);
    }
    members.has_said(peer, welcome.lineage);
    mesh.begin_logging();
    mesh.publish(&members);
    drop(members);
    // The seed has a name now; links to members are kept by their incarnation.
    if let Some(seed) = worker.seeds.get_mut(&out.address)
        && seed.link == Some(id)
    {
        worker.seeds.remove(&out.address);
    }
    if let Some(expected) = out.target.filter(|expected| *expected != peer)
        && let Some(target) = worker.targets.get_mut(&expected)
        && target.link == Some(id)
    {
        target.link = None;
        target.retry_ns = now_ns + 1_000 * MS;
    }
    out.peer = Some(peer);
    worker.take_up(context);
    let Some(target) = worker.targets.get_mut(&peer) else { return Err(Ending::Close) };
    if target.link.is_some_and(|other| other != id) {
        // The dial that went to it by name is enough.
        return Err(Ending::Close);
    }
    target.link = Some(id);
    target.backoff_ms = crate::limits::REDIAL_MS;
    target.acked = welcome.applied.min(worker.log.head());
    target.segment = (0, 0);
    if welcome.applied > worker.log.head() {
        return Err(Ending::protocol("more was applied than was ever sent"));
    }
    let (cursor, restarts) = cursor_for(&worker.log, welcome.applied, welcome.joining);
    let counter = if restarts { &mesh.counters.restarts } else { &mesh.counters.resumes };
    counter.fetch_add(1, Ordering::Relaxed);
    out.cursor = Some(cursor);
    out.restart = restarts.then(|| cursor.taken());
    out.figures = Arc::clone(&target.figures);
    if restarts {
        out.figures.restarted(cursor.taken());
    }
    // The first beat and mark should not wait for their turn.
    (worker.beat_ns, worker.mark_ns) = (0, 0);
    Ok(())
}

fn yield_to_them(
    mesh: &Mesh,
    members: &mut Members,
    address: SocketAddr,
    towards: u128,
) -> Result<(), Ending> {
    // The next lifetime must find them too, however this one came to know of them.
    members.discovered(&[address]);
    let reason = "it is empty and found a mesh that is not".to_owned();
    mesh.ask_rebirth(Rebirth { reason, only_if_empty: true, towards });
    Err(Ending::Close)
}

fn conflict(mesh: &Mesh, name: &str, lasts: bool) -> Result<(), Ending> {
    if lasts {
        let text = format!(
            "mesh   {name} belongs to another mesh and both hold data: they stay apart until one is restarted"
        );
        mesh.complain(text.clone(), text);
    }
    Err(Ending::Refuse(Reason::Lineage, "both hold data of their own".to_owned()))
}

fn on_refusal<S>(
    worker: &mut Worker,
    out: &mut Outbound,
    reason: Reason,
    detail: &str,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    let mesh = &worker.mesh;
    match reason {
        Reason::Yourself => {
            let mut members = mesh.members.lock();
            members.found_self(out.address);
            // Whoever was known to be there is not: we are.
            if let Some(gone) = out.target {
                members.on_refused(gone);
            }
        }
        Reason::Yield => return yield_to_them(mesh, &mut mesh.members.lock(), out.address, 0),
        Reason::Removed => {
            let reason = format!("{} says that it was {detail}", out.address);
            mesh.ask_rebirth(Rebirth::because(reason));
        }
        Reason::Fenced => {
            if let Some(by) = out.peer() {
                mesh.members.lock().on_fenced(by, context.now.mono_ns);
            }
        }
        Reason::Name => {
            let by_owner = detail == "it is this node's name";
            mesh.members.lock().name_refused(by_owner, context.now.mono_ns);
        }
        Reason::Lineage => {
            // Only who has said who it is: perhaps it is somebody else, where the one that we look for used to be.
            let mut members = mesh.members.lock();
            if let Some(peer) = out.peer.filter(|_| !members.is_loaded()) {
                members.disown(peer, &mesh.progress);
            }
            drop(members);
            let text = format!("mesh   {} belongs to another mesh: {detail}", out.address);
            mesh.complain(text.clone(), text);
        }
        _ if reason.is_trouble() => {
            let cause = format!("{} refuses this node: {}", out.address, reason.label());
            mesh.complain(cause.clone(), format!("peer   {cause}: {detail}"));
        }
        _ => {}
    }
    if matches!(reason, Reason::Lineage | Reason::Full | Reason::Memory) {
        pause_dials(worker, out, context.now.mono_ns);
    }
    Err(Ending::Close)
}

/// The refusal will be the same for a while.
fn pause_dials(worker: &mut Worker, out: &Outbound, now_ns: u64) {
    if let Some(target) = out.peer().and_then(|peer| worker.targets.get_mut(&peer)) {
        target.retry_ns = now_ns + REFUSED_PAUSE_MS * MS;
        target.backoff_ms = REFUSED_PAUSE_MS;
    }
}
