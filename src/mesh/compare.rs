//! Whether two nodes hold the same, while both go on serving: each scans what it has, in small steps, and
//! sums a hash of every record in its group of keys. The write path pays nothing for it.
//!
//! What is compared is what was decided: records at or below a floor, which every member holds completely.
//! A group can differ because something in it was overwritten since, here or there; so of groups that
//! differ every key is looked at, and one that either side holds in a newer form says nothing. What still
//! differs, and does so in a second look as well, should not exist: it is a fault of this program.
//!
//! Nothing is repaired. Of a record that one side lacks nobody can tell whether it was lost there or is back
//! here.

use super::Context;
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{DIGEST_ENTRIES_MAX, DIGEST_FRAME_ENTRIES_MAX, DIGEST_GROUPS};
use crate::peer::frame::{Digest, DigestAsk, GroupSum};
use crate::store::{Cursor, Flow, Record, Storage};
use parking_lot::Mutex;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Equal,
    /// So many keys are held differently.
    Diverged(usize),
    /// Too much changed meanwhile, or the other did not answer.
    Unknown,
}

impl Verdict {
    pub const LABELS: [&'static str; 3] = ["equal", "diverged", "unknown"];

    const fn index(self) -> usize {
        match self {
            Verdict::Equal => 0,
            Verdict::Diverged(_) => 1,
            Verdict::Unknown => 2,
        }
    }

    #[must_use]
    pub const fn label(self) -> &'static str {
        Verdict::LABELS[self.index()]
    }
}

/// The last comparison with each member, and how many there were.
#[derive(Debug, Default)]
pub struct Comparisons {
    last: Mutex<BTreeMap<Incarnation, (Verdict, u64)>>,
    counts: [AtomicU64; Verdict::LABELS.len()],
}

impl Comparisons {
    /// The last verdict on a member, and when that was by the monotonic clock.
    #[must_use]
    pub fn last(&self, peer: Incarnation) -> Option<(Verdict, u64)> {
        self.last.lock().get(&peer).copied()
    }

    /// How many came to each of [`Verdict::LABELS`].
    #[must_use]
    pub fn counts(&self) -> [u64; Verdict::LABELS.len()] {
        std::array::from_fn(|verdict| self.counts[verdict].load(Ordering::Relaxed))
    }

    /// Takes note of a verdict; true if it is not the one from before.
    pub(super) fn record(&self, peer: Incarnation, verdict: Verdict, now_ns: u64) -> bool {
        self.counts[verdict.index()].fetch_add(1, Ordering::Relaxed);
        self.last.lock().insert(peer, (verdict, now_ns)).is_none_or(|(before, _)| before != verdict)
    }

    pub(super) fn retain(&self, is_member: impl Fn(Incarnation) -> bool) {
        self.last.lock().retain(|peer, _| is_member(*peer));
    }
}

/// A key that is there in one form or another; its value is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    pub(super) hlc: Hlc,
    /// A hash of key, time, expiry and value; 0 if it is newer than what is compared.
    pub(super) content: u64,
}

/// One side of a comparison: a scan that sums, or that lists the keys of some groups.
#[derive(Debug)]
pub(super) struct Digesting {
    ask: DigestAsk,
    clear: Hlc,
    /// `None`: not begun, or at its end.
    cursor: Option<Cursor>,
    begun: bool,
    sums: Vec<GroupSum>,
    /// By a hash of the key; two keys of one hash spoil each other.
    entries: BTreeMap<u64, Option<Form>>,
    listed: usize,
    /// Steps of a turn: more where there is more to look at.
    steps: u64,
    records: u64,
    is_refused: bool,
}

/// A scan should be over after so many turns; a store for which that takes too many steps takes longer.
const TURNS: u64 = 1_500;
const STEPS_MAX: u64 = 48;

impl Digesting {
    pub(super) fn new(ask: DigestAsk) -> Digesting {
        let sums = if ask.groups.is_empty() { vec![GroupSum::default(); DIGEST_GROUPS] } else { Vec::new() };
        Digesting {
            ask,
            clear: Hlc::ZERO,
            cursor: None,
            begun: false,
            sums,
            entries: BTreeMap::new(),
            listed: 0,
            steps: 2,
            records: 0,
            is_refused: false,
        }
    }

    /// For who cannot compare now: it looks at nothing.
    pub(super) fn refused(ask: DigestAsk) -> Digesting {
        Digesting { begun: true, is_refused: true, ..Digesting::new(ask) }
    }

    /// What the store held when it began, whatever its form.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn ask(&self) -> &DigestAsk {
        &self.ask
    }

    pub(super) fn is_over(&self) -> bool {
        self.begun && self.cursor.is_none()
    }

    /// Looks at some records more, in steps of so many.
    pub(super) fn turn<S: Storage>(&mut self, context: Context<'_, S>, step: usize) {
        if !self.begun {
            self.begun = true;
            let usage = context.store.usage(context.now.wall_ms);
            self.records = usage.live_records + usage.tombstones;
            self.steps = (self.records / step as u64 / TURNS).clamp(2, STEPS_MAX);
            self.clear = context.store.clear_version().hlc;
            self.cursor = Some(context.store.cursor_start());
        }
        for _ in 0..self.steps {
            self.step(context.store, step);
        }
    }

    fn step<S: Storage>(&mut self, store: &S, records_max: usize) {
        let Some(cursor) = self.cursor else { return };
        let Digesting { ask, clear, sums, entries, listed, .. } = self;
        let next = store.scan(cursor, Hlc::ZERO, records_max, &mut |record, buried| {
            if record.version.hlc <= *clear {
                return Flow::Continue;
            }
            let is_newer = record.version.hlc > ask.floor;
            // What expires while both look may be gone here and not there.
            let stays = record.expires_at_ms == 0 || record.expires_at_ms > ask.until_ms;
            let counts = !buried && stays && !is_newer;
            if !counts && (!is_newer || ask.groups.is_empty()) {
                return Flow::Continue;
            }
            let (key, content) = hashes(ask.key, &record);
            let group = (key >> (64 - DIGEST_GROUPS.trailing_zeros())) as u16;
            if let Some(sum) = sums.get_mut(usize::from(group)) {
                sum.sum = sum.sum.wrapping_add(content);
                sum.count = sum.count.wrapping_add(1);
            } else if ask.groups.binary_search(&group).is_ok() && *listed <= DIGEST_ENTRIES_MAX {
                *listed += 1;
                let content = if counts { content as u64 | 1 } else { 0 };
                let form = Form { hlc: record.version.hlc, content };
                entries.entry(key).and_modify(|known| *known = None).or_insert(Some(form));
            }
            Flow::Continue
        });
        self.cursor = next;
    }

    /// Whether what was found can be believed: nothing can have been collected of what is newer than the
    /// floor, nothing that counts has expired, and no clear has come.
    pub(super) fn holds<S: Storage>(&self, context: Context<'_, S>) -> bool {
        !self.is_refused
            && context.now.wall_ms < self.ask.until_ms
            && context.store.clear_version().hlc == self.clear
            && self.listed <= DIGEST_ENTRIES_MAX
    }

    /// The answer, in frames.
    pub(super) fn answer(&self, is_valid: bool, send: &mut dyn FnMut(Digest)) {
        let whole =
            Digest { id: self.ask.id, clear: self.clear, is_last: true, is_valid, ..Digest::default() };
        if !is_valid {
            return send(whole);
        }
        if self.ask.groups.is_empty() {
            return send(Digest { sums: self.sums.clone(), ..whole });
        }
        let forms =
            self.entries.iter().filter_map(|(key, form)| form.map(|form| (*key, form.hlc, form.content)));
        let entries: Vec<_> = forms.collect();
        let mut rest = entries.as_slice();
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(DIGEST_FRAME_ENTRIES_MAX));
            send(Digest { is_last: behind.is_empty(), entries: piece.to_vec(), ..whole.clone() });
            rest = behind;
            if rest.is_empty() {
                return;
            }
        }
    }
}

/// What the other side has answered so far.
#[derive(Debug, Default)]
pub(super) struct Theirs {
    clear: Option<Hlc>,
    is_over: bool,
    /// It cannot answer, or what has come makes no sense together.
    is_spoilt: bool,
    sums: Vec<GroupSum>,
    entries: BTreeMap<u64, Option<Form>>,
}

impl Theirs {
    pub(super) fn take(&mut self, digest: Digest) {
        let fits = digest.is_valid
            && !self.is_over
            && self.clear.is_none_or(|clear| clear == digest.clear)
            && self.entries.len() + digest.entries.len() <= DIGEST_ENTRIES_MAX;
        self.is_spoilt |= !fits;
        if self.is_spoilt {
            self.is_over = true;
            return;
        }
        self.clear = Some(digest.clear);
        self.is_over = digest.is_last;
        if !digest.sums.is_empty() {
            self.sums = digest.sums;
        }
        for (key, hlc, content) in digest.entries {
            let form = Form { hlc, content };
            self.entries.entry(key).and_modify(|known| *known = None).or_insert(Some(form));
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Both were made under the same clear.
    pub(super) fn goes_with(&self, ours: &Digesting) -> bool {
        !self.is_spoilt && self.clear == Some(ours.clear)
    }

    /// The groups that differ; `None`: the other side could not sum.
    pub(super) fn groups_that_differ(&self, ours: &Digesting) -> Option<Vec<u16>> {
        if self.sums.len() != ours.sums.len() {
            return None;
        }
        let pairs = self.sums.iter().zip(&ours.sums).enumerate();
        Some(pairs.filter(|(_, (theirs, ours))| theirs != ours).map(|(group, _)| group as u16).collect())
    }

    /// The keys that differ although neither side holds them in a form that is newer than the floor, each with
    /// both forms.
    pub(super) fn keys_that_differ(&self, ours: &Digesting) -> BTreeSet<Differing> {
        let floor = ours.ask.floor;
        let keys: BTreeSet<u64> = self.entries.keys().chain(ours.entries.keys()).copied().collect();
        let differ = keys.into_iter().filter_map(|key| {
            let (a, b) = (ours.entries.get(&key), self.entries.get(&key));
            if a == Some(&None) || b == Some(&None) {
                return None;
            }
            let (a, b) = (a.copied().flatten(), b.copied().flatten());
            let newer = |form: &Form| form.hlc > floor;
            (a != b && !a.iter().chain(&b).any(newer)).then_some((key, a, b))
        });
        differ.collect()
    }
}

/// The hash of a key, our form of it and theirs.
pub(super) type Differing = (u64, Option<Form>, Option<Form>);

/// Of the key alone, and of everything that must be the same. Not of the writer: below the floor its small
/// name may have been given to another.
fn hashes(key: u128, record: &Record<'_>) -> (u64, u128) {
    let mut hasher = SipHasher13::new_with_keys(key as u64, (key >> 64) as u64);
    hasher.write(record.key);
    let of_key = hasher.finish128().as_u128() as u64;
    hasher.write(record.value);
    let mut end = [0; 20];
    end[..2].copy_from_slice(&(record.key.len() as u16).to_le_bytes());
    end[2..4].copy_from_slice(&(record.value.len() as u16).to_le_bytes());
    end[4..12].copy_from_slice(&record.version.hlc.0.to_le_bytes());
    end[12..].copy_from_slice(&record.expires_at_ms.to_le_bytes());
    hasher.write(&end);
    (of_key, hasher.finish128().as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{HybridClock, Now};
    use crate::base::version::Version;
    use crate::store::{Marks, MemoryStore, NewRecord, Stamp, StoreConfig};

    const FLOOR: Hlc = Hlc(1_000 << 16);
    const UNTIL_MS: u64 = 60_000;

    fn store(seed: u64) -> MemoryStore {
        let config = StoreConfig { stripes: 4, memory_limit_bytes: 1 << 30, seed: Some(seed) };
        MemoryStore::new(config).expect("a store")
    }

    /// Writes as somebody else did; `value` `None`: removes.
    fn write(
        store: &MemoryStore,
        key: &str,
        value: Option<&str>,
        hlc: Hlc,
        writer: u128,
        expires_at_ms: u64,
    ) {
        let writer = store.writer(Incarnation(writer)).expect("a writer");
        let (hash, stamp) = (store.hash(key.as_bytes()), Stamp::Given(Version { hlc, writer }));
        let done = match value {
            Some(value) => {
                let (key, value) = (key.as_bytes(), value.as_bytes());
                store.set(hash, NewRecord { key, value, marks: Marks(3), expires_at_ms }, stamp, 1)
            }
            None => store.rm(hash, key.as_bytes(), stamp, 1),
        };
        done.expect("it fits");
    }

    fn digest(store: &MemoryStore, groups: &[u16]) -> Digesting {
        let clock = HybridClock::default();
        let context = Context { store, clock: &clock, now: Now { wall_ms: 5_000, mono_ns: 1 } };
        let ask = DigestAsk {
            id: 1,
            floor: FLOOR,
            until_ms: UNTIL_MS,
            key: 7,
            groups: groups.to_vec(),
            ..Default::default()
        };
        let mut digesting = Digesting::new(ask);
        while !digesting.is_over() {
            digesting.turn(context, 256);
        }
        assert!(digesting.holds(context));
        let late = Context { now: Now { wall_ms: UNTIL_MS, mono_ns: 1 }, ..context };
        assert!(!digesting.holds(late), "what it counts may have expired");
        digesting
    }

    fn told(digesting: &Digesting) -> Theirs {
        let mut theirs = Theirs::default();
        digesting.answer(true, &mut |digest| theirs.take(digest));
        assert!(theirs.is_over());
        theirs
    }

    /// The groups that differ, and the keys of those that nothing explains.
    fn compare(a: &MemoryStore, b: &MemoryStore) -> (usize, usize) {
        let (ours, theirs) = (digest(a, &[]), told(&digest(b, &[])));
        assert!(theirs.goes_with(&ours));
        let groups = theirs.groups_that_differ(&ours).expect("sums");
        if groups.is_empty() {
            return (0, 0);
        }
        let (ours, theirs) = (digest(a, &groups), told(&digest(b, &groups)));
        (groups.len(), theirs.keys_that_differ(&ours).len())
    }

    #[test]
    fn what_differs_is_found_and_what_is_under_way_explains_itself() {
        let (a, b) = (store(1), store(2));
        for n in 0..5_000u64 {
            write(&a, &format!("key{n}"), Some("value"), Hlc(n + 1), 1, 0);
            // Names of writers are given to others below the floor.
            write(&b, &format!("key{n}"), Some("value"), Hlc(n + 1), 2, 0);
        }
        assert_eq!(compare(&a, &b), (0, 0));
        // Written, written anew, removed above the floor, at one side so far; about to expire.
        let above = Hlc(FLOOR.0 + 1);
        write(&a, "key1", Some("newer"), above, 1, 0);
        write(&b, "key2", None, above, 1, 0);
        write(&b, "new", Some("v"), above, 1, 0);
        write(&a, "soon gone", Some("v"), Hlc(9), 1, UNTIL_MS);
        assert_eq!(compare(&a, &b), (2, 0));
        // The same stamp and another value; a key too many; one too few, whose tombstone is below the floor.
        write(&a, "x", Some("1"), Hlc(10), 1, 0);
        write(&b, "x", Some("2"), Hlc(10), 1, 0);
        write(&b, "y", Some("1"), Hlc(10), 1, 0);
        write(&b, "key3", None, FLOOR, 1, 0);
        write(&a, "stays", Some("v"), Hlc(9), 1, UNTIL_MS + 1);
        assert_eq!(compare(&a, &b), (6, 4));
        assert_eq!(compare(&b, &a), (6, 4));
    }

    #[test]
    fn an_answer_that_is_not_valid_or_under_another_clear_is_none() {
        let (a, b) = (store(1), store(2));
        write(&a, "k", Some("v"), Hlc(5), 1, 0);
        let ours = digest(&a, &[]);
        let mut refused = Theirs::default();
        let ask = ours.ask().clone();
        Digesting::refused(ask).answer(false, &mut |digest| refused.take(digest));
        assert!(refused.is_over() && !refused.goes_with(&ours));
        let writer = b.writer(Incarnation(1)).expect("a writer");
        b.clear(Stamp::Given(Version { hlc: Hlc(6), writer }), 1);
        assert!(!told(&digest(&b, &[])).goes_with(&ours));
    }
}
