//! `/getKeys`, `/getValues`, `/getAll`: a walk over the store in pieces small enough that others are served
//! in between. The whole store streams in constant memory; a page is collected first, because its cursor
//! goes into the head.
//!
//! Weakly consistent: a record that is there throughout is listed exactly once; one that comes or goes
//! meanwhile may be listed or not.

use super::keys;
use super::routes::Route;
use crate::http::answer::{Answers, Framing, JSON, NDJSON, Persistence};
use crate::http::error::{ErrorCode, Status};
use crate::http::head::Head;
use crate::http::json;
use crate::http::query;
use crate::limits::{LISTING_LIMIT_MAX, LISTING_PAGE_BYTES, LISTING_PIECE_BYTES, LISTING_RECORDS_PER_TURN};
use crate::store::{Cursor, Flow, Marks, Record, Storage};

/// Which part of a record is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Keys,
    Values,
    All,
}

/// A listing as it was asked for.
#[derive(Debug)]
pub struct Plan {
    part: Part,
    ndjson: bool,
    prefix: Box<[u8]>,
    limit: Option<u64>,
    cursor: Cursor,
    version_11: bool,
}

impl Plan {
    /// Checks the parameters of a listing.
    ///
    /// # Errors
    /// The answer to give instead.
    pub fn parse<S: Storage>(store: &S, route: Route, head: &Head<'_>) -> Result<Plan, ErrorCode> {
        let [limit, cursor, prefix, format] =
            query::find(head.query, [b"limit", b"cursor", b"prefix", b"format"]);
        let limit = match keys::option(limit)? {
            None => None,
            Some(text) => Some(parse_limit(&text).ok_or(ErrorCode::BadLimit)?),
        };
        let cursor = match keys::option(cursor)? {
            None => store.cursor_start(),
            Some(text) => parse_cursor(&text)
                .and_then(|bits| store.cursor_from_bits(bits))
                .ok_or(ErrorCode::BadCursor)?,
        };
        let prefix = keys::option(prefix)?.unwrap_or_default();
        let ndjson = match keys::option(format)?.as_deref() {
            None | Some(b"json") => false,
            Some(b"ndjson") => true,
            Some(_) => return Err(ErrorCode::BadFormat),
        };
        let part = match route {
            Route::GetKeys => Part::Keys,
            Route::GetValues => Part::Values,
            _ => Part::All,
        };
        let prefix = prefix.into_owned().into_boxed_slice();
        Ok(Plan { part, ndjson, prefix, limit, cursor, version_11: head.version_11 })
    }

    /// The whole rest in pieces of no known length, not a page.
    pub(super) fn is_stream(&self) -> bool {
        self.limit.is_none()
    }
}

fn parse_limit(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 10 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let limit = text.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'));
    (1..=LISTING_LIMIT_MAX).contains(&limit).then_some(limit)
}

/// The only spelling of a cursor is the one that was given out: 32 lower-case hexadecimal digits.
fn parse_cursor(text: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(text).ok()?;
    let spelled = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    spelled.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// How the pieces reach the client.
#[derive(Debug)]
enum Form {
    /// One chunk a piece, for HTTP/1.1.
    Chunked,
    /// As they are, ended by the end of the connection, for HTTP/1.0.
    Plain,
    /// Collected here until the page is whole.
    Page(Vec<u8>),
    /// HEAD: there are no pieces.
    Nothing,
}

/// A listing under way.
#[derive(Debug)]
pub struct Listing {
    plan: Plan,
    form: Form,
    framing: Framing,
    /// Where to go on; `None`: every record was seen.
    cursor: Option<Cursor>,
    left: u64,
    empty: bool,
    /// Of the node when it began: how often it had dropped everything.
    pub(super) life: u64,
}

/// Bytes of a chunk's size line: five hexadecimal digits and the line break.
const CHUNK_HEAD: &[u8] = b"00000\r\n";
const _: () = assert!(LISTING_PIECE_BYTES < 0x80000, "a piece and one record beyond fit five digits");

impl Listing {
    /// Starts the listing: a stream's head goes to `out` at once.
    pub fn begin(plan: Plan, answers: &Answers, framing: Framing, life: u64, out: &mut Vec<u8>) -> Listing {
        let streamed = plan.is_stream();
        let form = match (streamed, framing.head_only, plan.version_11) {
            (true, true, _) => Form::Nothing,
            (true, false, true) => Form::Chunked,
            (true, false, false) => Form::Plain,
            (false, _, _) => Form::Page(Vec::new()),
        };
        let listing = Listing {
            cursor: Some(plan.cursor),
            left: plan.limit.unwrap_or(u64::MAX),
            empty: true,
            form,
            framing,
            plan,
            life,
        };
        if streamed {
            let chunked = if listing.plan.version_11 { "Transfer-Encoding: chunked\r\n" } else { "" };
            let persistence = if listing.plan.version_11 { framing.persistence } else { Persistence::Close };
            answers.head(out, Status::Ok.line(), persistence, listing.content_type(), chunked, None);
        }
        listing
    }

    fn content_type(&self) -> &'static str {
        if self.plan.ndjson { NDJSON } else { JSON }
    }

    /// Appends the next piece to `out`; true at the end of the listing.
    pub fn step<S: Storage>(&mut self, store: &S, answers: &Answers, now_ms: u64, out: &mut Vec<u8>) -> bool {
        match std::mem::replace(&mut self.form, Form::Nothing) {
            Form::Nothing => true,
            Form::Plain => {
                let ended = self.piece(store, now_ms, out);
                self.form = Form::Plain;
                ended
            }
            Form::Chunked => {
                let chunk = out.len();
                out.extend_from_slice(CHUNK_HEAD);
                let data = out.len();
                let ended = self.piece(store, now_ms, out);
                match out.len() - data {
                    // An empty chunk would be the last one.
                    0 => out.truncate(chunk),
                    size => {
                        for (place, digit) in out[chunk..chunk + 5].iter_mut().rev().enumerate() {
                            *digit = b"0123456789abcdef"[size >> (4 * place) & 15];
                        }
                        out.extend_from_slice(b"\r\n");
                    }
                }
                if ended {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                self.form = Form::Chunked;
                ended
            }
            Form::Page(mut page) => {
                let ended = self.piece(store, now_ms, &mut page);
                if ended {
                    let next = self
                        .cursor
                        .map_or_else(String::new, |Cursor(bits)| format!("X-Next-Cursor: {bits:032x}\r\n"));
                    answers.with_body(
                        out,
                        Status::Ok.line(),
                        self.framing,
                        self.content_type(),
                        &next,
                        &page,
                    );
                } else {
                    self.form = Form::Page(page);
                }
                ended
            }
        }
    }

    /// Appends some records, and the brackets around all of them; true behind the last one.
    fn piece<S: Storage>(&mut self, store: &S, now_ms: u64, out: &mut Vec<u8>) -> bool {
        let page = self.plan.limit.is_some();
        let start = out.len();
        if let Some(cursor) = self.cursor {
            let Listing { plan, left, empty, .. } = &mut *self;
            let full = if page { LISTING_PAGE_BYTES } else { start + LISTING_PIECE_BYTES };
            let mut stopped = false;
            let next = store.get_all(cursor, now_ms, LISTING_RECORDS_PER_TURN, &mut |record| {
                if !record.key.starts_with(&plan.prefix) {
                    return Flow::Continue;
                }
                if *left == 0 || out.len() >= full {
                    stopped = true;
                    return Flow::StopBefore;
                }
                *left -= 1;
                write_record(plan, record, std::mem::take(empty), out);
                Flow::Continue
            });
            self.cursor = next;
            // A page ends when it is full; a stream's piece only makes room for others.
            let whole = next.is_none() || (page && stopped);
            if !whole {
                return false;
            }
        }
        if !self.plan.ndjson {
            out.extend_from_slice(if self.empty { b"[]" } else { b"]" });
        }
        true
    }
}

fn write_record(plan: &Plan, record: Record<'_>, first: bool, out: &mut Vec<u8>) {
    let key = |out: &mut Vec<u8>| json::quote(record.key, record.marks.has(Marks::KEY_CLEAN), out);
    let value = |out: &mut Vec<u8>| json::quote(record.value, record.marks.has(Marks::VALUE_CLEAN), out);
    if !plan.ndjson {
        out.push(if first { b'[' } else { b',' });
    }
    match plan.part {
        Part::Keys => key(out),
        Part::Values => value(out),
        Part::All => {
            out.extend_from_slice(b"{\"k\":");
            key(out);
            out.extend_from_slice(b",\"v\":");
            value(out);
            out.push(b'}');
        }
    }
    if plan.ndjson {
        out.push(b'\n');
    }
}
