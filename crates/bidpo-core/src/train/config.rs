//! Settings of a training run.

use super::init::Init;
use super::objective::{Objective, Strength};
use super::optimizer::Schedule;
use super::retain::Retain;
use crate::engine::Direction;
use crate::intervention::{Kind, KindSpec, LoraSpec, Scope};
use crate::layers::Layers;
use ggml_grad::graph::emit::Precision;
use std::fmt;
use std::str::FromStr;

/// A learning rate: absolute, or relative to the median residual norm at its layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LearningRate {
    /// [`AUTO_RATE`] percent of the median residual norm.
    Auto,
    /// Adam's step of each component, in the units of the residual stream.
    Absolute(f64),
    /// L2 norm of Adam's first step, in percent of the median residual norm. Adam moves each of the `n_embd` components
    /// by the learning rate, so the step has norm `lr sqrt(n_embd)`. Layers that are trained together share the
    /// percentage: a change at one layer is carried to the layers above, so the steps add up (docs/training.md).
    Percent(f64),
}

/// `--lr auto`: the norm of Adam's step in percent of the median residual norm at the layer.
pub const AUTO_RATE: f64 = 1.0;

impl LearningRate {
    /// Absolute learning rate at a layer whose residual stream of width `n_embd` has this median norm, one of `n_layers`
    /// layers trained together.
    pub fn absolute(self, median_norm: f64, n_embd: usize, n_layers: usize) -> f64 {
        match self {
            Self::Absolute(lr) => lr,
            Self::Percent(p) => p / 100.0 * median_norm / (n_embd as f64).sqrt() / n_layers as f64,
            Self::Auto => Self::Percent(AUTO_RATE).absolute(median_norm, n_embd, n_layers),
        }
    }
}

impl FromStr for LearningRate {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "auto" {
            return Ok(Self::Auto);
        }
        let (number, percent) = s.strip_suffix('%').map_or((s, false), |n| (n, true));
        match number.trim().parse::<f64>() {
            Ok(x) if x.is_finite() && x > 0.0 => Ok(if percent { Self::Percent(x) } else { Self::Absolute(x) }),
            _ => Err(format!(
                "invalid learning rate {s:?}: expected auto, a positive number, or a percentage such as 1%"
            )),
        }
    }
}

impl fmt::Display for LearningRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Absolute(x) => write!(f, "{x}"),
            Self::Percent(x) => write!(f, "{x}%"),
        }
    }
}

/// Directions that validation averages over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChooseBy {
    /// Scale +1 and scale -1: for a vector that is used both ways.
    Both,
    /// Scale +1 only: for a vector that is only added.
    Positive,
}

impl FromStr for ChooseBy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Both, Self::Positive]
            .into_iter()
            .find(|by| by.name() == s)
            .ok_or_else(|| format!("invalid validation {s:?}: expected both or positive"))
    }
}

impl ChooseBy {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Positive => "positive",
        }
    }
}

/// The length of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainingBudget {
    /// Passes over the training pairs.
    Epochs(usize),
    /// Optimizer steps.
    Steps(usize),
}

/// Settings of a run. The defaults were chosen by measurement on both test models (docs/training.md).
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// The steered layers. Each has one direction; all directions are trained together.
    pub layers: Layers,
    /// Kind of intervention, with its settings.
    pub kind: KindSpec,
    /// An adapter that is trained, alone or with vectors at the layers; `kind` is then [`crate::intervention::Kind::Add`].
    pub lora: Option<LoraSpec>,
    /// Positions at which it acts.
    pub scope: Scope,
    /// Parameters that the run begins with; `None` for those under which nothing changes.
    pub init: Option<Init>,
    /// The objective.
    pub objective: Objective,
    /// Inverse temperature of the preference model.
    pub beta: f64,
    /// Target margin of [`Objective::Simpo`].
    pub gamma: f64,
    /// Factors on the change of which [`Objective::Reps`] draws one for each pair.
    pub factors: Vec<f32>,
    /// Settings of retention, where there are texts to retain.
    pub retain: Option<Retain>,
    /// Learning rate.
    pub learning_rate: LearningRate,
    /// Learning-rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Fraction of the steps spent warming up, in `[0, 1)`.
    pub warmup_ratio: f64,
    /// Decoupled weight decay, in the units of the residual stream: no component grows beyond its inverse.
    pub weight_decay: f64,
    /// Training pairs in a step.
    pub batch: usize,
    /// Epochs or steps to train.
    pub budget: TrainingBudget,
    /// Seed of the order of the pairs and of their directions.
    pub seed: u64,
    /// Maximum L2 norm of a step's gradient; longer gradients are scaled down to it. `None` never clips.
    pub max_grad_norm: Option<f64>,
    /// Epochs without a lower validation loss before stopping; 0 never stops.
    pub patience: usize,
    /// Directions that validation averages over; `None` for those that the objective trains.
    pub choose_by: Option<ChooseBy>,
    /// L2 norm that the finished vector is scaled to, in percent of the median residual norm (with several layers, the
    /// mean over them).
    pub renorm: Option<f64>,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// Kernels of the forward and the backward pass.
    pub precision: Precision,
    /// Train although memory is short: the system then swaps to disk.
    pub allow_swap: bool,
}

impl TrainConfig {
    /// The defaults for these layers.
    pub fn new(layers: Layers) -> Self {
        Self {
            layers,
            kind: KindSpec::default(),
            lora: None,
            scope: Scope::ALL,
            init: None,
            objective: Objective::Bidpo,
            beta: 0.1,
            gamma: 0.0,
            factors: Objective::FACTORS.to_vec(),
            retain: None,
            learning_rate: LearningRate::Auto,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            weight_decay: 0.05,
            batch: 8,
            budget: TrainingBudget::Epochs(5),
            seed: 0,
            max_grad_norm: None,
            patience: 3,
            choose_by: None,
            renorm: None,
            checkpoint_every: 10,
            precision: Precision::default(),
            allow_swap: false,
        }
    }

    /// The opposite of [`Direction::Forward`].
    pub(crate) fn opposite(&self) -> Direction {
        if self.nulls() { Direction::Null } else { Direction::Reverse }
    }

    /// The opposite direction takes the vector's component out: under [`Objective::Reps`], for constant vectors without an adapter.
    pub fn nulls(&self) -> bool {
        self.objective == Objective::Reps && self.kind.kind == Kind::Add && self.lora.is_none()
    }

    /// The directions, at scale 1, in which validation measures.
    pub(crate) fn directions(&self) -> Vec<Direction> {
        match self.validation() {
            ChooseBy::Both => vec![Direction::Forward, self.opposite()],
            ChooseBy::Positive => vec![Direction::Forward],
        }
    }

    /// Directions that validation averages over.
    pub fn validation(&self) -> ChooseBy {
        let own = if self.objective.both_directions() { ChooseBy::Both } else { ChooseBy::Positive };
        self.choose_by.unwrap_or(own)
    }

    /// The loss of the untrained vector, which is zero: that of margin 0, for every pair. `None` where it depends on the pair.
    pub fn untrained_loss(&self) -> Option<f64> {
        self.objective.loss(1.0, self.beta, 0.0).map(|l| l.value)
    }

    /// The kind on the command line and in files.
    pub fn kind_name(&self) -> &'static str {
        match &self.lora {
            Some(lora) if lora.with_vectors => "lora+add",
            Some(_) => "lora",
            None => self.kind.kind.name(),
        }
    }

    /// Numbers of the objective.
    pub fn strength(&self) -> Strength {
        Strength { beta: self.beta, gamma: self.gamma }
    }

    /// Training pairs in a step, where there are `n` of them.
    pub(crate) fn batch_of(&self, n: usize) -> usize {
        self.batch.clamp(1, n.max(1))
    }

    /// Steps of an epoch over `n` training pairs.
    pub(crate) fn steps_per_epoch(&self, n: usize) -> usize {
        n.div_ceil(self.batch_of(n))
    }

    /// Steps of the run over `n` training pairs.
    pub(crate) fn total_steps(&self, n: usize) -> usize {
        match self.budget {
            TrainingBudget::Epochs(epochs) => epochs * self.steps_per_epoch(n),
            TrainingBudget::Steps(steps) => steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_parse_and_convert() {
        assert_eq!("auto".parse(), Ok(LearningRate::Auto));
        assert_eq!("5e-4".parse(), Ok(LearningRate::Absolute(5e-4)));
        assert_eq!("0.5%".parse(), Ok(LearningRate::Percent(0.5)));
        for bad in ["", "-1", "0", "nan", "x%", "inf"] {
            assert!(bad.parse::<LearningRate>().is_err(), "{bad}");
        }
        // 1 % of a norm of 200 over sqrt(400) components.
        assert!((LearningRate::Percent(1.0).absolute(200.0, 400, 1) - 0.1).abs() < 1e-15);
        assert!((LearningRate::Percent(1.0).absolute(200.0, 400, 5) - 0.02).abs() < 1e-15);
        assert_eq!(LearningRate::Absolute(0.3).absolute(200.0, 400, 5), 0.3);
    }
}
