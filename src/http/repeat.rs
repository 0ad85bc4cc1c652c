//! A short way to the head of a request that differs from an earlier one in its target alone.
//!
//! What clients send again and again is the same but for the target: behind it stand the same version, the
//! same fields, the same blank line. A head's meaning is that of its target and that of the bytes behind it,
//! so where those bytes are equal the parser need not look at them again: one comparison takes its place.
//! [`Repeat::parse`] gives what [`head::parse`] gives, at any input; a property test and a fuzz target hold
//! it to that. Anything out of the ordinary (another method, blank lines before the request, a target
//! with bytes that are not visible ASCII, long texts) takes the long way.

use super::head::{self, Body, Head, HeadError, Method};
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
        Repeat { tail: Vec::new(), said, origin: None }
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
        }
        Ok(head)
    }
}

/// Where the target of an ordinary request is: `GET`, then visible ASCII in origin form, then a space.
#[inline]
fn target_of(input: &[u8]) -> Option<Range<usize>> {
    let rest = input.strip_prefix(METHOD).filter(|rest| rest.first() == Some(&b'/'))?;
    let bytes = visible(&rest[..rest.len().min(TARGET_BYTES_MAX + 1)]);
    (bytes <= TARGET_BYTES_MAX && rest.get(bytes) == Some(&b' ')).then(|| METHOD.len()..METHOD.len() + bytes)
}

/// How many bytes of visible ASCII `text` starts with.
#[inline]
fn visible(text: &[u8]) -> usize {
    let is_visible = |byte: u8| byte.wrapping_sub(b'!') <= b'~' - b'!';
    let (blocks, rest) = text.as_chunks::<16>();
    for (number, block) in blocks.iter().enumerate() {
        // In this form the compiler compares all sixteen at once.
        let mut others = 0u32;
        for (at, &byte) in block.iter().enumerate() {
            others |= u32::from(!is_visible(byte)) << at;
        }
        if others != 0 {
            return number * 16 + others.trailing_zeros() as usize;
        }
    }
    blocks.len() * 16 + rest.iter().take_while(|&&byte| is_visible(byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of which requests are put together, good ones and bad ones.
    const TARGETS: [&str; 12] = [
        "/",
        "/get?k=a",
        "/get?k=b",
        "/get?k=0123456789abcdef0123",
        "/get?",
        "/set?k=a?&v=%20+",
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
        let (mut repeat, mut short) = (Repeat::default(), 0);
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
            assert_eq!(repeat.parse(&input), head::parse(&input), "{shown:?} behind {repeat:?}");
        }
        assert!(short > 10_000, "the short way was taken {short} times only");
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

    #[test]
    fn the_run_of_visible_bytes_ends_where_it_does_byte_by_byte() {
        for length in 0..70 {
            for stop in [b' ', 0x7F, 0x80, 0xFF, b'\n', 0] {
                for at in 0..=length {
                    let mut text = vec![b'~'; length];
                    text.get_mut(at).into_iter().for_each(|byte| *byte = stop);
                    assert_eq!(visible(&text), at, "{text:?}");
                }
            }
        }
    }
}
