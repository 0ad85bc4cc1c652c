//! Every bound of the node, in one place, with the relations between them checked when it is compiled.

/// Characters of a key, by default (`--max-key-length`).
pub const KEY_CHARS_DEFAULT: usize = 64;
/// Characters of a value, by default (`--max-value-length`).
pub const VALUE_CHARS_DEFAULT: usize = 256;
/// The most that `--max-key-length` may ask for, in characters.
pub const KEY_CHARS_MAX: usize = 1024;
/// The most that `--max-value-length` may ask for, in characters.
pub const VALUE_CHARS_MAX: usize = 4096;
/// Bytes of UTF-8 that one character may take.
pub const CHAR_BYTES_MAX: usize = 4;
/// Bytes of a key that the store must hold.
pub const KEY_BYTES_MAX: usize = KEY_CHARS_MAX * CHAR_BYTES_MAX;
/// Bytes of a value that the store must hold.
pub const VALUE_BYTES_MAX: usize = VALUE_CHARS_MAX * CHAR_BYTES_MAX;
/// Longest `ttl`, in seconds: ten years of 365.25 days.
pub const TTL_SECONDS_MAX: u64 = 315_576_000;

/// Bytes of a request line, its line break excluded; longer: 414.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a request's header fields; longer: 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Header fields of a request; more: 431.
pub const HEADER_FIELDS_MAX: usize = 64;
/// Bytes of a request body, which is read and dropped; longer: 413.
pub const BODY_BYTES_MAX: u64 = 64 * 1024;
/// Bytes around those of a chunked body: sizes, line breaks, extensions, the trailer; more: 413. One chunk for each
/// byte takes five or six.
pub const BODY_FRAMING_BYTES_MAX: u64 = 8 * BODY_BYTES_MAX;
/// Bytes that one connection's read may bring in one turn. An incomplete head always fits.
pub const READ_SLOT_BYTES: usize = 32 * 1024;
/// Connections served in one turn of a worker.
pub const TURN_CONNECTIONS_MAX: usize = 64;
/// Requests of one connection served in one turn: what makes the turn fair.
pub const TURN_REQUESTS_PER_CONNECTION_MAX: usize = 256;
/// Bytes of answers that one worker keeps for clients that do not read: while any wait, their client is not
/// read; a connection that would go past this sum is dropped.
pub const OUTPUT_WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that makes no progress on waiting output for this long is dropped, in milliseconds.
pub const OUTPUT_STALL_MS: u64 = 30_000;
/// An idle keep-alive connection is closed after this, in milliseconds.
pub const IDLE_CONNECTION_MS: u64 = 75_000;
/// A request head that takes longer than this to arrive is refused, in milliseconds.
pub const HEAD_ARRIVAL_MS: u64 = 30_000;
/// The most that an embedding program may set the two above to, in milliseconds.
pub const CONNECTION_WAIT_MS_MAX: u64 = 86_400_000;
/// A connection that was closed by us is listened to this long, so that its last answer is not lost to a reset.
pub const LINGER_MS: u64 = 2_000;
/// While a node stops, connections that are idle get this long to hear of it, in milliseconds.
pub const DRAIN_IDLE_MS: u64 = 500;
/// Connections that a worker accepts before it serves those it has.
pub const TURN_ACCEPTS_MAX: usize = 64;
/// Entries that a worker's background work looks at in one turn.
pub const MAINTENANCE_BUDGET: usize = 256;
/// How long a stopping node drains, in milliseconds.
pub const DRAIN_MS: u64 = 5_000;
/// Records of a listing looked at before the worker turns to other connections.
pub const LISTING_RECORDS_PER_TURN: usize = 256;
/// A streamed piece of a listing ends when it is this long, in bytes.
pub const LISTING_PIECE_BYTES: usize = 32 * 1024;
/// A page of a listing ends early when it is this long, in bytes; its cursor goes on.
pub const LISTING_PAGE_BYTES: usize = 1024 * 1024;
/// Largest `limit` of a paged listing.
pub const LISTING_LIMIT_MAX: u64 = 1_000_000_000;

/// Stripes of the store (a power of two).
pub const STRIPES_DEFAULT: usize = 512;
/// Distinct writers that the store's records may name at once.
pub const WRITERS_MAX: usize = 256;
/// Tombstones are kept at least this long, in milliseconds.
pub const TOMBSTONE_KEEP_MS: u64 = 60_000;

/// Backends that the balancer keeps; more of a group are left out, and said so.
pub const BACKENDS_MAX: usize = 1024;
/// Bytes of one value of the engine's event stream; a longer one is skipped and the list read instead.
pub const ENGINE_EVENT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of an engine's list of containers; a longer one counts as a failed answer.
pub const ENGINE_LIST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of any other answer that the balancer reads: a health check, a version.
pub const SMALL_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer's head; longer is a fault of who answers.
pub const ANSWER_HEAD_BYTES_MAX: usize = 32 * 1024;
/// An engine that takes longer for a version or a list has failed, in milliseconds.
pub const ENGINE_ANSWER_MS: u64 = 3_000;
/// After an event, a list waits this long for further ones, in milliseconds.
pub const LIST_QUIET_MS: u64 = 20;
/// Lists that events ask for are at least this far apart, in milliseconds.
pub const LIST_APART_MS: u64 = 200;
/// The list is read this often whatever the events say, in milliseconds.
pub const LIST_PERIOD_MS: u64 = 5_000;
/// ... and this often while there is no event stream, in milliseconds.
pub const LIST_PERIOD_BLIND_MS: u64 = 500;
/// Pauses before an engine is asked again after a failure, least and most, in milliseconds.
pub const ENGINE_RETRY_MS_MIN: u64 = 100;
/// See [`ENGINE_RETRY_MS_MIN`].
pub const ENGINE_RETRY_MS_MAX: u64 = 5_000;
/// Time between two health checks of a backend whose state is settled, in milliseconds.
pub const CHECK_PERIOD_MS: u64 = 1_000;
/// ... and of one that is new, warming or suspect, in milliseconds.
pub const CHECK_PERIOD_UNSETTLED_MS: u64 = 200;
/// A health check that takes longer has failed, in milliseconds.
pub const CHECK_ANSWER_MS: u64 = 1_000;
/// Failed checks in a row, or failed connections within the window, that make a backend down.
pub const FAILURES_TO_DOWN: usize = 3;
/// The window of failed connections, in milliseconds.
pub const PASSIVE_WINDOW_MS: u64 = 10_000;
/// Passed checks in a row that bring a backend that was down up again.
pub const PASSES_TO_UP: usize = 2;
/// A backend that has not been up yet is checked often for this long, in milliseconds.
pub const STARTING_MS_MAX: u64 = 60_000;
/// A backend that got a stop signal and still runs after this is looked at afresh: more than Docker's ten
/// seconds between the signal and the kill, in milliseconds.
pub const SIGNALLED_MS_MAX: u64 = 11_000;
/// A backend that vanished is shown while it has connections, at most this long, in milliseconds.
pub const VANISHED_MS_MAX: u64 = 60_000;

const _: () = assert!(LIST_QUIET_MS < LIST_APART_MS && LIST_APART_MS < LIST_PERIOD_BLIND_MS);
const _: () = assert!(LIST_PERIOD_BLIND_MS < LIST_PERIOD_MS && ENGINE_RETRY_MS_MIN < ENGINE_RETRY_MS_MAX);

/// Bytes that one read of the relay may bring; what the other side does not take of them is kept.
pub const RELAY_BUFFER_BYTES: usize = 64 * 1024;
/// Reads of one direction before the relay turns to other connections.
pub const RELAY_ROUNDS_MAX: usize = 16;
/// Bytes that a pipe for bulk should hold.
pub const RELAY_PIPE_BYTES: usize = 512 * 1024;
/// Pipes that one worker of the relay uses at once; what goes beyond is copied.
pub const RELAY_PIPES_MAX: usize = 64;
/// How long one attempt to reach a backend may take, in milliseconds.
pub const CONNECT_ATTEMPT_MS: u64 = 500;
/// How long all attempts of one connection may take, waiting included, in milliseconds.
pub const CONNECT_TOTAL_MS: u64 = 2_000;
/// How long a client waits while there is no backend for it, in milliseconds; then it is answered 503.
pub const WAIT_MS: u64 = 1_000;
/// Clients of one worker that wait so; more are answered 503 at once.
pub const WAITING_MAX: usize = 4_096;
/// A connection on which nothing moves is closed after this, in milliseconds.
pub const RELAY_IDLE_MS: u64 = 3_600_000;
/// ... and after this once one side has ended.
pub const RELAY_HALF_CLOSED_MS: u64 = 60_000;
/// How long a stopping balancer waits for its connections: less than the ten seconds that Docker gives.
pub const BALANCER_DRAIN_MS: u64 = 8_000;
/// Nodes that `meshkv up` starts on one machine.
pub const UP_NODES_MAX: usize = 64;
/// Clients of the status pages at once; more are closed.
pub const STATUS_CLIENTS_MAX: usize = 64;
/// What a client of the status pages may take, in milliseconds.
pub const STATUS_MS: u64 = 5_000;
/// Bytes of a file with backends.
pub const BACKENDS_FILE_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(CONNECT_ATTEMPT_MS * 3 <= CONNECT_TOTAL_MS && WAIT_MS < CONNECT_TOTAL_MS);
const _: () = assert!(BALANCER_DRAIN_MS < 10_000 && RELAY_HALF_CLOSED_MS < RELAY_IDLE_MS);

const _: () = assert!(STRIPES_DEFAULT.is_power_of_two());
const _: () = assert!(REQUEST_LINE_BYTES_MAX + HEADER_BYTES_MAX + 1024 <= READ_SLOT_BYTES);
const _: () = assert!(KEY_CHARS_DEFAULT <= KEY_CHARS_MAX && VALUE_CHARS_DEFAULT <= VALUE_CHARS_MAX);
// Every byte of a greatest key and value may arrive percent-encoded (3 bytes for 1) and must fit the line
// at the default limits.
const _: () =
    assert!((KEY_CHARS_DEFAULT + VALUE_CHARS_DEFAULT) * CHAR_BYTES_MAX * 3 + 64 <= REQUEST_LINE_BYTES_MAX);
const _: () = assert!(WRITERS_MAX <= u8::MAX as usize + 1);

/// Bytes of a peer frame behind its length; more closes the link.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Members of a mesh, this node included; more are refused.
pub const MEMBERS_MAX: usize = 128;
/// Workers of one member.
pub const PEER_WORKERS_MAX: usize = 128;
/// Lifetimes that are over and still passed on; the oldest are forgotten first.
pub const REMOVED_GOSSIP_MAX: usize = 256;
/// Origins of whom a frame says how much is held.
pub const VECTORS_MAX: usize = MEMBERS_MAX + REMOVED_GOSSIP_MAX;
/// Parts of an origin's writes that are held beyond what is counted; more become one.
pub const SURPLUS_MAX: usize = 8;
// A beat of the most members, all with the most workers, fits a frame, with room for names and some ranges.
const _: () = assert!(
    VECTORS_MAX * (21 + PEER_WORKERS_MAX * 18 + SURPLUS_MAX * 16)
        + MEMBERS_MAX * 316
        + REMOVED_GOSSIP_MAX * 16
        < FRAME_BYTES_MAX * 19 / 20
);
/// Bytes of encoded operations that all workers together keep for peers that lag (`log`); a peer that falls
/// further behind pulls what it lacks.
pub const LOG_BYTES: usize = 64 * 1024 * 1024;
/// Gaps in what is held of one worker, and their ends, in a frame.
pub const RANGES_MAX: usize = 1024;
/// Gaps in what is held of one worker, above which its stream may not restart once more.
pub const RANGES_OWN_MAX: usize = 32;
/// Bytes of one worker's log at least, however many workers there are.
pub const LOG_WORKER_BYTES_MIN: usize = 1024 * 1024;
/// Bytes of operations in one frame, about.
pub const OPS_FRAME_BYTES: usize = 64 * 1024;
/// Bytes that may wait in a link's output before the log is read on.
pub const LINK_OUTPUT_BYTES: usize = 256 * 1024;
/// While a worker has clients to serve, what it logs is collected this long before it is sent to peers, in
/// microseconds; it is sent at once when somebody waits for it, or when there is nothing else to do.
pub const COLLECT_US: u64 = 200;
/// Operations after which a receiver acknowledges without being asked to.
pub const ACK_OPERATIONS: u64 = 256;
/// A receiver acknowledges at least this often, in milliseconds.
pub const ACK_MS: u64 = 50;
/// A worker says what it has closed this often, in milliseconds.
pub const MARK_MS: u64 = 100;
/// And this often where nothing happens; the first worker with its beats.
pub const MARK_QUIET_MS: u64 = 600;
/// A member's beats come this often, in milliseconds.
pub const BEAT_MS: u64 = 500;
/// A member that was not heard for this long is suspect, in milliseconds.
pub const SUSPECT_MS: u64 = 3_000;
/// A member that was not heard for this long is down: not waited for, not counted, not forgotten.
pub const DOWN_MS: u64 = 10_000;
/// A lifetime that is in no view for this long is over, in milliseconds: much more than one takes that is refused for its
/// name before it changes that.
pub const UNLISTED_MS: u64 = 60_000;
/// A member that is down for this long is fenced and, by a majority, forgotten.
pub const FORGET_MS: u64 = 3_600_000;
/// With more tombstones than their cap a member that is down is fenced after this, in milliseconds.
pub const FORGET_CROWDED_MS: u64 = 60_000;
/// The cap of tombstones, however much memory there is.
pub const TOMBSTONES_MAX: u64 = 10_000_000;
/// And the bytes of the memory limit for each: about a quarter of it is theirs, at 16-byte keys.
pub const TOMBSTONE_LIMIT_BYTES: u64 = 256;
/// The greatest number that an operation may have.
pub const SEQUENCE_MAX: u64 = 1 << 62;
/// A frame may have this many bytes before its sender has said who it is.
pub const GREETING_BYTES_MAX: usize = 1024;
/// A link must be established within this, in milliseconds.
pub const HANDSHAKE_MS: u64 = 5_000;
/// A connection must come about within this, in milliseconds, or it is tried anew.
pub const CONNECT_MS: u64 = 1_000;
/// A failed dial is tried again after this, doubled up to the most, with jitter, in milliseconds.
pub const REDIAL_MS: u64 = 50;
/// See [`REDIAL_MS`].
pub const REDIAL_MS_MAX: u64 = 1_000;
/// A node that was told whom to join and hears of nobody that is ready begins by itself after this.
pub const BOOTSTRAP_MS: u64 = 5_000;
/// The same, once others that wait as well have been known for this long.
pub const BOOTSTRAP_SETTLED_MS: u64 = 1_000;
/// A write waits for acknowledgements this long, in milliseconds.
pub const ACKS_WAIT_MS: u64 = 1_000;
/// A read with `after` waits for that write this long, in milliseconds.
pub const AFTER_WAIT_MS: u64 = 200;
/// A node whose clock differs from most members' by more than this takes no writes, in milliseconds.
pub const CLOCK_SKEW_MS: u64 = 500;
/// A stamp this far ahead of this node's clock closes the link, in milliseconds.
pub const STAMP_AHEAD_MS: u64 = 60_000;
/// Records that a scan for a peer looks at before the worker turns to other work.
pub const SCAN_RECORDS_PER_TURN: usize = 256;
/// A node compares itself with another member this often at most, in milliseconds; with more records less often.
pub const COMPARE_MS: u64 = 30_000;
/// Groups of keys that are summed for a comparison (a power of two).
pub const DIGEST_GROUPS: usize = 4_096;
/// Groups whose keys one frame may ask for.
pub const DIGEST_ASKED_MAX: usize = 16;
/// Keys that one side lists in a comparison; where there would be more it comes to nothing.
pub const DIGEST_ENTRIES_MAX: usize = 65_536;
/// Keys in one frame.
pub const DIGEST_FRAME_ENTRIES_MAX: usize = 2_048;
/// How long a comparison may take, in milliseconds. What was removed meanwhile must still be known.
pub const DIGEST_MS: u64 = 55_000;
/// Keys that differ are looked at again after this, in milliseconds.
pub const DIGEST_PAUSE_MS: u64 = 2_000;
/// What it takes to look at a record for a comparison, about, in nanoseconds ...
pub const DIGEST_RECORD_NS: u64 = 300;
/// ... and the pause between two comparisons, in such scans of everything: a node makes one for itself and one
/// for another, which then take half a percent of a core.
pub const DIGEST_SHARE: u64 = 400;
const _: () = assert!(DIGEST_MS + DIGEST_PAUSE_MS < TOMBSTONE_KEEP_MS && DIGEST_GROUPS.is_power_of_two());
const _: () = assert!(
    DIGEST_GROUPS * 20 + 64 < FRAME_BYTES_MAX && DIGEST_FRAME_ENTRIES_MAX * 24 + 64 < FRAME_BYTES_MAX
);
/// Links that are accepted but not yet established, for each worker; the oldest gives way.
pub const HALF_OPEN_LINKS_MAX: usize = 256;
