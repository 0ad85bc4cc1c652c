//! The entries of one stripe: a log in chunks of 16 KiB.
//!
//! ```text
//! entry, a multiple of 8 bytes:
//! +--------+--------+-------------+-----------+-----+-------+---------+
//! | hlc  8 | meta 4 | [lengths 8] | [expiry 8]| key | value | padding |
//! +--------+--------+-------------+-----------+-----+-------+---------+
//! meta: 0-7 writer | 8-15 key length - 1 | 16-25 value length | 26 dead | 27 tombstone
//!       | 28 expiry present | 29 lengths present | 30-31 marks
//! ```
//!
//! New entries go to the end of the active chunk. One that gives way is marked dead where it is; when
//! enough of a stripe is dead, the live entries of its deadest chunk move, some at each write, and the
//! chunk is given back. An entry that shrinks stays in place and leaves a dead filler behind itself.
//!
//! A chunk is a room of a region: pages that were not written yet cost nothing, and those of a chunk that
//! was given up go back to the system. The bounds checks cost less than was measurable beside the cache misses.

use super::Marks;
use super::rooms::{CHUNK_BYTES, ChunkBytes, Rooms};
use crate::base::memory::Slot;
use crate::base::version::{Hlc, Version, WriterIndex};

const GRANULE: usize = 8;
const GRANULE_BITS: u32 = 11;
const HEADER: usize = 12;
/// Memory is accounted in these, as the system gives it.
const PAGE: usize = 4096;

const DEAD: u32 = 1 << 26;
const TOMBSTONE: u32 = 1 << 27;
const EXPIRY: u32 = 1 << 28;
const LENGTHS: u32 = 1 << 29;
const VALUE_SHORT_MAX: usize = (1 << 10) - 1;
const KEY_SHORT_MAX: usize = 1 << 8;

const _: () = assert!(CHUNK_BYTES == GRANULE << GRANULE_BITS);

/// Where an entry is: 21 bits of chunk, 11 of granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) u32);

impl Place {
    fn new(chunk: usize, offset: usize) -> Place {
        Place(((chunk << GRANULE_BITS) | (offset / GRANULE)) as u32)
    }

    fn chunk(self) -> usize {
        (self.0 >> GRANULE_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 as usize & ((1 << GRANULE_BITS) - 1)) * GRANULE
    }
}

/// What is stored: a record, or the memory of a removal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) version: Version,
    /// 0: never.
    pub(super) expires_at_ms: u64,
    pub(super) marks: Marks,
    pub(super) tombstone: bool,
}

impl Entry<'_> {
    /// A record that has not expired.
    #[inline]
    pub(super) fn is_visible(&self, now_ms: u64) -> bool {
        !self.tombstone && (self.expires_at_ms == 0 || self.expires_at_ms > now_ms)
    }

    fn is_long(&self) -> bool {
        self.key.len() > KEY_SHORT_MAX || self.value.len() > VALUE_SHORT_MAX
    }

    /// Bytes that the entry takes.
    pub(super) fn size(&self) -> usize {
        let lengths = if self.is_long() { 8 } else { 0 };
        let expiry = if self.expires_at_ms != 0 { 8 } else { 0 };
        (HEADER + lengths + expiry + self.key.len() + self.value.len()).next_multiple_of(GRANULE)
    }

    /// Writes the entry to the start of `to`, which has room for it. With `padded` it takes eight bytes more
    /// than it needs: an expiry of never, or lengths that would have fitted the header. Not possible for an
    /// entry that has both already.
    fn write(&self, to: &mut [u8], padded: bool) {
        let with_expiry = self.expires_at_ms != 0 || padded;
        let with_lengths = self.is_long() || (padded && self.expires_at_ms != 0);
        let mut meta = u32::from(self.version.writer.0) | u32::from(self.marks.0 & 3) << 30;
        if self.tombstone {
            meta |= TOMBSTONE;
        }
        if with_expiry {
            meta |= EXPIRY;
        }
        let mut at = HEADER;
        if with_lengths {
            meta |= LENGTHS;
            to[at..at + 4].copy_from_slice(&(self.key.len() as u32).to_le_bytes());
            to[at + 4..at + 8].copy_from_slice(&(self.value.len() as u32).to_le_bytes());
            at += 8;
        } else {
            meta |= (self.key.len() as u32 - 1) << 8 | (self.value.len() as u32) << 16;
        }
        to[..8].copy_from_slice(&self.version.hlc.0.to_le_bytes());
        to[8..12].copy_from_slice(&meta.to_le_bytes());
        if with_expiry {
            to[at..at + 8].copy_from_slice(&self.expires_at_ms.to_le_bytes());
            at += 8;
        }
        to[at..at + self.key.len()].copy_from_slice(self.key);
        at += self.key.len();
        to[at..at + self.value.len()].copy_from_slice(self.value);
    }
}

/// The parts of an entry's layout, read from its first bytes.
#[derive(Clone, Copy)]
struct Shape {
    meta: u32,
    key: usize,
    value: usize,
    /// Where the key begins.
    body: usize,
}

impl Shape {
    #[inline(always)]
    fn of(bytes: &[u8]) -> Shape {
        let meta = read_u32(bytes, 8);
        let mut body = HEADER;
        let (key, value) = if meta & LENGTHS == 0 {
            ((meta >> 8 & 0xFF) as usize + 1, (meta >> 16 & 0x3FF) as usize)
        } else {
            body += 8;
            (read_u32(bytes, 12) as usize, read_u32(bytes, 16) as usize)
        };
        if meta & EXPIRY != 0 {
            body += 8;
        }
        Shape { meta, key, value, body }
    }

    fn size(self) -> usize {
        (self.body + self.key + self.value).next_multiple_of(GRANULE)
    }
}

#[inline(always)]
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    // One check of the bounds, not one a byte.
    bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

#[inline(always)]
fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// Where a chunk's bytes are.
#[derive(Debug)]
enum Body {
    Room(Slot<ChunkBytes>),
    /// Made for one entry that is larger than a room; or nothing.
    Own(Box<[u8]>),
}

#[derive(Debug)]
struct Chunk {
    body: Body,
    used: u32,
    dead: u32,
    /// Bytes that are resident whether they are used or not.
    touched: u32,
    /// No entry in it is newer.
    newest: Hlc,
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk { body: Body::Own(Box::default()), used: 0, dead: 0, touched: 0, newest: Hlc::ZERO }
    }
}

impl Chunk {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Room(slot) => &slot[..],
            Body::Own(bytes) => bytes,
        }
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.body {
            Body::Room(slot) => &mut slot[..],
            Body::Own(bytes) => bytes,
        }
    }

    fn accounted(&self) -> u64 {
        u64::from(self.used.next_multiple_of(PAGE as u32).max(self.touched))
    }

    fn has_room(&self, size: usize) -> bool {
        self.used as usize + size <= CHUNK_BYTES
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: Vec<Chunk>,
    /// Chunks that were given back and may be used again.
    free: Vec<u32>,
    active: Option<u32>,
    used: u64,
    dead: u64,
    accounted: u64,
    /// The chunk that is being emptied, and how far that has come.
    victim: Option<(u32, u32)>,
    moving: Vec<u8>,
}

impl Arena {
    /// Bytes of memory held.
    pub(super) fn accounted(&self) -> u64 {
        self.accounted
            + (self.chunks.capacity() * size_of::<Chunk>()) as u64
            + (self.free.capacity() * size_of::<u32>() + self.moving.capacity()) as u64
    }

    /// Bytes of entries that are not dead.
    #[cfg(test)]
    pub(super) fn live_bytes(&self) -> u64 {
        self.used - self.dead
    }

    /// What adding this many bytes would cost in memory, at most.
    pub(super) fn growth(&self, size: usize) -> u64 {
        match self.active.map(|active| &self.chunks[active as usize]) {
            Some(chunk) if chunk.has_room(size) => {
                let after = (chunk.used as usize + size).next_multiple_of(PAGE) as u64;
                after.saturating_sub(chunk.accounted())
            }
            _ => size.next_multiple_of(PAGE) as u64,
        }
    }

    #[inline]
    fn bytes(&self, place: Place) -> &[u8] {
        &self.chunks[place.chunk()].bytes()[place.offset()..]
    }

    /// Asks for what says where the entry is.
    #[inline]
    pub(super) fn prefetch_chunk(&self, place: Place) {
        if let Some(chunk) = self.chunks.get(place.chunk()) {
            crate::base::memory::prefetch_line(chunk);
        }
    }

    /// Asks for the entry's first cache lines.
    #[inline]
    pub(super) fn prefetch(&self, place: Place) {
        if let Some(bytes) =
            self.chunks.get(place.chunk()).and_then(|chunk| chunk.bytes().get(place.offset()..))
        {
            crate::base::memory::prefetch(bytes);
        }
    }

    #[inline]
    pub(super) fn key(&self, place: Place) -> &[u8] {
        let bytes = self.bytes(place);
        let shape = Shape::of(bytes);
        &bytes[shape.body..shape.body + shape.key]
    }

    #[inline]
    pub(super) fn entry(&self, place: Place) -> Entry<'_> {
        let bytes = self.bytes(place);
        let shape = Shape::of(bytes);
        let (key, rest) = bytes[shape.body..].split_at(shape.key);
        Entry {
            key,
            value: &rest[..shape.value],
            version: Version { hlc: Hlc(read_u64(bytes, 0)), writer: WriterIndex(shape.meta as u8) },
            expires_at_ms: if shape.meta & EXPIRY == 0 { 0 } else { read_u64(bytes, shape.body - 8) },
            marks: Marks((shape.meta >> 30) as u8),
            tombstone: shape.meta & TOMBSTONE != 0,
        }
    }

    /// Whether the entry at `place` may be newer than this, told without looking at it: by its chunk.
    #[inline]
    pub(super) fn may_be_above(&self, place: Place, above: Hlc) -> bool {
        self.chunks[place.chunk()].newest > above
    }

    /// Bytes that the entry at `place` takes.
    pub(super) fn size_at(&self, place: Place) -> usize {
        Shape::of(self.bytes(place)).size()
    }

    /// Adds an entry at the end of the log.
    pub(super) fn append(&mut self, entry: &Entry<'_>, rooms: &Rooms) -> Place {
        let size = entry.size();
        let (place, room) = self.reserve(size, entry.version.hlc, rooms);
        entry.write(room, false);
        place
    }

    /// Room at the end of the log for an entry of this age.
    fn reserve(&mut self, size: usize, hlc: Hlc, rooms: &Rooms) -> (Place, &mut [u8]) {
        let index = match self.active {
            Some(active) if self.chunks[active as usize].has_room(size) => active as usize,
            _ => {
                let index = self.open(size, rooms);
                // A chunk that was made for one large entry has no room for others.
                if size <= CHUNK_BYTES {
                    self.active = Some(index as u32);
                }
                index
            }
        };
        let chunk = &mut self.chunks[index];
        let before = chunk.accounted();
        let start = chunk.used as usize;
        chunk.used += size as u32;
        chunk.newest = chunk.newest.max(hlc);
        self.accounted += chunk.accounted() - before;
        self.used += size as u64;
        (Place::new(index, start), &mut chunk.bytes_mut()[start..start + size])
    }

    fn open(&mut self, size: usize, rooms: &Rooms) -> usize {
        let (body, touched) = if size <= CHUNK_BYTES {
            let (slot, is_warm) = rooms.take_chunk();
            (Body::Room(slot), if is_warm { CHUNK_BYTES as u32 } else { 0 })
        } else {
            (Body::Own(vec![0; size].into_boxed_slice()), 0)
        };
        let chunk = Chunk { body, used: 0, dead: 0, touched, newest: Hlc::ZERO };
        self.accounted += chunk.accounted();
        match self.free.pop() {
            Some(index) => {
                self.chunks[index as usize] = chunk;
                index as usize
            }
            None => {
                self.chunks.push(chunk);
                self.chunks.len() - 1
            }
        }
    }

    /// Replaces the entry at `place` by one that is not larger, if the rest can be left as a filler.
    /// False: nothing was done.
    pub(super) fn replace(&mut self, place: Place, entry: &Entry<'_>) -> bool {
        let (old, new) = (self.size_at(place), entry.size());
        // Too small a gap for a filler: the entry itself has to take it, if it can.
        let padded = new + GRANULE == old;
        if new > old || (padded && entry.is_long() && entry.expires_at_ms != 0) {
            return false;
        }
        let chunk = &mut self.chunks[place.chunk()];
        chunk.newest = chunk.newest.max(entry.version.hlc);
        let room = &mut chunk.bytes_mut()[place.offset()..place.offset() + old];
        entry.write(room, padded);
        let gap = old - new;
        if gap > 0 && !padded {
            write_filler(&mut room[new..]);
            chunk.dead += gap as u32;
            self.dead += gap as u64;
        }
        true
    }

    /// Turns the entry at `place` into a tombstone of this version. Needs no memory.
    pub(super) fn bury(&mut self, place: Place, version: Version) {
        let key = self.key(place).to_vec();
        let tombstone = Entry {
            key: &key,
            value: &[],
            version,
            expires_at_ms: 0,
            marks: Marks::default(),
            tombstone: true,
        };
        let replaced = self.replace(place, &tombstone);
        debug_assert!(replaced, "a tombstone always fits where its record was");
    }

    /// Gives up the entry at `place`.
    pub(super) fn kill(&mut self, place: Place, rooms: &Rooms) {
        let size = self.size_at(place);
        let chunk = &mut self.chunks[place.chunk()];
        let meta = place.offset() + 8;
        let dead = read_u32(chunk.bytes(), meta) | DEAD;
        chunk.bytes_mut()[meta..meta + 4].copy_from_slice(&dead.to_le_bytes());
        chunk.dead += size as u32;
        self.dead += size as u64;
        let index = place.chunk() as u32;
        if chunk.dead == chunk.used && self.active != Some(index) {
            self.release(index, rooms);
        }
    }

    /// Gives up everything.
    pub(super) fn reset(&mut self, rooms: &Rooms) {
        for chunk in std::mem::take(self).chunks {
            if let Body::Room(slot) = chunk.body {
                rooms.give_chunk(slot);
            }
        }
    }

    fn release(&mut self, index: u32, rooms: &Rooms) {
        let chunk = std::mem::take(&mut self.chunks[index as usize]);
        self.accounted -= chunk.accounted();
        self.used -= u64::from(chunk.used);
        self.dead -= u64::from(chunk.dead);
        if let Body::Room(slot) = chunk.body {
            rooms.give_chunk(slot);
        }
        self.free.push(index);
        if self.victim.is_some_and(|(victim, _)| victim == index) {
            self.victim = None;
        }
    }

    /// More than 15 % is dead, and there is a chunk that it would pay to empty.
    pub(super) fn wants_evacuation(&self) -> bool {
        self.dead * 100 > self.used * 15 && self.used > CHUNK_BYTES as u64
    }

    /// More is dead than background work leaves behind.
    pub(super) fn wants_compaction(&self) -> bool {
        self.dead * 100 > self.used * 10 && self.used > CHUNK_BYTES as u64
    }

    /// Moves up to `entries_max` entries out of the deadest chunk. `moved` is told of each: its key, where it
    /// was and where it is. True while there is more to do.
    pub(super) fn evacuate(
        &mut self,
        entries_max: usize,
        rooms: &Rooms,
        mut moved: impl FnMut(&[u8], Place, Place),
    ) -> bool {
        let Some((victim, mut offset)) = self.victim.or_else(|| self.deadest()) else { return false };
        for _ in 0..entries_max {
            let chunk = &self.chunks[victim as usize];
            if offset >= chunk.used {
                self.release(victim, rooms);
                return self.wants_compaction();
            }
            let from = Place::new(victim as usize, offset as usize);
            let shape = Shape::of(self.bytes(from));
            let size = shape.size();
            if shape.meta & DEAD == 0 {
                let mut moving = std::mem::take(&mut self.moving);
                moving.clear();
                moving.extend_from_slice(&self.bytes(from)[..size]);
                let hlc = Hlc(read_u64(&moving, 0));
                let (to, room) = self.reserve(size, hlc, rooms);
                room.copy_from_slice(&moving);
                moved(&moving[shape.body..shape.body + shape.key], from, to);
                self.moving = moving;
                // What has moved is dead here, so that a stripe's figures are true between two steps.
                let chunk = &mut self.chunks[victim as usize];
                let meta = offset as usize + 8;
                chunk.bytes_mut()[meta..meta + 4].copy_from_slice(&(shape.meta | DEAD).to_le_bytes());
                chunk.dead += size as u32;
                self.dead += size as u64;
            }
            offset += size as u32;
            self.victim = Some((victim, offset));
        }
        true
    }

    fn deadest(&self) -> Option<(u32, u32)> {
        let candidates = self.chunks.iter().enumerate();
        candidates
            .filter(|(index, chunk)| self.active != Some(*index as u32) && chunk.used > 0 && chunk.dead > 0)
            .max_by_key(|(_, chunk)| u64::from(chunk.dead) * 1024 / u64::from(chunk.used))
            .map(|(index, _)| (index as u32, 0))
    }
}

/// Makes `gap`, at least 16 bytes, an entry that nobody refers to.
fn write_filler(gap: &mut [u8]) {
    let (header, lengths) = match gap.len() - HEADER - 1 {
        short @ 0..=VALUE_SHORT_MAX => (DEAD | (short as u32) << 16, None),
        _ => (DEAD | LENGTHS, Some((1u32, (gap.len() - HEADER - 8 - 1) as u32))),
    };
    gap[..8].fill(0);
    gap[8..12].copy_from_slice(&header.to_le_bytes());
    if let Some((key, value)) = lengths {
        gap[12..16].copy_from_slice(&key.to_le_bytes());
        gap[16..20].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(key: &'a [u8], value: &'a [u8], expires_at_ms: u64) -> Entry<'a> {
        let version = Version { hlc: Hlc(0x0123_4567_89AB_CDEF), writer: WriterIndex(200) };
        Entry { key, value, version, expires_at_ms, marks: Marks(3), tombstone: false }
    }

    #[test]
    fn what_is_written_is_read_at_every_boundary_of_the_lengths() {
        let (mut arena, rooms) = (Arena::default(), Rooms::default());
        let text = vec![b'x'; 20_000];
        for key in [1, 2, 255, 256, 257, 4096] {
            for value in [0, 1, 7, 1023, 1024, 16_384] {
                for expiry in [0, 77] {
                    let wanted = entry(&text[..key], &text[..value], expiry);
                    let place = arena.append(&wanted, &rooms);
                    let found = arena.entry(place);
                    assert_eq!((found.key, found.value), (wanted.key, wanted.value));
                    assert_eq!((found.version, found.marks), (wanted.version, wanted.marks));
                    assert_eq!((found.expires_at_ms, found.tombstone), (expiry, false));
                    assert_eq!(arena.size_at(place), wanted.size());
                }
            }
        }
    }

    #[test]
    fn fillers_of_every_size_can_be_walked_over() {
        for gap in (16..3000).step_by(8).chain([20_000]) {
            let mut bytes = vec![0xFF; gap];
            write_filler(&mut bytes);
            let shape = Shape::of(&bytes);
            assert_eq!(shape.size(), gap);
            assert_ne!(shape.meta & DEAD, 0);
        }
    }

    #[test]
    fn an_entry_that_shrinks_by_any_amount_stays_where_it_is() {
        let text = [b'v'; 64];
        for (old_expiry, new_expiry) in [(0, 0), (5, 0), (5, 5)] {
            for new in 0..50 {
                for old in new..50 {
                    let (mut arena, rooms) = (Arena::default(), Rooms::default());
                    let place = arena.append(&entry(b"key", &text[..old], old_expiry), &rooms);
                    let behind = arena.append(&entry(b"next", b"", 0), &rooms);
                    assert!(arena.replace(place, &entry(b"key", &text[..new], new_expiry)), "{old} to {new}");
                    let found = arena.entry(place);
                    assert_eq!((found.key, found.value), (&b"key"[..], &text[..new]));
                    assert_eq!(found.expires_at_ms, new_expiry);
                    assert_eq!(arena.key(behind), b"next");
                }
            }
        }
    }

    #[test]
    fn a_tombstone_fits_where_any_record_was() {
        for key in 1..40 {
            for value in 0..60 {
                for expiry in [0, 5] {
                    let (mut arena, rooms) = (Arena::default(), Rooms::default());
                    let text = [b'k'; 64];
                    let place = arena.append(&entry(&text[..key], &text[..value], expiry), &rooms);
                    let behind = arena.append(&entry(b"next", b"", 0), &rooms);
                    arena.bury(place, Version { hlc: Hlc(9), writer: WriterIndex(1) });
                    assert!(arena.entry(place).tombstone);
                    assert_eq!(arena.key(place), &text[..key]);
                    assert_eq!(arena.key(behind), b"next");
                }
            }
        }
    }
}
