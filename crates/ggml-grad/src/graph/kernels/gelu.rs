//! GELU without ggml's table of 16-bit floats, for the comparison of gradients with differences: the table is a staircase.

use super::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// The tanh form (Hendrycks & Gimpel 2016).
fn tanh_form(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * x * (1.0 + 0.044_715 * x * x)).tanh())
}

/// The sigmoid form.
fn quick_form(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}

/// Custom op of one source, `gelu(src0)`, or of two, `gelu(src0) * src1`; dst contiguous.
pub(in crate::graph) unsafe extern "C" fn tanh(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: passed on.
    unsafe { apply(dst, ith as usize, nth as usize, tanh_form) }
}

/// The same with the sigmoid form.
pub(in crate::graph) unsafe extern "C" fn quick(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: passed on.
    unsafe { apply(dst, ith as usize, nth as usize, quick_form) }
}

unsafe fn apply(dst: *mut sys::ggml_tensor, ith: usize, nth: usize, f: impl Fn(f64) -> f64) {
    // SAFETY: `emit` passes F32 tensors of one shape in host memory, sources with any strides whose rows have no gaps.
    // Workers take disjoint rows.
    unsafe {
        let (d, x, y) = (&*dst, &*(*dst).src[0], (*dst).src[1].as_ref());
        let [n, n1, n2, n3] = d.ne.map(|n| n as usize);
        let (from, to) = share(n1 * n2 * n3, ith, nth);
        for row in from..to {
            let (i1, i2, i3) = (row % n1, row / n1 % n2, row / n1 / n2);
            let at = |t: &sys::ggml_tensor| {
                let start = t.data.cast::<u8>().add(i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3]);
                std::slice::from_raw_parts(start.cast::<f32>(), n)
            };
            let out = std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(row * n), n);
            let (x, y) = (at(x), y.map(at));
            for (i, out) in out.iter_mut().enumerate() {
                *out = (f(f64::from(x[i])) * y.map_or(1.0, |y| f64::from(y[i]))) as f32;
            }
        }
    }
}
