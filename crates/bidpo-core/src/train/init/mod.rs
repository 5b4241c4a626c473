//! The parameters that a run begins with, from a file.

mod adapter;
mod gate_fit;

pub use adapter::{AdapterInitError, initial_adapter};
pub(in crate::train) use gate_fit::{GateFit, is_blind};

use crate::intervention::{Kind, KindSpec};
use crate::layers::Layers;
use crate::steer::{RowChanges, SteeringVector};
use sha2::{Digest, Sha256};

/// Parameters from a file in place of those under which nothing changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Init {
    /// The file's name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// `[n_params]`
    pub theta: Vec<f64>,
}

impl Init {
    /// As a run's identity has it: the parameters, not the file.
    pub(in crate::train) fn identity(&self) -> String {
        let mut hash = Sha256::new();
        self.theta.iter().for_each(|x| hash.update(x.to_le_bytes()));
        ggml_grad::files::hex(&hash.finalize())
    }
}

/// A file that a run cannot begin with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// It holds nothing for a trained layer.
    #[error(
        "it steers {there}, and layer {layer} is trained: give a layer that it steers with --layer, or another file"
    )]
    Layer {
        /// The layer.
        layer: usize,
        /// Layers of the file.
        there: String,
    },
    /// It is of a model of another width.
    #[error(
        "its vectors have {there} components, and this model's residual stream {n_embd}: it belongs to another model"
    )]
    Width {
        /// Components.
        there: usize,
        /// Width of the residual stream.
        n_embd: usize,
    },
    /// Parameters of one kind are not those of another.
    #[error(
        "it is of kind {there}, and kind {kind} is trained: give a file of the same kind, a constant vector (`bidpo vector \
         export --constant` makes one), or --kind {there}"
    )]
    Kind {
        /// Kind of the file.
        there: Kind,
        /// The kind that is trained.
        kind: Kind,
    },
    /// A rank that differs.
    #[error("it is of rank {there}, and rank {rank} is trained: give --rank {there}")]
    Rank {
        /// Rank of the file.
        there: usize,
        /// The rank that is trained.
        rank: usize,
    },
    /// The kind holds no vector.
    #[error("it is a constant vector, and kind {0} holds none to begin with: give a file of kind {0}")]
    NoVector(Kind),
}

/// Parameters of `kind` at `layers` from a file: those of a file of that kind (a gate may begin as a prompt gate, and the other
/// way round), or those that begin with a constant vector.
///
/// # Errors
/// [`InitError`].
pub fn initial_parameters(
    kind: KindSpec,
    layers: &Layers,
    n_embd: usize,
    seed: u64,
    file: &SteeringVector,
) -> Result<Vec<f64>, InitError> {
    if file.n_embd() != n_embd {
        return Err(InitError::Width { there: file.n_embd(), n_embd });
    }
    if let Some(rows) = &file.rows {
        return from_rows(kind, layers, rows);
    }
    let list = || format!("layers {:?}", file.directions.keys().collect::<Vec<_>>());
    let at = |&layer: &usize| {
        let direction = file.directions.get(&layer).ok_or_else(|| InitError::Layer { layer, there: list() })?;
        Ok(direction.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>())
    };
    let vectors = layers.iter().map(at).collect::<Result<Vec<_>, _>>()?;
    match (kind.rows(n_embd).ok().flatten(), &vectors[..]) {
        (None, _) => Ok(vectors.concat()),
        (Some(rows), [v]) => rows.with_constant(seed, v).ok_or(InitError::NoVector(kind.kind)),
        (Some(_), _) => Err(InitError::NoVector(kind.kind)),
    }
}

/// Parameters of a file of row changes.
fn from_rows(kind: KindSpec, layers: &Layers, rows: &RowChanges) -> Result<Vec<f64>, InitError> {
    let sigmoid = |kind: Kind| matches!(kind, Kind::Gate | Kind::PromptGate);
    let there = rows.spec;
    if there.kind != kind.kind && !(sigmoid(there.kind) && sigmoid(kind.kind)) {
        return Err(InitError::Kind { there: there.kind, kind: kind.kind });
    }
    if there.kind == Kind::LowRank && there.rank != kind.rank {
        return Err(InitError::Rank { there: there.rank, rank: kind.rank });
    }
    if let Some(&layer) = layers.iter().find(|&&l| l != rows.layer) {
        return Err(InitError::Layer { layer, there: format!("layer {}", rows.layer) });
    }
    let mut theta = rows.wide();
    if sigmoid(kind.kind) {
        // The gate's argument is divided by tau: w and b are scaled so that it opens as it did.
        theta[..=rows.n_embd].iter_mut().for_each(|x| *x *= kind.tau / there.tau);
    }
    Ok(theta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::{Addition, Parameters, Place, Stream};
    use std::collections::BTreeMap;

    const N: usize = 6;

    fn constant() -> SteeringVector {
        let v: Vec<f32> = (0..N).map(|i| (i as f32 * 1.3).sin() + 0.1).collect();
        SteeringVector { directions: BTreeMap::from([(3, v)]), ..SteeringVector::empty() }
    }

    /// What is added to two rows.
    fn added(kind: KindSpec, theta: &[f64]) -> Vec<f32> {
        let rows: Vec<f32> = (0..2 * N).map(|i| (i as f32).cos()).collect();
        let places: Vec<Place> = (0..2).map(|at| Place { sequence: 0, at, n_prompt: 1, in_thought: false }).collect();
        let stream = Stream { rows: &rows, places: &places, prompts: &[vec![0]] };
        let narrow: Vec<f32> = theta.iter().map(|&x| x as f32).collect();
        let intervention = kind.intervention(1, N).unwrap();
        match &intervention.additions(Parameters::from(&narrow), &stream)[..] {
            [Addition::Rows(rows)] => rows.clone(),
            [Addition::Broadcast(v)] => v.repeat(2),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_begin_with_a_constant_vector() {
        let (file, layers) = (constant(), Layers::one(3));
        let v = &file.directions[&3];
        for (kind, share) in [
            (Kind::Add, 1.0),
            (Kind::Gate, 0.5),
            (Kind::PromptGate, 0.5),
            (Kind::LinearGate, 1.0),
            (Kind::LowRank, 1.0),
        ] {
            let kind = KindSpec { rank: 2, ..kind.into() };
            let theta = initial_parameters(kind, &layers, N, 0, &file).unwrap();
            for (i, x) in added(kind, &theta).iter().enumerate() {
                assert!((x - share * v[i % N]).abs() < 1e-6, "{}: {x} at {i}", kind.kind);
            }
        }
        for kind in [Kind::Project, Kind::Clamp] {
            let refused = initial_parameters(kind.into(), &layers, N, 0, &file);
            assert_eq!(refused, Err(InitError::NoVector(kind)));
        }
    }

    #[test]
    fn gates_of_another_tau_open_as_they_did() {
        let spec = KindSpec { tau: 0.5, ..Kind::Gate.into() };
        let theta: Vec<f32> = (0..2 * N + 1).map(|i| (i as f32 * 0.7).sin()).collect();
        let rows = RowChanges { spec, layer: 3, n_embd: N, theta };
        let wide = rows.wide();
        let file = SteeringVector { rows: Some(rows), ..SteeringVector::empty() };
        for kind in [KindSpec { tau: 2.0, ..spec }, spec] {
            let theta = initial_parameters(kind, &Layers::one(3), N, 0, &file).unwrap();
            for (a, b) in added(kind, &theta).iter().zip(added(spec, &wide)) {
                assert!((a - b).abs() < 1e-6, "{a} for {b}");
            }
        }
        let to = |kind: Kind| initial_parameters(kind.into(), &Layers::one(3), N, 0, &file);
        assert!(to(Kind::PromptGate).is_ok());
        assert_eq!(to(Kind::LowRank), Err(InitError::Kind { there: Kind::Gate, kind: Kind::LowRank }));
        assert_eq!(to(Kind::Add), Err(InitError::Kind { there: Kind::Gate, kind: Kind::Add }));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let file = constant();
        let of = |kind: Kind, layer, n_embd| initial_parameters(kind.into(), &Layers::one(layer), n_embd, 0, &file);
        assert!(matches!(of(Kind::Gate, 4, N), Err(InitError::Layer { layer: 4, .. })));
        assert_eq!(of(Kind::Gate, 3, 8), Err(InitError::Width { there: N, n_embd: 8 }));
    }
}
