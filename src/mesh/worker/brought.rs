//! What a pull has brought that was not here before, as long as it is not known what of it is counted (`mesh/surplus.rs`).
//! Only news is noted: what was here is accounted for. Two nodes that pull the same from each other would otherwise each
//! take the other for one that may hold more, for ever.

use crate::base::version::{Hlc, Incarnation};
use crate::mesh::progress::Origin;
use crate::mesh::{Mesh, Mutation};
use crate::peer::frame::OriginVector;
use std::collections::BTreeMap;
use std::sync::Arc;

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

    /// The writer, if this write has to be noted in case it is news.
    fn concerned(
        &mut self,
        writer: Incarnation,
        hlc: Hlc,
        pull: &[OriginVector],
        mesh: &Mesh,
    ) -> Option<Arc<Origin>> {
        if writer == Incarnation(0) || self.noted.get(&writer).is_some_and(|noted| hlc <= *noted) {
            return None;
        }
        // A copy brings those with it who went before this node came.
        let named = || pull.iter().find(|vector| vector.origin == writer && !vector.is_settled());
        let named = || named().filter(|_| self.is_copy && writer != mesh.view().me);
        let origin = mesh.progress.get(writer);
        let origin = origin.or_else(|| named().map(|v| mesh.progress.ensure(writer, v.workers.len())))?;
        let noted = self.noted.entry(writer).or_insert_with(|| origin.closed());
        let is_silent = mesh.config.mutation == Mutation::SurplusIsSilent;
        (hlc > *noted && !origin.is_settled() && !is_silent).then_some(origin)
    }

    /// A write comes, to be seen in the store at once, if it is news: until the pull is over the node says that it may
    /// hold more of this writer than it counts.
    pub(super) fn note(
        &mut self,
        (writer, hlc): (Incarnation, Hlc),
        pull: &[OriginVector],
        mesh: &Mesh,
        is_news: impl FnOnce() -> bool,
    ) {
        if let Some(origin) = self.concerned(writer, hlc, pull, mesh).filter(|_| is_news()) {
            origin.bring(hlc);
            self.noted.insert(writer, hlc);
        }
    }
}
