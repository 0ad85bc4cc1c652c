//! What an engine alone can show; requests and answers as bytes are in `tests/http.rs` and `tests/session.rs`.

use super::{Engine, StartedOver};
use crate::base::clock::Now;
use crate::base::version::Incarnation;
use crate::config::AckLevel;
use crate::http::session::Session;
use crate::mesh::MeshConfig;
use crate::node::extension::Extensions;
use crate::node::metrics::ProcessFacts;
use crate::node::{Connection, Node, Settings};
use crate::store::{MemoryStore, StoreConfig};
use std::net::SocketAddr;
use std::sync::Arc;

struct Nobody;

impl Connection for Nobody {
    fn local_address(&self) -> Option<SocketAddr> {
        None
    }
}

fn engine(now: Now) -> Engine<MemoryStore> {
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
    let node = Node::new(
        store,
        settings,
        MeshConfig::alone(Incarnation(1)),
        now,
        Extensions::new(),
        ProcessFacts::default,
    );
    Engine::new(Arc::new(node), 0)
}

fn ask(engine: &mut Engine<MemoryStore>, session: &mut Session, target: &str, now: Now) -> Vec<u8> {
    let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
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
    let mut engine = engine(now);
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
