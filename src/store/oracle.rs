//! A store that is obviously correct: one lock around one `BTreeMap`. The tests compare the real store
//! with it, and a program may choose it where speed does not matter.

use super::cursor::{self, Place};
use super::writers::Writers;
use super::{Applied, Cursor, Flow, KeyHash, Marks, NewRecord, OutOfMemory, Record, Stamp, Storage, Usage};
use crate::base::version::{Hlc, Incarnation, Version, WriterIndex};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// What an entry is taken to cost beside its key and value, in bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// A [`Storage`] made of a `BTreeMap`, ordered by hash and then key.
#[derive(Debug)]
pub struct OracleStore {
    hasher: ahash::RandomState,
    check: u32,
    writers: Writers,
    memory_limit_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<(u64, Box<[u8]>), Entry>,
    clear: Version,
    memory_bytes: u64,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    /// `None`: a tombstone.
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    value: Box<[u8]>,
    marks: Marks,
    expires_at_ms: u64,
}

impl Entry {
    fn visible(&self, now_ms: u64) -> Option<&Body> {
        self.body.as_ref().filter(|body| body.expires_at_ms == 0 || body.expires_at_ms > now_ms)
    }

    fn bytes(&self, key: &[u8]) -> u64 {
        let value = self.body.as_ref().map_or(0, |body| body.value.len());
        (key.len() + value) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

impl OracleStore {
    /// A store without a memory limit. The same seed gives the same hashes and order.
    #[must_use]
    pub fn new(seed: u64) -> OracleStore {
        OracleStore::with_limit(seed, u64::MAX)
    }

    /// A store that refuses what would take it over the limit, by its own rough count of bytes.
    #[must_use]
    pub fn with_limit(seed: u64, memory_limit_bytes: u64) -> OracleStore {
        let hasher = ahash::RandomState::with_seeds(seed, 1, 2, 3);
        OracleStore {
            check: hasher.hash_one("cursor") as u32,
            hasher,
            writers: Writers::new(),
            memory_limit_bytes,
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                clear: Version { hlc: Hlc::ZERO, writer: WriterIndex(0) },
                memory_bytes: 0,
            }),
        }
    }

    /// Puts `entry` in place if its version wins and it fits.
    fn put(
        &self,
        state: &mut State,
        hash: KeyHash,
        key: &[u8],
        entry: Entry,
        limit: u64,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory> {
        let version = entry.version;
        let place = (hash.0, key.into());
        let old = state.entries.get(&place);
        if !self.writers.wins_over(version, old.map(|old| old.version), state.clear) {
            return Ok(Applied::Superseded);
        }
        let replaced_live = old.is_some_and(|old| old.visible(now_ms).is_some());
        let before = old.map_or(0, |old| old.bytes(key));
        let after = state.memory_bytes - before + entry.bytes(key);
        if after > limit && after > state.memory_bytes {
            return Err(OutOfMemory);
        }
        state.memory_bytes = after;
        state.entries.insert(place, entry);
        Ok(Applied::Stored { version, replaced_live })
    }

    /// Walks over the entries that `wants` names.
    fn walk(
        &self,
        cursor: Cursor,
        records_max: usize,
        wants: impl Fn(&Entry) -> bool,
        visit: &mut dyn FnMut(Record<'_>, bool) -> Flow,
    ) -> Option<Cursor> {
        let state = self.state.lock();
        let from = Place::of(cursor);
        let mut at = Place::START;
        let mut visited = 0;
        for ((hash, key), entry) in state.entries.range((from.position, Box::from([]))..) {
            if !wants(entry) {
                continue;
            }
            at = Place { position: *hash, skip: if at.position == *hash { at.skip } else { 0 } };
            if at.position == from.position && at.skip < from.skip {
                at.skip += 1;
                continue;
            }
            if visited == records_max {
                return Some(at.to_cursor(self.check));
            }
            let record = Record {
                key,
                value: entry.body.as_ref().map_or(&[], |body| &body.value),
                marks: entry.body.as_ref().map_or(Marks::default(), |body| body.marks),
                expires_at_ms: entry.body.as_ref().map_or(0, |body| body.expires_at_ms),
                version: entry.version,
            };
            match visit(record, entry.body.is_none()) {
                Flow::Continue => visited += 1,
                Flow::StopBefore => return Some(at.to_cursor(self.check)),
            }
            at.skip += 1;
        }
        None
    }

    fn version(&self, state: &State, hash: KeyHash, key: &[u8], stamp: Stamp<'_>, now_ms: u64) -> Version {
        match stamp {
            Stamp::Given(version) => version,
            Stamp::Local(clock) => {
                let old = state.entries.get(&(hash.0, key.into())).map_or(Hlc::ZERO, |e| e.version.hlc);
                Version { hlc: clock.stamp(now_ms, old.max(state.clear.hlc)), writer: self.writers.local() }
            }
        }
    }
}

impl Storage for OracleStore {
    fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(self.hasher.hash_one(key))
    }

    fn get<R>(
        &self,
        hash: KeyHash,
        key: &[u8],
        now_ms: u64,
        read: impl FnOnce(Record<'_>) -> R,
    ) -> Option<R> {
        let state = self.state.lock();
        let entry = state.entries.get(&(hash.0, key.into()))?;
        let body = entry.visible(now_ms)?;
        Some(read(Record {
            key,
            value: &body.value,
            marks: body.marks,
            expires_at_ms: body.expires_at_ms,
            version: entry.version,
        }))
    }

    fn set(
        &self,
        hash: KeyHash,
        record: NewRecord<'_>,
        stamp: Stamp<'_>,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory> {
        let mut state = self.state.lock();
        let version = self.version(&state, hash, record.key, stamp, now_ms);
        let body =
            Body { value: record.value.into(), marks: record.marks, expires_at_ms: record.expires_at_ms };
        let entry = Entry { version, body: Some(body) };
        self.put(&mut state, hash, record.key, entry, stamp.limit(self.memory_limit_bytes), now_ms)
    }

    fn rm(&self, hash: KeyHash, key: &[u8], stamp: Stamp<'_>, now_ms: u64) -> Result<Applied, OutOfMemory> {
        let mut state = self.state.lock();
        if matches!(stamp, Stamp::Local(_)) {
            let old = state.entries.get(&(hash.0, key.into()));
            if old.and_then(|old| old.visible(now_ms)).is_none() {
                return Ok(Applied::Missing);
            }
        }
        let version = self.version(&state, hash, key, stamp, now_ms);
        self.put(
            &mut state,
            hash,
            key,
            Entry { version, body: None },
            stamp.limit(self.memory_limit_bytes),
            now_ms,
        )
    }

    fn is_news(&self, hash: KeyHash, key: &[u8], version: Version) -> bool {
        let state = self.state.lock();
        let old = state.entries.get(&(hash.0, key.into())).map(|old| old.version);
        self.writers.is_news(version, old, state.clear)
    }

    fn clear(&self, stamp: Stamp<'_>, now_ms: u64) -> Applied {
        let mut state = self.state.lock();
        let version = match stamp {
            Stamp::Given(version) if !self.writers.wins(version, state.clear) => return Applied::Superseded,
            Stamp::Given(version) => version,
            Stamp::Local(clock) => {
                let newest = state.entries.values().map(|entry| entry.version.hlc).max();
                let above = newest.unwrap_or(Hlc::ZERO).max(state.clear.hlc);
                Version { hlc: clock.stamp(now_ms, above), writer: self.writers.local() }
            }
        };
        let before = state.entries.values().filter(|entry| entry.visible(now_ms).is_some()).count();
        state.clear = version;
        state.entries.retain(|_, entry| self.writers.wins(entry.version, version));
        let after = state.entries.values().filter(|entry| entry.visible(now_ms).is_some()).count();
        state.memory_bytes = state.entries.iter().map(|((_, key), entry)| entry.bytes(key)).sum();
        Applied::Stored { version, replaced_live: after < before }
    }

    fn get_all(
        &self,
        cursor: Cursor,
        now_ms: u64,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>) -> Flow,
    ) -> Option<Cursor> {
        let wants = |entry: &Entry| entry.visible(now_ms).is_some();
        self.walk(cursor, records_max, wants, &mut |record, _| visit(record))
    }

    fn scan(
        &self,
        cursor: Cursor,
        above: Hlc,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>, bool) -> Flow,
    ) -> Option<Cursor> {
        self.walk(cursor, records_max, |entry| entry.version.hlc > above, visit)
    }

    fn reset(&self) {
        let mut state = self.state.lock();
        state.entries.clear();
        state.clear = Version { hlc: Hlc::ZERO, writer: WriterIndex(0) };
        state.memory_bytes = 0;
        self.writers.reset();
    }

    fn cursor_start(&self) -> Cursor {
        Place::START.to_cursor(self.check)
    }

    fn cursor_from_bits(&self, bits: u128) -> Option<Cursor> {
        cursor::checked(bits, self.check)
    }

    fn size(&self, now_ms: u64) -> u64 {
        self.state.lock().entries.values().filter(|entry| entry.visible(now_ms).is_some()).count() as u64
    }

    fn usage(&self, now_ms: u64) -> Usage {
        let state = self.state.lock();
        let visible = state.entries.values().filter(|entry| entry.visible(now_ms).is_some()).count();
        Usage {
            live_records: visible as u64,
            tombstones: (state.entries.len() - visible) as u64,
            memory_bytes: state.memory_bytes,
            memory_limit_bytes: self.memory_limit_bytes,
        }
    }

    fn writer(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        self.writers.index(incarnation)
    }

    fn become_writer(&self, incarnation: Incarnation) -> Option<WriterIndex> {
        self.writers.become_writer(incarnation)
    }

    fn release_writer(&self, incarnation: Incarnation) {
        self.writers.release(incarnation);
    }

    fn incarnation(&self, writer: WriterIndex) -> Option<Incarnation> {
        self.writers.incarnation(writer)
    }

    fn clear_version(&self) -> Version {
        self.state.lock().clear
    }

    fn maintain(&self, now_ms: u64, floor: Hlc, _budget: usize) -> bool {
        let mut state = self.state.lock();
        // An expired record above the floor stays, as what keeps older writes from coming back.
        state.entries.retain(|_, entry| entry.visible(now_ms).is_some() || entry.version.hlc > floor);
        for entry in state.entries.values_mut() {
            if entry.visible(now_ms).is_none() {
                entry.body = None;
            }
        }
        state.memory_bytes = state.entries.iter().map(|((_, key), entry)| entry.bytes(key)).sum();
        false
    }
}
