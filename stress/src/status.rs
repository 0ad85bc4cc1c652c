//! What a server says about itself, asked once before and once after a run.

use crate::response::{Parsed, Parser};
use crate::target::Target;
use std::io::{Read, Write};
use std::time::Duration;

pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) keys: u64,
}

const PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// `None`: no meshkv, or none that answers.
pub(crate) fn ask(target: &Target) -> Option<Status> {
    let (status, body) = get(target, "/status")?;
    if status != 200 {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(&body).ok()?;
    Some(Status {
        version: value.get("version")?.as_str()?.to_owned(),
        keys: value.get("availableRecords")?.as_u64()?,
    })
}

/// One request on a connection of its own: the status and the body.
fn get(target: &Target, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = std::net::TcpStream::connect_timeout(&target.addr, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut request = b"GET ".to_vec();
    request.extend_from_slice(&target.prefix);
    request.extend_from_slice(path.as_bytes());
    request.extend_from_slice(&target.tail);
    stream.write_all(&request).ok()?;
    let (mut parser, mut input, mut buffer) = (Parser::default(), Vec::new(), [0; 4096]);
    loop {
        let bytes = stream.read(&mut buffer).ok()?;
        input.extend_from_slice(&buffer[..bytes]);
        match parser.parse(&input, bytes == 0) {
            Parsed::Done { status, start, end, chunked, .. } => {
                let body = if chunked { parser.body } else { input[start..end].to_vec() };
                return Some((status, body));
            }
            Parsed::Partial if bytes > 0 && input.len() < ANSWER_BYTES_MAX => {}
            _ => return None,
        }
    }
}
