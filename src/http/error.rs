//! The error answers: one code each, with its status and, where the code alone does not say it, a
//! sentence for people. All are client errors unless the status is 5xx; none of them changed data,
//! except `NOT_ENOUGH_ACKS`, which is written elsewhere because it carries numbers.

/// Every fixed error answer of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCode {
    MissingKeyParam,
    EmptyKey,
    MaximumKeyLengthReached,
    MissingValueParam,
    MaximumValueLengthReached,
    DuplicateKey,
    DuplicateValue,
    DuplicateOption,
    KeyEncoding,
    ValueEncoding,
    OptionEncoding,
    BadTtl,
    BadAcks,
    BadLimit,
    BadCursor,
    BadFormat,
    BadNodes,
    BadAfter,
    AfterNotSeen,
    MissingRecord,
    MethodNotAllowed,
    MethodNotAllowedWrite,
    CrossSite,
    UriTooLong,
    HeadersTooLarge,
    BodyTooLarge,
    BadRequest,
    MissingHost,
    HeadTimeout,
    Warming,
    Leaving,
    ClockSkew,
    OutOfMemory,
    TooManyConnections,
    HandlerFailed,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [ErrorCode; 35] = {
        use ErrorCode::*;
        [
            MissingKeyParam,
            EmptyKey,
            MaximumKeyLengthReached,
            MissingValueParam,
            MaximumValueLengthReached,
            DuplicateKey,
            DuplicateValue,
            DuplicateOption,
            KeyEncoding,
            ValueEncoding,
            OptionEncoding,
            BadTtl,
            BadAcks,
            BadLimit,
            BadCursor,
            BadFormat,
            BadNodes,
            BadAfter,
            AfterNotSeen,
            MissingRecord,
            MethodNotAllowed,
            MethodNotAllowedWrite,
            CrossSite,
            UriTooLong,
            HeadersTooLarge,
            BodyTooLarge,
            BadRequest,
            MissingHost,
            HeadTimeout,
            Warming,
            Leaving,
            ClockSkew,
            OutOfMemory,
            TooManyConnections,
            HandlerFailed,
        ]
    };

    /// HTTP status, `error` code, and the sentence for people (empty: none).
    #[must_use]
    pub const fn parts(self) -> (Status, &'static str, &'static str) {
        use ErrorCode::*;
        match self {
            MissingKeyParam => (Status::BadRequest, "MISSING_KEY_PARAM", ""),
            EmptyKey => (Status::BadRequest, "EMPTY_KEY", ""),
            MaximumKeyLengthReached => (Status::BadRequest, "MAXIMUM_KEY_LENGTH_REACHED", ""),
            MissingValueParam => (Status::BadRequest, "MISSING_VALUE_PARAM", ""),
            MaximumValueLengthReached => (Status::BadRequest, "MAXIMUM_VALUE_LENGTH_REACHED", ""),
            DuplicateKey => (Status::BadRequest, "DUPLICATE_PARAM", "k is given twice"),
            DuplicateValue => (Status::BadRequest, "DUPLICATE_PARAM", "v is given twice"),
            DuplicateOption => (Status::BadRequest, "DUPLICATE_PARAM", "an option is given twice"),
            KeyEncoding => (Status::BadRequest, "INVALID_ENCODING", "k is not UTF-8"),
            ValueEncoding => (Status::BadRequest, "INVALID_ENCODING", "v is not UTF-8"),
            OptionEncoding => (Status::BadRequest, "INVALID_ENCODING", "an option is not UTF-8"),
            BadTtl => (
                Status::BadRequest,
                "INVALID_PARAM",
                "ttl: seconds, whole or decimal, more than 0, at most 10 years",
            ),
            BadAcks => {
                (Status::BadRequest, "INVALID_PARAM", "w: local, quorum, all, or a number from 1 to 1000")
            }
            BadLimit => (Status::BadRequest, "INVALID_PARAM", "limit: a whole number from 1 to 1000000000"),
            BadCursor => (
                Status::BadRequest,
                "INVALID_PARAM",
                "cursor: the X-Next-Cursor of an earlier page of this node, as it was",
            ),
            BadFormat => (Status::BadRequest, "INVALID_PARAM", "format: json or ndjson"),
            BadNodes => (Status::BadRequest, "INVALID_PARAM", "nodes: host:port, separated by |"),
            BadAfter => (
                Status::BadRequest,
                "INVALID_PARAM",
                "after: the X-Mesh-Token of an earlier write, as it was",
            ),
            AfterNotSeen => (
                Status::PreconditionFailed,
                "WRITE_NOT_SEEN",
                "the write named by after has not reached this node in time; nothing was read",
            ),
            MissingRecord => (Status::NotFound, "MISSING_RECORD", ""),
            MethodNotAllowed => (Status::MethodNotAllowed, "METHOD_NOT_ALLOWED", ""),
            MethodNotAllowedWrite => (Status::MethodNotAllowed, "METHOD_NOT_ALLOWED", ""),
            CrossSite => (
                Status::Forbidden,
                "CROSS_SITE_REQUEST",
                "a browser sent this for another site; allow that site with --cors-origin",
            ),
            UriTooLong => (Status::UriTooLong, "URI_TOO_LONG", ""),
            HeadersTooLarge => (Status::HeadersTooLarge, "HEADERS_TOO_LARGE", ""),
            BodyTooLarge => (Status::BodyTooLarge, "BODY_TOO_LARGE", ""),
            BadRequest => (Status::BadRequest, "BAD_REQUEST", ""),
            MissingHost => (Status::BadRequest, "BAD_REQUEST", "HTTP/1.1 needs exactly one Host"),
            HeadTimeout => (Status::RequestTimeout, "REQUEST_TIMEOUT", "the request took too long to arrive"),
            Warming => (Status::Unavailable, "WARMING", ""),
            Leaving => (Status::Unavailable, "LEAVING", ""),
            ClockSkew => (
                Status::Unavailable,
                "CLOCK_SKEW",
                "this node's clock differs from most members'; nothing was stored; ask another node",
            ),
            OutOfMemory => (Status::InsufficientStorage, "OUT_OF_MEMORY", ""),
            TooManyConnections => (Status::Unavailable, "TOO_MANY_CONNECTIONS", ""),
            HandlerFailed => (Status::Internal, "HANDLER_FAILED", "a route of the embedding program failed"),
        }
    }

    #[must_use]
    pub const fn status(self) -> Status {
        self.parts().0
    }

    /// Header lines that belong to this error, each with its line break.
    #[must_use]
    pub const fn headers(self) -> &'static str {
        match self {
            ErrorCode::MethodNotAllowed => "Allow: GET, HEAD, OPTIONS\r\n",
            ErrorCode::MethodNotAllowedWrite => "Allow: GET, OPTIONS\r\n",
            ErrorCode::Warming
            | ErrorCode::Leaving
            | ErrorCode::ClockSkew
            | ErrorCode::TooManyConnections => "Retry-After: 1\r\n",
            _ => "",
        }
    }
}

/// The statuses that a node answers with. The number indexes the counters of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok,
    NoContent,
    BadRequest,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    PreconditionFailed,
    BodyTooLarge,
    UriTooLong,
    HeadersTooLarge,
    Internal,
    Unavailable,
    InsufficientStorage,
    /// A status that a route of an embedding program chose.
    Other,
}

impl Status {
    pub const COUNT: usize = 15;

    /// The status line's number and words.
    #[must_use]
    pub const fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::NoContent => "204 No Content",
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::PreconditionFailed => "412 Precondition Failed",
            Status::BodyTooLarge => "413 Content Too Large",
            Status::UriTooLong => "414 URI Too Long",
            Status::HeadersTooLarge => "431 Request Header Fields Too Large",
            Status::Internal => "500 Internal Server Error",
            Status::Unavailable => "503 Service Unavailable",
            Status::InsufficientStorage => "507 Insufficient Storage",
            Status::Other => "000 Other",
        }
    }

    /// The number, as the `status` label of `/metrics`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Status::Other => "other",
            named => named.line().split_at(3).0,
        }
    }

    pub const ALL: [Status; Status::COUNT] = {
        use Status::*;
        [
            Ok,
            NoContent,
            BadRequest,
            Forbidden,
            NotFound,
            MethodNotAllowed,
            RequestTimeout,
            PreconditionFailed,
            BodyTooLarge,
            UriTooLong,
            HeadersTooLarge,
            Internal,
            Unavailable,
            InsufficientStorage,
            Other,
        ]
    };
}

/// The words of a status: those that are registered for it, or those of its class.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        // Registered as unused, by all that use it.
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => match status / 100 {
            1 => "Informational",
            2 => "Success",
            3 => "Redirection",
            4 => "Client Error",
            _ => "Server Error",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_the_order_of_their_numbers() {
        for (number, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, number);
        }
        for (number, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, number);
        }
    }

    #[test]
    fn the_words_of_a_status_are_the_same_in_both_tables() {
        for status in Status::ALL.into_iter().filter(|status| *status != Status::Other) {
            let (number, words) = status.line().split_once(' ').expect("a number and words");
            assert_eq!(reason(number.parse().expect("a number")), words);
        }
    }
}
