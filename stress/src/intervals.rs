//! The seconds of a run: threads hand in their parts, which are merged losslessly and then kept packed, so that
//! an hour takes megabytes.

use crate::stats::{Interval, histogram};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use std::collections::BTreeMap;

/// Seconds that stay unpacked, so that threads which are a little apart find theirs ready.
const OPEN_MAX: u64 = 3;

/// One second of all threads together.
#[derive(Clone)]
pub struct Second {
    pub index: u64,
    pub failed: u64,
    packed: Vec<u8>,
}

impl Second {
    fn pack(interval: &Interval) -> Self {
        let mut packed = Vec::new();
        V2Serializer::new().serialize(&interval.latency, &mut packed).expect("a vector takes everything");
        Self { index: interval.index, failed: interval.failed, packed }
    }

    pub fn latency(&self) -> Histogram<u64> {
        if self.packed.is_empty() {
            return histogram();
        }
        Deserializer::new().deserialize(&mut self.packed.as_slice()).expect("packed here")
    }
}

#[derive(Default)]
pub(crate) struct Seconds {
    open: BTreeMap<u64, Interval>,
    packed: BTreeMap<u64, Second>,
}

impl Seconds {
    pub(crate) fn add(&mut self, part: Interval) {
        if let Some(packed) = self.packed.remove(&part.index) {
            // A thread that lay still for seconds.
            let whole = Interval { index: part.index, failed: packed.failed, latency: packed.latency() };
            self.open.insert(part.index, whole);
        }
        match self.open.get_mut(&part.index) {
            Some(whole) => {
                whole.failed += part.failed;
                whole.latency.add(&part.latency).expect("same bounds");
            }
            None => {
                self.open.insert(part.index, part);
            }
        }
        while let Some((first, last)) = self.open.first_key_value().zip(self.open.last_key_value())
            && last.0 - first.0 > OPEN_MAX
        {
            self.pack_first();
        }
    }

    fn pack_first(&mut self) {
        if let Some((index, interval)) = self.open.pop_first() {
            self.packed.insert(index, Second::pack(&interval));
        }
    }

    /// Every second from the first to the last; those in which nothing ended are there and empty.
    pub(crate) fn finish(mut self) -> Vec<Second> {
        while !self.open.is_empty() {
            self.pack_first();
        }
        let last = self.packed.last_key_value().map_or(0, |(last, _)| last + 1);
        (0..last)
            .map(|index| {
                self.packed.remove(&index).unwrap_or(Second { index, failed: 0, packed: Vec::new() })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts in any order, also long after their second, come out merged; silent seconds are there.
    #[test]
    fn parts_are_merged_in_whatever_order_they_come() {
        let mut seconds = Seconds::default();
        for (index, value, failed) in [(0, 5, 1), (1, 7, 0), (9, 8, 0), (1, 9, 2), (0, 6, 1), (9, 9, 0)] {
            let mut part = Interval::new(index);
            part.latency.record(value).unwrap();
            part.failed = failed;
            seconds.add(part);
        }
        let seconds = seconds.finish();
        let seen: Vec<_> = seconds
            .iter()
            .map(|s| (s.index, s.latency().len(), s.failed, s.latency().max()))
            .filter(|(_, ok, ..)| *ok > 0)
            .collect();
        assert_eq!(seconds.len(), 10);
        assert_eq!(seen, [(0, 2, 2, 6), (1, 2, 2, 9), (9, 2, 0, 9)]);
    }
}
