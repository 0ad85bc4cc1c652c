//! The keeper: one thread that knows which backends there are and how they are. It asks the engine, checks
//! health, hears of failed connections, publishes the routes, and answers the status pages. What it does
//! with what it hears is decided in [`super::core`].

mod engine;
mod exchange;
mod pages;
mod resolver;
mod status;

use self::engine::Engine;
use self::exchange::{Exchange, Progress, Purpose, plain};
use self::resolver::Resolver;
use self::status::StatusServer;
use super::config::{BalanceConfig, Source, parse_backend};
use super::core::api;
use super::core::pool::{CheckMode, Condition, Health, Listed, Outcome, Pool, State};
use super::shared::{Counters, Shared, Table, is_ours};
use super::{Member, MemberState};
use crate::limits::{BACKENDS_FILE_BYTES_MAX, BACKENDS_MAX, CHECK_ANSWER_MS, SMALL_ANSWER_BYTES_MAX};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const WAKER: Token = Token(usize::MAX);
const STATUS: Token = Token(usize::MAX - 1);
/// Tokens from here on are the status server's clients.
const STATUS_CLIENTS: usize = 1 << 32;
/// Lists that are not the engine's are looked at this often.
const LOOK_MS: u64 = 1_000;
/// A name in a static list is looked up this often.
const NAME_MS: u64 = 5_000;
/// The loop does not sleep longer than this.
const SLEEP_MS: u64 = 1_000;
/// Pieces of the event stream read before others have their turn.
const STREAM_PIECES_MAX: usize = 64;

pub(super) struct Keeper {
    poll: Poll,
    shared: Arc<Shared>,
    config: BalanceConfig,
    started: Instant,
    now_ms: u64,
    pool: Pool,
    published: Option<u64>,
    /// By the backend's id.
    counters: BTreeMap<String, Arc<Counters>>,
    exchanges: Slab<Exchange>,
    /// Exchanges that would go on without an event.
    again: Vec<usize>,
    engine: Option<Engine>,
    resolver: Resolver,
    /// What the file of a static list held when it was read last.
    file: Vec<String>,
    /// The addresses of our interfaces, as of the last time that they could be asked for.
    own: Vec<IpAddr>,
    look_next_ms: u64,
    status: Option<StatusServer>,
    scratch: Box<[u8]>,
}

impl Keeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        config: BalanceConfig,
        status: Option<mio::net::TcpListener>,
    ) -> io::Result<Keeper> {
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER)?);
        shared.set_keeper(Arc::clone(&waker));
        let status = status.map(|listener| StatusServer::new(poll.registry(), listener)).transpose()?;
        let seed = ahash::RandomState::new().hash_one(0u8);
        let engine = match &config.source {
            Source::Docker { location, group } => Some(Engine::new(location.clone(), group.clone(), seed)),
            _ => None,
        };
        let mut pool = Pool::new(config.check, seed);
        if engine.is_some() {
            pool.vanishing_is_death();
        }
        let mut keeper = Keeper {
            poll,
            shared,
            started: Instant::now(),
            now_ms: 0,
            pool,
            published: None,
            counters: BTreeMap::new(),
            exchanges: Slab::new(),
            again: Vec::new(),
            engine,
            resolver: Resolver::start(waker)?,
            file: Vec::new(),
            own: own_addresses().unwrap_or_default(),
            look_next_ms: 0,
            status,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
            config,
        };
        keeper.read_file().map_err(io::Error::other)?;
        Ok(keeper)
    }

    /// Runs until the last worker has ended.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while !(self.shared.is_stopping() && self.shared.workers_left.load(Ordering::Acquire) == 0) {
            self.now_ms = self.started.elapsed().as_millis() as u64;
            for report in self.shared.take_reports() {
                self.pool.connection_failed(self.now_ms, report.slot, report.failure.sentence());
            }
            self.look();
            self.ask_engine();
            self.check();
            self.expire();
            self.publish();
            let wait = if self.again.is_empty() { self.wait_ms() } else { 0 };
            match self.poll.poll(&mut events, Some(Duration::from_millis(wait))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now_ms = self.started.elapsed().as_millis() as u64;
            for key in std::mem::take(&mut self.again) {
                self.go_on(key);
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    STATUS => self
                        .with_status(|status, keeper| status.accept(keeper.poll.registry(), keeper.now_ms)),
                    Token(token) if token >= STATUS_CLIENTS => {
                        self.with_status(|status, keeper| {
                            status.go_on(token - STATUS_CLIENTS, &mut |path| pages::answer(keeper, path));
                        });
                    }
                    Token(key) => self.go_on(key),
                }
            }
        }
        Ok(())
    }

    fn with_status(&mut self, act: impl FnOnce(&mut StatusServer, &Keeper)) {
        if let Some(mut status) = self.status.take() {
            act(&mut status, self);
            self.status = Some(status);
        }
    }

    fn wait_ms(&self) -> u64 {
        let engine = self.engine.as_ref().and_then(|engine| engine.discovery.next_due_ms());
        let deadlines = self.exchanges.iter().filter_map(|(_, exchange)| exchange.deadline_ms);
        let due = deadlines.chain(engine).chain(self.pool.next_due_ms()).min().unwrap_or(u64::MAX);
        let look = if self.engine.is_none() { self.look_next_ms } else { u64::MAX };
        // Never 0: what is due but cannot be done yet must not keep the loop spinning.
        due.min(look).saturating_sub(self.now_ms).clamp(1, SLEEP_MS)
    }

    /// The list, where it does not come from an engine.
    fn look(&mut self) {
        let mut is_due = self.resolver.collect() | self.shared.look.swap(false, Ordering::AcqRel);
        is_due |= self.now_ms >= self.look_next_ms;
        if self.shared.reload.swap(false, Ordering::AcqRel) {
            is_due = true;
            match self.read_file() {
                Ok(()) => tracing::info!("reload the static list was read again"),
                Err(reason) => tracing::error!("{reason}; the backends stay as they are"),
            }
        }
        if !is_due {
            return;
        }
        self.look_next_ms = self.now_ms + LOOK_MS;
        let list = match &self.config.source {
            Source::Docker { .. } => return,
            Source::Given(_) => self.shared.given.lock().iter().map(listed_member).collect(),
            Source::Dns { name, port } => match self.resolver.look_up(name, *port, self.now_ms, LOOK_MS) {
                None => return,
                Some(answer) => listed_name(name, *port, Some(answer)),
            },
            Source::Static { backends, .. } => {
                let mut list = Vec::new();
                let texts = backends.iter().chain(&self.file);
                let pairs: Vec<_> = texts.filter_map(|text| parse_backend(text).ok()).collect();
                for (host, port) in &pairs {
                    match host.parse::<IpAddr>() {
                        Ok(ip) => {
                            list.extend(listed_name(host, *port, Some(&Ok(vec![SocketAddr::new(ip, *port)]))))
                        }
                        Err(_) => {
                            let answer = self.resolver.look_up(host, *port, self.now_ms, NAME_MS);
                            list.extend(listed_name(host, *port, answer));
                        }
                    }
                }
                self.resolver.keep_only(|host, port| pairs.iter().any(|(h, p)| h == host && *p == port));
                list
            }
        };
        let mut list: Vec<Listed> = list;
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list.dedup_by(|a, b| a.id == b.id);
        list.truncate(BACKENDS_MAX);
        self.learn_own_addresses();
        let listen = self.config.listen;
        for listed in &mut list {
            if listed.place.as_ref().is_ok_and(|address| is_self(*address, listen, &self.own)) {
                listed.place = Err("it is this balancer itself".to_owned());
            }
        }
        self.pool.sync(self.now_ms, self.now_ms, list);
    }

    /// To ask takes a descriptor: while there is none, what was known stays true. Without its own addresses a
    /// balancer would find no network that leads to its backends.
    fn learn_own_addresses(&mut self) {
        if let Ok(own) = own_addresses() {
            self.own = own;
        }
    }

    fn read_file(&mut self) -> Result<(), String> {
        let Source::Static { file: Some(path), .. } = &self.config.source else { return Ok(()) };
        let cannot = |reason: String| format!("cannot read the backends of {}: {reason}", path.display());
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| cannot(error.to_string()))?;
        let most = BACKENDS_FILE_BYTES_MAX as u64;
        file.take(most + 1).read_to_string(&mut text).map_err(|error| cannot(error.to_string()))?;
        if text.len() > BACKENDS_FILE_BYTES_MAX {
            return Err(cannot(format!("it is longer than {BACKENDS_FILE_BYTES_MAX} bytes")));
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        for line in &lines {
            parse_backend(line).map_err(cannot)?;
        }
        self.file = lines;
        Ok(())
    }

    fn check(&mut self) {
        let counters = &self.counters;
        let active = |id: &str| counters.get(id).map_or(0, |c| c.active.load(Ordering::Relaxed));
        for check in self.pool.tick(self.now_ms, &active) {
            let question = match self.config.check {
                CheckMode::Http => api::get("/healthcheck", &check.address.to_string()),
                _ => Vec::new(),
            };
            let purpose = Purpose::Check { slot: check.slot };
            let most = SMALL_ANSWER_BYTES_MAX as u64;
            match Exchange::tcp(check.address, purpose, question, most) {
                Ok(exchange) => self.start(exchange, CHECK_ANSWER_MS),
                Err(error) if is_ours(&error) => {
                    self.shared.totals.out_of_descriptors.fetch_add(1, Ordering::Relaxed);
                    self.pool.not_checked(self.now_ms, check.slot, &plain(&error));
                }
                Err(error) => self.pool.checked(self.now_ms, check.slot, Outcome::Fail(plain(&error))),
            }
        }
    }

    fn start(&mut self, mut exchange: Exchange, limit_ms: u64) {
        exchange.deadline_ms = Some(self.now_ms + limit_ms);
        let entry = self.exchanges.vacant_entry();
        let both = Interest::READABLE | Interest::WRITABLE;
        let token = Token(entry.key());
        match self.poll.registry().register(exchange.stream.source(), token, both) {
            Ok(()) => {
                // A UNIX socket is connected already and makes no event for it.
                self.again.push(entry.key());
                entry.insert(exchange);
            }
            Err(error) => self.finish(exchange, Err(plain(&error))),
        }
    }

    fn go_on(&mut self, key: usize) {
        for _ in 0..STREAM_PIECES_MAX {
            let Some(exchange) = self.exchanges.get_mut(key) else { return };
            let progress = exchange.go_on(&mut self.scratch);
            if exchange.purpose == Purpose::Events && progress == Ok(Progress::Waiting) {
                let had_some = !exchange.body.is_empty();
                match self.stream_went_on(key) {
                    Ok(()) if had_some => continue,
                    Ok(()) => return,
                    Err(reason) => {
                        let exchange = self.exchanges.remove(key);
                        return self.finish(exchange, Err(reason));
                    }
                }
            }
            let result = match progress {
                Ok(Progress::Waiting) => return,
                Ok(Progress::Done(head)) => Ok(head),
                Err(reason) => Err(reason),
            };
            let exchange = self.exchanges.remove(key);
            return self.finish(exchange, result);
        }
        self.again.push(key);
    }

    fn expire(&mut self) {
        let late: Vec<usize> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms))
            .map(|(key, _)| key)
            .collect();
        for key in late {
            let exchange = self.exchanges.remove(key);
            self.finish(exchange, Err("no answer in time".to_owned()));
        }
        let now_ms = self.now_ms;
        self.with_status(|status, keeper| {
            status.expire(now_ms);
            // The edge of those that wait has passed.
            if status.is_stalled() {
                status.accept(keeper.poll.registry(), now_ms);
            }
        });
    }

    /// An exchange has ended, well or not. Its connection closes here.
    fn finish(&mut self, exchange: Exchange, result: Result<super::core::response::Head, String>) {
        match exchange.purpose {
            Purpose::Check { slot } => {
                let outcome = match result {
                    // Without a question there is no head: to connect was all.
                    Ok(head) if head.status == 0 || (200..400).contains(&head.status) => Outcome::Pass,
                    Ok(head) if head.status == 503 => Outcome::Busy,
                    Ok(head) => Outcome::Fail(format!("its check answers {}", head.status)),
                    Err(reason) => Outcome::Fail(reason),
                };
                self.pool.checked(self.now_ms, slot, outcome);
            }
            purpose => self.engine_answered(&purpose, result, &exchange.body),
        }
    }

    /// Makes the routes known, if they have changed.
    fn publish(&mut self) {
        let revision = self.pool.revision();
        if self.published == Some(revision) {
            return;
        }
        self.published = Some(revision);
        let mut members = self.shared.members.lock();
        for backend in self.pool.backends() {
            let before = members.iter().find(|member: &&MemberState| member.id == backend.id);
            let is_news = |before: &MemberState| {
                before.state != backend.state.name()
                    || backend.state == State::Unreachable && before.reason != backend.reason
            };
            if before.is_none_or(is_news) {
                let (name, state, reason) = (&backend.name, backend.state.name(), &backend.reason);
                match backend.state {
                    State::Down | State::Unreachable => tracing::warn!("backend {name} is {state}: {reason}"),
                    _ => tracing::info!("backend {name} is {state}: {reason}"),
                }
            }
        }
        for gone in members.iter().filter(|m| !self.pool.backends().any(|backend| backend.id == m.id)) {
            tracing::info!("backend {} is gone", gone.name);
        }
        *members = self.pool.backends().map(MemberState::of).collect();
        drop(members);
        self.counters.retain(|id, _| self.pool.backends().any(|backend| backend.id == *id));
        let routes = self.pool.routes();
        let counters = std::array::from_fn(|tier| {
            let targets: &Vec<super::core::pick::Target> = &routes.tiers[tier];
            targets
                .iter()
                .map(|target| Arc::clone(self.counters.entry(target.id.clone()).or_default()))
                .collect()
        });
        self.shared.publish(Table { counters, dead: self.pool.dead(), routes });
    }
}

/// The addresses of this machine's, or this container's, interfaces, loopback aside.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.iter().filter(|one| !one.is_loopback()).map(if_addrs::Interface::ip).collect())
}

/// A backend that leads back to the balancer would connect in circles until no descriptor is left.
fn is_self(address: SocketAddr, listen: SocketAddr, own: &[IpAddr]) -> bool {
    let here = address.ip().is_loopback() || address.ip().is_unspecified() || own.contains(&address.ip());
    let reached = if listen.ip().is_unspecified() { here } else { listen.ip() == address.ip() };
    address.port() == listen.port() && reached
}

fn listed_member(member: &Member) -> Listed {
    Listed {
        id: member.name.clone(),
        name: member.name.clone(),
        place: Ok(member.address),
        condition: Condition::Running,
        health: Health::None,
        started: None,
    }
}

/// One entry of a list: a backend for each of its addresses, or one that says why there is none.
fn listed_name(host: &str, port: u16, answer: Option<&resolver::Answer>) -> Vec<Listed> {
    let one = |id: String, place| Listed {
        name: id.clone(),
        id,
        place,
        condition: Condition::Running,
        health: Health::None,
        started: None,
    };
    match answer {
        Some(Ok(addresses)) => {
            addresses.iter().map(|address| one(address.to_string(), Ok(*address))).collect()
        }
        Some(Err(reason)) => {
            vec![one(format!("{host}:{port}"), Err(format!("its name cannot be resolved: {reason}")))]
        }
        None => vec![one(format!("{host}:{port}"), Err("its name is being looked up".to_owned()))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_is_the_balancer_itself_is_recognised() {
        let own: [IpAddr; 1] = [[10, 0, 0, 5].into()];
        for (address, listen, ours) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:81", "127.0.0.1:80", false),
            ("10.0.0.5:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("10.0.0.6:80", "0.0.0.0:80", false),
            ("10.0.0.5:80", "127.0.0.1:80", false),
        ] {
            assert_eq!(
                is_self(address.parse().unwrap(), listen.parse().unwrap(), &own),
                ours,
                "{address} {listen}"
            );
        }
    }
}
