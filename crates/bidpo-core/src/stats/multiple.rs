//! Many comparisons at once.

/// Holm's step-down adjustment of p values: rejecting where the adjusted value is at most alpha keeps the chance of any
/// false rejection at alpha, whatever the dependence (Holm 1979, Scand. J. Statist. 6:65). In the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let m = p.len();
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; m];
    let mut largest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max(((m - rank) as f64 * p[i]).min(1.0));
        adjusted[i] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// statsmodels 0.15.0: `multipletests(p, method="holm")[1]` (the same as R's `p.adjust(p, "holm")`).
    #[test]
    fn holm_equals_statsmodels() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005, 0.5]);
        for (a, b) in adjusted.iter().zip([0.04, 0.09, 0.09, 0.025, 0.5]) {
            close(*a, b, 1e-12);
        }
        assert_eq!(holm(&[]), Vec::<f64>::new());
    }
}
