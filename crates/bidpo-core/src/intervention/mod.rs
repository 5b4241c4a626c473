//! Interventions: how parameters change the residual stream at the hook points, and the gradient of the parameters.
//!
//! The engine computes log-probabilities for the additions that [`Intervention::additions`] returns, reads the gradient of each
//! row at each hook point, and hands it to [`Intervention::vjp`]. The trainer asks for everything else: the first
//! parameters, their learning rates, the size of the change and the tensors of the file. A kind of intervention is one
//! implementation; engine and trainer know the trait alone. Inference applies a kind row by row ([`RowKind`]).

mod add;
mod gate;
mod kind;
mod lora;
mod low_rank;
mod one_layer;
mod project;
mod row_kind;
mod scope;
mod stream;
mod targets;
mod thoughts;

pub use add::Add;
pub use gate::Gate;
pub use kind::{Kind, KindError, KindSpec};
pub use lora::{Adapted, Lora};
pub use low_rank::LowRank;
pub use one_layer::OneLayer;
pub use project::Project;
pub use row_kind::{Part, Pool, RowKind, normalised, random_of};
pub use scope::{Scope, ScopePart};
pub use stream::{Place, Sequences, Stream};
pub use targets::{LoraError, LoraSpec, TargetName, USUAL_TARGETS};
pub use thoughts::{ThoughtState, ThoughtTokens};

use std::fmt::Debug;
use std::ops::Range;

/// Direction of an intervention. BiDPO trains one whose reverse has the opposite effect (Cao et al. 2024, arXiv 2406.00045,
/// eq. 4).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Direction {
    /// The change is added.
    #[default]
    Forward,
    /// The change is subtracted.
    Reverse,
    /// The change is added so many times.
    Times(f32),
    /// The component along an added vector is taken out of the stream where it is positive ([`Add`]). Other kinds subtract their
    /// change.
    Null,
}

impl Direction {
    /// Its effect: +1 where the chosen response is to be preferred, -1 where the rejected one is.
    pub fn sign(self) -> f64 {
        match self {
            Self::Forward => 1.0,
            Self::Reverse | Self::Null => -1.0,
            Self::Times(factor) => f64::from(factor.signum()),
        }
    }

    /// Factor on the change.
    pub fn factor(self) -> f64 {
        match self {
            Self::Forward | Self::Reverse | Self::Null => self.sign(),
            Self::Times(factor) => f64::from(factor),
        }
    }
}

/// Parameters of an intervention, with the direction in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameters<'a> {
    /// `[n_params]`
    pub theta: &'a [f32],
    /// The direction.
    pub direction: Direction,
}

impl<'a> From<&'a [f32]> for Parameters<'a> {
    fn from(theta: &'a [f32]) -> Self {
        Self { theta, direction: Direction::Forward }
    }
}

impl<'a> From<&'a Vec<f32>> for Parameters<'a> {
    fn from(theta: &'a Vec<f32>) -> Self {
        Self::from(&theta[..])
    }
}

/// Values added at one hook point.
#[derive(Debug, Clone, PartialEq)]
pub enum Addition {
    /// The same vector on every row, `[n_embd]`: broadcast in the graph.
    Broadcast(Vec<f32>),
    /// One vector for each row, `[n_rows, n_embd]`. Only at the lowest hook point, whose rows are known before the graph
    /// runs.
    Rows(Vec<f32>),
}

impl Addition {
    /// The numbers, of one row or of all.
    pub(crate) fn values(&self) -> &[f32] {
        match self {
            Self::Broadcast(values) | Self::Rows(values) => values,
        }
    }
}

/// Gradient at the rows of one hook point.
#[derive(Debug, Clone, Copy)]
pub struct RowGradients<'a> {
    /// Derivative with respect to each row, `[n_rows, n_embd]`, times `scale`.
    pub rows: &'a [f32],
    /// Factor on `rows`: a power of two, 1 except on devices.
    pub scale: f32,
    /// For each row: index of the gradient that it counts towards.
    pub pair: &'a [usize],
}

/// Parameters that share a learning rate.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGroup {
    /// The parameters.
    pub params: Range<usize>,
    /// Learning rate before the schedule's factor.
    pub lr: f64,
}

/// A matrix that the graph multiplies with, under some parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Its name in the graph, for example `blk.15.ffn_down.weight.lora_a`.
    pub name: String,
    /// The elements, row by row.
    pub values: Vec<f32>,
}

/// A tensor of an intervention's file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// For example `direction.15`, the name by which llama.cpp finds a layer's control vector.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<f32>,
}

/// A change of the residual stream with parameters.
pub trait Intervention: Debug + Send + Sync {
    /// The kind, as checkpoints name it.
    fn kind(&self) -> &'static str;

    /// Number of parameters.
    fn n_params(&self) -> usize;

    /// Parameters before the first step, under which the residual stream stays as it is. `seed`: the run's, for kinds that begin
    /// at random.
    fn initial(&self, seed: u64) -> Vec<f64>;

    /// Groups of parameters that together cover all, in order. `rates`: for each layer, lowest first, the learning rate of a
    /// vector that is added there, in the units of the residual stream.
    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup>;

    /// Additions at each hook point, lowest layer first, in the direction asked for. `stream`: the model's residual stream
    /// at the lowest hook point.
    fn additions(&self, at: Parameters<'_>, stream: &Stream<'_>) -> Vec<Addition>;

    /// Vector-Jacobian product: adds to `grads` (one `[n_params]` for each pair) the gradients of `theta` that follow from the
    /// gradients at each hook point, lowest layer first.
    fn vjp(&self, at: Parameters<'_>, stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]);

    /// Size of the change at each layer, lowest first: the L2 norm of what is added to a row; where rows differ, that of a fully
    /// open gate, or of a row of the median norm. `residual`: that median norm at each layer.
    fn norms(&self, theta: &[f64], residual: &[f64]) -> Vec<f64>;

    /// Parameters whose change is `factor` times that of `theta`.
    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64>;

    /// Random parameters of the same kind and size: `theta` under a random rotation of the residual stream.
    fn random(&self, theta: &[f32], seed: u64) -> Vec<f32>;

    /// Tensors of the file for these parameters at `layers`, lowest first. Only a change that llama.cpp can make by itself
    /// holds `direction.N`.
    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor>;

    /// False for an intervention that leaves the rows at the hook points as they are: [`Intervention::additions`] may then return
    /// none, and [`Intervention::vjp`] is not called.
    fn changes_rows(&self) -> bool {
        true
    }

    /// The pairs of an intervention in the model's matrices.
    fn lora(&self) -> Option<&Lora> {
        None
    }

    /// The matrices that the graph multiplies with, in a fixed order; none for an intervention in the residual stream.
    fn matrices(&self, _at: Parameters<'_>) -> Vec<Matrix> {
        Vec::new()
    }

    /// Adds to `grad`, `[n_params]`, what follows from the gradients of the matrices, in the order of
    /// [`Intervention::matrices`].
    fn matrices_vjp(&self, _at: Parameters<'_>, _gradients: &[&[f32]], _grad: &mut [f64]) {}

    /// Inner product of the changes that two sets of parameters make to the model's matrices.
    fn matrix_product(&self, _a: &[f32], _b: &[f32]) -> f64 {
        0.0
    }
}
