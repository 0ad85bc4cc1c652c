//! JSON strings: which bytes may stand as they are, and escaping for the rest.
//!
//! A record remembers whether its key and value are clean, so that a read copies instead of escaping.

/// What one pass over a text finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextClass {
    /// Every byte is below 0x80: valid UTF-8, one byte a character.
    pub ascii: bool,
    /// May stand between quotes in JSON unchanged.
    pub clean: bool,
}

/// Looks at every byte once, without branches, so that the compiler can use vector instructions.
///
/// 0xE2 starts U+2028 and U+2029, which break JavaScript source: a text with that byte counts as unclean
/// and goes through [`escape`], which looks closer.
#[inline]
#[must_use]
pub fn classify(text: &[u8]) -> TextClass {
    let mut high = 0u8;
    let mut dirty = 0u8;
    for &byte in text {
        high |= byte;
        dirty |=
            u8::from(byte < 0x20) | u8::from(byte == b'"') | u8::from(byte == b'\\') | u8::from(byte == 0xE2);
    }
    TextClass { ascii: high < 0x80, clean: dirty == 0 }
}

/// Appends `text`, which must be UTF-8, as the inside of a JSON string.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut plain_from = 0;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        let line_separator =
            byte == 0xE2 && text[at..].len() >= 3 && text[at + 1] == 0x80 && text[at + 2] & 0xFE == 0xA8;
        if byte >= 0x20 && byte != b'"' && byte != b'\\' && !line_separator {
            at += 1;
            continue;
        }
        out.extend_from_slice(&text[plain_from..at]);
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0C => out.extend_from_slice(b"\\f"),
            0xE2 => {
                out.extend_from_slice(if text[at + 2] == 0xA8 { b"\\u2028" } else { b"\\u2029" });
                at += 2;
            }
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        at += 1;
        plain_from = at;
    }
    out.extend_from_slice(&text[plain_from..]);
}

/// Appends a quoted JSON string; `clean` is what [`classify`] said of the text.
#[inline]
pub fn quote(text: &[u8], clean: bool, out: &mut Vec<u8>) {
    out.push(b'"');
    if clean {
        out.extend_from_slice(text);
    } else {
        escape(text, out);
    }
    out.push(b'"');
}

/// A quoted JSON string of any text, for cold paths.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    quote(text.as_bytes(), false, &mut out);
    // What was UTF-8 stays UTF-8: only whole ASCII bytes and whole separators are replaced.
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_up_to_three_bytes_and_some_beyond_survive_a_json_reader() {
        for code in (0..0x3100u32).chain([0xFEFF, 0xFFFF, 0x1_0000, 0x1_F600, 0x10_FFFF]) {
            let Some(character) = char::from_u32(code) else { continue };
            let text = format!("a{character}b");
            let json = quoted(&text);
            let read: String = serde_json::from_str(&json).expect("valid JSON");
            assert_eq!(read, text, "{json}");
            if classify(text.as_bytes()).clean {
                assert_eq!(json, format!("\"{text}\""), "clean means unchanged");
            }
        }
    }

    #[test]
    fn line_separators_are_escaped_and_their_neighbours_are_not() {
        assert_eq!(quoted("\u{2027}\u{2028}\u{2029}\u{202A}"), "\"\u{2027}\\u2028\\u2029\u{202A}\"");
        assert!(!classify("\u{2028}".as_bytes()).clean);
    }

    #[test]
    fn classify_agrees_with_the_byte_at_a_time_definition_at_every_length() {
        for length in 0..70 {
            for dirty in [None, Some(b'"'), Some(b'\\'), Some(0x1F), Some(0xE2), Some(0x80), Some(0x7F)] {
                let mut text = vec![b'a'; length];
                if let (Some(byte), false) = (dirty, text.is_empty()) {
                    let at = length / 2;
                    text[at] = byte;
                }
                let class = classify(&text);
                assert_eq!(class.ascii, text.is_ascii());
                let clean = text.iter().all(|&b| b >= 0x20 && b != b'"' && b != b'\\' && b != 0xE2);
                assert_eq!(class.clean, clean);
            }
        }
    }
}
