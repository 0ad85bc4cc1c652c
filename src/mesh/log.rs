//! The writes that one worker accepted, as encoded bytes, numbered from 1, for as long as a peer may need
//! them and there is room. One cursor a peer; no queue a peer, no copy a peer.
//!
//! Budget: an append is one copy into a block that is there already.

use crate::limits::OPS_FRAME_BYTES;
use crate::peer::operation::{Operation, Operations};
use std::collections::VecDeque;

#[derive(Debug)]
struct Block {
    first: u64,
    count: u32,
    /// Bytes that were logged before it.
    before: u64,
    bytes: Vec<u8>,
}

impl Block {
    fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    blocks: VecDeque<Block>,
    spare: Option<Vec<u8>>,
    head: u64,
    bytes: usize,
    /// Bytes that were ever logged.
    logged: u64,
    limit: usize,
}

/// Where a peer stands: the operation that it gets next, and where that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    next: u64,
    /// Bytes into the block that holds it, if the block still begins with `block`.
    block: u64,
    offset: usize,
}

impl Cursor {
    /// Before the operation behind `seq`.
    #[must_use]
    pub const fn behind(seq: u64) -> Cursor {
        Cursor { next: seq + 1, block: 0, offset: 0 }
    }

    /// The last operation that has been taken.
    #[must_use]
    pub const fn taken(self) -> u64 {
        self.next - 1
    }
}

/// Operations of the log, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'l> {
    pub first: u64,
    pub count: u32,
    pub bytes: &'l [u8],
}

impl Log {
    /// An empty log that keeps about `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Log {
        Log { blocks: VecDeque::new(), spare: None, head: 0, bytes: 0, logged: 0, limit }
    }

    /// The last operation's number; 0: none yet.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// Bytes of encoded operations that are kept.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that it keeps, about.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes from the block of the operation behind `seq` to the head: what follows `seq`, and at most a block
    /// more. `None`: they are not all kept any more.
    #[must_use]
    pub fn bytes_behind(&self, seq: u64) -> Option<u64> {
        if seq >= self.head {
            return Some(0);
        }
        let place = self.blocks.partition_point(|block| block.end() <= seq + 1);
        let block = self.blocks.get(place).filter(|block| block.first <= seq + 1)?;
        Some(self.logged - block.before)
    }

    /// Adds an operation and returns its number.
    #[inline]
    pub fn append(&mut self, operation: &Operation<'_>) -> u64 {
        let length = operation.encoded_len();
        let block_bytes = OPS_FRAME_BYTES.min(self.limit / 4);
        let full = self.blocks.back().is_none_or(|block| block.bytes.len() + length > block_bytes);
        if full {
            self.open_block();
        }
        self.head += 1;
        self.bytes += length;
        self.logged += length as u64;
        if let Some(block) = self.blocks.back_mut() {
            operation.encode(&mut block.bytes);
            block.count += 1;
        }
        self.head
    }

    #[cold]
    fn open_block(&mut self) {
        while self.bytes > self.limit {
            self.drop_first();
        }
        let mut bytes = self.spare.take().unwrap_or_default();
        bytes.clear();
        self.blocks.push_back(Block { first: self.head + 1, count: 0, before: self.logged, bytes });
    }

    fn drop_first(&mut self) {
        if let Some(block) = self.blocks.pop_front() {
            self.bytes -= block.bytes.len();
            self.spare = Some(block.bytes);
        }
    }

    /// Forgets blocks that nobody needs: everything up to `acked` is held by every member.
    pub fn trim(&mut self, acked: u64) {
        while self.blocks.len() > 1 && self.blocks.front().is_some_and(|block| block.end() <= acked + 1) {
            self.drop_first();
        }
    }

    /// Whether the operations behind `seq` are all still here.
    #[must_use]
    pub fn reaches_back_to(&self, seq: u64) -> bool {
        seq == self.head || (seq < self.head && self.blocks.front().is_some_and(|b| b.first <= seq + 1))
    }

    /// The operations from the cursor to the end of their block; moves the cursor behind them. `None` at
    /// the head.
    ///
    /// # Errors
    /// [`FellOff`]: they are not kept any more.
    pub fn take(&self, cursor: &mut Cursor) -> Result<Option<Piece<'_>>, FellOff> {
        if cursor.next > self.head {
            return Ok(None);
        }
        let place = self.blocks.partition_point(|block| block.end() <= cursor.next);
        let Some(block) = self.blocks.get(place).filter(|block| block.first <= cursor.next) else {
            return Err(FellOff);
        };
        let offset = match cursor.block == block.first {
            true => cursor.offset,
            false => {
                let before = Operations::new(&block.bytes, block.count);
                let skipped = (cursor.next - block.first) as usize;
                before.take(skipped).filter_map(Result::ok).map(|operation| operation.encoded_len()).sum()
            }
        };
        let piece = Piece {
            first: cursor.next,
            count: (block.end() - cursor.next) as u32,
            bytes: &block.bytes[offset..],
        };
        *cursor = Cursor { next: block.end(), block: block.first, offset: block.bytes.len() };
        Ok(Some(piece))
    }
}

/// The log does not reach back that far any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FellOff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::version::Hlc;
    use crate::peer::operation::Kind;

    fn operation(seq: u64, value: &[u8]) -> Operation<'_> {
        Operation { kind: Kind::Set, hlc: Hlc(seq), expires_at_ms: 0, marks: 0, key: b"k", value }
    }

    fn read(log: &Log, cursor: &mut Cursor) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(piece) = log.take(cursor).expect("kept") {
            let operations = Operations::new(piece.bytes, piece.count);
            let seqs: Vec<u64> = operations.map(|o| o.expect("an operation").hlc.0).collect();
            assert_eq!(seqs[0], piece.first);
            found.extend(seqs);
        }
        found
    }

    #[test]
    fn cursors_read_everything_once_from_wherever_they_start() {
        let mut log = Log::new(1 << 20);
        let mut follower = Cursor::behind(0);
        let mut seen = Vec::new();
        for seq in 1..=5000 {
            assert_eq!(log.append(&operation(seq, &[b'v'; 50])), seq);
            if seq % 7 == 0 {
                seen.extend(read(&log, &mut follower));
            }
        }
        seen.extend(read(&log, &mut follower));
        assert_eq!(seen, (1..=5000).collect::<Vec<_>>());
        assert_eq!(follower.taken(), 5000);
        for start in [0, 1, 1023, 4999, 5000] {
            assert!(log.reaches_back_to(start));
            assert_eq!(read(&log, &mut Cursor::behind(start)), (start + 1..=5000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_follows_an_operation_is_told_by_block() {
        let mut log = Log::new(64 * 1024);
        let length = operation(1, &[b'v'; 100]).encoded_len() as u64;
        assert_eq!(log.bytes_behind(0), Some(0), "nothing was logged");
        for seq in 1..=10_000 {
            log.append(&operation(seq, &[b'v'; 100]));
        }
        for behind in [1, 2, 100, 200] {
            let bytes = log.bytes_behind(10_000 - behind).expect("kept");
            assert!((behind * length..=behind * length + 16 * 1024).contains(&bytes), "{behind}: {bytes}");
        }
        assert_eq!(log.bytes_behind(10_000), Some(0));
        let least = (0..10_000).find(|seq| log.reaches_back_to(*seq)).expect("kept");
        assert_eq!(log.bytes_behind(least), Some(log.bytes() as u64));
        assert_eq!(log.bytes_behind(least - 1), None);
    }

    #[test]
    fn it_keeps_to_its_bound_and_says_what_fell_off() {
        let mut log = Log::new(64 * 1024);
        let mut slow = Cursor::behind(0);
        for seq in 1..=10_000 {
            log.append(&operation(seq, &[b'v'; 100]));
            assert!(log.bytes() <= 64 * 1024 + 32 * 1024, "{}", log.bytes());
        }
        assert_eq!(log.take(&mut slow), Err(FellOff));
        assert!(!log.reaches_back_to(0) && log.reaches_back_to(9_999));
        log.trim(10_000);
        assert!(log.reaches_back_to(10_000));
        assert!(log.bytes() < 32 * 1024);
    }
}
