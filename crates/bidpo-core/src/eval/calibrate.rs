//! The largest scales of a vector at which neutral text stays nearly as it is: a search over measured prices.
//!
//! KL(unsteered || steered) is 0 at scale 0 and grows about as the square of the scale. Each side is searched by itself: the next
//! scale is where that law puts the budget, between the largest scale found within it and the smallest found beyond it. Both ends
//! of the range are measured scales, and every scale measured between them is within the budget.

use super::price::{Price, PriceError};
use crate::steer::{MeasuredRange, Provenance, ScaledVector, SteerError, SteeringVector, combine};
use ggml_grad::llama::Model;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Budget where none is given, nats a token. At 0.35, the misconceptions' vector on SmolLM2 has 20 % of the residual norm, where
/// text begins to degenerate (docs/study.md); 0.2 is below that.
pub const BUDGET: f64 = 0.2;

/// The search ends at a change as large as the residual stream: percent of its norm, added up over the layers.
const MOST_PERCENT: f64 = 100.0;
/// The search for an adapter, which has no such norm, ends at this scale.
const MOST_SCALE: f64 = 64.0;
/// The bracket is narrow enough: quotient of its ends.
const NARROW: f64 = 1.02;
/// A price this near below the budget ends the search.
const NEAR: f64 = 0.97;
/// Scales tried on a side, at most: enough to halve the widest bracket down to [`NARROW`].
const MOST_TRIES: usize = 40;

/// A range that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The vector does not fit the model.
    #[error(transparent)]
    Vector(#[from] SteerError),
    /// The price cannot be measured.
    #[error(transparent)]
    Price(#[from] PriceError),
    /// No scale changes anything.
    #[error("the vector is zero: it changes nothing at any scale, and has no range")]
    Zero,
    /// No scale of an adapter changes anything.
    #[error("A or B of every pair is zero: the adapter changes nothing at any scale, and has no range")]
    ZeroAdapter,
    /// The file does not tell the residual norm.
    #[error("the vector's residual norm is not known, so that the search would have no end: measure it first")]
    ResidualNorm,
}

/// How a range is measured.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// KL(unsteered || steered) on neutral text, at most, nats a token.
    pub budget: f64,
    /// Neutral passages, at most.
    pub passages: usize,
    /// Threads.
    pub n_threads: u32,
    /// Adapters and vectors that are loaded on both sides: the price is measured against the model with them.
    pub beside: &'a [ScaledVector],
    /// Set by the user to end the search.
    pub interrupt: &'a AtomicBool,
}

/// An end of a range.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct End {
    /// The scale.
    pub scale: f64,
    /// Its price; `None` at scale 0, where no scale tried is within the budget.
    pub price: Option<Price>,
    /// The search ended here, at a change as large as the residual stream (an adapter: at scale 64): larger scales were not tried.
    pub at_limit: bool,
}

/// A measured range.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibrated {
    /// The budget, nats a token.
    pub budget: f64,
    /// The negative end.
    pub low: End,
    /// The positive end.
    pub high: End,
    /// Scales measured.
    pub tried: usize,
    /// It is of an adapter.
    pub of_adapter: bool,
}

impl Calibration<'_> {
    /// Measures the range of `vector`, whose provenance tells the residual norm, or of an adapter. `observe` is told each scale with
    /// its price.
    ///
    /// # Errors
    /// [`CalibrateError`].
    pub fn measure(
        &self,
        vector: &SteeringVector,
        observe: &mut dyn FnMut(f64, &Price),
    ) -> Result<Calibrated, CalibrateError> {
        let limit = limit(vector)?;
        let reference = combine(self.beside, None, self.model)?;
        let shared = Arc::new(vector.clone());
        let mut tried = 0;
        let mut side = |sign: f64| -> Result<End, CalibrateError> {
            let mut prices: Vec<(f64, Price)> = Vec::new();
            let found = largest(self.budget, limit, &mut |scale| {
                let scale = sign * f64::from(scale);
                let scaled = ScaledVector { name: String::new(), vector: Arc::clone(&shared), scale: scale as f32 };
                let all: Vec<ScaledVector> = self.beside.iter().cloned().chain([scaled]).collect();
                let control = combine(&all, None, self.model)?.ok_or(CalibrateError::Zero)?;
                let (model, reference) = (self.model, reference.as_ref());
                let price =
                    Price::measure_against(model, reference, &control, self.passages, self.n_threads, self.interrupt)?;
                tried += 1;
                observe(scale, &price);
                // A passage whose predictions are not finite is beyond every budget.
                let kl = if price.not_finite > 0 { f64::INFINITY } else { price.kl_per_token.value };
                prices.push((scale, price));
                Ok::<f64, CalibrateError>(kl)
            })?;
            let scale = sign * f64::from(found.scale) + 0.0; // never -0
            let price = prices.into_iter().find(|(at, _)| *at == scale).map(|(_, price)| price);
            Ok(End { scale, price, at_limit: found.at_limit })
        };
        let high = side(1.0)?;
        let low = side(-1.0)?;
        Ok(Calibrated { budget: self.budget, low, high, tried, of_adapter: vector.adapter.is_some() })
    }
}

/// The scale at which the search ends.
fn limit(vector: &SteeringVector) -> Result<f64, CalibrateError> {
    if let Some(adapter) = &vector.adapter {
        let changes = adapter.norms.values().any(|norm| *norm != 0.0);
        return if changes { Ok(MOST_SCALE) } else { Err(CalibrateError::ZeroAdapter) };
    }
    let at_one = vector.percent_of_scale(1.0).ok_or(CalibrateError::ResidualNorm)? * vector.layers().len() as f64;
    if at_one == 0.0 {
        return Err(CalibrateError::Zero);
    }
    Ok(MOST_PERCENT / at_one)
}

impl Calibrated {
    /// As the file records it.
    pub fn range(&self) -> MeasuredRange {
        MeasuredRange { low: self.low.scale, high: self.high.scale, budget: self.budget }
    }

    /// Writes it into the provenance of a vector or an adapter, in place of an earlier one.
    pub fn record(&self, p: &mut Provenance, model_sha256: &str) {
        p.forget_range();
        self.range().record(p);
        p.set_str("safe_model_sha256", model_sha256);
        for (end, key) in [(&self.low, "safe_kl_low"), (&self.high, "safe_kl_high")] {
            if let Some(price) = &end.price {
                p.set_float(key, price.kl_per_token.value);
                p.set_int("safe_passages", price.passages as i64);
            }
        }
        if let Some(ends) = self.open_ends() {
            p.set_str("safe_at_limit", ends);
        }
    }

    /// Ends at which the search ended before the budget did.
    fn open_ends(&self) -> Option<&'static str> {
        match (self.low.at_limit, self.high.at_limit) {
            (false, false) => None,
            (true, false) => Some("low"),
            (false, true) => Some("high"),
            (true, true) => Some("both"),
        }
    }

    /// The range in words.
    pub fn in_words(&self) -> String {
        let kl = |end: &End| end.price.as_ref().map_or_else(|| "0".to_owned(), |price| price.kl_in_words());
        let passages = [&self.low, &self.high].into_iter().find_map(|end| end.price.as_ref()).map_or(0, |p| p.passages);
        let mut out = format!(
            "Safe range, measured: scales {}. KL(unsteered || steered) on {passages} neutral passages is {} nats a token at the lower \
             end and {} at the upper one, budget {}; {} scales were measured.",
            self.range().in_words(),
            kl(&self.low),
            kl(&self.high),
            self.budget,
            self.tried
        );
        if let Some(ends) = self.open_ends() {
            let ends = match ends {
                "both" => "both ends",
                "low" => "the lower end",
                _ => "the upper end",
            };
            let reached = match self.of_adapter {
                true => format!("the scale is {MOST_SCALE}"),
                false => "the change is as large as the residual stream".to_owned(),
            };
            out += &format!(" At {ends} {reached} and still within the budget: larger scales were not tried.");
        }
        out
    }
}

/// The end of a search on one side.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    /// Largest scale within the budget; 0 where none was found.
    scale: f32,
    /// It is the limit.
    at_limit: bool,
}

/// Searches the largest scale in (0, `limit`] whose `kl` is within `budget`, up to a factor of [`NARROW`]: from scale 1 up while
/// scales are within it, or down while they are beyond it, then between the two. Scales are those of f32, which are used later.
fn largest<E>(budget: f64, limit: f64, kl: &mut dyn FnMut(f32) -> Result<f64, E>) -> Result<Found, E> {
    // Scale and KL on either side of the budget.
    let mut inside: Option<(f64, f64)> = None;
    let mut outside: Option<(f64, f64)> = None;
    // A little below the budget, so that the next scale is within it.
    let target = budget * (1.0 + NEAR) / 2.0;
    let mut at = 1f64.min(limit);
    let mut same_side = 0;
    for _ in 0..MOST_TRIES {
        let scale = at as f32;
        // What is no number is beyond every budget.
        let here = Some(kl(scale)?).filter(|kl| !kl.is_nan()).unwrap_or(f64::INFINITY);
        let point = (f64::from(scale), here);
        let within = here <= budget;
        let replaced = if within { inside.replace(point) } else { outside.replace(point) };
        same_side = if replaced.is_some() { same_side + 1 } else { 0 };
        if within && (here >= NEAR * budget || point.0 >= f64::from(limit as f32)) {
            break;
        }
        // KL is proportional to the square of the scale.
        let by_law = |(scale, kl): (f64, f64)| if kl > 0.0 { scale * (target / kl).sqrt() } else { f64::INFINITY };
        at = match (inside, outside) {
            (Some(low), None) => by_law(low).clamp(1.05 * low.0, 4.0 * low.0).min(limit),
            (None, Some(high)) => by_law(high).clamp(high.0 / 16.0, high.0 / 1.05),
            (Some(low), Some(high)) => {
                let width = high.0 / low.0;
                if width <= NARROW {
                    break;
                }
                // The power law through both points; halves where it has no sense or moves one end only.
                let between = (target / low.1).ln() / (high.1 / low.1).ln();
                let usable = between.is_finite() && high.1.is_finite() && same_side < 2;
                let share = if usable { between.clamp(0.05, 0.95) } else { 0.5 };
                low.0 * width.powf(share)
            }
            (None, None) => break,
        };
        // Nothing is left below: the budget is within what kernels round.
        if at < 1e-6 * limit {
            break;
        }
    }
    let scale = inside.map_or(0.0, |(scale, _)| scale as f32);
    Ok(Found { scale, at_limit: scale >= limit as f32 && outside.is_none() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// The search on a function, with the scales it tried.
    fn search(budget: f64, limit: f64, kl: impl Fn(f64) -> f64) -> (Found, Vec<f64>) {
        let mut tried = Vec::new();
        let found = largest(budget, limit, &mut |scale| {
            tried.push(f64::from(scale));
            Ok::<_, Infallible>(kl(f64::from(scale)))
        });
        (found.unwrap_or(Found { scale: f32::NAN, at_limit: false }), tried)
    }

    #[test]
    fn the_largest_scale_within_the_budget_is_found() {
        // Functions that rise, with the scale at which they reach the budget: squares, a saturating one, a cliff.
        type Case = (fn(f64) -> f64, f64);
        let cases: [Case; 6] = [
            (|s| 0.083 * s * s, (0.2f64 / 0.083).sqrt()),
            (|s| 31.0 * s * s, (0.2f64 / 31.0).sqrt()),
            (|s| 1e-4 * s * s, (0.2f64 / 1e-4).sqrt()),
            (|s| 0.4 * s * s / (1.0 + s * s), 1.0),
            (|s| 0.01 * s * s + 0.3 * s.powi(6), 0.927827),
            (|s| if s < 2.7 { 1e-3 * s } else { f64::INFINITY }, 2.7),
        ];
        for (i, (kl, want)) in cases.into_iter().enumerate() {
            let (found, tried) = search(0.2, 100.0, kl);
            let scale = f64::from(found.scale);
            assert!(kl(scale) <= 0.2 && !found.at_limit, "case {i}: {found:?}");
            assert!(scale <= want * 1.0001 && scale >= want / 1.03, "case {i}: {scale} for {want}, tried {tried:?}");
            assert!(tried.len() <= 16, "case {i}: {} scales", tried.len());
            // Nothing between 0 and the end was beyond the budget.
            assert!(tried.iter().all(|&s| s > scale || kl(s) <= 0.2), "case {i}: {tried:?}");
        }
        // A square is found at once.
        assert!(search(0.2, 100.0, |s| 0.05 * s * s).1.len() <= 3);
    }

    #[test]
    fn the_search_ends_at_the_limit_and_at_nothing() {
        assert_eq!(search(0.2, 7.5, |s| 1e-9 * s).0, Found { scale: 7.5, at_limit: true });
        assert_eq!(search(0.2, 7.5, |_| 0.0).0, Found { scale: 7.5, at_limit: true });
        assert_eq!(search(0.2, 0.25, |s| 0.01 * s).0, Found { scale: 0.25, at_limit: true });
        for never in [1.0, f64::INFINITY, f64::NAN] {
            let (found, tried) = search(0.2, 7.5, |_| never);
            assert_eq!(found, Found { scale: 0.0, at_limit: false });
            assert!(tried.len() <= MOST_TRIES);
        }
    }
}
