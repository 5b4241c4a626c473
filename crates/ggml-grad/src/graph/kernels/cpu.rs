//! What this CPU can do, asked once.

use std::sync::LazyLock;

/// Instructions that some of the kernels need.
#[derive(Debug, Clone, Copy)]
pub(in crate::graph) struct Cpu {
    /// Registers of 64 bytes (AVX-512 with its byte, double word and short vector parts, and FMA).
    pub wide: bool,
    /// FastKernels of bytes summed in fours (AVX512-VNNI), with all that the kernels of [`super::int8`] use beside it.
    pub int8: bool,
    /// FastKernels of BF16 pairs (AVX512-BF16).
    pub bf16: bool,
}

static CPU: LazyLock<Cpu> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
        let wide = wide && has!("fma");
        Cpu { wide, int8: wide && has!("avx512vnni"), bf16: wide && has!("avx512bf16") }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Cpu { wide: false, int8: false, bf16: false }
    }
});

/// What this CPU can do.
pub(in crate::graph) fn cpu() -> Cpu {
    *CPU
}

/// Calls a function that is always inlined: as it is, or, on CPUs with [`Cpu::wide`], compiled for those.
macro_rules! for_this_cpu {
    ($body:path, ($($arg:ident: $kind:ty),*) -> $result:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
            unsafe fn wide($($arg: $kind),*) -> $result {
                $body($($arg),*)
            }
            if $crate::graph::kernels::cpu::cpu().wide {
                // SAFETY: the CPU has the instructions.
                return unsafe { wide($($arg),*) };
            }
        }
        $body($($arg),*)
    }};
}
pub(super) use for_this_cpu;
