//! The routes: which paths there are and what may be done with them. Case matters; no trailing slash.

use crate::http::head::Method;

/// A route of the node. The number indexes the counters of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Route {
    Set,
    Get,
    Rm,
    Is,
    Clear,
    GetKeys,
    GetValues,
    GetAll,
    Healthcheck,
    Status,
    Ping,
    Metrics,
    Root,
    /// A route of the embedding program.
    Custom,
    /// No such path.
    Unknown,
    /// Not a request at all.
    Invalid,
}

impl Route {
    pub const COUNT: usize = 16;

    pub const ALL: [Route; Route::COUNT] = {
        use Route::*;
        [
            Set,
            Get,
            Rm,
            Is,
            Clear,
            GetKeys,
            GetValues,
            GetAll,
            Healthcheck,
            Status,
            Ping,
            Metrics,
            Root,
            Custom,
            Unknown,
            Invalid,
        ]
    };

    /// The route of a path as it stands in the request line.
    #[inline]
    #[must_use]
    pub fn of(path: &[u8]) -> Route {
        match path {
            b"/get" => Route::Get,
            b"/set" => Route::Set,
            b"/is" => Route::Is,
            b"/rm" => Route::Rm,
            b"/clear" => Route::Clear,
            b"/getKeys" => Route::GetKeys,
            b"/getValues" => Route::GetValues,
            b"/getAll" => Route::GetAll,
            b"/healthcheck" => Route::Healthcheck,
            b"/status" | b"/settings" => Route::Status,
            b"/ping" | b"/join" => Route::Ping,
            b"/metrics" => Route::Metrics,
            b"/" => Route::Root,
            _ => Route::Unknown,
        }
    }

    /// The `command` label of `/metrics`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Route::Set => "set",
            Route::Get => "get",
            Route::Rm => "rm",
            Route::Is => "is",
            Route::Clear => "clear",
            Route::GetKeys => "getKeys",
            Route::GetValues => "getValues",
            Route::GetAll => "getAll",
            Route::Healthcheck => "healthcheck",
            Route::Status => "status",
            Route::Ping => "ping",
            Route::Metrics => "metrics",
            Route::Root => "root",
            Route::Custom => "custom",
            Route::Unknown => "unknown",
            Route::Invalid => "invalid",
        }
    }

    /// Changes data or membership: never by HEAD, never for another site's page.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Route::Set | Route::Rm | Route::Clear | Route::Ping)
    }

    /// Needs the data: answers 503 while the node loads or leaves.
    #[must_use]
    pub const fn is_data(self) -> bool {
        matches!(
            self,
            Route::Set
                | Route::Get
                | Route::Rm
                | Route::Is
                | Route::Clear
                | Route::GetKeys
                | Route::GetValues
                | Route::GetAll
        )
    }

    /// What `Allow` says.
    #[must_use]
    pub const fn allow(self) -> &'static str {
        if self.is_write() { "GET, OPTIONS" } else { "GET, HEAD, OPTIONS" }
    }

    #[must_use]
    pub fn allows(self, method: Method) -> bool {
        match method {
            Method::Get | Method::Options => true,
            Method::Head => !self.is_write(),
            Method::Other => false,
        }
    }
}

/// The paths that `/` lists, and that an embedding program cannot take.
pub const PATHS: [&str; 15] = [
    "/set",
    "/get",
    "/rm",
    "/is",
    "/clear",
    "/getKeys",
    "/getValues",
    "/getAll",
    "/healthcheck",
    "/status",
    "/settings",
    "/ping",
    "/join",
    "/metrics",
    "/",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_path_is_a_route_and_its_neighbours_are_not() {
        for path in PATHS {
            assert_ne!(Route::of(path.as_bytes()), Route::Unknown, "{path}");
            if path != "/" {
                assert_eq!(Route::of(format!("{path}/").as_bytes()), Route::Unknown);
                assert_eq!(Route::of(path.to_uppercase().as_bytes()), Route::Unknown);
            }
        }
        for (number, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, number);
        }
    }
}
