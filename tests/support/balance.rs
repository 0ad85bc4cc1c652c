//! A balancer as a process.

use super::Client;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Balance {
    pub child: Child,
    /// Where clients reach it.
    pub address: String,
    /// Where its status pages are.
    pub status: String,
    pub log: Arc<Mutex<String>>,
}

impl Balance {
    /// Starts a balancer on free ports and waits for its `ready`.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Balance {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshkv"));
        command.env_clear().envs(environment.iter().copied());
        command.arg("balance").args(arguments);
        for name in ["--port", "--status-port"] {
            if !arguments.contains(&name) {
                command.args([name, "0"]);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let (mut address, mut status) = (String::new(), String::new());
        for line in lines.by_ref() {
            let line = line.expect("text");
            if let Some(rest) = line.strip_prefix("http   http://") {
                address = rest.to_owned();
            }
            if let Some(rest) = line.strip_prefix("status http://") {
                status = rest.trim_end_matches("/status").to_owned();
            }
            let ready = line == "ready";
            *log.lock().unwrap() += &(line + "\n");
            if ready {
                break;
            }
        }
        assert!(!address.is_empty() && !status.is_empty(), "{}", log.lock().unwrap());
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        Balance { child, address, status, log }
    }

    pub fn page(&self) -> Value {
        serde_json::from_str(&Client::connect(&self.status).get("/status").body).expect("JSON")
    }

    /// The states of the backends, by name.
    pub fn states(&self) -> Vec<(String, String)> {
        let page = self.page();
        let backends = page["backends"].as_array().expect("a list");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let mut states: Vec<_> =
            backends.iter().map(|one| (text(&one["name"]), text(&one["state"]))).collect();
        states.sort();
        states
    }

    /// Waits until the backends' states, ordered by name, are these; panics with what they are instead.
    #[track_caller]
    pub fn becomes(&self, limit: Duration, wanted: &[(&str, &str)]) -> Duration {
        let begun = Instant::now();
        loop {
            let states = self.states();
            let same = states.len() == wanted.len()
                && states.iter().zip(wanted).all(|(is, wanted)| is.0 == wanted.0 && is.1 == wanted.1);
            if same {
                return begun.elapsed();
            }
            let page = self.page();
            assert!(
                begun.elapsed() < limit,
                "{wanted:?} wanted after {limit:?}: {page:#}\n{}",
                self.log.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub fn says(&self, what: &str) {
        let begun = Instant::now();
        while !self.log.lock().unwrap().contains(what) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{what:?} is not in: {}",
                self.log.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        super::signal(&self.child, name);
    }

    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        super::wait(&mut self.child, &self.log, limit)
    }
}

impl Drop for Balance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
