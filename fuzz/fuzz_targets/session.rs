//! The same requests come out however the bytes are cut (the first byte of the input chooses the cuts), and
//! whether heads that repeat are taken the short way or not.
#![no_main]
use libfuzzer_sys::fuzz_target;
use meshkv::http::repeat::Repeat;
use meshkv::http::session::{Event, Session};

fn feed(bytes: &[u8], repeating: bool, mut cut: impl FnMut() -> usize) -> Vec<String> {
    let mut session = Session::new();
    let mut repeat = Repeat::default();
    let (mut carry, mut seen, mut fed) = (Vec::new(), Vec::new(), 0);
    while fed < bytes.len() {
        let next = (fed + cut().max(1)).min(bytes.len());
        carry.extend_from_slice(&bytes[fed..next]);
        fed = next;
        let mut at = 0;
        loop {
            let event = match repeating {
                true => session.next_repeating(&mut repeat, &carry, &mut at),
                false => session.next(&carry, &mut at),
            };
            match event {
                Event::Request(head) => {
                    seen.push(format!("{:?} {:?} {:?}", head.path, head.query, head.keep_alive))
                }
                Event::Refuse(code) | Event::BadBody(code) => {
                    // Which of two faults is seen first may depend on how much has come.
                    let _ = code;
                    seen.push("refused".to_owned());
                }
                Event::NeedMore => break,
            }
        }
        carry.drain(..at);
        assert!(carry.len() <= 32 * 1024 || session.is_over(), "an incomplete head fits a slot");
    }
    seen
}

fuzz_target!(|input: &[u8]| {
    let Some((&seed, bytes)) = input.split_first() else { return };
    // A line that has not ended may be refused as soon as a bad byte comes or when it ends: it ends here.
    let bytes = [&bytes[..bytes.len().min(16 * 1024)], b"\r\n\r\n"].concat();
    let bytes = &bytes[..];
    let whole = feed(bytes, false, || usize::MAX / 2);
    let mut state = u32::from(seed) + 1;
    let cut = feed(bytes, true, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as usize % 40
    });
    assert_eq!(whole, cut);
});
