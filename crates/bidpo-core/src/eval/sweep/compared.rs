//! Vectors that the one under test is compared with, at scales of their own: the one that the sweep's rule chooses for them,
//! and the one at which they cost as much.

use super::{Configuration, Percents, Place, only};
use crate::eval::conditions::condition::{Condition, direction};
use crate::eval::conditions::{BaselineError, Conditions, OtherVector};
use crate::eval::results::{ChosenOn, ConditionKind, EqualKl};
use crate::layers::Layers;
use crate::steer::{Conditional, ControlVector, SteeringVector, rotated};

/// Largest relative difference of two divergences that count as equal.
pub const KL_TOLERANCE: f64 = 0.05;

/// Largest factor between a continued scale and the nearest one that was measured.
const EXTRAPOLATION: f64 = 2.0;

/// What a compared vector adds, of any size.
#[derive(Debug, Clone, PartialEq)]
pub enum Base {
    /// A direction, at any layer.
    Direction(Vec<f32>),
    /// A random change of a kind's size, at that kind's layer.
    Change {
        /// The change.
        change: Conditional,
        /// The vector whose kind and size it has.
        like: Box<SteeringVector>,
    },
}

impl Base {
    fn is_zero(&self) -> bool {
        matches!(self, Self::Direction(d) if d.iter().all(|&x| x == 0.0))
    }
}

/// A vector that the one under test is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Name of its condition with the steered vector's norm.
    pub name: String,
    /// What that condition adds.
    pub control: ControlVector,
    /// Signed norm of that, in percent of the median residual norm.
    pub percent: f64,
    /// Its layer.
    pub layer: usize,
    /// What is scaled.
    pub base: Base,
    /// A random vector: one of several, whose scales are tried on a coarse grid.
    pub is_random: bool,
}

impl Compared {
    /// The vectors among a test run's conditions that stand at the norm of the steered vector, `percent` at `layer`: the first
    /// random vector, those of `others` without a scale, and the mean difference.
    ///
    /// # Errors
    /// A file of `others` cannot be read, or has nothing for the layer.
    pub fn among(
        conditions: &Conditions,
        others: &[OtherVector],
        vector: &SteeringVector,
        layer: usize,
        percent: f64,
    ) -> Result<Vec<Self>, BaselineError> {
        let mut out: Vec<Self> = Vec::new();
        for condition in &conditions.list {
            let Some(control) = &condition.control else { continue };
            let is_random = matches!(condition.kind, ConditionKind::Random { .. });
            let base = match &condition.kind {
                ConditionKind::Random { seed } if !out.iter().any(|c| c.is_random) => {
                    match vector.conditional(layer)? {
                        Some(change) => Base::Change {
                            change: change.random(vector.n_embd(), *seed),
                            like: Box::new(vector.clone()),
                        },
                        None => {
                            let (own, _) = direction(vector, layer)?;
                            Base::Direction(rotated(own, own.len(), *seed))
                        }
                    }
                }
                ConditionKind::MeanDifference { .. } => match conditions.mean_difference.get(&layer) {
                    Some(direction) => Base::Direction(direction.clone()),
                    None => continue,
                },
                ConditionKind::OtherVector { scale: None, .. } => {
                    match others.iter().find(|o| o.name == condition.name) {
                        Some(other) => Base::Direction(other.direction(layer)?),
                        None => continue,
                    }
                }
                _ => continue,
            };
            // A direction of zeros stays as it is at any scale.
            if !base.is_zero() {
                let (name, control) = (condition.name.clone(), control.clone());
                out.push(Self { name, control, percent: percent.abs(), layer, base, is_random });
            }
        }
        Ok(out)
    }

    /// The vector at `percent` of the median residual norm at its layer, `norm`. Its bits do not depend on the steered vector's
    /// norm.
    pub fn at(&self, percent: f64, norm: f64) -> Configuration {
        let (layer, wanted) = (self.layer, percent / 100.0 * norm);
        let (factor, control) = match &self.base {
            Base::Direction(direction) => {
                let n_embd = direction.len();
                let factor = wanted / crate::numbers::norm(direction);
                let mut data = vec![0.0; self.control.data.len()]; // [n_layer - 1, n_embd]
                let row = &mut data[(layer - 1) * n_embd..layer * n_embd];
                row.iter_mut().zip(direction).for_each(|(x, &d)| *x = (f64::from(d) * factor) as f32);
                (factor, ControlVector::constant(data, layer, layer))
            }
            Base::Change { change, like } => {
                let factor = wanted / like.conditional_norm(change.layer, norm);
                let n_layer = 1 + self.control.data.len() / like.n_embd().max(1);
                (factor, only(&change.scaled(factor), n_layer, like.n_embd()))
            }
        };
        let place = Place::Layer { layer, percent, moved_from: None };
        Configuration { of: Some(self.name.clone()), place, factor, control }
    }

    /// The scales to try: those of the sweep; of a random vector the largest and the middle one of each sign.
    pub fn scales(&self, all: &Percents) -> Vec<f64> {
        if !self.is_random {
            return all.0.clone();
        }
        let mut out = Vec::new();
        for sign in [-1.0, 1.0] {
            let mut of_sign: Vec<f64> = all.0.iter().copied().filter(|p| p.signum() == sign).collect();
            of_sign.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
            let middle = of_sign.len().saturating_sub(1) / 2;
            out.extend(of_sign.get(middle).copied());
            out.extend(of_sign.last().copied().filter(|_| middle + 1 < of_sign.len()));
        }
        out
    }

    /// The condition at its own best scale.
    pub fn own_best(&self, setting: &Configuration, chosen_on: ChosenOn) -> Condition {
        self.rescaled("own best scale", setting, Some(chosen_on), None)
    }

    /// The condition of the scale of equal price.
    pub fn equal_kl(&self, setting: &Configuration, equal_kl: EqualKl) -> Condition {
        self.rescaled("equal KL", setting, None, Some(equal_kl))
    }

    fn rescaled(
        &self,
        what: &str,
        setting: &Configuration,
        chosen_on: Option<ChosenOn>,
        equal_kl: Option<EqualKl>,
    ) -> Condition {
        let (of, layers, percent) = (self.name.clone(), Layers::one(self.layer), setting.scale());
        let kind = ConditionKind::Rescaled { of, layers, percent, chosen_on, equal_kl };
        // At the steered vector's norm it is the computation of that condition, bit for bit.
        let control = if percent == self.percent { &self.control } else { &setting.control };
        Condition::new(format!("{}, {what} ({percent:+} %)", self.name), kind, Some(control.clone()))
    }
}

/// The smallest scale at which a divergence reaches `target`, from its values at some scales of one sign, to three digits.
///
/// Between two scales ln KL is linear in the logarithm of the scale. Below the smallest one KL grows with the square of the
/// scale, as any smooth divergence does near its minimum; so it is continued beyond the largest. `None` for a scale that would
/// be more than twice the largest or less than half of the smallest, or without a KL above 0.
pub fn scale_of_kl(curve: &[(f64, f64)], target: f64) -> Option<f64> {
    let mut points: Vec<(f64, f64)> =
        curve.iter().copied().filter(|(p, kl)| *p != 0.0 && kl.is_finite() && *kl > 0.0).collect();
    points.sort_by(|a, b| a.0.abs().total_cmp(&b.0.abs()));
    let (&(first, least), &(last, most)) = (points.first()?, points.last()?);
    if !(target.is_finite() && target > 0.0) {
        return None;
    }
    let crossing = points.windows(2).find(|w| w[0].1 < target && target <= w[1].1);
    let scale = match crossing {
        _ if target <= least => first * (target / least).sqrt(),
        Some(&[(a, low), (b, high)]) => a * (b / a).powf((target / low).ln() / (high / low).ln()),
        _ => last * (target / most).sqrt(),
    };
    let within = (first.abs() / EXTRAPOLATION..=last.abs() * EXTRAPOLATION).contains(&scale.abs());
    within.then(|| three_digits(scale))
}

/// `x` to three significant digits, so that a name shows the whole number.
fn three_digits(x: f64) -> f64 {
    format!("{x:.2e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_divergences_by_hand() {
        // KL = 0.001 p^2.4: the line in logarithms is exact.
        let power = |p: f64| (p, 0.001 * p.abs().powf(2.4));
        let curve = [power(-10.0), power(-2.5), power(-5.0)];
        let found = scale_of_kl(&curve, 0.001 * 4f64.powf(2.4)).unwrap();
        assert_eq!(found, -4.0);
        // Below the smallest and above the largest with the square.
        assert_eq!(scale_of_kl(&[(5.0, 0.04)], 0.01), Some(2.5));
        assert_eq!(scale_of_kl(&[(2.5, 0.01), (5.0, 0.04)], 0.16), Some(10.0));
        assert_eq!(scale_of_kl(&[(5.0, 0.04)], 0.05), Some(5.59));
        // Not further than a factor of two; and nothing from nothing.
        assert_eq!((scale_of_kl(&[(5.0, 0.04)], 0.009), scale_of_kl(&[(5.0, 0.04)], 0.17)), (None, None));
        assert_eq!((scale_of_kl(&[(5.0, 0.0)], 0.1), scale_of_kl(&[(5.0, 0.1)], 0.0)), (None, None));
        // Where the divergence falls again, the smallest scale.
        assert_eq!(scale_of_kl(&[(1.0, 0.01), (2.0, 0.04), (4.0, 0.02), (8.0, 0.08)], 0.04), Some(2.0));
    }

    #[test]
    fn scales_and_bits() {
        let control = ControlVector::constant(vec![0.3, -0.1, 0.0, 0.0], 1, 1);
        let of = |layer, is_random| Compared {
            name: "dpo".into(),
            control: control.clone(),
            percent: 7.5,
            layer,
            base: Base::Direction(vec![3.0, -1.0]),
            is_random,
        };
        let dpo = of(1, false);
        let setting = of(2, false).at(50.0, 10f64.sqrt());
        assert_eq!((setting.control.data.clone(), setting.control.first), (vec![0.0, 0.0, 1.5, -0.5], 2));
        assert_eq!(setting.name(), "dpo at layer 2, +50 %");
        let scales = Percents(vec![-10.0, -7.5, -5.0, -2.5, 2.5, 5.0, 7.5, 10.0]);
        assert_eq!(of(1, true).scales(&scales), [-5.0, -10.0, 5.0, 10.0]);
        assert_eq!(of(1, true).scales(&Percents(vec![20.0])), [20.0]);
        assert_eq!(dpo.scales(&scales), scales.0);
        let equal = dpo.equal_kl(&dpo.at(3.25, 1.0), EqualKl { kl: 0.1, target: 0.1 });
        assert_eq!(equal.name, "dpo, equal KL (+3.25 %)");
        // At the steered vector's norm it is computed as that condition is.
        let same = Condition::new("dpo", ConditionKind::Unsteered, Some(control.clone()));
        let chosen_on =
            ChosenOn { part: "valid".into(), items: 1, settings: 1, rule: None, other: serde_json::Map::new() };
        let own = |percent| dpo.own_best(&dpo.at(percent, 1.0), chosen_on.clone());
        assert!(own(7.5).is_computed_as(&same) && !own(-7.5).is_computed_as(&same));
    }
}
