//! What an engine alone can show; requests and answers as bytes are in `tests/http.rs` and `tests/session.rs`.

use super::{Engine, StartedOver};
use crate::base::clock::Now;
use crate::base::version::Incarnation;
use crate::config::AckLevel;
use crate::http::session::Session;
use crate::mesh::MeshConfig;
use crate::node::extension::{Extensions, Observer, RequestEvent};
use crate::node::metrics::{Cell, ProcessFacts};
use crate::node::routes::Route;
use crate::node::{Connection, Node, Settings};
use crate::store::{MemoryStore, StoreConfig};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;

struct Nobody;

impl Connection for Nobody {
    fn local_address(&self) -> Option<SocketAddr> {
        None
    }
}

fn engine(now: Now, extensions: Extensions) -> Engine<MemoryStore> {
    let settings = Settings {
        name: "n".to_owned(),
        port: 8080,
        max_key_chars: 64,
        max_value_chars: 256,
        acks: AckLevel::All,
        cors_origin: None,
        workers: 1,
        max_connections: 100,
    };
    let store = StoreConfig { stripes: 4, memory_limit_bytes: 1 << 30, seed: Some(1) };
    let store = MemoryStore::new(store).expect("a store");
    let node =
        Node::new(store, settings, MeshConfig::alone(Incarnation(1)), now, extensions, ProcessFacts::default);
    Engine::new(Arc::new(node), 0)
}

fn ask(engine: &mut Engine<MemoryStore>, session: &mut Session, target: &str, now: Now) -> Vec<u8> {
    send(engine, session, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), now)
}

/// A turn with these bytes of one connection.
fn send(engine: &mut Engine<MemoryStore>, session: &mut Session, text: &str, now: Now) -> Vec<u8> {
    engine.begin(now);
    engine.slot(&[])[..text.len()].copy_from_slice(text.as_bytes());
    engine.ingest(session, text.len(), &Nobody, true);
    engine.execute();
    engine.answers_of(0).to_vec()
}

/// Goal: half of a listing is never taken for the whole. Method: a listing of more than one step is begun, the node
/// starts over, and the listing is to go on.
#[test]
fn a_listing_does_not_go_on_in_the_next_lifetime() {
    let now = Now { wall_ms: 1_700_000_000_000, mono_ns: 1 };
    let mut engine = engine(now, Extensions::new());
    let mut session = Session::new();
    for number in 0..3 * crate::limits::LISTING_RECORDS_PER_TURN {
        let answer = ask(&mut engine, &mut session, &format!("/set?k=k{number}&v=v&w=local"), now);
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    let _ = ask(&mut engine, &mut session, "/getAll", now);
    let mut listing = engine.turn(0).listing.take().expect("more than one step");
    let mut out = Vec::new();
    assert_eq!(engine.continue_listing(&mut listing, now, &mut out), Ok(false));
    engine.node().mesh.start_over();
    engine.begin(now);
    out.clear();
    assert_eq!(engine.continue_listing(&mut listing, now, &mut out), Err(StartedOver));
    assert!(out.is_empty());
}

#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Observer for Diary {
    fn request_started(&self, request: RequestEvent<'_>) {
        self.0.lock().push(format!("start {} {}", request.serial, request.path));
    }

    fn request_completed(&self, request: RequestEvent<'_>, status: u16) {
        self.0.lock().push(format!("complete {} {} {status}", request.serial, request.path));
    }

    fn request_ended(&self, request: RequestEvent<'_>) {
        self.0.lock().push(format!("end {} {}", request.serial, request.path));
    }
}

/// Goal: `100 Continue` is no request, neither to observers nor in the metrics. Method: requests that ask for it,
/// among others, whose answers leave with their turn in the first round and later in the second.
#[test]
fn what_is_said_before_an_answer_is_no_request() {
    let now = Now { wall_ms: 1_700_000_000_000, mono_ns: 1 };
    let (extensions, diary) = (Extensions::new(), Diary::default());
    extensions.observe(diary.clone());
    let mut engine = engine(now, extensions);
    let mut session = Session::new();
    let polite = "GET /is?k=a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx";
    let plain = "GET /get?k=a HTTP/1.1\r\nHost: h\r\n\r\n";
    for round in 0..2 {
        let answers = send(&mut engine, &mut session, &[polite, plain, polite].concat(), now);
        let answers = String::from_utf8(answers).expect("text");
        assert_eq!(answers.matches("HTTP/1.1 100 ").count(), 2, "{answers}");
        assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 3, "{answers}");
        engine.record_duration(1000);
        match round {
            0 => engine.ended(0),
            _ => engine.ended_late(&engine.unended(0)),
        }
        let first = 3 * round;
        let paths = [(first, "/is"), (first + 1, "/get"), (first + 2, "/is")];
        let of = |word: &str, end: &str| paths.map(|(serial, path)| format!("{word} {serial} {path}{end}"));
        let expected = [of("start", ""), of("complete", " 404"), of("end", "")].concat();
        assert_eq!(std::mem::take(&mut *diary.0.lock()), expected);
    }
    for (route, count) in [(Route::Is, 4), (Route::Get, 2)] {
        let [commands, durations] = [
            &engine.metrics().commands[route as usize][..],
            &engine.metrics().durations[route as usize].buckets[..],
        ];
        let sum = |cells: &[Cell]| cells.iter().map(Cell::get).sum::<u64>();
        assert_eq!((sum(commands), sum(durations)), (count, count), "{route:?}");
    }
}
