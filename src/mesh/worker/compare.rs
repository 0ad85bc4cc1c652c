//! Comparisons with other members, a little with every tick: those that they ask for, and on the first
//! worker those that this node asks for, one at a time. [`crate::mesh::compare`] has what is compared.

use super::outbound::Outbound;
use super::{Context, LinkId, MS, Role, Worker};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{
    DIGEST_ASKED_MAX, DIGEST_ENTRIES_MAX, DIGEST_GROUPS, DIGEST_MS, DIGEST_PAUSE_MS, DIGEST_RECORD_NS,
    DIGEST_SHARE,
};
use crate::mesh::Mesh;
use crate::mesh::compare::{Differing, Digesting, Theirs, Verdict};
use crate::peer::frame::{Digest, DigestAsk, Frame};
use crate::store::Storage;
use std::collections::BTreeSet;

/// A comparison that this node makes.
#[derive(Debug)]
pub(super) struct Comparing {
    link: LinkId,
    peer: Incarnation,
    begun_ns: u64,
    ours: Digesting,
    theirs: Theirs,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Sums,
    /// `all`: the groups that are looked at are all that differ. `before`: what differed in the first look.
    Keys {
        all: bool,
        before: Option<BTreeSet<Differing>>,
    },
    Pause {
        until_ns: u64,
        all: bool,
        before: BTreeSet<Differing>,
    },
}

/// What a comparison does next.
enum Next {
    Goes(Comparing),
    Asks(Comparing, Vec<u16>),
    Ends(Verdict),
}

impl Mesh {
    pub(super) fn is_comparable(&self, peer: Incarnation, ask: &DigestAsk) -> bool {
        let members = self.members.lock();
        members.is_comparable(peer, ask.view_hash, ask.floor, &self.progress) && !self.rebirth_under_way()
    }
}

impl Worker {
    pub(super) fn compare<S: Storage>(&mut self, context: Context<'_, S>) {
        self.answer_comparisons(context);
        if self.index != 0 {
            return;
        }
        let Some(comparing) = self.comparing.take() else { return self.begin_comparing(context) };
        let peer = comparing.peer;
        match self.go_on_comparing(comparing, context) {
            Next::Goes(comparing) => self.comparing = Some(comparing),
            Next::Asks(comparing, groups) => self.ask_keys(comparing, groups),
            Next::Ends(verdict) => self.compared(peer, verdict, context.now.mono_ns),
        }
    }

    /// Goes on with one scan that somebody has asked for.
    fn answer_comparisons<S: Storage>(&mut self, context: Context<'_, S>) {
        let portions = self.mesh.config.portions;
        let asked = self.slots.values_mut().find_map(|slot| match &mut slot.role {
            Role::In(inbound)
                if inbound.digesting.is_some() && slot.link.output().len() < portions.output_bytes =>
            {
                Some((inbound, &mut slot.link))
            }
            _ => None,
        });
        let Some((inbound, link)) = asked else { return };
        let (Some(peer), Some(digesting)) = (inbound.peer(), &mut inbound.digesting) else { return };
        digesting.turn(context, portions.scan_records);
        if digesting.is_over() {
            let is_valid = digesting.holds(context) && self.mesh.is_comparable(peer, digesting.ask());
            digesting.answer(is_valid, &mut |digest| link.send(&Frame::Digest(digest)));
            inbound.digesting = None;
        }
    }

    fn begin_comparing<S: Storage>(&mut self, context: Context<'_, S>) {
        let now_ns = context.now.mono_ns;
        if now_ns < self.compare_ns || !self.is_ready() {
            return;
        }
        let usage = context.store.usage(context.now.wall_ms);
        let records = usage.live_records + usage.tombstones;
        let pause_ms = self.mesh.config.compare_ms.max(records * DIGEST_RECORD_NS * DIGEST_SHARE / MS);
        let is_first = self.compare_ns == 0;
        self.compare_ns = now_ns + (pause_ms + self.compare_random.below(pause_ms / 4 + 1)) * MS;
        if is_first {
            // Not all at once when a mesh starts.
            return;
        }
        let members = self.mesh.members.lock();
        let (floor, view_hash) = (members.floor(), members.view_hash());
        let peers = members.comparable(&self.mesh.progress);
        drop(members);
        // Who has waited longest.
        let can_ask = |peer: &Incarnation| self.link_to(*peer).is_some();
        let peers = peers.into_iter().filter(can_ask);
        let peer = peers.min_by_key(|peer| self.mesh.comparisons.last(*peer).map(|(_, at_ns)| at_ns));
        let Some((peer, link)) = peer.and_then(|peer| Some((peer, self.link_to(peer)?))) else { return };
        if floor == Hlc::ZERO {
            return;
        }
        let key = u128::from(self.compare_random.bits()) << 64 | u128::from(self.compare_random.bits());
        let ask = DigestAsk {
            id: self.next_digest(),
            view_hash,
            floor,
            until_ms: context.now.wall_ms + DIGEST_MS,
            key,
            groups: Vec::new(),
        };
        let Some(slot) = self.slots.get_mut(&link) else { return };
        slot.link.send(&Frame::DigestAsk(ask.clone()));
        self.comparing = Some(Comparing {
            link,
            peer,
            begun_ns: now_ns,
            ours: Digesting::new(ask),
            theirs: Theirs::default(),
            stage: Stage::Sums,
        });
    }

    fn next_digest(&mut self) -> u32 {
        self.digests = self.digests.wrapping_add(1);
        self.digests
    }

    fn link_to(&self, peer: Incarnation) -> Option<LinkId> {
        let link = self.targets.get(&peer)?.link?;
        let slot = self.slots.get(&link)?;
        matches!(slot.role, Role::Out(Outbound { cursor: Some(_), said_lineage: true, .. })).then_some(link)
    }

    fn go_on_comparing<S: Storage>(&self, mut comparing: Comparing, context: Context<'_, S>) -> Next {
        let now_ns = context.now.mono_ns;
        let is_late = now_ns > comparing.begun_ns + DIGEST_MS * MS;
        if is_late || self.link_to(comparing.peer) != Some(comparing.link) {
            return Next::Ends(Verdict::Unknown);
        }
        if let Stage::Pause { until_ns, all, before } = comparing.stage {
            if now_ns < until_ns {
                return Next::Goes(Comparing { stage: Stage::Pause { until_ns, all, before }, ..comparing });
            }
            let groups = comparing.ours.ask().groups.clone();
            let stage = Stage::Keys { all, before: Some(before) };
            return Next::Asks(Comparing { stage, ..comparing }, groups);
        }
        comparing.ours.turn(context, self.mesh.config.portions.scan_records);
        let Comparing { ours, theirs, .. } = &comparing;
        if !ours.is_over() || !theirs.is_over() {
            return Next::Goes(comparing);
        }
        if !theirs.goes_with(ours)
            || !ours.holds(context)
            || !self.mesh.is_comparable(comparing.peer, ours.ask())
        {
            return Next::Ends(Verdict::Unknown);
        }
        let (all, before) = match comparing.stage {
            Stage::Sums => {
                let Some(differ) = theirs.groups_that_differ(ours) else {
                    return Next::Ends(Verdict::Unknown);
                };
                if differ.is_empty() {
                    return Next::Ends(Verdict::Equal);
                }
                let most =
                    (DIGEST_ENTRIES_MAX as u64 / 4 / (ours.records() / DIGEST_GROUPS as u64 + 1)) as usize;
                let most = most.clamp(1, DIGEST_ASKED_MAX);
                let apart = differ.len().div_ceil(most);
                let all = apart == 1;
                let groups = differ.into_iter().step_by(apart).collect();
                return Next::Asks(
                    Comparing { stage: Stage::Keys { all, before: None }, ..comparing },
                    groups,
                );
            }
            Stage::Keys { all, before } => (all, before),
            Stage::Pause { .. } => return Next::Ends(Verdict::Unknown),
        };
        let mut differ = comparing.theirs.keys_that_differ(&comparing.ours);
        match before {
            Some(before) => differ.retain(|key| before.contains(key)),
            None if differ.is_empty() => {}
            None => {
                let until_ns = now_ns + DIGEST_PAUSE_MS * MS;
                comparing.stage = Stage::Pause { until_ns, all, before: differ };
                return Next::Goes(comparing);
            }
        }
        Next::Ends(match (differ.len(), all) {
            (0, true) => Verdict::Equal,
            (0, false) => Verdict::Unknown,
            (keys, _) => Verdict::Diverged(keys),
        })
    }

    fn ask_keys(&mut self, comparing: Comparing, groups: Vec<u16>) {
        let ask = DigestAsk { id: self.next_digest(), groups, ..comparing.ours.ask().clone() };
        let Some(slot) = self.slots.get_mut(&comparing.link) else { return };
        slot.link.send(&Frame::DigestAsk(ask.clone()));
        self.comparing =
            Some(Comparing { ours: Digesting::new(ask), theirs: Theirs::default(), ..comparing });
    }

    /// A piece of an answer. What nobody waits for any more is dropped.
    pub(super) fn on_digest(&mut self, link: LinkId, digest: Digest) {
        if let Some(comparing) = &mut self.comparing
            && comparing.link == link
            && comparing.ours.ask().id == digest.id
        {
            comparing.theirs.take(digest);
        }
    }

    fn compared(&mut self, peer: Incarnation, verdict: Verdict, now_ns: u64) {
        let is_news = self.mesh.comparisons.record(peer, verdict, now_ns);
        if let (Verdict::Diverged(keys), true) = (verdict, is_news) {
            let name = self.view.peers.iter().find(|known| known.incarnation == peer);
            let name = name.map_or_else(|| format!("{peer:?}"), |known| known.name.clone());
            let text = format!(
                "mesh   {name} holds at least {keys} keys otherwise than this node, which no failure explains: \
                 a fault of meshkv, please report it. Nothing was changed; a node that is restarted copies anew"
            );
            self.mesh.note(true, text);
        }
    }
}
