//! The index of one stripe: linear hashing over buckets of one cache line.
//!
//! A bucket holds twelve references with a byte of each key's hash, and a link to an overflow bucket. The
//! table grows by splitting one bucket at a time, in order, so that no insert pays for a doubling, and
//! shrinks by joining them again. Buckets lie in segments, so that growth moves nothing.
//!
//! A bucket is chosen by the low bits of the hash. In the order of the hash with its bits reversed, a
//! bucket therefore covers one stretch, and a split cuts that stretch in two: walks in that order survive
//! growth and shrinking.

use super::rooms::Rooms;
use crate::base::memory::Slot as Room;

const SLOTS: usize = 12;
const SEGMENT: usize = 16;
/// A split when there is more than this many entries a bucket, in sixteenths.
const LOAD_MAX_16: u64 = 152;
/// A join when there are fewer than this many entries a bucket, in sixteenths.
const LOAD_MIN_16: u64 = 64;
/// Entries of a longest sensible chain, for buffers.
const OVERFLOW: u32 = 1 << 31;

/// Tags of zero mean an empty slot. `next`: an overflow bucket's number plus one, or zero.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    tags: [u8; SLOTS],
    next: u32,
    places: [u32; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == 64);
pub(super) const EMPTY: Bucket = Bucket { tags: [0; SLOTS], next: 0, places: [0; SLOTS] };

/// As many buckets as a stripe takes at a time.
pub(super) type Segment = [Bucket; SEGMENT];
const EMPTY_SEGMENT: Segment = [EMPTY; SEGMENT];

/// A slot of the index, good until the next insert, removal or split.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// A bucket's number, or an overflow bucket's with the highest bit set.
    bucket: u32,
    slot: u8,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    segments: Vec<Room<Segment>>,
    overflow: Vec<Room<Segment>>,
    level: u32,
    split: u32,
    /// Overflow buckets that were given back, linked by `next`.
    overflow_free: u32,
    overflow_used: u32,
    entries: u64,
    moving: Vec<(u8, u32)>,
}

#[inline]
fn tag(hash: u64) -> u8 {
    // Zero means empty.
    ((hash >> 56) as u8).max(1)
}

/// A bit for each slot with this tag. Eight and then four bytes at a time: what the compiler makes of a loop takes
/// three times as long, and each lookup does this three times.
#[inline(always)]
fn matches(tags: &[u8; SLOTS], tag: u8) -> u32 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const LOW: u64 = 0x7F * ONES;
    // A set highest bit for each byte that is zero, gathered in the highest byte.
    let zeros = |bytes: u64| {
        let zeros = !(((bytes & LOW) + LOW) | bytes | LOW);
        ((zeros >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *tags;
    let tag = u64::from(tag) * ONES;
    let first = zeros(u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ tag);
    let last = zeros(u64::from(u32::from_le_bytes([i, j, k, l])) ^ (tag & 0xFFFF_FFFF) | ONES << 32);
    first | last << 8
}

impl Index {
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.entries
    }

    /// Buckets, overflow not counted.
    #[inline]
    pub(super) fn buckets(&self) -> u64 {
        if self.segments.is_empty() { 0 } else { (1 << self.level) + u64::from(self.split) }
    }

    /// Bytes of memory held.
    pub(super) fn accounted(&self) -> u64 {
        let segments = self.segments.len() + self.overflow.len();
        let pointers = self.segments.capacity() + self.overflow.capacity();
        (segments * size_of::<Segment>() + pointers * size_of::<Room<Segment>>()) as u64
            + (self.moving.capacity() * size_of::<(u8, u32)>()) as u64
    }

    /// What the next insert could cost in memory, at most.
    pub(super) fn growth(&self) -> u64 {
        if self.segments.is_empty() || (self.overflow_free == 0 && self.overflow_room() == 0) {
            (2 * size_of::<Segment>()) as u64
        } else {
            0
        }
    }

    fn overflow_room(&self) -> usize {
        self.overflow.len() * SEGMENT - self.overflow_used as usize
    }

    /// The bucket of a hash: its low `level + 1` bits if that bucket was split off already, else `level`.
    #[inline]
    fn address(&self, hash: u64) -> u32 {
        let wide = hash & ((2 << self.level) - 1);
        if wide < self.buckets() { wide as u32 } else { (hash & ((1 << self.level) - 1)) as u32 }
    }

    #[inline]
    fn bucket(&self, number: u32) -> &Bucket {
        let (from, number) = if number & OVERFLOW == 0 {
            (&self.segments, number)
        } else {
            (&self.overflow, number ^ OVERFLOW)
        };
        &from[number as usize / SEGMENT][number as usize % SEGMENT]
    }

    #[inline]
    fn bucket_mut(&mut self, number: u32) -> &mut Bucket {
        let (from, number) = match number & OVERFLOW {
            0 => (&mut self.segments, number),
            _ => (&mut self.overflow, number ^ OVERFLOW),
        };
        &mut from[number as usize / SEGMENT][number as usize % SEGMENT]
    }

    #[inline]
    fn next(bucket: &Bucket) -> Option<u32> {
        (bucket.next != 0).then(|| (bucket.next - 1) | OVERFLOW)
    }

    /// Asks for what says where the bucket of a hash is.
    #[inline]
    pub(super) fn prefetch_segment(&self, hash: u64) {
        if let Some(segment) = self.segments.get(self.address(hash) as usize / SEGMENT) {
            crate::base::memory::prefetch_line(segment);
        }
    }

    /// Asks for the bucket of a hash.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if !self.segments.is_empty() {
            crate::base::memory::prefetch_line(self.bucket(self.address(hash)));
        }
    }

    /// The first place that may belong to this hash, in the first bucket of its chain.
    #[inline]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        if self.segments.is_empty() {
            return None;
        }
        let bucket = self.bucket(self.address(hash));
        let found = matches(&bucket.tags, tag(hash));
        bucket.places.get(found.trailing_zeros() as usize).copied()
    }

    /// The slot whose tag fits and of whose place `is_it` says yes.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<(Slot, u32)> {
        if self.segments.is_empty() {
            return None;
        }
        let tag = tag(hash);
        let mut number = self.address(hash);
        loop {
            let bucket = self.bucket(number);
            let mut found = matches(&bucket.tags, tag);
            while found != 0 {
                let slot = found.trailing_zeros() as usize;
                if is_it(bucket.places[slot]) {
                    return Some((Slot { bucket: number, slot: slot as u8 }, bucket.places[slot]));
                }
                found &= found - 1;
            }
            number = Self::next(bucket)?;
        }
    }

    /// The entry of this slot is at another place now.
    pub(super) fn relocate(&mut self, slot: Slot, place: u32) {
        self.bucket_mut(slot.bucket).places[usize::from(slot.slot)] = place;
    }

    /// Adds an entry; whether the key is there already is the caller's business.
    pub(super) fn insert(&mut self, hash: u64, place: u32, rooms: &Rooms) {
        if self.segments.is_empty() {
            self.segments.push(rooms.take_segment(EMPTY_SEGMENT));
        }
        self.put(self.address(hash), tag(hash), place, rooms);
        self.entries += 1;
    }

    /// Puts into the first empty slot of a chain, adding to the chain if there is none.
    fn put(&mut self, mut number: u32, tag: u8, place: u32, rooms: &Rooms) {
        loop {
            let bucket = self.bucket_mut(number);
            let empty = matches(&bucket.tags, 0);
            if empty != 0 {
                let slot = empty.trailing_zeros() as usize;
                bucket.tags[slot] = tag;
                bucket.places[slot] = place;
                return;
            }
            number = match Self::next(bucket) {
                Some(next) => next,
                None => {
                    let added = self.take_overflow(rooms);
                    self.bucket_mut(number).next = (added ^ OVERFLOW) + 1;
                    added
                }
            };
        }
    }

    fn take_overflow(&mut self, rooms: &Rooms) -> u32 {
        if self.overflow_free != 0 {
            let number = (self.overflow_free - 1) | OVERFLOW;
            self.overflow_free = self.bucket(number).next;
            *self.bucket_mut(number) = EMPTY;
            return number;
        }
        if self.overflow_room() == 0 {
            self.overflow.push(rooms.take_segment(EMPTY_SEGMENT));
        }
        self.overflow_used += 1;
        (self.overflow_used - 1) | OVERFLOW
    }

    fn give_overflow(&mut self, number: u32) {
        let free = self.overflow_free;
        *self.bucket_mut(number) = Bucket { next: free, ..EMPTY };
        self.overflow_free = (number ^ OVERFLOW) + 1;
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, hash: u64, slot: Slot) {
        self.bucket_mut(slot.bucket).tags[usize::from(slot.slot)] = 0;
        self.entries -= 1;
        // Overflow buckets that have become empty leave the chain.
        let mut before = self.address(hash);
        while let Some(number) = Self::next(self.bucket(before)) {
            let bucket = *self.bucket(number);
            if bucket.tags == [0; SLOTS] {
                self.bucket_mut(before).next = bucket.next;
                self.give_overflow(number);
            } else {
                before = number;
            }
        }
    }

    /// Takes a whole chain into `moving`, leaving its first bucket empty.
    fn drain(&mut self, number: u32) {
        let mut at = Some(number);
        while let Some(current) = at {
            let bucket = *self.bucket(current);
            for slot in 0..SLOTS {
                if bucket.tags[slot] != 0 {
                    self.moving.push((bucket.tags[slot], bucket.places[slot]));
                }
            }
            at = Self::next(&bucket);
            if current & OVERFLOW == 0 {
                *self.bucket_mut(current) = EMPTY;
            } else {
                self.give_overflow(current);
            }
        }
    }

    /// Whether a split is due; false too when it would need memory that `may_grow` refuses.
    pub(super) fn wants_split(&self) -> bool {
        self.entries * 16 > self.buckets() * LOAD_MAX_16
    }

    /// Whether the next split adds a segment.
    pub(super) fn split_growth(&self) -> u64 {
        let full = self.buckets() as usize == self.segments.len() * SEGMENT;
        if full { size_of::<Segment>() as u64 } else { 0 }
    }

    /// Splits one bucket. `hash_of` gives the hash of the key at a place.
    pub(super) fn split(&mut self, rooms: &Rooms, mut hash_of: impl FnMut(u32) -> u64) {
        if self.buckets() as usize == self.segments.len() * SEGMENT {
            self.segments.push(rooms.take_segment(EMPTY_SEGMENT));
        }
        let (low, high) = (self.split, self.split + (1 << self.level));
        let mut moving = std::mem::take(&mut self.moving);
        moving.clear();
        self.moving = moving;
        self.drain(low);
        let moving = std::mem::take(&mut self.moving);
        for &(tag, place) in &moving {
            let bit = hash_of(place) >> self.level & 1;
            self.put(if bit == 0 { low } else { high }, tag, place, rooms);
        }
        self.moving = moving;
        self.split += 1;
        if self.split == 1 << self.level {
            self.level += 1;
            self.split = 0;
        }
    }

    /// Whether so few are left that buckets should be joined.
    pub(super) fn wants_join(&self) -> bool {
        self.buckets() > 1 && self.entries * 16 < self.buckets() * LOAD_MIN_16
    }

    /// Undoes the last split.
    pub(super) fn join(&mut self, rooms: &Rooms) {
        if self.split == 0 {
            self.level -= 1;
            self.split = 1 << self.level;
        }
        self.split -= 1;
        let (low, high) = (self.split, self.split + (1 << self.level));
        self.moving.clear();
        self.drain(high);
        let moving = std::mem::take(&mut self.moving);
        for &(tag, place) in &moving {
            self.put(low, tag, place, rooms);
        }
        self.moving = moving;
        // A segment stays in reserve, so that joining and splitting in turn does not cost one each time.
        while self.segments.len() * SEGMENT > self.buckets() as usize + 2 * SEGMENT {
            self.segments.pop().into_iter().for_each(|segment| rooms.give_segment(segment));
        }
    }

    /// Gives up everything.
    pub(super) fn reset(&mut self, rooms: &Rooms) {
        let Index { segments, overflow, .. } = std::mem::take(self);
        segments.into_iter().chain(overflow).for_each(|segment| rooms.give_segment(segment));
    }

    /// The places in the chain of bucket `number`, appended to `places`.
    pub(super) fn chain(&self, number: u64, places: &mut Vec<u32>) {
        let mut at = Some(number as u32);
        while let Some(current) = at {
            let bucket = self.bucket(current);
            places.extend((0..SLOTS).filter(|&slot| bucket.tags[slot] != 0).map(|slot| bucket.places[slot]));
            at = Self::next(bucket);
        }
    }

    /// The bucket that covers a position of the reversed order, and the last position that it covers.
    pub(super) fn covering(&self, position: u64) -> (u64, u64) {
        let hash = position.reverse_bits();
        let number = self.address(hash);
        let wide = number >= 1 << self.level || number < self.split;
        let bits = self.level + u32::from(wide);
        let rest = if bits == 0 { u64::MAX } else { u64::MAX >> bits };
        (u64::from(number), position | rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_where_they_are_and_nowhere_else() {
        for tag in 0..=255 {
            for others in [0u8, 1, 0x7F, 0x80, 0x81, 0xFF, tag ^ 1, tag ^ 0x80, tag.wrapping_add(1)] {
                for pattern in 0..1u32 << SLOTS {
                    // All patterns of a few tags, some of all.
                    if tag % 51 != 0 && pattern.count_ones() > 1 {
                        continue;
                    }
                    let tags =
                        std::array::from_fn(|slot| if pattern >> slot & 1 == 1 { tag } else { others });
                    let wanted = if others == tag { (1 << SLOTS) - 1 } else { pattern };
                    assert_eq!(matches(&tags, tag), wanted, "{tag:#x} among {others:#x}");
                }
            }
        }
    }
}
