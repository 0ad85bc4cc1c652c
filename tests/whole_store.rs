//! Goal: what can only be seen of a whole store: clear, listings, paged walks. Method: a fresh node for each
//! test; with `SERVICE_URL`, that server, emptied first and used by one test at a time. Behind a proxy each
//! connection may reach another node, so a test keeps to one, or asks through many what all must agree on.
//! A binary of its own: cargo runs test binaries one after the other, and a clear would disturb the others.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use support::{Client, Node, service};

const SUCCESS: &str = r#"{"success":true}"#;

/// An empty store that nobody else uses while this lives.
struct WholeStore {
    address: String,
    _node: Option<Node>,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl WholeStore {
    fn take(arguments: &[&str]) -> WholeStore {
        static TURN: Mutex<()> = Mutex::new(());
        let Some(address) = service() else {
            let node = Node::start(arguments);
            return WholeStore { address: node.address.clone(), _node: Some(node), _turn: None };
        };
        // A test that failed has no say over the others: each empties the store itself.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(Client::connect(&address).get("/clear").body, SUCCESS);
        WholeStore { address, _node: None, _turn: Some(turn) }
    }
}

#[test]
fn listings_of_ten_records_saved_twice() {
    let store = WholeStore::take(&[]);
    let mut client = Client::connect(&store.address);
    for route in ["/getKeys", "/getValues", "/getAll"] {
        let answer = client.get(route);
        assert_eq!((answer.status, answer.body.as_str()), (200, "[]"));
        assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"));
    }
    for _ in 0..2 {
        for n in 0..10 {
            client.get(&format!("/set?k=k{n}&v=v%22{n}"));
        }
    }
    let sorted = |body: &str| {
        let mut list: Vec<serde_json::Value> = serde_json::from_str(body).expect("JSON");
        list.sort_by_key(ToString::to_string);
        list
    };
    let keys: Vec<_> = (0..10).map(|n| serde_json::json!(format!("k{n}"))).collect();
    let values: Vec<_> = (0..10).map(|n| serde_json::json!(format!("v\"{n}"))).collect();
    let all: Vec<_> =
        (0..10).map(|n| serde_json::json!({"k": format!("k{n}"), "v": format!("v\"{n}")})).collect();
    assert_eq!(sorted(&client.get("/getKeys").body), keys);
    assert_eq!(sorted(&client.get("/getValues").body), values);
    assert_eq!(sorted(&client.get("/getAll").body), all);
    assert!(client.get("/status").body.contains("\"availableRecords\":10"));
    let lines = client.get("/getAll?format=ndjson");
    assert_eq!(lines.header("Content-Type"), Some("application/x-ndjson"));
    let parsed: Result<Vec<serde_json::Value>, _> = lines.body.lines().map(serde_json::from_str).collect();
    assert_eq!(parsed.expect("one JSON value a line").len(), 10);
    // HTTP/1.0: no chunks, ended by the end of the connection.
    let mut old = Client::connect(&store.address);
    let answer = old.request("GET /getKeys HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((answer.header("Transfer-Encoding"), answer.header("Connection")), (None, Some("close")));
    assert_eq!(sorted(&answer.body), keys);
    let head = client.request("HEAD /getAll HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(head.status, 200);
    // Pipelined behind a listing.
    client.send("GET /getKeys HTTP/1.1\r\nHost: x\r\n\r\nGET /get?k=k1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(sorted(&client.answer().body), keys);
    assert_eq!(client.answer().body, "\"v\\\"1\"");
    assert_eq!(client.get("/clear").body, SUCCESS);
    assert_eq!(client.get("/getAll").body, "[]");
    assert_eq!(client.get("/get?k=k1").status, 404);
    assert!(client.get("/status").body.contains("\"availableRecords\":0"));
}

#[test]
fn pages_add_up_to_the_whole_and_prefixes_narrow_it() {
    let store = WholeStore::take(&["--workers", "1"]);
    let mut client = Client::connect(&store.address);
    let mut requests = String::new();
    for n in 0..5000 {
        requests += &format!("GET /set?k=page%2F{n}&v={n} HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let mut writer = client.stream.try_clone().expect("cloned");
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, requests.as_bytes()));
    for _ in 0..5000 {
        assert_eq!(client.answer().status, 200);
    }
    sender.join().expect("joined").expect("written");
    let mut seen = BTreeMap::new();
    let mut cursor = String::new();
    let mut pages = 0;
    loop {
        let answer = client.get(&format!("/getAll?limit=333{cursor}"));
        let list: Vec<BTreeMap<String, String>> = serde_json::from_str(&answer.body).expect("JSON");
        assert!(list.len() <= 333);
        for record in list {
            assert!(seen.insert(record["k"].clone(), record["v"].clone()).is_none(), "listed twice");
        }
        pages += 1;
        // Growth between pages must not disturb the walk.
        for n in 0..50 {
            client.get(&format!("/set?k=new{pages}x{n}&v=1"));
        }
        match answer.header("X-Next-Cursor") {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let paged: BTreeSet<&String> = seen.keys().filter(|key| key.starts_with("page/")).collect();
    assert_eq!(paged.len(), 5000);
    let streamed: Vec<String> =
        serde_json::from_str(&client.get("/getKeys?prefix=page%2F49").body).expect("JSON");
    assert_eq!(streamed.len(), 111);
    let limited: Vec<String> =
        serde_json::from_str(&client.get("/getKeys?prefix=page%2F49&limit=7").body).expect("JSON");
    assert_eq!(limited.len(), 7);
    let whole: Vec<String> = serde_json::from_str(&client.get("/getValues").body).expect("JSON");
    assert_eq!(whole.len(), 5000 + pages * 50);
}

#[test]
fn every_connection_sees_what_another_one_wrote_and_cleared() {
    let store = WholeStore::take(&[]);
    // A connection for each request: through a proxy, another node for each.
    let get = |target: &str| Client::connect(&store.address).get(target);
    for round in 0..3 {
        for n in 0..10 {
            assert_eq!(get(&format!("/set?k=k{n}&v={round}")).body, SUCCESS);
        }
        for _ in 0..4 {
            let keys: BTreeSet<String> = serde_json::from_str(&get("/getKeys").body).expect("JSON");
            assert_eq!(keys, (0..10).map(|n| format!("k{n}")).collect(), "round {round}");
            let values: Vec<String> = serde_json::from_str(&get("/getValues").body).expect("JSON");
            assert_eq!(values, vec![round.to_string(); 10]);
        }
        assert_eq!(get("/clear").body, SUCCESS);
        for _ in 0..4 {
            assert_eq!(get("/getAll").body, "[]", "round {round}");
            assert_eq!(get("/get?k=k1").status, 404);
        }
    }
}
