//! What the machine's memory offers beyond safe code: asking for a cache line before it is needed, and
//! regions of memory whose parts can be given back to the system one by one. All `unsafe` of the library.
//!
//! A [`Region`] is mapped memory, divided into rooms for one type. A [`Room`] owns its part of it as a box
//! owns its own, and becomes a [`Slot`] when it is given contents. An allocator would do for all that but
//! one thing: what it gets back it mixes with what is in use, so that a store that has shrunk stays as
//! large as it was. The pages of a region cost nothing until they are touched, are small ones at first, so
//! that no access waits for more than one of them, and can be joined to a huge one later.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Starts to bring the cache line in which `place` begins, and the next one, closer. Measured in batches of
/// 16 it halves the cost of a lookup among ten million keys.
#[inline(always)]
pub fn prefetch<T: ?Sized>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = std::ptr::from_ref(place).cast::<i8>();
        // SAFETY: a prefetch does not access memory as far as the program can tell: any address is allowed.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line);
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(64));
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}

/// The same for the first line alone: of what lies within one.
#[inline(always)]
pub fn prefetch_line<T: ?Sized>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}

/// Bytes of a region, and what it is aligned to: a huge page of this machine, if it has them.
pub const REGION_BYTES: usize = 2 << 20;

/// Not every C library's constants have it.
#[cfg(not(miri))]
const MADV_COLLAPSE: libc::c_int = 25;

const LAYOUT: Layout = match Layout::from_size_align(REGION_BYTES, REGION_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// Room for a `T` in a region, with unknown contents. Losing it loses its region's address space, no more.
pub struct Room<T>(NonNull<T>);

/// A `T` in a region.
pub struct Slot<T>(NonNull<T>);

// SAFETY: both own what they point to, as a Box does.
unsafe impl<T: Send> Send for Room<T> {}
// SAFETY: see above.
unsafe impl<T: Send> Send for Slot<T> {}
// SAFETY: a shared Slot gives nothing but a shared T.
unsafe impl<T: Sync> Sync for Slot<T> {}

impl<T: Copy> Room<T> {
    /// The room with this in it.
    #[must_use]
    pub fn fill(self, value: T) -> Slot<T> {
        // SAFETY: the room is ours alone, and large and aligned enough: see `Region::take`.
        unsafe { self.0.write(value) };
        Slot(self.0)
    }

    /// Where the region of this room begins.
    #[must_use]
    pub fn region(&self) -> usize {
        self.0.addr().get() & !(REGION_BYTES - 1)
    }
}

impl<const BYTES: usize> Room<[u8; BYTES]> {
    /// The room with whatever is in it.
    #[must_use]
    pub fn as_it_is(self) -> Slot<[u8; BYTES]> {
        // A region's memory is zero at first, and bytes of any value are good ones.
        Slot(self.0)
    }

    /// Gives its pages back to the system; it is full of zeros now. Rooms of less than a page do not
    /// have any of their own.
    pub fn release(&mut self) {
        let page = rustix::param::page_size();
        if BYTES.is_multiple_of(page) && self.0.addr().get().is_multiple_of(page) {
            release(self.0.cast(), BYTES);
        }
    }
}

impl<T: Copy> Slot<T> {
    /// Forgets what is in it.
    #[must_use]
    pub fn vacate(self) -> Room<T> {
        Room(self.0)
    }
}

impl<T> Deref for Slot<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: filled before it became a slot, and mapped for as long as the slot has not come home.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Slot<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and the slot is the only way to it.
        unsafe { self.0.as_mut() }
    }
}

impl<T> fmt::Debug for Room<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({:p})", self.0)
    }
}

impl<T: fmt::Debug> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Mapped memory, divided into rooms. It is unmapped when it is dropped, if all its rooms are home by then.
pub struct Region<T> {
    base: NonNull<u8>,
    /// Rooms from this one on were never taken.
    fresh: usize,
    home: Vec<Room<T>>,
}

// SAFETY: it owns its memory but for the rooms that were taken, which it does not touch.
unsafe impl<T: Send> Send for Region<T> {}

impl<T: Copy> Region<T> {
    /// Rooms of a region.
    pub const ROOMS: usize = {
        assert!(size_of::<T>().is_power_of_two() && size_of::<T>() <= REGION_BYTES);
        REGION_BYTES / size_of::<T>()
    };

    /// Maps a region. Like any allocation, it ends the process if there is no memory at all.
    #[must_use]
    pub fn map() -> Region<T> {
        Region { base: map(), fresh: 0, home: Vec::new() }
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.addr().get()
    }

    /// Rooms that can be taken.
    #[must_use]
    pub fn vacant(&self) -> usize {
        Self::ROOMS - self.fresh + self.home.len()
    }

    /// Rooms that can be taken and have been in use before.
    #[must_use]
    pub fn used_before(&self) -> usize {
        self.home.len()
    }

    /// A room, if there is one.
    pub fn take(&mut self) -> Option<Room<T>> {
        self.home.pop().or_else(|| {
            let number = (self.fresh < Self::ROOMS).then_some(self.fresh)?;
            self.fresh += 1;
            // SAFETY: below ROOMS, so inside of the mapping.
            let room = unsafe { self.base.add(number * size_of::<T>()) };
            // Aligned: a type's size is a multiple of its alignment, and the region begins at a multiple of
            // any size allowed. No room is given out twice: `fresh` only grows while any is out.
            Some(Room(room.cast()))
        })
    }

    /// Takes one of its rooms back.
    ///
    /// # Panics
    /// The room is another region's.
    pub fn give(&mut self, room: Room<T>) {
        assert_eq!(room.region(), self.address(), "a room goes back to where it was taken");
        self.home.push(room);
    }

    /// All its rooms are home.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.home.len() == self.fresh
    }

    /// Gives the memory of a whole region back to the system, and keeps the addresses.
    ///
    /// # Panics
    /// The region is not whole.
    pub fn release(&mut self) {
        assert!(self.is_whole(), "rooms are still out");
        self.home = Vec::new();
        self.fresh = 0;
        release(self.base, REGION_BYTES);
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        if self.home.len() == self.fresh {
            unmap(self.base);
        }
    }
}

impl<T> fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:p}, {} taken, {} home)", self.base, self.fresh, self.home.len())
    }
}

/// Asks the system to join the pages of the region at this address to a huge one: fewer steps to a cold
/// entry. Takes milliseconds at worst, so it is background work; false if the system declines.
pub fn join_pages(address: usize) -> bool {
    #[cfg(not(miri))]
    {
        let base = std::ptr::without_provenance_mut(address);
        // SAFETY: whatever is mapped there, its contents stay the same; an address where nothing is mapped
        // is refused.
        unsafe { libc::madvise(base, REGION_BYTES, MADV_COLLAPSE) == 0 }
    }
    #[cfg(miri)]
    {
        let _ = address;
        false
    }
}

#[cfg(not(miri))]
fn map() -> NonNull<u8> {
    // Twice as much, to find an aligned part in it; the rest goes back at once.
    let length = 2 * REGION_BYTES;
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which nobody else knows.
    let mapped =
        unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind | libc::MAP_NORESERVE, -1, 0) };
    if mapped == libc::MAP_FAILED {
        handle_alloc_error(LAYOUT);
    }
    let before = mapped.addr().wrapping_neg() & (REGION_BYTES - 1);
    // SAFETY: `before` is less than a region, so all parts lie in the mapping; the outer ones are not used.
    unsafe {
        let base = mapped.byte_add(before);
        if before > 0 {
            libc::munmap(mapped, before);
        }
        libc::munmap(base.byte_add(REGION_BYTES), REGION_BYTES - before);
        NonNull::new_unchecked(base.cast())
    }
}

#[cfg(not(miri))]
fn unmap(base: NonNull<u8>) {
    // SAFETY: mapped by `map`; every room of it is home, so nobody refers to it.
    unsafe { libc::munmap(base.as_ptr().cast(), REGION_BYTES) };
}

#[cfg(not(miri))]
fn release(from: NonNull<u8>, bytes: usize) {
    // SAFETY: only called for private anonymous memory that the caller owns and whose contents it gives up;
    // it reads as zeros from now on. Whole pages: see the callers.
    unsafe { libc::madvise(from.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
}

#[cfg(miri)]
fn map() -> NonNull<u8> {
    // SAFETY: the layout has a size.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(LAYOUT) }).unwrap_or_else(|| handle_alloc_error(LAYOUT))
}

#[cfg(miri)]
fn unmap(base: NonNull<u8>) {
    // SAFETY: allocated by `map` with this layout.
    unsafe { std::alloc::dealloc(base.as_ptr(), LAYOUT) };
}

#[cfg(miri)]
fn release(from: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller owns these bytes.
    unsafe { from.write_bytes(0, bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB_16: usize = 16 * 1024;

    #[test]
    fn every_room_is_aligned_and_apart_from_the_others() {
        let mut region = Region::<[u8; KIB_16]>::map();
        let mut slots = Vec::new();
        while let Some(room) = region.take() {
            assert_eq!(room.region(), region.address());
            slots.push(room.as_it_is());
        }
        assert_eq!((slots.len(), region.vacant()), (128, 0));
        for (number, slot) in slots.iter_mut().enumerate() {
            assert!(slot.iter().all(|&byte| byte == 0));
            slot.fill(number as u8);
        }
        for (number, slot) in slots.iter().enumerate() {
            assert!(slot.iter().all(|&byte| byte == number as u8));
        }
        for slot in slots {
            region.give(slot.vacate());
        }
        assert!(region.is_whole());
    }

    #[test]
    fn what_was_released_is_zero_and_usable() {
        let mut region = Region::<[u8; KIB_16]>::map();
        let mut slot = region.take().expect("a fresh region").as_it_is();
        slot.fill(7);
        let mut room = slot.vacate();
        room.release();
        let mut slot = room.as_it_is();
        assert!(slot.iter().all(|&byte| byte == 0));
        slot.fill(8);
        assert!(join_pages(region.address()) || slot[0] == 8, "it may decline, and changes nothing");
        assert!(slot.iter().all(|&byte| byte == 8));
        region.give(slot.vacate());
        region.release();
        assert_eq!((region.vacant(), region.used_before()), (128, 0));
        assert_eq!(region.take().expect("whole").as_it_is()[KIB_16 - 1], 0);
    }

    #[test]
    #[should_panic(expected = "where it was taken")]
    fn a_room_of_another_region_is_not_taken() {
        let (mut one, mut two) = (Region::<[u64; 16]>::map(), Region::<[u64; 16]>::map());
        let room = one.take().expect("a fresh region");
        two.give(room);
    }
}
