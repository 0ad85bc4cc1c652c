//! The acceptor's end of a link: another member's worker streams its writes here; they are applied and
//! acknowledged. Its beats are taken in, and its pulls are served.

use super::apply::{BATCH, Intake};
use super::ending::Ending;
use super::{Context, MS, Rebirth, Worker};
use crate::base::version::Incarnation;
use crate::limits::{ACK_MS, ACK_OPERATIONS};
use crate::mesh::compare::Digesting;
use crate::mesh::members::{Meeting, Members};
use crate::mesh::progress::Origin;
use crate::mesh::scan::Scan;
use crate::mesh::surplus::latest as latest_surplus;
use crate::mesh::{Mesh, Mutation, is_empty, lineage_tag};
use crate::peer::frame::{Beat, Echo, Frame, Held, Hello, Phase, PullBegin, PullEnd, Reason, Welcome};
use crate::peer::link::Link;
use crate::store::Storage;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) remote: SocketAddr,
    from: Option<From>,
    welcome: Option<Welcome>,
    echo: Option<Echo>,
    scan: Option<Box<Scan>>,
    /// For a comparison.
    pub(super) digesting: Option<Box<Digesting>>,
    /// Operations applied since the last acknowledgement.
    unacked: u64,
    ack_now: bool,
    acked_ns: u64,
}

#[derive(Debug)]
struct From {
    origin: Arc<Origin>,
    incarnation: Incarnation,
    worker: usize,
    /// Of which mesh it said to be.
    lineage: u64,
    /// The last operation that this link has brought, or did not need to.
    position: u64,
}

impl Inbound {
    pub(super) fn new(remote: SocketAddr) -> Inbound {
        Inbound {
            remote,
            from: None,
            welcome: None,
            echo: None,
            scan: None,
            digesting: None,
            unacked: 0,
            ack_now: false,
            acked_ns: 0,
        }
    }

    pub(super) fn peer(&self) -> Option<Incarnation> {
        self.from.as_ref().map(|from| from.incarnation)
    }

    /// Has not said who it is.
    pub(super) fn is_half_open(&self) -> bool {
        self.from.is_none()
    }

    /// Nothing is to be sent to it that a turn or a tick would go on with.
    pub(super) fn is_at_rest(&self) -> bool {
        self.scan.is_none() && self.digesting.is_none() && self.unacked == 0 && !self.ack_now
    }

    /// Sends what the frames so far have called for.
    pub(super) fn answer(&mut self, link: &mut Link) {
        if let Some(welcome) = self.welcome.take() {
            link.send(&Frame::Welcome(welcome));
        }
        if let Some(echo) = self.echo.take() {
            link.send(&Frame::Echo(echo));
        }
    }

    pub(super) fn acknowledge(&mut self, link: &mut Link, now_ns: u64) {
        let Some(from) = &self.from else { return };
        let due = self.ack_now
            || self.unacked >= ACK_OPERATIONS
            || (self.unacked > 0 && now_ns >= self.acked_ns + ACK_MS * MS);
        if !due {
            return;
        }
        if from.origin.is_void() {
            return;
        }
        let Some(stream) = from.origin.stream(from.worker) else { return };
        let (base, upto) = stream.range_of(from.position).unwrap_or((0, 0));
        let ack = Frame::Ack { applied: stream.applied(), base, upto };
        drop(stream);
        link.send(&ack);
        (self.unacked, self.ack_now, self.acked_ns) = (0, false, now_ns);
    }

    /// Sends the next piece of the pull that is being served. True if there is more.
    pub(super) fn go_on_scanning<S: Storage>(
        &mut self,
        mesh: &Mesh,
        link: &mut Link,
        context: Context<'_, S>,
    ) -> bool {
        let Some(scan) = &mut self.scan else { return false };
        if link.output().len() >= mesh.config.portions.output_bytes {
            return false;
        }
        if !scan.has_begun() {
            // Before the scan: what it cannot miss.
            let clear = context.store.clear_version();
            let writer = context.store.incarnation(clear.writer).unwrap_or(Incarnation(0));
            let members = mesh.members.lock();
            let begin = PullBegin {
                id: scan.id,
                lineage: members.lineage(),
                floor: members.floor(),
                stable: members.greatest_stable(),
                clear: (clear.hlc, writer),
                vectors: members.vectors(&mesh.progress).into_iter().chain([mesh.own_vector()]).collect(),
            };
            drop(members);
            scan.begin(clear, begin.vectors.clone(), context.store);
            link.send(&Frame::PullBegin(begin));
        }
        let (is_over, sent) = scan.step(context, mesh.config.portions, &mut |frame| link.send(frame));
        mesh.counters.pull_records_sent.fetch_add(sent, Ordering::Relaxed);
        if scan.is_spoilt(context.store) {
            return true;
        }
        if is_over {
            let grown = scan.grown(&mesh.progress);
            link.send(&Frame::PullEnd(PullEnd { id: scan.id, grown }));
            self.scan = None;
        }
        !is_over
    }
}

pub(super) fn on_frame<S: Storage>(
    worker: &mut Worker,
    inbound: &mut Inbound,
    frame: Frame<'_>,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    let Some(from) = &mut inbound.from else {
        return match frame {
            Frame::Hello(hello) => on_hello(worker, inbound, &hello, context),
            Frame::Refuse { .. } => Err(Ending::Close),
            Frame::Unknown(_) => Ok(()),
            _ => Err(Ending::protocol("a frame before HELLO")),
        };
    };
    let ours = worker.mesh.lineage.load(Ordering::Acquire);
    if ours != 0 && from.lineage != 0 && ours != from.lineage {
        // Both have found their mesh since, and it is not the same. Perhaps one of them is empty and gives way: that is for
        // the next HELLO to find.
        worker.mesh.members.lock().disown(from.incarnation, &worker.mesh.progress);
        return Err(Ending::Refuse(Reason::Lineage, "of another mesh".to_owned()));
    }
    let lifetime = from.incarnation;
    // Its streams have ended: it was removed, or given up by this node alone.
    let over = || {
        let refusal = worker.mesh.members.lock().refusal_of(lifetime);
        let (reason, detail) = refusal.unwrap_or((Reason::Removed, "removed"));
        Ending::Refuse(reason, detail.to_owned())
    };
    match frame {
        Frame::Lineage(lineage) => {
            from.lineage = lineage_tag(lineage);
            let mut members = worker.mesh.members.lock();
            members.adopt_lineage(lineage);
            members.has_said(from.incarnation, lineage);
            worker.mesh.publish(&members);
            Ok(())
        }
        Frame::Ops { .. } if from.lineage == 0 => Err(Ending::protocol("operations without a lineage")),
        Frame::Ops { first, count, ack_now, bytes } => {
            let mut intake = Intake::of_stream(&worker.mesh, &from.origin, context);
            let mut stream = from.origin.stream(from.worker).ok_or_else(over)?;
            if first > from.position + 1 {
                return Err(Ending::Refuse(Reason::Gap, "operations are missing".to_owned()));
            }
            let mut operations = Frame::operations(bytes, count);
            for known in operations.by_ref().take((from.position + 1 - first) as usize) {
                known.map_err(|defect| Ending::protocol(&defect.to_string()))?;
            }
            let mut batch = Vec::with_capacity(BATCH.min(count as usize));
            let mut ending = Ok(());
            let (mut applied, mut superseded) = (0, 0);
            while ending.is_ok() {
                batch.clear();
                for operation in operations.by_ref().take(BATCH) {
                    match operation {
                        Ok(operation) => batch.push((from.incarnation, operation)),
                        // What came before it counts.
                        Err(defect) => ending = Err(Ending::protocol(&defect.to_string())),
                    }
                }
                if batch.is_empty() {
                    break;
                }
                let taken = intake.take(&batch);
                let position = from.position + taken.applied as u64;
                if let Some((first, last)) = taken.late {
                    let is_held = |index: usize| stream.contains(from.position + 1 + index as u64);
                    // What a pull has brought already may come again; anything else was written by somebody who
                    // has been left behind, and is held by nobody.
                    if !(is_held(first) && is_held(last)) && from.origin.void() {
                        let text = "mesh   a member's writes came below the floor: it was left behind, they do not count";
                        worker.mesh.note(true, text);
                    }
                }
                stream.insert(from.position, position);
                from.position = position;
                applied += taken.applied as u64;
                superseded += taken.superseded as u64;
                ending = ending.and(taken.ending);
            }
            drop(stream);
            from.origin.applied_total.fetch_add(applied, Ordering::Relaxed);
            from.origin.superseded_total.fetch_add(superseded, Ordering::Relaxed);
            ending?;
            inbound.unacked += u64::from(count);
            inbound.ack_now |= ack_now;
            Ok(())
        }
        Frame::Restart { base } => {
            let mut stream = from.origin.stream(from.worker).ok_or_else(over)?;
            if stream.held().ranges.len() >= worker.mesh.config.portions.ranges {
                return Err(Ending::Refuse(Reason::Gap, "too many gaps".to_owned()));
            }
            if worker.mesh.config.mutation == Mutation::AcceptGaps {
                stream.insert(0, base);
            }
            stream.restart(base);
            from.position = base;
            Ok(())
        }
        Frame::Mark { seq, closed } => {
            Ending::unless_in_time(closed, "a mark", context)?;
            let mut stream = from.origin.stream(from.worker).ok_or_else(over)?;
            if from.position < seq {
                return Err(Ending::protocol("a mark ahead of its operations"));
            }
            if worker.mesh.config.mutation == Mutation::ClosedDespiteGap {
                stream.merge(&Held { applied: 0, closed, ranges: Vec::new() });
            }
            stream.mark(seq, closed);
            Ok(())
        }
        Frame::Beat(mut beat) => {
            if ours == 0 || from.lineage == 0 {
                // Who they are strangers to nobody knows.
                beat.strangers.clear();
            }
            let from = from.incarnation;
            on_beat(worker, inbound, from, beat, context)
        }
        Frame::Pull { id, above } => {
            inbound.scan = Some(Box::new(Scan::new(id, above)));
            Ok(())
        }
        Frame::DigestAsk(ask) => {
            let can = worker.mesh.is_comparable(from.incarnation, &ask);
            let digesting = if can { Digesting::new(ask) } else { Digesting::refused(ask) };
            inbound.digesting = Some(Box::new(digesting));
            Ok(())
        }
        Frame::Refuse { .. } => Err(Ending::Close),
        Frame::Unknown(_) => Ok(()),
        _ => Err(Ending::protocol("a frame that only an acceptor sends")),
    }
}

fn on_hello<S: Storage>(
    worker: &mut Worker,
    inbound: &mut Inbound,
    hello: &Hello,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    let mesh = Arc::clone(&worker.mesh);
    if mesh.rebirth_under_way() {
        return Err(Ending::Refuse(Reason::Leaving, "starting over".to_owned()));
    }
    if hello.worker >= hello.member.workers {
        return Err(Ending::protocol("a worker beyond the number of workers"));
    }
    let mut info = hello.member.clone();
    if info.address.ip().is_unspecified() {
        info.address.set_ip(inbound.remote.ip().to_canonical());
    }
    let mut members = mesh.members.lock();
    members.unlisted_lives(info.incarnation);
    let empty = members.is_loaded() && is_empty(context.store, context.now.wall_ms);
    match members.meet(hello.lineage, info.incarnation, hello.empty, empty) {
        Meeting::Fine => {}
        Meeting::WeYield => {
            // Or the next lifetime may find an empty mesh again, and never this one.
            members.discovered(&[info.address]);
            let reason = "it is empty and was found by a mesh that is not".to_owned();
            mesh.ask_rebirth(Rebirth { reason, only_if_empty: true, towards: hello.lineage });
            return Err(Ending::Refuse(Reason::Leaving, "starting over".to_owned()));
        }
        Meeting::TheyYield => {
            // To whom: or the next lifetime would as soon go back to where it comes from.
            inbound.welcome = Some(introduction(&members, empty));
            return Err(Ending::Refuse(Reason::Yield, "start over and join".to_owned()));
        }
        Meeting::Conflict => {
            let name = &info.name;
            members.met_stranger(info.incarnation, &mesh.progress);
            if hello.empty && !members.has_mesh() {
                // They would give way to the lineage in WELCOME.
                let detail = "it waits for another mesh, of which nobody is there";
                return Err(Ending::Refuse(Reason::Lineage, detail.to_owned()));
            }
            inbound.welcome = Some(introduction(&members, empty));
            let text = format!("mesh   {name} belongs to another mesh; both hold data");
            mesh.complain(text.clone(), text);
            return Err(Ending::Refuse(Reason::Lineage, "both hold data of their own".to_owned()));
        }
    }
    if let Err((reason, detail)) = members.add(&info, &mesh.progress, false, context.now.mono_ns) {
        if reason == Reason::Lineage {
            inbound.welcome = Some(introduction(&members, empty));
        }
        return Err(Ending::Refuse(reason, detail.to_owned()));
    }
    members.adopt_lineage(hello.lineage);
    members.has_said(info.incarnation, hello.lineage);
    let origin = mesh.progress.ensure(info.incarnation, usize::from(info.workers));
    let index = usize::from(hello.worker);
    let Some(applied) = origin.stream(index).map(|stream| stream.applied()) else {
        return Err(Ending::Refuse(Reason::Removed, "removed".to_owned()));
    };
    // Some of it was ignored, so that it does not count as held.
    let applied = if origin.is_void() { 0 } else { applied };
    let lineage = members.own_lineage();
    inbound.welcome = Some(Welcome { lineage, applied, ..introduction(&members, empty) });
    mesh.begin_logging();
    mesh.publish(&members);
    drop(members);
    inbound.from = Some(From {
        origin,
        incarnation: info.incarnation,
        worker: index,
        lineage: lineage_tag(hello.lineage),
        position: applied,
    });
    worker.take_up(context);
    Ok(())
}

/// What a dialer of another mesh is told before it is refused: it may take us, or whoever was here before, for a member.
fn introduction(members: &Members, empty: bool) -> Welcome {
    let joining = members.phase() == Phase::Joining;
    Welcome { member: members.me().clone(), lineage: members.lineage(), empty, applied: 0, joining }
}

fn on_beat<S>(
    worker: &mut Worker,
    inbound: &mut Inbound,
    from: Incarnation,
    beat: Beat,
    context: Context<'_, S>,
) -> Result<(), Ending> {
    let mesh = &worker.mesh;
    let sent_ns = beat.sent_ns;
    Ending::unless_in_time(beat.floor.max(beat.stable), "a floor or stable", context)?;
    Ending::unless_in_time(latest_surplus(&beat.vectors), "a surplus", context)?;
    // Below the one everything is decided, below the other it may be soon: what is written from now on must not be.
    context.clock.observe(beat.floor.max(beat.stable));
    let mut members = mesh.members.lock();
    if let Some((reason, detail)) = members.refusal_of(from) {
        return Err(Ending::Refuse(reason, detail.to_owned()));
    }
    members.on_beat(from, beat, &mesh.progress, context.now.mono_ns);
    if std::mem::take(&mut members.dirty) {
        mesh.publish(&members);
    }
    drop(members);
    // Only with a view that every worker has taken up is the sender really waited for.
    let view = mesh.view();
    let counted = view.peers.iter().any(|peer| peer.incarnation == from && peer.counted);
    let counts_you = counted && mesh.view_seen() >= view.version;
    let heads = mesh.heads();
    let jump_ms = mesh.jump_ms.load(Ordering::Acquire);
    inbound.echo = Some(Echo { sent_ns, wall_ms: context.now.wall_ms, jump_ms, counts_you, heads });
    Ok(())
}
