//! The order of writes: hybrid logical time, then the writer's incarnation.

use std::fmt;

/// A hybrid logical clock reading: 48 bits of milliseconds since the UNIX epoch, then a 16-bit counter.
///
/// The derived order is the order of the readings. Zero is older than every stamp.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Older than every stamp that a clock gives.
    pub const ZERO: Hlc = Hlc(0);

    /// The first reading of the given millisecond. Milliseconds beyond 48 bits are cut off.
    #[must_use]
    pub const fn from_millis(wall_ms: u64) -> Hlc {
        Hlc(wall_ms << 16)
    }

    /// The millisecond part.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The next reading: the counter carries into the millisecond.
    #[must_use]
    pub const fn next(self) -> Hlc {
        Hlc(self.0 + 1)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.millis(), self.0 & 0xffff)
    }
}

/// One lifetime of one node's memory: 48 bits of boot time in milliseconds, 80 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl Incarnation {
    /// Built from the boot time and randomness; only the low 80 bits of `random` count.
    #[must_use]
    pub const fn new(boot_ms: u64, random: u128) -> Incarnation {
        Incarnation(((boot_ms as u128) << 80) | (random & ((1 << 80) - 1)))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A store's small name for an [`Incarnation`]; see `Storage::writer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WriterIndex(pub u8);

/// What decides between two writes of one key: the greater [`Hlc`], then the greater incarnation.
///
/// Not `Ord`: the tie-break needs the store's table of writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub hlc: Hlc,
    pub writer: WriterIndex,
}
