//! Goal: the bytes of `proto-spec/vectors.txt` and this implementation say the same. Method: every frame of
//! the file is decoded and encoded again, and compared with the value it is named for; every defect is
//! refused for its reason. The file is written by hand where a defect is, and is never made by this code.

use super::frame::*;
use super::link::{Keys, Link, LinkError};
use super::operation::{Kind, Operation};
use super::read::Defect;
use crate::base::version::{Hlc, Incarnation};

const VECTORS: &str = include_str!("../../proto-spec/vectors.txt");

fn member(n: u128) -> MemberInfo {
    MemberInfo {
        incarnation: Incarnation(n),
        name: "n1".to_owned(),
        address: "10.0.0.1:7373".parse().expect("an address"),
        http_port: 8080,
        workers: 2,
    }
}

fn vectors() -> Vec<OriginVector> {
    let held = Held { applied: 5, closed: Hlc(0x500), ranges: vec![(7, 9)] };
    let surplus = [(3, 0x600), (4, 0x700)].map(|(id, upto)| Surplus { id, upto: Hlc(upto) });
    let (openness, workers, surplus) = (Openness::Settled, vec![held], surplus.to_vec());
    vec![OriginVector { origin: Incarnation(2), openness, workers, surplus }]
}

/// The value that each vector stands for.
fn frames(operations: &[u8], records: &[u8], writers: &[u8], with: &mut dyn FnMut(&str, &Frame<'_>)) {
    let six = MemberInfo { address: "[fd00::1]:1".parse().expect("an address"), ..member(3) };
    with("hello", &Frame::Hello(Hello { member: member(1), lineage: 9, empty: true, worker: 1 }));
    with("hello over IPv6", &Frame::Hello(Hello { member: six, lineage: 0, empty: false, worker: 0 }));
    let welcome = Welcome { member: member(2), lineage: 9, empty: false, applied: 17, joining: true };
    with("welcome", &Frame::Welcome(welcome));
    with("refuse", &Frame::Refuse { reason: Reason::Lineage, detail: "no" });
    with("ops", &Frame::Ops { first: 4, count: 4, ack_now: true, bytes: operations });
    with("restart", &Frame::Restart { base: 10 });
    with("mark", &Frame::Mark { seq: 10, closed: Hlc(0x1_0000) });
    with("ack", &Frame::Ack { applied: 3, base: 5, upto: 8 });
    let beat = Beat {
        sent_ns: 1,
        phase: Phase::Ready,
        view_hash: 2,
        stable: Hlc(3),
        floor: Hlc(4),
        members: vec![(member(1), false), (member(2), true)],
        removed: vec![Incarnation(7)],
        strangers: vec![Incarnation(8)],
        vectors: vectors(),
    };
    with("beat", &Frame::Beat(beat));
    with(
        "echo",
        &Frame::Echo(Echo { sent_ns: 1, wall_ms: 2, jump_ms: -3, counts_you: true, heads: vec![3, 4] }),
    );
    with("pull", &Frame::Pull { id: 1, above: Hlc(2) });
    let begin = PullBegin {
        id: 1,
        lineage: 9,
        floor: Hlc(4),
        stable: Hlc(8),
        clear: (Hlc(5), Incarnation(6)),
        vectors: vectors(),
    };
    with("pull begin", &Frame::PullBegin(begin));
    with("records", &Frame::Records { id: 1, writers, bytes: records });
    with("pull end", &Frame::PullEnd(PullEnd { id: 1, grown: vec![Incarnation(2)] }));
    with("lineage", &Frame::Lineage(9));
    let ask = DigestAsk { id: 1, view_hash: 2, floor: Hlc(3), until_ms: 4, key: 5, groups: vec![6, 4095] };
    with("digest ask", &Frame::DigestAsk(ask));
    let entries = vec![(3, Hlc(4), 5), (6, Hlc(7), 0)];
    let digest = Digest { id: 1, clear: Hlc(2), is_last: true, is_valid: true, sums: Vec::new(), entries };
    with("digest", &Frame::Digest(digest));
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.as_bytes().chunks(2).map(byte).collect()
}

/// `name: hex` lines behind this heading.
fn section(heading: &str) -> Vec<(String, Vec<u8>)> {
    let body = VECTORS.split(&format!("# {heading}\n")).nth(1).expect("a section");
    let body = body.split("\n# ").next().expect("text");
    let lines = body.lines().filter(|line| !line.trim().is_empty());
    lines.map(|l| l.split_once(':').expect("name: hex")).map(|(n, h)| (n.to_owned(), unhex(h))).collect()
}

#[test]
fn frames_are_these_bytes_both_ways() {
    let set = Operation { kind: Kind::Set, hlc: Hlc(1), expires_at_ms: 0, marks: 3, key: b"k", value: b"v" };
    let mut operations = Vec::new();
    for operation in [
        set,
        Operation { expires_at_ms: 99, marks: 0, value: "😀".as_bytes(), ..set },
        Operation { kind: Kind::Rm, marks: 0, value: b"", ..set },
        Operation { kind: Kind::Clear, marks: 0, key: b"", value: b"", ..set },
    ] {
        operation.encode(&mut operations);
    }
    let mut records = vec![0];
    set.encode(&mut records);
    records.push(1);
    Operation { kind: Kind::Rm, marks: 0, value: b"", ..set }.encode(&mut records);
    let writers: Vec<u8> = [5u128, 6].iter().flat_map(|writer| writer.to_le_bytes()).collect();
    let mut vectors = section("Frames");
    frames(&operations, &records, &writers, &mut |name, frame| {
        let place = vectors.iter().position(|(known, _)| known == name);
        let place = place.unwrap_or_else(|| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            panic!("{name} is not in vectors.txt: {}", hex(&bytes))
        });
        let (_, bytes) = vectors.swap_remove(place);
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        assert_eq!(hex(&encoded), hex(&bytes), "{name}");
        let (decoded, length) = Frame::decode(&bytes).expect("no defect").expect("whole");
        assert_eq!((format!("{decoded:?}"), length), (format!("{frame:?}"), bytes.len()), "{name}");
        for end in 0..bytes.len() {
            assert!(matches!(Frame::decode(&bytes[..end]), Ok(None)), "{name}, its first {end} bytes");
        }
    });
    assert!(
        vectors.is_empty(),
        "nobody knows {:?}",
        vectors.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    let all: Vec<_> = Frame::operations(&operations, 4).collect::<Result<_, _>>().expect("operations");
    assert_eq!((all.len(), all[1].value), (4, "😀".as_bytes()));
    let all: Vec<_> = Frame::records(&writers, &records).collect::<Result<_, _>>().expect("records");
    assert_eq!((all[0].0, all[1].0, all[1].1.kind), (Incarnation(5), Incarnation(6), Kind::Rm));
}

#[test]
fn defects_are_refused_for_their_reasons() {
    let defects = section("Defects");
    assert!(defects.len() >= 20, "{}", defects.len());
    for (name, bytes) in defects {
        let reason = name.rsplit('(').next().expect("a reason").trim_end_matches(')');
        // Operations are looked at one by one, when they are applied.
        let found = Frame::decode(&bytes).and_then(|frame| match frame {
            Some((Frame::Ops { count, bytes, .. }, _)) => {
                Frame::operations(bytes, count).collect::<Result<Vec<_>, _>>().map(|_| ())
            }
            Some((Frame::Records { writers, bytes, .. }, _)) => {
                Frame::records(writers, bytes).collect::<Result<Vec<_>, _>>().map(|_| ())
            }
            _ => Ok(()),
        });
        let found = found.err().map(|defect| match defect {
            Defect::Length(_) => "length".to_owned(),
            Defect::Truncated => "truncated".to_owned(),
            Defect::Trailing => "trailing".to_owned(),
            Defect::Value(field) => field.to_owned(),
            Defect::Type(_) => "type".to_owned(),
        });
        assert_eq!(found.as_deref(), Some(reason), "{name}");
    }
}

/// Goal: the fuzzer begins with what the protocol is now. Method: its seeds are the file's frames and defects.
#[test]
fn the_fuzzers_seeds_are_these_bytes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/peer_frames/");
    for (name, bytes) in section("Frames").into_iter().chain(section("Defects")) {
        let name = name.split(" (").next().expect("text").replace(' ', "-").replace('^', "-to-the-");
        let seed = std::fs::read(format!("{folder}{name}")).unwrap_or_default();
        assert_eq!(hex(&seed), hex(&bytes), "fuzz/seeds/peer_frames/{name}");
    }
}

fn outcome(read: Result<bool, LinkError>) -> &'static str {
    read.map_or_else(|error| LinkError::LABELS[error.index()], |_| "fine")
}

#[test]
fn preambles_are_answered_and_read_as_they_are_named() {
    for (whose, keys) in [("without a secret", Keys::default()), ("with a secret", Keys::new(&[b"secret"]))] {
        let answers = section(&format!("Answers {whose}"));
        let preambles = section(&format!("Preambles to an acceptor {whose}"));
        assert!(preambles.len() >= 3, "{whose}");
        for (name, bytes) in preambles {
            let reason = name.rsplit('(').next().expect("a reason").trim_end_matches(')');
            // All at once, and byte by byte.
            for pieces in [bytes.chunks(16), bytes.chunks(1)] {
                let mut link = Link::accept(keys.clone());
                let read = pieces.map(|piece| link.receive(piece)).try_fold(false, |_, read| read);
                assert_eq!(outcome(read), reason, "{name}");
                let answer = answers.iter().find(|(answered, _)| answered == reason);
                let (_, answer) = answer.unwrap_or_else(|| panic!("no answer for {reason}"));
                assert_eq!(hex(link.output()), hex(answer), "{name}");
            }
        }
    }
    for (name, bytes) in section("Answers to a dialer without a secret") {
        let mut link = Link::dial(Keys::default());
        let ours = section("Preambles to an acceptor without a secret").swap_remove(0).1;
        assert_eq!(hex(link.output()), hex(&ours));
        assert!(name.ends_with(&format!("({})", outcome(link.receive(&bytes)))), "{name}");
    }
}

#[test]
fn sums_of_all_groups_fit_a_frame_both_ways() {
    let sum = |n: usize| GroupSum { sum: n as u128 * u128::from(u64::MAX), count: n as u32 };
    let sums = (0..crate::limits::DIGEST_GROUPS).map(sum).collect();
    let digest = Digest { id: 7, clear: Hlc(1), is_last: true, is_valid: true, sums, entries: Vec::new() };
    let mut bytes = Vec::new();
    Frame::Digest(digest.clone()).encode(&mut bytes);
    // Too long for the file of vectors; what the first two of the groups are.
    assert_eq!(hex(&bytes[..21]), "134001008207000000010000000000000001010010");
    assert_eq!(
        hex(&bytes[21..61]),
        format!("{}{}{}01000000", "00".repeat(20), "ff".repeat(8), "00".repeat(8))
    );
    let (decoded, length) = Frame::decode(&bytes).expect("no defect").expect("whole");
    assert!(matches!(decoded, Frame::Digest(found) if found == digest));
    assert_eq!(length, bytes.len());
}

#[test]
fn unknown_types_from_128_on_are_skipped() {
    for (name, bytes) in section("Skipped") {
        let decoded = Frame::decode(&bytes).expect("no defect").expect("whole");
        assert!(matches!(decoded, (Frame::Unknown(128..), length) if length == bytes.len()), "{name}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
