//! How much memory there is.

/// Bytes that can be allocated without swapping, as the system estimates; `None` where it does not say (all but Linux).
pub fn available() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A number of bytes for a reader: `31.5 MB`, `2.41 GB`.
pub fn text(bytes: u64) -> String {
    if bytes < 1_000_000_000 {
        format!("{:.1} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.2} GB", bytes as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let table = "MemTotal:       24634340 kB\nMemFree:        1 kB\nMemAvailable:   23001020 kB\n";
        assert_eq!(parse(table), Some(23_001_020 * 1024));
        assert_eq!(parse("MemTotal: 5 kB"), None);
        assert_eq!(parse("MemAvailable: much"), None);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(text(31_530_000), "31.5 MB");
        assert_eq!(text(2_410_000_000), "2.41 GB");
    }
}
