//! Takes in writes that were accepted elsewhere, some at a time, so that their cache misses overlap; what is
//! the same for many of them is looked up once.
//!
//! Budget of a write: one hash, one stripe lock, one copy into the store.

use super::Context;
use super::brought::Brought;
use super::ending::Ending;
use crate::base::version::{Hlc, Incarnation, Version, WriterIndex};
use crate::mesh::progress::Origin;
use crate::mesh::{Mesh, Mutation};
use crate::peer::frame::{OriginVector, PullBegin, Reason};
use crate::peer::operation::{Kind, Operation};
use crate::store::{Applied, KeyHash, Marks, NewRecord, Stamp, Storage};
use std::sync::atomic::Ordering;

/// Writes that are looked up together.
pub(super) const BATCH: usize = 32;

/// Takes in what one frame brings.
pub(super) struct Intake<'a, S> {
    mesh: &'a Mesh,
    context: Context<'a, S>,
    /// Decided before: at or below the floor.
    decided: Hlc,
    /// What comes up to here may have been decided elsewhere, unless its writer's writes up to there were all had.
    claimed: Hlc,
    /// What comes up to here and is news is taken in doubt: see `members/doubt.rs`.
    doubted: Hlc,
    /// Whose stream it is.
    origin: Option<&'a Origin>,
    /// Up to where they were.
    closed: Option<(Incarnation, Hlc)>,
    known: Option<(Incarnation, WriterIndex)>,
    pull: Option<Pull<'a>>,
}

/// The pull that brings the writes.
pub(super) struct Pull<'a> {
    pub(super) brought: &'a mut Brought,
    pub(super) begin: &'a PullBegin,
    pub(super) donor: Option<Incarnation>,
}

impl Pull<'_> {
    /// What the donor held of this writer when it began, if that is still open.
    fn named(&self, writer: Incarnation) -> Option<&OriginVector> {
        self.begin.vectors.iter().find(|vector| vector.origin == writer && !vector.is_settled())
    }
}

/// How far a batch came.
#[derive(Debug)]
pub(super) struct Taken {
    /// So many of its writes are dealt with, from the first on.
    pub(super) applied: usize,
    /// So many of those lost against a later write, or came too late.
    pub(super) superseded: usize,
    /// The first and the last of them, counted from 0, that came too late: at or below the floor.
    pub(super) late: Option<(usize, usize)>,
    /// Why it went no further.
    pub(super) ending: Result<(), Ending>,
}

impl<'a, S: Storage> Intake<'a, S> {
    fn new(mesh: &'a Mesh, pull: Option<Pull<'a>>, context: Context<'a, S>) -> Intake<'a, S> {
        let (decided, claimed, doubted) = (mesh.decided(), mesh.claimed(), mesh.doubted());
        Intake { mesh, context, decided, claimed, doubted, origin: None, closed: None, known: None, pull }
    }

    /// Of a member's own stream. Not to be called with one of its streams locked.
    pub(super) fn of_stream(mesh: &'a Mesh, from: &'a Origin, context: Context<'a, S>) -> Intake<'a, S> {
        let mut intake = Intake::new(mesh, None, context);
        intake.origin = Some(from);
        intake.closed = (intake.claimed > Hlc::ZERO).then(|| (from.incarnation, from.closed()));
        intake
    }

    /// Of a pull. Not to be called with the membership locked.
    pub(super) fn of_pull(mesh: &'a Mesh, pull: Pull<'a>, context: Context<'a, S>) -> Intake<'a, S> {
        let donor = pull.donor;
        let copied = pull.brought.is_copy().then_some(pull.begin.stable);
        let mut intake = Intake::new(mesh, Some(pull), context);
        // Of a copy: what lies below its donor's word, which is ours as well then.
        intake.doubted = copied.unwrap_or(intake.doubted);
        let never_waits = mesh.config.mutation == Mutation::PullsNeverWait;
        let is_bound = |donor| mesh.members.lock().is_bound_as_we_are(donor);
        if intake.claimed > Hlc::ZERO && (never_waits || donor.is_some_and(is_bound)) {
            intake.claimed = Hlc::ZERO;
        }
        intake
    }

    /// Whether a write may lie below what others have decided without knowing its writer, and has to wait.
    fn must_wait(&mut self, hlc: Hlc, writer: Incarnation) -> bool {
        hlc <= self.claimed && self.is_open(hlc, writer)
    }

    /// Whether not everything of this writer up to there is held.
    fn is_open(&mut self, hlc: Hlc, writer: Incarnation) -> bool {
        let closed = match self.closed {
            Some((known, closed)) if known == writer => closed,
            _ => closed_by(self.mesh, writer, self.pull.as_ref()),
        };
        self.closed = Some((writer, closed));
        closed < hlc
    }

    /// A write has been taken that was news. If that was in doubt, it is kept in mind.
    fn note_doubt(&self, hlc: Hlc, writer: Incarnation) {
        if hlc > self.doubted {
            return;
        }
        match (self.origin, &self.pull) {
            (Some(origin), _) => origin.doubt(hlc),
            (None, Some(pull)) if pull.brought.is_copy() => {
                let is_decided = hlc <= pull.begin.floor || writer == Incarnation(0);
                let open = || pull.named(writer).filter(|vector| vector.closed() < hlc);
                if let Some(open) = (!is_decided).then(open).flatten() {
                    self.mesh.progress.ensure(writer, open.workers.len()).doubt(hlc);
                }
            }
            _ => {
                if let Some(origin) = self.mesh.progress.get(writer) {
                    origin.doubt(hlc);
                }
            }
        }
    }

    /// # Errors
    /// A pull brings what this node has decided without, of somebody of whom it does not hold everything. Who has it will find
    /// that out, and start over.
    fn unless_left_out(
        &mut self,
        (hlc, writer): (Hlc, Incarnation),
        is_news: impl Fn() -> Result<bool, Ending>,
    ) -> Result<(), Ending> {
        if self.mesh.config.mutation == Mutation::DoubtsForgotten
            || self.pull.as_ref().is_none_or(|pull| pull.brought.is_copy())
            || !self.is_open(hlc, writer)
        {
            return Ok(());
        }
        let is_named = self.pull.as_ref().is_some_and(|pull| pull.named(writer).is_some());
        if is_named && is_news()? { Err(Ending::decided()) } else { Ok(()) }
    }

    /// Takes in the clear that a copy begins with, if it is news.
    pub(super) fn clear(&mut self, hlc: Hlc, writer: Incarnation) -> Result<(), Ending> {
        if hlc <= self.context.store.clear_version().hlc {
            return Ok(());
        }
        if hlc <= self.decided {
            return self.unless_left_out((hlc, writer), || Ok(true));
        }
        if self.must_wait(hlc, writer) {
            return Err(Ending::unsettled());
        }
        if let Some(Pull { brought, begin, .. }) = &mut self.pull {
            brought.note((writer, hlc), &begin.vectors, self.mesh, || true)?;
        }
        self.apply_clear(hlc, writer)
    }

    fn apply_clear(&self, hlc: Hlc, writer: Incarnation) -> Result<(), Ending> {
        let Context { store, clock, now } = self.context;
        if hlc == Hlc::ZERO {
            return Ok(());
        }
        clock.observe(hlc);
        let version = Version { hlc, writer: writer_index(writer, store)? };
        if let Applied::Stored { .. } = store.clear(Stamp::Given(version), now.wall_ms) {
            self.note_doubt(hlc, writer);
        }
        Ok(())
    }

    /// Takes in at most [`BATCH`] writes, in their order.
    pub(super) fn take(&mut self, batch: &[(Incarnation, Operation<'_>)]) -> Taken {
        let store = self.context.store;
        let mut hashes = [KeyHash(0); BATCH];
        let hashes = &mut hashes[..batch.len()];
        for (hash, (_, operation)) in hashes.iter_mut().zip(batch) {
            *hash = store.hash(operation.key);
        }
        // A single key would only be looked up three times instead of once.
        if batch.len() > 1 {
            store.prefetch(hashes);
        }
        let mut taken = Taken { applied: 0, superseded: 0, late: None, ending: Ok(()) };
        for (hash, (writer, operation)) in hashes.iter().zip(batch) {
            match self.one(*hash, *writer, operation) {
                Ok(is_newest) => {
                    taken.superseded += usize::from(!is_newest);
                    if operation.hlc <= self.decided {
                        let first = taken.late.map_or(taken.applied, |(first, _)| first);
                        taken.late = Some((first, taken.applied));
                    }
                }
                Err(ending) => {
                    taken.ending = Err(ending);
                    break;
                }
            }
            taken.applied += 1;
        }
        taken
    }

    /// True if it is now what the key holds.
    fn one(&mut self, hash: KeyHash, writer: Incarnation, operation: &Operation<'_>) -> Result<bool, Ending> {
        let Context { store, clock, now } = self.context;
        Ending::unless_in_time(operation.hlc, "a stamp", self.context)?;
        if operation.hlc <= self.decided && self.mesh.config.mutation != Mutation::BelowTheFloor {
            self.mesh.counters.below_floor.fetch_add(1, Ordering::Relaxed);
            let is_over = operation.expires_at_ms != 0 && operation.expires_at_ms <= now.wall_ms;
            let is_news = || {
                let version = Version { hlc: operation.hlc, writer: writer_index(writer, store)? };
                Ok(!is_over && store.is_news(hash, operation.key, version))
            };
            return self.unless_left_out((operation.hlc, writer), is_news).map(|()| false);
        }
        let must_wait = self.must_wait(operation.hlc, writer);
        if must_wait && (operation.kind == Kind::Clear || self.pull.is_none()) {
            return Err(Ending::unsettled());
        }
        if operation.kind == Kind::Clear {
            return self.apply_clear(operation.hlc, writer).map(|()| true);
        }
        clock.observe(operation.hlc);
        let index = match self.known {
            Some((known, index)) if known == writer => index,
            _ => writer_index(writer, store)?,
        };
        self.known = Some((writer, index));
        // A pull brings what is held already as well.
        let version = Version { hlc: operation.hlc, writer: index };
        let is_news = || store.is_news(hash, operation.key, version);
        if must_wait && is_news() {
            return Err(Ending::unsettled());
        }
        if let Some(Pull { brought, begin, .. }) = &mut self.pull {
            brought.note((writer, operation.hlc), &begin.vectors, self.mesh, is_news)?;
        }
        let stamp = match self.mesh.config.mutation {
            Mutation::LaterArrivalWins => Stamp::Local(clock),
            _ => Stamp::Given(version),
        };
        let result = match operation.kind {
            Kind::Set => {
                let record = NewRecord {
                    key: operation.key,
                    value: operation.value,
                    marks: Marks(operation.marks),
                    expires_at_ms: operation.expires_at_ms,
                };
                store.set(hash, record, stamp, now.wall_ms)
            }
            Kind::Rm | Kind::Clear => store.rm(hash, operation.key, stamp, now.wall_ms),
        };
        match result {
            Ok(Applied::Stored { .. }) => {
                self.note_doubt(operation.hlc, writer);
                Ok(true)
            }
            Ok(Applied::Superseded | Applied::Missing) => Ok(false),
            Err(_) => Err(Ending::Refuse(Reason::Memory, "the record does not fit".to_owned())),
        }
    }
}

/// Up to where everything of this writer is held. Of this node, and of one that was forgotten: all. Of nobody, and of one whom
/// a donor knows and this node does not: nothing.
fn closed_by(mesh: &Mesh, writer: Incarnation, pull: Option<&Pull<'_>>) -> Hlc {
    if writer == Incarnation(0) {
        return Hlc::ZERO;
    }
    let is_unknown = || {
        let is_named = pull.is_some_and(|pull| pull.named(writer).is_some());
        is_named && writer != mesh.view().me && !mesh.members.lock().has_settled(writer)
    };
    let unknown = || if is_unknown() { Hlc::ZERO } else { Hlc(u64::MAX) };
    mesh.progress.get(writer).map_or_else(unknown, |origin| origin.closed())
}

fn writer_index<S: Storage>(writer: Incarnation, store: &S) -> Result<WriterIndex, Ending> {
    let full = || Ending::Refuse(Reason::Full, "the table of writers is full".to_owned());
    store.writer(writer).ok_or_else(full)
}
