//! Where records live: the [`Storage`] trait that the node is written against, and its adapters.
//!
//! All methods take `&self`: a store is shared by every worker. No method blocks on anything but a
//! stripe's lock, which is a leaf: nothing is called while it is held but the closures that copy a
//! record out, and those must not call the store.

mod arena;
mod cursor;
mod index;
mod memory;
mod oracle;
mod rooms;
mod stripe;
mod writers;

pub use memory::MemoryStore;
pub use oracle::OracleStore;

use crate::base::clock::HybridClock;
use crate::base::version::{Hlc, Incarnation, Version, WriterIndex};
use crate::limits::STRIPES_DEFAULT;

/// What a [`MemoryStore`] is told.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// Stripes, a power of two; fewer are made if the memory limit is small.
    pub stripes: usize,
    /// What the store may occupy, everything included.
    pub memory_limit_bytes: u64,
    /// Seeds the hash; `None`: at random.
    pub seed: Option<u64>,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig { stripes: STRIPES_DEFAULT, memory_limit_bytes: u64::MAX, seed: None }
    }
}

/// The hash of a key under this store's random seed. Meaningless to any other store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyHash(pub u64);

/// Two bits that a record carries for its writer: the store keeps them and never looks at them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub u8);

impl Marks {
    /// The key may stand in a JSON string as it is.
    pub const KEY_CLEAN: Marks = Marks(1);
    /// The value may stand in a JSON string as it is.
    pub const VALUE_CLEAN: Marks = Marks(2);

    #[must_use]
    pub const fn with(self, other: Marks) -> Marks {
        Marks(self.0 | other.0)
    }

    #[must_use]
    pub const fn has(self, other: Marks) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A live record, borrowed from the store for the length of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub marks: Marks,
    /// Milliseconds since the UNIX epoch from which the record is gone; 0: never.
    pub expires_at_ms: u64,
    pub version: Version,
}

/// What a `set` stores; see [`Record`].
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub marks: Marks,
    pub expires_at_ms: u64,
}

/// Where a write's version comes from.
#[derive(Clone, Copy, Debug)]
pub enum Stamp<'a> {
    /// A write accepted by this node: the version is taken from the clock under the key's lock, so that
    /// of two writes on this node the later always wins. Never superseded.
    Local(&'a HybridClock),
    /// A write that was stamped elsewhere: it wins only if it is greater than what is there.
    Given(Version),
}

impl Stamp<'_> {
    /// What a store with this limit may grow to for such a write. Nodes with the same records and the same limit do not
    /// take the same memory to the byte; what another has accepted must not be refused for that: an eighth more.
    pub(crate) const fn limit(self, memory_limit: u64) -> u64 {
        match self {
            Stamp::Local(_) => memory_limit,
            Stamp::Given(_) => memory_limit.saturating_add(memory_limit / 8),
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is now what the key holds, under this version. `replaced_live`: a visible record gave way.
    Stored { version: Version, replaced_live: bool },
    /// A greater version was there already (or was cleared later); nothing changed.
    Superseded,
    /// `rm` with [`Stamp::Local`] of a key that has no visible record: nothing changed, no tombstone.
    Missing,
}

/// A write that did not fit under the memory limit. Nothing was stored and what was there stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Where a walk over the store stands. Opaque: it survives growth, evacuation and concurrent writes,
/// but means nothing to another store ([`Storage::cursor_from_bits`] refuses those).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub u128);

/// Whether a visitor wants more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The record was taken; go on.
    Continue,
    /// The record was NOT taken; stop before it. The cursor returned will start with it.
    StopBefore,
}

/// What the store holds and costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Visible records; those that have expired but were not yet found may still be counted.
    pub live_records: u64,
    pub tombstones: u64,
    /// Bytes of memory that the store occupies, everything included.
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
}

/// A table of versioned records. The later version of a key wins, whatever the order of arrival.
pub trait Storage: Send + Sync + 'static {
    /// The key's hash, for the calls below; computed once per request.
    fn hash(&self, key: &[u8]) -> KeyHash;

    /// Starts to bring closer what lookups of these keys need. A batch calls this for all of its keys, then
    /// executes: the misses overlap instead of adding up.
    fn prefetch(&self, hashes: &[KeyHash]) {
        let _ = hashes;
    }

    /// Calls `read` with the key's visible record, under the lock; `None` if there is none.
    fn get<R>(&self, hash: KeyHash, key: &[u8], now_ms: u64, read: impl FnOnce(Record<'_>) -> R)
    -> Option<R>;

    /// Calls `read` with each key's number and its visible record, or `None`, in the order of the keys: as so many
    /// calls of [`Storage::get`], but that their misses overlap.
    fn get_many(
        &self,
        keys: &[(KeyHash, &[u8])],
        now_ms: u64,
        mut read: impl FnMut(usize, Option<Record<'_>>),
    ) {
        for (number, (hash, key)) in keys.iter().enumerate() {
            if self.get(*hash, key, now_ms, |record| read(number, Some(record))).is_none() {
                read(number, None);
            }
        }
    }

    /// Whether the key has a visible record.
    fn exist(&self, hash: KeyHash, key: &[u8], now_ms: u64) -> bool {
        self.get(hash, key, now_ms, |_| ()).is_some()
    }

    /// Stores a record if its version wins.
    ///
    /// # Errors
    /// [`OutOfMemory`] if it does not fit; a [`Stamp::Local`] then took no effect at all.
    fn set(
        &self,
        hash: KeyHash,
        record: NewRecord<'_>,
        stamp: Stamp<'_>,
        now_ms: u64,
    ) -> Result<Applied, OutOfMemory>;

    /// Removes a key, leaving a tombstone. [`Stamp::Given`] leaves one even where the key is unknown.
    ///
    /// # Errors
    /// [`OutOfMemory`] if a tombstone for an unknown key does not fit. Removing what is there always fits.
    fn rm(&self, hash: KeyHash, key: &[u8], stamp: Stamp<'_>, now_ms: u64) -> Result<Applied, OutOfMemory>;

    /// Whether a write of this key with this version would change anything now. One that nobody is named for does not if
    /// there is one of its time: that is the same one.
    fn is_news(&self, hash: KeyHash, key: &[u8], version: Version) -> bool;

    /// Hides every record whose version is not greater than the stamp: one register, no long lock. The
    /// memory comes back through [`Storage::maintain`] and through later writes.
    fn clear(&self, stamp: Stamp<'_>, now_ms: u64) -> Applied;

    /// Visits visible records from `cursor` on, in the store's own order, for as long as `visit` says;
    /// at most about `records_max` of them, and fewer, even none, where much has been removed. Returns where
    /// to go on, or `None` at the end. A record that is
    /// there throughout a whole walk is visited exactly once. Never holds a lock between calls.
    fn get_all(
        &self,
        cursor: Cursor,
        now_ms: u64,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>) -> Flow,
    ) -> Option<Cursor>;

    /// Visits every record with a time greater than `above`, those that are not visible included; removed
    /// ones come with `true` and their value empty. Otherwise as [`Storage::get_all`]; a record that is written
    /// meanwhile may be visited in its old or its new form, or, if it moves past `above` only then, not at all.
    fn scan(
        &self,
        cursor: Cursor,
        above: Hlc,
        records_max: usize,
        visit: &mut dyn FnMut(Record<'_>, bool) -> Flow,
    ) -> Option<Cursor>;

    /// Forgets everything, the clear register and the writers included, as if it had just been made. Nothing
    /// may be writing meanwhile.
    fn reset(&self);

    /// Where a walk begins.
    fn cursor_start(&self) -> Cursor;

    /// A cursor that came back from outside; `None` if it is not one of this store's.
    fn cursor_from_bits(&self, bits: u128) -> Option<Cursor>;

    /// The number of visible records. Exact when nothing is being written and nothing has expired since
    /// the last [`Storage::maintain`] round.
    fn size(&self, now_ms: u64) -> u64;

    /// What is held and what it costs; cheap enough for every scrape.
    fn usage(&self, now_ms: u64) -> Usage;

    /// The small name of a writer, made up on first use; `None` when the table of writers is full.
    fn writer(&self, incarnation: Incarnation) -> Option<WriterIndex>;

    /// From now on [`Stamp::Local`] writes carry this incarnation; `None` (and no change) when the table
    /// of writers is full. Before the first call they carry `WriterIndex(0)`, which is `Incarnation(0)`
    /// and wins every tie: enough for a node that never meets another, and for records that were decided elsewhere.
    fn become_writer(&self, incarnation: Incarnation) -> Option<WriterIndex>;

    /// No write of this incarnation can meet another of the same time any more: all are at or below the
    /// floor. Its small name may be given to somebody else.
    fn release_writer(&self, incarnation: Incarnation);

    /// Who a small name stands for; of a record at or below the floor it may be somebody who came later.
    fn incarnation(&self, writer: WriterIndex) -> Option<Incarnation>;

    /// The register that [`Storage::clear`] sets: nothing at or below it is visible. Time zero: never
    /// cleared.
    fn clear_version(&self) -> Version;

    /// A slice of background work: expired records, tombstones with a version at or below `floor`, what
    /// a clear left behind, evacuation. Does at most about `budget` entries. Returns true while there is
    /// more to do right now.
    fn maintain(&self, now_ms: u64, floor: Hlc, budget: usize) -> bool;

    /// A slice of work that makes lookups faster and may take milliseconds: for a thread that serves nobody.
    /// Returns true while there is more to do right now.
    fn settle(&self) -> bool {
        false
    }
}
