//! Goal: `meshkv up` is one tree: it starts whole, answers from a second terminal, and nothing outlives it,
//! however it ends. Method: the real binary with a run directory of its own.

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::Client;

const SOON: Duration = Duration::from_secs(20);

struct Up {
    child: Child,
    runtime: PathBuf,
    /// The balancer's address.
    address: String,
    /// What it says behind that.
    hints: Vec<String>,
    /// The nodes' process ids, by name.
    nodes: Vec<(String, u32)>,
}

fn meshkv(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
    command.env_clear().env("XDG_RUNTIME_DIR", runtime);
    command
}

impl Up {
    fn start(name: &str, nodes: usize) -> Up {
        let runtime = std::env::temp_dir().join(format!("meshkv-up-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&runtime).expect("made");
        let mut command = meshkv(&runtime);
        command.args(["up", "--port", "0", "--nodes", &nodes.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut nodes = Vec::new();
        let address = loop {
            let line = lines.next().expect("it says its address").expect("text");
            if let Some(address) = line.strip_prefix("http://") {
                break address.to_owned();
            }
            if let Some((name, pid)) = line.split_once(' ').zip(line.rsplit_once("pid ")) {
                nodes.push((name.0.to_owned(), pid.1.parse().expect("a number")));
            }
        };
        let mut hints = Vec::new();
        while !hints.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
            hints.push(lines.next().expect("hints").expect("text"));
        }
        std::thread::spawn(move || lines.for_each(drop));
        Up { child, runtime, address, hints, nodes }
    }

    fn ask(&self, words: &[&str]) -> Output {
        let port = self.address.rsplit(':').next().expect("a port");
        meshkv(&self.runtime).arg("up").args(words).args(["--port", port]).output().expect("runs")
    }

    fn says(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Every process has ended and the run directory is empty.
    #[track_caller]
    fn is_gone(&self) {
        for (name, pid) in &self.nodes {
            eventually(&format!("{name} has ended"), || !runs(*pid));
        }
        eventually("the control socket is removed", || {
            std::fs::read_dir(&self.runtime).expect("there").next().is_none()
        });
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.runtime);
    }
}

/// A process that has ended but was not waited for counts as ended.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < SOON, "not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nodes_come_and_go_from_a_second_terminal_and_an_interrupt_ends_all() {
    let mut up = Up::start("terminal", 2);
    assert_eq!(up.nodes.len(), 2);
    eventually("both are up", || up.says(&["status"]).matches(" up ").count() == 2);
    assert_eq!(Client::connect(&up.address).get("/healthcheck").status, 200);
    let added = up.says(&["add"]);
    assert!(added.starts_with("n3 "), "{added}");
    up.nodes
        .push(("n3".to_owned(), added.trim().rsplit(' ').next().expect("a pid").parse().expect("a number")));
    eventually("three are up", || up.says(&["status"]).matches(" up ").count() == 3);
    assert_eq!(up.says(&["kill", "n1"]), "n1 is killed\n");
    eventually("n1 is gone", || !up.says(&["status"]).contains("n1 "));
    for _ in 0..10 {
        assert_eq!(Client::connect(&up.address).get("/healthcheck").status, 200);
    }
    let unknown = up.ask(&["kill", "n1"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no node \"n1\""));
    up.signal("INT");
    eventually("it has ended", || up.child.try_wait().expect("a child").is_some());
    assert_eq!(up.child.wait().expect("a child").code(), Some(0));
    up.is_gone();
    assert!(!up.ask(&["status"]).status.success());
}

#[test]
fn what_it_says_to_try_works_at_once() {
    let up = Up::start("at-once", 3);
    let target = format!("curl 'http://{}", up.address);
    let hint = up.hints.iter().find_map(|line| line.trim().strip_prefix(&target)?.strip_suffix('\''));
    let hint = hint.unwrap_or_else(|| panic!("something to try: {:?}", up.hints));
    // Whatever node it is led to.
    for _ in 0..6 {
        let answer = Client::connect(&up.address).get(hint);
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"success":true}"#), "{hint}");
    }
    let port = up.address.rsplit(':').next().expect("a port");
    let last = up.hints.last().expect("hints");
    assert!(last.contains(&format!("--port {port}")), "without it nothing is found: {last}");
}

#[test]
fn nothing_outlives_a_parent_that_is_killed_even_a_node_that_is_stopped() {
    let mut up = Up::start("killed", 3);
    let stopped = up.nodes[0].1.to_string();
    assert!(Command::new("kill").args(["-STOP", &stopped]).status().expect("runs").success());
    up.signal("KILL");
    up.child.wait().expect("ended");
    up.is_gone();
}

#[test]
fn a_port_in_use_and_an_open_run_directory_are_refused_with_the_reason() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port().to_string();
    let runtime = std::env::temp_dir().join(format!("meshkv-up-test-{}-refused", std::process::id()));
    std::fs::create_dir(&runtime).expect("made");
    let fails = |port: &str, reason: &str| {
        let output = meshkv(&runtime).args(["up", "--port", port]).output().expect("runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(reason), "{error}");
    };
    fails(&port, "cannot listen on 127.0.0.1:");
    let open = runtime.join("meshkv");
    std::fs::create_dir(&open).expect("made");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&open, everybody).expect("set");
    fails("0", "only you may enter");
    std::fs::remove_dir_all(&runtime).expect("removed");
}

#[test]
fn a_member_without_its_parent_does_not_start() {
    let output = meshkv(&std::env::temp_dir()).args(["member", "--port", "0"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by `meshkv up`"));
}
