//! Frames that can be read are written as the same bytes; nothing else does harm, in whatever pieces it comes.
#![no_main]
use libfuzzer_sys::fuzz_target;
use meshkv::peer::Frame;
use meshkv::peer::link::{Keys, Link};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((frame, length))) = Frame::decode(rest) {
        match &frame {
            Frame::Ops { count, bytes, .. } => {
                for operation in Frame::operations(bytes, *count).flatten() {
                    let mut encoded = Vec::new();
                    operation.encode(&mut encoded);
                    assert_eq!(encoded.len(), operation.encoded_len());
                }
            }
            Frame::Records { writers, bytes, .. } => {
                let _ = Frame::records(writers, bytes).count();
            }
            _ => {}
        }
        if !matches!(frame, Frame::Unknown(_)) {
            let mut encoded = Vec::new();
            frame.encode(&mut encoded);
            assert_eq!(encoded, rest[..length]);
        }
        rest = &rest[length..];
    }
    let secret = Keys::new(&[b"a secret of thirty-two bytes or more"]);
    for keys in [Keys::default(), secret] {
        let mut link = Link::accept(keys);
        if bytes.len() % 2 == 1 {
            link.met();
        }
        for piece in bytes.chunks(usize::from(bytes.first().copied().unwrap_or(1)).max(1)) {
            if link.receive(piece).is_err() {
                break;
            }
            while let Ok(Some(_)) = link.next_frame() {}
        }
    }
});
