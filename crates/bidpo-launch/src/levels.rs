//! CPU levels and the builds made for them.

use std::path::{Path, PathBuf};

/// The table, one level a line, lowest first: `scripts/dist.sh` reads the same file.
const TABLE: &str = include_str!("../levels.txt");

/// A CPU level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level {
    /// The name, as `BIDPO_CPU` takes it.
    pub(crate) name: &'static str,
    /// Features that it has beside those of the levels before it.
    pub(crate) features: Vec<&'static str>,
}

/// All levels, lowest first.
pub(crate) fn levels() -> Vec<Level> {
    let level = |line: &'static str| {
        let mut words = line.split_whitespace();
        Some(Level { name: words.next()?, features: words.collect() })
    };
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(level).collect()
}

/// The file of a level's build in `folder`.
pub(crate) fn file(folder: &Path, level: &Level) -> PathBuf {
    folder.join(format!("bidpo-{}", level.name))
}

/// The levels that a CPU has, lowest first: each one includes those before it. `has` says whether the CPU has a feature.
pub(crate) fn of_cpu(levels: &[Level], has: impl Fn(&str) -> bool) -> &[Level] {
    let count = levels.iter().take_while(|level| level.features.iter().all(|feature| has(feature))).count();
    &levels[..count]
}

/// The levels up to the one that `BIDPO_CPU` names. All of them where it names none: the program refuses such a value itself.
pub(crate) fn up_to<'a>(levels: &'a [Level], forced: Option<&str>) -> &'a [Level] {
    let last = forced.and_then(|name| levels.iter().position(|level| level.name == name));
    last.map_or(levels, |last| &levels[..=last])
}

/// Whether this CPU, and the system on it, has a feature that the table names.
pub(crate) fn has(feature: &str) -> bool {
    macro_rules! detected {
        ($($name:tt),+) => {
            match feature {
                #[cfg(target_arch = "x86_64")]
                $($name => std::arch::is_x86_feature_detected!($name),)+
                _ => false,
            }
        };
    }
    detected!(
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "cmpxchg16b",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "lzcnt",
        "movbe",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512vbmi",
        "avx512vnni",
        "avx512bf16"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggml_grad::graph::CpuLevel;

    fn names(levels: &[Level]) -> Vec<&str> {
        levels.iter().map(|level| level.name).collect()
    }

    #[test]
    fn the_levels_are_those_of_the_kernels() {
        assert_eq!(names(&levels()), CpuLevel::ALL.map(CpuLevel::name));
    }

    /// /proc/cpuinfo is the kernel's own list, under its own names.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn features_are_those_that_the_kernel_lists() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
        for feature in levels().iter().flat_map(|level| level.features.clone()) {
            let flag = match feature {
                "sse3" => "pni",
                "cmpxchg16b" => "cx16",
                "lzcnt" => "abm",
                "avx512vnni" => "avx512_vnni",
                "avx512bf16" => "avx512_bf16",
                "sse4.1" => "sse4_1",
                "sse4.2" => "sse4_2",
                same => same,
            };
            assert_eq!(has(feature), flags.split_whitespace().any(|word| word == flag), "{feature}");
        }
    }

    #[test]
    fn a_level_needs_all_features_of_those_before_it() {
        let all = levels();
        assert_eq!(names(of_cpu(&all, |_| true)).len(), all.len());
        assert_eq!(names(of_cpu(&all, |feature| feature != "f16c")), ["plain"]);
        assert_eq!(names(of_cpu(&all, |feature| feature != "avx512vbmi")), ["plain", "avx2", "avx512"]);
        assert_eq!(names(of_cpu(&all, |feature| feature != "popcnt")), [""; 0]);
    }

    #[test]
    fn the_variable_forces_down() {
        let all = levels();
        assert_eq!(names(up_to(&all, Some("avx2"))), ["plain", "avx2"]);
        assert_eq!(up_to(&all, Some("sse")), all);
        assert_eq!(up_to(&all, None), all);
    }
}
