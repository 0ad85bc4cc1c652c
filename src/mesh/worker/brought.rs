//! What a pull has brought that was not here before, as long as it is not known what of it is counted (`mesh/surplus.rs`).
//! Only news is noted: what was here is accounted for. Two nodes that pull the same from each other would otherwise each
//! take the other for one that may hold more, for ever.

use super::ending::Ending;
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::progress::Origin;
use crate::mesh::{Mesh, Mutation};
use crate::peer::frame::OriginVector;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to be thought of a write that is news.
enum Concern {
    /// It is held anyway, or noted.
    None,
    /// It is held beyond what is counted.
    Uncounted(Arc<Origin>),
    /// All have agreed on what they hold of its writer.
    Settled,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Brought {
    is_copy: bool,
    /// By writer: what is stamped up to here is held anyway, or noted.
    noted: BTreeMap<Incarnation, Hlc>,
}

impl Brought {
    pub(super) fn new(is_copy: bool) -> Brought {
        Brought { is_copy, noted: BTreeMap::new() }
    }

    pub(super) fn is_copy(&self) -> bool {
        self.is_copy
    }

    /// What has to be done about this write in case it is news.
    fn concern(&mut self, writer: Incarnation, hlc: Hlc, pull: &[OriginVector], mesh: &Mesh) -> Concern {
        if writer == Incarnation(0) || self.noted.get(&writer).is_some_and(|noted| hlc <= *noted) {
            return Concern::None;
        }
        // A copy brings those with it who went before this node came.
        let named = || pull.iter().find(|vector| vector.origin == writer && !vector.is_settled());
        let named = || named().filter(|_| self.is_copy && writer != mesh.view().me);
        let origin = mesh.progress.get(writer);
        let origin = origin.or_else(|| named().map(|v| mesh.progress.ensure(writer, v.workers.len())));
        let noted = self.noted.entry(writer);
        match origin {
            _ if mesh.config.mutation == Mutation::SurplusIsSilent => Concern::None,
            None if !self.is_copy && mesh.members.lock().has_settled(writer) => Concern::Settled,
            None => Concern::None,
            Some(origin) if hlc <= *noted.or_insert_with(|| origin.closed()) => Concern::None,
            Some(origin) if origin.is_settled() => Concern::Settled,
            Some(origin) => Concern::Uncounted(origin),
        }
    }

    /// A write comes, to be seen in the store at once, if it is news: until the pull is over the node says that it may
    /// hold more of this writer than it counts.
    ///
    /// # Errors
    /// All agree on what was held of the writer without this write: the donor will start over, and with what else it has
    /// nobody may go on. Nor can the write be left out, since others that it has dominated are counted.
    pub(super) fn note(
        &mut self,
        (writer, hlc): (Incarnation, Hlc),
        pull: &[OriginVector],
        mesh: &Mesh,
        is_news: impl Fn() -> bool,
    ) -> Result<(), Ending> {
        match self.concern(writer, hlc, pull, mesh) {
            Concern::Uncounted(origin) if is_news() => {
                origin.bring(hlc);
                self.noted.insert(writer, hlc);
            }
            Concern::Settled if is_news() => return Err(Ending::settled()),
            _ => {}
        }
        Ok(())
    }
}
