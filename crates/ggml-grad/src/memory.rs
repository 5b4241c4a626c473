//! Free and used memory.

/// Bytes that can be allocated without swapping, as the system estimates; `None` where it does not say (all but Linux).
pub fn available() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// A model whose weights do not fit into memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the weights of {} take {} and {} of memory are free: every step would read them from the disk again. Take a smaller \
     model or a smaller quantization, free memory, or add --allow-swap to train all the same, very slowly",
    model.display(), text(*weights), text(*available)
)]
pub struct TooLarge {
    /// The model's file.
    pub model: std::path::PathBuf,
    /// Bytes of its weights.
    pub weights: u64,
    /// Bytes that the system has left.
    pub available: u64,
}

/// Refuses weights that are larger than what is free (where the system says what is).
///
/// # Errors
/// [`TooLarge`].
pub fn fits(model: &std::path::Path, weights: u64, available: Option<u64>) -> Result<(), TooLarge> {
    match available {
        Some(available) if weights > available => Err(TooLarge { model: model.to_owned(), weights, available }),
        _ => Ok(()),
    }
}

fn parse(meminfo: &str) -> Option<u64> {
    kilobytes(meminfo, "MemAvailable:")
}

fn kilobytes(table: &str, key: &str) -> Option<u64> {
    let line = table.lines().find_map(|l| l.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The most memory that a running process (this one, if none is named) has had resident so far, mapped files included;
/// `None` where the system does not say (all but Linux), or the process has ended.
pub fn peak(pid: Option<u32>) -> Option<u64> {
    let process = pid.map_or_else(|| "self".to_owned(), |n| n.to_string());
    kilobytes(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmHWM:")
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
    fn weights_larger_than_memory_are_refused_with_the_numbers() {
        let model = std::path::Path::new("big.gguf");
        assert_eq!(fits(model, 40_000_000_000, None), Ok(()));
        assert_eq!(fits(model, 8_000_000_000, Some(8_000_000_000)), Ok(()));
        let error = fits(model, 40_000_000_000, Some(8_000_000_000)).unwrap_err().to_string();
        for part in ["big.gguf", "40.00 GB", "8.00 GB", "--allow-swap"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(text(31_530_000), "31.5 MB");
        assert_eq!(text(2_410_000_000), "2.41 GB");
    }
}
