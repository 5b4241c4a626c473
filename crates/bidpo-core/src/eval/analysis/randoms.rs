//! The vector among random vectors of its length: a rank, since an interval over items says nothing about other directions.

use super::MeasureTable;
use crate::eval::conditions::STEERED;
use crate::eval::results::ConditionKind;

/// Random vectors' values, and the steered model's place among them.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomVectors {
    /// Number of random vectors.
    pub n: usize,
    /// Lowest value.
    pub lowest: f64,
    /// Highest value.
    pub highest: f64,
    /// Mean of the values.
    pub mean: f64,
    /// Random vectors that the steered model does strictly better than.
    pub below: usize,
}

impl RandomVectors {
    /// Of a table; `None` without a random vector or the steered model.
    pub fn of(t: &MeasureTable) -> Option<Self> {
        let steered = t.row(STEERED)?.estimate.value * t.measure.direction();
        let values: Vec<f64> = t
            .rows
            .iter()
            .filter(|r| matches!(r.kind, ConditionKind::Random { .. }))
            .map(|r| r.estimate.value)
            .collect();
        (!values.is_empty()).then(|| Self {
            n: values.len(),
            lowest: values.iter().copied().fold(f64::INFINITY, f64::min),
            highest: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean: crate::stats::mean(&values),
            below: values.iter().filter(|&&v| v * t.measure.direction() < steered).count(),
        })
    }
}
