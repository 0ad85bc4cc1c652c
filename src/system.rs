//! What the machine grants this process: cores, memory, descriptors and a name.
//!
//! Everything here reads the machine's present state, so it belongs to start-up only. What parses a file
//! takes the file's text, so that the tests can bring machines that are not here.

use std::path::{Path, PathBuf};

/// The cores that this process may use: at least 1. The affinity mask and the CPU quota of its cgroup (v1
/// and v2, rounded down) count; the standard library reads both.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// The host's name; `localhost` where the system has none.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().trim().to_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// How many descriptors this process may have open: the soft limit, `u64::MAX` if there is none.
#[must_use]
pub fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft descriptor limit to the hard one and returns what it is then. It changes the whole
/// process and what it spawns, so the program decides, never the library.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // A refusal leaves the soft limit, which is what the next line reports.
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    }
    descriptor_limit()
}

/// The memory that this process may use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The machine's; `None` where the system does not say (anything but Linux).
    pub machine: Option<u64>,
    /// The least limit of this process's cgroup and those above it; `None` if there is none.
    pub cgroup: Option<u64>,
}

impl Memory {
    /// Asks the system.
    #[must_use]
    pub fn detect() -> Memory {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        Memory {
            machine: read(Path::new("/proc/meminfo")).as_deref().and_then(machine_memory),
            cgroup: cgroup_memory(&read),
        }
    }

    /// The smaller of the two; `None` if neither is known.
    #[must_use]
    pub fn usable(self) -> Option<u64> {
        [self.machine, self.cgroup].into_iter().flatten().min()
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least memory limit on the way from this process's cgroup up to the root, in bytes.
///
/// A machine may mount both versions of the hierarchy; only one of them controls memory, and the other has
/// no such file, so both are asked. `read` returns a file's text, `None` if it cannot be read.
fn cgroup_memory(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let memberships = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let mut least: Option<u64> = None;
    for (membership, mount, file) in [
        (membership_v2(&memberships), mount_of(&mounts, "cgroup2", None), "memory.max"),
        (
            membership_v1(&memberships, "memory"),
            mount_of(&mounts, "cgroup", Some("memory")),
            "memory.limit_in_bytes",
        ),
    ] {
        let (Some(group), Some(mount)) = (membership, mount) else { continue };
        for directory in ways_up(&group, &mount) {
            let limit = read(&directory.join(file)).as_deref().and_then(limit_of);
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

/// A limit file's content: `max`, or v1's "no limit" (the largest page-aligned number), is `None`.
fn limit_of(text: &str) -> Option<u64> {
    /// No machine has this much; v1 writes `i64::MAX` rounded down to a page for "no limit".
    const UNLIMITED: u64 = 1 << 60;
    text.trim().parse::<u64>().ok().filter(|&bytes| bytes < UNLIMITED)
}

/// The path of `/proc/self/cgroup`'s v2 line, `0::/path`.
fn membership_v2(memberships: &str) -> Option<PathBuf> {
    memberships.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// The path of the v1 line that names `controller`: `4:memory,other:/path`.
fn membership_v1(memberships: &str, controller: &str) -> Option<PathBuf> {
    memberships.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        controllers.split(',').any(|name| name == controller).then(|| PathBuf::from(path))
    })
}

/// Where a hierarchy is mounted, and which of its directories is mounted there.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// The mount of a file system type in `/proc/self/mountinfo`; `controller` must be among its options.
fn mount_of(mounts: &str, file_system: &str, controller: Option<&str>) -> Option<Mount> {
    mounts.lines().find_map(|line| {
        // 36 35 98:0 /root /point options [optional ...] - type source super-options
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        if after.next()? != file_system {
            return None;
        }
        let options = after.nth(1).unwrap_or("");
        if controller.is_some_and(|wanted| !options.split(',').any(|option| option == wanted)) {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        Some(Mount { root: unescape(before.next()?), point: unescape(before.next()?) })
    })
}

/// `mountinfo` writes spaces, tabs, line breaks and backslashes of a path in octal.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(
        path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

/// The directories from a group up to the top of what is mounted, as paths of the file system.
///
/// A container without a cgroup namespace sees the host's path of its group, while only its own subtree is
/// mounted: the mount's root is then a prefix of the group. Where it is not, only the top can be asked.
fn ways_up(group: &Path, mount: &Mount) -> Vec<PathBuf> {
    let below = group.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    below.ancestors().map(|part| mount.point.join(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A machine made of files.
    fn cgroup_of(files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        // Joining an empty part leaves a slash at the end, which the system ignores and so must this.
        cgroup_memory(&|path| files.get(&path.components().collect::<PathBuf>()).cloned())
    }

    const V2_MOUNT: &str = "24 1 8:1 / / rw - ext4 /dev/root rw\n\
         30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
         32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn machine_memory_is_read_in_kibibytes() {
        assert_eq!(machine_memory("MemTotal:       24684096 kB\nMemFree: 1 kB\n"), Some(24_684_096 * 1024));
        assert_eq!(machine_memory("MemFree: 1 kB\n"), None);
        assert_eq!(machine_memory("MemTotal: lots\n"), None);
        assert_eq!(machine_memory("MemTotal: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn v2_takes_the_least_limit_on_the_way_up() {
        let files = [
            ("/proc/self/cgroup", "0::/system.slice/meshkv.service\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/system.slice/meshkv.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
        ];
        assert_eq!(cgroup_of(&files), Some(1 << 30));
        let mut tighter = files;
        tighter[2].1 = "536870912\n";
        assert_eq!(cgroup_of(&tighter), Some(512 << 20));
        let mut open = files;
        open[3].1 = "max\n";
        assert_eq!(cgroup_of(&open), None);
    }

    #[test]
    fn v2_in_a_container_with_its_own_namespace_asks_the_top() {
        let files = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/memory.max", "268435456\n"),
        ];
        assert_eq!(cgroup_of(&files), Some(256 << 20));
    }

    #[test]
    fn v1_beside_an_empty_v2_uses_the_memory_controller_only() {
        let files = [
            ("/proc/self/cgroup", "4:memory:/batch/one\n1:cpu:/\n0::/\n"),
            ("/proc/self/mountinfo", V1_MOUNTS),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/batch/memory.limit_in_bytes", "2147483648\n"),
            ("/sys/fs/cgroup/memory/batch/one/memory.limit_in_bytes", "9223372036854771712\n"),
            // Not a memory directory: must not be asked.
            ("/sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(cgroup_of(&files), Some(2 << 30));
        assert_eq!(cgroup_of(&files[..3]), None);
    }

    #[test]
    fn v1_in_a_container_without_a_namespace_strips_the_mounts_root() {
        let files = [
            ("/proc/self/cgroup", "9:cpu,memory:/docker/abc/inner\n"),
            (
                "/proc/self/mountinfo",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/cpu\\040memory rw master:1 - cgroup cgroup rw,cpu,memory\n",
            ),
            ("/sys/fs/cgroup/cpu memory/memory.limit_in_bytes", "4096000\n"),
            ("/sys/fs/cgroup/cpu memory/inner/memory.limit_in_bytes", "8192000\n"),
        ];
        assert_eq!(cgroup_of(&files), Some(4_096_000));
        // A group outside what is mounted: the top is the best that can be asked.
        let mut elsewhere = files;
        elsewhere[0].1 = "9:memory:/other\n";
        assert_eq!(cgroup_of(&elsewhere), Some(4_096_000));
    }

    #[test]
    fn broken_files_mean_no_limit() {
        assert_eq!(cgroup_of(&[]), None);
        assert_eq!(cgroup_of(&[("/proc/self/cgroup", "0::/\n"), ("/proc/self/mountinfo", "x\n - \n")]), None);
        assert_eq!(limit_of("-1"), None);
        assert_eq!(limit_of(""), None);
    }

    #[test]
    fn the_usable_memory_is_the_smaller_known() {
        assert_eq!(Memory { machine: Some(8), cgroup: Some(4) }.usable(), Some(4));
        assert_eq!(Memory { machine: Some(8), cgroup: Some(16) }.usable(), Some(8));
        assert_eq!(Memory { machine: Some(8), cgroup: None }.usable(), Some(8));
        assert_eq!(Memory::default().usable(), None);
    }

    #[test]
    fn this_machine_answers() {
        assert!(cores() >= 1);
        assert!(!host_name().is_empty());
        assert!(descriptor_limit() > 8);
        if cfg!(target_os = "linux") {
            assert!(Memory::detect().usable().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
