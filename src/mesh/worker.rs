//! One worker's part in the mesh: the log of the writes that it accepted, a link to each member to stream it
//! on, and the links that other members' workers have opened to it.
//!
//! Links are one-way: the dialer's writes, marks and beats go out, acknowledgements and answers come back.
//! The first worker's links also carry the beats and the pulls; it is the one that ticks the membership.
//!
//! Budget of a write that is logged: one copy into the log, one copy a peer into its link's output (and its
//! encryption, if any); no allocation, no lock.

mod apply;
mod brought;
mod collect;
mod compare;
mod crowd;
mod ending;
mod inbound;
mod outbound;
mod rest;
mod targets;
mod ticks;

use super::log::{Cursor, Log};
use super::view::View;
use super::{Context, Mesh, Rebirth};
use crate::base::random::Random;
use crate::base::version::Incarnation;
use crate::limits::{REDIAL_MS, REDIAL_MS_MAX};
use crate::peer::frame::{Frame, Phase, Reason};
use crate::peer::link::{Link, LinkError};
use crate::peer::operation::Operation;
use crate::store::Storage;
use ending::Ending;
use inbound::Inbound;
use outbound::{Outbound, Pulling};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use targets::{Seed, Target};

const MS: u64 = 1_000_000;
/// A link on which nothing came for this long is closed: marks come all the time.
const SILENT_MS: u64 = 15_000;

/// A link's name, given by its worker, never used twice.
pub type LinkId = u64;

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Dial {
        link: LinkId,
        address: SocketAddr,
    },
    /// Write what can be written of its output, then close it. Its worker has forgotten it already.
    Close {
        link: LinkId,
    },
}

/// How many nodes hold a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acks {
    /// This node included.
    pub have: u32,
    pub needed: u32,
}

impl Acks {
    #[must_use]
    pub const fn is_enough(self) -> bool {
        self.have >= self.needed
    }
}

/// How many nodes must hold a write: see the public documentation of `w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Quorum,
    All,
    Count(u32),
}

#[derive(Debug)]
enum Role {
    Out(Outbound),
    In(Inbound),
}

impl Role {
    /// Of whoever is at the other end.
    fn ip(&self) -> IpAddr {
        match self {
            Role::Out(out) => out.address.ip(),
            Role::In(inbound) => inbound.remote.ip(),
        }
    }

    /// The other end has said who it is, and was let in.
    fn is_met(&self) -> bool {
        match self {
            Role::Out(out) => out.is_met(),
            Role::In(inbound) => !inbound.is_half_open(),
        }
    }
}

#[derive(Debug)]
struct Slot {
    link: Link,
    role: Role,
    opened_ns: u64,
    heard_ns: u64,
    connected: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    mesh: Arc<Mesh>,
    epoch: u64,
    view: Arc<View>,
    view_version: u64,
    logging: bool,
    log: Log,
    life: u64,
    slots: BTreeMap<LinkId, Slot>,
    next_link: LinkId,
    targets: BTreeMap<Incarnation, Target>,
    /// Dials to addresses of whom nobody knows yet who answers: when to try again.
    seeds: BTreeMap<SocketAddr, Seed>,
    effects: Vec<Effect>,
    random: Random,
    mark_ns: u64,
    beat_ns: u64,
    rest: rest::Rest,
    /// Somebody waits for this operation to be acknowledged.
    awaited: u64,
    collector: collect::Collector,
    /// Acknowledgements have come since the last look.
    acked: bool,
    pulling: Option<Pulling>,
    next_pull: u32,
    comparing: Option<compare::Comparing>,
    crowd: crowd::Crowd,
    compare_ns: u64,
    /// Of its own, so that comparing does not change when links are dialed.
    compare_random: Random,
    digests: u32,
    /// Closed links whose last output the driver still has to write.
    last_words: BTreeMap<LinkId, Link>,
}

impl Worker {
    #[must_use]
    pub fn new(mesh: Arc<Mesh>, index: usize) -> Worker {
        let seed = mesh.config.random ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9);
        Worker {
            index,
            epoch: mesh.epoch.load(Ordering::Acquire),
            view: mesh.view(),
            view_version: 0,
            logging: false,
            log: Log::new(mesh.config.log_bytes),
            life: 0,
            slots: BTreeMap::new(),
            next_link: 1,
            targets: BTreeMap::new(),
            seeds: BTreeMap::new(),
            effects: Vec::new(),
            random: Random::new(seed),
            mark_ns: 0,
            beat_ns: 0,
            rest: rest::Rest::default(),
            awaited: 0,
            collector: collect::Collector::default(),
            acked: false,
            pulling: None,
            next_pull: 1,
            comparing: None,
            crowd: crowd::Crowd::default(),
            compare_ns: 0,
            compare_random: Random::new(seed ^ 0x636f_6d70),
            digests: 0,
            last_words: BTreeMap::new(),
            mesh,
        }
    }

    #[must_use]
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// The view that this worker works with.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Whether data may be served, as far as this worker knows.
    #[inline]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.view.phase == Phase::Ready && !self.mesh.rebirth_under_way()
    }

    /// How often everything was dropped: what was written before is not here any more.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// The log, for figures.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Starts a turn: takes up what others have published. Cheap when nothing has changed.
    #[inline]
    pub fn begin<S: Storage>(&mut self, context: Context<'_, S>) {
        let published = self.mesh.view_version.load(Ordering::Acquire);
        let epoch = self.mesh.epoch.load(Ordering::Acquire);
        let logging = self.mesh.logging.load(Ordering::Acquire);
        if published != self.view_version || epoch != self.epoch || logging != self.logging {
            self.take_up(context);
        }
    }

    #[cold]
    fn take_up<S: Storage>(&mut self, context: Context<'_, S>) {
        let epoch = self.mesh.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            self.epoch = epoch;
            if self.mesh.drops.load(Ordering::Acquire) {
                self.drop_everything();
            }
            self.mesh.workers[self.index].epoch_seen.store(epoch, Ordering::Release);
        }
        if self.mesh.logging.load(Ordering::Acquire) && !self.logging {
            self.logging = true;
            self.mesh.workers[self.index].logging_seen.store(true, Ordering::Release);
        }
        self.view = self.mesh.view();
        self.view_version = self.view.version;
        self.follow_view(context);
        self.mesh.workers[self.index].view_seen.store(self.view_version, Ordering::Release);
    }

    /// A new lifetime begins: links and log belong to the old one.
    fn drop_everything(&mut self) {
        let links: Vec<LinkId> = self.slots.keys().copied().collect();
        for link in links {
            self.refuse(link, Reason::Leaving, "starting over");
        }
        self.life += 1;
        self.log = Log::new(self.mesh.config.log_bytes);
        for target in std::mem::take(&mut self.targets).into_keys() {
            self.mesh.figures.close(target, self.index);
        }
        self.seeds.clear();
        (self.pulling, self.comparing) = (None, None);
        (self.awaited, self.collector) = (0, collect::Collector::default());
        self.acked = true;
        let facts = &self.mesh.workers[self.index];
        facts.head.store(0, Ordering::Release);
        facts.closed.store(0, Ordering::Release);
    }

    /// Whether writes have to be logged: there is, or was, a peer.
    #[inline]
    #[must_use]
    pub fn is_logging(&self) -> bool {
        self.logging
    }

    /// Logs a write that the store has taken, and returns its number.
    #[inline]
    pub fn append(&mut self, operation: &Operation<'_>) -> u64 {
        let seq = self.log.append(operation);
        self.mesh.workers[self.index].head.store(seq, Ordering::Release);
        seq
    }

    /// How many hold this write, and how many should.
    #[must_use]
    pub fn acks(&self, seq: u64, wanted: Wanted) -> Acks {
        // Who is still making its copy may have to begin anew, and would hold it no more.
        let counted = || self.targets.values().filter(|target| target.counted);
        let needed = match wanted {
            Wanted::Quorum => self.view.size as u32 / 2 + 1,
            Wanted::Count(needed) => needed,
            Wanted::All => 1 + counted().count() as u32,
        };
        Acks { have: 1 + counted().filter(|target| target.holds(seq)).count() as u32, needed }
    }

    /// Asks the peers to acknowledge this write at once.
    pub fn await_acks(&mut self, seq: u64) {
        self.awaited = self.awaited.max(seq);
    }

    /// Whether acknowledgements have come, or the view has changed, since the last call.
    pub fn take_acked(&mut self) -> bool {
        std::mem::take(&mut self.acked)
    }

    /// What the driver has to do.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// A peer has connected.
    pub fn accepted<S>(&mut self, remote: SocketAddr, context: Context<'_, S>) -> LinkId {
        let half_open =
            self.slots.iter().filter(|(_, slot)| matches!(&slot.role, Role::In(i) if i.is_half_open()));
        let mut oldest: Vec<(u64, LinkId)> = half_open.map(|(id, slot)| (slot.opened_ns, *id)).collect();
        if oldest.len() >= crate::limits::HALF_OPEN_LINKS_MAX {
            // A flood of strangers must not keep a member out.
            oldest.sort_unstable();
            self.refuse(oldest[0].1, Reason::Full, "too many links that say nothing");
        }
        let link = Link::accept(self.mesh.config.keys.clone());
        self.insert(link, Role::In(Inbound::new(remote)), context.now.mono_ns, true)
    }

    fn insert(&mut self, link: Link, role: Role, now_ns: u64, connected: bool) -> LinkId {
        match &role {
            // An address behind which nobody is known is dialed again and again.
            Role::Out(out) if out.target.is_none() => self.rest.disturb(),
            _ => self.rest.stir(now_ns),
        }
        let id = self.next_link;
        self.next_link += 1;
        self.slots.insert(id, Slot { link, role, opened_ns: now_ns, heard_ns: now_ns, connected });
        id
    }

    /// A dial has succeeded.
    pub fn connected<S>(&mut self, id: LinkId, context: Context<'_, S>) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.connected = true;
            slot.heard_ns = context.now.mono_ns;
        }
    }

    /// A dial has failed; `refused`: nobody listens there.
    pub fn dial_failed<S>(&mut self, id: LinkId, refused: bool, context: Context<'_, S>) {
        let Some(slot) = self.slots.remove(&id) else { return };
        if let Role::Out(out) = slot.role {
            if let Some(target) = out.target.filter(|_| refused) {
                self.mesh.members.lock().on_refused(target);
            }
            self.unlink(id, &out, context.now.mono_ns);
        }
    }

    /// A link's connection has ended.
    pub fn closed<S>(&mut self, id: LinkId, context: Context<'_, S>) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.after_close(id, slot.role, context.now.mono_ns);
    }

    fn after_close(&mut self, id: LinkId, role: Role, now_ns: u64) {
        if let Role::Out(out) = role {
            self.unlink(id, &out, now_ns);
            if let Some(pulling) = self.pulling.take_if(|pulling| pulling.link == id) {
                self.mesh.counters.pulls_abandoned.fetch_add(1, Ordering::Relaxed);
                self.mesh.members.lock().fail_pull(pulling.has_begun(), &self.mesh.progress, now_ns);
            }
        }
    }

    /// The outbound link is gone: when to dial again.
    fn unlink(&mut self, id: LinkId, out: &Outbound, now_ns: u64) {
        self.rest.disturb();
        let jitter = self.random.below(REDIAL_MS);
        if let Some(target) = out.peer().and_then(|peer| self.targets.get_mut(&peer))
            && target.link == Some(id)
        {
            target.link = None;
            target.retry_ns = now_ns + (target.backoff_ms + jitter) * MS;
            target.backoff_ms = (target.backoff_ms * 2).min(REDIAL_MS_MAX);
        }
        if let Some(seed) = self.seeds.get_mut(&out.address)
            && seed.link == Some(id)
        {
            seed.failed(now_ns, jitter);
        }
    }

    /// Closes a link without a word; its dialer comes again.
    fn forget_link(&mut self, id: LinkId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.effects.push(Effect::Close { link: id });
            self.after_close(id, slot.role, 0);
        }
    }

    /// Says why, and closes.
    fn refuse(&mut self, id: LinkId, reason: Reason, detail: &str) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        if slot.link.is_established() {
            slot.link.send(&Frame::Refuse { reason, detail });
        }
        self.mesh.counters.refusals[reason as usize - 1].fetch_add(1, Ordering::Relaxed);
        if reason == Reason::Memory {
            self.mesh.unfit_ns.store(slot.heard_ns, Ordering::Release);
        }
        if reason.is_trouble() {
            let cause = format!("{} refused: {}", slot.role.ip(), reason.label());
            self.mesh.complain(cause.clone(), format!("peer   {cause}: {detail}"));
        }
        self.effects.push(Effect::Close { link: id });
        let now_ns = slot.heard_ns;
        self.last_words.insert(id, slot.link);
        self.after_close(id, slot.role, now_ns);
    }

    /// Bytes of a link have come.
    pub fn received<S: Storage>(&mut self, id: LinkId, bytes: &[u8], context: Context<'_, S>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.heard_ns = context.now.mono_ns;
        match slot.link.receive(bytes) {
            Ok(false) => {}
            Ok(true) => {
                if let Role::Out(_) = slot.role {
                    self.say_hello(id, context);
                }
            }
            Err(error) => return self.broken(id, error, context.now.mono_ns),
        }
        self.read_frames(id, context);
    }

    fn read_frames<S: Storage>(&mut self, id: LinkId, context: Context<'_, S>) {
        let epoch = self.epoch;
        // Taken out, so that its frames can be borrowed while the rest of the worker is changed.
        let Some(mut slot) = self.slots.remove(&id) else { return };
        loop {
            let Slot { link, role, .. } = &mut slot;
            let verdict = match link.next_frame() {
                Ok(Some(frame)) => {
                    self.rest.hear(&frame, context.now.mono_ns);
                    match role {
                        Role::Out(out) => outbound::on_frame(self, id, out, frame, context),
                        Role::In(inbound) => inbound::on_frame(self, inbound, frame, context),
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.slots.insert(id, slot);
                    return self.broken(id, error, context.now.mono_ns);
                }
            };
            match verdict {
                Ok(()) => {}
                Err(Ending::Refuse(reason, detail)) => {
                    if let Role::In(inbound) = &mut slot.role {
                        // Who refuses.
                        inbound.answer(&mut slot.link);
                    }
                    self.slots.insert(id, slot);
                    return self.refuse(id, reason, &detail);
                }
                Err(Ending::Close) => {
                    self.effects.push(Effect::Close { link: id });
                    return self.after_close(id, slot.role, context.now.mono_ns);
                }
            }
            match &mut slot.role {
                Role::Out(out) => out.answer(&mut slot.link),
                Role::In(inbound) => inbound.answer(&mut slot.link),
            }
            if slot.role.is_met() {
                slot.link.met();
            }
        }
        self.slots.insert(id, slot);
        if self.epoch != epoch {
            // A new lifetime has begun meanwhile; this link belonged to the old one.
            self.refuse(id, Reason::Leaving, "starting over");
        }
    }

    fn broken(&mut self, id: LinkId, error: LinkError, now_ns: u64) {
        let Some(mut slot) = self.slots.remove(&id) else { return };
        self.mesh.counters.link_errors[error.index()].fetch_add(1, Ordering::Relaxed);
        let who = match &slot.role {
            Role::Out(out) => format!("to {}", out.address),
            Role::In(inbound) => format!("from {}", inbound.remote),
        };
        let cause = format!("{} {}", slot.role.ip(), error.index());
        self.mesh.complain(cause, format!("peer   link {who} closed: {error}"));
        if slot.link.is_established() {
            let detail = error.to_string();
            slot.link.send(&Frame::Refuse { reason: Reason::Protocol, detail: &detail });
        }
        self.effects.push(Effect::Close { link: id });
        self.last_words.insert(id, slot.link);
        self.after_close(id, slot.role, now_ns);
    }

    /// What waits to be written on a link, closed ones included.
    #[must_use]
    pub fn output(&self, id: LinkId) -> &[u8] {
        let link = self.slots.get(&id).map(|slot| &slot.link).or_else(|| self.last_words.get(&id));
        link.map_or(&[], Link::output)
    }

    /// So much of it has been written.
    pub fn wrote(&mut self, id: LinkId, count: usize) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.link.wrote(count);
        }
    }

    /// The driver has closed the link.
    pub fn forget_last_words(&mut self, id: LinkId) {
        self.last_words.remove(&id);
    }

    /// Connected links that have something to write.
    pub fn writable(&self, into: &mut Vec<LinkId>) {
        into.clear();
        let ready = self.slots.iter().filter(|(_, slot)| slot.connected && !slot.link.output().is_empty());
        into.extend(ready.map(|(id, _)| *id));
    }

    /// Moves what is new from the log and from scans into the links' outputs, as far as there is room, and
    /// acknowledges what has come. True while there is more to do at once.
    pub fn pump<S: Storage>(&mut self, context: Context<'_, S>) -> bool {
        let collects = self.collector.waits(self.log.head(), self.awaited, context.now.mono_ns);
        let mut more = collects;
        let can_scan = self.mesh.everybody_logs();
        let lineage = self.mesh.lineage.load(Ordering::Acquire);
        for slot in self.slots.values_mut() {
            match &mut slot.role {
                Role::Out(out) => {
                    if out.cursor.is_none() {
                        continue;
                    }
                    if !out.said_lineage {
                        // Without one nothing can have been written.
                        let lineage = if lineage == 0 { 0 } else { self.mesh.members.lock().own_lineage() };
                        if lineage == 0 {
                            continue;
                        }
                        out.say_lineage(&mut slot.link, lineage);
                    }
                    if !collects {
                        outbound::stream(&self.log, out, &mut slot.link, self.awaited, &self.mesh);
                    }
                }
                Role::In(inbound) => {
                    inbound.acknowledge(&mut slot.link, context.now.mono_ns);
                    if can_scan {
                        more |= inbound.go_on_scanning(&self.mesh, &mut slot.link, context);
                    }
                }
            }
        }
        more
    }

    /// What time brings; whenever it is due ([`Worker::due_ns`]), or sooner.
    pub fn tick<S: Storage>(&mut self, context: Context<'_, S>) {
        self.begin(context);
        let now_ns = context.now.mono_ns;
        self.look_for_quiet(now_ns);
        let beat_ns = self.beat_ns;
        if self.index == 0 {
            self.tick_members(context);
        }
        self.close_the_late(now_ns);
        if self.mesh.rebirth_under_way() {
            return;
        }
        // One waking for both.
        let with_beat = self.is_quiet() && self.beat_ns != beat_ns;
        if self.logging && (with_beat || now_ns >= self.mark_ns + self.rest.mark_ms() * MS) {
            self.mark_ns = now_ns;
            self.mark(context);
        }
        self.dial(now_ns);
        let acked = self.targets.values().map(|target| target.acked).min();
        self.log.trim(acked.unwrap_or(self.log.head()));
        self.publish_figures();
        self.compare(context);
        self.lie_down(now_ns);
    }
}

/// What a cursor tells of its link: where a stream begins.
fn cursor_for(log: &Log, applied: u64, joining: bool) -> (Cursor, bool) {
    let resumes = log.reaches_back_to(applied) && (!joining || applied == log.head());
    if resumes { (Cursor::behind(applied), false) } else { (Cursor::behind(log.head()), true) }
}
