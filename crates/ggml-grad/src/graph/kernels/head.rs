//! Log-probabilities of labels, and the gradient of their weighted sum, from logits.

use super::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// A label to score: the row of logits, the token, and the coefficient of its log-probability in the sum that is
/// differentiated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// Row of the logits.
    pub row: u32,
    /// Token id.
    pub token: u32,
    /// Coefficient in the sum.
    pub coef: f32,
}

/// From the labels' log-probabilities to their coefficients, for a sum whose weights follow from what is summed: the
/// gradient of a loss. It may not change which rows have coefficients that cancel.
pub type LabelWeightFn<'a> = &'a (dyn Fn(&[f64]) -> Vec<f32> + Sync);

/// What the custom op reads and writes beside its tensors.
pub(in crate::graph) struct HeadTask<'a> {
    /// Labels sorted by row.
    pub labels: Vec<Label>,
    /// Where the labels' own coefficients only say which rows have a gradient: what gives the others. Known to
    /// [`super::loss_head`] alone.
    pub weigh: Option<LabelWeightFn<'a>>,
    /// log p of each label, filled by the run.
    pub log_probs: Vec<f64>,
    /// Whether [`super::loss_head`] has to compute the gradient as well.
    pub grad: bool,
    /// Logit of each label, filled by [`super::loss_head`].
    pub logits: Vec<f32>,
    /// For [`super::loss_head`]: one for each worker.
    pub parts: Vec<super::loss_head::Part>,
}

impl<'a> HeadTask<'a> {
    /// A task for `n_workers` workers.
    pub(crate) fn new(labels: &[Label], weigh: Option<LabelWeightFn<'a>>, n_workers: usize) -> Self {
        Self {
            labels: labels.to_vec(),
            weigh,
            log_probs: vec![f64::NAN; labels.len()],
            grad: false,
            logits: vec![f32::NAN; labels.len()],
            parts: vec![super::loss_head::Part::default(); n_workers],
        }
    }
}

/// The custom op: src0 = logits `[n_vocab, n_rows]`, dst = gradient of the same shape.
///
/// `d/dlogits sum_l coef_l log p(token_l) = sum_l coef_l (onehot(token_l) - softmax)`, row by row.
pub(in crate::graph) unsafe extern "C" fn run(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, user: *mut c_void) {
    // SAFETY: `emit` passes a HeadTask that outlives the computation and contiguous F32 tensors in host memory. Workers
    // take disjoint rows, so they write disjoint rows of dst and disjoint entries of log_probs.
    unsafe {
        let logits = &*(*dst).src[0];
        let (n_vocab, n_rows) = (logits.ne[0] as usize, logits.ne[1] as usize);
        let task = user.cast::<HeadTask>();
        let labels = (*task).labels.as_slice();
        let log_probs = (*task).log_probs.as_mut_ptr();
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

/// log sum exp of a row, accumulated in f64.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if !max.is_finite() {
        // All -inf, or an overflow: the caller sees it in the result.
        return f64::from(max);
    }
    let mut sum = 0.0f64;
    for chunk in x.chunks(64) {
        let mut lanes = [0.0f32; 64];
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = fast_exp(v - max);
        }
        sum += f64::from(lanes[..chunk.len()].iter().sum::<f32>());
    }
    f64::from(max) + sum.ln()
}

/// Their sum, by halves.
#[inline(always)]
pub(super) fn sum16(x: &[f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The largest, by halves; what is not a number may be passed over.
#[inline(always)]
pub(super) fn max16(x: &[f32; 16]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let eight: [f32; 8] = std::array::from_fn(|i| larger(x[i], x[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| larger(eight[i], eight[i + 4]));
    larger(larger(four[0], four[2]), larger(four[1], four[3]))
}

/// The largest of them (a multiple of sixteen numbers); NaN where there is one.
#[inline(always)]
pub(super) fn largest(z: &[f32]) -> f32 {
    let mut top = [f32::NEG_INFINITY; 16];
    let mut sum = [0.0f32; 16];
    for z in z.chunks_exact(16) {
        for i in 0..16 {
            top[i] = if z[i] > top[i] { z[i] } else { top[i] };
            sum[i] += z[i] * 0.0;
        }
    }
    let top = max16(&top);
    if sum16(&sum).is_nan() && z.iter().any(|z| z.is_nan()) { f32::NAN } else { top }
}

/// `exp(z - max)` and their sum, sixteen partial sums side by side.
#[inline(always)]
pub(super) fn exponentials(z: &[f32], max: f32, e: &mut [f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (z, e) in z.chunks_exact(16).zip(e.chunks_exact_mut(16)) {
        for i in 0..16 {
            e[i] = fast_exp(z[i] - max);
            sums[i] += e[i];
        }
    }
    sum16(&sums)
}

/// e^x to about 1e-7 relative for x <= 88, in a form that compilers vectorise: 2^n times a polynomial on
/// [-ln 2 / 2, ln 2 / 2] (the Taylor series to degree 7, whose remainder there is below 1e-8).
#[inline(always)]
pub(crate) fn fast_exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // With this added a float has no place for a fraction: its last bits are the nearest integer. Conversions to integers
    // check for what does not fit, one number at a time.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8700..8700 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(fast_exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}): {got} for {want}");
        }
    }

    #[test]
    fn log_sum_exp_of_known_rows() {
        assert!((log_sum_exp(&[0.0; 100]) - 100f64.ln()).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-6);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
    }
}
