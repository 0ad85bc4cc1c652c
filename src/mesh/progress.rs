//! How much of every other origin's writes this node holds.
//!
//! An origin is one lifetime of a member. Each of its workers numbers its operations from 1. What is held
//! is a set of numbers: everything up to `applied`, and, behind restarts of the stream, ranges beyond. A
//! pull adds the donor's set. `closed` is a stamp: every operation of that worker up to it is held.

use super::surplus::{self, Surpluses};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{PEER_WORKERS_MAX, RANGES_MAX};
use crate::peer::frame::{Held, Openness, OriginVector};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which of one worker's operations are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    held: Held,
    /// A mark that holds once everything up to its operation is held without a gap.
    pending: Option<(u64, Hlc)>,
    /// Operations up to here exist, and the stream will not bring those that lie before.
    announced: u64,
}

impl Stream {
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Everything up to here is held.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.held.applied
    }

    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        self.held.contains(seq)
    }

    /// The stream goes on behind `base`: what is missing up to there must be pulled.
    pub fn restart(&mut self, base: u64) {
        self.announced = self.announced.max(base);
    }

    fn has_gap(&self) -> bool {
        !self.held.ranges.is_empty() || self.held.applied < self.announced
    }

    /// The range beyond a gap in which `seq` lies.
    #[must_use]
    pub fn range_of(&self, seq: u64) -> Option<(u64, u64)> {
        self.held.ranges.iter().find(|(base, upto)| *base < seq && seq <= *upto).copied()
    }

    /// The operations behind `base` up to `upto` are held.
    pub fn insert(&mut self, base: u64, upto: u64) {
        if upto <= base {
            return;
        }
        let Held { applied, ranges, .. } = &mut self.held;
        // The common case: the next of an unbroken stream.
        if base <= *applied && ranges.is_empty() {
            *applied = (*applied).max(upto);
            return self.settle();
        }
        if let Some(last) = ranges.last_mut()
            && last.1 == base
        {
            last.1 = upto;
            return;
        }
        ranges.push((base, upto));
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (base, upto) in ranges.drain(..) {
            if base <= *applied {
                *applied = (*applied).max(upto);
                continue;
            }
            match joined.last_mut() {
                Some(last) if base <= last.1 => last.1 = last.1.max(upto),
                _ => joined.push((base, upto)),
            }
        }
        joined.truncate(RANGES_MAX);
        *ranges = joined;
        self.settle();
    }

    fn settle(&mut self) {
        if let Some((_, closed)) = self.pending.filter(|(seq, _)| *seq <= self.held.applied) {
            self.held.closed = self.held.closed.max(closed);
            self.pending = None;
        }
    }

    /// A mark: everything up to `seq` has been sent, what follows is stamped later than `closed`.
    pub fn mark(&mut self, seq: u64, closed: Hlc) {
        if self.pending.is_none_or(|(_, known)| known < closed) {
            self.pending = Some((seq, closed));
            self.settle();
        }
    }

    /// A pull has brought all of this.
    pub fn merge(&mut self, theirs: &Held) {
        self.insert(0, theirs.applied);
        for (base, upto) in &theirs.ranges {
            self.insert(*base, *upto);
        }
        self.held.closed = self.held.closed.max(theirs.closed);
    }
}

/// Whether `ours` lacks something that `theirs` has.
fn is_behind(ours: &Held, theirs: &Held) -> bool {
    let has = |base: u64, upto: u64| {
        upto <= ours.applied
            || ours.ranges.iter().any(|(ours_base, ours_upto)| *ours_base <= base && upto <= *ours_upto)
    };
    theirs.applied > ours.applied || theirs.ranges.iter().any(|(base, upto)| !has(*base, *upto))
}

impl OriginVector {
    /// Everything of the origin up to here is held.
    #[must_use]
    pub fn closed(&self) -> Hlc {
        self.workers.iter().map(|held| held.closed).min().unwrap_or(Hlc::ZERO)
    }

    /// Whether it has something that `ours` lacks, counted or not.
    #[must_use]
    pub fn is_ahead(&self, ours: &OriginVector) -> bool {
        let none = Held::default();
        let mut workers = self.workers.iter().enumerate();
        workers.any(|(i, theirs)| is_behind(ours.workers.get(i).unwrap_or(&none), theirs))
            || surplus::is_ahead(&self.surplus, &ours.surplus, ours.closed())
    }

    /// The same writes, for all that is known; workers that are not named hold nothing.
    #[must_use]
    pub fn is_same(&self, other: &OriginVector) -> bool {
        let is_pulling = [self, other].iter().any(|vector| vector.openness == Openness::Pulling);
        !is_pulling && !self.is_ahead(other) && !other.is_ahead(self)
    }

    /// Nothing of it is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let holds = |held: &Held| held.applied > 0 || !held.ranges.is_empty();
        !self.workers.iter().any(holds) && self.surplus.is_empty() && self.openness != Openness::Pulling
    }

    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.openness == Openness::Settled
    }
}

/// One origin; see the module.
#[derive(Debug)]
pub struct Origin {
    pub incarnation: Incarnation,
    streams: Vec<Mutex<Stream>>,
    surpluses: Mutex<Surpluses>,
    /// The first and the last stamp of what was taken of it in doubt: see `members/doubt.rs`.
    doubt: Mutex<Option<(Hlc, Hlc)>>,
    /// Its lifetime is over: nothing more is taken from it directly.
    is_over: AtomicBool,
    /// And every member was seen to hold the same of it.
    is_settled: AtomicBool,
    /// Some of its writes were ignored, for they came below the floor: nothing of it is acknowledged any more.
    is_void: AtomicBool,
    pub applied_total: AtomicU64,
    pub superseded_total: AtomicU64,
}

impl Origin {
    fn new(incarnation: Incarnation, workers: usize) -> Origin {
        Origin {
            incarnation,
            streams: (0..workers).map(|_| Mutex::new(Stream::default())).collect(),
            surpluses: Mutex::default(),
            doubt: Mutex::default(),
            is_over: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
            is_void: AtomicBool::new(false),
            applied_total: AtomicU64::new(0),
            superseded_total: AtomicU64::new(0),
        }
    }

    /// The stream of one worker, to apply what it brings; `None` if the origin is over or has no such worker.
    pub fn stream(&self, worker: usize) -> Option<MutexGuard<'_, Stream>> {
        let guard = self.streams.get(worker)?.lock();
        // Read under the lock: once an origin is over and its vector was read, the vector stays.
        (!self.is_over.load(Ordering::Acquire)).then_some(guard)
    }

    /// Takes nothing more from it directly.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        // Whoever applied something when the flag was set has finished when its lock could be taken.
        for stream in &self.streams {
            drop(stream.lock());
        }
    }

    /// Acknowledges nothing of it from now on; it will find out that it was left behind. True the first time.
    pub(super) fn void(&self) -> bool {
        !self.is_void.swap(true, Ordering::AcqRel)
    }

    pub(super) fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    pub(super) fn settle(&self) {
        self.is_settled.store(true, Ordering::Release);
    }

    #[must_use]
    pub fn vector(&self) -> OriginVector {
        // The pull first: when one ends, what came of it is there before it is over.
        let pending = self.surpluses.lock().pending();
        let workers = self.streams.iter().map(|stream| stream.lock().held.clone()).collect();
        let (openness, surplus) = (Openness::Open, Vec::new());
        let mut vector = OriginVector { origin: self.incarnation, openness, workers, surplus };
        let closed = vector.closed();
        vector.surplus = self.surpluses.lock().parts(closed);
        if self.is_settled() {
            vector.openness = Openness::Settled;
        } else if pending > closed {
            vector.openness = Openness::Pulling;
        }
        vector
    }

    /// The pull under way brings a write of it with this stamp; to be said before the store has it.
    pub(super) fn bring(&self, stamp: Hlc) {
        self.surpluses.lock().bring(stamp);
    }

    /// A write of it with this stamp was taken in doubt.
    pub(super) fn doubt(&self, stamp: Hlc) {
        let mut doubt = self.doubt.lock();
        let (first, last) = doubt.unwrap_or((stamp, stamp));
        *doubt = Some((first.min(stamp), last.max(stamp)));
    }

    /// The first and the last of what was taken of it in doubt.
    pub(super) fn doubted(&self) -> Option<(Hlc, Hlc)> {
        *self.doubt.lock()
    }

    /// What is left of the doubt, given the first and the last.
    pub(super) fn judge(&self, left: impl FnOnce((Hlc, Hlc)) -> Option<(Hlc, Hlc)>) {
        let mut doubt = self.doubt.lock();
        *doubt = doubt.and_then(left);
    }

    /// That pull is over; what it brought is counted now, or has this number.
    fn end_pull(&self, uncounted: Option<u64>) {
        let closed = self.closed();
        self.surpluses.lock().end_pull(uncounted, closed);
    }

    /// Everything of this origin up to here is held.
    #[must_use]
    pub fn closed(&self) -> Hlc {
        self.streams.iter().map(|stream| stream.lock().held.closed).min().unwrap_or(Hlc::ZERO)
    }

    /// Something lies beyond a gap that a pull has to close.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        self.streams.iter().any(|stream| stream.lock().has_gap())
    }

    #[must_use]
    pub fn holds(&self, worker: usize, seq: u64) -> bool {
        !self.is_void() && self.streams.get(worker).is_some_and(|stream| stream.lock().contains(seq))
    }

    fn merge(&self, vector: &OriginVector) {
        for (stream, theirs) in self.streams.iter().zip(&vector.workers) {
            stream.lock().merge(theirs);
        }
        let closed = self.closed();
        self.surpluses.lock().merge(&vector.surplus, closed);
    }
}

impl Held {
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        seq <= self.applied || self.ranges.iter().any(|(base, upto)| *base < seq && seq <= *upto)
    }
}

/// All origins but this node itself.
#[derive(Debug, Default)]
pub struct Progress {
    origins: RwLock<BTreeMap<Incarnation, Arc<Origin>>>,
}

impl Progress {
    #[must_use]
    pub fn get(&self, origin: Incarnation) -> Option<Arc<Origin>> {
        self.origins.read().get(&origin).cloned()
    }

    /// The origin, made up if it is new.
    pub fn ensure(&self, origin: Incarnation, workers: usize) -> Arc<Origin> {
        if let Some(known) = self.get(origin).filter(|known| known.streams.len() >= workers) {
            return known;
        }
        let mut origins = self.origins.write();
        let entry = origins.entry(origin).or_insert_with(|| Arc::new(Origin::new(origin, workers)));
        if entry.streams.len() < workers {
            // Was known by name only; nothing can have been applied to no streams.
            let over = entry.is_over.load(Ordering::Acquire);
            let surpluses = std::mem::take(&mut *entry.surpluses.lock());
            let doubt = entry.doubted();
            *entry = Arc::new(Origin::new(origin, workers.min(PEER_WORKERS_MAX)));
            entry.is_over.store(over, Ordering::Release);
            *entry.surpluses.lock() = surpluses;
            *entry.doubt.lock() = doubt;
        }
        Arc::clone(entry)
    }

    /// Takes over what a finished pull has brought of one origin.
    pub fn merge(&self, vector: &OriginVector) {
        self.ensure(vector.origin, vector.workers.len()).merge(vector);
    }

    /// A pull is over. What it brought of those origins that are not `counted` goes by its number, `id`.
    pub(super) fn end_pull(&self, id: u64, counted: impl Fn(&Origin) -> bool) {
        for origin in self.all() {
            let uncounted = if counted(&origin) { None } else { Some(id) };
            origin.end_pull(uncounted);
        }
    }

    pub fn forget(&self, origin: Incarnation) {
        self.origins.write().remove(&origin);
    }

    pub(super) fn reset(&self) {
        for origin in std::mem::take(&mut *self.origins.write()).into_values() {
            origin.end();
        }
    }

    #[must_use]
    pub fn all(&self) -> Vec<Arc<Origin>> {
        self.origins.read().values().cloned().collect()
    }

    #[must_use]
    pub fn vectors(&self) -> Vec<OriginVector> {
        self.all().iter().map(|origin| origin.vector()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(applied: u64, closed: u64, ranges: &[(u64, u64)]) -> Held {
        Held { applied, closed: Hlc(closed), ranges: ranges.to_vec() }
    }

    #[test]
    fn a_gap_is_closed_by_a_pull_and_only_then_do_marks_beyond_it_hold() {
        let mut stream = Stream::default();
        stream.merge(&held(3, 30, &[]));
        stream.insert(10, 11);
        stream.mark(11, Hlc(110));
        assert_eq!(*stream.held(), held(3, 30, &[(10, 11)]));
        stream.insert(11, 12);
        assert!(stream.contains(12) && !stream.contains(4) && stream.contains(3));
        stream.merge(&held(9, 90, &[]));
        assert_eq!(*stream.held(), held(9, 90, &[(10, 12)]));
        stream.merge(&held(10, 95, &[]));
        assert_eq!(*stream.held(), held(12, 110, &[]));
        stream.mark(13, Hlc(130));
        assert_eq!(stream.held().closed, Hlc(110), "13 has not come yet");
    }

    #[test]
    fn sets_are_compared_as_sets() {
        let (mine, theirs) = (held(3, 0, &[(9, 12)]), held(8, 0, &[]));
        assert!(is_behind(&mine, &theirs) && is_behind(&theirs, &mine));
        let mut both = Stream::default();
        both.merge(&mine);
        both.merge(&theirs);
        assert_eq!(*both.held(), held(8, 0, &[(9, 12)]));
        assert!(!is_behind(both.held(), &mine) && !is_behind(both.held(), &theirs));
        both.insert(8, 9);
        assert_eq!(both.applied(), 12);
    }

    #[test]
    fn any_order_of_arrival_gives_the_same_set() {
        let mut random = crate::base::random::Random::new(5);
        for _ in 0..500 {
            let mut stream = Stream::default();
            let mut plain = [false; 41];
            plain[0] = true;
            for _ in 0..random.between(1, 12) {
                let base = random.below(36);
                let upto = base + random.between(1, 4);
                stream.insert(base, upto);
                plain[base as usize + 1..=upto as usize].fill(true);
                for seq in 1..=40 {
                    assert_eq!(stream.contains(seq), plain[seq as usize], "{seq} in {stream:?}");
                }
                let applied = plain.iter().position(|held| !held).unwrap_or(41) as u64 - 1;
                assert_eq!(stream.applied(), applied, "{stream:?}");
            }
        }
    }

    #[test]
    fn an_origin_that_is_over_takes_nothing_directly() {
        let progress = Progress::default();
        let origin = progress.ensure(Incarnation(7), 2);
        origin.stream(1).expect("alive").insert(0, 1);
        origin.end();
        assert!(origin.stream(1).is_none());
        assert_eq!(progress.vectors()[0].workers, [held(0, 0, &[]), held(1, 0, &[])]);
    }
}
