//! Arithmetic: a steering vector is a small value with `+ - * /` and a sign.

use super::{SteerError, SteeringVector};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Keys that stop being true once the values change by more than a factor.
const OF_THIS_VECTOR: [&str; 4] = ["norm", "scaled_by", "layer", "layers"];

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
        let entries = &mut out.provenance.entries;
        if !entries.is_empty() {
            entries.retain(|k, _| !k.starts_with("heldout_"));
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
        if self.n_embd() != other.n_embd() {
            return Err(SteerError::Mismatch(format!(
                "vectors of {} and {} dimensions cannot be added: they belong to different models",
                self.n_embd(),
                other.n_embd()
            )));
        }
        let hints = (self.model_hint.as_str(), other.model_hint.as_str());
        let model_hint = match hints {
            (x, y) if x == y || y.is_empty() => x,
            ("", y) => y,
            (x, y) => {
                return Err(SteerError::Mismatch(format!("a vector made for {x} cannot be added to one made for {y}")));
            }
        };
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
            other.provenance.entries.get(k) == Some(v)
                && !k.starts_with("heldout_")
                && !OF_THIS_VECTOR.contains(&k.as_str())
        });
        Ok(Self { directions, model_hint: model_hint.to_owned(), provenance })
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
