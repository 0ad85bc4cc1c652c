//! The servers, the proxies and the load generator, as processes that end with the benchmark.

use super::Done;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROXY_CORE: &str = "0";
const OTHERS_CORE: &str = "1";

pub(super) struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) struct Proxy {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// `None`: there is none between client and server.
    running: Option<Running>,
}

impl Proxy {
    /// User and system time so far, of all threads.
    pub(super) fn cpu_seconds(&self) -> Done<f64> {
        let Some(running) = &self.running else { return Ok(0.0) };
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// What wrk reports.
pub(super) struct Answer {
    pub(super) requests: f64,
    pub(super) rate: f64,
    pub(super) p99_ms: f64,
    pub(super) failed: u64,
}

pub(super) struct Fleet {
    directory: PathBuf,
    server: SocketAddr,
    _nginx: Running,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn pinned(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    // The last resort against one that outlives us.
    command.args(["-c", core, "setpriv", "--pdeathsig", "KILL", program]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn free_address() -> Done<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Starts it and waits until it listens.
fn start(mut command: Command, address: SocketAddr) -> Done<Running> {
    let running = Running { child: command.spawn()? };
    let begun = Instant::now();
    loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut answer = [0; 12];
            if stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
                && stream.read_exact(&mut answer).is_ok()
                && answer.ends_with(b"200")
            {
                return Ok(running);
            }
        }
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("{command:?} does not serve").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Fleet {
    /// `None`, and said so, where a program is missing.
    pub(super) fn start() -> Done<Option<Fleet>> {
        for program in ["haproxy", "nginx", "wrk", "taskset", "setpriv"] {
            let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
            if !paths.split(':').any(|folder| PathBuf::from(folder).join(program).exists()) {
                // Not with a macro: a test runner would keep that to itself.
                let line =
                    format!("not applicable: this machine has no {program} for the balancer's benchmark\n");
                let _ = std::io::stderr().write_all(line.as_bytes());
                return Ok(None);
            }
        }
        let directory = std::env::temp_dir().join(format!("meshkv-balancer-{}", std::process::id()));
        fs::create_dir_all(directory.join("html"))?;
        fs::write(directory.join("html/mib"), vec![b'x'; 1 << 20])?;
        let server = free_address()?;
        let path = directory.display();
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; pid {path}/nginx.pid; error_log /dev/null; user root;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
             client_body_temp_path {path}; proxy_temp_path {path}; fastcgi_temp_path {path};\n\
             uwsgi_temp_path {path}; scgi_temp_path {path};\n\
             server {{ listen {server} backlog=4096; root {path}/html;\n\
             location = / {{ return 200 ok; }} }} }}\n"
        );
        fs::write(directory.join("nginx.conf"), configuration)?;
        let mut command = pinned(OTHERS_CORE, "nginx");
        command.arg("-c").arg(directory.join("nginx.conf")).arg("-e").arg("/dev/null");
        let nginx = start(command, server)?;
        Ok(Some(Fleet { directory, server, _nginx: nginx }))
    }

    /// All that are compared; the first is none.
    pub(super) fn proxies(&self) -> Done<Vec<Proxy>> {
        let mut proxies = vec![Proxy { name: "direct", address: self.server, running: None }];
        for (name, file, splice) in [
            ("HAProxy", "plain.cfg", ""),
            ("HAProxy, splice", "splice.cfg", " option splice-request\n option splice-response\n"),
        ] {
            let address = free_address()?;
            let server = self.server;
            let configuration = format!(
                "global\n nbthread 1\n maxconn 4000\n\
                 defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n{splice}\
                 frontend in\n bind {address}\n default_backend out\n\
                 backend out\n server one {server}\n"
            );
            let path = self.directory.join(file);
            fs::write(&path, configuration)?;
            let mut command = pinned(PROXY_CORE, "haproxy");
            command.arg("-db").arg("-f").arg(path);
            proxies.push(Proxy { name, address, running: Some(start(command, address)?) });
        }
        let address = free_address()?;
        let mut command = pinned(PROXY_CORE, env!("CARGO_BIN_EXE_meshkv"));
        command.args(["balance", "--workers", "1", "--status-port", "0", "--check", "tcp"]);
        command.args(["--port", &address.port().to_string(), "--backends", &self.server.to_string()]);
        proxies.push(Proxy { name: "meshkv", address, running: Some(start(command, address)?) });
        Ok(proxies)
    }

    /// On a busy machine an answer may take longer than the two seconds that wrk gives it, which is no failure.
    pub(super) fn wrk(&self, arguments: &[&str], url: &str, window: Duration) -> Done<Answer> {
        let mut command = pinned(OTHERS_CORE, "wrk");
        command
            .args(["-t1", "--latency", "--timeout", "30s", "-d"])
            .arg(format!("{}s", window.as_secs()))
            .args(arguments)
            .arg(url);
        let output = command.stdout(Stdio::piped()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let behind =
            |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
        let rate = behind("Requests/sec:").ok_or_else(|| format!("wrk says: {text}"))?.parse()?;
        let p99 = behind("99%").ok_or("wrk says no p99")?;
        let total = text.lines().find(|line| line.contains("requests in")).ok_or("wrk says no total")?;
        let requests = total.trim().split(' ').next().unwrap_or("").parse()?;
        let mut failed = 0;
        if let Some(errors) = behind("Socket errors:") {
            // wrk counts the ends of connections that it was told of as read errors.
            let counts = errors.split(", ").filter(|part| !part.starts_with("read"));
            failed += counts.filter_map(|part| part.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
        }
        if let Some(other) = behind("Non-2xx or 3xx responses:") {
            failed += other.parse::<u64>()?;
        }
        Ok(Answer { requests, rate, p99_ms: milliseconds(p99)?, failed })
    }
}

/// `830.00us`, `1.23ms`, `1.02s`.
fn milliseconds(text: &str) -> Done<f64> {
    let (number, scale) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s').ok_or("no unit")?, 1000.0)
    };
    Ok(number.parse::<f64>()? * scale)
}

/// Keeps the table with its date and commit.
pub(super) fn keep(page: &str) -> Done<()> {
    let run = |program: &str, arguments: &[&str]| -> Done<String> {
        Ok(String::from_utf8(Command::new(program).args(arguments).output()?.stdout)?.trim().to_owned())
    };
    let date = run("date", &["-u", "+%Y-%m-%d"])?;
    let commit = run("git", &["rev-parse", "--short=7", "HEAD"])?;
    let kernel = run("uname", &["-r"])?;
    let haproxy = run("haproxy", &["-v"])?;
    let haproxy = haproxy.lines().next().unwrap_or("").to_owned();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(format!("benches/records/{date}-{commit}-balancer.md"));
    let head = format!(
        "# The balancer on {date} at {commit}\n\nLinux {kernel}, {haproxy}; medians, ratios within a round.\n\n"
    );
    fs::write(&path, head + page)?;
    println!("kept in {}", path.strip_prefix(&root)?.display());
    Ok(())
}
