//! The gradient of a convolution over time.

use super::{extents, numbers};
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// Channels at a time: a cache line of the gradient.
const CHANNELS: usize = 16;

/// The custom op: src0 = gradient of the result `[n, tokens, sequences]`, src1 = filters `[d, n]`, dst `[d - 1 + tokens, n,
/// sequences]` with `dst[j, i] = sum_k filters[k, i] g[i, j - k]`.
pub(in crate::graph) unsafe extern "C" fn backward(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: `emit` passes contiguous F32 tensors of these shapes, all in host memory. Workers take disjoint channels of dst.
    unsafe {
        let (d, g, filters) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let ([width, n, sequences, _], [taps, ..]) = (extents(d), extents(filters));
        let tokens = extents(g)[1];
        let (g, filters) = (numbers(g), numbers(filters));
        let blocks = n.div_ceil(CHANNELS);
        let (from, to) = share(blocks * sequences, ith as usize, nth as usize);
        for unit in from..to {
            let (sequence, first) = (unit / blocks, unit % blocks * CHANNELS);
            let channels = CHANNELS.min(n - first);
            let at = (sequence * n + first) * width;
            let out = std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(at), channels * width);
            out.fill(0.0);
            for token in 0..tokens {
                let g = &g[(sequence * tokens + token) * n + first..][..channels];
                for (i, g) in g.iter().enumerate() {
                    let filter = &filters[(first + i) * taps..][..taps];
                    let window = &mut out[i * width + token..][..taps];
                    window.iter_mut().zip(filter).for_each(|(sum, w)| *sum += w * g);
                }
            }
        }
    }
}
