//! Many configurations (layer and scale of a vector, scale of an adapter): the points of a sweep, and the choice among them.

mod compared;
mod scales;

pub use compared::{Base, Compared, KL_TOLERANCE, scale_of_kl};
pub use scales::{Factors, Percents};

use crate::adapter::{Adapters, LoadedAdapter};
use crate::eval::analysis::{Estimate, MeasureTable};
use crate::eval::conditions::condition::{Condition, direction};
use crate::eval::results::{ChoiceRule, ConditionKind, Manifest};
use crate::layers::Layers;
use crate::steer::{Conditional, ControlVector, SteerError, SteeringVector};
use ggml_grad::llama::Model;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a configuration changes the model, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// The residual stream at a layer.
    Layer {
        /// The layer.
        layer: usize,
        /// Length of what is added, signed, in percent of the median residual norm there.
        percent: f64,
        /// The layer the direction was made for, if it is another one.
        moved_from: Option<usize>,
    },
    /// The matrices of an adapter, as far as the factor says.
    Matrices,
}

impl Place {
    /// The layer; `None` for an adapter.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::Layer { layer, .. } => Some(*layer),
            Self::Matrices => None,
        }
    }

    /// Percent of the residual norm; `None` for an adapter.
    pub fn percent(&self) -> Option<f64> {
        match self {
            Self::Layer { percent, .. } => Some(*percent),
            Self::Matrices => None,
        }
    }
}

/// A configuration: a layer and a scale, or the scale of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// Name of the condition whose vector it scales; absent for the vector or adapter under test.
    pub of: Option<String>,
    /// Where it acts.
    pub place: Place,
    /// The factor on the vector or adapter; for a vector of another condition, on what that adds.
    pub factor: f64,
    /// What is added.
    pub control: ControlVector,
}

impl Configuration {
    /// `layer 15, +5 %`, or `DPO at layer 15, +5 %`; of an adapter `scale +0.5`.
    pub fn name(&self) -> String {
        let setting = match self.place {
            Place::Layer { layer, percent, .. } => format!("layer {layer}, {percent:+} %"),
            Place::Matrices => format!("scale {:+}", self.factor),
        };
        self.of.as_ref().map_or(setting.clone(), |of| format!("{of} at {setting}"))
    }

    /// The signed scale by which configurations are ordered: percent of the residual norm, or the factor of an adapter.
    pub fn scale(&self) -> f64 {
        self.place.percent().unwrap_or(self.factor)
    }

    /// As a condition of a sweep.
    pub fn condition(&self) -> Condition {
        let factor = self.factor;
        let kind = match (self.place, &self.of) {
            (Place::Layer { layer, percent, .. }, Some(of)) => ConditionKind::Rescaled {
                of: of.clone(),
                layers: Layers::one(layer),
                percent,
                chosen_on: None,
                equal_kl: None,
            },
            (Place::Layer { layer, percent, moved_from }, None) => {
                ConditionKind::Point { layers: Layers::one(layer), percent, factor, moved_from }
            }
            (Place::Matrices, _) => ConditionKind::AdapterPoint { factor },
        };
        Condition::new(self.name(), kind, Some(self.control.clone()))
    }
}

/// The points of a sweep's results, in the manifest's order: those of `known`, and others that an earlier run of the sweep
/// measured with the same vector.
///
/// # Errors
/// [`SteerError::Mismatch`] for a point of another vector, and as [`points`].
pub fn measured(
    manifest: &Manifest,
    known: &[Configuration],
    vector: &SteeringVector,
    model: &Model,
) -> Result<Vec<Configuration>, SteerError> {
    let mut out = Vec::new();
    for c in &manifest.conditions {
        if !c.kind.is_point() {
            continue;
        }
        if let Some(point) = known.iter().find(|p| p.name() == c.name) {
            out.push(point.clone());
            continue;
        }
        let point = match (&c.kind, &vector.adapter) {
            (ConditionKind::Point { layers, percent, factor, .. }, None) => {
                let [layer] = layers[..] else {
                    return Err(SteerError::Mismatch(format!(
                        "{:?} in the results of the sweep steers several layers ({layers}), and this sweep one at a time: \
                         give another --out",
                        c.name
                    )));
                };
                point(vector, layer, *percent, *factor, model)?
            }
            (ConditionKind::AdapterPoint { factor }, Some(adapter)) => adapter_point(adapter, *factor, model)?,
            _ => {
                return Err(SteerError::Mismatch(format!(
                    "the results of the sweep hold {:?}, and a folder holds the sweep of a vector or of an adapter: give another \
                     --out",
                    c.name
                )));
            }
        };
        if point.condition().manifest().control_sha256 != c.control_sha256 {
            return Err(SteerError::Mismatch(format!(
                "{:?} in the results of the sweep was measured with another file: give another --out",
                c.name
            )));
        }
        out.push(point);
    }
    Ok(out)
}

fn check_layer(layer: usize, model: &Model) -> Result<(), SteerError> {
    let top = model.n_layer() - 1;
    if (1..=top).contains(&layer) {
        return Ok(());
    }
    Err(SteerError::Mismatch(format!("layer {layer} cannot be steered: this model takes 1-{top}")))
}

/// The point of an adapter at a scale.
fn adapter_point(adapter: &Arc<LoadedAdapter>, factor: f64, model: &Model) -> Result<Configuration, SteerError> {
    let mut adapters = Adapters::default();
    adapters.add(adapter, factor as f32).map_err(|e| SteerError::Mismatch(e.to_string()))?;
    let control = ControlVector::of_adapters(adapters, model.n_layer(), model.n_embd());
    Ok(Configuration { of: None, place: Place::Matrices, factor, control })
}

/// The points of an adapter at `factors`.
///
/// # Errors
/// [`SteerError::Mismatch`] for a vector.
pub fn adapter_points(
    adapter: &SteeringVector,
    factors: &Factors,
    model: &Model,
) -> Result<Vec<Configuration>, SteerError> {
    let Some(adapter) = &adapter.adapter else {
        return Err(SteerError::Mismatch("it is a vector, not an adapter: give it with --vector".into()));
    };
    factors.0.iter().map(|&factor| adapter_point(adapter, factor, model)).collect()
}

/// A point with a known factor.
fn point(
    vector: &SteeringVector,
    layer: usize,
    percent: f64,
    factor: f64,
    model: &Model,
) -> Result<Configuration, SteerError> {
    let (n_layer, n_embd) = (model.n_layer(), model.n_embd());
    check_layer(layer, model)?;
    if let Some(change) = vector.conditional(layer)? {
        let control = only(&change.scaled(factor), n_layer, n_embd);
        return Ok(Configuration {
            of: None,
            place: Place::Layer { layer, percent, moved_from: None },
            factor,
            control,
        });
    }
    let (d, moved_from) = direction(vector, layer)?;
    let mut data = vec![0.0; (n_layer - 1) * n_embd]; // [n_layer - 1, n_embd]
    let row = &mut data[(layer - 1) * n_embd..layer * n_embd];
    row.iter_mut().zip(d).for_each(|(x, &d)| *x = (f64::from(d) * factor) as f32);
    let control = ControlVector::constant(data, layer, layer);
    Ok(Configuration { of: None, place: Place::Layer { layer, percent, moved_from }, factor, control })
}

/// A control vector that makes this change and no other.
pub(super) fn only(change: &Conditional, n_layer: usize, n_embd: usize) -> ControlVector {
    let nothing = ControlVector::constant(vec![0.0; (n_layer - 1) * n_embd], change.layer, change.layer);
    ControlVector { conditional: vec![change.clone()], ..nothing }
}

/// All points of `layers` and `percents`; `norms` is the median residual norm at each layer.
///
/// # Errors
/// [`SteerError::Mismatch`] for a vector of another width, a layer that cannot be steered or that the vector has nothing
/// for, and a zero direction.
pub fn points(
    vector: &SteeringVector,
    layers: &[usize],
    percents: &Percents,
    norms: &BTreeMap<usize, f64>,
    model: &Model,
) -> Result<Vec<Configuration>, SteerError> {
    let n_embd = model.n_embd();
    if vector.n_embd() != n_embd {
        return Err(SteerError::Mismatch(format!(
            "it has {} dimensions, the model's residual stream has {n_embd}: it was made for another model",
            vector.n_embd()
        )));
    }
    let mut out = Vec::new();
    for &layer in layers {
        check_layer(layer, model)?;
        let norm = norms.get(&layer).copied().unwrap_or(f64::NAN);
        let length = match vector.conditional(layer)? {
            Some(_) => vector.conditional_norm(layer, norm),
            None => crate::numbers::norm(direction(vector, layer)?.0),
        };
        if length == 0.0 || !(norm.is_finite() && norm > 0.0) {
            return Err(SteerError::Mismatch(format!(
                "layer {layer}: the vector's or the residual stream's length is 0"
            )));
        }
        for &percent in &percents.0 {
            let factor = percent / 100.0 * norm / length;
            out.push(point(vector, layer, percent, factor, model)?);
        }
    }
    Ok(out)
}

/// Errors of choosing a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// No point was measured.
    #[error("none of the configurations was measured")]
    NoPoints,
    /// Every point costs more than the budget.
    #[error(
        "--budget {budget}: the smallest KL of all configurations is {lowest:.4} nats a token ({name}); give a larger budget, \
         or smaller --scales"
    )]
    OverBudget {
        /// The budget, nats a token.
        budget: f64,
        /// The smallest KL.
        lowest: f64,
        /// Its configuration.
        name: String,
    },
}

/// Standard error of a value: of a fraction from its count, otherwise from its interval, which is taken for a normal one.
fn standard_error(e: &Estimate) -> f64 {
    match e.count {
        Some(count) => {
            let p = count as f64 / e.n as f64;
            (p * (1.0 - p) / e.n as f64).sqrt()
        }
        None => (e.interval.hi - e.interval.lo) / (2.0 * 1.959_964),
    }
}

/// The point that `rule` chooses on `table`'s measure; `kl` is the table of the divergence on text.
///
/// # Errors
/// [`ChoiceError`].
pub fn choose<'a>(
    points: &'a [Configuration],
    table: &MeasureTable,
    kl: &MeasureTable,
    rule: ChoiceRule,
) -> Result<&'a Configuration, ChoiceError> {
    let top = best(points, table).ok_or(ChoiceError::NoPoints)?;
    let cost = |p: &Configuration| kl.row(&p.name()).map(|r| r.estimate.value);
    let mut near: Vec<&Configuration> = match rule {
        ChoiceRule::OneStandardError => {
            let sign = table.measure.direction();
            let estimate = |p: &Configuration| table.row(&p.name()).map(|r| r.estimate);
            let least = estimate(top).map_or(f64::NAN, |e| sign * e.value - standard_error(&e));
            // The other sign is another direction, not a smaller scale of this one.
            let same_sign = points.iter().filter(|p| p.scale().signum() == top.scale().signum());
            same_sign.filter(|p| estimate(p).is_some_and(|e| sign * e.value >= least)).collect()
        }
        ChoiceRule::Budget { kl: budget } => {
            let within: Vec<_> = points.iter().filter(|p| cost(p).is_some_and(|c| c <= budget)).collect();
            if within.is_empty() {
                let by_cost = points.iter().filter_map(|p| Some((cost(p)?, p.name())));
                let (lowest, name) = by_cost.min_by(|a, b| a.0.total_cmp(&b.0)).ok_or(ChoiceError::NoPoints)?;
                return Err(ChoiceError::OverBudget { budget, lowest, name });
            }
            within
        }
    };
    if rule == ChoiceRule::OneStandardError {
        let smallest = near.iter().map(|p| p.scale().abs()).fold(f64::INFINITY, f64::min);
        near.retain(|p| p.scale().abs() == smallest);
    }
    best(near, table).ok_or(ChoiceError::NoPoints)
}

/// The best of some points on a table's measure; of equals the one with the smallest scale, then the lowest layer.
pub fn best<'a>(
    points: impl IntoIterator<Item = &'a Configuration>,
    table: &MeasureTable,
) -> Option<&'a Configuration> {
    let sign = table.measure.direction();
    let value = |p: &Configuration| table.row(&p.name()).map(|r| sign * r.estimate.value);
    points.into_iter().filter(|p| value(p).is_some()).max_by(|a, b| {
        let by_value = value(a).unwrap_or(f64::NAN).total_cmp(&value(b).unwrap_or(f64::NAN));
        by_value.then(b.scale().abs().total_cmp(&a.scale().abs())).then(b.place.layer().cmp(&a.place.layer()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};

    #[test]
    fn the_best_point_is_the_smallest_of_equals() {
        let point = |layer, percent| Configuration {
            of: None,
            place: Place::Layer { layer, percent, moved_from: None },
            factor: 1.0,
            control: ControlVector::constant(vec![], layer, layer),
        };
        let points = [point(3, -5.0), point(3, 5.0), point(3, 10.0), point(4, 5.0)];
        let (low, high) = (bits(20, |i| i < 5), bits(20, |i| i < 9));
        let names: Vec<String> = points.iter().map(Configuration::name).collect();
        assert_eq!(names[0], "layer 3, -5 %");
        let run = run_of(&[
            ("unsteered", "unsteered", &low),
            (&names[0], "point", &low),
            (&names[1], "point", &high),
            (&names[2], "point", &high),
            (&names[3], "point", &high),
        ]);
        let analysis = analyse(&run).unwrap();
        assert_eq!(best(&points, &analysis.tables[0]), Some(&points[1]));
    }

    /// Of 100 items 40 are right at best: a standard error of sqrt(0.4 * 0.6 / 100) = 4.9 points.
    #[test]
    fn the_rules_choose() {
        let point = |percent| Configuration {
            of: None,
            place: Place::Layer { layer: 3, percent, moved_from: None },
            factor: 1.0,
            control: ControlVector::constant(vec![], 3, 3),
        };
        let points = [point(-2.0), point(2.0), point(5.0), point(10.0), point(20.0)];
        let right: Vec<Vec<bool>> = [37, 30, 36, 40, 39].iter().map(|&k| bits(100, |i| i < k)).collect();
        let low = bits(100, |i| i < 25);
        let names: Vec<String> = points.iter().map(Configuration::name).collect();
        let mut conditions = vec![("unsteered", "unsteered", &low[..])];
        conditions.extend(names.iter().zip(&right).map(|(n, r)| (n.as_str(), "point", &r[..])));
        let analysis = analyse(&run_of(&conditions)).unwrap();
        let table = &analysis.tables[0];
        // The divergence of a point is its scale over 100.
        let mut kl = table.clone();
        for (row, p) in kl.rows[1..].iter_mut().zip(&points) {
            row.estimate.value = p.scale().abs() / 100.0;
        }
        let chosen = |rule| choose(&points, table, &kl, rule).map(|p| p.scale());
        // +5 % is within one standard error, +2 % is not; the other sign is another direction.
        assert_eq!(chosen(ChoiceRule::OneStandardError).unwrap(), 5.0);
        assert_eq!(chosen(ChoiceRule::Budget { kl: 0.5 }).unwrap(), 10.0);
        assert_eq!(chosen(ChoiceRule::Budget { kl: 0.03 }).unwrap(), -2.0);
        let error = chosen(ChoiceRule::Budget { kl: 0.01 }).unwrap_err().to_string();
        assert!(error.starts_with("--budget 0.01: the smallest KL of all configurations is 0.0200"), "{error}");
    }
}
