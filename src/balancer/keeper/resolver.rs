//! Names to addresses, on a thread of its own: the system's resolver waits for the network.

use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// Questions under way; the keeper asks each name once at a time.
const QUESTIONS_MAX: usize = 1024;

pub(super) type Answer = Result<Vec<SocketAddr>, String>;

/// Asks and remembers. Dropping it ends its thread, once that has its answer.
#[derive(Debug)]
pub(super) struct Resolver {
    questions: Sender<(String, u16)>,
    answers: Receiver<((String, u16), Answer)>,
    known: BTreeMap<(String, u16), Known>,
}

#[derive(Debug, Default)]
struct Known {
    asked_ms: Option<u64>,
    under_way: bool,
    answer: Option<Answer>,
}

impl Resolver {
    pub(super) fn start(waker: Arc<mio::Waker>) -> std::io::Result<Resolver> {
        let (questions, asked) = bounded::<(String, u16)>(QUESTIONS_MAX);
        let (answered, answers) = bounded(QUESTIONS_MAX);
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            for (host, port) in asked {
                let found = (host.as_str(), port).to_socket_addrs();
                let found =
                    found.map(|addresses| addresses.collect::<Vec<_>>()).map_err(|error| error.to_string());
                let found = found.and_then(|addresses| match addresses.is_empty() {
                    true => Err("the name has no address".to_owned()),
                    false => Ok(addresses),
                });
                if answered.send(((host, port), found)).is_err() {
                    return;
                }
                let _ = waker.wake();
            }
        })?;
        Ok(Resolver { questions, answers, known: BTreeMap::new() })
    }

    /// The last answer, if there is one; asks again when it is as old as this.
    pub(super) fn look_up(&mut self, host: &str, port: u16, now_ms: u64, every_ms: u64) -> Option<&Answer> {
        let key = (host.to_owned(), port);
        let known = self.known.entry(key.clone()).or_default();
        let is_due = known.asked_ms.is_none_or(|asked| now_ms >= asked + every_ms);
        if is_due && !known.under_way && self.questions.try_send(key).is_ok() {
            known.asked_ms = Some(now_ms);
            known.under_way = true;
        }
        known.answer.as_ref()
    }

    /// Takes in what has been answered; whether there was anything.
    pub(super) fn collect(&mut self) -> bool {
        let mut any = false;
        for (key, answer) in self.answers.try_iter() {
            let known = self.known.entry(key).or_default();
            known.under_way = false;
            // A name server that is away for a moment takes nothing back.
            if answer.is_ok() || known.answer.as_ref().is_none_or(Result::is_err) {
                known.answer = Some(answer);
            }
            any = true;
        }
        any
    }

    /// Names that nobody asks for any more are forgotten.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&str, u16) -> bool) {
        self.known.retain(|(host, port), known| known.under_way || wanted(host, *port));
    }
}
