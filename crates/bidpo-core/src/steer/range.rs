//! The range of scales that a vector's file records as measured, and the rule of thumb where it records none.

use super::{Provenance, SteeringVector};
use crate::intervention::Scope;

/// Keys of the range begin with this.
pub(super) const PREFIX: &str = "safe_";

/// Scales between which KL(unsteered || steered) on neutral text was measured to stay within a budget
/// ([`crate::eval::calibrate`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeasuredRange {
    /// Smallest scale, at most 0.
    pub low: f64,
    /// Largest scale, at least 0.
    pub high: f64,
    /// The budget, nats a token.
    pub budget: f64,
}

/// Scales within which text is expected to stay whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SafeRange {
    /// Smallest scale, at most 0.
    pub low: f64,
    /// Largest scale, at least 0.
    pub high: f64,
    /// Measured, or by the rule of thumb ([`SteeringVector::STRONG_PERCENT`]).
    pub measured: bool,
}

impl MeasuredRange {
    /// Whether `scale` lies within, but for the rounding of f32.
    pub fn contains(&self, scale: f64) -> bool {
        let slack = 1e-6 * scale.abs();
        self.low - slack <= scale && scale <= self.high + slack
    }

    /// `-1.45 to 1.52`.
    pub fn in_words(&self) -> String {
        format!("{} to {}", shown(self.low), shown(self.high))
    }

    /// Writes the keys.
    pub fn record(&self, provenance: &mut Provenance) {
        provenance.set_float("safe_scale_low", self.low);
        provenance.set_float("safe_scale_high", self.high);
        provenance.set_float("safe_kl_budget", self.budget);
    }
}

/// A scale with three significant digits, cut towards 0: a scale that is written as it is shown stays within the range.
fn shown(scale: f64) -> String {
    if scale == 0.0 || !scale.is_finite() {
        return scale.abs().to_string();
    }
    let decimals = (2 - scale.abs().log10().floor() as i32).clamp(0, 12);
    let unit = 10f64.powi(decimals);
    format!("{:.*}", decimals as usize, (scale * unit).trunc() / unit)
}

impl SteeringVector {
    /// The range that the file records; `None` where it records none, or none that makes sense.
    pub fn measured_range(&self) -> Option<MeasuredRange> {
        let number = |key: &str| self.provenance.number(key).filter(|x| x.is_finite());
        let (low, high) = (number("safe_scale_low")?, number("safe_scale_high")?);
        let budget = number("safe_kl_budget").filter(|b| *b > 0.0)?;
        (low <= 0.0 && 0.0 <= high).then_some(MeasuredRange { low, high, budget })
    }

    /// The measured range, else that of the rule of thumb ([`SteeringVector::safe_scale`]) on both sides.
    pub fn safe_range(&self) -> Option<SafeRange> {
        let measured = self.measured_range().map(|r| SafeRange { low: r.low, high: r.high, measured: true });
        measured.or_else(|| self.safe_scale().map(|s| SafeRange { low: -s, high: s, measured: false }))
    }

    /// Lets it act at other positions than those it was made for. A range that was measured at others is dropped.
    pub fn set_scope(&mut self, scope: Scope) {
        if scope != self.scope {
            self.forget_range();
            self.scope = scope;
        }
    }

    /// Drops a measured range.
    pub fn forget_range(&mut self) {
        self.provenance.forget_range();
    }
}

impl Provenance {
    /// Drops a measured range.
    pub fn forget_range(&mut self) {
        self.entries.retain(|key, _| !key.starts_with(PREFIX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector() -> SteeringVector {
        let mut v = SteeringVector::single(3, vec![3.0, 4.0], "llama").unwrap();
        v.provenance.set_float("residual_norm_median", 100.0);
        v
    }

    #[test]
    fn a_measured_range_replaces_the_rule_of_thumb() {
        let mut v = vector();
        // Norm 5 is 5 percent of 100.
        let rule = v.safe_range().unwrap();
        assert!((rule.high - 4.0).abs() < 1e-12 && rule.low == -rule.high && !rule.measured);
        MeasuredRange { low: -1.5, high: 2.25, budget: 0.2 }.record(&mut v.provenance);
        assert_eq!(v.safe_range(), Some(SafeRange { low: -1.5, high: 2.25, measured: true }));
        assert!(v.measured_range().unwrap().contains(2.25) && !v.measured_range().unwrap().contains(-1.51));
        // Other positions, another length: the measurement is of another change.
        let mut elsewhere = v.clone();
        elsewhere.set_scope("answer".parse().unwrap());
        assert_eq!((elsewhere.measured_range(), v.scaled(2.0).measured_range()), (None, None));
        v.set_scope(Scope::ALL);
        assert!(v.measured_range().is_some());
    }

    #[test]
    fn ranges_that_make_no_sense_are_not_believed() {
        for (low, high, budget) in [(0.5, 1.0, 0.2), (-1.0, -0.5, 0.2), (-1.0, f64::NAN, 0.2), (-1.0, 1.0, 0.0)] {
            let mut v = vector();
            MeasuredRange { low, high, budget }.record(&mut v.provenance);
            assert_eq!(v.measured_range(), None, "{low} {high} {budget}");
            assert!(!v.safe_range().unwrap().measured);
        }
    }

    #[test]
    fn ends_are_written_towards_zero() {
        let range = |low, high| MeasuredRange { low, high, budget: 0.1 }.in_words();
        assert_eq!(range(-1.4567, 1.5299), "-1.45 to 1.52");
        assert_eq!(range(-0.0, 123.99), "0 to 123");
        assert_eq!(range(-0.012_345, 9.999), "-0.0123 to 9.99");
    }
}
