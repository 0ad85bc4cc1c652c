//! Finds where one HTTP answer ends: pure, over bytes already read.
//!
//! Servers repeat the same head for thousands of answers, so the last head is kept: an answer that begins with the
//! same bytes (blank line included) has the same meaning and is not parsed again.

/// More headers than this, or a head longer than this, is an answer that we refuse to read.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    close: bool,
    framing: Framing,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More bytes are needed.
    Partial,
    /// The peer does not speak HTTP/1.
    Bad,
    /// One answer: it ends `used` bytes in; its body is `start..end`, or in `Parser::body` when it was chunked.
    Done { status: u16, close: bool, used: usize, start: usize, end: usize, chunked: bool },
}

#[derive(Default)]
pub struct Parser {
    last: Vec<u8>,
    head: Option<Head>,
    /// The joined body of the last chunked answer.
    pub body: Vec<u8>,
}

impl Parser {
    /// Reads one answer from the start of `bytes`; `eof` says that nothing will follow. Interim answers (1xx, but
    /// not 101, behind which another protocol begins) are passed over: they answer nothing.
    pub fn parse(&mut self, bytes: &[u8], eof: bool) -> Parsed {
        let mut passed = 0;
        loop {
            match self.parse_one(&bytes[passed..], eof) {
                Parsed::Done { status: 100 | 102..=199, used, .. } => passed += used,
                Parsed::Done { status, close, used, start, end, chunked } => {
                    let (used, end) = (passed + used, passed + end);
                    return Parsed::Done { status, close, used, start: passed + start, end, chunked };
                }
                other => return other,
            }
        }
    }

    fn parse_one(&mut self, bytes: &[u8], eof: bool) -> Parsed {
        let (head, start) = match self.head {
            Some(head) if bytes.starts_with(&self.last) => (head, self.last.len()),
            _ => match self.head_of(bytes) {
                Ok(Some(found)) => found,
                Ok(None) if bytes.len() < HEAD_BYTES_MAX => return Parsed::Partial,
                _ => return Parsed::Bad,
            },
        };
        let Head { status, close, framing } = head;
        match framing {
            Framing::Length(length) if bytes.len() - start >= length => {
                let end = start + length;
                Parsed::Done { status, close, used: end, start, end, chunked: false }
            }
            Framing::Length(_) => Parsed::Partial,
            Framing::UntilClose if eof => {
                let end = bytes.len();
                Parsed::Done { status, close: true, used: end, start, end, chunked: false }
            }
            Framing::UntilClose => Parsed::Partial,
            Framing::Chunked => match join_chunks(&bytes[start..], &mut self.body) {
                Some(Ok(used)) => {
                    Parsed::Done { status, close, used: start + used, start: 0, end: 0, chunked: true }
                }
                Some(Err(())) => Parsed::Bad,
                None => Parsed::Partial,
            },
        }
    }

    fn head_of(&mut self, bytes: &[u8]) -> Result<Option<(Head, usize)>, ()> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = answer.parse(bytes).map_err(|_| ())? else {
            return Ok(None);
        };
        let status = answer.code.ok_or(())?;
        let mut close = answer.version == Some(0);
        let mut framing = Framing::UntilClose;
        for header in answer.headers.iter() {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(value).map_err(|_| ())?;
                if framing != Framing::Chunked {
                    framing = Framing::Length(text.parse().map_err(|_| ())?);
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunked;
            } else if header.name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case(b"close")
                    || (close && !value.eq_ignore_ascii_case(b"keep-alive"));
            }
        }
        if status == 204 || status == 304 || status < 200 {
            framing = Framing::Length(0);
        }
        let head = Head { status, close, framing };
        self.last.clear();
        self.last.extend_from_slice(&bytes[..length]);
        self.head = Some(head);
        Ok(Some((head, length)))
    }
}

/// Joins chunks into `body`. `None`: incomplete; `Ok(used)`: bytes up to and with the final blank line.
fn join_chunks(bytes: &[u8], body: &mut Vec<u8>) -> Option<Result<usize, ()>> {
    body.clear();
    let mut at = 0;
    loop {
        match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((head, 0))) => {
                at += head;
                // Trailers, if any, end in an empty line.
                loop {
                    let line = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
                    at += line + 2;
                    if line == 0 {
                        return Some(Ok(at));
                    }
                }
            }
            Ok(httparse::Status::Complete((head, size))) => {
                let Some(end) = usize::try_from(size).ok().and_then(|size| (at + head).checked_add(size))
                else {
                    return Some(Err(()));
                };
                let chunk = bytes.get(at + head..end)?;
                body.extend_from_slice(chunk);
                match bytes.get(end..end.checked_add(2)?) {
                    Some(b"\r\n") => at = end + 2,
                    Some(_) => return Some(Err(())),
                    None => return None,
                }
            }
            Ok(httparse::Status::Partial) => return None,
            Err(_) => return Some(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every split point of every framing: partial until the last byte, then exactly the body.
    #[test]
    fn every_split_point() {
        let cases: [(&[u8], u16, bool, &[u8]); 5] = [
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                200,
                false,
                b"hi",
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, false, b"abc"),
            (b"HTTP/1.1 404 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 404, true, b""),
            (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", 200, false, b"x"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                200,
                false,
                b"abc",
            ),
        ];
        for (bytes, want_status, want_close, want_body) in cases {
            let mut parser = Parser::default();
            for _twice in 0..2 {
                for cut in 0..bytes.len() {
                    assert_eq!(parser.parse(&bytes[..cut], false), Parsed::Partial, "cut {cut}");
                }
                let mut long = bytes.to_vec();
                long.extend_from_slice(b"HTTP/1.1 500");
                let Parsed::Done { status, close, used, start, end, chunked } = parser.parse(&long, false)
                else {
                    panic!("not done")
                };
                assert_eq!((status, close, used), (want_status, want_close, bytes.len()));
                assert_eq!(if chunked { &parser.body[..] } else { &long[start..end] }, want_body);
            }
        }
    }

    #[test]
    fn until_close_and_nonsense() {
        let mut parser = Parser::default();
        let bytes = b"HTTP/1.1 200 OK\r\n\r\nall of it";
        assert_eq!(parser.parse(bytes, false), Parsed::Partial);
        assert!(matches!(parser.parse(bytes, true), Parsed::Done { used: 28, start: 19, close: true, .. }));
        assert_eq!(parser.parse(b"+PONG\r\n", false), Parsed::Bad);
        let bad = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert_eq!(parser.parse(bad, false), Parsed::Bad);
    }
}
