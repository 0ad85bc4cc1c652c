//! The first half of a turn: what each request asks for, checked in the documented order and written down
//! as an [`Operation`], so that the second half executes without looking at the request again.

use super::Engine;
use crate::config::AckLevel;
use crate::http::answer::{Framing, Persistence};
use crate::http::error::{ErrorCode, Status};
use crate::http::head::{Head, Method};
use crate::http::plain::{Plain, Verb};
use crate::http::query;
use crate::node::acks::Token;
use crate::node::listing::Plan;
use crate::node::routes::Route;
use crate::node::{Connection, State, info, keys};
use crate::store::{KeyHash, Marks, Storage};
use std::borrow::Cow;

/// Where a text of the turn is: in the input, or, decoded, in the scratch space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) decoded: bool,
}

impl Span {
    #[inline]
    pub(super) fn of<'t>(self, input: &'t [u8], scratch: &'t [u8]) -> &'t [u8] {
        let from = if self.decoded { scratch } else { input };
        &from[self.start as usize..(self.start + self.length) as usize]
    }
}

/// What is to be done about one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Get,
    Is,
    Rm,
    Set,
    Clear,
    /// Answer with this.
    Error(ErrorCode),
    /// Answer OPTIONS.
    Options,
    /// No such path.
    NotFound,
    /// `100 Continue`, before the answer proper.
    Continue,
    /// A listing, planned in `Engine::listings`.
    List(u32),
    /// `/healthcheck`, `/status`, `/metrics`, `/`.
    Info,
    /// `/ping`; the address is in `Engine::pings`.
    Ping(u32),
    /// A route of the embedding program, by its index.
    Custom(u32),
}

/// One request of the turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) action: Action,
    pub(super) route: Route,
    pub(super) framing: Framing,
    pub(super) status: Status,
    /// What the status is, if it is none of those with a name.
    pub(super) other_status: u16,
    pub(super) connection: u16,
    pub(super) marks: Marks,
    pub(super) acks: AckLevel,
    pub(super) hash: KeyHash,
    pub(super) key: Span,
    pub(super) value: Span,
    pub(super) path: Span,
    pub(super) query: Span,
    pub(super) ttl_ms: u64,
    /// The number of the write in the log, if its answer waits for other nodes.
    pub(super) waits_for: u64,
}

/// Where the path of a plain request begins, and how long `k=` is.
const PATH_START: usize = "GET ".len();
const QUERY_TO_KEY: usize = "k=".len();
const CLEAN: Marks = Marks::KEY_CLEAN.with(Marks::VALUE_CLEAN);
/// How a plain request is answered.
const PLAIN: Framing = Framing { persistence: Persistence::Keep, head_only: false };

impl<S: Storage> Engine<S> {
    /// Adds a plain request, which starts at `at` of the input, to the turn's operations. False: it is for
    /// [`Engine::plan`] to say what is wrong with it.
    #[inline]
    pub(super) fn plan_plain(&mut self, input: &[u8], at: usize, plain: &Plain, index: u16) -> bool {
        let limits = &self.node.settings;
        if plain.key.len() > limits.max_key_chars || plain.value.len() > limits.max_value_chars {
            return false;
        }
        let (action, route) = match plain.verb {
            Verb::Get => (Action::Get, Route::Get),
            Verb::Is => (Action::Is, Route::Is),
            Verb::Rm => (Action::Rm, Route::Rm),
            Verb::Set => (Action::Set, Route::Set),
        };
        let place = |start: usize, end: usize| Span {
            start: (at + start) as u32,
            length: (end - start) as u32,
            decoded: false,
        };
        let (path, query) = (PATH_START, plain.key.start - QUERY_TO_KEY);
        self.operations.push(Operation {
            acks: if route.is_write() { limits.acks } else { AckLevel::Local },
            hash: self.node.store.hash(&input[at + plain.key.start..at + plain.key.end]),
            key: place(plain.key.start, plain.key.end),
            value: place(plain.value.start, plain.value.end),
            path: place(path, query - 1),
            query: place(query, plain.value.end),
            marks: if plain.verb == Verb::Set { CLEAN } else { Marks::KEY_CLEAN },
            ..Operation::new(action, route, PLAIN, index)
        });
        true
    }

    /// Decides what a request asks for and adds it to the turn's operations.
    pub(super) fn plan(
        &mut self,
        input: &[u8],
        head: &Head<'_>,
        index: u16,
        connection: &dyn Connection,
    ) -> Operation {
        let mut route = Route::of(head.path);
        let custom = match route {
            Route::Unknown => self.extensions.route(head.path),
            _ => None,
        };
        if custom.is_some() {
            route = Route::Custom;
        }
        let keep_alive = head.keep_alive && !self.closing;
        let framing = Framing {
            persistence: Persistence::of(head.version_11, keep_alive),
            head_only: head.method == Method::Head,
        };
        let mut operation = Operation::new(Action::NotFound, route, framing, index);
        operation.path = span(input, head.path);
        operation.query = span(input, head.query);
        if head.expect_continue {
            self.operations.push(Operation { action: Action::Continue, ..operation });
        }
        operation.action = match self.choose(input, head, route, custom, &mut operation, connection) {
            Ok(action) => action,
            Err(code) => Action::Error(code),
        };
        if let Action::List(listing) = operation.action
            && !head.version_11
            && self.listings[listing as usize].as_ref().is_some_and(Plan::is_stream)
        {
            // Nothing but the end of the connection can tell a 1.0 client where a stream ends.
            operation.framing.persistence = Persistence::Close;
        }
        self.operations.push(operation);
        operation
    }

    #[inline]
    fn choose(
        &mut self,
        input: &[u8],
        head: &Head<'_>,
        route: Route,
        custom: Option<usize>,
        operation: &mut Operation,
        connection: &dyn Connection,
    ) -> Result<Action, ErrorCode> {
        if head.method != Method::Get {
            if head.method == Method::Options {
                return Ok(Action::Options);
            }
            if !route.allows(head.method) {
                return Err(match route.is_write() {
                    true => ErrorCode::MethodNotAllowedWrite,
                    false => ErrorCode::MethodNotAllowed,
                });
            }
        }
        if head.cross_site && route.is_write() && !self.origin_allowed(head) {
            return Err(ErrorCode::CrossSite);
        }
        if self.state != State::Ready && (route.is_data() || route == Route::Root) {
            return Err(if self.state == State::Warming { ErrorCode::Warming } else { ErrorCode::Leaving });
        }
        if self.is_skewed && route.is_write() {
            return Err(ErrorCode::ClockSkew);
        }
        let limits = &self.node.settings;
        Ok(match route {
            Route::Get | Route::Is => {
                let [k, after] = query::find(head.query, [b"k", b"after"]);
                let key = keys::key(k, limits.max_key_chars)?;
                self.check_after(after)?;
                self.place_key(input, key, operation);
                if route == Route::Get { Action::Get } else { Action::Is }
            }
            Route::Set => {
                let [k, v, ttl, w] = query::find(head.query, [b"k", b"v", b"ttl", b"w"]);
                let key = keys::key(k, limits.max_key_chars)?;
                let value = keys::value(v, limits.max_value_chars)?;
                operation.ttl_ms = keys::ttl_ms(ttl)?;
                operation.acks = keys::acks(w, limits.acks)?;
                if value.class.clean {
                    operation.marks = operation.marks.with(Marks::VALUE_CLEAN);
                }
                operation.value = self.place(input, value.bytes);
                self.place_key(input, key, operation);
                Action::Set
            }
            Route::Rm => {
                let [k, w] = query::find(head.query, [b"k", b"w"]);
                let key = keys::key(k, limits.max_key_chars)?;
                operation.acks = keys::acks(w, limits.acks)?;
                self.place_key(input, key, operation);
                Action::Rm
            }
            Route::Clear => {
                let [w] = query::find(head.query, [b"w"]);
                operation.acks = keys::acks(w, limits.acks)?;
                Action::Clear
            }
            Route::GetKeys | Route::GetValues | Route::GetAll => {
                let plan = Plan::parse(&self.node.store, route, head)?;
                let [after] = query::find(head.query, [b"after"]);
                self.check_after(after)?;
                self.listings.push(Some(plan));
                Action::List(self.listings.len() as u32 - 1)
            }
            Route::Ping => {
                for node in info::check_nodes(head.query)? {
                    self.node.mesh.hint(node);
                }
                self.pings.push(connection.local_address());
                Action::Ping(self.pings.len() as u32 - 1)
            }
            Route::Healthcheck | Route::Status | Route::Metrics | Route::Root => Action::Info,
            Route::Custom => Action::Custom(custom.unwrap_or_default() as u32),
            Route::Unknown | Route::Invalid => Action::NotFound,
        })
    }

    /// Whether the write that a read names is here.
    #[inline]
    fn check_after(&self, after: query::RawParam<'_>) -> Result<(), ErrorCode> {
        let Some(text) = keys::option(after)? else { return Ok(()) };
        let token = Token::parse(&text).ok_or(ErrorCode::BadAfter)?;
        match self.node.mesh.holds(token.origin, token.worker, token.seq) {
            Some(true) => Ok(()),
            Some(false) | None => Err(ErrorCode::AfterNotSeen),
        }
    }

    fn origin_allowed(&self, head: &Head<'_>) -> bool {
        match self.node.settings.cors_origin.as_deref() {
            Some("*") => true,
            Some(allowed) => head.origin == Some(allowed.as_bytes()),
            None => false,
        }
    }

    #[inline]
    fn place_key(&mut self, input: &[u8], key: keys::Text<'_>, operation: &mut Operation) {
        if key.class.clean {
            operation.marks = operation.marks.with(Marks::KEY_CLEAN);
        }
        operation.hash = self.node.store.hash(&key.bytes);
        operation.key = self.place(input, key.bytes);
    }

    /// Borrowed texts stay where they are; decoded ones move to the scratch space.
    #[inline]
    fn place(&mut self, input: &[u8], text: Cow<'_, [u8]>) -> Span {
        match text {
            Cow::Borrowed(text) => span(input, text),
            Cow::Owned(text) => {
                let start = self.scratch.len() as u32;
                self.scratch.extend_from_slice(&text);
                Span { start, length: text.len() as u32, decoded: true }
            }
        }
    }
}

impl Operation {
    /// Not so of what is only said on the way to an answer.
    #[inline]
    pub(super) fn is_request(&self) -> bool {
        !matches!(self.action, Action::Continue)
    }

    #[inline]
    pub(super) fn new(action: Action, route: Route, framing: Framing, connection: u16) -> Operation {
        Operation {
            action,
            route,
            framing,
            status: Status::Ok,
            other_status: 0,
            connection,
            marks: Marks::default(),
            acks: AckLevel::Local,
            hash: KeyHash::default(),
            key: Span::default(),
            value: Span::default(),
            path: Span::default(),
            query: Span::default(),
            ttl_ms: 0,
            waits_for: 0,
        }
    }
}

/// Where `part`, which is a part of `whole`, stands in it.
#[inline]
fn span(whole: &[u8], part: &[u8]) -> Span {
    if part.is_empty() {
        return Span::default();
    }
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    debug_assert!(start + part.len() <= whole.len());
    Span { start: start as u32, length: part.len() as u32, decoded: false }
}
