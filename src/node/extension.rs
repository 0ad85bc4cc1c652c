//! What an embedding program adds to a node: GET routes of its own, and observers of the lifecycle.
//!
//! Workers look at one generation number a turn; with no observer registered nothing else is spent.

use super::routes::PATHS;
use crate::http::query;
use bytes::Bytes;
use parking_lot::Mutex;
use std::fmt;
use std::net::SocketAddr;
use std::panic::RefUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A request to a route of the embedding program.
#[derive(Clone, Copy, Debug)]
pub struct CustomRequest<'r> {
    /// The path, as it was registered.
    pub path: &'r str,
    /// The query string, still encoded.
    pub query: &'r [u8],
}

impl CustomRequest<'_> {
    /// The first value of a parameter, decoded by form rules; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        let [found] = query::find(self.query, [name.as_bytes()]);
        let mut decoded = Vec::new();
        query::decode(found.value?, &mut decoded);
        Some(String::from_utf8_lossy(&decoded).into_owned())
    }
}

/// What a route of the embedding program answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status, 200 to 599.
    pub status: u16,
    pub content_type: &'static str,
    /// Stays here if the status is 204 or 304: such answers have none.
    pub body: Bytes,
}

impl Reply {
    /// 200 with a body that is JSON already.
    pub fn json(body: impl Into<Bytes>) -> Reply {
        Reply { status: 200, content_type: "application/json", body: body.into() }
    }

    /// 200 with plain text.
    pub fn text(body: impl Into<Bytes>) -> Reply {
        Reply { status: 200, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    /// The same reply with another status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Reply {
        Reply { status: status.clamp(200, 599), ..self }
    }
}

/// Answers a route. Runs on a worker between other requests: it must not block. A panic answers 500.
pub type Handler = dyn Fn(&CustomRequest<'_>) -> Reply + Send + Sync + RefUnwindSafe;

/// A request, as observers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestEvent<'r> {
    /// Which worker serves it.
    pub worker: usize,
    /// Counts the observed requests of that worker, from 0.
    pub serial: u64,
    /// The path of the request, lossily decoded; empty if it was not a request.
    pub path: &'r str,
}

/// Watches a node. Every method does nothing unless it is overridden; all are called on the node's threads
/// and must not block.
///
/// ```
/// use meshkv::config::NodeConfig;
/// use meshkv::node::extension::{Extensions, Observer, Reply, RequestEvent};
/// use meshkv::server::Server;
/// use std::io::{Read, Write};
/// use std::net::{SocketAddr, TcpStream};
/// use std::sync::mpsc::{Sender, channel};
///
/// /// Passes on what happens, as text.
/// struct Diary(Sender<String>);
///
/// impl Diary {
///     fn note(&self, line: String) {
///         // Should nobody read any more, there is nobody to tell.
///         let _ = self.0.send(line);
///     }
/// }
///
/// impl Observer for Diary {
///     fn server_connected(&self, address: SocketAddr) {
///         self.note(format!("serves on {}", address.ip()));
///     }
///
///     fn server_disconnected(&self, error: Option<&str>) {
///         self.note(format!("ended: {}", error.unwrap_or("it was asked to")));
///     }
///
///     fn request_started(&self, request: RequestEvent<'_>) {
///         self.note(format!("{} {} starts", request.serial, request.path));
///     }
///
///     fn request_completed(&self, request: RequestEvent<'_>, status: u16) {
///         self.note(format!("{} {} comes to {status}", request.serial, request.path));
///     }
///
///     fn request_ended(&self, request: RequestEvent<'_>) {
///         self.note(format!("{} {} has left", request.serial, request.path));
///     }
/// }
///
/// let (send, diary) = channel();
/// let extensions = Extensions::new();
/// extensions.observe(Diary(send));
/// let server = Server::start(NodeConfig { port: 0, workers: 1, ..Default::default() }, extensions.clone())?;
/// // The node is running already.
/// extensions.route("/teapot", |_| Reply::text("short and stout").with_status(418))?;
///
/// let mut client = TcpStream::connect(server.http_address())?;
/// client.write_all(b"GET /teapot HTTP/1.0\r\n\r\n")?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer)?;
/// assert!(answer.starts_with("HTTP/1.1 418 ") && answer.ends_with("short and stout"));
///
/// server.stop();
/// server.wait()?;
/// let lines: Vec<String> = diary.try_iter().collect();
/// assert_eq!(
///     lines,
///     [
///         "serves on 127.0.0.1",
///         "0 /teapot starts",
///         "0 /teapot comes to 418",
///         "0 /teapot has left",
///         "ended: it was asked to",
///     ]
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Observer: Send + Sync {
    /// The node listens and serves. `address` is the HTTP address.
    fn server_connected(&self, address: SocketAddr) {
        let _ = address;
    }

    /// The node serves no more. `error`: why, if it was not asked to stop; that is told at once, while answers in
    /// flight may still be finished.
    fn server_disconnected(&self, error: Option<&str>) {
        let _ = error;
    }

    /// A request was read whole; nothing was done about it yet.
    fn request_started(&self, request: RequestEvent<'_>) {
        let _ = request;
    }

    /// The outcome is known, the answer has not left.
    fn request_completed(&self, request: RequestEvent<'_>, status: u16) {
        let _ = (request, status);
    }

    /// The answer was handed to the system, or its connection is gone.
    fn request_ended(&self, request: RequestEvent<'_>) {
        let _ = request;
    }
}

/// Why a route could not be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The path does not begin with `/`, or holds `?`, `#`, `%`, spaces or control characters.
    InvalidPath(String),
    /// One of the node's own routes, or registered before. The earlier one stays.
    Taken(String),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::InvalidPath(path) => write!(f, "{path:?} cannot be a route's path"),
            RouteError::Taken(path) => write!(f, "the route {path:?} exists already"),
        }
    }
}

impl std::error::Error for RouteError {}

/// Routes and observers as of one generation. Immutable.
#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) routes: Vec<(String, Arc<Handler>)>,
    pub(crate) observers: Vec<Arc<dyn Observer>>,
}

impl Snapshot {
    pub(crate) fn route(&self, path: &[u8]) -> Option<usize> {
        self.routes.iter().position(|(registered, _)| registered.as_bytes() == path)
    }
}

#[derive(Default)]
struct Shared {
    generation: AtomicU64,
    current: Mutex<Arc<Snapshot>>,
}

/// The routes and observers of an embedding program. Clones share them; they can be added to at any time,
/// also while the node runs.
#[derive(Clone, Default)]
pub struct Extensions {
    shared: Arc<Shared>,
}

impl Extensions {
    #[must_use]
    pub fn new() -> Extensions {
        Extensions::default()
    }

    /// Answers GET (and HEAD) requests to `path` from now on.
    ///
    /// # Errors
    /// [`RouteError`] if the path cannot be one or is taken; nothing changed.
    pub fn route<H>(&self, path: &str, handler: H) -> Result<(), RouteError>
    where
        H: Fn(&CustomRequest<'_>) -> Reply + Send + Sync + RefUnwindSafe + 'static,
    {
        let fits =
            path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%".contains(&b));
        if !fits {
            return Err(RouteError::InvalidPath(path.to_owned()));
        }
        self.change(|snapshot| {
            if PATHS.contains(&path) || snapshot.route(path.as_bytes()).is_some() {
                return Err(RouteError::Taken(path.to_owned()));
            }
            snapshot.routes.push((path.to_owned(), Arc::new(handler)));
            Ok(())
        })
    }

    /// Tells `observer` of everything from now on. Several are told in the order in which they came.
    ///
    /// ```
    /// use meshkv::node::extension::{Extensions, Observer, RequestEvent};
    ///
    /// struct Faults;
    ///
    /// impl Observer for Faults {
    ///     fn request_completed(&self, request: RequestEvent<'_>, status: u16) {
    ///         if status >= 500 {
    ///             eprintln!("{} was answered {status}", request.path);
    ///         }
    ///     }
    ///
    ///     fn server_disconnected(&self, error: Option<&str>) {
    ///         if let Some(error) = error {
    ///             eprintln!("the node has failed: {error}");
    ///         }
    ///     }
    /// }
    ///
    /// let extensions = Extensions::new();
    /// extensions.observe(Faults);
    /// ```
    pub fn observe(&self, observer: impl Observer + 'static) {
        self.change(|snapshot| snapshot.observers.push(Arc::new(observer)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        let mut current = self.shared.current.lock();
        let mut next = Snapshot::clone(&current);
        let result = change(&mut next);
        *current = Arc::new(next);
        self.shared.generation.fetch_add(1, Ordering::Release);
        result
    }

    pub(crate) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.current.lock())
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        let paths: Vec<&str> = snapshot.routes.iter().map(|(path, _)| path.as_str()).collect();
        f.debug_struct("Extensions")
            .field("routes", &paths)
            .field("observers", &snapshot.observers.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked_and_kept_unique() {
        let extensions = Extensions::new();
        let handler = |_: &CustomRequest<'_>| Reply::text("x");
        assert_eq!(extensions.route("/hello", handler), Ok(()));
        assert_eq!(extensions.route("/hello", handler), Err(RouteError::Taken("/hello".into())));
        assert_eq!(extensions.route("/get", handler), Err(RouteError::Taken("/get".into())));
        for path in ["", "hello", "/a b", "/a?b", "/a%20", "/ключ", "/a\n"] {
            assert_eq!(extensions.route(path, handler), Err(RouteError::InvalidPath(path.into())));
        }
    }
}
