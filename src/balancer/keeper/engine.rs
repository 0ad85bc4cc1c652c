//! The engine, as the keeper asks it.

use super::Keeper;
use super::exchange::{Exchange, Purpose, plain};
use crate::balancer::core::api::{self, ApiVersion, Location};
use crate::balancer::core::containers::{Group, find_group, parse_list};
use crate::balancer::core::discovery::{Ask, Discovery};
use crate::balancer::core::events::{Action, Event, EventStream, Found};
use crate::balancer::core::pool::Act;
use crate::balancer::core::response::Head;
use crate::limits::{ENGINE_ANSWER_MS, ENGINE_LIST_BYTES_MAX, SMALL_ANSWER_BYTES_MAX};
use std::io;

/// The time between two lookups of an engine's name.
const NAME_MS: u64 = 1_000;
/// Events are asked for from so many seconds before the engine's clock, which is only exact to one.
const SINCE_SECONDS: u64 = 2;

pub(super) struct Engine {
    pub(super) location: Location,
    pub(super) group: Group,
    pub(super) discovery: Discovery,
    pub(super) version: Option<ApiVersion>,
    /// Where the events begin, by the engine's clock.
    since: Option<u64>,
    stream: EventStream,
    /// Why it cannot be asked at present.
    pub(super) fault: Option<String>,
    /// What should be known of how the group was found.
    pub(super) remark: Option<String>,
    pub(super) listed_ms: Option<u64>,
}

impl Engine {
    pub(super) fn new(location: Location, group: Group, seed: u64) -> Engine {
        Engine {
            location,
            group,
            discovery: Discovery::new(0, seed),
            version: None,
            since: None,
            stream: EventStream::new(),
            fault: None,
            remark: None,
            listed_ms: None,
        }
    }

    fn now_at_fault(&mut self, reason: String) {
        if self.fault.as_ref() != Some(&reason) {
            tracing::warn!("engine {}: {reason}; the backends stay as they are", self.location);
            self.fault = Some(reason);
        }
    }

    fn now_fine(&mut self) {
        if self.fault.take().is_some() {
            tracing::info!("engine {}: it answers again", self.location);
        }
    }
}

impl Keeper {
    /// Starts the exchanges with the engine that are due.
    pub(super) fn ask_engine(&mut self) {
        let Some(mut engine) = self.engine.take() else { return };
        for ask in engine.discovery.due(self.now_ms) {
            let host = match &engine.location {
                Location::Unix(_) => "docker".to_owned(),
                Location::Tcp(authority) => authority.clone(),
            };
            let version = engine.version.unwrap_or(ApiVersion::LEAST);
            let (purpose, question, most) = match ask {
                Ask::Version => {
                    (Purpose::Version, api::version_request(&host), SMALL_ANSWER_BYTES_MAX as u64)
                }
                Ask::List => {
                    let purpose = Purpose::List { asked_ms: self.now_ms };
                    (purpose, api::list_request(version, &host), ENGINE_LIST_BYTES_MAX as u64)
                }
                Ask::Events => {
                    engine.stream = EventStream::new();
                    (Purpose::Events, api::events_request(version, engine.since, &host), u64::MAX)
                }
            };
            let exchange = self.connect(&engine.location, purpose.clone(), question, most);
            // The exchange may end at once, and then looks for the engine.
            self.engine = Some(engine);
            match exchange {
                Ok(exchange) => self.start(exchange, ENGINE_ANSWER_MS),
                Err(reason) => self.engine_answered(&purpose, Err(reason), &[]),
            }
            match self.engine.take() {
                Some(back) => engine = back,
                None => return,
            }
        }
        self.engine = Some(engine);
    }

    fn connect(
        &mut self,
        location: &Location,
        purpose: Purpose,
        question: Vec<u8>,
        most: u64,
    ) -> Result<Exchange, String> {
        match location {
            Location::Unix(path) => {
                Exchange::unix(path, purpose, question, most).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => {
                        "there is no such socket: is it mounted into the container?".to_owned()
                    }
                    io::ErrorKind::PermissionDenied => {
                        "this user may not open the socket: run as its owner or in its group".to_owned()
                    }
                    io::ErrorKind::ConnectionRefused => {
                        "nobody listens on the socket: is the engine running?".to_owned()
                    }
                    _ => plain(&error),
                })
            }
            Location::Tcp(authority) => {
                let (host, port) = crate::balancer::config::parse_backend(authority)?;
                let address = match host.parse() {
                    Ok(ip) => std::net::SocketAddr::new(ip, port),
                    Err(_) => match self.resolver.look_up(&host, port, self.now_ms, NAME_MS) {
                        Some(Ok(addresses)) => *addresses.first().ok_or("the name has no address")?,
                        Some(Err(reason)) => return Err(format!("its name cannot be resolved: {reason}")),
                        None => return Err("its name is being looked up".to_owned()),
                    },
                };
                Exchange::tcp(address, purpose, question, most).map_err(|error| plain(&error))
            }
        }
    }

    /// An exchange with the engine has ended.
    pub(super) fn engine_answered(&mut self, purpose: &Purpose, result: Result<Head, String>, body: &[u8]) {
        let now_ms = self.now_ms;
        if matches!(purpose, Purpose::List { .. }) {
            self.learn_own_addresses();
        }
        let Some(engine) = &mut self.engine else { return };
        let result = result.and_then(|head| match head.status {
            200 => Ok(head),
            400 if *purpose != Purpose::Version => {
                engine.discovery.version_refused(now_ms);
                Err(complaint(&head, body))
            }
            _ => Err(complaint(&head, body)),
        });
        match (purpose, result) {
            (Purpose::Version, Ok(head)) => match api::choose_version(body) {
                Ok(version) => {
                    if engine.version.replace(version) != Some(version) {
                        tracing::info!("engine {}: API {version}", engine.location);
                    }
                    engine.since = head.date.map(|date| date.saturating_sub(SINCE_SECONDS));
                    engine.discovery.version_agreed(now_ms);
                }
                Err(reason) => {
                    engine.discovery.version_failed(now_ms);
                    engine.now_at_fault(reason);
                }
            },
            (Purpose::Version, Err(reason)) => {
                engine.discovery.version_failed(now_ms);
                engine.now_at_fault(reason);
            }
            (Purpose::List { asked_ms }, Ok(head)) => match parse_list(body) {
                Some(containers) => {
                    engine.discovery.listed(now_ms);
                    engine.listed_ms = Some(now_ms);
                    engine.now_fine();
                    // A stream that is opened anew begins where the last list was made.
                    engine.since = head.date.map(|date| date.saturating_sub(SINCE_SECONDS)).or(engine.since);
                    let port = self.config.listen.port();
                    let found = find_group(&containers, &engine.group, &self.own, port, head.date);
                    if engine.remark != found.remark {
                        if let Some(remark) = &found.remark {
                            tracing::warn!("{remark}");
                        }
                        engine.remark = found.remark;
                    }
                    self.pool.sync(now_ms, *asked_ms, found.listed);
                }
                None => {
                    engine.discovery.list_failed(now_ms);
                    engine.now_at_fault("its list of containers is not understood".to_owned());
                }
            },
            (Purpose::List { .. }, Err(reason)) => {
                engine.discovery.list_failed(now_ms);
                engine.now_at_fault(format!("its list of containers cannot be read: {reason}"));
            }
            (Purpose::Events, result) => {
                engine.discovery.stream_closed(now_ms);
                let reason = result.err().unwrap_or_else(|| "it ended".to_owned());
                tracing::debug!("engine {}: event stream: {reason}", engine.location);
            }
            (Purpose::Check { .. }, _) => {}
        }
    }

    /// The event stream has brought its head, or more of its body.
    pub(super) fn stream_went_on(&mut self, key: usize) -> Result<(), String> {
        let now_ms = self.now_ms;
        let exchange = &mut self.exchanges[key];
        let Some(engine) = &mut self.engine else { return Ok(()) };
        match exchange.reader.head() {
            Some(head) if head.status == 200 && exchange.deadline_ms.is_some() => {
                exchange.deadline_ms = None;
                engine.discovery.stream_opened(now_ms);
                tracing::debug!("engine {}: event stream open", engine.location);
            }
            Some(head) if head.status == 200 => {}
            // An error's body is read to its end.
            _ => return Ok(()),
        }
        let body = std::mem::take(&mut exchange.body);
        let pool = &mut self.pool;
        let discovery = &mut engine.discovery;
        let read = engine.stream.feed(&body, |found| {
            let Found::Event(Event { container, action, time_ns }) = found else {
                return discovery.event(now_ms);
            };
            let act = match action {
                Action::Irrelevant => return,
                Action::Changed => None,
                Action::StopSignal => Some(Act::StopSignal { time_ns }),
                Action::Die => Some(Act::Die),
                Action::Pause => Some(Act::Pause),
                Action::Start => Some(Act::Start),
            };
            if let Some(act) = act {
                pool.act(now_ms, &container, act);
            }
            discovery.event(now_ms);
        });
        read.map_err(|_| "its event stream is not JSON".to_owned())
    }
}

/// What an engine, or what stands before it, says when it refuses.
fn complaint(head: &Head, body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = value.as_ref().and_then(|value| value["message"].as_str()).unwrap_or("");
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    let colon = if message.is_empty() { "" } else { ": " };
    format!("it answers {}{colon}{message}", head.status)
}
