//! Cosines and norms of two vectors.

use super::{SteerError, SteeringVector};
use crate::numbers::dot;
use std::collections::BTreeSet;

/// Two directions at one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerComparison {
    /// The layer.
    pub layer: usize,
    /// Cosine of the angle between them; `None` where one is absent or zero.
    pub cosine: Option<f64>,
    /// Euclidean norms; `None` where a vector does not steer the layer.
    pub norms: (Option<f64>, Option<f64>),
}

/// Two vectors compared by layer and as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorComparison {
    /// Every layer that either of them steers, lowest first.
    pub layers: Vec<LayerComparison>,
    /// Cosine of the concatenated directions, zero at layers that a vector does not steer; `None` where one is zero.
    pub cosine: Option<f64>,
    /// Norms of the concatenated directions.
    pub norms: (f64, f64),
}

/// `None` where a norm is 0.
fn cosine(dot: f64, norms: (f64, f64)) -> Option<f64> {
    let product = norms.0 * norms.1;
    (product > 0.0).then(|| (dot / product).clamp(-1.0, 1.0))
}

impl SteeringVector {
    /// L2 norm of the concatenated directions, summed in f64.
    pub fn total_norm(&self) -> f64 {
        self.directions.values().map(|d| dot(d, d)).sum::<f64>().sqrt()
    }

    /// Compares with another vector of the same width.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for another width.
    pub fn compare(&self, other: &Self) -> Result<VectorComparison, SteerError> {
        self.require_control_vector("a comparison")?;
        other.require_control_vector("a comparison")?;
        if self.n_embd() != other.n_embd() {
            return Err(SteerError::Mismatch(format!(
                "vectors of {} and {} dimensions cannot be compared: they belong to different models",
                self.n_embd(),
                other.n_embd()
            )));
        }
        let layers: BTreeSet<usize> = self.directions.keys().chain(other.directions.keys()).copied().collect();
        let mut whole = 0.0;
        let layers = layers
            .into_iter()
            .map(|layer| {
                let (a, b) = (self.directions.get(&layer), other.directions.get(&layer));
                let both = a.zip(b).map(|(a, b)| dot(a, b));
                whole += both.unwrap_or(0.0);
                let norms = (a.map(|_| self.norm(layer)), b.map(|_| other.norm(layer)));
                let cosine = both.zip(norms.0.zip(norms.1)).and_then(|(dot, norms)| cosine(dot, norms));
                LayerComparison { layer, cosine, norms }
            })
            .collect();
        let norms = (self.total_norm(), other.total_norm());
        Ok(VectorComparison { layers, cosine: cosine(whole, norms), norms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;

    fn vector(layers: &str, values: &[f32]) -> SteeringVector {
        SteeringVector::from_layers(&layers.parse::<Layers>().unwrap(), values, "llama").unwrap()
    }

    #[test]
    fn cosines_and_norms_by_hand() {
        let (a, b) = (vector("2,3", &[3.0, 4.0, 1.0, 0.0]), vector("3,5", &[0.0, 2.0, 5.0, 12.0]));
        let c = a.compare(&b).unwrap();
        let at = |layer: usize| *c.layers.iter().find(|l| l.layer == layer).unwrap();
        assert_eq!(at(2), LayerComparison { layer: 2, cosine: None, norms: (Some(5.0), None) });
        assert_eq!(at(3), LayerComparison { layer: 3, cosine: Some(0.0), norms: (Some(1.0), Some(2.0)) });
        assert_eq!(at(5).norms, (None, Some(13.0)));
        assert_eq!((c.norms, c.cosine), ((26f64.sqrt(), 173f64.sqrt()), Some(0.0)));
        // cos([3, 4], [4, 3]) = 24 / 25.
        let c = vector("1", &[3.0, 4.0]).compare(&vector("1", &[4.0, 3.0])).unwrap();
        assert!((c.cosine.unwrap() - 0.96).abs() < 1e-12 && c.cosine == c.layers[0].cosine);
        let back = a.compare(&(&a * -2.0)).unwrap();
        assert!((back.cosine.unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(a.compare(&(&a * 0.0)).unwrap().cosine, None);
        assert!(a.compare(&vector("2", &[1.0])).unwrap_err().to_string().contains("2 and 1 dimensions"));
    }
}
