//! A short way to the head of a request that differs from an earlier one in its target alone.
//!
//! What clients send again and again is the same but for the target: behind it stand the same version, the
//! same fields, the same blank line. A head's meaning is that of its target and that of the bytes behind it,
//! so where those bytes are equal the parser need not look at them again: one comparison takes its place.
//! [`Repeat::parse`] gives what [`head::parse`] gives, at any input; a property test and a fuzz target hold
//! it to that. Anything out of the ordinary (another method, blank lines before the request, a target
//! with bytes that are not visible ASCII, long texts) takes the long way.

use super::head::{self, Body, Head, HeadError, Method};
use super::plain::{Plain, visible_bytes};
use memchr::memchr;
use std::ops::Range;

const METHOD: &[u8] = b"GET ";
/// Longer targets take the long way.
const TARGET_BYTES_MAX: usize = 2048;
/// Longer tails are not remembered. With the above no limit of a head can be exceeded on the short way.
const TAIL_BYTES_MAX: usize = 4096;

const _: () =
    assert!(METHOD.len() + TARGET_BYTES_MAX + TAIL_BYTES_MAX <= crate::limits::REQUEST_LINE_BYTES_MAX);

/// What stood behind the target of the last ordinary head, and what it meant.
#[derive(Debug)]
pub struct Repeat {
    /// From the space behind the target to the blank line; empty: nothing is remembered.
    tail: Vec<u8>,
    /// What the tail says; nothing in it is borrowed.
    said: Head<'static>,
    /// Where in the tail the value of `Origin` is.
    origin: Option<Range<usize>>,
    /// The tail says nothing that could matter to a plain request.
    is_ordinary: bool,
}

impl Default for Repeat {
    fn default() -> Repeat {
        let said = Head {
            method: Method::Get,
            path: b"",
            query: b"",
            version_11: false,
            keep_alive: false,
            body: Body::None,
            expect_continue: false,
            cross_site: false,
            origin: None,
            bytes: 0,
        };
        Repeat { tail: Vec::new(), said, origin: None, is_ordinary: false }
    }
}

impl Repeat {
    /// What [`head::parse`] says of `input`.
    ///
    /// # Errors
    /// The same.
    #[inline]
    pub fn parse<'i>(&mut self, input: &'i [u8]) -> Result<Head<'i>, HeadError> {
        match target_of(input) {
            Some(target) if !self.tail.is_empty() && input[target.end..].starts_with(&self.tail) => {
                Ok(self.repeated(input, target))
            }
            target => self.parse_anew(input, target),
        }
    }

    /// The plain request that `input` starts with, and its length, if the rest of its head repeats an ordinary
    /// one: HTTP/1.1, kept alive, without a body, not sent by another site's page.
    #[inline]
    #[must_use]
    pub fn plain(&self, input: &[u8]) -> Option<(Plain, usize)> {
        if !self.is_ordinary {
            return None;
        }
        let plain = Plain::of(input, METHOD.len() + TARGET_BYTES_MAX)?;
        let tail = &input[plain.value.end..];
        let bytes = plain.value.end + self.tail.len();
        tail.starts_with(&self.tail).then_some((plain, bytes))
    }

    #[inline]
    fn repeated<'i>(&self, input: &'i [u8], target: Range<usize>) -> Head<'i> {
        let tail = &input[target.end..];
        let bytes = target.end + self.tail.len();
        let target = &input[target];
        let (path, query) = match memchr(b'?', target) {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &target[..0]),
        };
        Head { path, query, bytes, origin: self.origin.clone().map(|range| &tail[range]), ..self.said }
    }

    #[cold]
    fn parse_anew<'i>(
        &mut self,
        input: &'i [u8],
        target: Option<Range<usize>>,
    ) -> Result<Head<'i>, HeadError> {
        let head = head::parse(input)?;
        if let Some(target) = target
            && head.bytes - target.end <= TAIL_BYTES_MAX
        {
            let tail = &input[target.end..head.bytes];
            self.tail.clear();
            self.tail.extend_from_slice(tail);
            self.origin = head.origin.map(|origin| {
                let start = origin.as_ptr() as usize - tail.as_ptr() as usize;
                start..start + origin.len()
            });
            self.said = Head { path: b"", query: b"", origin: None, bytes: 0, ..head };
            self.is_ordinary =
                head.version_11 && head.keep_alive && head.body == Body::None && !head.cross_site;
        }
        Ok(head)
    }
}

/// Where the target of an ordinary request is: `GET`, then visible ASCII in origin form, then a space.
#[inline]
fn target_of(input: &[u8]) -> Option<Range<usize>> {
    let rest = input.strip_prefix(METHOD).filter(|rest| rest.first() == Some(&b'/'))?;
    let bytes = visible_bytes(&rest[..rest.len().min(TARGET_BYTES_MAX + 1)]);
    (bytes <= TARGET_BYTES_MAX && rest.get(bytes) == Some(&b' ')).then(|| METHOD.len()..METHOD.len() + bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::plain::Verb;
    use crate::http::{json, query};

    /// Pieces of which requests are put together, good ones and bad ones.
    const TARGETS: [&str; 24] = [
        "/",
        "/get?k=a",
        "/get?k=b",
        "/get?k=0123456789abcdef0123",
        "/get?",
        "/set?k=a?&v=%20+",
        "/set?k=a&v=",
        "/set?k=0123456789abcdef&v=0123456789abcdef0123",
        "/set?k=a&v=b&v=c",
        "/set?v=b&k=a",
        "/set?k=a&ttl=1",
        "/is?k=a=b",
        "/rm?k=a#?",
        "/is?k=a&w=all",
        "/get?k=\"",
        "/get?k=a\\",
        "/get?k=a&after=b",
        "/get?k=a+b%41",
        "*",
        "get",
        "http://h/get?k=a",
        "/ключ",
        "/a\u{7f}",
        "/a b",
    ];
    const TAILS: [&str; 12] = [
        " HTTP/1.1\r\nHost: x\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nOrigin: http://o\r\nSec-Fetch-Site: cross-site\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        " HTTP/1.1\nHost: x\n\n",
        " HTTP/1.1\r\n\r\n",
        " HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        " HTTP/2.0\r\n\r\n",
        "  HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    const METHODS: [&str; 6] = ["GET ", "GET ", "HEAD ", "\r\nGET ", "get ", "POST "];

    #[test]
    fn the_short_way_is_the_long_way_for_any_input() {
        let seed = match std::env::var("MESHKV_SEED").ok().and_then(|seed| seed.parse().ok()) {
            Some(seed) => seed,
            None => ahash::RandomState::new().hash_one(0u8),
        };
        println!("seed {seed}");
        let mut state: u64 = seed;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        let (mut repeat, mut short, mut plain) = (Repeat::default(), 0, [0u32; 2]);
        for round in 0..200_000 {
            // Mostly ordinary, and often the same as before.
            let (method, tail) = match below(4) {
                0 => (METHODS[below(METHODS.len())], TAILS[below(TAILS.len())]),
                _ => ("GET ", TAILS[round / 1000 % TAILS.len()]),
            };
            let mut input = format!("{method}{}{tail}", TARGETS[below(TARGETS.len())]).into_bytes();
            match below(8) {
                0 => input.truncate(below(input.len() + 1)),
                1 => {
                    let at = below(input.len());
                    input[at] = below(256) as u8;
                }
                2 => input.extend_from_slice(b"GET / HT"),
                _ => {}
            }
            short += u32::from(target_of(&input).is_some_and(|target| {
                !repeat.tail.is_empty() && input[target.end..].starts_with(&repeat.tail)
            }));
            let shown = String::from_utf8_lossy(&input);
            if let Some((found, bytes)) = repeat.plain(&input) {
                let head = head::parse(&input).expect("a plain request is whole");
                let way = (head.method, head.version_11, head.keep_alive, head.body, head.cross_site);
                assert_eq!(way, (Method::Get, true, true, Body::None, false), "{shown:?}");
                let path: &[u8] = match found.verb {
                    Verb::Get => b"/get",
                    Verb::Is => b"/is",
                    Verb::Rm => b"/rm",
                    Verb::Set => b"/set",
                };
                assert_eq!((head.path, head.bytes), (path, bytes), "{shown:?}");
                let pairs: Vec<_> = query::pairs(head.query).collect();
                let (key, value) = (&input[found.key], &input[found.value]);
                let said: &[(&[u8], &[u8])] = &[(b"k", key), (b"v", value)];
                let count = if found.verb == Verb::Set { 2 } else { 1 };
                assert_eq!(pairs, said[..count], "{shown:?}");
                assert!(!key.is_empty() && (count == 2 || value.is_empty()));
                for text in [key, value] {
                    let class = json::classify(text);
                    assert!(class.ascii && class.clean && !query::needs_decoding(text), "{shown:?}");
                }
                plain[count - 1] += 1;
            }
            assert_eq!(repeat.parse(&input), head::parse(&input), "{shown:?} behind {repeat:?}");
        }
        assert!(short > 10_000, "the short way was taken {short} times only");
        assert!(
            plain.iter().all(|&count| count > 1000),
            "plain requests with one text and with two: {plain:?}"
        );
    }

    #[test]
    fn long_texts_take_the_long_way_up_to_the_byte() {
        let with = |target: usize, field: usize| {
            format!("GET /{} HTTP/1.1\r\nHost: x\r\na: {}\r\n\r\n", "t".repeat(target - 1), "f".repeat(field))
        };
        let fixed = with(1, 0).len() - "GET /".len();
        for (target, tail, short) in [
            (TARGET_BYTES_MAX, TAIL_BYTES_MAX, true),
            (TARGET_BYTES_MAX + 1, TAIL_BYTES_MAX, false),
            (TARGET_BYTES_MAX, TAIL_BYTES_MAX + 1, false),
        ] {
            let input = with(target, tail - fixed);
            let mut repeat = Repeat::default();
            for _ in 0..2 {
                assert_eq!(repeat.parse(input.as_bytes()), head::parse(input.as_bytes()));
            }
            assert_eq!(!repeat.tail.is_empty(), short, "{target} {tail}");
        }
    }
}
