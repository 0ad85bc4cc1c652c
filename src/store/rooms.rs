//! Where the stripes of a store get their memory: rooms in regions, for chunks of entries and for segments
//! of the index.
//!
//! Chunks that come back stay warm for a while, because a store whose values change in size takes as many as
//! it gives; `trim` gives what is too much of them back to the system. Segments are smaller than a page:
//! theirs goes back when a whole region is empty, which is why the fullest regions are used up first.
//!
//! Lock order: taken under a stripe's lock, and a leaf.

use super::index::Segment;
use crate::base::memory::{REGION_BYTES, Region, Room, Slot};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a chunk of entries.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;
/// One part in this many of the chunks in use may wait warm.
const WARM_SHARE: usize = 64;
/// Chunks that `trim` gives back under one lock.
const TRIM_STEP: usize = 16;

pub(super) type ChunkBytes = [u8; CHUNK_BYTES];

/// Regions of rooms for one type.
#[derive(Debug)]
struct Pool<T: Copy> {
    regions: BTreeMap<usize, Region<T>>,
    /// Those that have vacant rooms, the fullest first.
    vacant: BTreeSet<(usize, usize)>,
    /// Those that ran out of rooms since anybody asked.
    full: Vec<usize>,
}

impl<T: Copy> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool { regions: BTreeMap::new(), vacant: BTreeSet::new(), full: Vec::new() }
    }
}

impl<T: Copy> Pool<T> {
    fn take(&mut self) -> Room<T> {
        loop {
            let Some((vacant, address)) = self.vacant.pop_first() else {
                let region = Region::map();
                self.vacant.insert((region.vacant(), region.address()));
                self.regions.insert(region.address(), region);
                continue;
            };
            let Some(room) = self.regions.get_mut(&address).and_then(Region::take) else { continue };
            match vacant {
                1 => self.full.push(address),
                _ => drop(self.vacant.insert((vacant - 1, address))),
            }
            return room;
        }
    }

    /// Takes a room back; bytes that came back to the system by that.
    fn give(&mut self, room: Room<T>, release_whole: bool) -> usize {
        let address = room.region();
        // Rooms come from these regions and from nowhere else.
        let Some(region) = self.regions.get_mut(&address) else { return 0 };
        self.vacant.remove(&(region.vacant(), address));
        region.give(room);
        let mut released = 0;
        if release_whole && region.is_whole() {
            released = region.used_before() * size_of::<T>();
            region.release();
        }
        self.vacant.insert((region.vacant(), address));
        released
    }

    fn next_full(&mut self) -> Option<usize> {
        let address = self.full.pop()?;
        self.regions.get(&address).filter(|region| region.vacant() == 0).map(|_| address)
    }
}

/// Chunks, and those of them that nobody uses just now.
#[derive(Debug, Default)]
struct Chunks {
    pool: Pool<ChunkBytes>,
    warm: Vec<Room<ChunkBytes>>,
    in_use: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    chunks: Mutex<Chunks>,
    segments: Mutex<Pool<Segment>>,
    /// Bytes of memory that no stripe accounts for: warm chunks, segments between two uses.
    idle: AtomicU64,
}

impl Rooms {
    pub(super) fn idle_bytes(&self) -> u64 {
        self.idle.load(Ordering::Relaxed)
    }

    /// Room for a chunk with anything in it, and whether all of it is resident already.
    pub(super) fn take_chunk(&self) -> (Slot<ChunkBytes>, bool) {
        let mut chunks = self.chunks.lock();
        chunks.in_use += 1;
        let warm = chunks.warm.pop();
        let is_warm = warm.is_some();
        if is_warm {
            self.idle.fetch_sub(CHUNK_BYTES as u64, Ordering::Relaxed);
        }
        let room = warm.unwrap_or_else(|| chunks.pool.take());
        (room.as_it_is(), is_warm)
    }

    pub(super) fn give_chunk(&self, chunk: Slot<ChunkBytes>) {
        let mut chunks = self.chunks.lock();
        chunks.in_use -= 1;
        chunks.warm.push(chunk.vacate());
        self.idle.fetch_add(CHUNK_BYTES as u64, Ordering::Relaxed);
    }

    /// Whether `trim` would find something.
    pub(super) fn wants_trim(&self) -> bool {
        let chunks = self.chunks.lock();
        chunks.warm.len() > chunks.in_use / WARM_SHARE
    }

    /// Gives warm chunks back to the system, all of them or as many as are too many. Stops after `chunks_max`
    /// of them; true if there were more.
    pub(super) fn trim(&self, all: bool, chunks_max: usize) -> bool {
        for _ in 0..chunks_max.div_ceil(TRIM_STEP) {
            let mut chunks = self.chunks.lock();
            let kept = if all { 0 } else { chunks.in_use / WARM_SHARE };
            for _ in 0..TRIM_STEP {
                if chunks.warm.len() <= kept {
                    return false;
                }
                let Some(mut room) = chunks.warm.pop() else { return false };
                room.release();
                chunks.pool.give(room, false);
                self.idle.fetch_sub(CHUNK_BYTES as u64, Ordering::Relaxed);
            }
        }
        true
    }

    pub(super) fn take_segment(&self, value: Segment) -> Slot<Segment> {
        let mut segments = self.segments.lock();
        // Whether it has been in use is known by the region only; the fullest one is asked first.
        let reused = segments.idle_first();
        if reused {
            self.idle.fetch_sub(size_of::<Segment>() as u64, Ordering::Relaxed);
        }
        segments.take().fill(value)
    }

    pub(super) fn give_segment(&self, segment: Slot<Segment>) {
        let released = self.segments.lock().give(segment.vacate(), true);
        // One more is idle, and those of a region that was given back are not.
        self.idle.fetch_add(size_of::<Segment>() as u64, Ordering::Relaxed);
        self.idle.fetch_sub(released as u64, Ordering::Relaxed);
    }

    /// Joins the pages of regions that have become full to huge ones. True if there are more.
    pub(super) fn join_pages(&self) -> bool {
        let Some(address) = self.chunks.lock().pool.next_full().or_else(|| self.segments.lock().next_full())
        else {
            return false;
        };
        // Without a lock: it takes long, and changes nothing that anybody could see.
        crate::base::memory::join_pages(address);
        true
    }
}

impl Pool<Segment> {
    /// Whether the next room taken has been in use before.
    fn idle_first(&self) -> bool {
        let fullest = self.vacant.first().and_then(|(_, address)| self.regions.get(address));
        fullest.is_some_and(|region| region.used_before() > 0)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        for room in self.warm.drain(..) {
            self.pool.give(room, false);
        }
    }
}

const _: () = assert!(CHUNK_BYTES <= REGION_BYTES && size_of::<Segment>() <= REGION_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory::REGION_BYTES;

    #[test]
    fn chunks_come_back_warm_and_what_is_too_much_goes_back_to_the_system() {
        let rooms = Rooms::default();
        let mut chunks: Vec<_> = (0..200).map(|_| rooms.take_chunk()).collect();
        assert!(chunks.iter().all(|(_, is_warm)| !is_warm));
        for (number, (chunk, _)) in chunks.iter_mut().enumerate() {
            chunk.fill(number as u8);
        }
        for (chunk, _) in chunks.drain(72..) {
            rooms.give_chunk(chunk);
        }
        assert_eq!(rooms.idle_bytes(), 128 * CHUNK_BYTES as u64);
        assert!(rooms.trim(false, 64), "there are more than that");
        assert!(!rooms.trim(false, 1000));
        assert_eq!((rooms.idle_bytes(), rooms.wants_trim()), (CHUNK_BYTES as u64, false));
        assert!(rooms.take_chunk().1, "72 in use: one stays warm");
        let (cold, is_warm) = rooms.take_chunk();
        assert!(!is_warm && cold.iter().all(|&byte| byte == 0), "given back, and used again");
        for (number, (chunk, _)) in chunks.iter().enumerate() {
            assert!(chunk.iter().all(|&byte| byte == number as u8), "those in use are as they were");
        }
    }

    #[test]
    fn segments_go_back_when_a_region_is_empty_and_the_fullest_is_used_up_first() {
        let rooms = Rooms::default();
        let each = size_of::<Segment>() as u64;
        let count = REGION_BYTES / size_of::<Segment>();
        let value = [super::super::index::EMPTY; 16];
        let mut first: Vec<_> = (0..count).map(|_| rooms.take_segment(value)).collect();
        let second: Vec<_> = (0..10).map(|_| rooms.take_segment(value)).collect();
        first.drain(..5).for_each(|segment| rooms.give_segment(segment));
        assert_eq!(rooms.idle_bytes(), 5 * each);
        first.push(rooms.take_segment(value));
        assert_eq!(rooms.idle_bytes(), 4 * each, "the full region's rather than the new one's");
        second.into_iter().for_each(|segment| rooms.give_segment(segment));
        assert_eq!(rooms.idle_bytes(), 4 * each, "an empty region holds nothing");
        first.into_iter().for_each(|segment| rooms.give_segment(segment));
        assert_eq!(rooms.idle_bytes(), 0);
    }
}
