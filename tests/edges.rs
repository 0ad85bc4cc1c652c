//! Goal: every limit of the contract holds exactly: what it allows is served, one more is refused. And a
//! request means the same however it arrives. Method: raw bytes to a shared node, or to `SERVICE_URL`.

mod support;

use std::time::Duration;
use support::{Answer, Client, address, own_node};

const SUCCESS: &str = r#"{"success":true}"#;

fn send(request: impl AsRef<[u8]>) -> (Answer, Client) {
    let mut client = Client::connect(address());
    client.send(request);
    (client.answer(), client)
}

/// `request` is answered and the connection lives on.
#[track_caller]
fn served(request: &str) {
    let (answer, mut client) = send(request);
    assert_eq!(answer.status, 200, "{request:.80}: {}", answer.body);
    assert_eq!(client.get("/healthcheck").status, 200);
}

#[track_caller]
fn refused(request: &str, status: u16, code: &str) {
    let (answer, mut client) = send(request);
    let json: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!((answer.status, json["error"].as_str()), (status, Some(code)), "{request:.80}");
    assert!(client.is_closed());
}

#[test]
fn keys_of_64_and_values_of_256_characters_of_every_width() {
    for unit in ["a", "%41", "ж", "%D0%B6", "%F0%9F%98%80", "+", "%25"] {
        let (key, value) = (unit.repeat(64), unit.repeat(256));
        let mut client = Client::connect(address());
        assert_eq!(client.get(&format!("/set?k={key}&v={value}")).body, SUCCESS, "{unit}");
        let stored: String = serde_json::from_str(&client.get(&format!("/get?k={key}")).body).expect("JSON");
        assert_eq!(stored.chars().count(), 256, "{unit}");
        let answer = client.get(&format!("/set?k={key}{unit}&v=1"));
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (400, r#"{"error":"MAXIMUM_KEY_LENGTH_REACHED"}"#),
            "{unit}"
        );
        let answer = client.get(&format!("/set?k={key}&v={value}{unit}"));
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (400, r#"{"error":"MAXIMUM_VALUE_LENGTH_REACHED"}"#),
            "{unit}"
        );
        let after: String = serde_json::from_str(&client.get(&format!("/get?k={key}")).body).expect("JSON");
        assert_eq!(after, stored, "a refused value replaces nothing");
        assert_eq!(client.get(&format!("/rm?k={key}")).body, SUCCESS);
    }
}

#[test]
fn a_request_line_of_8_kib() {
    let line = |bytes: usize| {
        let frame = "GET /healthcheck? HTTP/1.1".len();
        format!("GET /healthcheck?{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(bytes - frame))
    };
    served(&line(8191));
    served(&line(8192));
    refused(&line(8193), 414, "URI_TOO_LONG");
    refused(&line(8194), 414, "URI_TOO_LONG");
}

#[test]
fn header_fields_of_16_kib() {
    let fields = |bytes: usize| {
        let frame = "Host: x\r\nX: \r\n".len();
        format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(bytes - frame))
    };
    served(&fields(16 * 1024 - 1));
    served(&fields(16 * 1024));
    refused(&fields(16 * 1024 + 1), 431, "HEADERS_TOO_LARGE");
    // The longest line and the longest fields at once.
    let line = "a".repeat(8192 - "GET /healthcheck? HTTP/1.1".len());
    served(&fields(16 * 1024).replacen("/healthcheck", &format!("/healthcheck?{line}"), 1));
}

#[test]
fn sixty_four_header_fields() {
    let fields = |count: usize| {
        format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count - 1))
    };
    served(&fields(63));
    served(&fields(64));
    refused(&fields(65), 431, "HEADERS_TOO_LARGE");
}

#[test]
fn bodies_of_64_kib() {
    let body = |bytes: usize| {
        let body = "x".repeat(bytes);
        format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n{body}")
    };
    served(&body(65_535));
    served(&body(65_536));
    // Refused by its head alone.
    refused("GET /healthcheck HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413, "BODY_TOO_LARGE");
    refused(
        "GET /healthcheck HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        413,
        "BODY_TOO_LARGE",
    );
}

#[test]
fn chunked_bodies_of_64_kib_however_many_chunks() {
    let body = |body: &str| {
        format!("GET /healthcheck HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    served(&body(&("1\r\nx\r\n".repeat(12_000) + "0\r\n\r\n")));
    served(&body(&format!("10000\r\n{}\r\n0\r\n\r\n", "x".repeat(65_536))));
    refused(&body("10001\r\n"), 413, "BODY_TOO_LARGE");
}

#[test]
fn a_request_whose_body_is_bad_has_one_answer() {
    let other = Client::connect(address()).get("/is?k=bad-body");
    assert_eq!(other.status, 404);
    let head = "GET /set?k=bad-body&v=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let follows = "GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n";
    for (body, status, code) in [("zz\r\n", 400, "BAD_REQUEST"), ("fffff\r\n", 413, "BODY_TOO_LARGE")] {
        // In one piece with its head: refused, and nothing is done.
        let (answer, mut client) = send([follows, head, body, follows].concat());
        assert_eq!(answer.status, 200, "the request before it");
        let answer = client.answer();
        let json: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!((answer.status, json["error"].as_str()), (status, Some(code)), "{body:?}");
        assert_eq!(answer.header("Connection"), Some("close"));
        assert!(client.is_closed(), "{body:?}: and no other answer");
        assert_eq!(Client::connect(address()).get("/is?k=bad-body").status, 404, "{body:?}");
    }
    for body in ["zz\r\n", "fffff\r\n"] {
        // Behind the answer: there is nothing left to say.
        let (answer, mut client) = send(head);
        assert_eq!(answer.body, SUCCESS);
        client.send([body, follows].concat());
        assert!(client.is_closed(), "{body:?}");
    }
    assert_eq!(Client::connect(address()).get("/rm?k=bad-body").status, 200);
}

#[test]
fn a_head_request_that_is_refused_has_no_body() {
    for (request, status) in [
        ("HEAD /get?k=a HTTP/1.1\r\n\r\n", 400),
        ("\r\nHEAD /get?k=a HTTP/2.0\r\n\r\n", 400),
        ("HEAD /get HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413),
    ] {
        let mut client = Client::connect(address());
        client.send(request);
        let answer = client.read_answer(true).expect("an answer");
        assert_eq!(answer.status, status, "{request:?}");
        assert_ne!(answer.header("Content-Length"), None, "that of the answer to GET");
        assert!(client.is_closed(), "{request:?}");
    }
}

#[test]
fn raw_bytes_that_are_not_utf8_mean_what_they_mean_encoded() {
    let mut client = Client::connect(address());
    assert_eq!(client.get("/set?k=raw&v=1").body, SUCCESS);
    for bytes in [&b"caf\xe9"[..], b"\xff", b"\xed\xa0\x80"] {
        let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
        for (before, after) in [
            ("/set?k=raw&v=", ""),
            ("/set?v=", ""),
            ("/set?k=&v=", ""),
            ("/set?k=", ""),
            ("/set?k=", "&v=1"),
            ("/get?k=raw&", "=1"),
            ("/get?k=raw&zz=", ""),
            ("/get?k=raw&after=", ""),
            ("/getKeys?prefix=", ""),
            ("/ping?nodes=", ""),
        ] {
            let line = [before.as_bytes(), bytes, after.as_bytes()].concat();
            client.send([b"GET ", &line[..], b" HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
            let raw = client.answer();
            // On the same connection: it lives on.
            assert_eq!(raw, client.get(&format!("{before}{encoded}{after}")), "{before}{encoded}{after}");
        }
    }
    assert_eq!(client.get("/rm?k=raw").body, SUCCESS);
}

#[test]
fn a_request_may_come_one_byte_at_a_time() {
    let requests = "GET /set?k=bytewise%21&v=a+%F0%9F%98%80 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
        GET /get?k=bytewise! HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /get?k=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n\
        GET /is?k=bytewise! HTTP/1.0\r\n\r\n";
    let mut client = Client::connect(address());
    client.stream.set_nodelay(true).expect("set");
    for byte in requests.as_bytes() {
        client.send([*byte]);
        std::thread::sleep(Duration::from_micros(500));
    }
    assert_eq!(client.answer().body, SUCCESS);
    assert_eq!(client.answer().body, "\"a 😀\"");
    assert_eq!(client.answer().status, 405);
    assert_eq!(client.answer().body, SUCCESS);
    assert!(client.is_closed());
}

#[test]
fn behind_connection_close_nothing_counts() {
    for (first, key) in [
        ("Connection: close\r\nContent-Length: 3\r\n\r\nabc", "close-length"),
        ("Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "close-chunked"),
        ("Connection: keep-alive, close\r\n\r\n", "close-none"),
    ] {
        let second = format!("GET /set?k={key}&v=2 HTTP/1.1\r\nHost: x\r\n\r\n");
        let (answer, mut client) =
            send(format!("GET /set?k={key}&v=1 HTTP/1.1\r\nHost: x\r\n{first}{second}"));
        assert_eq!((answer.body.as_str(), answer.header("Connection")), (SUCCESS, Some("close")), "{key}");
        assert!(client.read_answer(false).is_none(), "{key}: one answer");
        assert_eq!(Client::connect(address()).get(&format!("/get?k={key}")).body, "\"1\"", "{key}");
    }
}

#[test]
fn form_decoding_at_its_edges() {
    let mut client = Client::connect(address());
    for (raw, value) in [
        ("%", "%"),
        ("%4", "%4"),
        ("%4g", "%4g"),
        ("%%41", "%A"),
        ("%2541", "%41"),
        ("%+1", "% 1"),
        ("++", "  "),
        ("%2b%2B", "++"),
        ("a;b", "a;b"),
        ("a?b", "a?b"),
        ("a/b", "a/b"),
        ("%00", "\0"),
        ("%26%3d", "&="),
        ("=", "="),
    ] {
        assert_eq!(client.get(&format!("/set?k=form&v={raw}")).body, SUCCESS, "{raw}");
        let stored: String = serde_json::from_str(&client.get("/get?k=form").body).expect("JSON");
        assert_eq!(stored, value, "{raw}");
    }
    // Keys by the same rules: one key however it is written. Empty pairs and unknown names count for nothing.
    assert_eq!(client.get("/set?&&k=f+%6Frm%2B&&v=1&x&=y&").body, SUCCESS);
    for key in ["f%20orm%2B", "%66+orm%2b", "f+orm%2B"] {
        assert_eq!(client.get(&format!("/get?k={key}")).body, "\"1\"", "{key}");
    }
    assert_eq!(client.get("/set?k=form&v").body, SUCCESS);
    assert_eq!(client.get("/get?k=form").body, "\"\"");
    // An encoded name is the name: given twice, whatever it looks like.
    assert_eq!(client.get("/get?k=form&%6b=form").status, 400);
}

#[test]
fn a_lone_node_cannot_give_two_acknowledgements() {
    let Some(node) = own_node(&[]) else { return };
    let mut client = Client::connect(&node.address);
    let lacking = r#"{"error":"NOT_ENOUGH_ACKS","acks":1,"needed":2,"stored":true}"#;
    for (target, then, status) in [
        ("/set?k=acks&v=1&w=2", "/get?k=acks", 200),
        ("/rm?k=acks&w=2", "/get?k=acks", 404),
        ("/set?k=acks&v=1&w=2", "/is?k=acks", 200),
        ("/clear?w=2", "/is?k=acks", 404),
    ] {
        let answer = client.get(target);
        assert_eq!((answer.status, answer.body.as_str()), (503, lacking), "{target}");
        assert_eq!(client.get(then).status, status, "{target} has taken effect all the same");
    }
    // What there is not cannot be removed, whoever is asked.
    assert_eq!(client.get("/rm?k=acks&w=2").body, r#"{"error":"MISSING_RECORD"}"#);
}
