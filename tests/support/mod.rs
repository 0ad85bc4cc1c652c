//! A node as a process, and a client that sends exactly the bytes it is told to.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

pub mod balance;
pub mod engine;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The server that `SERVICE_URL` names, as `host:port`.
pub fn service() -> Option<String> {
    let url = std::env::var("SERVICE_URL").ok()?;
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    Some(if address.contains(':') { address } else { address + ":80" })
}

/// Where the contract is tested: [`service`], else a node that the tests of this binary share.
pub fn address() -> &'static str {
    static SHARED: OnceLock<String> = OnceLock::new();
    SHARED.get_or_init(|| {
        service().unwrap_or_else(|| {
            let (send, receive) = std::sync::mpsc::channel();
            // Nothing drops a static: the kernel ends the node with the thread that started it.
            std::thread::spawn(move || {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_meshkv")]);
                let node = Node::start_command(command, &[]);
                send.send(node.address.clone()).expect("waited for");
                loop {
                    std::thread::park();
                }
            });
            receive.recv().expect("starts")
        })
    })
}

/// A node for a test that needs one of its own; `None`, and said so, when another server is tested.
pub fn own_node(arguments: &[&str]) -> Option<Node> {
    if service().is_none() {
        return Some(Node::start(arguments));
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not with a macro: the test runner would keep that to itself.
    let _ = writeln!(std::io::stderr(), "not applicable: {test} needs a node of its own, SERVICE_URL is set");
    None
}

/// The seed of a random test: `MESHKV_SEED`, else another one each time. Printed, to replay a failure with.
pub fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = match std::env::var("MESHKV_SEED") {
        Ok(text) => text.parse().expect("MESHKV_SEED is a whole number"),
        Err(_) => now.as_nanos() as u64,
    };
    println!("replay with MESHKV_SEED={seed}");
    seed
}

/// Sends a process a signal, by its name without SIG.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// Waits for a process to end; panics after `limit` with what it printed.
pub fn wait(child: &mut Child, log: &Mutex<String>, limit: Duration) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        assert!(begun.elapsed() < limit, "still running after {limit:?}: {}", log.lock().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A node that ends with the test.
pub struct Node {
    pub child: Child,
    pub address: String,
    /// What it printed so far.
    pub log: Arc<Mutex<String>>,
}

impl Node {
    pub fn start(arguments: &[&str]) -> Node {
        Node::start_command(Command::new(env!("CARGO_BIN_EXE_meshkv")), arguments)
    }

    /// Starts `command`, which must end up being a node, and waits for its `ready`.
    pub fn start_command(command: Command, arguments: &[&str]) -> Node {
        Node::start_until(command, arguments, "ready")
    }

    /// The same, until it prints a line that ends so.
    pub fn start_until(mut command: Command, arguments: &[&str], end: &str) -> Node {
        if !arguments.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        command.args(arguments);
        for name in ["PORT", "HOSTNAME", "MESH_NETWORK_URL"] {
            command.env_remove(name);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.expect("text");
            if address.is_none()
                && let Some(rest) = line.split("http://").nth(1)
            {
                address = rest.split_whitespace().next().map(str::to_owned);
            }
            let is_there = line.ends_with(end);
            *log.lock().unwrap() += &(line + "\n");
            if is_there {
                break;
            }
        }
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let address = address.unwrap_or_else(|| panic!("no address in: {}", log.lock().unwrap()));
        Node { child, address, log }
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for the process to end; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        wait(&mut self.child, &self.log, limit)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        Client { stream, read: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("written");
    }

    /// One GET of a target, as it stands.
    pub fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.answer()
    }

    /// Sends a whole request and reads one answer.
    pub fn request(&mut self, request: &str) -> Answer {
        self.send(request);
        let head = request.starts_with("HEAD ");
        self.read_answer(head).expect("an answer")
    }

    pub fn answer(&mut self) -> Answer {
        self.read_answer(false).expect("an answer")
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(bytes) => {
                self.read.extend_from_slice(&buffer[..bytes]);
                bytes > 0
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}; so far: {}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// The next answer; `None` when the connection ends before it.
    pub fn read_answer(&mut self, head_only: bool) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if !self.more() {
                assert!(self.read.is_empty(), "half an answer: {}", String::from_utf8_lossy(&self.read));
                return None;
            }
        };
        let head = String::from_utf8(self.read[..end].to_vec()).expect("ASCII");
        self.read.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().expect("a line");
        assert!(status_line.starts_with("HTTP/1.1 "), "{status_line}");
        let status = status_line[9..12].parse().expect("a number");
        let split = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_owned(), value.to_owned())
        };
        let mut answer = Answer { status, headers: lines.map(split).collect(), body: String::new() };
        if head_only || matches!(status, 100 | 204 | 304) {
            return Some(answer);
        }
        let body = if let Some(length) = answer.header("Content-Length") {
            let length: usize = length.parse().expect("a number");
            while self.read.len() < length {
                assert!(self.more(), "the body ends early");
            }
            self.read.drain(..length).collect()
        } else if answer.header("Transfer-Encoding") == Some("chunked") {
            self.chunks()
        } else {
            while self.more() {}
            std::mem::take(&mut self.read)
        };
        answer.body = String::from_utf8(body).expect("UTF-8");
        Some(answer)
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                match self.read.windows(2).position(|two| two == b"\r\n") {
                    Some(at) => break at,
                    None => assert!(self.more(), "a chunk ends early"),
                }
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.read[..line]).unwrap(), 16).unwrap();
            while self.read.len() < line + 2 + size + 2 {
                assert!(self.more(), "a chunk ends early");
            }
            body.extend_from_slice(&self.read[line + 2..line + 2 + size]);
            self.read.drain(..line + 2 + size + 2);
            if size == 0 {
                return body;
            }
        }
    }

    /// Nothing more comes and the other side has closed.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && !self.more()
    }
}

/// Percent-encodes everything that is not a letter or a digit.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// One request on a connection of its own.
pub fn get(address: &str, target: &str) -> Answer {
    Client::connect(address).get(target)
}
