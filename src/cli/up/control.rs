//! The control socket of `meshkv up`: one question a connection, one answer, as text. It lies in a directory
//! that only its owner may enter.

use super::Message;
use crossbeam::channel::{Sender, bounded};
use std::fs::DirBuilder;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// Longer than a node takes to start.
const PATIENCE: Duration = Duration::from_secs(30);
const QUESTION_BYTES_MAX: u64 = 1024;
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// What is done, or why it is not.
pub(super) type Answer = Result<String, String>;

/// The directory, made if it is not there. Someone else's of the same name is refused: they could read the
/// questions, or answer them.
fn directory() -> Result<PathBuf, String> {
    let user = rustix::process::geteuid().as_raw();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path).join("meshkv"),
        None => std::env::temp_dir().join(format!("meshkv-{user}")),
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(format!("cannot make the directory {}: {error}", path.display()));
        }
        _ => {}
    }
    let found = std::fs::symlink_metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        return Err(format!("{} is not a directory that only you may enter", path.display()));
    }
    Ok(path)
}

fn path(port: u16) -> Result<PathBuf, String> {
    Ok(directory()?.join(format!("up-{port}.sock")))
}

/// Listens, and passes each question on. Returns the socket's path.
pub(super) fn listen(port: u16, send: Sender<Message>) -> Result<PathBuf, String> {
    let path = path(port)?;
    let cannot = |error: std::io::Error| format!("cannot listen on {}: {error}", path.display());
    // The port is ours, so whoever left this socket behind has ended.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(cannot)?;
    let serve = move || {
        for stream in listener.incoming().flatten() {
            let send = send.clone();
            // One that says nothing must not keep the others waiting; they are the owner's own, and few.
            let _ =
                std::thread::Builder::new().name("control".to_owned()).spawn(move || answer(stream, &send));
        }
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(serve).map_err(cannot)?;
    Ok(path)
}

fn answer(mut stream: UnixStream, send: &Sender<Message>) {
    let patient = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
    let mut question = String::new();
    if patient.is_err() || (&stream).take(QUESTION_BYTES_MAX).read_to_string(&mut question).is_err() {
        return;
    }
    let (reply, replied) = bounded(1);
    if send.send(Message::Asked { question, reply }).is_ok() {
        let answer = replied.recv_timeout(PATIENCE).unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let text = match answer {
            Ok(text) => format!("+{text}"),
            Err(reason) => format!("-{reason}"),
        };
        // Who asked may be gone.
        let _ = stream.write_all(text.as_bytes());
    }
}

/// Asks the mesh of this port.
pub(super) fn ask(port: u16, question: &str) -> Result<String, String> {
    let path = path(port)?;
    let none = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no mesh of yours runs on port {port}: start one with `meshkv up`, or name its --port")
        }
        _ => format!("{}: {error}", path.display()),
    };
    let mut stream = UnixStream::connect(&path).map_err(none)?;
    let exchange = stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(1))).and_then(|()| {
        stream.write_all(question.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = exchange.map_err(|error| format!("the mesh on port {port} does not answer: {error}"))?;
    match answer.split_at_checked(1) {
        Some(("+", text)) => Ok(text.to_owned()),
        Some(("-", reason)) => Err(reason.to_owned()),
        _ => Err(format!("the mesh on port {port} does not answer")),
    }
}
