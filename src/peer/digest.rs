//! The frames by which two members compare what they hold; `proto-spec/peer.md` has the layouts.

use super::read::{Defect, Reader};
use crate::base::version::Hlc;
use crate::limits::{DIGEST_ASKED_MAX, DIGEST_FRAME_ENTRIES_MAX, DIGEST_GROUPS};

/// Asks for sums of all groups, or for the keys of some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DigestAsk {
    pub id: u32,
    pub view_hash: u64,
    /// Records with a stamp up to this one count.
    pub floor: Hlc,
    /// Those that expire by then do not; and neither does the answer, from then on.
    pub until_ms: u64,
    /// Of the hash.
    pub key: u128,
    /// Ascending; none: the sums of all.
    pub groups: Vec<u16>,
}

/// The sum of the hashes of a group's records, modulo 2^128, and how many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSum {
    pub sum: u128,
    pub count: u32,
}

/// An answer, or a piece of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub id: u32,
    /// The acceptor's clear when its scan began.
    pub clear: Hlc,
    pub is_last: bool,
    /// Of no use otherwise: the acceptor cannot compare now, or too much has changed during its scan.
    pub is_valid: bool,
    /// Of all groups, or none.
    pub sums: Vec<GroupSum>,
    /// Hash of the key, stamp, hash of the record; that is 0 for one above the floor.
    pub entries: Vec<(u64, Hlc, u64)>,
}

impl DigestAsk {
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<DigestAsk, Defect> {
        let (id, view_hash, floor) = (r.u32()?, r.u64()?, Hlc(r.u64()?));
        let (until_ms, key) = (r.u64()?, r.u128()?);
        let count = r.count(DIGEST_ASKED_MAX, "groups")?;
        let groups: Vec<u16> = (0..count).map(|_| r.u16()).collect::<Result<_, _>>()?;
        let ascends = groups.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascends || groups.last().is_some_and(|last| usize::from(*last) >= DIGEST_GROUPS) {
            return Err(Defect::Value("groups"));
        }
        Ok(DigestAsk { id, view_hash, floor, until_ms, key, groups })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        for number in [self.view_hash, self.floor.0, self.until_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&(self.groups.len() as u16).to_le_bytes());
        for group in &self.groups {
            out.extend_from_slice(&group.to_le_bytes());
        }
    }
}

impl Digest {
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Digest, Defect> {
        let (id, clear, is_last, is_valid) = (r.u32()?, Hlc(r.u64()?), r.flag()?, r.flag()?);
        let count = usize::from(r.u16()?);
        if count != 0 && count != DIGEST_GROUPS {
            return Err(Defect::Value("sums"));
        }
        let sums = (0..count).map(|_| Ok(GroupSum { sum: r.u128()?, count: r.u32()? }));
        let sums = sums.collect::<Result<_, Defect>>()?;
        let count = r.count(DIGEST_FRAME_ENTRIES_MAX, "entries")?;
        let entries = (0..count).map(|_| Ok((r.u64()?, Hlc(r.u64()?), r.u64()?)));
        let entries = entries.collect::<Result<_, Defect>>()?;
        Ok(Digest { id, clear, is_last, is_valid, sums, entries })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.clear.0.to_le_bytes());
        out.extend([u8::from(self.is_last), u8::from(self.is_valid)]);
        out.extend_from_slice(&(self.sums.len() as u16).to_le_bytes());
        for group in &self.sums {
            out.extend_from_slice(&group.sum.to_le_bytes());
            out.extend_from_slice(&group.count.to_le_bytes());
        }
        out.extend_from_slice(&(self.entries.len() as u16).to_le_bytes());
        for (key, hlc, content) in &self.entries {
            for number in [*key, hlc.0, *content] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
}
