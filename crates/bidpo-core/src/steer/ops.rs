//! Arithmetic: a steering vector is a small value with `+ - * /` and a sign.

use super::architecture::{Match, is_stated, match_architecture, of_llama_cpp};
use super::{SteerError, SteeringVector};
use crate::layers::Layers;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A key that records a measurement of the vector as it was: another vector has another one.
pub(super) fn measured(key: &str) -> bool {
    key.starts_with("heldout_") || key.starts_with("price_") || key.starts_with(super::range::PREFIX)
}

/// Keys that stop being true once the values change by more than a factor.
const OF_THIS_VECTOR: [&str; 5] = ["norm", "scaled_by", "layer", "layers", "made_of"];

/// Of two names of one architecture the one that llama.cpp uses, else the first that says something.
fn common_name<'a>(x: &'a str, y: &'a str) -> &'a str {
    let named = [x, y].into_iter().filter(|name| is_stated(name));
    let own = named.clone().find(|name| of_llama_cpp(name) == Some(name));
    own.or_else(|| named.clone().next()).unwrap_or(if x.is_empty() { y } else { x })
}

impl SteeringVector {
    /// The vector times `factor`. Its provenance says so (`scaled_by`, `norm`), and held-out figures, which were
    /// measured at the old length, are dropped.
    pub fn scaled(&self, factor: f32) -> Self {
        let mut out = self.clone();
        if factor == 1.0 {
            return out;
        }
        for x in out.directions.values_mut().flatten() {
            *x *= factor;
        }
        if let Some(rows) = self.rows.as_ref().and_then(|rows| rows.scaled(f64::from(factor)).ok()) {
            out.rows = Some(rows);
        }
        let entries = &mut out.provenance.entries;
        if !entries.is_empty() {
            entries.retain(|k, _| !measured(k));
            if let Some(norm) = self.provenance.number("norm") {
                out.provenance.set_float("norm", norm * f64::from(factor).abs());
            }
            let before = self.provenance.number("scaled_by").unwrap_or(1.0);
            out.provenance.set_float("scaled_by", before * f64::from(factor));
        }
        out
    }

    /// `a * self + b * other`, layer by layer; a layer that only one of them steers takes that one's term. Provenance
    /// keeps the entries on which both agree, without those that describe one vector's own values.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] when the widths differ or the two were made for different architectures.
    pub fn linear(&self, a: f32, other: &Self, b: f32) -> Result<Self, SteerError> {
        self.require_control_vector("a sum")?;
        other.require_control_vector("a sum")?;
        if self.n_embd() != other.n_embd() {
            return Err(SteerError::Mismatch(format!(
                "vectors of {} and {} dimensions cannot be added: they belong to different models",
                self.n_embd(),
                other.n_embd()
            )));
        }
        let (x, y) = (self.model_hint.as_str(), other.model_hint.as_str());
        if match_architecture(x, y) == Match::Different {
            return Err(SteerError::Mismatch(format!(
                "a vector made for {x} cannot be added to one made for {y}; if both belong to one model, bidpo vector convert \
                 --architecture NAME writes the right name into a file"
            )));
        }
        let model_hint = common_name(x, y);
        let mut directions = self.directions.clone();
        for x in directions.values_mut().flatten() {
            *x *= a;
        }
        for (&layer, d) in &other.directions {
            let sum = directions.entry(layer).or_insert_with(|| vec![0.0; d.len()]);
            for (s, x) in sum.iter_mut().zip(d) {
                *s += b * x;
            }
        }
        let mut provenance = self.provenance.clone();
        provenance.entries.retain(|k, v| {
            other.provenance.entries.get(k) == Some(v) && !measured(k) && !OF_THIS_VECTOR.contains(&k.as_str())
        });
        Ok(Self { directions, model_hint: model_hint.to_owned(), provenance, ..Self::empty() })
    }
}

impl SteeringVector {
    /// The mean, layer by layer, summed in f64; a layer that one of them does not steer counts as zero there. Provenance as
    /// in [`SteeringVector::linear`].
    ///
    /// # Errors
    /// [`SteerError::Invalid`] without a vector, and as [`SteeringVector::linear`].
    pub fn average(vectors: &[Self]) -> Result<Self, SteerError> {
        let Some((first, rest)) = vectors.split_first() else {
            return Err(SteerError::Invalid("a mean needs a vector".into()));
        };
        // The mean accepts the same vectors as a sum, and keeps the same provenance.
        let mut mean = first.linear(1.0, first, 0.0)?;
        for vector in rest {
            mean = mean.linear(1.0, vector, 1.0)?;
        }
        for (layer, direction) in &mut mean.directions {
            for (i, x) in direction.iter_mut().enumerate() {
                let at = |v: &Self| v.directions.get(layer).map_or(0.0, |d| f64::from(d[i]));
                *x = (vectors.iter().map(at).sum::<f64>() / vectors.len() as f64) as f32;
            }
        }
        Ok(mean)
    }

    /// The vector at these layers only. Provenance stays, without what was measured with the whole vector.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for a layer that it does not steer, and for layer 0.
    pub fn only(&self, layers: &Layers) -> Result<Self, SteerError> {
        if self.rows.is_some() && self.layers()[..] == layers[..] {
            return Ok(self.clone());
        }
        if layers.contains(&0) {
            let text = format!("{}: layer 0 cannot be steered, llama.cpp starts at 1; leave it out", layers.labelled());
            return Err(SteerError::Mismatch(text));
        }
        if let Some(layer) = layers.iter().find(|l| !self.directions.contains_key(l)) {
            let own = Layers::new(self.layers()).map_or_else(|e| e.to_string(), |l| l.labelled());
            return Err(SteerError::Mismatch(format!("it has no direction for layer {layer}, only for {own}")));
        }
        let mut out = self.clone();
        out.directions.retain(|l, _| layers.contains(l));
        if out.directions.len() < self.directions.len() {
            let of_another_layer = |key: &str| {
                let layer = key.rsplit_once('.').and_then(|(_, n)| n.parse::<usize>().ok());
                layer.is_some_and(|l| !layers.contains(&l))
            };
            out.provenance
                .entries
                .retain(|k, _| !measured(k) && !OF_THIS_VECTOR.contains(&k.as_str()) && !of_another_layer(k));
            // The one residual norm that a file states belongs to its main layer.
            if !layers.contains(&self.main_layer()) {
                out.provenance.entries.retain(|k, _| k != "residual_norm_median" && k != "residual_norm_mean");
            }
        }
        Ok(out)
    }
}

impl Add for &SteeringVector {
    /// An error when the two do not belong together, as [`SteeringVector::linear`].
    type Output = Result<SteeringVector, SteerError>;

    fn add(self, other: Self) -> Self::Output {
        self.linear(1.0, other, 1.0)
    }
}

impl Sub for &SteeringVector {
    /// An error when the two do not belong together, as [`SteeringVector::linear`].
    type Output = Result<SteeringVector, SteerError>;

    fn sub(self, other: Self) -> Self::Output {
        self.linear(1.0, other, -1.0)
    }
}

impl Mul<f32> for &SteeringVector {
    type Output = SteeringVector;

    fn mul(self, factor: f32) -> SteeringVector {
        self.scaled(factor)
    }
}

impl Div<f32> for &SteeringVector {
    type Output = SteeringVector;

    fn div(self, divisor: f32) -> SteeringVector {
        self.scaled(1.0 / divisor)
    }
}

impl Neg for &SteeringVector {
    type Output = SteeringVector;

    fn neg(self) -> SteeringVector {
        self.scaled(-1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(layer: usize, d: &[f32]) -> SteeringVector {
        SteeringVector::single(layer, d.to_vec(), "llama").unwrap()
    }

    #[test]
    fn arithmetic_obeys_its_laws() {
        let (a, b) = (vector(2, &[1.0, -2.0]), vector(3, &[0.5, 8.0]));
        let sum = (&a + &b).unwrap();
        assert_eq!(sum.layers(), [2, 3]);
        assert_eq!((&sum - &b).unwrap().directions[&2], a.directions[&2]);
        assert_eq!((&sum - &b).unwrap().directions[&3], [0.0, 0.0]);
        assert_eq!((&b + &a).unwrap(), sum);
        assert_eq!(&a * 1.0, a);
        assert_eq!(&(&a * 4.0) / 4.0, a);
        assert_eq!(-&(-&a), a);
        assert_eq!((&a + &a).unwrap().directions, (&a * 2.0).directions);
        assert_eq!((&a * 0.0).norm(2), 0.0);
        assert_eq!((&a * -3.0).norm(2), 3.0 * a.norm(2));
    }

    #[test]
    fn what_does_not_belong_together_is_an_error() {
        let a = vector(2, &[1.0, -2.0]);
        assert!((&a + &vector(2, &[1.0])).unwrap_err().to_string().contains("2 and 1 dimensions"));
        let mut other = a.clone();
        other.model_hint = "gemma3".into();
        assert!((&a + &other).unwrap_err().to_string().contains("gemma3"));
        other.model_hint.clear();
        assert_eq!((&other + &a).unwrap().model_hint, "llama");
        for name in ["mistral", "unknown", "of-our-own"] {
            other.model_hint = name.into();
            assert_eq!((&other + &a).unwrap().model_hint, (&a + &other).unwrap().model_hint);
        }
        other.model_hint = "mistral".into();
        assert_eq!((&other + &a).unwrap().model_hint, "llama", "one architecture, llama.cpp's name of it");
        other.model_hint = "unknown".into();
        assert_eq!((&other + &other).unwrap().model_hint, "unknown");
    }

    #[test]
    fn a_mean_is_a_mean() {
        let (a, b) = (vector(2, &[1.0, -2.0]), vector(3, &[0.5, 8.0]));
        let mean = SteeringVector::average(&[a.clone(), b.clone()]).unwrap();
        assert_eq!((mean.directions[&2].clone(), mean.directions[&3].clone()), (vec![0.5, -1.0], vec![0.25, 4.0]));
        let tenth = vector(2, &[0.1, 0.7]);
        assert_eq!(SteeringVector::average(&vec![tenth.clone(); 3]).unwrap(), tenth, "of equals, the vector itself");
        assert!(SteeringVector::average(&[a, vector(2, &[1.0])]).is_err());
        assert!(SteeringVector::average(&[]).is_err());
    }

    #[test]
    fn layers_are_picked() {
        let layers: Layers = "3,5".parse().unwrap();
        let mut v = SteeringVector::from_layers(&layers, &[3.0, 4.0, 6.0, 8.0], "llama").unwrap();
        v.provenance.set_float("residual_norm_median.3", 100.0);
        v.provenance.set_float("residual_norm_median.5", 200.0);
        v.provenance.set_float("heldout_accuracy", 0.9);
        v.provenance.set_str("model_name", "m");
        assert_eq!(v.only(&layers).unwrap(), v);
        let five = v.only(&Layers::one(5)).unwrap();
        assert_eq!((five.layers(), five.percent_of_scale(1.0)), (vec![5], Some(5.0)));
        let keys: Vec<_> = five.provenance.entries.keys().map(String::as_str).collect();
        assert_eq!(keys, ["model_name", "residual_norm_median.5"]);
        let error = v.only(&Layers::one(4)).unwrap_err().to_string();
        assert!(error.contains("no direction for layer 4, only for layers 3,5"), "{error}");
    }

    #[test]
    fn provenance_stays_true() {
        let mut a = vector(2, &[3.0, 4.0]);
        a.provenance.set_float("norm", 5.0);
        a.provenance.set_float("heldout_accuracy", 0.9);
        a.provenance.set_str("model_name", "m");
        let scaled = &(&a * 2.0) * -2.0;
        assert_eq!(scaled.provenance.number("norm"), Some(20.0));
        assert_eq!(scaled.provenance.number("scaled_by"), Some(-4.0));
        assert_eq!(scaled.provenance.number("heldout_accuracy"), None);
        assert_eq!(scaled.provenance.str("model_name"), Some("m"));
        let mut b = a.clone();
        b.provenance.set_str("data_name", "only here");
        let sum = (&a + &b).unwrap();
        assert_eq!(sum.provenance.entries.len(), 1);
        assert_eq!(sum.provenance.str("model_name"), Some("m"));
    }
}
