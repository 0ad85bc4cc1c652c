//! The connections of a worker by their number, in segments: a table that grows by moving its contents
//! would hold twice what it needs while it does, and what it gave up after that.

use super::connection::Connection;
use std::ops::{Index, IndexMut};

const SEGMENT: usize = 256;

/// See the module. A number is given out again after its connection was removed.
#[derive(Debug, Default)]
pub(super) struct Table {
    segments: Vec<Vec<Option<Connection>>>,
    free: Vec<u32>,
    /// Numbers below this have been given out at least once.
    used: usize,
}

impl Table {
    /// The number that the next [`Table::insert`] will give.
    pub(super) fn next_key(&self) -> usize {
        self.free.last().map_or(self.used, |&key| key as usize)
    }

    pub(super) fn insert(&mut self, connection: Connection) -> usize {
        let key = self.next_key();
        if self.free.pop().is_some() {
            self.segments[key / SEGMENT][key % SEGMENT] = Some(connection);
            return key;
        }
        if key.is_multiple_of(SEGMENT) {
            self.segments.push(Vec::with_capacity(SEGMENT));
        }
        self.segments[key / SEGMENT].push(Some(connection));
        self.used += 1;
        key
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Connection> {
        self.segments.get_mut(key / SEGMENT)?.get_mut(key % SEGMENT)?.as_mut()
    }

    pub(super) fn remove(&mut self, key: usize) -> Option<Connection> {
        let removed = self.segments.get_mut(key / SEGMENT)?.get_mut(key % SEGMENT)?.take();
        if removed.is_some() {
            self.free.push(key as u32);
        }
        removed
    }

    /// Numbers that have been given out, whether they are in use or not.
    pub(super) fn slots(&self) -> usize {
        self.used
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Connection)> {
        self.segments.iter_mut().flatten().enumerate().filter_map(|(key, slot)| Some((key, slot.as_mut()?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Connection)> {
        self.segments.iter().flatten().enumerate().filter_map(|(key, slot)| Some((key, slot.as_ref()?)))
    }
}

impl Index<usize> for Table {
    type Output = Connection;

    #[inline]
    fn index(&self, key: usize) -> &Connection {
        // A number of the current turn: nobody else could have removed it.
        self.segments[key / SEGMENT][key % SEGMENT].as_ref().expect("a connection in use")
    }
}

impl IndexMut<usize> for Table {
    #[inline]
    fn index_mut(&mut self, key: usize) -> &mut Connection {
        self.segments[key / SEGMENT][key % SEGMENT].as_mut().expect("a connection in use")
    }
}
