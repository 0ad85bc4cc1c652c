//! Decoding never grows a text, undoes encoding, and finds each parameter where a naive reader finds it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use meshkv::http::{json, query};

fuzz_target!(|input: &[u8]| {
    let mut decoded = Vec::new();
    query::decode(input, &mut decoded);
    assert!(decoded.len() <= input.len());
    if !query::needs_decoding(input) {
        assert_eq!(decoded, input);
    }
    let mut again = Vec::new();
    query::decode(query::encode(input).as_bytes(), &mut again);
    assert_eq!(again, input);

    let [k, _v] = query::find(input, [b"k", b"v"]);
    let name = |raw: &[u8]| {
        let mut name = Vec::new();
        query::decode(raw, &mut name);
        name
    };
    let mut values = input.split(|&b| b == b'&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let at = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
        (name(&pair[..at]) == b"k").then(|| pair.get(at + 1..).unwrap_or(&[]))
    });
    assert_eq!(k.value, values.next());
    assert_eq!(k.duplicate, values.next().is_some());

    if let Ok(text) = std::str::from_utf8(input) {
        let quoted = json::quoted(text);
        assert!(!quoted.bytes().any(|b| b < 0x20));
        if json::classify(input).clean {
            assert_eq!(quoted.len(), text.len() + 2);
        }
    }
});
