//! `meshkv up`: a whole mesh on this machine, one process tree. The nodes are processes of their own, joined
//! through a balancer in this one, as containers would be.
//!
//! Nothing may outlive it. A node asks the kernel to be killed when its parent dies, which the kernel takes to
//! be the thread that started it: so the main thread starts them all, and waits for messages in between. The
//! control socket is removed by a janitor, a process that does nothing but wait for our end.

mod control;

use super::settings::{self, Environment};
use super::{Failure, NodeArgs, log, print, serve};
use clap::{Args, Subcommand};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use meshkv::balancer::config::{BalanceConfig, Source};
use meshkv::balancer::{Balancer, Member as Backend};
use meshkv::limits::UP_NODES_MAX;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Tells a member whose child it is: if that has changed by the time it looks, it is an orphan already.
const PARENT_VARIABLE: &str = "MESHKV_UP_PARENT";
const NODES_DEFAULT: usize = 3;
/// A node's own drain, and a little more.
const STOP_LIMIT: Duration = Duration::from_secs(7);
/// Between two looks at whether all nodes serve, until they do.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of a node that are shown if it ends before it listens.
const LAST_LINES: usize = 10;
/// Bytes of one such line.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// What a member must not take from our environment: it would be the same for all.
const NOT_SHARED: [&str; 12] = [
    "PORT",
    "MESHKV_PORT",
    "HOSTNAME",
    "MESHKV_NAME",
    "MESH_NETWORK_URL",
    "MESHKV_JOIN",
    "MESHKV_HOST",
    "MESHKV_UNIX",
    "MESHKV_PEER_PORT",
    "MESHKV_ADVERTISE",
    "MESHKV_LOG_FORMAT",
    "MESHKV_LOG_LEVEL",
];

#[derive(Args, Debug, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct UpArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Nodes to start
    #[arg(long, short, value_name = "N", value_parser = settings::count)]
    nodes: Option<usize>,
    /// Port of the balancer before them; 0 takes a free one and prints it
    #[arg(long, short, id = "up_port", value_name = "PORT", value_parser = settings::port)]
    port: Option<u16>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Start one more node
    Add(Which),
    /// Kill a node, without giving it time for anything
    Kill {
        /// As `up status` shows it
        name: String,
        #[command(flatten)]
        which: Which,
    },
    /// Show the nodes
    Status(Which),
}

#[derive(Args, Debug)]
struct Which {
    /// Port of the mesh, if several run here
    #[arg(long, short, id = "up_port", value_name = "PORT", value_parser = settings::port)]
    port: Option<u16>,
}

/// What the main thread waits for.
enum Message {
    /// A node has said something.
    Line { name: String, line: String },
    /// ... and will not say any more: it has ended.
    Ended { name: String },
    /// Somebody asks on the control socket.
    Asked { question: String, reply: Sender<control::Answer> },
    /// A signal that asks us to end.
    Signal,
}

struct Node {
    name: String,
    child: Child,
    address: Option<SocketAddr>,
    last: VecDeque<String>,
    /// Who waits to hear that it listens.
    waiting: Option<Sender<control::Answer>>,
    /// It was killed because somebody asked for it.
    killed: bool,
}

pub(super) fn run(arguments: UpArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let port = |flag| {
        settings::from_environment("up_port", flag, environment, settings::port).map_err(Failure::Usage)
    };
    let ask = |which: Which, question: &str| {
        let port = port(which.port)?.unwrap_or(meshkv::config::PORT_DEFAULT);
        let answer = control::ask(port, question).map_err(Failure::Runtime)?;
        print(answer.as_bytes())
    };
    match arguments.action {
        Some(Action::Add(which)) => ask(which, "add"),
        Some(Action::Kill { name, which }) => ask(which, &format!("kill {name}")),
        Some(Action::Status(which)) => ask(which, "status"),
        None => {
            let nodes = settings::from_environment("nodes", arguments.nodes, environment, settings::count);
            let nodes = nodes.map_err(Failure::Usage)?.unwrap_or(NODES_DEFAULT);
            if nodes > UP_NODES_MAX {
                return Err(Failure::Usage(format!("--nodes: at most {UP_NODES_MAX} on one machine")));
            }
            up(nodes, port(arguments.port)?.unwrap_or(meshkv::config::PORT_DEFAULT))
        }
    }
}

fn up(count: usize, port: u16) -> Result<(), Failure> {
    meshkv::system::raise_descriptor_limit();
    log::start(log::Format::Text, log::Level::Warn);
    let cannot = |what: &str, error: std::io::Error| Failure::Runtime(format!("cannot {what}: {error}"));
    let (send, messages) = unbounded();
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| cannot("watch for signals", error))?;
    let signalled = send.clone();
    let watch = move || signals.forever().all(|_| signalled.send(Message::Signal).is_ok());
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(|error| cannot("start a thread", error))?;
    let config = BalanceConfig {
        listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        ..BalanceConfig::new(Source::Given(Vec::new()))
    };
    let balancer = Balancer::start(config).map_err(|error| Failure::Runtime(error.to_string()))?;
    let socket = control::listen(balancer.address().port(), send.clone()).map_err(Failure::Runtime)?;
    let mut janitor = janitor(&socket).map_err(|error| cannot("start the janitor", error))?;
    let mut mesh = Mesh { balancer, nodes: Vec::new(), next: 1, send, count };
    let outcome = mesh.serve(&messages);
    mesh.stop();
    // The janitor sees the end of its input and removes the socket.
    drop(janitor.stdin.take());
    let _ = janitor.wait();
    outcome
}

struct Mesh {
    balancer: Balancer,
    nodes: Vec<Node>,
    /// The number of the next node.
    next: usize,
    send: Sender<Message>,
    /// Nodes to start with.
    count: usize,
}

impl Mesh {
    fn serve(&mut self, messages: &Receiver<Message>) -> Result<(), Failure> {
        for _ in 0..self.count {
            self.add(None).map_err(|error| Failure::Runtime(format!("cannot start a node: {error}")))?;
        }
        let mut told = false;
        loop {
            let message = match told {
                true => messages.recv().map_err(RecvTimeoutError::from),
                false => messages.recv_timeout(LOOK),
            };
            match message {
                Ok(Message::Signal) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Message::Line { name, line }) => self.heard(&name, &line)?,
                Ok(Message::Ended { name }) => self.ended(&name, told)?,
                Ok(Message::Asked { question, reply }) => self.answer(&question, reply),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !told && self.is_ready() {
                told = true;
                print(self.greeting().as_bytes())?;
            }
        }
    }

    /// Whatever node a connection is led to, it serves.
    fn is_ready(&self) -> bool {
        let states = self.balancer.members();
        let is_up = |node: &Node| states.iter().any(|of| of.name == node.name && of.state == "up");
        !self.nodes.is_empty() && self.nodes.iter().all(is_up)
    }

    fn greeting(&self) -> String {
        let (url, port) = (self.url(), self.balancer.address().port());
        let flag = match port {
            meshkv::config::PORT_DEFAULT => String::new(),
            _ => format!(", each with --port {port}"),
        };
        format!(
            "\n{url}\n\n  curl '{url}/set?k=greeting&v=hello'\n  meshkv up status · add · kill n2{flag}; Ctrl-C \
             ends it all\n"
        )
    }

    fn url(&self) -> String {
        format!("http://{}", self.balancer.address())
    }

    /// Starts a node; who waits hears of it when it listens.
    fn add(&mut self, waiting: Option<Sender<control::Answer>>) -> std::io::Result<()> {
        let name = format!("n{}", self.next);
        self.next += 1;
        // Together no more than one node would take.
        let memory = format!("{}%", (80 / self.count.max(1)).max(1));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", "--port", "0", "--host", "127.0.0.1", "--peer-port", "0", "--workers", "1"]);
        command.args([
            "--log-format",
            "json",
            "--max-memory",
            &memory,
            "--name",
            &name,
            "--join",
            &self.url(),
        ]);
        for variable in NOT_SHARED {
            command.env_remove(variable);
        }
        command.env(PARENT_VARIABLE, std::process::id().to_string());
        // Ctrl-C reaches us alone: we stop them in good order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = child.stderr.take();
        let (send, of) = (self.send.clone(), name.clone());
        let read = move || {
            let mut lines = lines.map(BufReader::new);
            while let Some(reader) = &mut lines {
                let mut line = Vec::new();
                match reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                    Ok(length) if length > 0 => {}
                    _ => break,
                }
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(Message::Line { name: of.clone(), line }).is_err() {
                    return;
                }
            }
            let _ = send.send(Message::Ended { name: of });
        };
        let reader = std::thread::Builder::new().name(name.clone()).spawn(read);
        let mut node = Node { name, child, address: None, last: VecDeque::new(), waiting, killed: false };
        if let Err(error) = reader {
            end(&mut node.child);
            return Err(error);
        }
        self.nodes.push(node);
        Ok(())
    }

    fn heard(&mut self, name: &str, line: &str) -> Result<(), Failure> {
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else { return Ok(()) };
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let message = value["message"].as_str().unwrap_or(line);
        if node.address.is_none() {
            node.last.push_back(message.to_owned());
            if node.last.len() > LAST_LINES {
                node.last.pop_front();
            }
        }
        let address = value["http"].as_str().and_then(|url| url.strip_prefix("http://")?.parse().ok());
        if let (None, Some(address)) = (node.address, address) {
            node.address = Some(address);
            let shown = format!("{name:<4} http://{address}  pid {}\n", node.child.id());
            let waiting = node.waiting.take();
            self.publish();
            if let Some(waiting) = waiting {
                let _ = waiting.send(Ok(shown.clone()));
            }
            return print(shown.as_bytes());
        }
        if matches!(value["level"].as_str(), Some("WARN" | "ERROR")) {
            tracing::warn!("{name}: {message}");
        }
        Ok(())
    }

    /// The balancer routes to those that listen.
    fn publish(&self) {
        let of = |node: &Node| Some(Backend { name: node.name.clone(), address: node.address? });
        self.balancer.set_members(self.nodes.iter().filter_map(of).collect());
    }

    fn ended(&mut self, name: &str, told: bool) -> Result<(), Failure> {
        let Some(at) = self.nodes.iter().position(|node| node.name == name) else { return Ok(()) };
        let mut node = self.nodes.remove(at);
        self.publish();
        let status = node.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let Some(waiting) = node.waiting.take() else {
            if node.address.is_none() && !told {
                let last: Vec<String> = node.last.into();
                return Err(Failure::Runtime(format!(
                    "{name} ended before it listened: {status}\n{}",
                    last.join("\n")
                )));
            }
            if !node.killed {
                tracing::warn!("{name} ended by itself: {status}");
            }
            return print(format!("{name:<4} ended\n").as_bytes());
        };
        let _ = waiting.send(Err(format!("{name} ended before it listened: {status}")));
        Ok(())
    }

    fn answer(&mut self, question: &str, reply: Sender<control::Answer>) {
        let (verb, name) = question.split_once(' ').unwrap_or((question, ""));
        let answer = match verb {
            "status" => Ok(self.status()),
            "add" if self.nodes.len() >= UP_NODES_MAX => {
                Err(format!("there are {UP_NODES_MAX} nodes already"))
            }
            "add" => match self.add(Some(reply.clone())) {
                // It answers when the node listens.
                Ok(()) => return,
                Err(error) => Err(format!("cannot start a node: {error}")),
            },
            "kill" => match self.nodes.iter_mut().find(|node| node.name == name) {
                Some(node) => {
                    node.killed = true;
                    node.child
                        .kill()
                        .map(|()| format!("{name} is killed\n"))
                        .map_err(|error| error.to_string())
                }
                None => Err(format!("there is no node {name:?}; `meshkv up status` shows them")),
            },
            _ => Err("that is not understood".to_owned()),
        };
        let _ = reply.send(answer);
    }

    fn status(&self) -> String {
        let states = self.balancer.members();
        let mut text = format!("{}\n", self.url());
        for node in &self.nodes {
            let state = states.iter().find(|state| state.name == node.name);
            let (state, reason) =
                state.map_or(("starting", ""), |state| (state.state, state.reason.as_str()));
            let address = node.address.map_or_else(|| "-".to_owned(), |address| format!("http://{address}"));
            text +=
                &format!("{:<4} {address:<24} pid {:<8} {state:<9} {reason}\n", node.name, node.child.id());
        }
        text
    }

    /// Ends everything, in good order where there is time for it.
    fn stop(&mut self) {
        self.balancer.stop();
        for node in &self.nodes {
            if let Some(pid) = Pid::from_raw(node.child.id().cast_signed()) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let until = Instant::now() + STOP_LIMIT;
        for node in &mut self.nodes {
            while node.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            end(&mut node.child);
        }
        let _ = self.balancer.wait();
    }
}

fn end(child: &mut Child) {
    // Of no effect on one that has ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// `meshkv member`, hidden: a node that does not outlive its parent.
pub(super) fn member(node: NodeArgs, environment: Environment<'_>) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::Runtime(format!("cannot follow the parent's end: {error}")))?;
    let parent = getppid().map(Pid::as_raw_nonzero).map(|pid| pid.to_string());
    if environment(PARENT_VARIABLE).and_then(|value| value.into_string().ok()) != parent {
        return Err(Failure::Runtime("a member is started by `meshkv up`, which has ended".to_owned()));
    }
    serve::run(node, environment)
}

/// Starts the process that removes the control socket when we have ended, however that was.
fn janitor(socket: &std::path::Path) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("janitor").arg(socket).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// `meshkv janitor`, hidden: waits for the end of its input, then removes a file.
pub(super) fn clean_up(socket: &std::path::Path) -> Result<(), Failure> {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    let removed = std::fs::remove_file(socket);
    // The directory as well, if no other mesh of ours uses it.
    let _ = socket.parent().map(std::fs::remove_dir);
    removed.map_err(|error| Failure::Runtime(format!("cannot remove {}: {error}", socket.display())))
}
