//! One HTTP answer, in pieces of any size: head, then a body by length, in chunks, or until the end.
//!
//! Used for the engine and for health checks. Whoever answers may be broken or hostile: every part is
//! bounded, and a fault says that the answer is at fault, never this program.

use crate::limits::{ANSWER_HEAD_BYTES_MAX, HEADER_FIELDS_MAX};

/// What the head says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// The `Date` field, in seconds since 1970.
    pub date: Option<u64>,
}

/// Why an answer cannot be read on. All of these are faults of the side that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not HTTP.
    NotHttp,
    /// The head is longer than [`ANSWER_HEAD_BYTES_MAX`].
    HeadTooLong,
    /// `Content-Length` is no number, or there are several that differ.
    BadLength,
    /// A chunk's size line or its end is not what it must be.
    BadChunk,
    /// The body is longer than the reader was told to accept.
    BodyTooLong,
    /// The connection ended in the middle.
    CutShort,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::NotHttp => "the answer is not HTTP",
            Fault::HeadTooLong => "the answer's head is too long",
            Fault::BadLength => "the answer has a wrong Content-Length",
            Fault::BadChunk => "the answer has a broken chunk",
            Fault::BodyTooLong => "the answer is too long",
            Fault::CutShort => "the answer ends in the middle",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    /// So many bytes of the body are to come.
    Length(u64),
    /// The body ends with the connection.
    UntilEnd,
    /// In a chunk's size line; `0`: none of its digits has come.
    ChunkSize {
        size: u64,
        digits: u8,
    },
    /// Behind the digits, up to the line break.
    ChunkExtension {
        size: u64,
        length: usize,
    },
    ChunkData(u64),
    /// The line break behind a chunk's data; `true`: its CR has come.
    ChunkEnd(bool),
    /// The lines behind the last chunk; how many bytes of the current line, how many in all.
    Trailer {
        line: usize,
        all: usize,
    },
    Done,
}

/// See the module. Feed it until it is done or at fault.
#[derive(Clone, Debug)]
pub struct ResponseReader {
    stage: Stage,
    /// The head as far as it has come.
    carry: Vec<u8>,
    head: Option<Head>,
    body_bytes: u64,
    body_bytes_max: u64,
}

impl ResponseReader {
    /// A reader that accepts so many bytes of body.
    #[must_use]
    pub fn new(body_bytes_max: u64) -> ResponseReader {
        ResponseReader { stage: Stage::Head, carry: Vec::new(), head: None, body_bytes: 0, body_bytes_max }
    }

    /// The head, once it is complete.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Takes the next bytes and appends what belongs to the body. Bytes behind the answer are dropped.
    ///
    /// # Errors
    /// A [`Fault`]; the reader is of no use after it.
    pub fn feed(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> Result<(), Fault> {
        let mut rest = bytes;
        while self.stage == Stage::Head {
            if rest.is_empty() {
                return Ok(());
            }
            rest = self.take_head(rest)?;
        }
        while !rest.is_empty() && self.stage != Stage::Done {
            rest = self.take_body(rest, body)?;
        }
        Ok(())
    }

    /// The other side will send no more.
    ///
    /// # Errors
    /// [`Fault::CutShort`] if that was too early.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.stage {
            Stage::UntilEnd | Stage::Done => {
                self.stage = Stage::Done;
                Ok(())
            }
            _ => Err(Fault::CutShort),
        }
    }

    /// Adds to the head; returns what lies behind it.
    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        let before = self.carry.len();
        let room = (ANSWER_HEAD_BYTES_MAX + 1).saturating_sub(before).min(bytes.len());
        self.carry.extend_from_slice(&bytes[..room]);
        let mut fields = [httparse::EMPTY_HEADER; HEADER_FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(&self.carry) {
            Ok(httparse::Status::Complete(length)) if length <= ANSWER_HEAD_BYTES_MAX => length,
            Ok(httparse::Status::Partial) if self.carry.len() <= ANSWER_HEAD_BYTES_MAX => {
                return Ok(&bytes[room..]);
            }
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Fault::HeadTooLong),
            Err(_) => return Err(Fault::NotHttp),
        };
        let status = parsed.code.unwrap_or(0);
        let mut date = None;
        let mut content_length: Option<u64> = None;
        let mut chunked = false;
        for field in parsed.headers.iter() {
            let value = std::str::from_utf8(field.value).unwrap_or("").trim();
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = digits(value).ok_or(Fault::BadLength)?;
                if content_length.is_some_and(|known| known != length) {
                    return Err(Fault::BadLength);
                }
                content_length = Some(length);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with("chunked");
            } else if field.name.eq_ignore_ascii_case("date") {
                date = http_date(value);
            }
        }
        self.carry = Vec::new();
        let behind = &bytes[length - before..];
        if (100..200).contains(&status) {
            // An interim answer: the real one follows.
            return Ok(behind);
        }
        self.head = Some(Head { status, date });
        self.stage = match (status, chunked, content_length) {
            (204 | 304, ..) => Stage::Done,
            (_, true, _) => Stage::ChunkSize { size: 0, digits: 0 },
            (_, _, Some(0)) => Stage::Done,
            (_, _, Some(length)) if length > self.body_bytes_max => return Err(Fault::BodyTooLong),
            (_, _, Some(length)) => Stage::Length(length),
            _ => Stage::UntilEnd,
        };
        Ok(behind)
    }

    /// Takes one step through a non-empty input; returns the rest.
    fn take_body<'a>(&mut self, bytes: &'a [u8], body: &mut Vec<u8>) -> Result<&'a [u8], Fault> {
        let byte = bytes[0];
        let one_on = &bytes[1..];
        match self.stage {
            Stage::Length(left) => {
                let taken = self.take_data(left, bytes, body)?;
                let left = left - taken as u64;
                self.stage = if left == 0 { Stage::Done } else { Stage::Length(left) };
                return Ok(&bytes[taken..]);
            }
            Stage::UntilEnd => {
                let taken = self.take_data(u64::MAX, bytes, body)?;
                return Ok(&bytes[taken..]);
            }
            Stage::ChunkSize { size, digits } => match char::from(byte).to_digit(16) {
                // Fifteen digits cannot overflow.
                Some(digit) if digits < 15 => {
                    self.stage = Stage::ChunkSize { size: size * 16 + u64::from(digit), digits: digits + 1 };
                }
                None if digits > 0 && matches!(byte, b'\r' | b'\n' | b';' | b' ' | b'\t') => {
                    self.stage = Stage::ChunkExtension { size, length: 0 };
                    return Ok(bytes);
                }
                _ => return Err(Fault::BadChunk),
            },
            Stage::ChunkExtension { size, length } => {
                self.stage = match byte {
                    b'\n' if size == 0 => Stage::Trailer { line: 0, all: 0 },
                    b'\n' => Stage::ChunkData(size),
                    _ if length >= 1024 => return Err(Fault::BadChunk),
                    _ => Stage::ChunkExtension { size, length: length + 1 },
                };
            }
            Stage::ChunkData(left) => {
                let taken = self.take_data(left, bytes, body)?;
                let left = left - taken as u64;
                self.stage = if left == 0 { Stage::ChunkEnd(false) } else { Stage::ChunkData(left) };
                return Ok(&bytes[taken..]);
            }
            Stage::ChunkEnd(seen) => {
                self.stage = match byte {
                    b'\r' if !seen => Stage::ChunkEnd(true),
                    b'\n' => Stage::ChunkSize { size: 0, digits: 0 },
                    _ => return Err(Fault::BadChunk),
                };
            }
            Stage::Trailer { line, all } => {
                self.stage = match byte {
                    b'\n' if line == 0 => Stage::Done,
                    b'\n' => Stage::Trailer { line: 0, all },
                    b'\r' => Stage::Trailer { line, all },
                    _ if all >= ANSWER_HEAD_BYTES_MAX => return Err(Fault::HeadTooLong),
                    _ => Stage::Trailer { line: line + 1, all: all + 1 },
                };
            }
            Stage::Head | Stage::Done => unreachable!("the caller looked"),
        }
        Ok(one_on)
    }

    fn take_data(&mut self, left: u64, bytes: &[u8], body: &mut Vec<u8>) -> Result<usize, Fault> {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.body_bytes += taken as u64;
        if self.body_bytes > self.body_bytes_max {
            return Err(Fault::BodyTooLong);
        }
        body.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970. The obsolete forms are not worth their code:
/// without a date the balancer asks for the events from now on.
fn http_date(text: &str) -> Option<u64> {
    let mut parts = text.split_once(", ")?.1.split([' ', ':']);
    let day = digits(parts.next()?)?;
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = names.iter().position(|known| *known == name)? as u64 + 1;
    let year = digits(parts.next()?).filter(|year| (1970..=9999).contains(year))?;
    let mut time = [0u64; 3];
    for (place, most) in time.iter_mut().zip([23, 59, 60]) {
        *place = digits(parts.next()?).filter(|value| *value <= most)?;
    }
    if !(1..=31).contains(&day) || parts.next() != Some("GMT") {
        return None;
    }
    // Days from the civil calendar, with the year beginning in March so that the leap day comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era_days = years * 365 + years / 4 - years / 100 + years / 400;
    let days = era_days + (153 * months + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + time[0] * 3600 + time[1] * 60 + time[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]], ended: bool) -> Result<(ResponseReader, Vec<u8>), Fault> {
        let mut reader = ResponseReader::new(100);
        let mut body = Vec::new();
        for piece in pieces {
            reader.feed(piece, &mut body)?;
        }
        if ended {
            reader.end()?;
        }
        Ok((reader, body))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
        Transfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\n00A \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nbehind";

    #[test]
    fn an_answer_reads_the_same_at_every_split() {
        let length: &[u8] = b"HTTP/1.1 503 No\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
        let bare: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello";
        for (text, status, body, ends) in [
            (CHUNKED, 200, &b"hello0123456789"[..], true),
            (length, 503, b"hello", true),
            (bare, 200, b"hello", false),
        ] {
            for split in 0..=text.len() {
                let (reader, found) = read(&[&text[..split], &text[split..]], !ends).expect("reads");
                assert_eq!((reader.head().map(|h| h.status), &found[..]), (Some(status), body), "{split}");
                assert!(reader.is_done());
            }
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(read(&bytes, !ends).expect("reads").1, body);
        }
        assert_eq!(read(&[CHUNKED], false).expect("reads").0.head().and_then(|h| h.date), Some(784_111_777));
    }

    #[test]
    fn broken_answers_are_the_other_sides_fault() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(ANSWER_HEAD_BYTES_MAX));
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (text, fault) in [
            ("SSH-2.0\r\n".to_owned(), Fault::NotHttp),
            (long, Fault::HeadTooLong),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(), Fault::BadLength),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
                Fault::BadLength,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n".to_owned(), Fault::BodyTooLong),
            (format!("{head}-1\r\n"), Fault::BadChunk),
            (format!("{head}\r\n"), Fault::BadChunk),
            (format!("{head}1111111111111111\r\n"), Fault::BadChunk),
            (format!("{head}1\r\nab"), Fault::BadChunk),
            (format!("{head}65\r\n{}", "y".repeat(101)), Fault::BodyTooLong),
            (format!("{head}5\r\nhel"), Fault::CutShort),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_owned(), Fault::CutShort),
            ("HTTP/1.1 2".to_owned(), Fault::CutShort),
        ] {
            assert_eq!(read(&[text.as_bytes()], true).err(), Some(fault), "{text:.60}");
        }
    }

    #[test]
    fn dates_are_read_or_absent() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for bad in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Thu, 01 Jan 1970 25:00:00 GMT",
            "Thu, 01 Foo 1970 00:00:00 GMT",
            "Thu, 01 Jan 0000 00:00:00 GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }
}
