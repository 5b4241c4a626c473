//! Numbers as they stand in tables and sentences.

/// About three significant digits: `0.25`, `3.80`, `25.3`, `812`.
pub fn significant(x: f64) -> String {
    match x.abs() {
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}

/// `x` with that many decimals; as a power of ten from a million on, where a training run diverged.
pub fn fixed(x: f64, decimals: usize) -> String {
    if x.abs() < 1e6 { format!("{x:.decimals$}") } else { format!("{x:.2e}") }
}

/// A fraction in percent with one decimal: `28.7 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// Both ends of an interval, with that many decimals: `[-1.9, 5.8]`.
pub fn interval(lo: f64, hi: f64, decimals: usize) -> String {
    format!("[{lo:.decimals$}, {hi:.decimals$}]")
}

/// Both ends with their signs: `[-1.9, +5.8]`.
pub fn signed_interval(lo: f64, hi: f64, decimals: usize) -> String {
    format!("[{lo:+.decimals$}, {hi:+.decimals$}]")
}

/// A p value with three decimals, or `< 0.001`.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

/// A p value with its name, for a sentence: `p = 0.031`, `p < 0.001`.
pub fn p_equals(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {p:.3}") }
}

/// The range of some values with that many decimals: `0.0650 to 0.0798`; a single number where both ends are written alike.
pub fn range(values: impl IntoIterator<Item = f64>, decimals: usize) -> String {
    let (lo, hi) =
        values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), x| (f64::min(lo, x), f64::max(hi, x)));
    let (lo, hi) = (format!("{lo:.decimals$}"), format!("{hi:.decimals$}"));
    if lo == hi { lo } else { format!("{lo} to {hi}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        assert_eq!([0.254, 3.8, 25.34, -812.4].map(significant), ["0.25", "3.80", "25.3", "-812"]);
        assert_eq!([fixed(2.345_67, 2), fixed(-2e6, 2)], ["2.35", "-2.00e6"]);
        assert_eq!([p_value(0.03125), p_value(1e-4), p_equals(0.5)], ["0.031", "< 0.001", "p = 0.500"]);
        assert_eq!([percent(0.287), interval(-1.94, 5.8, 1)], ["28.7 %", "[-1.9, 5.8]"]);
        assert_eq!(signed_interval(-1.94, 5.8, 1), "[-1.9, +5.8]");
        assert_eq!([range([0.08, 0.065], 3), range([1.0, 1.001], 2)], ["0.065 to 0.080", "1.00"]);
    }
}
