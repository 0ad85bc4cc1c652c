//! One write as bytes: what the log keeps, what `OPS` frames carry, and, behind a writer's index, what
//! `RECORDS` frames carry. Encoded once, when the write is accepted, however many peers there are.
//!
//! Budget: encoding is one copy of key and value; decoding borrows them.

use super::read::{Defect, Reader};
use crate::base::version::Hlc;
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Set,
    Rm,
    Clear,
}

/// A write: its stamp's time, what it does and to what. The writer is known from where it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'b> {
    pub kind: Kind,
    pub hlc: Hlc,
    /// Milliseconds since the UNIX epoch; 0: never. Only of [`Kind::Set`].
    pub expires_at_ms: u64,
    /// Two bits that the nodes keep and the protocol never looks at.
    pub marks: u8,
    pub key: &'b [u8],
    pub value: &'b [u8],
}

const KIND: u8 = 0b11;
const EXPIRES: u8 = 0b100;
const MARKS_SHIFT: u32 = 3;
const KNOWN: u8 = 0b1_1111;

impl<'b> Operation<'b> {
    /// Bytes that [`Operation::encode`] appends.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        let expiry = if self.expires_at_ms == 0 { 0 } else { 8 };
        1 + 8 + 2 + 2 + expiry + self.key.len() + self.value.len()
    }

    /// Appends the operation. Key and value are within the limits of the store.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.key.len() <= KEY_BYTES_MAX && self.value.len() <= VALUE_BYTES_MAX);
        let kind = match self.kind {
            Kind::Set => 0,
            Kind::Rm => 1,
            Kind::Clear => 2,
        };
        let expires = if self.expires_at_ms == 0 { 0 } else { EXPIRES };
        let mut head = [0; 13];
        head[0] = kind | expires | ((self.marks & 0b11) << MARKS_SHIFT);
        head[1..9].copy_from_slice(&self.hlc.0.to_le_bytes());
        head[9..11].copy_from_slice(&(self.key.len() as u16).to_le_bytes());
        head[11..13].copy_from_slice(&(self.value.len() as u16).to_le_bytes());
        out.extend_from_slice(&head);
        if self.expires_at_ms != 0 {
            out.extend_from_slice(&self.expires_at_ms.to_le_bytes());
        }
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }

    /// Takes one operation from the front of `reader`.
    #[inline]
    pub(crate) fn read(reader: &mut Reader<'b>) -> Result<Operation<'b>, Defect> {
        let head = reader.u8()?;
        if head & !KNOWN != 0 {
            return Err(Defect::Value("operation flags"));
        }
        let hlc = Hlc(reader.u64()?);
        let key = usize::from(reader.u16()?);
        let value = usize::from(reader.u16()?);
        let expires_at_ms = if head & EXPIRES != 0 { reader.u64()? } else { 0 };
        let kind = match head & KIND {
            0 => Kind::Set,
            1 => Kind::Rm,
            2 => Kind::Clear,
            _ => return Err(Defect::Value("operation kind")),
        };
        let fits = match kind {
            Kind::Set => key > 0 && (head & EXPIRES == 0 || expires_at_ms > 0),
            Kind::Rm => key > 0 && value == 0 && head & EXPIRES == 0,
            Kind::Clear => key == 0 && value == 0 && head & EXPIRES == 0,
        };
        if !fits || key > KEY_BYTES_MAX || value > VALUE_BYTES_MAX || hlc == Hlc::ZERO {
            return Err(Defect::Value("operation"));
        }
        let key = reader.bytes(key)?;
        let value = reader.bytes(value)?;
        // Everything that clients read is UTF-8; what a peer sends must be as well.
        if std::str::from_utf8(key).is_err() || std::str::from_utf8(value).is_err() {
            return Err(Defect::Value("text"));
        }
        Ok(Operation { kind, hlc, expires_at_ms, marks: head >> MARKS_SHIFT & 0b11, key, value })
    }
}

/// The operations of a frame, one after the other; the first defect ends them.
#[derive(Clone, Debug)]
pub struct Operations<'b> {
    reader: Reader<'b>,
    left: u32,
}

impl<'b> Operations<'b> {
    /// `count` operations in exactly these bytes.
    #[must_use]
    pub const fn new(bytes: &'b [u8], count: u32) -> Operations<'b> {
        Operations { reader: Reader(bytes), left: count }
    }
}

impl<'b> Iterator for Operations<'b> {
    type Item = Result<Operation<'b>, Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return match self.reader.0.is_empty() {
                true => None,
                false => {
                    self.reader = Reader(&[]);
                    Some(Err(Defect::Trailing))
                }
            };
        }
        self.left -= 1;
        let read = Operation::read(&mut self.reader);
        if read.is_err() {
            (self.left, self.reader) = (0, Reader(&[]));
        }
        Some(read)
    }
}

/// One record of a scan: whose write it is, by its index in the frame's table, and the write.
#[derive(Clone, Debug)]
pub struct Records<'b> {
    writers: &'b [u8],
    reader: Reader<'b>,
}

impl<'b> Records<'b> {
    /// `writers`: 16 bytes each.
    pub(crate) const fn new(writers: &'b [u8], bytes: &'b [u8]) -> Records<'b> {
        Records { writers, reader: Reader(bytes) }
    }
}

impl<'b> Iterator for Records<'b> {
    type Item = Result<(crate::base::version::Incarnation, Operation<'b>), Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.0.is_empty() {
            return None;
        }
        let mut read = || {
            let index = usize::from(self.reader.u8()?);
            let bytes = self.writers.chunks_exact(16).nth(index).ok_or(Defect::Value("writer"))?;
            let writer = Reader(bytes).u128()?;
            let operation = Operation::read(&mut self.reader)?;
            if operation.kind == Kind::Clear {
                return Err(Defect::Value("operation kind"));
            }
            Ok((crate::base::version::Incarnation(writer), operation))
        };
        let read = read();
        if read.is_err() {
            self.reader = Reader(&[]);
        }
        Some(read)
    }
}
