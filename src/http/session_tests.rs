//! Goal: the session finds the same requests however the bytes are cut. Method: a corpus of connections,
//! each fed whole, at every split point, and byte by byte, with the driver's carrying of leftovers.

use super::*;

/// A request or refusal, without borrows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Request { path: String, query: String, keep_alive: bool },
    Refused(ErrorCode),
    BadBody(ErrorCode),
}

/// Feeds the pieces as a driver does and collects what comes out.
fn feed<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Seen>, Session) {
    let mut session = Session::new();
    let mut carry = Vec::new();
    let mut seen = Vec::new();
    for piece in pieces {
        carry.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match session.next(&carry, &mut at) {
                Event::Request(head) => seen.push(Seen::Request {
                    path: String::from_utf8_lossy(head.path).into_owned(),
                    query: String::from_utf8_lossy(head.query).into_owned(),
                    keep_alive: head.keep_alive,
                }),
                Event::Refuse(code) => seen.push(Seen::Refused(code)),
                Event::BadBody(code) => seen.push(Seen::BadBody(code)),
                Event::NeedMore => break,
            }
        }
        carry.drain(..at);
    }
    (seen, session)
}

fn get(path: &str, query: &str) -> Seen {
    Seen::Request { path: path.into(), query: query.into(), keep_alive: true }
}

fn corpus() -> Vec<(&'static str, Vec<Seen>)> {
    let last = |path: &str| Seen::Request { path: path.into(), query: String::new(), keep_alive: false };
    vec![
        ("GET /get?k=a HTTP/1.1\r\nHost: x\r\n\r\n", vec![get("/get", "k=a")]),
        ("\r\n\nGET /a HTTP/1.1\nHost: x\n\n", vec![get("/a", "")]),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b?c HTTP/1.1\r\nHost: x\r\n\r\nGET /d HT",
            vec![get("/a", ""), get("/b", "c")],
        ),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\nGET /x GET /b HTTP/1.1\r\nHost: x\r\n\r\n",
            vec![get("/a", ""), get("/b", "")],
        ),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             5;x=\"y\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nT: u\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
            vec![get("/a", ""), get("/b", "")],
        ),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz",
            vec![get("/a", ""), Seen::BadBody(ErrorCode::BadRequest)],
        ),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
            vec![get("/a", ""), Seen::BadBody(ErrorCode::BadRequest)],
        ),
        (
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
            vec![get("/a", ""), Seen::BadBody(ErrorCode::BodyTooLarge)],
        ),
        ("GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n", vec![last("/a")]),
        ("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /b", vec![last("/a")]),
        ("\x16\x03\x01\x02\0\x01", vec![Seen::Refused(ErrorCode::BadRequest)]),
        ("GET /a HTTP/2.0\r\n\r\n", vec![Seen::Refused(ErrorCode::BadRequest)]),
        ("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n", vec![Seen::Refused(ErrorCode::MissingHost)]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", vec![Seen::Refused(ErrorCode::BadRequest)]),
    ]
}

#[test]
fn every_split_point_of_the_corpus_gives_the_same_requests() {
    for (text, expected) in corpus() {
        let bytes = text.as_bytes();
        assert_eq!(feed([bytes]).0, expected, "whole: {text:?}");
        assert_eq!(feed(bytes.chunks(1)).0, expected, "byte by byte: {text:?}");
        for first in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(first);
            assert_eq!(feed([head, tail]).0, expected, "split at {first}: {text:?}");
            let middle = tail.len() / 2;
            assert_eq!(
                feed([head, &tail[..middle], &tail[middle..]]).0,
                expected,
                "split at {first} and later"
            );
        }
    }
}

#[test]
fn a_chunked_body_is_bounded_like_any_other_and_what_stands_around_it_apart() {
    let head = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let next = "0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n";
    let most = BODY_BYTES_MAX as usize;
    let one = |size: usize| format!("{size:x}\r\n{}\r\n", "x".repeat(size));
    let long = format!("1;{}\r\nx\r\n", "y".repeat(1000));
    let fits = |body: &str| {
        let text = [head, body, next].concat();
        for piece in [1, 7, 1000, text.len()] {
            let (seen, session) = feed(text.as_bytes().chunks(piece));
            let fits = seen == [get("/a", ""), get("/b", "")];
            if !fits {
                assert_eq!(seen, [get("/a", ""), Seen::BadBody(ErrorCode::BodyTooLarge)]);
            }
            assert_eq!(session.is_over(), !fits, "in pieces of {piece}");
            if piece == text.len() {
                return fits;
            }
        }
        false
    };
    assert!(fits(&one(1).repeat(12_000)));
    assert!(fits(&one(1).repeat(most)));
    assert!(!fits(&one(1).repeat(most + 1)));
    assert!(fits(&one(most)));
    assert!(!fits(&one(most + 1)));
    assert!(!fits(&[one(most), one(1)].concat()));
    assert!(fits(&long.repeat(500)));
    assert!(!fits(&long.repeat(530)));
}

#[test]
fn a_request_that_is_put_back_comes_again_and_is_the_last_only_then() {
    for end in ["HTTP/1.0\r\n\r\n", "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"] {
        let text = format!("GET /a {end}GET /b {end}");
        let mut session = Session::new();
        for _ in 0..3 {
            let mut at = 0;
            let event = session.next(text.as_bytes(), &mut at);
            assert!(matches!(event, Event::Request(head) if head.path == b"/a"), "{event:?}");
            assert!(session.is_over());
            session.put_back();
            assert!(session.between_requests());
        }
        let mut at = 0;
        assert!(matches!(session.next(text.as_bytes(), &mut at), Event::Request(_)));
        assert_eq!((session.next(text.as_bytes(), &mut at), at), (Event::NeedMore, text.len()));
    }
}

#[test]
fn a_dripping_line_is_refused_at_its_limit_and_not_before() {
    let line = "GET /".to_owned() + &"x".repeat(9000);
    let mut session = Session::new();
    let refused_at = (1..line.len()).find(|&bytes| {
        let mut at = 0;
        matches!(session.next(&line.as_bytes()[..bytes], &mut at), Event::Refuse(ErrorCode::UriTooLong))
    });
    assert_eq!(refused_at, Some(crate::limits::REQUEST_LINE_BYTES_MAX + 2));
}

#[test]
fn sessions_stay_small() {
    assert!(size_of::<Session>() <= 40, "{}", size_of::<Session>());
}
