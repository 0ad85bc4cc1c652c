//! One request head: what httparse finds, narrowed to what the node needs, with the limits applied.
//!
//! Budget: one pass by httparse into an uninitialised array on the stack, one pass over the fields that
//! were found; no allocation, no copy. Everything borrows from the connection's bytes.

use super::error::ErrorCode;
use crate::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX, HEADER_FIELDS_MAX, REQUEST_LINE_BYTES_MAX};
use memchr::memchr;
use std::mem::MaybeUninit;
use std::ops::Range;

/// What may be done with a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Options,
    /// Anything else: refused with 405.
    Other,
}

/// How the end of a request's body is found. The body itself is read and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    Length(u64),
    Chunked,
}

/// A complete request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'i> {
    pub method: Method,
    /// The path, still encoded, without scheme, authority and query.
    pub path: &'i [u8],
    /// What stands behind the first `?`, still encoded; empty if nothing does.
    pub query: &'i [u8],
    /// HTTP/1.1, not 1.0.
    pub version_11: bool,
    /// The connection stays open behind the answer.
    pub keep_alive: bool,
    pub body: Body,
    /// `Expect: 100-continue` before a declared body.
    pub expect_continue: bool,
    /// A browser says that another site's page made it send this (`Sec-Fetch-Site: cross-site`).
    pub cross_site: bool,
    /// The `Origin` field, if there is one.
    pub origin: Option<&'i [u8]>,
    /// Bytes of the head, its empty line included.
    pub bytes: usize,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// So far so good, but it does not end here.
    Incomplete,
    /// It never will be one: answer with this and close.
    Refused(ErrorCode),
}

/// Parses the request head that `input` starts with.
///
/// # Errors
/// [`HeadError::Incomplete`] while more bytes could complete it within the limits, else the answer to give.
pub fn parse(input: &[u8]) -> Result<Head<'_>, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADER_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let bytes = match request.parse_with_uninit_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => {
            within_limits(input)?;
            return Err(HeadError::Incomplete);
        }
        Err(error) => {
            return match target_of_other_encoding(input) {
                Some(target) => parse_other_encoding(input, target),
                None => Err(refusal(input, error)),
            };
        }
    };
    if bytes > REQUEST_LINE_BYTES_MAX {
        within_limits(&input[..bytes])?;
    }
    let target = request.path.unwrap_or_default().as_bytes();
    understand(request.method, target, request.version, request.headers, bytes)
}

/// The same for a target with raw bytes that are not UTF-8. What they mean is for its parts to say, as of the same
/// bytes encoded; but httparse takes no such target, so it is shown the line with other letters in their place.
#[cold]
fn parse_other_encoding(input: &[u8], target: Range<usize>) -> Result<Head<'_>, HeadError> {
    let end = memchr(b'\n', &input[target.end..]).map(|at| target.end + at + 1);
    let mut line = input[..end.unwrap_or(input.len())].to_vec();
    for byte in line[target.clone()].iter_mut().filter(|byte| !byte.is_ascii()) {
        *byte = b'x';
    }
    let mut fields = [httparse::EMPTY_HEADER; HEADER_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    // Without its fields the line is no whole head, at best.
    let found = match (request.parse(&line), end) {
        (Ok(_), Some(end)) => httparse::parse_headers(&input[end..], &mut fields),
        (Ok(_), None) => Ok(httparse::Status::Partial),
        (Err(error), _) => Err(error),
    };
    match found {
        Ok(httparse::Status::Complete((bytes, fields))) => {
            let bytes = line.len() + bytes;
            within_limits(&input[..bytes])?;
            understand(request.method, &input[target], request.version, fields, bytes)
        }
        Ok(httparse::Status::Partial) => {
            within_limits(input)?;
            Err(HeadError::Incomplete)
        }
        Err(error) => Err(refusal(input, error)),
    }
}

/// Whoever sends a line that is too long should hear that, whatever else is wrong with it, and whether or not the
/// rest came in the same piece.
#[cold]
fn refusal(input: &[u8], error: httparse::Error) -> HeadError {
    let code = match error {
        httparse::Error::TooManyHeaders => ErrorCode::HeadersTooLarge,
        _ => ErrorCode::BadRequest,
    };
    within_limits(input).err().unwrap_or(HeadError::Refused(code))
}

/// What the parts of a whole head say.
#[inline]
fn understand<'i>(
    method: Option<&str>,
    target: &'i [u8],
    version: Option<u8>,
    fields: &[httparse::Header<'i>],
    bytes: usize,
) -> Result<Head<'i>, HeadError> {
    let bad = HeadError::Refused(ErrorCode::BadRequest);
    let method = match method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("OPTIONS") => Method::Options,
        _ => Method::Other,
    };
    let version_11 = version == Some(1);
    let (path, query) = split_target(target, method).ok_or(bad)?;

    let mut seen = Fields::default();
    for field in fields {
        seen.take(field.name.as_bytes(), field.value).ok_or(bad)?;
    }
    if version_11 && seen.hosts != 1 {
        return Err(HeadError::Refused(ErrorCode::MissingHost));
    }
    let body = match (seen.chunked, seen.length) {
        (false, None | Some(0)) => Body::None,
        (false, Some(length)) if length > BODY_BYTES_MAX => {
            return Err(HeadError::Refused(ErrorCode::BodyTooLarge));
        }
        (false, Some(length)) => Body::Length(length),
        // Both at once is how requests are smuggled; 1.0 knows no chunks.
        (true, None) if version_11 => Body::Chunked,
        (true, _) => return Err(bad),
    };
    Ok(Head {
        method,
        path,
        query,
        version_11,
        keep_alive: !seen.close && (version_11 || seen.keep_alive),
        body,
        expect_continue: seen.expect_continue && version_11 && body != Body::None,
        cross_site: seen.cross_site,
        origin: seen.origin,
        bytes,
    })
}

/// The fields that matter, collected in one pass.
#[derive(Default)]
struct Fields<'i> {
    hosts: u32,
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
    chunked: bool,
    expect_continue: bool,
    cross_site: bool,
    origin: Option<&'i [u8]>,
}

impl<'i> Fields<'i> {
    /// `None`: the field makes the request unparseable.
    fn take(&mut self, name: &[u8], value: &'i [u8]) -> Option<()> {
        // The length tells most fields apart without looking at them.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.hosts += 1,
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expect_continue = value.eq_ignore_ascii_case(b"100-continue");
            }
            6 if name.eq_ignore_ascii_case(b"origin") => self.origin = Some(value),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for token in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = parse_length(value)?;
                if self.length.is_some_and(|earlier| earlier != length) {
                    return None;
                }
                self.length = Some(length);
            }
            14 if name.eq_ignore_ascii_case(b"sec-fetch-site") => {
                self.cross_site |= value.eq_ignore_ascii_case(b"cross-site");
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                self.chunked = true;
            }
            _ => {}
        }
        Some(())
    }
}

/// Only digits: no sign, no space, no list. More than fits counts as too large.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = value.iter().map(|digit| u64::from(digit - b'0'));
    Some(digits.fold(0, |length: u64, digit| length.saturating_mul(10).saturating_add(digit)))
}

/// Path and query of a target in origin form, absolute form, or `*` (OPTIONS only).
fn split_target(target: &[u8], method: Method) -> Option<(&[u8], &[u8])> {
    let local = match target.first()? {
        b'/' => target,
        b'*' if target.len() == 1 && method == Method::Options => return Some((target, &[])),
        _ => {
            let scheme = [&b"http://"[..], b"https://"]
                .into_iter()
                .find(|s| target.get(..s.len()).is_some_and(|start| start.eq_ignore_ascii_case(s)));
            match scheme {
                Some(scheme) => {
                    let rest = &target[scheme.len()..];
                    let authority = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
                    if authority == 0 {
                        return None;
                    }
                    &rest[authority..]
                }
                // CONNECT's authority form and the like: a method we refuse anyway.
                None if method == Method::Other => return Some((target, &[])),
                None => return None,
            }
        }
    };
    match memchr(b'?', local) {
        // `http://host?x` means the root.
        Some(0) => Some((b"/", &local[1..])),
        Some(at) => Some((&local[..at], &local[at + 1..])),
        None if local.is_empty() => Some((b"/", &[])),
        None => Some((local, &[])),
    }
}

/// Applies the length limits to a head that is incomplete, refused, or long.
fn within_limits(input: &[u8]) -> Result<(), HeadError> {
    // Blank lines before a request are skipped, but they take room.
    let start = input.iter().position(|&b| b != b'\r' && b != b'\n').unwrap_or(input.len());
    let line = &input[start..];
    match memchr(b'\n', &line[..line.len().min(REQUEST_LINE_BYTES_MAX + 2)]) {
        None if line.len() > REQUEST_LINE_BYTES_MAX + 1 => Err(HeadError::Refused(ErrorCode::UriTooLong)),
        Some(end) if end > REQUEST_LINE_BYTES_MAX && line[end - 1] != b'\r' => {
            Err(HeadError::Refused(ErrorCode::UriTooLong))
        }
        // Behind the request line's break; the blank line at the end is no field.
        Some(end) if start + line.len() - (end + 1) > HEADER_BYTES_MAX + 2 => {
            Err(HeadError::Refused(ErrorCode::HeadersTooLarge))
        }
        _ if start > HEADER_BYTES_MAX => Err(HeadError::Refused(ErrorCode::BadRequest)),
        _ => Ok(()),
    }
}

/// Where the target is, if it is whole and not UTF-8, and nothing before it is wrong.
fn target_of_other_encoding(input: &[u8]) -> Option<Range<usize>> {
    let start = input.iter().position(|&b| b != b'\r' && b != b'\n')?;
    let start = start + memchr(b' ', &input[start..])? + 1;
    // Another control character than this space would be wrong in any encoding.
    let length = input[start..].iter().position(|byte| *byte <= b' ' || *byte == 0x7f)?;
    let end = start + length;
    (input[end] == b' ' && std::str::from_utf8(&input[start..end]).is_err()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(input: &[u8]) -> ErrorCode {
        match parse(input) {
            Err(HeadError::Refused(code)) => code,
            other => panic!("{other:?} for {}", String::from_utf8_lossy(input)),
        }
    }

    #[test]
    fn origin_and_absolute_form() {
        let head = parse(b"GET /get?k=a HTTP/1.1\r\nHost: x\r\n\r\nrest").expect("complete");
        assert_eq!((head.path, head.query, head.bytes), (&b"/get"[..], &b"k=a"[..], 34));
        assert!(head.keep_alive && head.version_11);
        for (target, path, query) in [
            ("http://h:1/get?k=a?b", "/get", "k=a?b"),
            ("HTTP://h", "/", ""),
            ("http://h?k=1", "/", "k=1"),
            ("/get", "/get", ""),
            ("/?", "/", ""),
        ] {
            let input = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let head = parse(input.as_bytes()).expect("complete");
            assert_eq!((head.path, head.query), (path.as_bytes(), query.as_bytes()), "{target}");
        }
        assert_eq!(refused(b"GET get HTTP/1.1\r\nHost: x\r\n\r\n"), ErrorCode::BadRequest);
        assert_eq!(refused(b"GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n"), ErrorCode::BadRequest);
    }

    #[test]
    fn connection_rules_of_both_versions() {
        for (text, keep) in [
            ("HTTP/1.1\r\nHost: x\r\n", true),
            ("HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n", false),
            ("HTTP/1.0\r\n", false),
            ("HTTP/1.0\r\nconnection: Keep-Alive\r\n", true),
            ("HTTP/1.0\r\nConnection: keep-alive, close\r\n", false),
        ] {
            let input = format!("GET / {text}\r\n");
            assert_eq!(parse(input.as_bytes()).expect("complete").keep_alive, keep, "{text}");
        }
    }

    #[test]
    fn bodies_and_their_abuse() {
        let body = |fields: &str| {
            let input = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            parse(input.as_bytes()).map(|head| head.body)
        };
        assert_eq!(body("Content-Length: 5\r\n"), Ok(Body::Length(5)));
        assert_eq!(body("Content-Length: 5\r\nContent-Length: 5\r\n"), Ok(Body::Length(5)));
        assert_eq!(body("Content-Length: 0\r\n"), Ok(Body::None));
        assert_eq!(body("Content-Length: 65536\r\n"), Ok(Body::Length(65536)));
        assert_eq!(body("Transfer-Encoding: Chunked\r\n"), Ok(Body::Chunked));
        let too_large = Err(HeadError::Refused(ErrorCode::BodyTooLarge));
        assert_eq!(body("Content-Length: 65537\r\n"), too_large);
        assert_eq!(body("Content-Length: 99999999999999999999999999\r\n"), too_large);
        let bad = Err(HeadError::Refused(ErrorCode::BadRequest));
        for fields in [
            "Content-Length: +5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(body(fields), bad, "{fields}");
        }
    }

    #[test]
    fn the_limits_hold_to_the_byte() {
        let line = |bytes: usize| format!("GET /{} HTTP/1.1", "x".repeat(bytes - "GET / HTTP/1.1".len()));
        for end in ["\r\n", "\n"] {
            let fits = format!("{}{end}Host: x{end}{end}", line(REQUEST_LINE_BYTES_MAX));
            assert!(parse(fits.as_bytes()).is_ok());
            let long = format!("{}{end}Host: x{end}{end}", line(REQUEST_LINE_BYTES_MAX + 1));
            assert_eq!(refused(long.as_bytes()), ErrorCode::UriTooLong);
        }
        assert_eq!(parse(line(REQUEST_LINE_BYTES_MAX).as_bytes()), Err(HeadError::Incomplete));
        assert_eq!(refused(line(REQUEST_LINE_BYTES_MAX + 2).as_bytes()), ErrorCode::UriTooLong);

        let fields = |count: usize| "a: b\r\n".repeat(count);
        let input = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(HEADER_FIELDS_MAX - 1));
        assert!(parse(input.as_bytes()).is_ok());
        let input = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(HEADER_FIELDS_MAX));
        assert_eq!(refused(input.as_bytes()), ErrorCode::HeadersTooLarge);
        let both =
            format!("{}\r\nHost: x\r\n{}\r\n", line(REQUEST_LINE_BYTES_MAX + 1), fields(HEADER_FIELDS_MAX));
        assert_eq!(refused(both.as_bytes()), ErrorCode::UriTooLong, "as when the line comes first");
        let big = format!("GET / HTTP/1.1\r\nHost: x\r\na: {}", "y".repeat(HEADER_BYTES_MAX));
        assert_eq!(refused(big.as_bytes()), ErrorCode::HeadersTooLarge);
        let big = format!("{big}\r\n\r\n");
        assert_eq!(refused(big.as_bytes()), ErrorCode::HeadersTooLarge);
        assert_eq!(refused("\r\n".repeat(HEADER_BYTES_MAX).as_bytes()), ErrorCode::BadRequest);
    }

    #[test]
    fn host_is_required_once_on_11_and_not_on_10() {
        assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), ErrorCode::MissingHost);
        assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), ErrorCode::MissingHost);
        assert!(parse(b"GET / HTTP/1.0\r\n\r\n").is_ok());
    }

    #[test]
    fn raw_utf8_in_the_target_is_taken_as_it_is() {
        let head = parse("GET /get?k=ключ HTTP/1.1\r\nHost: x\r\n\r\n".as_bytes()).expect("complete");
        assert_eq!(head.query, "k=ключ".as_bytes());
    }

    #[test]
    fn raw_bytes_of_another_encoding_make_the_request_that_other_letters_would() {
        let head = parse(b"\r\nHEAD /\xd0?k=\xff HTTP/1.0\r\nOrigin: o\r\n\r\nGET").expect("complete");
        assert_eq!((head.method, head.path, head.query), (Method::Head, &b"/\xd0"[..], &b"k=\xff"[..]));
        assert_eq!((head.origin, head.bytes), (Some(&b"o"[..]), 37));
        let long = format!(" HTTP/1.1\r\na: {}\r\n\r\n", "y".repeat(HEADER_BYTES_MAX));
        let many = format!(" HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(HEADER_FIELDS_MAX));
        for (before, after) in [
            ("GET /get?k=", "&x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n"),
            ("\n\r\nPOST http://", "?k HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc"),
            ("GET /", " HTTP/1.1\r\n\r\n"),
            ("GET /", " HTTP/2.0\r\n\r\n"),
            ("GET /", " HTTP/1.1\r\nHost : x\r\n\r\n"),
            ("GET /", "  HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("GET /", "\u{1} HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("G(T /", " HTTP/1.1\r\nHost: x\r\n\r\n"),
            (" GET /", " HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("GET ", " HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("GET /", &long),
            ("GET /", &many),
            (&format!("GET /{}", "x".repeat(REQUEST_LINE_BYTES_MAX)), &many),
        ] {
            let [raw, plain] =
                [&b"\xff\xd0"[..], b"xy"].map(|t| [before.as_bytes(), t, after.as_bytes()].concat());
            for end in 0..=raw.len() {
                let said = |input: &[u8]| {
                    parse(input).map(|head| Head { path: b"", query: b"", origin: None, ..head })
                };
                assert_eq!(said(&raw[..end]), said(&plain[..end]), "{before:.20}|{after:.60} up to {end}");
            }
        }
    }
}
