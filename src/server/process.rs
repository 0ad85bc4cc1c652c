//! What the system says about this process, for `/metrics`. Files under `/proc` only: reading them does
//! not wait for a disk.

use crate::node::metrics::ProcessFacts;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Best effort: what cannot be read is 0.
pub(super) fn facts() -> ProcessFacts {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the name, may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    let page = rustix::param::page_size() as u64;
    let boot = fs::read_to_string("/proc/uptime").ok();
    let uptime: f64 = boot.and_then(|t| t.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    // Since Linux 6.2 the directory's size is the number of its entries; before, they are counted.
    let listed = fs::metadata("/proc/self/fd").map_or(0, |m| m.len());
    let open_descriptors = match listed {
        0 => fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
        listed => listed,
    };
    ProcessFacts {
        cpu_seconds: (field(14) + field(15)) as f64 / ticks,
        resident_bytes: field(24) * page,
        virtual_bytes: field(23),
        open_descriptors,
        max_descriptors: crate::system::descriptor_limit(),
        start_seconds: now - uptime + field(22) as f64 / ticks,
        threads: field(20),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_facts_are_plausible() {
        let facts = super::facts();
        assert!(facts.resident_bytes > 100_000 && facts.virtual_bytes >= facts.resident_bytes, "{facts:?}");
        assert!(facts.open_descriptors >= 3 && facts.open_descriptors <= facts.max_descriptors, "{facts:?}");
        assert!(facts.start_seconds > 1.6e9 && facts.threads >= 1, "{facts:?}");
    }
}
