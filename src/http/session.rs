//! A connection's side of HTTP as a state machine: which bytes are a request, which are a body to drop,
//! when the connection is over. Bytes in, [`Event`]s out; whoever drives it owns the buffers.

use super::error::ErrorCode;
use super::head::{self, Body, Head, HeadError};
use super::plain::Plain;
use super::repeat::Repeat;
use crate::limits::{BODY_BYTES_MAX, BODY_FRAMING_BYTES_MAX};
use memchr::memchr;

/// What the next bytes of a connection turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// A request, to be answered in its turn.
    Request(Head<'i>),
    /// Answer with this, read no further, close.
    Refuse(ErrorCode),
    /// The body of the last request is one that cannot be read. If that is not answered yet, answer it with
    /// this instead, else say nothing: a second answer would pass for that to another request. Close.
    BadBody(ErrorCode),
    /// Nothing more can be done until more bytes have come.
    NeedMore,
}

/// What the next byte of a connection belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A request head, or nothing yet.
    #[default]
    Head,
    /// A body of known length, this much of it still to come.
    Length(u64),
    /// A chunked body.
    Chunk(Chunk),
    /// The last request was read; whatever follows is ignored.
    Over,
}

/// What the next byte of a chunked body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// The size of a chunk: its value so far and whether a digit was seen.
    Size { size: u64, digits: bool },
    /// An extension, up to the end of the size line.
    Extension { size: u64 },
    /// The data, this much of it still to come.
    Data { left: u64 },
    /// The line break behind the data.
    DataEnd,
    /// A line of the trailer; empty so far or not.
    Trailer { empty: bool },
}

/// One connection's state. Small: idle connections hold nothing else.
#[derive(Debug, Default)]
pub struct Session {
    state: State,
    /// Bytes of a chunked body announced so far: bounded like any other body.
    data_bytes: u32,
    /// Bytes around them so far.
    framing_bytes: u32,
    /// Bytes of an incomplete head already known to hold no line break worth looking at.
    scanned: u32,
}

impl Session {
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// True between requests: nothing of a next one has been seen, if the driver holds no bytes either.
    #[must_use]
    pub fn between_requests(&self) -> bool {
        self.state == State::Head && self.scanned == 0
    }

    /// True within the body of a request that was found: what is still to come belongs to no other.
    #[must_use]
    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Length(_) | State::Chunk(_))
    }

    /// True behind the last request of the connection.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Reads no further: what the connection still sends is ignored.
    pub fn end(&mut self) {
        self.state = State::Over;
    }

    /// The last request, which had no body, counts as not read: the driver offers its bytes again.
    pub fn put_back(&mut self) {
        self.become_head();
    }

    /// Takes the next event from `input[*at..]` and moves `at` behind what it consumed.
    ///
    /// After [`Event::NeedMore`] the driver keeps `input[*at..]` and calls again with those bytes first.
    pub fn next<'i>(&mut self, input: &'i [u8], at: &mut usize) -> Event<'i> {
        self.next_by(input, at, head::parse)
    }

    /// The same, sooner where a head repeats an earlier one; `repeat` may serve any number of connections.
    #[inline]
    pub fn next_repeating<'i>(&mut self, repeat: &mut Repeat, input: &'i [u8], at: &mut usize) -> Event<'i> {
        self.next_by(input, at, |rest| repeat.parse(rest))
    }

    /// The request at `input[at..]` and its length, if it is a plain one and begins there: the driver moves `at`
    /// behind it, or asks for the next event as ever.
    #[inline]
    #[must_use]
    pub fn plain(&self, repeat: &Repeat, input: &[u8], at: usize) -> Option<(Plain, usize)> {
        if self.between_requests() { repeat.plain(&input[at..]) } else { None }
    }

    #[inline]
    fn next_by<'i>(
        &mut self,
        input: &'i [u8],
        at: &mut usize,
        parse: impl FnOnce(&'i [u8]) -> Result<Head<'i>, HeadError>,
    ) -> Event<'i> {
        loop {
            let rest = &input[*at..];
            match self.state {
                State::Head if rest.is_empty() => return Event::NeedMore,
                State::Head => return self.head(rest, at, parse),
                State::Length(left) => {
                    let taken = left.min(rest.len() as u64);
                    *at += taken as usize;
                    if taken < left {
                        self.state = State::Length(left - taken);
                        return Event::NeedMore;
                    }
                    self.become_head();
                }
                State::Chunk(chunk) => {
                    let Some(&byte) = rest.first() else { return Event::NeedMore };
                    let taken = match chunk {
                        Chunk::Data { left } => left.min(rest.len() as u64) as usize,
                        _ => 1,
                    };
                    *at += taken;
                    let next = chunk.step(byte, taken);
                    if !matches!(chunk, Chunk::Data { .. }) {
                        self.framing_bytes += 1;
                        if let Ok(Some(Chunk::Data { left })) = next {
                            self.data_bytes += left as u32;
                        }
                    }
                    let too_large = u64::from(self.data_bytes) > BODY_BYTES_MAX
                        || u64::from(self.framing_bytes) > BODY_FRAMING_BYTES_MAX;
                    match next {
                        Ok(Some(_)) if too_large => return self.bad_body(ErrorCode::BodyTooLarge),
                        Ok(Some(next)) => self.state = State::Chunk(next),
                        Ok(None) => self.become_head(),
                        Err(code) => return self.bad_body(code),
                    }
                }
                State::Over => {
                    *at = input.len();
                    return Event::NeedMore;
                }
            }
        }
    }

    #[inline]
    fn head<'i>(
        &mut self,
        rest: &'i [u8],
        at: &mut usize,
        parse: impl FnOnce(&'i [u8]) -> Result<Head<'i>, HeadError>,
    ) -> Event<'i> {
        // A head that comes in many pieces is parsed again only when a line has ended since: bytes
        // dripping in cost a search, not a parse each.
        let scanned = self.scanned as usize;
        if scanned != 0 && scanned <= rest.len() && memchr(b'\n', &rest[scanned..]).is_none() {
            let limit = crate::limits::REQUEST_LINE_BYTES_MAX;
            if rest.len() - scanned < limit && rest.len() < limit {
                self.scanned = rest.len() as u32;
                return Event::NeedMore;
            }
        }
        match parse(rest) {
            Ok(head) => {
                self.scanned = 0;
                *at += head.bytes;
                match head.body {
                    Body::None => {}
                    Body::Length(left) => self.state = State::Length(left),
                    Body::Chunked => {
                        (self.data_bytes, self.framing_bytes) = (0, 0);
                        self.state = State::Chunk(Chunk::Size { size: 0, digits: false });
                    }
                }
                if !head.keep_alive && head.body == Body::None {
                    self.end();
                }
                Event::Request(head)
            }
            Err(HeadError::Incomplete) => {
                self.scanned = rest.len() as u32;
                Event::NeedMore
            }
            Err(HeadError::Refused(code)) => self.refuse(code),
        }
    }

    fn become_head(&mut self) {
        self.state = State::Head;
        self.scanned = 0;
    }

    fn refuse<'i>(&mut self, code: ErrorCode) -> Event<'i> {
        self.end();
        Event::Refuse(code)
    }

    fn bad_body<'i>(&mut self, code: ErrorCode) -> Event<'i> {
        self.end();
        Event::BadBody(code)
    }
}

impl Chunk {
    /// The state behind `byte` (behind `taken` bytes for data); `None` behind the last byte of the body.
    fn step(self, byte: u8, taken: usize) -> Result<Option<Chunk>, ErrorCode> {
        let after_size =
            |size| if size == 0 { Chunk::Trailer { empty: true } } else { Chunk::Data { left: size } };
        Ok(Some(match (self, byte) {
            (Chunk::Size { size, .. }, digit) if digit.is_ascii_hexdigit() => {
                let value = char::from(digit).to_digit(16).map_or(0, u64::from);
                let size = size << 4 | value;
                if size > BODY_BYTES_MAX {
                    return Err(ErrorCode::BodyTooLarge);
                }
                Chunk::Size { size, digits: true }
            }
            (Chunk::Size { digits: false, .. }, _) => return Err(ErrorCode::BadRequest),
            (Chunk::Size { size, .. } | Chunk::Extension { size }, b'\n') => after_size(size),
            (Chunk::Size { size, .. }, b'\r' | b';' | b' ' | b'\t') => Chunk::Extension { size },
            (Chunk::Size { .. }, _) => return Err(ErrorCode::BadRequest),
            (Chunk::Extension { size }, _) => Chunk::Extension { size },
            (Chunk::Data { left }, _) => match left - taken as u64 {
                0 => Chunk::DataEnd,
                left => Chunk::Data { left },
            },
            (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
            (Chunk::DataEnd, b'\n') => Chunk::Size { size: 0, digits: false },
            (Chunk::DataEnd, _) => return Err(ErrorCode::BadRequest),
            (Chunk::Trailer { empty: true }, b'\n') => return Ok(None),
            (Chunk::Trailer { empty: false }, b'\n') => Chunk::Trailer { empty: true },
            (Chunk::Trailer { empty }, b'\r') => Chunk::Trailer { empty },
            (Chunk::Trailer { .. }, _) => Chunk::Trailer { empty: false },
        }))
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
