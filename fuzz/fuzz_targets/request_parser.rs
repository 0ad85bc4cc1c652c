//! A head is complete, incomplete or refused; what is complete lies within the input and the limits. The
//! short way for repeated heads says the same of every request of a connection.
#![no_main]
use libfuzzer_sys::fuzz_target;
use meshkv::http::head::{Body, HeadError, parse};
use meshkv::http::plain::Verb;
use meshkv::http::repeat::Repeat;
use meshkv::http::{json, query};
use meshkv::limits::{HEADER_BYTES_MAX, REQUEST_LINE_BYTES_MAX};

fuzz_target!(|input: &[u8]| {
    match parse(input) {
        Ok(head) => {
            assert!(head.bytes <= input.len());
            // One byte less is not complete: the head ends where it says.
            assert_eq!(parse(&input[..head.bytes - 1]), Err(HeadError::Incomplete));
            assert_eq!(parse(&input[..head.bytes]), Ok(head));
        }
        Err(HeadError::Incomplete) => {
            assert!(input.len() <= 2 * HEADER_BYTES_MAX + REQUEST_LINE_BYTES_MAX + 4);
        }
        Err(HeadError::Refused(_)) => {}
    }
    let mut repeat = Repeat::default();
    let mut rest = input;
    loop {
        let head = parse(rest);
        assert_eq!(repeat.parse(rest), head);
        if let Some((plain, bytes)) = repeat.plain(rest) {
            let head = head.expect("a plain request is whole");
            assert!(head.bytes == bytes && head.keep_alive && head.version_11 && head.body == Body::None);
            let mut texts = vec![(&b"k"[..], &rest[plain.key])];
            if plain.verb == Verb::Set {
                texts.push((b"v", &rest[plain.value]));
            }
            assert_eq!(query::pairs(head.query).collect::<Vec<_>>(), texts);
            assert!(texts.iter().all(|(_, text)| json::classify(text).clean && !query::needs_decoding(text)));
        }
        // What is remembered now must not change what the same bytes mean.
        assert_eq!(repeat.parse(rest), head);
        match head {
            Ok(head) => rest = &rest[head.bytes..],
            Err(_) => break,
        }
    }
});
