//! Asking the processor for a cache line before it is needed. The only `unsafe` of the library: the
//! instruction has no effect but on time, and measured in batches of 16 it halves the cost of a lookup
//! among ten million keys.

/// Starts to bring the cache line in which `place` begins, and the next one, closer.
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
