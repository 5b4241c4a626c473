//! Log-probabilities of labels, and the gradient of their weighted sum, from logits. With the logits of a reference: the
//! divergence from it, and its gradient.

use crate::graph::kernels::head::task::LossTask;
use crate::graph::kernels::numeric::{fast_exp, log_sum_exp};
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// KL(p || q) of the logits `y` of p and `x` of q, whose log-sum-exp is `log_z`; `coef (p - q)` into `d`.
///
/// `KL = sum_v p_v (y_v - x_v) - log Z_p + log Z_q`.
fn diverge(y: &[f32], x: &[f32], log_z: f64, coef: f32, d: &mut [f32]) -> f64 {
    let log_zp = log_sum_exp(y);
    let (shift_p, shift_q) = (log_zp as f32, log_z as f32);
    // Relative to both log-sum-exps, so that equal distributions differ by 0 whatever constant their logits carry.
    let offset = log_zp - log_z;
    let mut sum = 0.0;
    for ((d, &y), &x) in d.iter_mut().zip(y).zip(x) {
        let (p, q) = (fast_exp(y - shift_p), fast_exp(x - shift_q));
        if p > 0.0 {
            sum += f64::from(p) * (f64::from(y) - f64::from(x) - offset);
        }
        *d = coef * (p - q);
    }
    sum
}

/// The custom op: src0 = logits `[n_vocab, n_rows]`, dst = gradient of the same shape.
///
/// `d/dlogits sum_l coef_l log p(token_l) = sum_l coef_l (onehot(token_l) - softmax)`, row by row.
///
/// With src1 = logits of a reference p, of the same shape: `d/dlogits -coef KL(p || q) = coef (p - q)`, where coef is the sum
/// of the row's coefficients.
pub(in crate::graph) unsafe extern "C" fn run(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, user: *mut c_void) {
    // SAFETY: `emit` passes a LossTask that outlives the computation and contiguous F32 tensors in host memory. Workers
    // take disjoint rows, so they write disjoint rows of dst and disjoint entries of log_probs.
    unsafe {
        let logits = &*(*dst).src[0];
        let (n_vocab, n_rows) = (logits.ne[0] as usize, logits.ne[1] as usize);
        let task = user.cast::<LossTask>();
        let labels = (*task).labels.as_slice();
        let log_probs = (*task).log_probs.as_mut_ptr();
        let divergences = (*task).divergences.as_mut_ptr();
        let (r0, r1) = share(n_rows, ith as usize, nth as usize);
        for row in r0..r1 {
            let x = std::slice::from_raw_parts(logits.data.cast::<f32>().add(row * n_vocab), n_vocab);
            let d = std::slice::from_raw_parts_mut((*dst).data.cast::<f32>().add(row * n_vocab), n_vocab);
            let first = labels.partition_point(|l| (l.row as usize) < row);
            let last = labels.partition_point(|l| (l.row as usize) <= row);
            let coef: f32 = labels[first..last].iter().map(|l| l.coef).sum();
            let log_z = log_sum_exp(x);
            for l in first..last {
                *log_probs.add(l) = f64::from(x[labels[l].token as usize]) - log_z;
            }
            let reference = (*dst).src[1];
            if !reference.is_null() {
                let y = std::slice::from_raw_parts((*reference).data.cast::<f32>().add(row * n_vocab), n_vocab);
                let divergence = diverge(y, x, log_z, coef, d);
                for l in first..last {
                    *divergences.add(l) = divergence;
                }
                continue;
            }
            if coef == 0.0 {
                d.fill(0.0);
            } else {
                let shift = log_z as f32;
                for (d, &x) in d.iter_mut().zip(x) {
                    *d = -coef * fast_exp(x - shift);
                }
            }
            for l in &labels[first..last] {
                d[l.token as usize] += l.coef;
            }
        }
    }
}
