//! Query strings: finding parameters by name, and form decoding (`+` is a space, `%2B` a plus, a broken
//! `%zz` stays as it is written).

use memchr::{memchr, memchr2};

/// A parameter as it stands in the query string, still encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawParam<'q> {
    /// Its first value; `None`: not given.
    pub value: Option<&'q [u8]>,
    /// Given more than once.
    pub duplicate: bool,
}

/// Splits a query string into (name, value) pairs, both still encoded. A pair without `=` has an empty value.
pub fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = query;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = memchr(b'&', rest).unwrap_or(rest.len());
            let pair = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or(&[]);
            if pair.is_empty() {
                continue;
            }
            return Some(match memchr(b'=', pair) {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &pair[..0]),
            });
        }
        None
    })
}

/// Finds the named parameters; others are ignored. An encoded name (`%6B`) counts as what it decodes to.
#[must_use]
pub fn find<'q, const N: usize>(query: &'q [u8], names: [&[u8]; N]) -> [RawParam<'q>; N] {
    let mut found = [RawParam::default(); N];
    for (name, value) in pairs(query) {
        let place = match names.iter().position(|wanted| *wanted == name) {
            Some(place) => place,
            None if needs_decoding(name) => {
                let mut decoded = Vec::with_capacity(name.len());
                decode(name, &mut decoded);
                match names.iter().position(|wanted| *wanted == decoded) {
                    Some(place) => place,
                    None => continue,
                }
            }
            None => continue,
        };
        let param = &mut found[place];
        param.duplicate |= param.value.is_some();
        param.value.get_or_insert(value);
    }
    found
}

/// Whether decoding would change anything; if not, the text can be borrowed as it is.
#[inline]
#[must_use]
pub fn needs_decoding(raw: &[u8]) -> bool {
    memchr2(b'%', b'+', raw).is_some()
}

/// Appends the decoded text. What comes out need not be UTF-8.
pub fn decode(raw: &[u8], out: &mut Vec<u8>) {
    out.reserve(raw.len());
    let mut at = 0;
    while at < raw.len() {
        match raw[at] {
            b'+' => out.push(b' '),
            b'%' => match (hex(raw.get(at + 1)), hex(raw.get(at + 2))) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            plain => out.push(plain),
        }
        at += 1;
    }
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    match digit? {
        d @ b'0'..=b'9' => Some(d - b'0'),
        d @ b'a'..=b'f' => Some(d - b'a' + 10),
        d @ b'A'..=b'F' => Some(d - b'A' + 10),
        _ => None,
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters; the inverse of [`decode`].
#[must_use]
pub fn encode(text: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(raw: &str) -> Vec<u8> {
        let mut out = Vec::new();
        decode(raw.as_bytes(), &mut out);
        out
    }

    #[test]
    fn form_rules() {
        assert_eq!(decoded("a+b%2Bc"), b"a b+c");
        assert_eq!(decoded("%zz%4"), b"%zz%4");
        assert_eq!(decoded("%"), b"%");
        assert_eq!(decoded("%%41"), b"%A");
        assert_eq!(decoded("%e4%BD%a0"), "你".as_bytes());
    }

    #[test]
    fn encoding_and_decoding_are_inverse_for_every_byte() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)), all);
    }

    #[test]
    fn finds_by_name_in_any_order_and_marks_duplicates() {
        let [k, v, w] = find(b"x=1&v=2&&k&v=3&%77=all", [b"k", b"v", b"w"]);
        assert_eq!(k, RawParam { value: Some(b""), duplicate: false });
        assert_eq!(v, RawParam { value: Some(b"2"), duplicate: true });
        assert_eq!(w, RawParam { value: Some(b"all"), duplicate: false });
        let [missing] = find(b"", [b"k"]);
        assert_eq!(missing.value, None);
        let [equals] = find(b"k=a=b", [b"k"]);
        assert_eq!(equals.value, Some(&b"a=b"[..]));
    }
}
