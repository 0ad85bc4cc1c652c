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
use crate::peer::frame::{OriginVector, Reason};
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
    /// Up to where they were.
    closed: Option<(Incarnation, Hlc)>,
    known: Option<(Incarnation, WriterIndex)>,
    pull: Option<Pull<'a>>,
}

/// The pull that brings the writes.
pub(super) struct Pull<'a> {
    pub(super) brought: &'a mut Brought,
    /// What the donor held when it began.
    pub(super) vectors: &'a [OriginVector],
    pub(super) donor: Option<Incarnation>,
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
        let (decided, claimed) = (mesh.decided(), mesh.claimed());
        Intake { mesh, context, decided, claimed, closed: None, known: None, pull }
    }

    /// Of a member's own stream. Not to be called with one of its streams locked.
    pub(super) fn of_stream(mesh: &'a Mesh, from: &Origin, context: Context<'a, S>) -> Intake<'a, S> {
        let mut intake = Intake::new(mesh, None, context);
        intake.closed = (intake.claimed > Hlc::ZERO).then(|| (from.incarnation, from.closed()));
        intake
    }

    /// Of a pull. Not to be called with the membership locked.
    pub(super) fn of_pull(mesh: &'a Mesh, pull: Pull<'a>, context: Context<'a, S>) -> Intake<'a, S> {
        let donor = pull.donor;
        let mut intake = Intake::new(mesh, Some(pull), context);
        let is_bound = |donor| mesh.members.lock().is_bound_as_we_are(donor);
        let never_waits = mesh.config.mutation == Mutation::PullsNeverWait;
        if intake.claimed > Hlc::ZERO && (donor.is_some_and(is_bound) || never_waits) {
            intake.claimed = Hlc::ZERO;
        }
        intake
    }

    /// Whether a write may lie below what others have decided without knowing its writer, and has to wait.
    fn must_wait(&mut self, hlc: Hlc, writer: Incarnation) -> bool {
        if hlc > self.claimed {
            return false;
        }
        let closed = match self.closed {
            Some((known, closed)) if known == writer => closed,
            _ => closed_by(self.mesh, writer),
        };
        self.closed = Some((writer, closed));
        closed < hlc
    }

    /// Takes in the clear that a copy begins with, if it is news.
    pub(super) fn clear(&mut self, hlc: Hlc, writer: Incarnation) -> Result<(), Ending> {
        if hlc <= self.decided.max(self.context.store.clear_version().hlc) {
            return Ok(());
        }
        if self.must_wait(hlc, writer) {
            return Err(Ending::unsettled());
        }
        if let Some(Pull { brought, vectors, .. }) = &mut self.pull {
            brought.note((writer, hlc), vectors, self.mesh, || true)?;
        }
        apply_clear((hlc, writer), self.context)
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
            return Ok(false);
        }
        let must_wait = self.must_wait(operation.hlc, writer);
        if must_wait && (operation.kind == Kind::Clear || self.pull.is_none()) {
            return Err(Ending::unsettled());
        }
        if operation.kind == Kind::Clear {
            return apply_clear((operation.hlc, writer), self.context).map(|()| true);
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
        if let Some(Pull { brought, vectors, .. }) = &mut self.pull {
            brought.note((writer, operation.hlc), vectors, self.mesh, is_news)?;
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
            Ok(applied) => Ok(matches!(applied, Applied::Stored { .. })),
            Err(_) => Err(Ending::Refuse(Reason::Memory, "the record does not fit".to_owned())),
        }
    }
}

/// Up to where everything of this writer is held. Of this node, and of one that was forgotten: all. Of nobody: nothing, as
/// it may be of somebody who is not known here.
fn closed_by(mesh: &Mesh, writer: Incarnation) -> Hlc {
    if writer == Incarnation(0) {
        return Hlc::ZERO;
    }
    mesh.progress.get(writer).map_or(Hlc(u64::MAX), |origin| origin.closed())
}

fn writer_index<S: Storage>(writer: Incarnation, store: &S) -> Result<WriterIndex, Ending> {
    let full = || Ending::Refuse(Reason::Full, "the table of writers is full".to_owned());
    store.writer(writer).ok_or_else(full)
}

fn apply_clear<S: Storage>((hlc, writer): (Hlc, Incarnation), context: Context<'_, S>) -> Result<(), Ending> {
    if hlc == Hlc::ZERO {
        return Ok(());
    }
    context.clock.observe(hlc);
    let writer = writer_index(writer, context.store)?;
    context.store.clear(Stamp::Given(Version { hlc, writer }), context.now.wall_ms);
    Ok(())
}
