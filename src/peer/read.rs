//! Taking fields out of bytes that somebody else wrote: every read may fail, none may panic.

use crate::limits::SEQUENCE_MAX;
use std::fmt;

/// Why bytes are no frame. The link that brought them is closed with this as the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A frame of more than [`crate::limits::FRAME_BYTES_MAX`], or of none.
    Length(u32),
    /// A field reaches beyond its frame.
    Truncated,
    /// Bytes are left over behind the last field.
    Trailing,
    /// A field has a value that it may not have.
    Value(&'static str),
    /// A frame that must be understood is of an unknown type.
    Type(u8),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Length(length) => write!(f, "a frame of {length} bytes"),
            Defect::Truncated => f.write_str("a field reaches beyond its frame"),
            Defect::Trailing => f.write_str("bytes behind the last field of a frame"),
            Defect::Value(field) => write!(f, "the field {field} has a value that it may not have"),
            Defect::Type(number) => write!(f, "a frame of the unknown type {number}"),
        }
    }
}

/// A frame's bytes that are still to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'b>(pub(crate) &'b [u8]);

impl<'b> Reader<'b> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'b [u8], Defect> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Defect::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Defect::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Defect> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Defect> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Defect> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Defect> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of an operation: no lifetime comes to more, and whoever adds to it need not think of its overflow.
    pub(crate) fn sequence(&mut self) -> Result<u64, Defect> {
        self.u64().and_then(|seq| if seq <= SEQUENCE_MAX { Ok(seq) } else { Err(Defect::Value("sequence")) })
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Defect> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Defect> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Defect::Value("flag")),
        }
    }

    /// How many of them follow, `most` at most.
    pub(crate) fn count(&mut self, most: usize, field: &'static str) -> Result<usize, Defect> {
        let count = usize::from(self.u16()?);
        if count <= most { Ok(count) } else { Err(Defect::Value(field)) }
    }

    /// A text of at most 255 bytes behind its length.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'b str, Defect> {
        let length = self.u8()?;
        std::str::from_utf8(self.bytes(usize::from(length))?).map_err(|_| Defect::Value(field))
    }

    pub(crate) fn end(self) -> Result<(), Defect> {
        if self.0.is_empty() { Ok(()) } else { Err(Defect::Trailing) }
    }
}

/// A text behind its length; longer ones are cut off at a character's end.
pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}
