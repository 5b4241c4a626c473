//! The CPU level: which instruction sets the kernels use. It is detected once; `BIDPO_CPU` forces it down, so that the
//! kernels of smaller CPUs can be tested on any machine.

use std::fmt;
use std::sync::LazyLock;

/// The environment variable that forces the level down: the name of a [`CpuLevel`].
const VARIABLE: &str = "BIDPO_CPU";

/// Instruction sets that bidpo's kernels are written for. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// Plain Rust, compiled for the target CPU of the build.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ) and FMA: 64-byte registers.
    Avx512,
    /// AVX512-VNNI as well: int8 dot products, for matmuls with quantized weights.
    Avx512Vnni,
    /// AVX512-BF16 as well: BF16 dot products, for the backward pass and the fused LM-head loss.
    Avx512Bf16,
}

impl CpuLevel {
    /// All levels, lowest first.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16];

    /// The name, as `BIDPO_CPU` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// AVX2 and FMA may be used.
    pub(in crate::graph) fn has_avx2(self) -> bool {
        self >= Self::Avx2
    }

    /// AVX-512 may be used.
    pub(in crate::graph) fn has_avx512(self) -> bool {
        self >= Self::Avx512
    }

    /// Int8 dot products may be used, with all else that [`super::products::int8`] uses.
    pub(in crate::graph) fn has_int8(self) -> bool {
        self >= Self::Avx512Vnni
    }

    /// BF16 dot products may be used.
    pub(in crate::graph) fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// The highest level of this CPU.
    fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            let vnni = avx512 && has!("avx512vnni");
            let bf16 = vnni && has!("avx512bf16");
            let includes = [true, avx2, avx512, vnni, bf16];
            Self::ALL[includes.iter().filter(|&&is| is).count() - 1]
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            Self::Plain
        }
    }

    /// The level that a value of the variable forces.
    fn forced(value: Option<&str>, detected: Self) -> Result<Self, CpuLevelError> {
        let Some(value) = value else { return Ok(detected) };
        match Self::ALL.into_iter().find(|level| level.name() == value) {
            None => Err(CpuLevelError::Unknown { value: value.to_owned() }),
            Some(wanted) if wanted > detected => Err(CpuLevelError::Lacking { wanted, detected }),
            Some(wanted) => Ok(wanted),
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of `BIDPO_CPU` that cannot be used. The kernels then use the detected level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuLevelError {
    /// Not the name of a level.
    #[error("{VARIABLE} is {value:?}: expected plain, avx2, avx512, avx512-vnni or avx512-bf16")]
    Unknown {
        /// The value.
        value: String,
    },
    /// A level above this CPU's.
    #[error("{VARIABLE} is {wanted}, but this CPU has {detected} only: the variable forces the level down, never up")]
    Lacking {
        /// The level asked for.
        wanted: CpuLevel,
        /// The highest level of this CPU.
        detected: CpuLevel,
    },
}

static DETECTED: LazyLock<CpuLevel> = LazyLock::new(CpuLevel::detected);

static LEVEL: LazyLock<Result<CpuLevel, CpuLevelError>> = LazyLock::new(|| {
    let value = std::env::var_os(VARIABLE);
    CpuLevel::forced(value.as_ref().map(|v| v.to_string_lossy()).as_deref(), *DETECTED)
});

/// The CPU level in use: the highest of this CPU, or the one that the environment variable `BIDPO_CPU` forces. Read once.
///
/// # Errors
/// [`CpuLevelError`] for a value of the variable that names no level, or one that this CPU lacks.
pub fn cpu_level() -> Result<CpuLevel, CpuLevelError> {
    LEVEL.clone()
}

/// The level that the kernels use: as [`cpu_level`], or the detected one where that is an error.
pub(in crate::graph) fn level() -> CpuLevel {
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    LEVEL.as_ref().copied().unwrap_or(*DETECTED)
}

/// Calls a function that is always inlined: as it is, or, from [`CpuLevel::Avx512`] on, compiled for AVX-512.
macro_rules! for_this_cpu {
    ($body:path, ($($arg:ident: $kind:ty),*) -> $result:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
            unsafe fn wide($($arg: $kind),*) -> $result {
                $body($($arg),*)
            }
            if $crate::graph::kernels::cpu::level().has_avx512() {
                // SAFETY: the CPU has the instructions.
                return unsafe { wide($($arg),*) };
            }
        }
        $body($($arg),*)
    }};
}
pub(super) use for_this_cpu;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::Command;

    thread_local! {
        /// The level of kernels that run on this thread. (Threads of ggml's do not see it.)
        pub(super) static FORCED: Cell<Option<CpuLevel>> = const { Cell::new(None) };
    }

    /// Runs a test once at each level that this CPU has. Kernels must run on the calling thread.
    pub(in crate::graph::kernels) fn at_every_level(mut test: impl FnMut(CpuLevel)) {
        for level in CpuLevel::ALL.into_iter().filter(|level| *level <= *DETECTED) {
            FORCED.set(Some(level));
            test(level);
            FORCED.set(None);
        }
    }

    #[test]
    fn the_variable_forces_the_level_down_only() {
        use CpuLevel::{Avx2, Avx512, Avx512Bf16, Plain};
        assert_eq!(CpuLevel::forced(None, Avx512), Ok(Avx512));
        assert_eq!(CpuLevel::forced(Some("plain"), Avx512Bf16), Ok(Plain));
        assert_eq!(CpuLevel::forced(Some("avx2"), Avx512Bf16), Ok(Avx2));
        assert_eq!(CpuLevel::forced(Some("avx512-bf16"), Avx512Bf16), Ok(Avx512Bf16));
        let message = CpuLevel::forced(Some("avx512"), Avx2).unwrap_err().to_string();
        assert!(message.contains("avx512, but this CPU has avx2 only"), "{message}");
        let message = CpuLevel::forced(Some("AVX"), Avx2).unwrap_err().to_string();
        assert!(message.contains("\"AVX\"") && message.contains("avx512-vnni"), "{message}");
    }

    /// Reports the level of this process: for [`the_variable_is_honoured`], which runs it in another.
    #[test]
    #[ignore = "run by another test with BIDPO_CPU set"]
    fn report_level() {
        assert_eq!((cpu_level(), level()), (Ok(CpuLevel::Plain), CpuLevel::Plain));
    }

    #[test]
    fn the_variable_is_honoured() {
        let run = |value: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = "graph::kernels::cpu::tests::report_level";
            command.args([name, "--exact", "--ignored"]).env(VARIABLE, value).output().unwrap()
        };
        let (plain, unknown) = (run("plain"), run("sse"));
        assert!(plain.status.success() && String::from_utf8_lossy(&plain.stdout).contains("1 passed"), "{plain:?}");
        assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stdout).contains("sse"), "{unknown:?}");
    }
}
