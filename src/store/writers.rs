//! The table of writers: what an entry's one byte stands for.
//!
//! The writer matters only between two writes with the same hybrid time, and only as long as a second
//! such write can still arrive: below the tombstone floor nothing can. An index is therefore given to
//! another incarnation once its own was released, because every record that carries it is at or below the
//! floor. A table in which no index is free answers `None`.

use crate::base::version::{Incarnation, Version, WriterIndex};
use crate::limits::WRITERS_MAX;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Debug)]
pub(super) struct Writers {
    /// The incarnations, by index. Index 0 is nobody: of a node that has not said who it is, and of records that were
    /// copied when they were at or below the floor.
    table: RwLock<Vec<Incarnation>>,
    /// Whose incarnation will not write any more.
    free: RwLock<Vec<u8>>,
    local: AtomicU8,
}

impl Writers {
    pub(super) fn new() -> Writers {
        let mut table = Vec::with_capacity(WRITERS_MAX);
        table.push(Incarnation(0));
        Writers { table: RwLock::new(table), free: RwLock::new(Vec::new()), local: AtomicU8::new(0) }
    }

    pub(super) fn index(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        let found = |table: &[Incarnation]| {
            table.iter().position(|&known| known == incarnation).map(|at| WriterIndex(at as u8))
        };
        if let Some(index) = found(&self.table.read()) {
            return Some(index);
        }
        let mut table = self.table.write();
        if let Some(index) = found(&table) {
            return Some(index);
        }
        if table.len() == WRITERS_MAX {
            let index = self.free.write().pop()?;
            table[usize::from(index)] = incarnation;
            return Some(WriterIndex(index));
        }
        table.push(incarnation);
        Some(WriterIndex((table.len() - 1) as u8))
    }

    /// No write of this incarnation will ever be compared with another of the same time.
    pub(super) fn release(&self, incarnation: Incarnation) {
        let table = self.table.read();
        let mut free = self.free.write();
        if let Some(index) = table.iter().position(|&known| known == incarnation)
            && index != 0
            && index != usize::from(self.local().0)
            && !free.contains(&(index as u8))
        {
            free.push(index as u8);
        }
    }

    /// Forgets everybody: there is no record left that names anybody.
    pub(super) fn reset(&self) {
        let mut table = self.table.write();
        table.truncate(1);
        self.free.write().clear();
        self.local.store(0, Ordering::Relaxed);
    }

    pub(super) fn incarnation(&self, index: WriterIndex) -> Option<Incarnation> {
        self.table.read().get(usize::from(index.0)).copied()
    }

    pub(super) fn become_writer(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        let index = self.index(incarnation)?;
        self.local.store(index.0, Ordering::Relaxed);
        Some(index)
    }

    pub(super) fn local(&self) -> WriterIndex {
        WriterIndex(self.local.load(Ordering::Relaxed))
    }

    /// Whether `a` wins over `b`. A version never wins over itself. What nobody is named for was decided before it came
    /// here: it wins over anything of its time.
    #[inline]
    pub(super) fn wins(&self, a: Version, b: Version) -> bool {
        if a.hlc != b.hlc || a.writer == b.writer {
            return a.hlc > b.hlc;
        }
        let is_decided = |version: Version| version.writer == WriterIndex(0);
        is_decided(a) || !is_decided(b) && self.incarnation(a.writer) > self.incarnation(b.writer)
    }

    /// Whether a write wins over what its key holds and over the clear register.
    #[inline]
    pub(super) fn wins_over(&self, version: Version, old: Option<Version>, clear: Version) -> bool {
        self.wins(version, clear) && old.is_none_or(|old| self.wins(version, old))
    }

    /// The same, but that one of nobody is the one that is held if they are of one time.
    pub(super) fn is_news(&self, version: Version, old: Option<Version>, clear: Version) -> bool {
        let is_known = version.writer == WriterIndex(0) && old.is_some_and(|old| old.hlc == version.hlc);
        !is_known && self.wins_over(version, old, clear)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::version::Hlc;

    #[test]
    fn an_incarnation_keeps_its_index_and_a_full_table_says_so() {
        let writers = Writers::new();
        let first = writers.index(Incarnation(7)).expect("room");
        assert_eq!(writers.index(Incarnation(7)), Some(first));
        for n in 100.. {
            if writers.index(Incarnation(n)).is_none() {
                assert_eq!(n, 100 + WRITERS_MAX as u128 - 2);
                break;
            }
        }
        assert_eq!(writers.incarnation(first), Some(Incarnation(7)));
        assert_eq!(writers.become_writer(Incarnation(7)), Some(first));
        assert_eq!(writers.local(), first);
    }

    #[test]
    fn what_was_released_is_used_again_when_the_table_is_full() {
        let writers = Writers::new();
        for n in 1..WRITERS_MAX as u128 {
            assert!(writers.index(Incarnation(n)).is_some());
        }
        let local = writers.become_writer(Incarnation(9)).expect("known");
        writers.release(Incarnation(9));
        assert_eq!(writers.index(Incarnation(1_000)), None, "one's own index stays");
        let index = writers.index(Incarnation(7)).expect("known");
        writers.release(Incarnation(7));
        writers.release(Incarnation(7));
        assert_eq!(writers.index(Incarnation(1_000)), Some(index));
        assert_eq!(writers.index(Incarnation(1_001)), None);
        assert_ne!(local, index);
    }

    #[test]
    fn the_greater_time_wins_and_then_the_greater_incarnation() {
        let writers = Writers::new();
        // Registered in the opposite order, so that the index cannot be what decides.
        let high = writers.index(Incarnation(9)).expect("room");
        let low = writers.index(Incarnation(3)).expect("room");
        let version = |hlc, writer| Version { hlc: Hlc(hlc), writer };
        assert!(writers.wins(version(2, low), version(1, high)));
        assert!(writers.wins(version(2, high), version(2, low)));
        assert!(!writers.wins(version(2, low), version(2, high)));
        assert!(!writers.wins(version(2, low), version(2, low)));
        let nobody = WriterIndex(0);
        assert!(writers.wins(version(2, nobody), version(2, high)));
        assert!(!writers.wins(version(2, high), version(2, nobody)));
        assert!(writers.wins(version(3, low), version(2, nobody)));
    }
}
