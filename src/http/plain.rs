//! Requests of the plainest form, which nearly all requests to a store have: `get`, `is`, `rm` or `set`, the key
//! first, behind a `set`'s key its value, nothing else, and no byte that stands for another one.
//!
//! Such a request says all that it says in its first bytes and in its two texts, so that one pass over these
//! takes the place of taking the head apart, finding the parameters, and classifying them. Whatever is not
//! recognised here, and every error, goes the long way. A property test holds [`Plain`] to what that finds.
//!
//! Budget: one pass over the texts, sixteen bytes at a time, and one comparison of the rest of the head
//! ([`super::repeat`]); no allocation, no copy.

use std::ops::Range;

/// What a plain request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    Is,
    Rm,
    Set,
}

/// How the requests of each verb begin, the most frequent first.
const STARTS: [(&[u8], Verb); 4] = [
    (b"GET /get?k=", Verb::Get),
    (b"GET /set?k=", Verb::Set),
    (b"GET /is?k=", Verb::Is),
    (b"GET /rm?k=", Verb::Rm),
];
const VALUE: &[u8] = b"&v=";

/// A plain request: where its parts are, from its first byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    pub verb: Verb,
    /// ASCII, not empty, in no need of decoding or escaping.
    pub key: Range<usize>,
    /// The same, but it may be empty; and is, but for [`Verb::Set`].
    pub value: Range<usize>,
}

impl Plain {
    /// The plain request that `input` starts with, as far as its target goes: a space follows.
    #[inline]
    #[must_use]
    pub fn of(input: &[u8], target_bytes_max: usize) -> Option<Plain> {
        let (start, verb) = STARTS.into_iter().find(|(start, _)| input.starts_with(start))?;
        let input = &input[..input.len().min(target_bytes_max)];
        let key = start.len()..start.len() + plain_bytes(input.get(start.len()..)?);
        let value = if verb == Verb::Set {
            let from = key.end + VALUE.len();
            if input.get(key.end..from) != Some(VALUE) {
                return None;
            }
            from..from + plain_bytes(&input[from..])
        } else {
            key.end..key.end
        };
        let whole = input.get(value.end) == Some(&b' ') && !key.is_empty();
        whole.then_some(Plain { verb, key, value })
    }
}

/// How many bytes `text` starts with that stand for themselves, in a query and in a JSON string: visible ASCII
/// without `%`, `+` and `&`, without `"` and `\`. Its last bytes, less than sixteen, are not looked at.
#[inline]
fn plain_bytes(text: &[u8]) -> usize {
    run(text, is_other)
}

/// How many bytes of visible ASCII `text` starts with.
#[inline]
pub(super) fn visible_bytes(text: &[u8]) -> usize {
    let (blocks, rest) = text.as_chunks::<16>();
    match run(text, is_hidden) {
        bytes if bytes < blocks.len() * 16 => bytes,
        bytes => bytes + rest.iter().take_while(|&&byte| !is_hidden(byte)).count(),
    }
}

/// Bytes before the first one that `ends` a run, in whole blocks.
#[inline(always)]
fn run(text: &[u8], ends: impl Fn(u8) -> bool) -> usize {
    let (blocks, _) = text.as_chunks::<16>();
    for (number, block) in blocks.iter().enumerate() {
        // In this form the compiler compares all sixteen at once.
        let found = u128::from_le_bytes(block.map(|byte| if ends(byte) { 0xFF } else { 0 }));
        if found != 0 {
            return number * 16 + found.trailing_zeros() as usize / 8;
        }
    }
    blocks.len() * 16
}

/// Not visible ASCII.
#[inline(always)]
fn is_hidden(byte: u8) -> bool {
    !(b'!'..=b'~').contains(&byte)
}

/// Nothing that a plain text has.
#[inline(always)]
fn is_other(byte: u8) -> bool {
    let is_decoded = (byte == b'%') | (byte == b'+') | (byte == b'&');
    let is_escaped = (byte == b'"') | (byte == b'\\');
    is_hidden(byte) | is_decoded | is_escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_ends_a_plain_text_or_does_not() {
        for byte in 0..=255 {
            let ends = !(b'!'..=b'~').contains(&byte) || b"%+&\"\\".contains(&byte);
            for at in 0..48 {
                let mut text = [b'a'; 48];
                text[at] = byte;
                assert_eq!(plain_bytes(&text), if ends { at } else { 48 }, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn the_run_of_visible_bytes_ends_where_it_does_byte_by_byte() {
        for length in 0..70 {
            for stop in [b' ', 0x7F, 0x80, 0xFF, b'\n', 0] {
                for at in 0..=length {
                    let mut text = vec![b'~'; length];
                    text.get_mut(at).into_iter().for_each(|byte| *byte = stop);
                    assert_eq!(visible_bytes(&text), at, "{text:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_plain_and_what_is_not() {
        let plain = |target: &str, max: usize| {
            Plain::of(format!("GET {target} HTTP/1.1\r\n\r\n{}", "x".repeat(16)).as_bytes(), max)
        };
        let found = plain("/set?k=key&v=a=b", 2048).expect("plain");
        assert_eq!(found, Plain { verb: Verb::Set, key: 11..14, value: 17..20 });
        assert_eq!(plain("/set?k=key&v=", 2048).map(|plain| plain.value), Some(17..17));
        assert_eq!(plain("/rm?k=k", 2048).map(|plain| plain.verb), Some(Verb::Rm));
        assert_eq!(plain("/is?k=k", 2048).map(|plain| plain.verb), Some(Verb::Is));
        let longest = format!("/get?k={}", "k".repeat(100));
        assert!(plain(&longest, 200).is_some() && plain(&longest, 100).is_none());
        for other in [
            "/get?k=",
            "/get",
            "/get?k=a&k=b",
            "/get?k=a+b",
            "/get?k=%41",
            "/get?k=\u{436}",
            "/get?k=\"",
            "/get?k=a\\",
            "/set?k=a",
            "/set?v=a&k=b",
            "/set?k=a&v=b&ttl=1",
            "/set?k=&v=a",
            "/clear?k=a",
        ] {
            assert_eq!(plain(other, 2048), None, "{other}");
        }
    }
}
