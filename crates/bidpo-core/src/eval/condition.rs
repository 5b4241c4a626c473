//! Conditions: a vector and what it has to be measured against.

use super::prompt::Change;
use super::results::ConditionFacts;
use crate::steer::ControlVector;
use crate::steer::rotated;
use ggml_grad::files::sha256_of_bytes;
use serde_json::{Map, Value, json};

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
    pub change: Change,
    /// What the manifest says of it.
    pub facts: Map<String, Value>,
}

impl Condition {
    /// A condition of a `kind`, with further facts.
    pub fn new(name: &str, kind: &str, control: Option<ControlVector>, change: Change, facts: Value) -> Self {
        let mut map = Map::from_iter([("kind".to_owned(), json!(kind))]);
        if let Some(c) = &control {
            map.insert("control_sha256".into(), json!(control_sha256(c)));
        }
        if let Some(system) = &change.system {
            map.insert("system".into(), json!(system));
        }
        if !change.shots.is_empty() {
            map.insert("shots".into(), json!(change.shots.len()));
            map.insert("shot_items".into(), json!(change.shots.iter().map(|s| s.index).collect::<Vec<_>>()));
        }
        if let Value::Object(facts) = facts {
            map.extend(facts);
        }
        Self { name: name.into(), control, change, facts: map }
    }

    /// The unsteered model.
    pub fn unsteered() -> Self {
        Self::new(UNSTEERED, "unsteered", None, Change::default(), Value::Null)
    }

    /// For the manifest.
    pub fn manifest(&self) -> ConditionFacts {
        ConditionFacts { name: self.name.clone(), facts: self.facts.clone() }
    }
}

/// SHA-256 of what is added, layer numbers included.
pub fn control_sha256(c: &ControlVector) -> String {
    let mut bytes = format!("{}-{}:", c.first, c.last).into_bytes();
    bytes.extend(c.data.iter().flat_map(|x| x.to_le_bytes()));
    sha256_of_bytes(&bytes)
}

/// The vector with its sign turned.
pub fn flipped(c: &ControlVector) -> ControlVector {
    ControlVector { data: c.data.iter().map(|x| -x).collect(), ..c.clone() }
}

/// A random vector as long at each layer, with the same angles between layers.
pub fn random(c: &ControlVector, n_embd: usize, seed: u64) -> ControlVector {
    // Only the layers that get something: zero rows would be turned as well, into zero rows.
    let rows = (c.first - 1) * n_embd..c.last * n_embd;
    let mut data = vec![0.0; c.data.len()];
    data[rows.clone()].copy_from_slice(&rotated(&c.data[rows], n_embd, seed));
    ControlVector { data, ..c.clone() }
}

/// `direction` (layer -> `[n_embd]`) brought to the length that `c` has at each of its layers; layers where either is zero
/// get nothing.
pub fn same_length(
    c: &ControlVector,
    n_embd: usize,
    direction: &std::collections::BTreeMap<usize, Vec<f32>>,
) -> ControlVector {
    let length = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let mut data = vec![0.0; c.data.len()];
    for (&layer, d) in direction {
        let range = (layer - 1) * n_embd..layer * n_embd;
        let (want, have) = (length(&c.data[range.clone()]), length(d));
        if have > 0.0 {
            data[range].iter_mut().zip(d).for_each(|(x, &d)| *x = (f64::from(d) * want / have) as f32);
        }
    }
    ControlVector { data, ..c.clone() }
}

/// The layers at which `c` adds something.
pub fn layers_of(c: &ControlVector, n_embd: usize) -> Vec<usize> {
    (c.first..=c.last).filter(|l| c.data[(l - 1) * n_embd..l * n_embd].iter().any(|&x| x != 0.0)).collect()
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
        let c = ControlVector { data, first: 2, last: 2 };
        let norm = |c: &ControlVector, l: usize| {
            c.data[(l - 1) * n..l * n].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
        };
        let r = random(&c, n, 3);
        assert!((norm(&r, 2) - norm(&c, 2)).abs() < 1e-5 && layers_of(&r, n) == [2]);
        assert_ne!(r, c);
        assert_ne!(r, random(&c, n, 4));
        let f = flipped(&c);
        assert!(f.data.iter().zip(&c.data).all(|(a, b)| *a == -*b));
        let other = BTreeMap::from([(2, vec![2.0f32; n])]);
        let s = same_length(&c, n, &other);
        assert!((norm(&s, 2) - norm(&c, 2)).abs() < 1e-5 && s.data[n] == s.data[2 * n - 1]);
        assert_ne!(control_sha256(&c), control_sha256(&f));
    }
}
