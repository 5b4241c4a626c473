//! Arithmetic on rows that several kernels share: the exponential function, sums, maxima.

/// `log sum exp` of a row, accumulated in F64. Infinite or NaN where the largest element is.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if !max.is_finite() {
        // All -inf, or an overflow.
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

/// The sum of sixteen numbers, by halves.
#[inline(always)]
pub(super) fn sum16(x: &[f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The largest of sixteen numbers, by halves. A NaN may be skipped.
#[inline(always)]
pub(super) fn max16(x: &[f32; 16]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let eight: [f32; 8] = std::array::from_fn(|i| larger(x[i], x[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| larger(eight[i], eight[i + 4]));
    larger(larger(four[0], four[2]), larger(four[1], four[3]))
}

/// The largest of a multiple of sixteen numbers; NaN if one of them is NaN.
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

/// Writes `exp(z - max)` to `e` and returns the sum, taken in sixteen partial sums.
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
pub(super) fn fast_exp(x: f32) -> f32 {
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
