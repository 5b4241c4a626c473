//! Arithmetic that several modules need: norms, dot products, cosines, medians. All sums are taken in f64, in order.

/// Dot product of two vectors of the same length.
pub fn dot<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// Euclidean (L2) norm.
pub fn norm<T: Copy + Into<f64>>(x: &[T]) -> f64 {
    dot(x, x).sqrt()
}

/// Cosine of the angle between two vectors of the same length; NaN where one of them is zero.
pub fn cosine<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    dot(a, b) / (norm(a) * norm(b))
}

/// The middle value, or the mean of the two in the middle; `None` without values.
pub fn median<T: Copy + Into<f64>>(values: &[T]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().map(|&x| x.into()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

/// How many rows of f32 logits, `[n_vocab]` each, fit into `budget` bytes. May be 0: callers set their own minimum.
pub fn rows_within(budget: usize, n_vocab: usize) -> usize {
    budget / (size_of::<f32>() * n_vocab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        assert_eq!((norm(&[3.0f32, 4.0]), norm(&[3e30f32, 4e30])), (5.0, f64::hypot(3e30f32.into(), 4e30f32.into())));
        assert_eq!(dot(&[1.0f32, 2.0], &[3.0f64, -1.0]), 1.0);
        assert_eq!((cosine(&[2.0, 0.0], &[0.5, 0.0]), cosine(&[1.0, 0.0], &[0.0, 9.0])), (1.0, 0.0));
        assert!(cosine(&[0.0f32], &[1.0f32]).is_nan());
        assert_eq!((median::<f64>(&[]), median(&[9.0f32, 1.0, 3.0])), (None, Some(3.0)));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!((rows_within(64 << 20, 262_144), rows_within(1, 10)), (64, 0));
    }
}
