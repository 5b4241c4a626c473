//! The number of cores that are worth a thread each.
//!
//! Two threads on one physical core share its arithmetic units, and wait for each other as well; an efficiency core lets the
//! others wait for it after every node. Both make a graph slower. So a default counts physical cores of the fast kind, among those
//! that the process may use.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical fast cores that this process may use (its affinity and, of cgroups, its quota); at least one.
pub(in crate::llama) fn usable_cores() -> usize {
    // Affinity and quota; hyperthreads are counted.
    let logical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let allowed = std::fs::read_to_string("/proc/self/status").ok().and_then(|s| allowed(&s));
    let physical = allowed.and_then(|cpus| physical(Path::new("/sys/devices"), &cpus));
    physical.map_or(logical, |n| n.clamp(1, logical))
}

/// The CPUs that a process may run on, from its `/proc/PID/status`.
fn allowed(status: &str) -> Option<BTreeSet<usize>> {
    cpus(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?)
}

/// A list of Linux: `0-3,8,10-11`. None where it is none.
fn cpus(list: &str) -> Option<BTreeSet<usize>> {
    const MOST: usize = 1 << 16;
    let mut found = BTreeSet::new();
    for part in list.trim().split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if to >= MOST {
            return None;
        }
        found.extend(from..=to);
    }
    Some(found)
}

/// Distinct physical cores behind `allowed`, without efficiency cores where there are others too. `devices` is `/sys/devices`.
fn physical(devices: &Path, allowed: &BTreeSet<usize>) -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(devices.join(path)).ok();
    // Intel lists its efficiency cores; ARM's kernels give each CPU a capacity, 1024 for the fastest.
    let slow = read("cpu_atom/cpus").and_then(|list| cpus(&list)).unwrap_or_default();
    let capacity = |cpu: usize| read(&format!("system/cpu/cpu{cpu}/cpu_capacity"))?.trim().parse::<u32>().ok();
    let fastest = allowed.iter().filter_map(|&cpu| capacity(cpu)).max();
    let is_slow = |cpu: usize| {
        slow.contains(&cpu) || matches!((capacity(cpu), fastest), (Some(c), Some(most)) if 4 * c < 3 * most)
    };
    let fast: Vec<usize> = allowed.iter().copied().filter(|&cpu| !is_slow(cpu)).collect();
    let counted = if fast.is_empty() { allowed.iter().copied().collect() } else { fast };
    let siblings = |cpu: usize| {
        let topology = |name: &str| read(&format!("system/cpu/cpu{cpu}/topology/{name}")).and_then(|list| cpus(&list));
        topology("core_cpus_list").or_else(|| topology("thread_siblings_list"))
    };
    let cores = counted.into_iter().map(siblings).collect::<Option<BTreeSet<_>>>()?;
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> BTreeSet<usize> {
        cpus.iter().copied().collect()
    }

    /// A `/sys/devices` with these files.
    fn devices(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(cpus("0-3,8,10-11\n"), Some(set(&[0, 1, 2, 3, 8, 10, 11])));
        assert_eq!(cpus("\n"), Some(set(&[])));
        for bad in ["x", "1-", "0-99999999999999999999", "0-99999999"] {
            assert_eq!(cpus(bad), None, "{bad}");
        }
        assert_eq!(allowed("Name:\tx\nCpus_allowed:\t5\nCpus_allowed_list:\t0,2\n"), Some(set(&[0, 2])));
    }

    #[test]
    fn hyperthreads_are_one_core() {
        let topology = |cpu: usize| format!("system/cpu/cpu{cpu}/topology/core_cpus_list");
        let files: Vec<(String, &str)> =
            (0..4).map(|cpu| (topology(cpu), if cpu % 2 == 0 { "0,2" } else { "1,3" })).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let sys = devices(&files);
        assert_eq!(physical(sys.path(), &set(&[0, 1, 2, 3])), Some(2));
        assert_eq!(physical(sys.path(), &set(&[0, 2])), Some(1), "both threads of one core");
        assert_eq!(physical(sys.path(), &set(&[0, 9])), None, "nothing is known of the last");
    }

    #[test]
    fn slow_cores_are_left_out_where_there_are_fast_ones() {
        let sys = devices(&[
            ("cpu_atom/cpus", "2-3\n"),
            ("system/cpu/cpu0/topology/core_cpus_list", "0-1"),
            ("system/cpu/cpu1/topology/core_cpus_list", "0-1"),
            ("system/cpu/cpu2/topology/thread_siblings_list", "2"),
            ("system/cpu/cpu3/topology/thread_siblings_list", "3"),
        ]);
        assert_eq!(physical(sys.path(), &set(&[0, 1, 2, 3])), Some(1));
        assert_eq!(physical(sys.path(), &set(&[2, 3])), Some(2), "slow ones only");
        let sys = devices(&[
            ("system/cpu/cpu0/cpu_capacity", "485\n"),
            ("system/cpu/cpu1/cpu_capacity", "1024\n"),
            ("system/cpu/cpu0/topology/core_cpus_list", "0"),
            ("system/cpu/cpu1/topology/core_cpus_list", "1"),
        ]);
        assert_eq!(physical(sys.path(), &set(&[0, 1])), Some(1));
    }
}
