//! An engine that does what a test tells it: its list, its events, and every way to answer badly.

use serde_json::{Value, json};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the engine answers a kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// In chunks, as the real one does.
    Well,
    /// Every byte a chunk of its own, and a write of its own.
    ByteByByte,
    /// With this status and a message.
    Status(u16),
    /// Never.
    Hang,
    /// A reset in the middle.
    Reset,
    /// A clean end in the middle.
    CutShort,
    /// A chunk with a size that is none.
    BadSize,
    /// HTTP around something that is not JSON.
    Garbage,
    /// Something that is not even HTTP.
    NotHttp,
    /// JSON of the wrong shape.
    WrongShape,
}

struct State {
    containers: Vec<Value>,
    version: (String, String),
    list: Manner,
    events: Manner,
    streams: Vec<TcpStream>,
    requests: Vec<String>,
}

#[derive(Clone)]
pub struct Engine {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
}

impl Engine {
    pub fn start() -> Engine {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        Engine::on(listener)
    }

    pub fn on(listener: TcpListener) -> Engine {
        let address = listener.local_addr().expect("bound");
        let state = State {
            containers: Vec::new(),
            version: ("1.41".into(), "1.12".into()),
            list: Manner::Well,
            events: Manner::Well,
            streams: Vec::new(),
            requests: Vec::new(),
        };
        let engine = Engine { state: Arc::new(Mutex::new(state)), address };
        let serving = engine.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let engine = serving.clone();
                // A balancer that went away is no matter.
                std::thread::spawn(move || engine.serve(stream));
            }
        });
        engine
    }

    pub fn location(&self) -> String {
        format!("tcp://{}", self.address)
    }

    pub fn set(&self, containers: &[Value]) {
        self.state.lock().unwrap().containers = containers.to_vec();
    }

    pub fn lists(&self, manner: Manner) {
        self.state.lock().unwrap().list = manner;
    }

    /// How the streams that are opened from now on are.
    pub fn streams(&self, manner: Manner) {
        self.state.lock().unwrap().events = manner;
    }

    pub fn version(&self, version: &str, least: &str) {
        self.state.lock().unwrap().version = (version.into(), least.into());
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// How many requests there were for a path that holds this.
    pub fn asked(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.contains(part)).count()
    }

    pub fn open_streams(&self) -> usize {
        self.state.lock().unwrap().streams.len()
    }

    /// Sends an event to every stream, in chunks of so many bytes.
    pub fn emit_in(&self, piece: usize, kind: &str, action: &str, id: &str, attributes: Value) {
        let event = json!({"Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": attributes},
            "time": 1_700_000_000u64, "timeNano": 1_700_000_000_000_000_000u64});
        self.send(&chunks(event.to_string().as_bytes(), piece), piece);
    }

    pub fn emit(&self, action: &str, id: &str) {
        self.emit_in(usize::MAX, "container", action, id, json!({"signal": "15"}));
    }

    /// Sends these bytes as they are.
    pub fn send(&self, bytes: &[u8], piece: usize) {
        self.state.lock().unwrap().streams.retain_mut(|stream| {
            let _ = stream.set_nodelay(true);
            bytes.chunks(piece.min(64 * 1024)).all(|part| stream.write_all(part).is_ok())
        });
    }

    pub fn end_streams(&self) {
        self.state.lock().unwrap().streams.clear();
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut byte = [0; 1024];
        while !request.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(length) if length > 0 => request.extend_from_slice(&byte[..length]),
                _ => return,
            }
        }
        let request = String::from_utf8(request).expect("ASCII");
        let line = request.lines().next().expect("a line").to_owned();
        let (version, manner, body) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(line.clone());
            let (version, least) = state.version.clone();
            if line.starts_with("GET /version ") {
                let body = json!({"ApiVersion": version, "MinAPIVersion": least}).to_string();
                (None, Manner::Well, body)
            } else {
                let asked = line
                    .strip_prefix("GET /v1.")
                    .and_then(|rest| rest.split('/').next()?.parse::<u32>().ok());
                let minor = |text: &str| text[2..].parse::<u32>().expect("a number");
                let fits = asked.is_some_and(|asked| (minor(&least)..=minor(&version)).contains(&asked));
                let manner = if line.contains("/events?") { state.events } else { state.list };
                (Some(fits), manner, Value::from(state.containers.clone()).to_string())
            }
        };
        if version == Some(false) {
            return answer(&mut stream, 400, br#"{"message":"client version is not supported"}"#, usize::MAX);
        }
        if let Manner::Status(status) = manner {
            return answer(&mut stream, status, br#"{"message":"no"}"#, usize::MAX);
        }
        if line.contains("/events?") {
            return self.stream(stream, manner);
        }
        let head =
            "HTTP/1.1 200 OK\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = match manner {
            Manner::Well => return answer(&mut stream, 200, body.as_bytes(), 100),
            Manner::ByteByByte => return answer(&mut stream, 200, body.as_bytes(), 1),
            Manner::Garbage => return answer(&mut stream, 200, b"<html>", 100),
            Manner::WrongShape => return answer(&mut stream, 200, br#"{"Id":"a"}"#, 100),
            Manner::NotHttp => stream.write_all(b"220 smtp ready\r\n"),
            Manner::BadSize => stream.write_all(format!("{head}zz\r\n[]\r\n0\r\n\r\n").as_bytes()),
            Manner::CutShort => stream.write_all(format!("{head}ff\r\n[{{").as_bytes()),
            Manner::Reset => {
                let sent = stream.write_all(format!("{head}ff\r\n[{{").as_bytes());
                std::thread::sleep(Duration::from_millis(20));
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                sent
            }
            Manner::Hang => {
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            Manner::Status(_) => unreachable!("answered above"),
        };
    }

    fn stream(&self, mut stream: TcpStream, manner: Manner) {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        match manner {
            Manner::Hang => std::thread::sleep(Duration::from_secs(60)),
            Manner::NotHttp => drop(stream.write_all(b"220 smtp ready\r\n")),
            Manner::Garbage => {
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&chunks(b"<html>", 100));
                self.state.lock().unwrap().streams.push(stream);
            }
            Manner::CutShort => drop(stream.write_all(head.as_bytes())),
            _ => {
                let _ = stream.write_all(head.as_bytes());
                self.state.lock().unwrap().streams.push(stream);
            }
        }
    }
}

fn chunks(body: &[u8], piece: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in body.chunks(piece.min(body.len().max(1))) {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn answer(stream: &mut TcpStream, status: u16, body: &[u8], piece: usize) {
    let _ = stream.set_nodelay(true);
    let head = format!(
        "HTTP/1.1 {status} X\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut whole = head.into_bytes();
    whole.extend_from_slice(&chunks(body, piece));
    whole.extend_from_slice(b"0\r\n\r\n");
    let _ = whole.chunks(piece.min(64 * 1024)).all(|part| stream.write_all(part).is_ok());
}
