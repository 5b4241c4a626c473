//! Gradients number by number and row by row, which ggml computes without vector instructions or in several passes.

use super::cpu::for_this_cpu;
use super::numeric::{fast_exp, sum16};
use super::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// `g silu'(x)`, times `up` where there is one: with s = 1 / (1 + exp -x), `silu'(x) = s (1 + x (1 - s))`.
fn silu_slope(g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    #[inline(always)]
    fn body(g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
        each(g, x, up, out, |x| {
            let s = 1.0 / (1.0 + fast_exp(-x));
            s * (1.0 + x * (1.0 - s))
        });
    }
    for_this_cpu!(body, (g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) -> ())
}

/// `g gelu'(x)` of the tanh form (Hendrycks & Gimpel 2016), times `up` where there is one.
///
/// `gelu(x) = x (1 + tanh u) / 2` with `u = c x (1 + a x^2)`, so with `r = 1 / (1 + exp 2u)`
/// `gelu'(x) = 1 - r + 2 r (1 - r) x c (1 + 3 a x^2)`.
fn gelu_slope(g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    #[inline(always)]
    fn body(g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
        const C: f32 = 0.797_884_6; // sqrt(2 / pi)
        const A: f32 = 0.044_715;
        each(g, x, up, out, |x| {
            let xx = x * x;
            let r = 1.0 / (1.0 + fast_exp(2.0 * C * x * (1.0 + A * xx)));
            1.0 - r + 2.0 * r * (1.0 - r) * x * C * (1.0 + 3.0 * A * xx)
        });
    }
    for_this_cpu!(body, (g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32]) -> ())
}

#[inline(always)]
fn each(g: &[f32], x: &[f32], up: Option<&[f32]>, out: &mut [f32], slope: impl Fn(f32) -> f32) {
    match up {
        Some(up) => {
            for (((out, &g), &x), &up) in out.iter_mut().zip(g).zip(x).zip(up) {
                *out = g * up * slope(x);
            }
        }
        None => {
            for ((out, &g), &x) in out.iter_mut().zip(g).zip(x) {
                *out = g * slope(x);
            }
        }
    }
}

/// One row of the gradient of `x / sqrt(mean x^2 + eps)`, for a gradient `g` of the result, `g w` where there is a `w`:
/// `(g - x mean(g x) / d^2) / d` with d the root.
fn norm_slope(g: &[f32], x: &[f32], w: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    #[inline(always)]
    fn body(g: &[f32], x: &[f32], w: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        if let Some(w) = w {
            for ((out, &g), &w) in out.iter_mut().zip(g).zip(w) {
                *out = g * w;
            }
        } else {
            out.copy_from_slice(g);
        }
        let (mut xx, mut gx) = ([0.0f32; 16], [0.0f32; 16]);
        let (x16, rest) = x.as_chunks::<16>();
        for (x, g) in x16.iter().zip(out.as_chunks::<16>().0) {
            for l in 0..16 {
                xx[l] += x[l] * x[l];
                gx[l] += x[l] * g[l];
            }
        }
        let (mut xx, mut gx) = (f64::from(sum16(&xx)), f64::from(sum16(&gx)));
        for (&x, &g) in rest.iter().zip(&out[x16.len() * 16..]) {
            xx += f64::from(x * x);
            gx += f64::from(x * g);
        }
        let n = x.len() as f64;
        let dd = xx / n + f64::from(eps);
        let (along, factor) = ((gx / n / dd) as f32, (1.0 / dd.sqrt()) as f32);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (*out - x * along) * factor;
        }
    }
    for_this_cpu!(body, (g: &[f32], x: &[f32], w: Option<&[f32]>, eps: f32, out: &mut [f32]) -> ())
}

/// A worker's numbers of a contiguous tensor.
///
/// # Safety
/// The tensor is contiguous F32 in host memory, of at least `to` numbers.
unsafe fn part<'a>(t: *const sys::ggml_tensor, from: usize, to: usize) -> &'a [f32] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts((*t).data.cast::<f32>().add(from), to - from) }
}

/// Gradient of the result, argument, perhaps another factor, to the gradient of the argument.
type Slope = fn(&[f32], &[f32], Option<&[f32]>, &mut [f32]);

unsafe fn activation(dst: *mut sys::ggml_tensor, (ith, nth): (usize, usize), slope: Slope) {
    // SAFETY: `emit` passes contiguous F32 tensors of one shape in host memory; workers take disjoint ranges.
    unsafe {
        let n = (*dst).ne.iter().product::<i64>() as usize;
        let (from, to) = share(n.div_ceil(64), ith, nth);
        let (from, to) = ((from * 64).min(n), (to * 64).min(n));
        let [g, x, up] = [0, 1, 2].map(|i| (*dst).src[i]);
        let up = (!up.is_null()).then(|| part(up, from, to));
        let out = std::slice::from_raw_parts_mut((*dst).data.cast::<f32>().add(from), to - from);
        slope(part(g, from, to), part(x, from, to), up, out);
    }
}

/// Custom ops of activations: src0 = gradient g of the result, src1 = x, perhaps src2 = u; dst `g u f'(x)`.
macro_rules! activations_back {
    ($($(#[$doc:meta])* $name:ident = $slope:ident;)*) => {
        $($(#[$doc])*
        pub(in crate::graph) unsafe extern "C" fn $name(
            dst: *mut sys::ggml_tensor,
            ith: c_int,
            nth: c_int,
            _: *mut c_void,
        ) {
            // SAFETY: passed on.
            unsafe { activation(dst, (ith as usize, nth as usize), $slope) }
        })*
    };
}

activations_back! {
    /// Custom op: `g u silu'(x)`.
    silu_back = silu_slope;
    /// Custom op: `g u gelu'(x)` of the tanh form.
    gelu_back = gelu_slope;
}

/// The user data of [`rms_norm_back`].
pub(in crate::graph) fn norm_task(eps: f32) -> *mut c_void {
    eps.to_bits() as usize as *mut c_void
}

/// Custom op: src0 = gradient of the result `[n, rows]`, src1 = what was normalised, perhaps src2 = what each row of the
/// result was multiplied with, `[n]`.
pub(in crate::graph) unsafe extern "C" fn rms_norm_back(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: `emit` passes contiguous F32 tensors in host memory; workers take disjoint rows.
    unsafe {
        let [n, a, b, c] = (*dst).ne.map(|n| n as usize);
        let (from, to) = share(a * b * c, ith as usize, nth as usize);
        let [g, x, w] = [0, 1, 2].map(|i| (*dst).src[i]);
        let w = (!w.is_null()).then(|| part(w, 0, n));
        for row in from..to {
            let at = row * n;
            let out = std::slice::from_raw_parts_mut((*dst).data.cast::<f32>().add(at), n);
            norm_slope(part(g, at, at + n), part(x, at, at + n), w, f32::from_bits(user as usize as u32), out);
        }
    }
}
