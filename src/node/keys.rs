//! `/get`, `/set`, `/is`, `/rm`, `/clear`: their parameters, and what they do.
//!
//! Checks run in the documented order: key, then value, then options. Texts that need no decoding are
//! borrowed from the request where they stand.

use crate::config::AckLevel;
use crate::http::error::ErrorCode;
use crate::http::json::{self, TextClass};
use crate::http::query::{self, RawParam};
use crate::limits::TTL_SECONDS_MAX;
use std::borrow::Cow;

/// A checked key or value: where it is, and what is known about its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text<'q> {
    pub(super) bytes: Cow<'q, [u8]>,
    pub(super) class: TextClass,
}

/// Decoding and UTF-8, for any parameter.
#[inline]
fn text(raw: &[u8], encoding: ErrorCode) -> Result<Text<'_>, ErrorCode> {
    let bytes = if query::needs_decoding(raw) {
        let mut decoded = Vec::new();
        query::decode(raw, &mut decoded);
        Cow::Owned(decoded)
    } else {
        Cow::Borrowed(raw)
    };
    let class = json::classify(&bytes);
    if !class.ascii && std::str::from_utf8(&bytes).is_err() {
        return Err(encoding);
    }
    Ok(Text { bytes, class })
}

/// More than `chars` characters? Counts only where bytes and characters can differ.
#[inline]
fn too_long(text: &Text<'_>, chars: usize) -> bool {
    let bytes = &text.bytes;
    // A character is what does not continue another one; the text is known to be UTF-8.
    bytes.len() > chars && (text.class.ascii || bytes.iter().filter(|&&b| b & 0xC0 != 0x80).count() > chars)
}

/// The key parameter, checked.
#[inline]
pub(super) fn key(param: RawParam<'_>, chars_max: usize) -> Result<Text<'_>, ErrorCode> {
    let raw = param.value.ok_or(ErrorCode::MissingKeyParam)?;
    if param.duplicate {
        return Err(ErrorCode::DuplicateKey);
    }
    if raw.is_empty() {
        return Err(ErrorCode::EmptyKey);
    }
    let key = text(raw, ErrorCode::KeyEncoding)?;
    if too_long(&key, chars_max) { Err(ErrorCode::MaximumKeyLengthReached) } else { Ok(key) }
}

/// The value parameter, checked.
#[inline]
pub(super) fn value(param: RawParam<'_>, chars_max: usize) -> Result<Text<'_>, ErrorCode> {
    let raw = param.value.ok_or(ErrorCode::MissingValueParam)?;
    if param.duplicate {
        return Err(ErrorCode::DuplicateValue);
    }
    let value = text(raw, ErrorCode::ValueEncoding)?;
    if too_long(&value, chars_max) { Err(ErrorCode::MaximumValueLengthReached) } else { Ok(value) }
}

/// An option as text; `None` if it was not given.
pub(super) fn option(param: RawParam<'_>) -> Result<Option<Cow<'_, [u8]>>, ErrorCode> {
    if param.duplicate {
        return Err(ErrorCode::DuplicateOption);
    }
    let Some(raw) = param.value else { return Ok(None) };
    text(raw, ErrorCode::OptionEncoding).map(|text| Some(text.bytes))
}

/// `ttl` in milliseconds; 0 if it was not given. Rounded up: a record never vanishes early.
pub(super) fn ttl_ms(param: RawParam<'_>) -> Result<u64, ErrorCode> {
    option(param)?.map_or(Ok(0), |seconds| parse_ttl_ms(&seconds).ok_or(ErrorCode::BadTtl))
}

fn parse_ttl_ms(text: &[u8]) -> Option<u64> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b"0"[..]),
    };
    let digits = |part: &[u8]| !part.is_empty() && part.len() <= 32 && part.iter().all(u8::is_ascii_digit);
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let number =
        |part: &[u8]| part.iter().fold(0u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d - b'0')));
    let seconds = number(whole);
    if seconds > TTL_SECONDS_MAX {
        return None;
    }
    let mut milliseconds = 0;
    for place in 0..3 {
        milliseconds = milliseconds * 10 + u64::from(fraction.get(place).map_or(0, |d| d - b'0'));
    }
    let rest = fraction.iter().skip(3).any(|&d| d != b'0');
    let total = seconds * 1000 + milliseconds + u64::from(rest);
    (total > 0 && total <= TTL_SECONDS_MAX * 1000).then_some(total)
}

/// `w`, or the node's own level if it was not given.
pub(super) fn acks(param: RawParam<'_>, default: AckLevel) -> Result<AckLevel, ErrorCode> {
    let Some(level) = option(param)? else { return Ok(default) };
    let text = std::str::from_utf8(&level).map_err(|_| ErrorCode::OptionEncoding)?;
    match text.parse() {
        Ok(AckLevel::Count(0 | 1001..)) | Err(_) => Err(ErrorCode::BadAcks),
        Ok(level) => Ok(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(raw: &str) -> RawParam<'_> {
        RawParam { value: Some(raw.as_bytes()), duplicate: false }
    }

    #[test]
    fn lengths_count_characters_after_decoding() {
        let long = |unit: &str, count: usize| key(given(&unit.repeat(count)), 64).map(|_| ());
        for unit in ["a", "%41", "+", "ж", "%F0%9F%98%80", "😀"] {
            assert_eq!(long(unit, 64), Ok(()), "{unit}");
            assert_eq!(long(unit, 65), Err(ErrorCode::MaximumKeyLengthReached), "{unit}");
        }
        assert_eq!(key(given("%ff"), 64), Err(ErrorCode::KeyEncoding));
        assert_eq!(key(given("%ed%a0%80"), 64), Err(ErrorCode::KeyEncoding), "a lone surrogate");
        assert_eq!(value(given(""), 256).map(|v| v.bytes.len()), Ok(0));
    }

    #[test]
    fn ttl_takes_whole_and_decimal_seconds_and_rounds_up() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.0005", Some(1001)),
            ("0.0001", Some(1)),
            ("0.000", None),
            ("0", None),
            ("-1", None),
            ("%2B1", None),
            ("1e3", None),
            ("", None),
            (".5", None),
            ("1.", None),
            ("NaN", None),
            ("315576000", Some(315_576_000_000)),
            ("315576000.001", None),
            ("315576001", None),
            ("99999999999999999999999999", None),
        ] {
            assert_eq!(ttl_ms(given(text)).ok(), expected, "{text}");
        }
        assert_eq!(ttl_ms(RawParam::default()), Ok(0));
    }

    #[test]
    fn acks_take_names_and_counts() {
        let parsed = |text: &str| acks(given(text), AckLevel::All).ok();
        assert_eq!(parsed("local"), Some(AckLevel::Local));
        assert_eq!(parsed("quorum"), Some(AckLevel::Quorum));
        assert_eq!(parsed("1"), Some(AckLevel::Count(1)));
        for bad in ["0", "-1", "1001", "ALL ", "most", "", "1.5", "99999999999"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
