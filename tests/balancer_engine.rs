//! Goal: whatever an engine does, the balancer follows its list, keeps what it has while there is none, says
//! what is wrong, and never ends. Method: `meshkv balance` as a process, a scripted engine, backends on
//! addresses of loopback.

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};
use support::balance::Balance;
use support::engine::{Engine, Manner};

const SOON: Duration = Duration::from_secs(20);
/// Containers' hosts are 127.0.0.2 and up, all on one port.
const HOSTS: u8 = 4;

/// Servers that say they are healthy, on the port that all of them have.
fn backends() -> u16 {
    'port: loop {
        let first = TcpListener::bind("127.0.0.2:0").expect("binds");
        let port = first.local_addr().expect("bound").port();
        let mut listeners = vec![first];
        for host in 3..2 + HOSTS {
            match TcpListener::bind((format!("127.0.0.{host}").as_str(), port)) {
                Ok(listener) => listeners.push(listener),
                // Somebody has this port there.
                Err(_) => continue 'port,
            }
        }
        for listener in listeners {
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    std::thread::spawn(move || {
                        let mut request = [0; 4096];
                        let _ = stream.read(&mut request);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    });
                }
            });
        }
        return port;
    }
}

fn container(id: &str, host: u8, service: &str, state: &str) -> Value {
    json!({"Id": id, "Names": [format!("/{id}")], "State": state, "Status": "Up 2 minutes",
        "Labels": {"com.docker.compose.service": service, "com.docker.compose.project": "p"},
        "NetworkSettings": {"Networks": {"other": {"IPAddress": "10.255.255.1", "IPPrefixLen": 16},
            "p_net": {"IPAddress": format!("127.0.0.{host}"), "IPPrefixLen": 8}}}})
}

fn running(id: &str, host: u8) -> Value {
    container(id, host, "db", "running")
}

struct Scene {
    engine: Engine,
    balance: Balance,
}

impl Scene {
    fn start(prepare: impl FnOnce(&Engine)) -> Scene {
        let engine = Engine::start();
        prepare(&engine);
        Scene::with(engine)
    }

    fn with(engine: Engine) -> Scene {
        let port = backends().to_string();
        let balance = Balance::start(
            &["--group-port", &port],
            &[
                ("DOCKER_API_LOCATION", &engine.location()),
                ("GROUP_NAME", "db"),
                ("GROUP_NETWORK", "net"),
                ("MESHKV_LOG_LEVEL", "debug"),
            ],
        );
        Scene { engine, balance }
    }

    #[track_caller]
    fn is(&self, wanted: &[(&str, &str)]) {
        self.balance.becomes(SOON, wanted);
    }

    #[track_caller]
    fn has_stream(&self) {
        eventually("the stream is open", || self.balance.page()["source"]["stream"] == true);
    }

    #[track_caller]
    fn serves(&self) {
        assert_eq!(support::Client::connect(&self.balance.address).get("/").status, 200);
    }
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < SOON, "not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn containers_come_pause_and_go_and_only_three_things_are_ever_asked() {
    let scene = Scene::start(|engine| {
        engine.set(&[running("a", 2), container("w", 3, "web", "running")]);
    });
    scene.is(&[("a", "up")]);
    scene.serves();
    scene.engine.set(&[running("a", 2), running("b", 3)]);
    scene.engine.emit("start", "b");
    scene.is(&[("a", "up"), ("b", "up")]);
    scene.engine.set(&[running("a", 2), container("b", 3, "db", "paused")]);
    scene.engine.emit("pause", "b");
    scene.is(&[("a", "up"), ("b", "paused")]);
    scene.engine.set(&[running("a", 2), running("b", 3)]);
    scene.engine.emit("unpause", "b");
    scene.is(&[("a", "up"), ("b", "up")]);
    scene.engine.set(&[running("b", 4)]);
    scene.engine.emit("die", "a");
    scene.is(&[("b", "up")]);
    assert!(scene.balance.page()["backends"][0]["address"].as_str().expect("one").starts_with("127.0.0.4:"));
    for request in scene.engine.requests() {
        let target = request.split(' ').nth(1).expect("a target");
        let path = target.split('?').next().expect("a path");
        assert!(["/version", "/v1.41/containers/json", "/v1.41/events"].contains(&path), "{request}");
        assert!(request.starts_with("GET "), "{request}");
    }
}

#[test]
fn what_events_say_takes_effect_without_a_list() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2), running("b", 3), running("c", 4)]));
    scene.is(&[("a", "up"), ("b", "up"), ("c", "up")]);
    scene.has_stream();
    scene.engine.lists(Manner::Hang);
    scene.engine.emit("kill", "a");
    scene.engine.emit("pause", "b");
    scene.engine.emit("die", "c");
    scene.is(&[("a", "draining"), ("b", "paused"), ("c", "draining")]);
    let refused = support::Client::connect(&scene.balance.address).get("/");
    assert_eq!(refused.status, 503, "nobody is left to route to");
}

#[test]
fn a_client_is_not_left_hanging_on_a_container_that_is_dead() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2), running("b", 3)]));
    scene.is(&[("a", "up"), ("b", "up")]);
    scene.has_stream();
    // The backends wait for a request that does not come.
    let mut held: Vec<_> =
        (0..2).map(|_| std::net::TcpStream::connect(&scene.balance.address).expect("connects")).collect();
    let active = |name: &str| {
        let page = scene.balance.page();
        let all = page["backends"].as_array().expect("a list").clone();
        all.iter().find(|one| one["name"] == name).expect("known")["active"].as_u64().expect("a number")
    };
    eventually("both are connected", || active("a") + active("b") == 2);
    // A machine that is gone sends no reset: only the engine knows. The one by its event, the other by a list.
    scene.engine.emit("die", "a");
    scene.engine.set(&[]);
    for client in &mut held {
        client.set_read_timeout(Some(SOON)).expect("set");
        let error = client.read(&mut [0; 1]).expect_err("nothing was sent");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_signal_that_is_not_a_stop_changes_nothing() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2), running("b", 3)]));
    scene.is(&[("a", "up"), ("b", "up")]);
    scene.has_stream();
    scene.engine.emit_in(usize::MAX, "container", "kill", "a", json!({"signal": "1"}));
    scene.engine.lists(Manner::Hang);
    scene.engine.emit("pause", "b");
    // Sent later, so by now the other has been read as well.
    scene.is(&[("a", "up"), ("b", "paused")]);
}

#[test]
fn events_arrive_in_any_pieces_and_huge_ones_only_ask_for_a_list() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2)]));
    scene.is(&[("a", "up")]);
    for piece in [1, 3, 17] {
        scene.has_stream();
        scene.engine.lists(Manner::Hang);
        scene.engine.emit_in(piece, "container", "pause", "a", json!({"note": "}{\"\\"}));
        scene.is(&[("a", "paused")]);
        scene.engine.lists(Manner::Well);
        scene.engine.emit_in(piece, "container", "unpause", "a", json!({}));
        scene.is(&[("a", "up")]);
    }
    let before = scene.engine.open_streams();
    let lists = scene.engine.asked("/containers/json");
    scene.engine.emit_in(60_000, "container", "start", "x", json!({"note": "n".repeat(400_000)}));
    eventually("a list is asked for", || scene.engine.asked("/containers/json") > lists);
    scene.engine.emit("pause", "a");
    scene.is(&[("a", "up")]);
    assert_eq!(scene.engine.open_streams(), before, "the stream goes on behind it");
}

#[test]
fn what_no_event_told_is_found_by_the_next_list() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2)]));
    scene.is(&[("a", "up")]);
    scene.has_stream();
    // The engine's ring of events has overflowed, say.
    scene.engine.set(&[running("b", 3)]);
    scene.is(&[("b", "up")]);
    // Repeated and in a wrong order: the list has the last word.
    for action in ["start", "die", "kill", "pause", "start", "die", "kill", "die", "unpause", "pause"] {
        scene.engine.emit(action, "b");
    }
    scene.is(&[("b", "up")]);
}

#[test]
fn a_stream_that_ends_or_is_broken_is_opened_again_and_lists_go_on() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2)]));
    scene.is(&[("a", "up")]);
    for manner in [Manner::CutShort, Manner::NotHttp, Manner::Garbage, Manner::Status(500), Manner::Hang] {
        scene.has_stream();
        scene.engine.streams(manner);
        let streams = scene.engine.asked("/events");
        scene.engine.end_streams();
        eventually("it is tried again", || scene.engine.asked("/events") > streams);
        // Without a stream the list is read twice a second.
        scene.engine.set(&[running("a", 2), running("b", 3)]);
        scene.is(&[("a", "up"), ("b", "up")]);
        scene.engine.set(&[running("a", 2)]);
        scene.is(&[("a", "up")]);
        scene.engine.streams(Manner::Well);
        scene.engine.end_streams();
    }
    scene.has_stream();
}

#[test]
fn while_lists_are_broken_the_backends_stay_and_the_reason_is_shown() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2)]));
    scene.is(&[("a", "up")]);
    for (manner, reason) in [
        (Manner::Status(403), "answers 403: no"),
        (Manner::Reset, "reset"),
        (Manner::CutShort, "ends in the middle"),
        (Manner::BadSize, "broken chunk"),
        (Manner::Garbage, "not understood"),
        (Manner::WrongShape, "not understood"),
        (Manner::NotHttp, "not HTTP"),
        (Manner::Hang, "no answer in time"),
    ] {
        scene.engine.lists(manner);
        // What would be found if the list could be read.
        scene.engine.set(&[running("a", 2), running("b", 3)]);
        scene.engine.emit("start", "b");
        eventually(reason, || {
            scene.balance.page()["source"]["fault"].as_str().is_some_and(|fault| fault.contains(reason))
        });
        scene.is(&[("a", "up")]);
        scene.serves();
        scene.engine.lists(Manner::Well);
        scene.is(&[("a", "up"), ("b", "up")]);
        assert_eq!(scene.balance.page()["source"]["fault"], Value::Null);
        scene.engine.set(&[running("a", 2)]);
        scene.engine.emit("die", "b");
        scene.is(&[("a", "up")]);
    }
    scene.engine.lists(Manner::ByteByByte);
    scene.engine.set(&[running("a", 2), running("b", 3)]);
    scene.engine.emit("start", "b");
    scene.is(&[("a", "up"), ("b", "up")]);
}

#[test]
fn versions_are_agreed_on_again_when_the_engine_is_replaced() {
    let scene = Scene::start(|engine| engine.set(&[running("a", 2)]));
    scene.is(&[("a", "up")]);
    scene.engine.version("1.52", "1.44");
    scene.engine.set(&[running("a", 2), running("b", 3)]);
    scene.engine.emit("start", "b");
    scene.is(&[("a", "up"), ("b", "up")]);
    assert_eq!(scene.balance.page()["source"]["api"], "1.47");
    scene.engine.version("1.30", "1.24");
    scene.engine.set(&[running("a", 2)]);
    scene.engine.end_streams();
    scene.is(&[("a", "up")]);
    assert_eq!(scene.balance.page()["source"]["api"], "1.30");
}

#[test]
fn an_engine_that_is_too_old_is_said_to_be_and_a_newer_one_is_taken() {
    let scene = Scene::start(|engine| {
        engine.version("1.12", "1.12");
        engine.set(&[running("a", 2)]);
    });
    scene.balance.says("the engine is too old: its API is 1.12, at least 1.24 is needed");
    assert!(scene.balance.states().is_empty());
    scene.engine.version("1.41", "1.12");
    scene.is(&[("a", "up")]);
}

#[test]
fn an_engine_that_is_away_is_waited_for() {
    let claim = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = claim.local_addr().expect("bound");
    drop(claim);
    let port = backends().to_string();
    let balance = Balance::start(
        &["--group-port", &port, "--group-name", "db", "--group-network", "p_net"],
        &[("DOCKER_API_LOCATION", &format!("http://{address}"))],
    );
    balance.says("connection refused; the backends stay as they are");
    let engine = Engine::on(TcpListener::bind(address).expect("still free"));
    engine.set(&[running("a", 2)]);
    balance.becomes(SOON, &[("a", "up")]);
}

#[test]
fn a_group_that_is_not_there_is_named_with_those_that_are() {
    let scene = Scene::start(|engine| engine.set(&[container("w", 3, "web", "running")]));
    scene.balance.says("no container of service \"db\" runs; there are: web");
    scene.engine.set(&[running("a", 2)]);
    scene.engine.emit("start", "a");
    scene.is(&[("a", "up")]);
}

#[test]
fn a_container_without_a_way_to_it_does_not_disturb_the_others() {
    let mut lost = running("lost", 3);
    lost["NetworkSettings"]["Networks"] = json!({"elsewhere": {"IPAddress": "10.1.1.1", "IPPrefixLen": 24}});
    let mut bare = running("bare", 4);
    bare["Labels"] = Value::Null;
    let scene = Scene::start(|engine| engine.set(&[bare, lost, running("a", 2)]));
    scene.is(&[("a", "up"), ("lost", "unreachable")]);
    let page = scene.balance.page();
    assert_eq!(page["backends"][1]["reason"], "it is not in network \"net\"; its networks: elsewhere");
    scene.serves();
}

#[test]
fn wrong_environments_are_named() {
    let missing = Balance::start(&["--docker", "/nonexistent/docker.sock"], &[]);
    missing.says("there is no such socket: is it mounted into the container?");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port().to_string();
    for (arguments, code, reason) in [
        (&["--docker", "https://engine:2376"][..], 2, "https is not supported"),
        (&["--docker", "engine"], 2, "expected a socket's path"),
        (&["--port", &port, "--backends", "a:1"], 1, "Address already in use"),
        (&["--port", "0", "--status-port", &port, "--backends", "a:1"], 1, "Address already in use"),
        (&["--backends-file", "/nonexistent/file"], 1, "cannot read the backends"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
        let output = command.env_clear().arg("balance").args(arguments).output().expect("runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(reason), "{arguments:?}: {error}");
    }
}
