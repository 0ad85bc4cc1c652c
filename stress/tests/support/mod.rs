//! A server that answers as it is told to, and the tool run against it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the server does about its n-th request; `None`: it closes the connection.
pub type Script = fn(u64, &str) -> Option<String>;

pub struct Fixture {
    pub url: String,
    pub requests: Arc<AtomicU64>,
}

impl Fixture {
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

pub fn serve(script: Script) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    std::thread::spawn(move || accept(&listener, &counted, script));
    Fixture { url, requests }
}

/// A thread a connection, for ever.
pub fn accept(
    listener: &TcpListener,
    counted: &Arc<AtomicU64>,
    script: impl Fn(u64, &str) -> Option<String> + Copy + Send + 'static,
) {
    for mut stream in listener.incoming().flatten() {
        let counted = Arc::clone(counted);
        let _ = stream.set_nodelay(true);
        std::thread::spawn(move || {
            let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                held.extend_from_slice(&buffer[..bytes]);
                let mut answers = String::new();
                while let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") {
                    let head: Vec<u8> = held.drain(..end + 4).collect();
                    let head = String::from_utf8_lossy(&head).into_owned();
                    // The tool asks once before and once after a run; that is no part of it.
                    if head.starts_with("GET /status ") {
                        answers += "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                        continue;
                    }
                    let number = counted.fetch_add(1, Ordering::SeqCst);
                    match script(number, &head) {
                        Some(answer) => answers += &answer,
                        None => {
                            let _ = stream.write_all(answers.as_bytes());
                            return;
                        }
                    }
                }
                if stream.write_all(answers.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// What meshkv would answer, had all keys been set.
pub fn right(request: &str) -> String {
    let Some(key) = request.strip_prefix("GET /get?k=stress:") else { return ok("{\"success\":true}") };
    ok(&format!("\"value:{}\"", key.split(' ').next().unwrap_or("")))
}

/// The tool without the environment's say.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv-stress"));
    for name in ["SERVICE_URL", "STRESS_AMOUNT", "STRESS_CLUSTERS", "STRESS_WORKERS", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

pub fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command().args(arguments).output().expect("runs");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// With eight connections on two threads.
pub fn stress(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    run(&[arguments, &["-c", "8", "-t", "2", url]].concat())
}

/// The same, and its JSON report.
pub fn report(url: &str, arguments: &[&str]) -> (Option<i32>, String, serde_json::Value) {
    let file = temporary("json");
    let path = file.0.to_str().expect("text");
    let (code, text) = stress(url, &[arguments, &["--json", path]].concat());
    let json = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{error}: {text}"));
    (code, text, serde_json::from_str(&json).expect("JSON"))
}

/// A name for a file that goes away with the test.
pub struct Temporary(pub PathBuf);

pub fn temporary(extension: &str) -> Temporary {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("meshkv-stress-{}-{number}.{extension}", std::process::id());
    Temporary(std::env::temp_dir().join(name))
}

impl Temporary {
    pub fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A number somewhere in a report, by its path.
pub fn n(report: &serde_json::Value, path: &str) -> u64 {
    report.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{path}: {report}"))
}

/// What must hold of the counts of every report.
pub fn balanced(report: &serde_json::Value) {
    let count = |name: &str| n(report, &format!("/counts/{name}"));
    assert_eq!(count("sent"), count("ok") + count("failed") + count("unfinished"), "{report}");
    let http: u64 = report["counts"]["errors"]["http"]
        .as_object()
        .map_or(0, |map| map.values().filter_map(serde_json::Value::as_u64).sum());
    let classes: u64 =
        ["connect", "timeout", "reset", "verify"].iter().map(|class| count(&format!("errors/{class}"))).sum();
    assert_eq!(count("failed"), classes + http, "{report}");
    assert_eq!(n(report, "/latency/service/all/count"), count("ok"));
    assert_eq!(n(report, "/latency/failed/count"), count("failed"));
    let sum = |name: &str| -> u64 {
        report["intervals"].as_array().expect("a list").iter().map(|second| n(second, name)).sum()
    };
    assert_eq!((sum("/ok"), sum("/failed")), (count("ok"), count("failed")), "seconds add up: {report}");
}

pub struct Nginx {
    child: Child,
    folder: std::path::PathBuf,
    pub url: String,
}

impl Nginx {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// An nginx with these locations on a port of its own, so many requests a connection; `None`: there is no nginx
/// here. It is one process: a master has left its worker behind once.
pub fn nginx(locations: &str, requests: u64) -> Option<Nginx> {
    let found = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    let Some(program) = found else {
        println!("SKIPPED: nginx is not installed; nothing is measured against it");
        return None;
    };
    // Free a moment ago; nothing else on this machine picks ports by number.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let folder = std::env::temp_dir().join(format!("meshkv-stress-nginx-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("made");
    let at = folder.display();
    let configuration = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr crit;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests {requests}; client_body_temp_path {at}; proxy_temp_path {at};\n\
         fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};\n\
         server {{ listen 127.0.0.1:{port}; default_type text/plain;\n\
         {locations} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).expect("written");
    let child = Command::new(program)
        .args(["-p", &at.to_string(), "-c"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts");
    let nginx = Nginx { child, folder, url: format!("http://127.0.0.1:{port}") };
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nginx does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(nginx)
}
