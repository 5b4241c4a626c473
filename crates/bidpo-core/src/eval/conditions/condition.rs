//! Conditions: a vector and what it has to be measured against.

use crate::eval::items::Item;
use crate::eval::prompt::{PromptOverride, QuestionShown};
use crate::eval::results::{ChosenOn, ConditionFacts, ConditionKind, ShotLimit};
use crate::layers::Layers;
use crate::numbers::norm;
use crate::steer::{Conditional, ControlVector, SteerError, SteeringVector, rotated};

/// The model without a vector, under the preset's own prompt: what everything is compared with.
pub const UNSTEERED: &str = "unsteered";
/// The model with the vector.
pub const STEERED: &str = "steered";

/// What is measured on every item.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// What is added to the residual stream.
    pub control: Option<ControlVector>,
    /// What is changed about the prompt.
    pub overrides: PromptOverride,
    /// Its kind, as the manifest records it.
    pub kind: ConditionKind,
}

impl Condition {
    /// A condition that adds `control` under the preset's own prompt.
    pub fn new(name: impl Into<String>, kind: ConditionKind, control: Option<ControlVector>) -> Self {
        Self { name: name.into(), control, overrides: PromptOverride::default(), kind }
    }

    /// The unsteered model.
    pub fn unsteered() -> Self {
        Self::new(UNSTEERED, ConditionKind::Unsteered, None)
    }

    /// The steered model's vector times -1.
    pub fn negated(control: &ControlVector) -> Self {
        Self::new("sign flipped", ConditionKind::Negated, Some(flipped(control)))
    }

    /// `n` random vectors with the norms of `control`, drawn by the seeds from `seed` on.
    pub fn random(control: &ControlVector, n_embd: usize, seed: u64, n: usize) -> impl Iterator<Item = Self> {
        (0..n).map(move |i| {
            let seed = seed.wrapping_add(i as u64);
            let kind = ConditionKind::Random { seed };
            Self::new(format!("random vector {}", i + 1), kind, Some(random(control, n_embd, seed)))
        })
    }

    /// The mean difference of activations on `training_items` items, as `control`.
    pub fn mean_difference(control: ControlVector, training_items: usize) -> Self {
        Self::new("mean difference (CAA)", ConditionKind::MeanDifference { training_items }, Some(control))
    }

    /// A system prompt, no vector.
    pub fn system_prompt(name: impl Into<String>, text: &str, chosen_on: Option<ChosenOn>) -> Self {
        let kind = ConditionKind::System { system: text.to_owned(), chosen_on };
        let overrides = PromptOverride { system: Some(text.to_owned()), ..PromptOverride::default() };
        Self { overrides, ..Self::new(name, kind, None) }
    }

    /// Solved training items in the prompt, no vector.
    pub fn few_shot(shots: Vec<Item>, limit: ShotLimit) -> Self {
        let shot_items = shots.iter().map(|s| s.index).collect();
        let kind = ConditionKind::FewShot { shots: shots.len(), shot_items, limited_by: Some(limit) };
        let name = format!("{} solved examples", shots.len());
        Self { overrides: PromptOverride { shots, ..PromptOverride::default() }, ..Self::new(name, kind, None) }
    }

    /// The options without the question, no vector.
    pub fn choices_only() -> Self {
        Self::new("question hidden", ConditionKind::ChoicesOnly, None).showing(QuestionShown::Hidden)
    }

    /// The options without the question, and `control`.
    pub fn choices_only_steered(control: &ControlVector) -> Self {
        let kind = ConditionKind::ChoicesOnlySteered;
        Self::new("question hidden, steered", kind, Some(control.clone())).showing(QuestionShown::Hidden)
    }

    /// Each item's answers under the question of another one (`places`, drawn by `seed`), no vector.
    pub fn swapped(places: Vec<usize>, seed: u64) -> Self {
        let kind = ConditionKind::Swapped { seed };
        Self::new("another item's question", kind, None).showing(QuestionShown::Swapped(places))
    }

    /// The same with `control`.
    pub fn swapped_steered(places: Vec<usize>, seed: u64, control: &ControlVector) -> Self {
        let kind = ConditionKind::SwappedSteered { seed };
        let name = "another item's question, steered";
        Self::new(name, kind, Some(control.clone())).showing(QuestionShown::Swapped(places))
    }

    /// True where a vector is added, and `other` adds the same one under the same prompt.
    pub fn is_computed_as(&self, other: &Self) -> bool {
        self.control.is_some() && self.control == other.control && self.overrides == other.overrides
    }

    fn showing(self, question: QuestionShown) -> Self {
        Self { overrides: PromptOverride { question, ..self.overrides }, ..self }
    }

    /// For the manifest.
    pub fn manifest(&self) -> ConditionFacts {
        let control_sha256 = self.control.as_ref().map(ControlVector::sha256);
        ConditionFacts { control_sha256, ..ConditionFacts::new(self.name.as_str(), self.kind.clone()) }
    }
}

/// The vector with its sign turned, and the scales of adapters with it.
pub fn flipped(c: &ControlVector) -> ControlVector {
    let conditional = c.conditional.iter().map(|c| c.scaled(-1.0)).collect();
    ControlVector {
        data: c.data.iter().map(|x| -x).collect(),
        conditional,
        adapters: c.adapters.scaled(-1.0),
        ..c.clone()
    }
}

/// A random vector as long at each layer, with the same angles between layers, and the same adapters.
pub fn random(c: &ControlVector, n_embd: usize, seed: u64) -> ControlVector {
    // Only the layers that get something: zero rows would be turned as well, into zero rows.
    let rows = (c.first - 1) * n_embd..c.last * n_embd;
    let mut data = vec![0.0; c.data.len()];
    data[rows.clone()].copy_from_slice(&rotated(&c.data[rows], n_embd, seed));
    let conditional = c.conditional.iter().map(|c| c.random(n_embd, seed)).collect();
    ControlVector { data, conditional, ..c.clone() }
}

/// `direction` (layer -> `[n_embd]`) brought to the length that `c` has at each of its layers; layers where either is zero
/// get nothing. Adapters stay.
pub fn same_length(
    c: &ControlVector,
    n_embd: usize,
    direction: &std::collections::BTreeMap<usize, Vec<f32>>,
) -> ControlVector {
    let mut data = vec![0.0; c.data.len()];
    for (&layer, d) in direction {
        let range = (layer - 1) * n_embd..layer * n_embd;
        let mut whole: Vec<f64> = c.data[range.clone()].iter().map(|&x| f64::from(x)).collect();
        for open in c.conditional.iter().filter(|c| c.layer == layer).filter_map(Conditional::constant) {
            whole.iter_mut().zip(open).for_each(|(x, y)| *x += y);
        }
        let (want, have) = (norm(&whole), norm(d));
        if have > 0.0 {
            data[range].iter_mut().zip(d).for_each(|(x, &d)| *x = (f64::from(d) * want / have) as f32);
        }
    }
    ControlVector { adapters: c.adapters.clone(), ..ControlVector::constant(data, c.first, c.last) }
}

/// The direction for a layer: the vector's own there; a vector of a single layer is moved, which the second value tells.
///
/// # Errors
/// [`SteerError::Mismatch`] for a vector of several layers that has none there.
pub fn direction(vector: &SteeringVector, layer: usize) -> Result<(&Vec<f32>, Option<usize>), SteerError> {
    vector.require_control_vector("moving a vector between layers, as a sweep does,")?;
    if let Some(own) = vector.directions.get(&layer) {
        return Ok((own, None));
    }
    let mut all = vector.directions.iter();
    match (all.next(), all.next()) {
        (Some((&from, one)), None) => Ok((one, Some(from))),
        _ => Err(SteerError::Mismatch(format!(
            "it has no direction for layer {layer}, only for layers {}: sweep those",
            Layers::new(vector.layers()).map_or_else(|_| String::new(), |l| l.to_string())
        ))),
    }
}

/// The layers at which `c` adds something.
pub fn layers_of(c: &ControlVector, n_embd: usize) -> Vec<usize> {
    let adds = |l: usize| c.data[(l - 1) * n_embd..l * n_embd].iter().any(|&x| x != 0.0);
    (c.first..=c.last).filter(|&l| adds(l) || c.conditional.iter().any(|c| c.layer == l)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn companions_keep_lengths_and_layers() {
        let n = 32;
        let mut data = vec![0.0f32; 4 * n];
        for (i, x) in data[n..2 * n].iter_mut().enumerate() {
            *x = (i as f32 * 0.7).sin();
        }
        let c = ControlVector::constant(data, 2, 2);
        let norm = |c: &ControlVector, l: usize| norm(&c.data[(l - 1) * n..l * n]);
        let r = random(&c, n, 3);
        assert!((norm(&r, 2) - norm(&c, 2)).abs() < 1e-5 && layers_of(&r, n) == [2]);
        assert_ne!(r, c);
        assert_ne!(r, random(&c, n, 4));
        let f = flipped(&c);
        assert!(f.data.iter().zip(&c.data).all(|(a, b)| *a == -*b));
        let other = BTreeMap::from([(2, vec![2.0f32; n])]);
        let s = same_length(&c, n, &other);
        assert!((norm(&s, 2) - norm(&c, 2)).abs() < 1e-5 && s.data[n] == s.data[2 * n - 1]);
        assert_ne!(c.sha256(), f.sha256());
    }
}
