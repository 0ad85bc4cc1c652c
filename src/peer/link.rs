//! A link: the byte stream between two nodes as a state machine. Preambles first, then, where a secret is
//! shared, a Noise handshake, then frames. Bytes in, frames out, and the other way round; whoever drives it
//! owns the socket and the time.

use super::frame::Frame;
use super::read::Defect;
use crate::limits::{FRAME_BYTES_MAX, GREETING_BYTES_MAX, LINK_OUTPUT_BYTES};
use blake2::Digest;
use std::fmt;

/// The protocol's version; see `proto-spec/peer.md`.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 6] = *b"meshkv";
const PREAMBLE: usize = 16;
const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// The most that one Noise message carries: 65535 with its tag.
const NOISE_PLAIN_MAX: usize = 65_535 - 16;
const NOISE_MESSAGE_MAX: usize = 65_535;
/// The most that a handshake message may have: a key and a tag, with room to spare.
const HANDSHAKE_MESSAGE_MAX: usize = 256;

/// What two nodes share to trust each other: keys made of the configured secrets. The first is used to dial,
/// all are accepted.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Keys of these secrets; none: links are neither encrypted nor authenticated.
    #[must_use]
    pub fn new(secrets: &[&[u8]]) -> Keys {
        let key = |secret: &&[u8]| {
            let digest = blake2::Blake2s256::new_with_prefix(b"meshkv peer psk 1").chain_update(secret);
            digest.finalize().into()
        };
        Keys(secrets.iter().map(key).collect())
    }

    /// There is no secret.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Why a link ended before or instead of a frame that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The other side does not speak this protocol at all.
    NotAPeer,
    /// No version in common.
    Version { theirs: (u8, u8) },
    /// One side has a secret and the other has none.
    SecretOnOneSide { ours: bool },
    /// Both have a secret; they differ, or the bytes were tampered with.
    Secret,
    /// See [`Defect`].
    Frame(Defect),
    /// The other side refused the preamble, with this status.
    Refused(u8),
    /// From beyond private networks, without a secret.
    Address,
}

impl LinkError {
    /// The kinds, for counting.
    pub const LABELS: [&'static str; 7] =
        ["not_a_peer", "version", "secret_missing", "secret", "frame", "refused", "address"];

    /// Its place in [`LinkError::LABELS`].
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            LinkError::NotAPeer => 0,
            LinkError::Version { .. } => 1,
            LinkError::SecretOnOneSide { .. } => 2,
            LinkError::Secret => 3,
            LinkError::Frame(_) => 4,
            LinkError::Refused(_) => 5,
            LinkError::Address => 6,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::NotAPeer => f.write_str("what came is not the peer protocol"),
            LinkError::Version { theirs: (least, most) } => {
                write!(f, "the peer speaks versions {least} to {most}, this node {VERSION}")
            }
            LinkError::SecretOnOneSide { ours: true } => f.write_str("the peer has no secret, this node has"),
            LinkError::SecretOnOneSide { ours: false } => {
                f.write_str("the peer has a secret, this node has none")
            }
            LinkError::Secret => f.write_str("the peer's secret is another one"),
            LinkError::Frame(defect) => write!(f, "not a frame: {defect}"),
            LinkError::Address => f.write_str("beyond private networks a secret is needed"),
            LinkError::Refused(status) => write!(f, "the peer refused the preamble with status {status}"),
        }
    }
}

impl std::error::Error for LinkError {}

/// Status of an acceptor's preamble.
mod status {
    pub(super) const FINE: u8 = 0;
    pub(super) const VERSION: u8 = 1;
    pub(super) const SECRET: u8 = 2;
}

enum State {
    /// Waiting for the other side's preamble.
    Preamble,
    /// Dialer: waiting for the answer to its first Noise message.
    Initiator(Box<snow::HandshakeState>),
    /// Acceptor: waiting for the first Noise message, with the prologue.
    Responder([u8; 2 * PREAMBLE]),
    Plain,
    Encrypted(Box<snow::TransportState>),
    Failed(LinkError),
}

/// See the module.
pub struct Link {
    state: State,
    is_dialer: bool,
    /// The other side has said who it is, and was let in.
    is_met: bool,
    keys: Keys,
    /// Received, in the clear, not yet taken as frames from `taken` on.
    input: Vec<u8>,
    taken: usize,
    /// Received and still encrypted (or part of the handshake).
    sealed: Vec<u8>,
    /// Frames that wait to be sealed; only of encrypted links.
    clear: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Preamble => "preamble",
            State::Initiator(_) | State::Responder(_) => "handshake",
            State::Plain => "plain",
            State::Encrypted(_) => "encrypted",
            State::Failed(_) => "failed",
        };
        write!(f, "Link({state})")
    }
}

fn preamble(encrypted: bool, status: u8) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..6].copy_from_slice(&MAGIC);
    bytes[6] = VERSION;
    bytes[7] = VERSION;
    bytes[8] = u8::from(encrypted);
    bytes[9] = status;
    bytes
}

impl Link {
    /// The dialer's end; its first bytes wait in the output.
    #[must_use]
    pub fn dial(keys: Keys) -> Link {
        let mut link = Link::new(true, keys);
        let first = preamble(!link.keys.0.is_empty(), status::FINE);
        link.output.extend_from_slice(&first);
        link
    }

    /// The acceptor's end.
    #[must_use]
    pub fn accept(keys: Keys) -> Link {
        Link::new(false, keys)
    }

    fn new(is_dialer: bool, keys: Keys) -> Link {
        Link {
            state: State::Preamble,
            is_dialer,
            is_met: false,
            keys,
            input: Vec::new(),
            taken: 0,
            sealed: Vec::new(),
            clear: Vec::new(),
            output: Vec::new(),
            sent: 0,
        }
    }

    /// Frames can be sent.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Plain | State::Encrypted(_))
    }

    /// Takes bytes of the stream; true if the link became established by them.
    ///
    /// # Errors
    /// [`LinkError`]: write what is left of the output, then close.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<bool, LinkError> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        if matches!(self.state, State::Plain) {
            compact(&mut self.input, &mut self.taken);
            self.input.extend_from_slice(bytes);
            return Ok(false);
        }
        let before = self.is_established();
        self.sealed.extend_from_slice(bytes);
        if let Err(error) = self.advance() {
            self.state = State::Failed(error);
            return Err(error);
        }
        Ok(!before && self.is_established())
    }

    /// Goes through as much of `sealed` as can be understood.
    fn advance(&mut self) -> Result<(), LinkError> {
        loop {
            match &mut self.state {
                State::Preamble => {
                    let known = self.sealed.len().min(MAGIC.len());
                    if self.sealed[..known] != MAGIC[..known] {
                        return Err(LinkError::NotAPeer);
                    }
                    if self.sealed.len() < PREAMBLE {
                        return Ok(());
                    }
                    let mut theirs = [0; PREAMBLE];
                    theirs.copy_from_slice(&self.sealed[..PREAMBLE]);
                    self.sealed.drain(..PREAMBLE);
                    self.meet(theirs)?;
                }
                State::Initiator(handshake) => {
                    let Some(message) = take_message(&mut self.sealed)? else { return Ok(()) };
                    let mut payload = [0; 64];
                    handshake.read_message(&message, &mut payload).map_err(|_| LinkError::Secret)?;
                    let State::Initiator(handshake) = std::mem::replace(&mut self.state, State::Plain) else {
                        return Err(LinkError::Secret);
                    };
                    let transport = handshake.into_transport_mode().map_err(|_| LinkError::Secret)?;
                    self.state = State::Encrypted(Box::new(transport));
                }
                State::Responder(prologue) => {
                    let prologue = *prologue;
                    let Some(message) = take_message(&mut self.sealed)? else { return Ok(()) };
                    let transport = self.respond(&prologue, &message)?;
                    self.state = State::Encrypted(Box::new(transport));
                }
                State::Plain => {
                    self.input.append(&mut self.sealed);
                    return Ok(());
                }
                State::Encrypted(transport) => {
                    compact(&mut self.input, &mut self.taken);
                    let mut at = 0;
                    while let Some((length, rest)) = self.sealed[at..].split_first_chunk::<2>() {
                        let length = usize::from(u16::from_le_bytes(*length));
                        let Some(message) = rest.get(..length) else { break };
                        let start = self.input.len();
                        self.input.resize(start + length, 0);
                        let read = transport.read_message(message, &mut self.input[start..]);
                        let plain = read.map_err(|_| LinkError::Secret)?;
                        self.input.truncate(start + plain);
                        at += 2 + length;
                    }
                    self.sealed.drain(..at);
                    return Ok(());
                }
                State::Failed(error) => return Err(*error),
            }
        }
    }

    /// The other side's preamble has come.
    fn meet(&mut self, theirs: [u8; PREAMBLE]) -> Result<(), LinkError> {
        let ours_encrypted = !self.keys.0.is_empty();
        let theirs_encrypted = theirs[8] == 1;
        let (least, most) = (theirs[6], theirs[7]);
        let verdict = if theirs[8] > 1 || least > most {
            Err(LinkError::NotAPeer)
        } else if !(least..=most).contains(&VERSION) {
            Err(LinkError::Version { theirs: (least, most) })
        } else if theirs_encrypted != ours_encrypted {
            Err(LinkError::SecretOnOneSide { ours: ours_encrypted })
        } else if theirs[9] != status::FINE {
            Err(LinkError::Refused(theirs[9]))
        } else {
            Ok(())
        };
        let mut prologue = [0; 2 * PREAMBLE];
        if self.is_dialer {
            prologue[..PREAMBLE].copy_from_slice(&preamble(ours_encrypted, status::FINE));
            prologue[PREAMBLE..].copy_from_slice(&theirs);
        } else {
            let status = match verdict {
                Err(LinkError::Version { .. }) => status::VERSION,
                Err(LinkError::SecretOnOneSide { .. }) => status::SECRET,
                _ => status::FINE,
            };
            let ours = preamble(ours_encrypted, status);
            if verdict != Err(LinkError::NotAPeer) {
                self.output.extend_from_slice(&ours);
            }
            prologue[..PREAMBLE].copy_from_slice(&theirs);
            prologue[PREAMBLE..].copy_from_slice(&ours);
        }
        verdict?;
        self.state = match (ours_encrypted, self.is_dialer) {
            (false, _) => State::Plain,
            (true, false) => State::Responder(prologue),
            (true, true) => {
                let mut handshake = noise(&self.keys.0[0], &prologue, true)?;
                let mut message = [0; 128];
                let length = handshake.write_message(&[], &mut message).map_err(|_| LinkError::Secret)?;
                put_message(&message[..length], &mut self.output);
                State::Initiator(Box::new(handshake))
            }
        };
        Ok(())
    }

    /// Answers the dialer's first Noise message under whichever key opens it.
    fn respond(
        &mut self,
        prologue: &[u8; 2 * PREAMBLE],
        message: &[u8],
    ) -> Result<snow::TransportState, LinkError> {
        for key in &self.keys.0 {
            let mut handshake = noise(key, prologue, false)?;
            let mut payload = [0; 64];
            if handshake.read_message(message, &mut payload).is_err() {
                continue;
            }
            let mut answer = [0; 128];
            let length = handshake.write_message(&[], &mut answer).map_err(|_| LinkError::Secret)?;
            put_message(&answer[..length], &mut self.output);
            return handshake.into_transport_mode().map_err(|_| LinkError::Secret);
        }
        Err(LinkError::Secret)
    }

    /// The other side has said who it is, and was let in: frames may be as long as any.
    pub fn met(&mut self) {
        self.is_met = true;
    }

    /// The next whole frame that was received. Before [`Link::met`] they are short.
    ///
    /// # Errors
    /// [`LinkError::Frame`]: nothing behind it can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
        if !self.is_established() {
            return Ok(None);
        }
        let input = &self.input[self.taken..];
        if let (false, Some(length)) = (self.is_met, input.first_chunk::<4>()) {
            // Nothing long is kept for strangers.
            let length = u32::from_le_bytes(*length);
            if length as usize > GREETING_BYTES_MAX {
                return Err(LinkError::Frame(Defect::Length(length)));
            }
        }
        match Frame::decode(input) {
            Ok(Some((frame, length))) => {
                self.taken += length;
                Ok(Some(frame))
            }
            Ok(None) => Ok(None),
            Err(defect) => Err(LinkError::Frame(defect)),
        }
    }

    /// Appends a frame to the output. Only of an established link.
    pub fn send(&mut self, frame: &Frame<'_>) {
        match &mut self.state {
            State::Plain => frame.encode(&mut self.output),
            State::Encrypted(transport) => {
                self.clear.clear();
                frame.encode(&mut self.clear);
                for piece in self.clear.chunks(NOISE_PLAIN_MAX) {
                    let start = self.output.len();
                    self.output.resize(start + 2 + piece.len() + 16, 0);
                    let sealed = transport.write_message(piece, &mut self.output[start + 2..]);
                    // Only a message that is too long, or 2^64 of them, can fail.
                    let length = sealed.unwrap_or(0);
                    self.output[start..start + 2].copy_from_slice(&(length as u16).to_le_bytes());
                    self.output.truncate(start + 2 + length);
                }
            }
            _ => debug_assert!(false, "frames are sent on established links"),
        }
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// So many of them have been written.
    pub fn wrote(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            // A burst must not keep its memory for ever.
            if self.output.capacity() > 2 * LINK_OUTPUT_BYTES {
                self.output.shrink_to(LINK_OUTPUT_BYTES);
            }
        } else if self.sent > LINK_OUTPUT_BYTES {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Forgets what has been taken.
fn compact(input: &mut Vec<u8>, taken: &mut usize) {
    if *taken == input.len() {
        input.clear();
        *taken = 0;
    } else if *taken > FRAME_BYTES_MAX / 4 {
        input.drain(..*taken);
        *taken = 0;
    }
}

fn noise(key: &[u8; 32], prologue: &[u8], initiator: bool) -> Result<snow::HandshakeState, LinkError> {
    let params = NOISE.parse().map_err(|_| LinkError::Secret)?;
    let builder = snow::Builder::new(params).psk(0, key).and_then(|builder| builder.prologue(prologue));
    let built = builder.and_then(|b| if initiator { b.build_initiator() } else { b.build_responder() });
    built.map_err(|_| LinkError::Secret)
}

/// The next whole message of the handshake.
fn take_message(from: &mut Vec<u8>) -> Result<Option<Vec<u8>>, LinkError> {
    let Some((length, rest)) = from.split_first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_le_bytes(*length));
    if length > HANDSHAKE_MESSAGE_MAX {
        return Err(LinkError::NotAPeer);
    }
    let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
    from.drain(..2 + length);
    Ok(Some(message))
}

fn put_message(message: &[u8], out: &mut Vec<u8>) {
    debug_assert!(message.len() <= NOISE_MESSAGE_MAX);
    out.extend_from_slice(&(message.len() as u16).to_le_bytes());
    out.extend_from_slice(message);
}
