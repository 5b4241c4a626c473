//! The settings of a training run.

use super::objective::Objective;
use super::optimizer::Schedule;
use crate::layers::Layers;
use ggml_grad::graph::emit::Precision;
use std::fmt;
use std::str::FromStr;

/// A learning rate, or a length, given in its own unit or relative to the median residual norm at its layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// [`AUTO_RATE`] of the median residual norm.
    Auto,
    /// What Adam moves each coordinate by in a step, in the units of the residual stream.
    Absolute(f64),
    /// The length of Adam's first step, as a percentage of the median residual norm: Adam moves each of the n_embd
    /// coordinates by the learning rate, so the step is `lr sqrt(n_embd)` long. Layers that are trained together share
    /// it: what each adds is carried to the layers above, so their steps add up (docs/training.md).
    Percent(f64),
}

/// `--lr auto`: Adam's step is this percentage of the median residual norm at the layer.
pub const AUTO_RATE: f64 = 1.0;

impl Rate {
    /// Absolute learning rate at a layer whose stream of `n_embd` numbers has this median norm, one of `n_layers` that
    /// are trained together.
    pub fn absolute(self, median_norm: f64, n_embd: usize, n_layers: usize) -> f64 {
        match self {
            Self::Absolute(lr) => lr,
            Self::Percent(p) => p / 100.0 * median_norm / (n_embd as f64).sqrt() / n_layers as f64,
            Self::Auto => Self::Percent(AUTO_RATE).absolute(median_norm, n_embd, n_layers),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "auto" {
            return Ok(Self::Auto);
        }
        let (number, percent) = s.strip_suffix('%').map_or((s, false), |n| (n, true));
        match number.trim().parse::<f64>() {
            Ok(x) if x.is_finite() && x > 0.0 => Ok(if percent { Self::Percent(x) } else { Self::Absolute(x) }),
            _ => Err(format!("{s:?} is no learning rate: auto, a positive number, or a percentage such as 1%")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Absolute(x) => write!(f, "{x}"),
            Self::Percent(x) => write!(f, "{x}%"),
        }
    }
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Times through the training pairs.
    Epochs(usize),
    /// Optimizer steps.
    Steps(usize),
}

/// Settings of a run. The defaults were chosen by measurement on both test models (docs/training.md).
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// The layers whose output is steered, each with a direction of its own, trained together.
    pub layers: Layers,
    /// What is minimised.
    pub objective: Objective,
    /// Inverse temperature of the preference model.
    pub beta: f64,
    /// Learning rate.
    pub lr: Rate,
    /// Its course.
    pub schedule: Schedule,
    /// Share of the steps spent warming up.
    pub warmup: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Pairs in a step.
    pub batch: usize,
    /// How long to train.
    pub length: Length,
    /// Seed of order and directions.
    pub seed: u64,
    /// Longest gradient, if limited.
    pub clip: Option<f64>,
    /// Epochs without a better validation loss before stopping; 0 never stops.
    pub patience: usize,
    /// Length that the finished vector is scaled to, in percent of the median residual norm (with several layers, the
    /// mean over them).
    pub renorm: Option<f64>,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
    /// What may be rounded for speed.
    pub precision: Precision,
    /// Train although memory is short: the system will move it to and from the disk.
    pub allow_swap: bool,
}

impl TrainConfig {
    /// The defaults for these layers.
    pub fn new(layers: Layers) -> Self {
        Self {
            layers,
            objective: Objective::Bidpo,
            beta: 0.1,
            lr: Rate::Auto,
            schedule: Schedule::Cosine,
            warmup: 0.1,
            weight_decay: 0.05,
            batch: 8,
            length: Length::Epochs(5),
            seed: 0,
            clip: None,
            patience: 3,
            renorm: None,
            checkpoint_every: 10,
            precision: Precision::default(),
            allow_swap: false,
        }
    }

    /// A description that two runs share exactly when they must give the same vector; checkpoints carry it.
    pub fn fingerprint(&self) -> String {
        let mut same = self.clone();
        same.checkpoint_every = 0;
        same.renorm = None; // applied after training
        same.allow_swap = false; // changes the speed alone
        // One layer is described as it was before there could be several, so that checkpoints of that time still resume.
        // That version rounded nothing for speed.
        let exact = format!(", precision: {:?}", Precision::EXACT);
        let text = format!("{same:?}").replacen(", allow_swap: false", "", 1).replacen(&exact, "", 1);
        match *self.layers {
            [layer] => text.replacen(&format!("layers: {:?}", self.layers), &format!("layer: {layer}"), 1),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_names_the_layers() {
        let exact =
            |layers: &str| TrainConfig { precision: Precision::EXACT, ..TrainConfig::new(layers.parse().unwrap()) };
        let of = |layers: &str| exact(layers).fingerprint();
        // What the first version wrote.
        let old = "TrainConfig { layer: 15, objective: Bidpo, beta: 0.1, lr: Auto, schedule: Cosine, warmup: 0.1, \
                   weight_decay: 0.05, batch: 8, length: Epochs(5), seed: 0, clip: None, patience: 3, renorm: None, \
                   checkpoint_every: 0 }";
        assert_eq!(of("15"), old);
        assert_eq!(TrainConfig { allow_swap: true, ..exact("15") }.fingerprint(), old);
        assert_ne!(TrainConfig::new("15".parse().unwrap()).fingerprint(), old);
        let all = [of("15"), of("14"), of("14-15"), of("14,16"), of("14-16")];
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
    }

    #[test]
    fn rates_parse_and_convert() {
        assert_eq!("auto".parse(), Ok(Rate::Auto));
        assert_eq!("5e-4".parse(), Ok(Rate::Absolute(5e-4)));
        assert_eq!("0.5%".parse(), Ok(Rate::Percent(0.5)));
        for bad in ["", "-1", "0", "nan", "x%", "inf"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        // 1 % of a norm of 200 over sqrt(400) coordinates.
        assert!((Rate::Percent(1.0).absolute(200.0, 400, 1) - 0.1).abs() < 1e-15);
        assert!((Rate::Percent(1.0).absolute(200.0, 400, 5) - 0.02).abs() < 1e-15);
        assert_eq!(Rate::Absolute(0.3).absolute(200.0, 400, 5), 0.3);
    }
}
