//! Names are labels, but no two members share one: who lives and is older keeps it.

use super::{Event, MS, Members};
use crate::base::version::Incarnation;
use crate::limits::{DOWN_MS, SUSPECT_MS};

/// Whether a member that had the second name has the first one now, whoever says so: the one who was renamed may
/// not live to tell it, and whoever goes on calling it by its old name would refuse the owner of that.
pub(super) fn is_later_name(name: &str, before: &str) -> bool {
    name.contains('~') && !before.contains('~')
}

impl Members {
    /// Takes another name: the one it had belongs to another node that lives.
    pub(super) fn rename(&mut self) {
        let base = self.me.name.split('~').next().unwrap_or_default();
        let name = format!("{base}~{:04x}", self.random.bits() & 0xffff);
        let text =
            format!("mesh   the name {} belongs to another node: this one is {name} now", self.me.name);
        self.events.push(Event::Note { is_warning: true, text });
        self.me.name = name;
        self.beat_now = true;
        self.dirty = true;
    }

    /// Somebody has refused us for our name.
    pub(in crate::mesh) fn name_refused(&mut self, by_owner: bool, now_ns: u64) {
        // Others cannot know yet whether the one who had it lives; they will within this.
        let since = *self.name_refused_ns.get_or_insert(now_ns);
        if by_owner || now_ns.saturating_sub(since) > (DOWN_MS + SUSPECT_MS) * MS {
            self.name_refused_ns = None;
            self.rename();
        }
    }

    /// A member says what it is called now.
    pub(super) fn on_name(&mut self, from: Incarnation, name: String) {
        let taken = name == self.me.name
            || self.members.values().any(|m| m.info.name == name && m.info.incarnation != from);
        if let Some(member) = self.members.get_mut(&from).filter(|m| m.info.name != name && !taken) {
            member.info.name = name;
            self.dirty = true;
        }
    }
}
