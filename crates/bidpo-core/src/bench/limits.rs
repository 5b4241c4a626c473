//! Limits of the measured ratios, kept in limits.json.

use super::Name;
use ggml_grad::llama::Model;
use serde::Deserialize;
use std::sync::LazyLock;

/// The largest ratio wanted of a line, for every model or for one of a certain size.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    name: Name,
    /// Any architecture where it is not given.
    architecture: Option<String>,
    /// Any number of layers where it is not given.
    n_layer: Option<usize>,
    /// Any steered layer where it is not given.
    layer: Option<usize>,
    limit: f64,
}

static LIMITS: LazyLock<Vec<Limit>> =
    LazyLock::new(|| serde_json::from_str(include_str!("limits.json")).expect("limits.json is a list of limits"));

impl Name {
    /// The ratio that this line should not exceed, where one is set for the model and the steered layer.
    pub fn limit(self, model: &Model, layer: usize) -> Option<f64> {
        self.limit_of(&model.architecture(), model.n_layer(), layer)
    }

    fn limit_of(self, architecture: &str, n_layer: usize, layer: usize) -> Option<f64> {
        let fits = |l: &&Limit| {
            l.name == self
                && l.architecture.as_deref().is_none_or(|a| a == architecture)
                && l.n_layer.is_none_or(|n| n == n_layer)
                && l.layer.is_none_or(|at| at == layer)
        };
        LIMITS.iter().find(fits).map(|l| l.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_found() {
        assert_eq!(Name::Step.limit_of("llama", 30, 15), Some(0.4));
        assert_eq!(Name::Step.limit_of("gemma3", 18, 9), Some(0.9));
        assert_eq!([Name::Step.limit_of("llama", 30, 14), Name::Memory.limit_of("llama", 3, 1)], [None; 2]);
        assert_eq!(Name::Memory.limit_of("llama", 30, 3), Some(5.0));
        assert_eq!([Name::Capture.limit_of("x", 1, 0), Name::Threads.limit_of("x", 1, 0)], [Some(1.15), None]);
    }
}
