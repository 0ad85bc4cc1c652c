//! The servers that are measured: child processes on core 0, ended when they go out of scope.

use super::drive::{Address, Operation, Plan, Protocol, connect, cpu_ns_of, other};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const SERVER_CORE: usize = 0;
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running server and how it is spoken to.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    pub(crate) unix: Option<PathBuf>,
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// To send it signals. Its id stays its own until it is waited for, when this goes out of scope.
    pub(crate) fn process(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// A plan for this server, to be completed.
    pub(crate) fn plan(&self, operation: Operation, keys: u64, depth: usize) -> Plan {
        Plan {
            address: Address::Tcp(self.address),
            protocol: self.protocol,
            operation,
            keys,
            each: None,
            key_bytes: 16,
            value_bytes: 32..33,
            connections: 32,
            depth,
            warm_up: Duration::ZERO,
            window: Duration::ZERO,
            pid: self.pid(),
            slow_listing: false,
            query: "",
            varies: false,
            rate: 0.0,
            setters: 0,
            zipf: 0.0,
            over: None,
        }
    }

    /// Waits until it has nothing more to do by itself, for a while.
    pub(crate) fn settle(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(300);
        for _ in 0..30 {
            let before = cpu_ns_of(self.pid());
            std::thread::sleep(LOOK_EVERY);
            if cpu_ns_of(self.pid()) - before < LOOK_EVERY.as_nanos() as u64 / 20 {
                return;
            }
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// What it answers, head and body.
    pub(crate) fn ask(&self, path: &str) -> io::Result<String> {
        let mut stream = connect(&Address::Tcp(self.address))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// A figure of `/metrics`; `name` with its labels, if it has any.
    pub(crate) fn metric(&self, name: &str) -> io::Result<u64> {
        let page = self.ask("/metrics")?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(|| other(format!("/metrics has no {name}")))
    }
}

/// What starts peers: where the node's binary is and where temporary files go.
pub(crate) struct Yard {
    pub(crate) node: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) cores: usize,
}

impl Yard {
    pub(crate) fn new(node: &Path) -> io::Result<Yard> {
        let directory = std::env::temp_dir().join(format!("meshkv-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let cores = std::thread::available_parallelism()?.get();
        Ok(Yard { node: node.to_owned(), directory, cores })
    }

    /// The core of the load generator; the servers' one if there is no other.
    pub(crate) fn client_core(&self) -> usize {
        1.min(self.cores - 1)
    }

    /// A node with its own UNIX socket. More workers than one are not kept to core 0.
    pub(crate) fn node(&self, workers: usize) -> io::Result<Peer> {
        let address = free_address()?;
        let unix = self.directory.join(format!("{}.sock", address.port()));
        let mut command = Command::new(&self.node);
        command.args(["serve", "--log-level", "warn", "--port", &address.port().to_string()]);
        command.args(["--workers", &workers.to_string()]).arg("--unix").arg(&unix);
        let mut peer = self.start("meshkv", Protocol::Http, address, command, workers == 1)?;
        peer.unix = Some(unix);
        Ok(peer)
    }

    /// This program again, in the role of a constant-answer server for requests of this plan.
    pub(crate) fn floor(&self, plan: &Plan) -> io::Result<Peer> {
        let (address, answer) = (free_address()?, self.directory.join("answer"));
        std::fs::write(&answer, plan.probe()?)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor", &address.to_string(), &plan.request_bytes().to_string()]).arg(&answer);
        self.start("floor", Protocol::Http, address, command, true)
    }

    /// This program again, with a node inside it.
    pub(crate) fn embedded(&self, observers: usize) -> io::Result<Peer> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["embed", &address.port().to_string(), &observers.to_string()]);
        self.start("embedded", Protocol::Http, address, command, true)
    }

    /// `None`, after saying so, if it is not installed.
    pub(crate) fn foreign(&self, name: &'static str) -> io::Result<Option<Peer>> {
        let address = free_address()?;
        let port = address.port().to_string();
        let (program, protocol) = match name {
            "redis" => ("redis-server", Protocol::Resp),
            "memcached" => ("memcached", Protocol::Memcached),
            _ => ("nginx", Protocol::Http),
        };
        let Some(path) = installed(program) else {
            eprintln!("SKIPPED: {program} is not installed; its rows will be missing");
            return Ok(None);
        };
        let mut command = Command::new(path);
        command.current_dir(&self.directory);
        match name {
            "redis" => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"])
            }
            "memcached" => command.args([
                "-l",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "0",
                "-t",
                "1",
                "-m",
                "4096",
                "-u",
                "root",
            ]),
            _ => {
                let file = self.directory.join("nginx.conf");
                // The node's answer to a GET of a 32-byte value has as long a body.
                let body = "v".repeat(32);
                let directory = self.directory.display();
                std::fs::write(
                    &file,
                    format!(
                        "daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid;\n\
                         error_log stderr crit; events {{ worker_connections 1024; }}\n\
                         http {{ access_log off; keepalive_requests 1000000000; server {{\n\
                         listen 127.0.0.1:{port}; default_type application/json;\n\
                         location / {{ return 200 '\"{body}\"'; }} }} }}\n"
                    ),
                )?;
                command.arg("-e").arg("stderr").arg("-p").arg(&self.directory).arg("-c").arg(&file)
            }
        };
        self.start(name, protocol, address, command, true).map(Some)
    }

    /// Starts a server; `pinned` to the servers' core, or on any.
    fn start(
        &self,
        name: &'static str,
        protocol: Protocol,
        address: SocketAddr,
        command: Command,
        pinned: bool,
    ) -> io::Result<Peer> {
        let last = if pinned { SERVER_CORE } else { self.cores - 1 };
        self.start_on(&format!("{SERVER_CORE}-{last}"), name, protocol, address, command)
    }

    /// Starts a server on these cores and waits until it listens.
    pub(crate) fn start_on(
        &self,
        cores: &str,
        name: &'static str,
        protocol: Protocol,
        address: SocketAddr,
        command: Command,
    ) -> io::Result<Peer> {
        let mut pinning = Command::new("taskset");
        pinning.args(["-c", cores]).arg(command.get_program());
        pinning.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(directory) = command.get_current_dir() {
            pinning.current_dir(directory);
        }
        let child = pinning.spawn()?;
        let mut peer = Peer { name, protocol, address, unix: None, child };
        let begun = Instant::now();
        while connect(&Address::Tcp(address)).is_err() {
            if let Some(status) = peer.child.try_wait()? {
                return Err(other(format!("{name} ended at its start: {status}")));
            }
            if begun.elapsed() > START_TIMEOUT {
                return Err(other(format!("{name} does not listen on {address}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        // Only temporary files: left behind, they harm nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(PathBuf::from("/usr/sbin"));
    places.into_iter().map(|place| place.join(program)).find(|place| place.is_file())
}

/// Keeps the calling thread on one core.
pub(crate) fn pin_this_thread(core: usize) -> io::Result<()> {
    let task = std::fs::read_link("/proc/thread-self")?;
    let task = task.file_name().unwrap_or_default().to_owned();
    let status = Command::new("taskset")
        .args(["-p", "-c", &core.to_string()])
        .arg(task)
        .stdout(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(other("taskset cannot pin the load generator")) }
}
