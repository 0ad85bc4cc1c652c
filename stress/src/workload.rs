//! What is asked of the server: operations, keys, values and the bytes of each request.
//!
//! Everything is a pure function of (seed, request number), so a run can be replayed and any thread may take any
//! request. Nothing here allocates per request: callers pass the buffer.

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Set = 0,
    Get = 1,
    Rm = 2,
    Is = 3,
}

pub const OPS: [(Op, &str); 4] = [(Op::Set, "set"), (Op::Get, "get"), (Op::Rm, "rm"), (Op::Is, "is")];

/// Mixes 64 bits into 64 well-spread bits (the finaliser of splitmix64).
pub fn mix64(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number in (0, 1].
pub fn unit(x: u64) -> f64 {
    ((x >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDist {
    Seq,
    Uniform,
    Zipf(Zipf),
}

/// Zipf over `1..=n` by inverting the integral of x^-s: one `powf` per key. Against exact Zipf the head is slightly
/// lighter; the exponent of the tail is exact.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Zipf {
    n: f64,
    s: f64,
}

impl Zipf {
    pub fn new(n: u64, s: f64) -> Self {
        Self { n: n as f64, s }
    }

    /// A number below `n`, small ones more often, from `u` in (0, 1].
    pub fn sample(&self, u: f64) -> u64 {
        // H(x) = integral of t^-s from 0.5 to x + 0.5, inverted at u · H(n).
        let e = 1.0 - self.s;
        let x = if e.abs() < 1e-9 {
            0.5 * ((self.n + 0.5) / 0.5).powf(u)
        } else {
            let low = 0.5f64.powf(e);
            (low + u * ((self.n + 0.5).powf(e) - low)).powf(1.0 / e)
        };
        (x.round().clamp(1.0, self.n)) as u64 - 1
    }
}

#[derive(Clone, Debug)]
pub struct Workload {
    /// Cumulative weights of set, get, rm, is.
    mix: [u64; 4],
    keys: u64,
    dist: KeyDist,
    /// `None`: the value is `value:N`. Otherwise its least and greatest length in bytes.
    value_size: Option<(usize, usize)>,
    seed: u64,
    template: Option<Template>,
}

/// A request target for a server that is not meshkv: `{n}`, `{k}` and `{v}` are replaced.
#[derive(Clone, Debug)]
pub struct Template {
    path: Vec<Piece>,
    body: Option<Vec<Piece>>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Vec<u8>),
    Number,
    Key,
    Value,
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let piece = match rest.get(at..at + 3) {
            Some("{n}") => Piece::Number,
            Some("{k}") => Piece::Key,
            Some("{v}") => Piece::Value,
            _ => {
                out.push(Piece::Text(rest.as_bytes()[..=at].to_vec()));
                rest = &rest[at + 1..];
                continue;
            }
        };
        out.push(Piece::Text(rest.as_bytes()[..at].to_vec()));
        out.push(piece);
        rest = &rest[at + 3..];
    }
    out.push(Piece::Text(rest.as_bytes().to_vec()));
    out
}

impl Template {
    /// `path` is the request target; `body`, when given, is what every answer must be.
    pub fn new(path: &str, body: Option<&str>) -> Self {
        Self { path: pieces(path), body: body.map(pieces) }
    }
}

fn decimal(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}

impl Workload {
    pub fn new(
        mix: [u64; 4],
        keys: u64,
        dist: KeyDist,
        value_size: Option<(usize, usize)>,
        seed: u64,
        template: Option<Template>,
    ) -> Self {
        let mut sum = 0;
        let mix = mix.map(|weight| {
            sum += weight;
            sum
        });
        Self { mix, keys: keys.max(1), dist, value_size, seed, template }
    }

    /// The operation and the key number of request `index`.
    pub fn pick(&self, index: u64) -> (Op, u64) {
        let random = mix64(self.seed ^ index.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let total = self.mix[3];
        let op = if self.template.is_some() {
            Op::Get
        } else {
            // The high half chooses the operation and a second mix the key: the two are independent.
            let ticket = ((random >> 32) * total) >> 32;
            OPS[self.mix.iter().position(|&edge| ticket < edge).unwrap_or(0)].0
        };
        let key = match self.dist {
            KeyDist::Seq => index % self.keys,
            KeyDist::Uniform => ((u128::from(mix64(random)) * u128::from(self.keys)) >> 64) as u64,
            KeyDist::Zipf(zipf) => zipf.sample(unit(mix64(random))),
        };
        (op, key)
    }

    /// Appends the value of key number `key`. It depends on the key alone, so every reader knows what to expect.
    pub fn value(&self, out: &mut Vec<u8>, key: u64) {
        let Some((low, high)) = self.value_size else {
            out.extend_from_slice(b"value:");
            return decimal(out, key);
        };
        let mut random = mix64(self.seed.rotate_left(17) ^ key);
        let size = low + (random % (high - low + 1) as u64) as usize;
        for at in 0..size {
            if at % 10 == 0 {
                random = mix64(random);
            }
            out.push(
                b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(random & 63) as usize],
            );
            random >>= 6;
        }
    }

    fn fill(&self, out: &mut Vec<u8>, pieces: &[Piece], key: u64) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Number => decimal(out, key),
                Piece::Key => {
                    out.extend_from_slice(b"stress:");
                    decimal(out, key);
                }
                Piece::Value => self.value(out, key),
            }
        }
    }

    /// Appends one whole request. `prefix` is the path of the base URL, `tail` everything from ` HTTP/1.1` on.
    pub fn request(&self, out: &mut Vec<u8>, op: Op, key: u64, prefix: &[u8], tail: &[u8]) {
        out.extend_from_slice(b"GET ");
        out.extend_from_slice(prefix);
        if let Some(template) = &self.template {
            self.fill(out, &template.path, key);
        } else {
            out.extend_from_slice(match op {
                Op::Set => b"/set?k=stress:",
                Op::Get => b"/get?k=stress:",
                Op::Rm => &b"/rm?k=stress:"[..],
                Op::Is => b"/is?k=stress:",
            });
            decimal(out, key);
            if op == Op::Set {
                out.extend_from_slice(b"&v=");
                self.value(out, key);
            }
        }
        out.extend_from_slice(tail);
    }

    /// Whether `body` is the right answer; `scratch` is reused. A template without a body accepts any.
    pub fn body_is_right(&self, scratch: &mut Vec<u8>, op: Op, key: u64, body: &[u8]) -> bool {
        if let Some(template) = &self.template {
            let Some(expected) = &template.body else { return true };
            scratch.clear();
            self.fill(scratch, expected, key);
            return body == scratch;
        }
        if op != Op::Get {
            return body == b"{\"success\":true}";
        }
        scratch.clear();
        scratch.push(b'"');
        self.value(scratch, key);
        scratch.push(b'"');
        body == scratch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_values_and_answers_agree() {
        let work = Workload::new([1, 0, 0, 0], 10, KeyDist::Seq, None, 1, None);
        let mut out = Vec::new();
        work.request(&mut out, Op::Set, 7, b"", b" HTTP/1.1\r\n\r\n");
        assert_eq!(out, b"GET /set?k=stress:7&v=value:7 HTTP/1.1\r\n\r\n");
        assert!(work.body_is_right(&mut out, Op::Get, 7, b"\"value:7\""));
        assert!(!work.body_is_right(&mut out, Op::Get, 8, b"\"value:7\""));
        assert!(!work.body_is_right(&mut out, Op::Set, 8, b"{\"success\":false}"));
        assert_eq!(work.pick(13), (Op::Set, 3));
    }

    #[test]
    fn distributions_stay_in_range_and_have_their_shape() {
        let n = 1000;
        let mut counts = vec![0u32; n as usize];
        let work = Workload::new([1, 3, 0, 0], n, KeyDist::Zipf(Zipf::new(n, 0.99)), Some((3, 9)), 5, None);
        let mut sets = 0;
        for index in 0..100_000 {
            let (op, key) = work.pick(index);
            counts[key as usize] += 1;
            sets += u32::from(op == Op::Set);
        }
        assert!((24_000..26_000).contains(&sets), "{sets}");
        // 1 / H(1000, 0.99) is 0.13; the second key gets about half as much.
        assert!((11_000..15_000).contains(&counts[0]), "{}", counts[0]);
        let ratio = f64::from(counts[9]) / f64::from(counts[99]);
        assert!((7.0..14.0).contains(&ratio), "{ratio}");
        let mut value = Vec::new();
        for key in 0..1000 {
            value.clear();
            work.value(&mut value, key);
            assert!((3..=9).contains(&value.len()));
        }
    }

    #[test]
    fn a_template_is_filled() {
        let template = Template::new("/x/{n}?a={k}&b={z}", Some("got {n}"));
        let work = Workload::new([1, 0, 0, 0], 10, KeyDist::Seq, None, 1, Some(template));
        let mut out = Vec::new();
        work.request(&mut out, Op::Get, 4, b"/p", b"!");
        assert_eq!(out, b"GET /p/x/4?a=stress:4&b={z}!");
        assert!(work.body_is_right(&mut out, Op::Get, 4, b"got 4"));
        assert!(!work.body_is_right(&mut out, Op::Get, 4, b"got 5"));
    }
}
