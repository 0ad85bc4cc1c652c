//! The bits of a [`Cursor`]: whose it is, and which record comes next.
//!
//! ```text
//! 127        96 95         64 63                    0
//! +------------+-------------+-----------------------+
//! | check      | skip        | position              |
//! +------------+-------------+-----------------------+
//! ```
//!
//! A position is the store's own reordering of the key's hash. `skip` counts the records at exactly that
//! position that were visited already: it is 0 or 1 unless two keys share all 64 bits of their hash, and
//! only between such two can a removal in the middle of a walk make the walk miss one.
//!
//! `check` comes of the hash's seed, which is another one in each process, and so is the order: a walk belongs to one
//! node. A client behind a balancer keeps one connection for all of it, or asks a node itself; a cursor of another
//! node, or of the one that ran before, is refused.

use super::Cursor;

/// Where a walk stands, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) position: u64,
    pub(super) skip: u32,
}

impl Place {
    pub(super) const START: Place = Place { position: 0, skip: 0 };

    pub(super) fn to_cursor(self, check: u32) -> Cursor {
        Cursor(u128::from(check) << 96 | u128::from(self.skip) << 64 | u128::from(self.position))
    }

    pub(super) fn of(cursor: Cursor) -> Place {
        Place { position: cursor.0 as u64, skip: (cursor.0 >> 64) as u32 }
    }
}

/// The cursor, if it carries this store's check.
pub(super) fn checked(bits: u128, check: u32) -> Option<Cursor> {
    ((bits >> 96) as u32 == check).then_some(Cursor(bits))
}
