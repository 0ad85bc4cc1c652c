//! How long a write to one server takes until another one shows it: it is written, and meanwhile read from the
//! other server again and again until it is there.
//!
//! The time counts from the sending of the write, not from its answer: a server that answers only when all others
//! have the record would otherwise show none. What is seen is late by at most one read.

use crate::options::Options;
use crate::response::{Parsed, Parser};
use crate::run::{Outcome, Plan};
use crate::stats::{Failure, Stats, histogram};
use crate::target::Target;
use crate::workload::Op;
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What `lag` has found; `outcome` counts the writes.
pub(crate) struct Found {
    pub(crate) outcome: Outcome,
    /// From the sending of a write until it was read.
    pub(crate) lag: Histogram<u64>,
    /// Every read, whatever it found.
    pub(crate) reads: Histogram<u64>,
    pub(crate) elapsed_ns: u64,
}

/// One connection with at most one request under way.
struct Client<'t> {
    target: &'t Target,
    stream: TcpStream,
    parser: Parser,
    input: Vec<u8>,
}

impl<'t> Client<'t> {
    fn open(target: &'t Target, timeout: Duration) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("cannot connect to {}: {error}", target.url);
        let stream = TcpStream::connect_timeout(&target.addr, timeout).map_err(fail)?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(fail)?;
        Ok(Self { target, stream, parser: Parser::default(), input: Vec::new() })
    }

    /// A request is far smaller than a socket's buffer, which is empty: it is taken at once or not at all.
    fn send(&mut self, path: &str) -> Result<(), Failure> {
        let mut request = b"GET ".to_vec();
        request.extend_from_slice(&self.target.prefix);
        request.extend_from_slice(path.as_bytes());
        request.extend_from_slice(&self.target.tail);
        self.stream.write_all(&request).map_err(|_| Failure::Reset)
    }

    /// The status and the body, when all of it has come.
    fn receive(&mut self) -> Result<Option<(u16, Vec<u8>)>, Failure> {
        let mut buffer = [0; 16 * 1024];
        let bytes = match self.stream.read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(_) => return Err(Failure::Reset),
        };
        self.input.extend_from_slice(&buffer[..bytes]);
        match self.parser.parse(&self.input, bytes == 0) {
            Parsed::Done { status, used, start, end, chunked, .. } => {
                let body = if chunked { self.parser.body.clone() } else { self.input[start..end].to_vec() };
                self.input.drain(..used);
                Ok(Some((status, body)))
            }
            Parsed::Partial if bytes > 0 => Ok(None),
            _ => Err(Failure::Reset),
        }
    }
}

/// What one write showed.
#[derive(Default)]
struct Round {
    set: Option<Duration>,
    visible: Option<Duration>,
    reads: Vec<Duration>,
}

/// Writes to the first target and reads from the others in turn.
///
/// # Errors
/// A server cannot be reached.
pub(crate) fn run(plan: &Plan, options: &Options, interrupted: &AtomicBool) -> Result<Found, String> {
    let (writer, readers) = plan.targets.split_first().ok_or("lag needs a server to write to")?;
    if readers.is_empty() {
        return Err("lag needs a server to write to and one or more to read from".to_owned());
    }
    let mut write = Client::open(writer, plan.timeout)?;
    let mut read =
        readers.iter().map(|target| Client::open(target, plan.timeout)).collect::<Result<Vec<_>, _>>()?;
    // Values of earlier runs must not be taken for this one's.
    let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let (mut stats, mut lag, mut reads) = (Stats::default(), histogram(), histogram());
    let begun = Instant::now();
    let mut number = 0;
    while plan.requests.is_none_or(|requests| number < requests)
        && plan.duration.is_none_or(|duration| begun.elapsed() < duration)
        && !interrupted.load(Ordering::Relaxed)
    {
        if let Some(rate) = options.rate {
            let due = begun + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let reader = (number % readers.len() as u64) as usize;
        let (key, value) = (format!("stress:lag:{number}"), format!("{run}:{number}"));
        let mut round = Round::default();
        let sent = Instant::now();
        stats.sent += 1;
        let result = visible(&mut write, &mut read[reader], &key, &value, plan.timeout, &mut round);
        for time in &round.reads {
            reads.saturating_record(time.as_nanos() as u64);
        }
        match (result, round.set, round.visible) {
            (Ok(()), Some(set), Some(visible)) => {
                stats.service[Op::Set as usize].saturating_record(set.as_nanos() as u64);
                lag.saturating_record(visible.as_nanos() as u64);
            }
            (result, ..) => {
                stats.fail(result.err().unwrap_or(Failure::Timeout), sent.elapsed().as_nanos() as u64);
                // Answers that are still to come would be taken for those of the next round.
                let again = Client::open(writer, plan.timeout);
                match again.and_then(|w| Ok((w, Client::open(&readers[reader], plan.timeout)?))) {
                    Ok((new_write, new_read)) => (write, read[reader]) = (new_write, new_read),
                    Err(_) => {
                        stats.gave_up = 1;
                        break;
                    }
                }
            }
        }
        number += 1;
    }
    let elapsed_ns = begun.elapsed().as_nanos() as u64;
    stats.end_ns = elapsed_ns;
    stats.ok_in_window = lag.len();
    let interrupted = interrupted.load(Ordering::Relaxed);
    Ok(Found { outcome: Outcome { stats, seconds: Vec::new(), interrupted }, lag, reads, elapsed_ns })
}

/// Until the write is answered and visible; a timeout leaves what is missing out.
fn visible(
    write: &mut Client<'_>,
    read: &mut Client<'_>,
    key: &str,
    value: &str,
    timeout: Duration,
    round: &mut Round,
) -> Result<(), Failure> {
    let (get, expected) = (format!("/get?k={key}"), format!("\"{value}\""));
    let begun = Instant::now();
    write.send(&format!("/set?k={key}&v={value}"))?;
    let mut asked = Instant::now();
    read.send(&get)?;
    while round.set.is_none() || round.visible.is_none() {
        let Some(left) = timeout.checked_sub(begun.elapsed()) else { return Ok(()) };
        // One that has nothing to say any more is not waited for.
        let wanted = |done: bool| if done { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut both = [
            PollFd::new(write.stream.as_fd(), wanted(round.set.is_some())),
            PollFd::new(read.stream.as_fd(), wanted(round.visible.is_some())),
        ];
        let patience = PollTimeout::try_from(left.as_millis().min(1000) + 1).unwrap_or(PollTimeout::MAX);
        // Interrupted, as by a signal: looked at again.
        let _ = poll(&mut both, patience);
        if round.set.is_none()
            && let Some((status, body)) = write.receive()?
        {
            match (status, body.as_slice()) {
                (200, b"{\"success\":true}") => round.set = Some(begun.elapsed()),
                (200, _) => return Err(Failure::Verify),
                (status, _) => return Err(Failure::Http(status)),
            }
        }
        if round.visible.is_none()
            && let Some((status, body)) = read.receive()?
        {
            round.reads.push(asked.elapsed());
            match status {
                200 if body == expected.as_bytes() => round.visible = Some(begun.elapsed()),
                // Not yet there, or still the value of an earlier run.
                200 | 404 => {
                    asked = Instant::now();
                    read.send(&get)?;
                }
                status => return Err(Failure::Http(status)),
            }
        }
    }
    Ok(())
}
