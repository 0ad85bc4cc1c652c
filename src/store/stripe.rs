//! One stripe: an index and an arena that agree with each other, and the rules of versions.
//!
//! Everything happens under the stripe's lock, which its owner holds. Memory is asked for before anything
//! is changed, so that a write that does not fit leaves no trace.

use super::arena::{Arena, Entry, Place};
use super::index::{Index, Slot};
use super::rooms::Rooms;
use super::writers::Writers;
use super::{Applied, OutOfMemory, Stamp};
use crate::base::version::{Hlc, Version, WriterIndex};
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries that a write moves out of a chunk that is being emptied.
const EVACUATE_PER_WRITE: usize = 8;
/// Entries that a write may move when memory is short.
const EVACUATE_WHEN_SHORT: usize = 2048;

/// No place: of the last chunk, which a stripe never has, the last part.
pub(super) const NOWHERE: u32 = u32::MAX;

/// What all stripes of a store share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) hasher: ahash::RandomState,
    pub(super) writers: Writers,
    pub(super) rooms: Rooms,
    /// Bytes held by the stripes.
    pub(super) memory: AtomicU64,
    pub(super) memory_limit: u64,
}

impl Common {
    /// Bytes held by the store.
    pub(super) fn held(&self) -> u64 {
        self.memory.load(Ordering::Relaxed) + self.rooms.idle_bytes()
    }

    /// Whether a write may take this much. The last part of the limit is for emptying chunks, which takes
    /// memory before it gives some back, and for workers that ask at the same moment.
    fn fits(&self, bytes: u64, limit: u64) -> bool {
        bytes == 0 || self.held() + bytes <= limit - limit / 64
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stripe {
    index: Index,
    arena: Arena,
    /// The clear that this stripe has taken into account.
    pub(super) clear: Version,
    /// The store's count of clears as of then.
    pub(super) clears_seen: u64,
    /// Visible records, those that have expired unnoticed included.
    pub(super) live: u64,
    pub(super) tombstones: u64,
    /// Records with an expiry.
    pub(super) expiring: u64,
    /// No entry is newer.
    pub(super) newest: Hlc,
    accounted: u64,
}

/// What a sweep found out about an entry.
enum Fate {
    Stays,
    Expired,
    Forgotten,
}

impl Stripe {
    pub(super) fn new() -> Stripe {
        Stripe {
            index: Index::default(),
            arena: Arena::default(),
            clear: Version { hlc: Hlc::ZERO, writer: WriterIndex(0) },
            clears_seen: 0,
            live: 0,
            tombstones: 0,
            expiring: 0,
            newest: Hlc::ZERO,
            accounted: 0,
        }
    }

    #[inline]
    pub(super) fn prefetch_to_bucket(&self, hash: u64) {
        self.index.prefetch_segment(hash);
    }

    /// Returns where the entry may be: where the first one is whose tag fits, or [`NOWHERE`].
    #[inline]
    pub(super) fn prefetch_to_entry(&self, hash: u64) -> u32 {
        let place = self.index.candidate(hash).unwrap_or(NOWHERE);
        self.arena.prefetch_chunk(Place(place));
        place
    }

    #[inline]
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    #[inline]
    pub(super) fn prefetch_entry(&self, place: u32) {
        self.arena.prefetch(Place(place));
    }

    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<(Slot, Place)> {
        let found = self.index.find(hash, |place| self.arena.key(Place(place)) == key);
        found.map(|(slot, place)| (slot, Place(place)))
    }

    /// The entry of a key, visible or not.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<Entry<'_>> {
        let mut entry = None;
        self.index.find(hash, |place| {
            entry = Some(self.arena.entry(Place(place))).filter(|entry| entry.key == key);
            entry.is_some()
        });
        entry
    }

    /// The same, and as a rule it is where [`Stripe::prefetch_to_entry`] has said, under the same lock.
    #[inline]
    pub(super) fn get_hinted(&self, hash: u64, key: &[u8], hint: u32) -> Option<Entry<'_>> {
        if hint != NOWHERE {
            let entry = self.arena.entry(Place(hint));
            if entry.key == key {
                return Some(entry);
            }
        }
        self.get(hash, key)
    }

    /// Takes a clear into account: what is not newer goes.
    pub(super) fn catch_up(&mut self, clear: Version, common: &Common) {
        if self.clear == clear || !common.writers.wins(clear, self.clear) {
            return;
        }
        self.clear = clear;
        let newest = Version { hlc: self.newest, writer: WriterIndex(0) };
        if newest.hlc < clear.hlc {
            // Nothing here is newer: no need to look at the entries.
            self.reset(common);
        } else {
            for number in 0..self.index.buckets() {
                self.sweep_bucket(number, common, |entry| match common.writers.wins(entry.version, clear) {
                    true => Fate::Stays,
                    false => Fate::Forgotten,
                });
            }
            self.shrink(common);
        }
        self.account(common);
    }

    /// Forgets everything, the clear included.
    pub(super) fn forget(&mut self, common: &Common) {
        self.reset(common);
        self.clear = Version { hlc: Hlc::ZERO, writer: WriterIndex(0) };
        self.newest = Hlc::ZERO;
        self.account(common);
    }

    /// Gives up everything.
    pub(super) fn reset(&mut self, common: &Common) {
        self.index.reset(&common.rooms);
        self.arena.reset(&common.rooms);
        (self.live, self.tombstones, self.expiring) = (0, 0, 0);
    }

    /// Decides a write's version, or that it lost.
    #[inline]
    fn version(
        &self,
        old: Option<Version>,
        stamp: Stamp<'_>,
        common: &Common,
        now_ms: u64,
    ) -> Option<Version> {
        match stamp {
            Stamp::Local(clock) => {
                let above = old.map_or(self.clear.hlc, |old| old.hlc.max(self.clear.hlc));
                Some(Version { hlc: clock.stamp(now_ms, above), writer: common.writers.local() })
            }
            Stamp::Given(version) => common.writers.wins_over(version, old, self.clear).then_some(version),
        }
    }

    /// Whether a write that was stamped elsewhere would change anything.
    pub(super) fn is_news(&self, hash: u64, key: &[u8], version: Version, common: &Common) -> bool {
        let old = self.get(hash, key).map(|old| old.version);
        common.writers.is_news(version, old, self.clear)
    }

    /// Stores a record. The entry's version is filled in here.
    #[inline]
    pub(super) fn set(
        &mut self,
        hash: u64,
        mut entry: Entry<'_>,
        stamp: Stamp<'_>,
        common: &Common,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory> {
        let found = self.find(hash, entry.key);
        let Some((slot, place)) = found else {
            let Some(version) = self.version(None, stamp, common, now_ms) else {
                return Ok(Applied::Superseded);
            };
            entry.version = version;
            self.add(hash, &entry, common, stamp.limit(common.memory_limit))?;
            return Ok(Applied::Stored { version, replaced_live: false });
        };
        let old = self.arena.entry(place);
        let Some(version) = self.version(Some(old.version), stamp, common, now_ms) else {
            return Ok(Applied::Superseded);
        };
        entry.version = version;
        let (replaced_live, was_tombstone) = (old.is_visible(now_ms), old.tombstone);
        let was_expiring = old.expires_at_ms != 0;
        if !self.arena.replace(place, &entry) {
            self.make_room(self.arena.growth(entry.size()), common, stamp.limit(common.memory_limit))?;
            // Making room may have moved the old entry.
            let (slot, place) = self.find(hash, entry.key).unwrap_or((slot, place));
            let moved = self.arena.append(&entry, &common.rooms);
            self.index.relocate(slot, moved.0);
            self.arena.kill(place, &common.rooms);
        }
        self.newest = self.newest.max(version.hlc);
        if was_tombstone {
            self.tombstones -= 1;
            self.live += 1;
        }
        self.expiring += u64::from(entry.expires_at_ms != 0);
        self.expiring -= u64::from(was_expiring);
        self.upkeep(common);
        Ok(Applied::Stored { version, replaced_live })
    }

    /// Removes a key; see `Storage::rm`.
    pub(super) fn rm(
        &mut self,
        hash: u64,
        key: &[u8],
        stamp: Stamp<'_>,
        common: &Common,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory> {
        let Some((_, place)) = self.find(hash, key) else {
            if matches!(stamp, Stamp::Local(_)) {
                return Ok(Applied::Missing);
            }
            let Some(version) = self.version(None, stamp, common, now_ms) else {
                return Ok(Applied::Superseded);
            };
            let marks = super::Marks::default();
            let tombstone = Entry { key, value: &[], version, expires_at_ms: 0, marks, tombstone: true };
            self.add(hash, &tombstone, common, stamp.limit(common.memory_limit))?;
            return Ok(Applied::Stored { version, replaced_live: false });
        };
        let old = self.arena.entry(place);
        let replaced_live = old.is_visible(now_ms);
        if !replaced_live && matches!(stamp, Stamp::Local(_)) {
            return Ok(Applied::Missing);
        }
        let Some(version) = self.version(Some(old.version), stamp, common, now_ms) else {
            return Ok(Applied::Superseded);
        };
        let was_tombstone = old.tombstone;
        self.bury(place, version, was_tombstone);
        self.newest = self.newest.max(version.hlc);
        self.upkeep(common);
        Ok(Applied::Stored { version, replaced_live })
    }

    fn bury(&mut self, place: Place, version: Version, was_tombstone: bool) {
        let expiring = self.arena.entry(place).expires_at_ms != 0;
        self.arena.bury(place, version);
        if !was_tombstone {
            self.live -= 1;
            self.tombstones += 1;
            self.expiring -= u64::from(expiring);
        }
    }

    /// Adds an entry for a key that has none.
    fn add(&mut self, hash: u64, entry: &Entry<'_>, common: &Common, limit: u64) -> Result<(), OutOfMemory> {
        self.make_room(self.arena.growth(entry.size()) + self.index.growth(), common, limit)?;
        let place = self.arena.append(entry, &common.rooms);
        self.index.insert(hash, place.0, &common.rooms);
        self.newest = self.newest.max(entry.version.hlc);
        if entry.tombstone {
            self.tombstones += 1;
        } else {
            self.live += 1;
        }
        self.expiring += u64::from(entry.expires_at_ms != 0);
        if self.index.wants_split() && common.fits(self.index.split_growth(), limit) {
            let arena = &self.arena;
            self.index.split(&common.rooms, |place| common.hasher.hash_one(arena.key(Place(place))));
        }
        self.upkeep(common);
        Ok(())
    }

    /// Makes sure that this many bytes fit, by emptying chunks if need be.
    fn make_room(&mut self, bytes: u64, common: &Common, limit: u64) -> Result<(), OutOfMemory> {
        if common.fits(bytes, limit) {
            return Ok(());
        }
        common.rooms.trim(true, usize::MAX);
        if self.arena.wants_evacuation() {
            self.evacuate(EVACUATE_WHEN_SHORT, common);
            self.account(common);
            common.rooms.trim(true, usize::MAX);
        }
        // What had to grow may have become part of what was moved; the caller asked for the most.
        if common.fits(bytes, limit) { Ok(()) } else { Err(OutOfMemory) }
    }

    fn evacuate(&mut self, entries_max: usize, common: &Common) -> bool {
        let Stripe { index, arena, .. } = self;
        arena.evacuate(entries_max, &common.rooms, |key, from, to| {
            let hash = common.hasher.hash_one(key);
            if let Some((slot, _)) = index.find(hash, |place| place == from.0) {
                index.relocate(slot, to.0);
            }
        })
    }

    /// What every write owes: a little tidying, and true figures.
    #[inline]
    fn upkeep(&mut self, common: &Common) {
        if self.arena.wants_evacuation() {
            self.evacuate(EVACUATE_PER_WRITE, common);
        }
        self.account(common);
    }

    fn account(&mut self, common: &Common) {
        let accounted = self.arena.accounted() + self.index.accounted();
        if accounted != self.accounted {
            // Wraps where it shrank; the sum comes out right.
            common.memory.fetch_add(accounted.wrapping_sub(self.accounted), Ordering::Relaxed);
            self.accounted = accounted;
        }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn accounted(&self) -> u64 {
        self.accounted
    }

    /// Buckets to sweep.
    pub(super) fn buckets(&self) -> u64 {
        self.index.buckets()
    }

    /// Is there anything that a sweep could find?
    pub(super) fn wants_sweep(&self) -> bool {
        self.expiring > 0 || self.tombstones > 0
    }

    /// Looks for what has expired, or may be forgotten, in one bucket.
    pub(super) fn sweep(&mut self, number: u64, now_ms: u64, floor: Hlc, common: &Common) {
        self.sweep_bucket(number, common, |entry| {
            match (entry.is_visible(now_ms), entry.version.hlc <= floor) {
                (true, _) => Fate::Stays,
                (false, true) => Fate::Forgotten,
                (false, false) if entry.tombstone => Fate::Stays,
                (false, false) => Fate::Expired,
            }
        });
    }

    fn sweep_bucket(&mut self, number: u64, common: &Common, fate: impl Fn(&Entry<'_>) -> Fate) {
        let mut places = Vec::new();
        self.index.chain(number, &mut places);
        for place in places {
            let entry = self.arena.entry(Place(place));
            match fate(&entry) {
                Fate::Stays => {}
                Fate::Expired => {
                    let (version, tombstone) = (entry.version, entry.tombstone);
                    self.bury(Place(place), version, tombstone);
                }
                Fate::Forgotten => {
                    if entry.tombstone {
                        self.tombstones -= 1;
                    } else {
                        self.live -= 1;
                        self.expiring -= u64::from(entry.expires_at_ms != 0);
                    }
                    let hash = common.hasher.hash_one(entry.key);
                    if let Some((slot, _)) = self.index.find(hash, |held| held == place) {
                        self.index.remove(hash, slot);
                    }
                    self.arena.kill(Place(place), &common.rooms);
                }
            }
        }
    }

    /// Moves up to `entries_max` entries out of chunks of which much is dead; true while there is more to do.
    pub(super) fn compact(&mut self, entries_max: usize, common: &Common) -> bool {
        if !self.arena.wants_compaction() {
            return false;
        }
        // Where only the active chunk holds dead entries there is nothing to move yet.
        let more = self.evacuate(entries_max, common);
        self.account(common);
        more
    }

    /// Gives back what removals have left too large.
    pub(super) fn shrink(&mut self, common: &Common) {
        if self.live + self.tombstones == 0 && self.index.buckets() > 0 {
            self.reset(common);
        }
        while self.index.wants_join() {
            self.index.join(&common.rooms);
        }
        self.account(common);
    }

    /// The entries of the bucket that covers a position of the reversed hash order, as (reversed hash,
    /// place) in that order, and the last position that the bucket covers. Entries that cannot be newer than
    /// `above` may be left out, which saves looking at them: few in a chunk of many are new, as a rule.
    pub(super) fn covered(
        &self,
        position: u64,
        above: Option<Hlc>,
        common: &Common,
        places: &mut Vec<(u64, u32)>,
    ) -> u64 {
        places.clear();
        if self.index.buckets() == 0 {
            return u64::MAX;
        }
        let (number, last) = self.index.covering(position);
        let mut found = Vec::with_capacity(32);
        self.index.chain(number, &mut found);
        if let Some(above) = above {
            found.retain(|&place| self.arena.may_be_above(Place(place), above));
        }
        for &place in &found {
            self.arena.prefetch(Place(place));
        }
        places.extend(found.into_iter().map(|place| {
            let hash = common.hasher.hash_one(self.arena.key(Place(place)));
            (hash.reverse_bits(), place)
        }));
        places.sort_unstable();
        last
    }

    pub(super) fn entry(&self, place: u32) -> Entry<'_> {
        self.arena.entry(Place(place))
    }

    /// Recounts everything; for tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut places = Vec::new();
        for number in 0..self.index.buckets() {
            self.index.chain(number, &mut places);
        }
        let entries = || places.iter().map(|&place| self.arena.entry(Place(place)));
        assert_eq!(places.len() as u64, self.index.len());
        assert_eq!(self.live, entries().filter(|entry| !entry.tombstone).count() as u64);
        assert_eq!(self.tombstones, entries().filter(|entry| entry.tombstone).count() as u64);
        assert_eq!(self.expiring, entries().filter(|entry| entry.expires_at_ms != 0).count() as u64);
        assert!(places.iter().zip(entries()).all(|(&place, entry)| {
            entry.version.hlc == Hlc::ZERO
                || self.arena.may_be_above(Place(place), Hlc(entry.version.hlc.0 - 1))
        }));
        let bytes: usize = places.iter().map(|&place| self.arena.size_at(Place(place))).sum();
        assert_eq!(self.arena.live_bytes(), bytes as u64);
        assert_eq!(self.accounted, self.arena.accounted() + self.index.accounted());
    }
}
