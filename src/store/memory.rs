//! The store of a node: records in memory, in stripes of which each has its own lock.
//!
//! With millions of keys, cache misses decide: a lookup is one line of the index and one of the entry, and
//! a batch asks for all of its lines before it looks at the first. A stripe is chosen by hash bits 40 and
//! up, the bucket within it by the low bits, the tag by the highest eight: no bit serves twice.
//!
//! Lock order: the sweep's lock, then a stripe's, then those of [`Rooms`], which are leaves. The clear register's
//! is never held together with another.

use super::arena::Entry;
use super::cursor::{self, Place};
use super::rooms::Rooms;
use super::stripe::{Common, NOWHERE, Stripe};
use super::writers::Writers;
use super::{
    Applied, Cursor, Flow, KeyHash, NewRecord, OutOfMemory, Record, Stamp, Storage, StoreConfig, Usage,
};
use crate::base::memory::prefetch;
use crate::base::version::{Hlc, Incarnation, Version, WriterIndex};
use crossbeam::utils::CachePadded;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Where the stripe's bits begin in a hash.
const STRIPE_SHIFT: u32 = 40;
/// A stripe must be able to hold a few chunks, or a small limit would be used up by a few records each.
const STRIPE_MEMORY_MIN: u64 = 64 * 1024;
/// Between two looks at everything that may have expired, in milliseconds.
const SWEEP_PAUSE_MS: u64 = 1000;
/// A sweep takes at most one part in this many of the time.
const SWEEP_SHARE: u64 = 10;
/// What lies between two calls counts for no more than this, in milliseconds: the process may have slept, or its clock jumped.
const SWEEP_STEP_MS: u64 = 250;
/// Entries that are moved at a time when a stripe is made compact.
const COMPACT_STEP: usize = 32;
/// What giving a chunk back to the system counts for in a budget of entries.
const TRIM_COST: usize = 8;
/// What catching up with a clear counts for in a budget of entries.
const CLEAR_COST: usize = 64;

/// Keys whose memory accesses are in flight together, at most.
const GROUP: usize = 32;

/// The stripes of a group's keys, those that could be locked at once.
type Group<'s> = [Option<RwLockReadGuard<'s, Stripe>>; GROUP];

/// How far the background work has come.
#[derive(Debug, Default)]
struct Sweep {
    stripe: usize,
    bucket: u64,
    is_under_way: bool,
    /// So long for now, or, between two, so long until the next.
    took_ms: u64,
    pause_ms: u64,
    /// When it was called last.
    called_ms: u64,
    /// Stripes before this one have caught up with the clear.
    cleared: usize,
}

/// Records in memory; see the module.
#[derive(Debug)]
pub struct MemoryStore {
    stripes: Box<[CachePadded<RwLock<Stripe>>]>,
    stripe_bits: u32,
    check: u32,
    common: Common,
    clear: Mutex<Version>,
    /// Counts the clears: a stripe's lock holder sees whether it has to catch up without another lock.
    clears: AtomicU64,
    clear_hlc: AtomicU64,
    clear_writer: AtomicUsize,
    /// The greatest time that a write brought along; local ones are known to the clock.
    newest_given: AtomicU64,
    sweep: Mutex<Sweep>,
}

impl MemoryStore {
    /// An empty store.
    ///
    /// # Errors
    /// The number of stripes is not a power of two.
    pub fn new(config: StoreConfig) -> io::Result<MemoryStore> {
        if !config.stripes.is_power_of_two() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "stripes: not a power of two"));
        }
        let affordable = (config.memory_limit_bytes / STRIPE_MEMORY_MIN).max(1);
        let mut stripes = config.stripes;
        while stripes > 1 && stripes as u64 > affordable {
            stripes /= 2;
        }
        let hasher = match config.seed {
            Some(seed) => ahash::RandomState::with_seeds(seed, 1, 2, 3),
            None => ahash::RandomState::new(),
        };
        let size = (stripes * size_of::<CachePadded<RwLock<Stripe>>>()) as u64;
        Ok(MemoryStore {
            stripes: (0..stripes).map(|_| CachePadded::new(RwLock::new(Stripe::new()))).collect(),
            stripe_bits: stripes.trailing_zeros(),
            check: hasher.hash_one("cursor") as u32,
            common: Common {
                hasher,
                writers: Writers::new(),
                rooms: Rooms::default(),
                memory: AtomicU64::new(size),
                memory_limit: config.memory_limit_bytes,
            },
            clear: Mutex::new(Version { hlc: Hlc::ZERO, writer: WriterIndex(0) }),
            clears: AtomicU64::new(0),
            clear_hlc: AtomicU64::new(0),
            clear_writer: AtomicUsize::new(0),
            newest_given: AtomicU64::new(0),
            sweep: Mutex::new(Sweep::default()),
        })
    }

    #[inline]
    fn stripe_of(&self, hash: KeyHash) -> &RwLock<Stripe> {
        &self.stripes[(hash.0 >> STRIPE_SHIFT) as usize & (self.stripes.len() - 1)]
    }

    /// Locks a stripe for looking at it, up to date with the last clear.
    #[inline]
    fn read<'s>(&self, stripe: &'s RwLock<Stripe>) -> RwLockReadGuard<'s, Stripe> {
        loop {
            let guard = stripe.read();
            if guard.clears_seen == self.clears.load(Ordering::Acquire) {
                return guard;
            }
            drop(guard);
            drop(self.lock(stripe));
        }
    }

    /// Locks a stripe for changing it and brings it up to date with the last clear.
    #[inline]
    fn lock<'s>(&self, stripe: &'s RwLock<Stripe>) -> RwLockWriteGuard<'s, Stripe> {
        let mut guard = stripe.write();
        // A clear that is published later than this is later than what happens under this lock.
        if guard.clears_seen != self.clears.load(Ordering::Acquire) {
            self.catch_up(&mut guard);
        }
        guard
    }

    /// Brings closer, step by step, all that lookups of these keys will go through. Returns the stripes, locked,
    /// and for each key where its entry may be.
    ///
    /// Each step depends on the one before, and none waits: it asks for the next line of every key. The locks are
    /// held throughout, since taking one stops the processor from looking ahead, and with it the overlap. None is
    /// waited for while others are held; a stripe that is being written to is left to the lookup itself.
    #[inline(always)]
    fn bring_closer(&self, keys: usize, hash_of: impl Fn(usize) -> KeyHash) -> (Group<'_>, [u32; GROUP]) {
        for index in 0..keys {
            prefetch(self.stripe_of(hash_of(index)));
        }
        let mut held: Group<'_> = [const { None }; GROUP];
        for (index, held) in held.iter_mut().enumerate().take(keys) {
            *held = self.stripe_of(hash_of(index)).try_read();
        }
        let each = || {
            let keys = held.iter().enumerate().take(keys);
            keys.filter_map(|(index, stripe)| Some((index, stripe.as_ref()?, hash_of(index).0)))
        };
        let mut hints = [NOWHERE; GROUP];
        each().for_each(|(_, stripe, hash)| stripe.prefetch_to_bucket(hash));
        each().for_each(|(_, stripe, hash)| stripe.prefetch_bucket(hash));
        each().for_each(|(index, stripe, hash)| hints[index] = stripe.prefetch_to_entry(hash));
        each().for_each(|(index, stripe, _)| stripe.prefetch_entry(hints[index]));
        (held, hints)
    }

    #[cold]
    fn catch_up(&self, guard: &mut Stripe) {
        let (count, clear) = self.published_clear();
        guard.catch_up(clear, &self.common);
        guard.clears_seen = count;
    }

    /// The clear register, read without its lock: the count is the same before and after.
    fn published_clear(&self) -> (u64, Version) {
        loop {
            let before = self.clears.load(Ordering::Acquire);
            let hlc = Hlc(self.clear_hlc.load(Ordering::Acquire));
            let writer = WriterIndex(self.clear_writer.load(Ordering::Acquire) as u8);
            if before.is_multiple_of(2) && self.clears.load(Ordering::Acquire) == before {
                return (before, Version { hlc, writer });
            }
            std::hint::spin_loop();
        }
    }

    fn record<'e>(entry: &Entry<'e>) -> Record<'e> {
        Record {
            key: entry.key,
            value: entry.value,
            marks: entry.marks,
            expires_at_ms: entry.expires_at_ms,
            version: entry.version,
        }
    }

    /// Walks over the entries that `wants` names. `above`: none of those is as old as this, so that stripes
    /// and chunks without anything newer are passed over.
    fn walk(
        &self,
        cursor: Cursor,
        records_max: usize,
        above: Option<Hlc>,
        wants: impl Fn(&Entry<'_>) -> bool,
        visit: &mut dyn FnMut(&Entry<'_>) -> Flow,
    ) -> Option<Cursor> {
        let from = Place::of(cursor);
        let bits = self.stripe_bits;
        // A position is the stripe, then as much of the reversed hash as there is room for.
        let local = |position: u64| if bits == 0 { position } else { position << bits };
        let mut at = from;
        let mut visited = 0;
        let mut looked_at = 0;
        let mut places = Vec::with_capacity(32);
        loop {
            // Where most has been removed or has expired, a call must come to an end as well.
            if looked_at > records_max.saturating_mul(4).saturating_add(64) {
                return Some(at.to_cursor(self.check));
            }
            let stripe = if bits == 0 { 0 } else { at.position >> (64 - bits) };
            let global = |reversed: u64| {
                if bits == 0 { reversed } else { stripe << (64 - bits) | reversed >> bits }
            };
            let guard = self.read(&self.stripes[stripe as usize]);
            if above.is_some_and(|above| guard.newest <= above) {
                drop(guard);
                looked_at += 1;
                at = Place { position: global(u64::MAX).checked_add(1)?, skip: 0 };
                continue;
            }
            let last = guard.covered(local(at.position), above, &self.common, &mut places);
            looked_at += 1 + places.len();
            let mut same = Place { position: at.position, skip: 0 };
            for &(reversed, place) in &places {
                let position = global(reversed);
                if position < at.position {
                    continue;
                }
                if position != same.position {
                    same = Place { position, skip: 0 };
                }
                let entry = guard.entry(place);
                if !wants(&entry) {
                    continue;
                }
                if position == from.position && same.skip < from.skip {
                    same.skip += 1;
                    continue;
                }
                if visited == records_max || visit(&entry) == Flow::StopBefore {
                    return Some(same.to_cursor(self.check));
                }
                visited += 1;
                same.skip += 1;
            }
            drop(guard);
            at = Place { position: global(last).checked_add(1)?, skip: 0 };
        }
    }

    fn note_given(&self, stamp: Stamp<'_>) {
        if let Stamp::Given(version) = stamp {
            self.newest_given.fetch_max(version.hlc.0, Ordering::Relaxed);
        }
    }

    /// Memory ran out: stripes that have not caught up with a clear may hold some. True if any was found.
    fn reclaim_cleared(&self) -> bool {
        let before = self.common.memory.load(Ordering::Relaxed);
        let clears = self.clears.load(Ordering::Acquire);
        for stripe in &self.stripes {
            // One that is locked is being brought up to date by its holder.
            if let Some(mut guard) = stripe.try_write()
                && guard.clears_seen != clears
            {
                self.catch_up(&mut guard);
                if self.common.memory.load(Ordering::Relaxed) < before {
                    return true;
                }
            }
        }
        false
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut accounted = (self.stripes.len() * size_of::<CachePadded<RwLock<Stripe>>>()) as u64;
        for stripe in &self.stripes {
            let guard = stripe.read();
            guard.check();
            accounted += guard.accounted();
        }
        assert_eq!(accounted, self.common.memory.load(Ordering::Relaxed));
    }
}

impl Storage for MemoryStore {
    #[inline]
    fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(self.common.hasher.hash_one(key))
    }

    #[inline]
    fn prefetch(&self, hashes: &[KeyHash]) {
        for group in hashes.chunks(GROUP) {
            self.bring_closer(group.len(), |index| group[index]);
        }
    }

    #[inline]
    fn get<R>(
        &self,
        hash: KeyHash,
        key: &[u8],
        now_ms: u64,
        read: impl FnOnce(Record<'_>) -> R,
    ) -> Option<R> {
        let guard = self.read(self.stripe_of(hash));
        let entry = guard.get(hash.0, key)?;
        entry.is_visible(now_ms).then(|| read(Self::record(&entry)))
    }

    #[inline]
    fn get_many(
        &self,
        keys: &[(KeyHash, &[u8])],
        now_ms: u64,
        mut read: impl FnMut(usize, Option<Record<'_>>),
    ) {
        let mut next = 0;
        while next < keys.len() {
            let group = &keys[next..keys.len().min(next + GROUP)];
            let (held, hints) = self.bring_closer(group.len(), |index| group[index].0);
            let clears = self.clears.load(Ordering::Acquire);
            let mut done = 0;
            for (((hash, key), stripe), hint) in group.iter().zip(&held).zip(hints) {
                let Some(stripe) = stripe.as_ref().filter(|stripe| stripe.clears_seen == clears) else {
                    break;
                };
                let entry = stripe.get_hinted(hash.0, key, hint).filter(|entry| entry.is_visible(now_ms));
                read(next + done, entry.as_ref().map(Self::record));
                done += 1;
            }
            drop(held);
            // Somebody is writing to a stripe, or a clear has come. It is not waited for while others are held, or
            // two could wait for each other. What follows it is close already when it is asked for once more.
            if let Some((hash, key)) = group.get(done) {
                if self.get(*hash, key, now_ms, |record| read(next + done, Some(record))).is_none() {
                    read(next + done, None);
                }
                done += 1;
            }
            next += done;
        }
    }

    #[inline]
    fn set(
        &self,
        hash: KeyHash,
        record: NewRecord<'_>,
        stamp: Stamp<'_>,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory> {
        self.note_given(stamp);
        let entry = Entry {
            key: record.key,
            value: record.value,
            version: Version { hlc: Hlc::ZERO, writer: WriterIndex(0) },
            expires_at_ms: record.expires_at_ms,
            marks: record.marks,
            tombstone: false,
        };
        loop {
            let result = self.lock(self.stripe_of(hash)).set(hash.0, entry, stamp, &self.common, now_ms);
            if result.is_ok() || !self.reclaim_cleared() {
                return result;
            }
        }
    }

    fn rm(&self, hash: KeyHash, key: &[u8], stamp: Stamp<'_>, now_ms: u64) -> Result<Applied, OutOfMemory> {
        self.note_given(stamp);
        loop {
            let result = self.lock(self.stripe_of(hash)).rm(hash.0, key, stamp, &self.common, now_ms);
            if result.is_ok() || !self.reclaim_cleared() {
                return result;
            }
        }
    }

    fn is_news(&self, hash: KeyHash, key: &[u8], version: Version) -> bool {
        self.read(self.stripe_of(hash)).is_news(hash.0, key, version, &self.common)
    }

    fn clear(&self, stamp: Stamp<'_>, now_ms: u64) -> Applied {
        let replaced_live = self.size(now_ms) > 0;
        let version = {
            let mut register = self.clear.lock();
            let version = match stamp {
                Stamp::Given(version) if !self.common.writers.wins(version, *register) => {
                    return Applied::Superseded;
                }
                Stamp::Given(version) => version,
                Stamp::Local(clock) => {
                    let above = register.hlc.max(Hlc(self.newest_given.load(Ordering::Relaxed)));
                    Version { hlc: clock.stamp(now_ms, above), writer: self.common.writers.local() }
                }
            };
            *register = version;
            // Odd while the two halves may not belong together.
            self.clears.fetch_add(1, Ordering::AcqRel);
            self.clear_writer.store(usize::from(version.writer.0), Ordering::Release);
            self.clear_hlc.store(version.hlc.0, Ordering::Release);
            self.clears.fetch_add(1, Ordering::AcqRel);
            version
        };
        self.sweep.lock().cleared = 0;
        Applied::Stored { version, replaced_live }
    }

    fn get_all(
        &self,
        cursor: Cursor,
        now_ms: u64,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>) -> Flow,
    ) -> Option<Cursor> {
        let wants = |entry: &Entry<'_>| entry.is_visible(now_ms);
        self.walk(cursor, records_max, None, wants, &mut |entry| visit(Self::record(entry)))
    }

    fn scan(
        &self,
        cursor: Cursor,
        above: Hlc,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>, bool) -> Flow,
    ) -> Option<Cursor> {
        let wants = |entry: &Entry<'_>| entry.version.hlc > above;
        let visit = &mut |entry: &Entry<'_>| visit(Self::record(entry), entry.tombstone);
        self.walk(cursor, records_max, Some(above), wants, visit)
    }

    fn reset(&self) {
        let mut register = self.clear.lock();
        *register = Version { hlc: Hlc::ZERO, writer: WriterIndex(0) };
        self.clears.fetch_add(1, Ordering::AcqRel);
        self.clear_writer.store(0, Ordering::Release);
        self.clear_hlc.store(0, Ordering::Release);
        let count = self.clears.fetch_add(1, Ordering::AcqRel) + 1;
        drop(register);
        self.newest_given.store(0, Ordering::Relaxed);
        for stripe in &self.stripes {
            let mut guard = stripe.write();
            guard.forget(&self.common);
            guard.clears_seen = count;
        }
        *self.sweep.lock() = Sweep::default();
        self.common.writers.reset();
    }

    fn cursor_start(&self) -> Cursor {
        Place::START.to_cursor(self.check)
    }

    fn cursor_from_bits(&self, bits: u128) -> Option<Cursor> {
        cursor::checked(bits, self.check)
    }

    fn size(&self, _now_ms: u64) -> u64 {
        self.stripes.iter().map(|stripe| self.read(stripe).live).sum()
    }

    fn usage(&self, _now_ms: u64) -> Usage {
        let mut usage = Usage {
            memory_bytes: self.common.held(),
            memory_limit_bytes: self.common.memory_limit,
            ..Usage::default()
        };
        let clears = self.clears.load(Ordering::Acquire);
        for stripe in &self.stripes {
            let guard = stripe.read();
            // What has not caught up holds nothing that is visible, as a rule; a scrape does not do the work.
            if guard.clears_seen == clears {
                usage.live_records += guard.live;
                usage.tombstones += guard.tombstones;
            }
        }
        usage
    }

    fn writer(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        self.common.writers.index(incarnation)
    }

    fn become_writer(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        self.common.writers.become_writer(incarnation)
    }

    fn release_writer(&self, incarnation: Incarnation) {
        self.common.writers.release(incarnation);
    }

    fn incarnation(&self, writer: WriterIndex) -> Option<Incarnation> {
        self.common.writers.incarnation(writer)
    }

    fn clear_version(&self) -> Version {
        *self.clear.lock()
    }

    fn maintain(&self, now_ms: u64, floor: Hlc, budget: usize) -> bool {
        let mut sweep = self.sweep.lock();
        let mut left = budget;
        let called_ms = std::mem::replace(&mut sweep.called_ms, now_ms);
        let elapsed_ms = now_ms.saturating_sub(called_ms);
        if sweep.is_under_way {
            sweep.took_ms += elapsed_ms.min(SWEEP_STEP_MS);
        } else {
            sweep.pause_ms = sweep.pause_ms.saturating_sub(elapsed_ms);
        }
        if self.common.rooms.trim(false, (budget / TRIM_COST).max(1)) {
            return true;
        }
        while sweep.cleared < self.stripes.len() {
            if left < CLEAR_COST {
                return true;
            }
            let mut guard = self.stripes[sweep.cleared].write();
            if guard.clears_seen == self.clears.load(Ordering::Acquire) {
                left -= 1;
            } else {
                self.catch_up(&mut guard);
                left -= CLEAR_COST;
            }
            sweep.cleared += 1;
        }
        if !sweep.is_under_way {
            if sweep.pause_ms > 0 {
                return false;
            }
            let Sweep { called_ms, cleared, .. } = *sweep;
            *sweep = Sweep { is_under_way: true, called_ms, cleared, ..Sweep::default() };
        }
        while left > 0 {
            if sweep.stripe == self.stripes.len() {
                sweep.pause_ms = (sweep.took_ms * (SWEEP_SHARE - 1)).max(SWEEP_PAUSE_MS);
                sweep.is_under_way = false;
                // What this sweep has freed is given back at the next call.
                return self.common.rooms.wants_trim();
            }
            let mut guard = self.lock(&self.stripes[sweep.stripe]);
            left -= 1;
            while guard.wants_sweep() && sweep.bucket < guard.buckets() && left > 0 {
                guard.sweep(sweep.bucket, now_ms, floor, &self.common);
                sweep.bucket += 1;
                left = left.saturating_sub(12);
            }
            if sweep.bucket >= guard.buckets() || !guard.wants_sweep() {
                while guard.compact(COMPACT_STEP, &self.common) {
                    if left < COMPACT_STEP {
                        return true;
                    }
                    left -= COMPACT_STEP;
                }
                // Not before: joining buckets would move entries behind the sweep's back.
                guard.shrink(&self.common);
                sweep.stripe += 1;
                sweep.bucket = 0;
            }
        }
        true
    }

    fn settle(&self) -> bool {
        self.common.rooms.join_pages()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        // Rooms that do not come home are lost to the process.
        for stripe in &mut self.stripes {
            stripe.get_mut().reset(&self.common);
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
