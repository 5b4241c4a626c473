//! The part of a vector file that is no constant vector: an intervention whose change differs from row to row.

use super::{Change, Conditional, SteerError, SteeringVector};
use crate::intervention::{KindSpec, RowKind};
use crate::numbers::norm;
use std::sync::Arc;

/// A trained change of rows at one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChanges {
    /// The kind, never [`crate::intervention::Kind::Add`].
    pub spec: KindSpec,
    /// The layer.
    pub layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// The parameters, in the order of [`RowKind::parts`].
    pub theta: Vec<f32>,
}

impl RowChanges {
    /// The kind.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for settings that no kind has.
    pub fn rows(&self) -> Result<Arc<dyn RowKind>, SteerError> {
        let invalid = |reason: String| SteerError::Invalid(reason);
        let rows = self.spec.rows(self.n_embd).map_err(|e| invalid(e.to_string()))?;
        rows.ok_or_else(|| invalid("kind add holds constant vectors".into()))
    }

    /// The parameters in f64.
    pub fn wide(&self) -> Vec<f64> {
        self.theta.iter().map(|&x| f64::from(x)).collect()
    }

    /// The change times `factor`.
    ///
    /// # Errors
    /// As [`RowChanges::rows`].
    pub fn scaled(&self, factor: f64) -> Result<Self, SteerError> {
        let theta = self.rows()?.scaled(&self.wide(), factor).iter().map(|&x| x as f32).collect();
        Ok(Self { theta, ..self.clone() })
    }

    /// L2 norm of the change, for rows of this median norm ([`RowKind::norm`]).
    pub fn norm(&self, residual: f64) -> f64 {
        self.rows().map_or(f64::NAN, |rows| rows.norm(&self.wide(), residual))
    }

    /// Checks sizes and values.
    ///
    /// # Errors
    /// [`SteerError::Invalid`].
    pub fn check(&self) -> Result<(), SteerError> {
        let invalid = |reason: String| Err(SteerError::Invalid(reason));
        if self.n_embd == 0 || self.layer == 0 {
            return invalid(format!("layer {} of {} dimensions: both start at 1", self.layer, self.n_embd));
        }
        let n = self.rows()?.n_params();
        if self.theta.len() != n {
            return invalid(format!(
                "kind {} has {n} parameters here, and {} were given",
                self.spec.kind,
                self.theta.len()
            ));
        }
        match self.theta.iter().position(|x| !x.is_finite()) {
            Some(i) => invalid(format!("parameter {i} is {}: every value must be finite", self.theta[i])),
            None => Ok(()),
        }
    }
}

impl SteeringVector {
    /// The change that only a callback can make, at scale 1: of a kind other than `add`, or a vector with a scope. `None` for a
    /// constant vector that acts everywhere. It stays at its layer.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for another layer; [`SteerError::Invalid`] for settings that no kind has.
    pub fn conditional(&self, layer: usize) -> Result<Option<Conditional>, SteerError> {
        if self.is_control_vector() {
            return Ok(None);
        }
        let change = match (&self.rows, self.directions.get(&layer)) {
            (Some(rows), _) if rows.layer == layer => Change::rows(rows.rows()?, rows.wide()),
            (None, Some(direction)) => Change::Constant(direction.clone()),
            _ => {
                return Err(SteerError::Mismatch(format!(
                    "it is of kind {} with scope {} and acts at layer {}: it cannot be moved to layer {layer}",
                    self.kind(),
                    self.scope,
                    self.layers().first().copied().unwrap_or_default()
                )));
            }
        };
        Ok(Some(Conditional { name: "vector".into(), layer, change, scope: self.scope.clone() }))
    }

    /// L2 norm of that change at scale 1, for rows of this median norm.
    pub fn conditional_norm(&self, layer: usize, residual: f64) -> f64 {
        match &self.rows {
            Some(rows) => rows.norm(residual),
            None => self.directions.get(&layer).map_or(0.0, |d| norm(d)),
        }
    }
}
