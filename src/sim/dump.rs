//! Everything that a node holds, as the checker compares it.

use crate::base::version::{Hlc, Incarnation};
use crate::node::Node;
use crate::store::{Flow, MemoryStore, Storage};
use std::collections::BTreeMap;

/// A stamp: what decides between two writes of one key.
pub(super) type Stamp = (Hlc, Incarnation);

pub(super) const NEVER: Stamp = (Hlc::ZERO, Incarnation(0));
/// In place of the writer of what was decided before it was copied: nobody is named for it.
const DECIDED: Incarnation = Incarnation(u128::MAX);

/// Whether `a` is the older one, as far as is known.
pub(super) fn is_older(a: Stamp, b: Stamp) -> bool {
    let is_decided = a.1 == DECIDED || b.1 == DECIDED;
    if is_decided { a.0 < b.0 } else { a < b }
}

/// What a node holds of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) stamp: Stamp,
    /// `None`: a tombstone.
    pub(super) value: Option<String>,
    pub(super) expires_at_ms: u64,
}

/// Everything that a node holds.
#[derive(Clone, Debug)]
pub(super) struct Dump {
    pub(super) records: BTreeMap<String, Held>,
    pub(super) clear: Stamp,
}

impl Dump {
    pub(super) fn of(node: &Node<MemoryStore>) -> Dump {
        let store = &node.store;
        let mut records = BTreeMap::new();
        let mut cursor = Some(store.cursor_start());
        while let Some(at) = cursor {
            cursor = store.scan(at, Hlc::ZERO, 1024, &mut |record, buried| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let writer = store.incarnation(record.version.writer).filter(|writer| writer.0 != 0);
                let writer = writer.unwrap_or(DECIDED);
                let held = Held {
                    stamp: (record.version.hlc, writer),
                    value: (!buried).then(|| text(record.value)),
                    expires_at_ms: record.expires_at_ms,
                };
                records.insert(text(record.key), held);
                Flow::Continue
            });
        }
        let clear = store.clear_version();
        let writer = store.incarnation(clear.writer).unwrap_or(Incarnation(0));
        Dump { records, clear: (clear.hlc, writer) }
    }

    /// The greatest stamp that is known here for the key.
    pub(super) fn stamp(&self, key: Option<&str>) -> Stamp {
        let record = key.and_then(|key| self.records.get(key)).map_or(NEVER, |held| held.stamp);
        record.max(self.clear)
    }

    pub(super) fn visible(&self, now_ms: u64) -> BTreeMap<&String, (&String, Stamp)> {
        let visible = |held: &Held| held.expires_at_ms == 0 || held.expires_at_ms > now_ms;
        let records = self.records.iter().filter(|(_, held)| visible(held));
        records.filter_map(|(key, held)| Some((key, (held.value.as_ref()?, held.stamp)))).collect()
    }
}
