//! How a link ends because of what came on it.

use super::Context;
use crate::base::version::Hlc;
use crate::limits::STAMP_AHEAD_MS;
use crate::mesh::members::SETTLED_WITHOUT;
use crate::peer::frame::Reason;

/// How a frame ends its link.
#[derive(Debug)]
pub(super) enum Ending {
    Refuse(Reason, String),
    Close,
}

impl Ending {
    pub(super) fn protocol(detail: &str) -> Ending {
        Ending::Refuse(Reason::Protocol, detail.to_owned())
    }

    pub(super) fn unsettled() -> Ending {
        let detail = "writes that may have been decided: not before all agree who is a member";
        Ending::Refuse(Reason::Unsettled, detail.to_owned())
    }

    pub(super) fn settled() -> Ending {
        Ending::Refuse(Reason::Unsettled, SETTLED_WITHOUT.to_owned())
    }

    pub(super) fn decided() -> Ending {
        let detail = "it holds writes that this node has decided without";
        Ending::Refuse(Reason::Unsettled, detail.to_owned())
    }

    /// Of what is stamped so far ahead of this node's clock that one of the two is wrong.
    pub(super) fn unless_in_time<S>(stamp: Hlc, what: &str, context: Context<'_, S>) -> Result<(), Ending> {
        let ahead = stamp.millis().saturating_sub(context.now.wall_ms);
        if ahead <= STAMP_AHEAD_MS {
            return Ok(());
        }
        Err(Ending::Refuse(Reason::Clock, format!("{what} {ahead} ms ahead of this node's clock")))
    }
}
