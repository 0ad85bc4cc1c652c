//! The engine's events as they come over the wire: an HTTP answer, in chunks, with JSON values in it. The
//! first byte says how the rest is cut. Whatever it is, what is found does not depend on the cuts, and
//! nothing is kept beyond its bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshkv::balancer::core::events::{EventStream, Found};
use meshkv::balancer::core::response::ResponseReader;

fn read(pieces: &mut dyn Iterator<Item = &[u8]>) -> (bool, Vec<u8>, Vec<Found>) {
    let mut reader = ResponseReader::new(1 << 20);
    let mut stream = EventStream::new();
    let (mut all, mut found) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut body = Vec::new();
        let answered = reader.feed(piece, &mut body);
        let parsed = stream.feed(&body, |one| found.push(one));
        all.extend_from_slice(&body);
        if answered.is_err() || parsed.is_err() {
            return (false, all, found);
        }
    }
    (true, all, found)
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, data)) = data.split_first() else { return };
    let whole = read(&mut std::iter::once(data));
    let cut = read(&mut data.chunks(usize::from(cut).max(1)));
    assert_eq!(whole.0, cut.0);
    assert_eq!(whole.2, cut.2);
    // An answer that is at fault may have handed out less when it came in one piece.
    assert!(!whole.0 || whole.1 == cut.1);

    // Without the HTTP around it.
    let mut stream = EventStream::new();
    let _ = stream.feed(data, |_| {});
});
