//! Answers as bytes. Everything that can be built before the first request is: whole error answers, whole
//! success answers, and the heads of values, indexed by the length of the body.
//!
//! Budget of a hot answer: one copy of a prebuilt head, one copy of the value, no formatting.

use super::error::{ErrorCode, Status};
use super::json;

/// What the answer says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Persistence {
    /// HTTP/1.1 that stays open: nothing is said.
    Keep,
    /// HTTP/1.0 that stays open: `Connection: keep-alive` is echoed.
    KeepEchoed,
    /// The connection ends behind this answer: `Connection: close`.
    Close,
}

impl Persistence {
    const COUNT: usize = 3;

    #[must_use]
    pub const fn of(version_11: bool, keep_alive: bool) -> Persistence {
        match (keep_alive, version_11) {
            (true, true) => Persistence::Keep,
            (true, false) => Persistence::KeepEchoed,
            (false, _) => Persistence::Close,
        }
    }

    const fn header(self) -> &'static str {
        match self {
            Persistence::Keep => "",
            Persistence::KeepEchoed => "Connection: keep-alive\r\n",
            Persistence::Close => "Connection: close\r\n",
        }
    }
}

/// How an answer is framed, decided by its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    pub persistence: Persistence,
    /// The request was HEAD: the head goes out, the body does not.
    pub head_only: bool,
}

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Value answers up to this long have their heads prebuilt.
const HEADS: usize = 320;
/// Heads up to this long are copied as so many bytes, which takes a few instructions instead of a call.
const WIDE: usize = 128;
const SUCCESS_BODY: &[u8] = b"{\"success\":true}";
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A whole prebuilt answer and where its head ends.
#[derive(Debug, Default)]
struct Whole {
    bytes: Vec<u8>,
    head: usize,
}

/// A prebuilt head of a value, with the quote behind it that its body begins with.
#[derive(Debug)]
struct ValueHead {
    /// The head, if it fits, and whatever behind it.
    wide: [u8; WIDE],
    length: usize,
}

/// The prebuilt answers of a node.
#[derive(Debug)]
pub struct Answers {
    /// Heads of 200 answers with a body of 0, 1, 2 … bytes, for connections that stay open.
    heads: Vec<Box<[u8]>>,
    /// The same heads for clean values, empty where they are too long.
    value_heads: Vec<ValueHead>,
    success: [Whole; Persistence::COUNT],
    errors: Vec<[Whole; Persistence::COUNT]>,
    /// `Access-Control-Allow-Origin` and company, or nothing.
    cors: String,
}

/// How nearly every answer is framed.
const PLAINEST: Framing = Framing { persistence: Persistence::Keep, head_only: false };

impl ValueHead {
    fn of(head: &[u8]) -> ValueHead {
        let length = head.len() + 1;
        let mut wide = [0; WIDE];
        if length > WIDE {
            return ValueHead { wide, length: 0 };
        }
        wide[..head.len()].copy_from_slice(head);
        wide[head.len()] = b'"';
        ValueHead { wide, length }
    }
}

impl Answers {
    /// `cors_origin`: what `--cors-origin` says, if it was given.
    #[must_use]
    pub fn new(cors_origin: Option<&str>) -> Answers {
        let cors = cors_origin.map_or_else(String::new, |origin| {
            let vary = if origin == "*" { "" } else { "Vary: Origin\r\n" };
            format!(
                "Access-Control-Allow-Origin: {origin}\r\n{vary}Access-Control-Expose-Headers: X-Next-Cursor, X-Mesh-Token\r\n"
            )
        });
        let mut answers = Answers {
            heads: Vec::new(),
            value_heads: Vec::new(),
            success: Default::default(),
            errors: Vec::new(),
            cors,
        };
        answers.heads = (0..HEADS)
            .map(|body| {
                let mut head = Vec::new();
                answers.head(&mut head, Status::Ok.line(), Persistence::Keep, JSON, "", Some(body));
                head.into_boxed_slice()
            })
            .collect();
        answers.value_heads = answers.heads.iter().map(|head| ValueHead::of(head)).collect();
        let all = [Persistence::Keep, Persistence::KeepEchoed, Persistence::Close];
        answers.success = all.map(|persistence| answers.whole(Status::Ok, persistence, "", SUCCESS_BODY));
        answers.errors = ErrorCode::ALL
            .iter()
            .map(|code| {
                all.map(|persistence| {
                    answers.whole(code.status(), persistence, code.headers(), &error_body(*code))
                })
            })
            .collect();
        answers
    }

    fn whole(&self, status: Status, persistence: Persistence, headers: &str, body: &[u8]) -> Whole {
        let mut bytes = Vec::new();
        self.head(&mut bytes, status.line(), persistence, JSON, headers, Some(body.len()));
        let head = bytes.len();
        bytes.extend_from_slice(body);
        Whole { bytes, head }
    }

    /// `{"success":true}`.
    #[inline]
    pub fn success(&self, framing: Framing, out: &mut Vec<u8>) {
        put(&self.success[framing.persistence as usize], framing, out);
    }

    /// `{"success":true}` with the name of the write: `prefix` and its number.
    #[inline]
    pub fn success_named(&self, framing: Framing, prefix: &[u8], number: u64, out: &mut Vec<u8>) {
        let whole = &self.success[framing.persistence as usize];
        let (head, body) = whole.bytes.split_at(whole.head);
        out.extend_from_slice(&head[..head.len() - 2]);
        out.extend_from_slice(b"X-Mesh-Token: ");
        out.extend_from_slice(prefix);
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        if !framing.head_only {
            out.extend_from_slice(body);
        }
    }

    /// A fixed error answer.
    pub fn error(&self, code: ErrorCode, framing: Framing, out: &mut Vec<u8>) {
        put(&self.errors[code as usize][framing.persistence as usize], framing, out);
    }

    /// The whole answer with this text, which may stand in JSON as it is.
    #[inline]
    pub fn clean_value(&self, text: &[u8], framing: Framing, out: &mut Vec<u8>) {
        let body = text.len() + 2;
        match self.value_heads.get(body) {
            Some(head) if head.length > 0 && framing == PLAINEST => {
                out.reserve(WIDE + body);
                let end = out.len() + head.length;
                out.extend_from_slice(&head.wide);
                out.truncate(end);
                out.extend_from_slice(text);
                out.push(b'"');
            }
            _ => {
                self.value_head(body, framing.persistence, out);
                if !framing.head_only {
                    json::quote(text, true, out);
                }
            }
        }
    }

    /// The head of a 200 JSON answer with a body of this many bytes.
    #[inline]
    pub fn value_head(&self, body: usize, persistence: Persistence, out: &mut Vec<u8>) {
        match self.heads.get(body) {
            Some(head) if persistence == Persistence::Keep => out.extend_from_slice(head),
            _ => self.head(out, Status::Ok.line(), persistence, JSON, "", Some(body)),
        }
    }

    /// Any head. `status_line` without the version; `headers` are whole lines with their breaks;
    /// `body: None` leaves the length out (streams).
    pub fn head(
        &self,
        out: &mut Vec<u8>,
        status_line: &str,
        persistence: Persistence,
        content_type: &str,
        headers: &str,
        body: Option<usize>,
    ) {
        for part in
            ["HTTP/1.1 ", status_line, "\r\nContent-Type: ", content_type, "\r\nCache-Control: no-store\r\n"]
        {
            out.extend_from_slice(part.as_bytes());
        }
        for part in [persistence.header(), &self.cors, headers] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(body) = body {
            out.extend_from_slice(b"Content-Length: ");
            out.extend_from_slice(itoa::Buffer::new().format(body).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// A whole answer with a body made for it; for cold paths.
    pub fn with_body(
        &self,
        out: &mut Vec<u8>,
        status_line: &str,
        framing: Framing,
        content_type: &str,
        headers: &str,
        body: &[u8],
    ) {
        self.head(out, status_line, framing.persistence, content_type, headers, Some(body.len()));
        if !framing.head_only {
            out.extend_from_slice(body);
        }
    }

    /// A whole answer with a status (204, 304) behind whose head no client reads a body, nor waits for one.
    pub fn without_body(&self, out: &mut Vec<u8>, status_line: &str, persistence: Persistence) {
        let parts = ["HTTP/1.1 ", status_line, "\r\nCache-Control: no-store\r\n"];
        for part in parts.into_iter().chain([persistence.header(), &self.cors, "\r\n"]) {
            out.extend_from_slice(part.as_bytes());
        }
    }

    /// 204 for OPTIONS: what may be done here, and to whom CORS allows it.
    pub fn options(&self, out: &mut Vec<u8>, persistence: Persistence, allow: &str) {
        out.extend_from_slice(b"HTTP/1.1 204 No Content\r\nAllow: ");
        out.extend_from_slice(allow.as_bytes());
        out.extend_from_slice(b"\r\n");
        if !self.cors.is_empty() {
            out.extend_from_slice(b"Access-Control-Allow-Methods: ");
            out.extend_from_slice(allow.as_bytes());
            out.extend_from_slice(b"\r\nAccess-Control-Allow-Headers: *\r\nAccess-Control-Max-Age: 600\r\n");
        }
        for part in [persistence.header(), &self.cors, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// `{"error":"CODE"}`, with a message where there is one.
#[must_use]
pub fn error_body(code: ErrorCode) -> Vec<u8> {
    let (_, name, message) = code.parts();
    if message.is_empty() {
        format!("{{\"error\":\"{name}\"}}").into_bytes()
    } else {
        format!("{{\"error\":\"{name}\",\"message\":\"{message}\"}}").into_bytes()
    }
}

#[inline]
fn put(whole: &Whole, framing: Framing, out: &mut Vec<u8>) {
    out.extend_from_slice(if framing.head_only { &whole.bytes[..whole.head] } else { &whole.bytes });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn heads_by_length_say_that_length() {
        let answers = Answers::new(None);
        for body in [0, 2, 9, 10, 99, 100, HEADS - 1, HEADS, 5000] {
            for persistence in [Persistence::Keep, Persistence::KeepEchoed, Persistence::Close] {
                let head = text(|out| answers.value_head(body, persistence, out));
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                assert!(head.ends_with(&format!("Content-Length: {body}\r\n\r\n")), "{head}");
                assert!(head.contains(persistence.header()), "{head}");
                assert_eq!(head.contains("Connection:"), persistence != Persistence::Keep);
            }
        }
    }

    #[test]
    fn a_clean_value_is_its_head_and_its_text_in_quotes() {
        // With an origin of that length the heads are too long for the wide copy.
        for cors in [None, Some("*"), Some("https://a-name-that-takes-its-time.example")] {
            let answers = Answers::new(cors);
            for persistence in [Persistence::Keep, Persistence::KeepEchoed, Persistence::Close] {
                for (length, head_only) in [0, 1, 32, HEADS - 3, HEADS - 2, HEADS - 1, 4000]
                    .map(|n| [(n, false), (n, true)])
                    .concat()
                {
                    let value = "v".repeat(length);
                    let framing = Framing { persistence, head_only };
                    let expected = text(|out| {
                        answers.value_head(length + 2, persistence, out);
                        if !head_only {
                            out.extend_from_slice(format!("\"{value}\"").as_bytes());
                        }
                    });
                    assert_eq!(text(|out| answers.clean_value(value.as_bytes(), framing, out)), expected);
                }
            }
        }
    }

    #[test]
    fn every_error_is_json_with_its_length() {
        let answers = Answers::new(Some("https://app.example"));
        for code in ErrorCode::ALL {
            let framing = Framing { persistence: Persistence::Close, head_only: false };
            let whole = text(|out| answers.error(code, framing, out));
            let (head, body) = whole.split_once("\r\n\r\n").expect("head and body");
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
            assert!(head.contains("Access-Control-Allow-Origin: https://app.example\r\n"));
            let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(json["error"], code.parts().1);
            let head_only = text(|out| answers.error(code, Framing { head_only: true, ..framing }, out));
            assert_eq!(head_only, format!("{head}\r\n\r\n"));
        }
    }
}
