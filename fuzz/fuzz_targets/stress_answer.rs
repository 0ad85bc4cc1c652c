//! What a server under stress answers: the first byte says how the rest is cut into reads. Whatever it is, which
//! answers are found does not depend on the cuts, and none lies outside of what was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshkv_stress::response::{Parsed, Parser};

/// The answers, and whether they ended in nonsense.
fn read<'d>(pieces: impl Iterator<Item = &'d [u8]>) -> (Vec<(u16, Vec<u8>)>, bool) {
    let (mut parser, mut input, mut answers) = (Parser::default(), Vec::new(), Vec::new());
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        input.extend_from_slice(piece);
        let eof = pieces.peek().is_none();
        loop {
            match parser.parse(&input, eof) {
                Parsed::Partial => break,
                Parsed::Bad => return (answers, true),
                Parsed::Done { status, close, used, start, end, chunked } => {
                    assert!(start <= end && end <= used && used <= input.len() && used > 0);
                    let body = if chunked { parser.body.clone() } else { input[start..end].to_vec() };
                    answers.push((status, body));
                    input.drain(..used);
                    // As the tool does: what comes behind is another connection's.
                    if close {
                        return (answers, false);
                    }
                }
            }
        }
    }
    (answers, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, data)) = data.split_first() else { return };
    let whole = read(std::iter::once(data));
    let cut = read(data.chunks(usize::from(cut).max(1)));
    assert_eq!(whole, cut);
});
