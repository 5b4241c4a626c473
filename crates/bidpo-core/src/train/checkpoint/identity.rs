//! Identity of a run: everything that decides the bytes of its vector. A checkpoint carries it, so that no run resumes
//! from the checkpoint of another one.

use crate::intervention::{Kind, KindSpec, Scope};
use crate::train::config::{ChooseBy, LearningRate, TrainConfig, TrainingBudget};
use crate::train::init::Init;
use crate::train::objective::Objective;
use crate::train::optimizer::Schedule;
use crate::train::pairs::NamedPair;
use crate::train::retain::Retain;
use ggml_grad::files::hex;
use ggml_grad::graph::emit::{Backward, Forward, Precision};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of [`RunIdentity`]. Raise it when a field of `Settings` is added or renamed, or when the same settings begin
/// to train another vector: checkpoints of the version before are then refused, or read by a function such as `legacy_v1`.
const VERSION: u32 = 2;

/// Inputs of a run beside its settings and pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RunInputs {
    /// SHA-256 of the model file, hexadecimal.
    pub model_sha256: String,
    /// SHA-256 of the chat template, hexadecimal.
    pub template_sha256: String,
    /// Activations are read from a cache that stores them as BF16.
    pub bf16_activations: bool,
    /// SHA-256 of the retained texts' tokens ([`crate::train::retained_sha256`]); `None` and left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_sha256: Option<String>,
    /// SHA-256 of the adapters and vectors that are loaded beside what is trained ([`crate::engine::Background::sha256`]); `None`
    /// and left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside_sha256: Option<String>,
}

/// Identity of a run, as a checkpoint records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Version of the format and of the arithmetic.
    pub version: u32,
    /// SHA-256 of settings, inputs and tokens, hexadecimal.
    pub run: String,
    /// Tokens of a batch of pairs, at most; 0 where each pair is computed alone. Batching changes the last bits of
    /// gradients.
    pub max_batch_tokens: usize,
}

/// The identity that a checkpoint file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordedIdentity {
    /// Of this version.
    Current {
        /// The identity.
        identity: RunIdentity,
    },
    /// Of bidpo 0.1.0, which did not record whether pairs were batched.
    V1 {
        /// SHA-256 of the text of [`IdentitySource::legacy_v1`].
        fingerprint: String,
    },
}

impl Default for RecordedIdentity {
    fn default() -> Self {
        Self::V1 { fingerprint: String::new() }
    }
}

impl RecordedIdentity {
    /// Tokens of a batch of pairs in the recorded run; `None` where the file does not say.
    pub fn max_batch_tokens(&self) -> Option<usize> {
        match self {
            Self::Current { identity } => Some(identity.max_batch_tokens),
            Self::V1 { .. } => None,
        }
    }
}

/// All that an identity is computed from.
#[derive(Debug, Clone, Copy)]
pub struct IdentitySource<'a> {
    /// Settings.
    pub config: &'a TrainConfig,
    /// Model, template, activations.
    pub inputs: &'a RunInputs,
    /// Training pairs.
    pub train: &'a [NamedPair],
    /// Validation pairs.
    pub valid: &'a [NamedPair],
}

/// The settings that decide the bytes of a vector, in the order in which they are hashed.
#[derive(Serialize)]
struct Settings<'a> {
    version: u32,
    layers: &'a [usize],
    /// Left out for vectors that are added at every position: the hash is then that of bidpo 0.2.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    /// Left out for a run that begins with no change.
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<String>,
    objective: &'static str,
    beta: f64,
    /// Left out where nothing is retained: the hash is then that of bidpo 0.2.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    retain: Option<String>,
    /// Left out where the objective has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    gamma: Option<f64>,
    /// Left out where the objective draws none.
    #[serde(skip_serializing_if = "Option::is_none")]
    factors: Option<&'a [f32]>,
    learning_rate: String,
    schedule: &'static str,
    warmup_ratio: f64,
    weight_decay: f64,
    batch: usize,
    budget: &'static str,
    budget_count: usize,
    seed: u64,
    max_grad_norm: Option<f64>,
    patience: usize,
    /// Left out where it is the objective's own: the hash is then that of bidpo 0.2.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    choose_by: Option<&'static str>,
    forward: &'static str,
    backward: &'static str,
    inputs: &'a RunInputs,
    pairs: String,
}

impl IdentitySource<'_> {
    /// The identity of a run whose batches have at most `max_batch_tokens` tokens.
    pub fn identity(&self, max_batch_tokens: usize) -> RunIdentity {
        RunIdentity { version: VERSION, run: self.run(), max_batch_tokens }
    }

    /// Whether a recorded identity is of this run, however its pairs were batched.
    pub fn accepts(&self, recorded: &RecordedIdentity) -> bool {
        match recorded {
            RecordedIdentity::Current { identity } => identity.version == VERSION && identity.run == self.run(),
            RecordedIdentity::V1 { fingerprint } => {
                self.unusual_validation().is_none()
                    && self.config.retain.is_none()
                    && self.config.kind == KindSpec::default()
                    && self.config.lora.is_none()
                    && self.inputs.beside_sha256.is_none()
                    && self.config.scope == Scope::ALL
                    && self.config.init.is_none()
                    && *fingerprint == self.legacy_v1()
            }
        }
    }

    fn run(&self) -> String {
        // Each field is named: a new setting does not compile before it is decided here whether it changes the vector.
        let TrainConfig {
            layers,
            kind,
            lora,
            scope,
            init,
            objective,
            beta,
            gamma,
            factors,
            retain,
            learning_rate,
            schedule,
            warmup_ratio,
            weight_decay,
            batch,
            budget,
            seed,
            max_grad_norm,
            patience,
            choose_by: _, // by its effect, below
            precision: Precision { forward, backward },
            renorm: _, // applied after training
            checkpoint_every: _,
            allow_swap: _,
        } = self.config;
        let (budget, budget_count) = match *budget {
            TrainingBudget::Epochs(n) => ("epochs", n),
            TrainingBudget::Steps(n) => ("steps", n),
        };
        let mut pairs = Sha256::new();
        self.hash_pairs(&mut pairs);
        let settings = Settings {
            version: VERSION,
            layers,
            kind: match lora {
                Some(lora) => Some(format!("{} {}", self.config.kind_name(), lora.identity())),
                None => (kind.kind != Kind::Add).then(|| format!("{} {}", kind.kind, kind.settings())),
            },
            scope: (!scope.is_all()).then(|| scope.to_string()),
            init: init.as_ref().map(Init::identity),
            objective: objective.name(),
            beta: *beta,
            retain: retain.as_ref().map(Retain::identity),
            gamma: (*objective == Objective::Simpo).then_some(*gamma),
            factors: (*objective == Objective::Reps).then_some(&factors[..]),
            learning_rate: learning_rate.to_string(),
            schedule: schedule.name(),
            warmup_ratio: *warmup_ratio,
            weight_decay: *weight_decay,
            batch: *batch,
            budget,
            budget_count,
            seed: *seed,
            max_grad_norm: *max_grad_norm,
            patience: *patience,
            choose_by: self.unusual_validation(),
            forward: forward.name(),
            backward: backward.name(),
            inputs: self.inputs,
            pairs: hex(&pairs.finalize()),
        };
        let text = serde_json::to_vec(&settings).expect("a struct of numbers and strings");
        hex(&Sha256::digest(text))
    }

    /// The directions of validation where they are not those that the objective trains.
    fn unusual_validation(&self) -> Option<&'static str> {
        let usual = TrainConfig { choose_by: None, ..self.config.clone() }.validation();
        Some(self.config.validation()).filter(|&by| by != usual).map(ChooseBy::name)
    }

    fn hash_pairs(&self, hash: &mut Sha256) {
        for (kind, set) in [(0u8, self.train), (1, self.valid)] {
            for p in set {
                for part in [&p.tokens.prompt, &p.tokens.chosen, &p.tokens.rejected] {
                    hash.update([kind]);
                    hash.update((part.len() as u64).to_le_bytes());
                    part.iter().for_each(|t| hash.update(t.to_le_bytes()));
                }
            }
        }
    }

    /// The fingerprint that bidpo 0.1.0 wrote: SHA-256 of the settings as its `Debug` printed them, of the context that its
    /// command built (model, template, "0.1.0"), and of the tokens.
    pub fn legacy_v1(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(legacy_v1_settings(self.config));
        let RunInputs { model_sha256, template_sha256, bf16_activations, retained_sha256: _, beside_sha256: _ } =
            self.inputs;
        let rounded = if *bf16_activations { " cache bf16" } else { "" };
        hash.update(format!("{model_sha256} {template_sha256} 0.1.0{rounded}"));
        self.hash_pairs(&mut hash);
        hex(&hash.finalize())
    }
}

/// The settings as `{:?}` of bidpo 0.1.0's `TrainConfig` printed them, in its names.
fn legacy_v1_settings(c: &TrainConfig) -> String {
    let layers = match *c.layers {
        [layer] => format!("layer: {layer}"),
        ref layers => format!("layers: Layers({layers:?})"),
    };
    let objective = match c.objective {
        Objective::Bidpo => "Bidpo",
        Objective::Dpo => "Dpo",
        Objective::Ipo => "Ipo",
        Objective::Simpo => "Simpo",
        Objective::Sft => "Sft",
        Objective::Reps => "Reps",
    };
    let lr = match c.learning_rate {
        LearningRate::Auto => "Auto".to_owned(),
        LearningRate::Absolute(x) => format!("Absolute({x:?})"),
        LearningRate::Percent(x) => format!("Percent({x:?})"),
    };
    let schedule = match c.schedule {
        Schedule::Cosine => "Cosine",
        Schedule::Linear => "Linear",
        Schedule::Constant => "Constant",
    };
    let length = match c.budget {
        TrainingBudget::Epochs(n) => format!("Epochs({n})"),
        TrainingBudget::Steps(n) => format!("Steps({n})"),
    };
    let precision = if c.precision == Precision::EXACT {
        String::new()
    } else {
        let forward = match c.precision.forward {
            Forward::Exact => "Exact",
            Forward::Fast => "Fast",
        };
        let backward = match c.precision.backward {
            Backward::F32 => "F32",
            Backward::Bf16 => "Bf16",
        };
        format!(", precision: Precision {{ forward: {forward}, backward: {backward} }}")
    };
    format!(
        "TrainConfig {{ {layers}, objective: {objective}, beta: {:?}, lr: {lr}, schedule: {schedule}, warmup: {:?}, \
         weight_decay: {:?}, batch: {}, length: {length}, seed: {}, clip: {:?}, patience: {}, renorm: None, \
         checkpoint_every: 0{precision} }}",
        c.beta, c.warmup_ratio, c.weight_decay, c.batch, c.seed, c.max_grad_norm, c.patience
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;

    fn run(config: &TrainConfig) -> String {
        IdentitySource { config, inputs: &RunInputs::default(), train: &[], valid: &[] }.run()
    }

    /// The texts were printed by bidpo 0.1.0.
    #[test]
    fn settings_of_0_1_0_are_reproduced() {
        let of = |layers: &str| TrainConfig { weight_decay: 0.05, ..TrainConfig::new(layers.parse().unwrap()) };
        let exact = |layers: &str| TrainConfig { precision: Precision::EXACT, ..of(layers) };
        let rest = "objective: Bidpo, beta: 0.1, lr: Auto, schedule: Cosine, warmup: 0.1, weight_decay: 0.05, batch: 8, \
                    length: Epochs(5), seed: 0, clip: None, patience: 3, renorm: None, checkpoint_every: 0";
        assert_eq!(legacy_v1_settings(&exact("15")), format!("TrainConfig {{ layer: 15, {rest} }}"));
        assert_eq!(
            legacy_v1_settings(&of("14-16")),
            format!(
                "TrainConfig {{ layers: Layers([14, 15, 16]), {rest}, precision: Precision {{ forward: Fast, backward: Bf16 }} }}"
            )
        );
    }

    /// Written by bidpo 0.1.0 for `train --data q.jsonl --template none --layers 1,2 --steps 100000 --batch 2 --lr 0.5% --clip 3
    /// --seed 7 --objective dpo` on a random model, where q.jsonl holds (a, b, c) and (b, c, a).
    #[test]
    fn a_checkpoint_of_0_1_0_is_accepted() {
        let config = TrainConfig {
            budget: TrainingBudget::Steps(100_000),
            batch: 2,
            learning_rate: LearningRate::Percent(0.5),
            max_grad_norm: Some(3.0),
            seed: 7,
            objective: Objective::Dpo,
            weight_decay: 0.05,
            ..TrainConfig::new("1,2".parse().unwrap())
        };
        let (bos, space, [a, b, c]) = (1, 259, [262, 279, 271]);
        let pair = |prompt, chosen, rejected| NamedPair {
            name: String::new(),
            tokens: crate::data::TokenizedPair {
                prompt: vec![bos, space, prompt],
                chosen: vec![space, chosen],
                rejected: vec![space, rejected],
            },
        };
        let train = [pair(a, b, c), pair(b, c, a)];
        let inputs = RunInputs {
            model_sha256: "72cbda522ad970809a305d5812c9e739a026be55ee15d2705ea25cc98912ac4d".into(),
            template_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            ..RunInputs::default()
        };
        let source = IdentitySource { config: &config, inputs: &inputs, train: &train, valid: &[] };
        let state = r#"{"fingerprint":"8f3a8c47f6e28bfbc2fd118fca6ca6b33118d5f12f61d2e3c7d5a3bac1ea67f4"}"#;
        let recorded: RecordedIdentity = serde_json::from_str(state).unwrap();
        assert!(source.accepts(&recorded) && recorded.max_batch_tokens().is_none());
        let other = TrainConfig { seed: 8, ..config.clone() };
        assert!(!IdentitySource { config: &other, ..source }.accepts(&recorded));
        // An identity of this version comes back from its own text, batches included.
        let current = RecordedIdentity::Current { identity: source.identity(640) };
        let text = serde_json::to_string(&current).unwrap();
        assert_eq!(serde_json::from_str::<RecordedIdentity>(&text).unwrap(), current);
        assert!(source.accepts(&current) && current.max_batch_tokens() == Some(640));
    }

    #[test]
    fn what_changes_the_vector_changes_the_identity() {
        let config = |layers: &str| TrainConfig::new(layers.parse::<Layers>().unwrap());
        let begun = |x| Init { name: "v.gguf".into(), sha256: String::new(), theta: vec![x; 4] };
        const RETAIN: Retain = Retain { weight: 1.0, budget: None, texts: None };
        let base = run(&config("15"));
        let same = TrainConfig { allow_swap: true, checkpoint_every: 3, renorm: Some(5.0), ..config("15") };
        assert_eq!(run(&same), base);
        assert_eq!(run(&TrainConfig { choose_by: Some(ChooseBy::Both), ..config("15") }), base);
        let others = [
            config("14"),
            config("14-15"),
            TrainConfig { beta: 0.2, ..config("15") },
            TrainConfig { choose_by: Some(ChooseBy::Positive), ..config("15") },
            TrainConfig { kind: Kind::Gate.into(), ..config("15") },
            TrainConfig { kind: Kind::PromptGate.into(), ..config("15") },
            TrainConfig { kind: KindSpec { tau: 0.5, ..Kind::Gate.into() }, ..config("15") },
            TrainConfig { scope: "prompt".parse().unwrap(), ..config("15") },
            TrainConfig { init: Some(begun(1.0)), ..config("15") },
            TrainConfig { init: Some(begun(2.0)), ..config("15") },
            TrainConfig { objective: Objective::Simpo, ..config("15") },
            TrainConfig { objective: Objective::Simpo, gamma: 0.5, ..config("15") },
            TrainConfig { objective: Objective::Sft, ..config("15") },
            TrainConfig { objective: Objective::Reps, ..config("15") },
            TrainConfig { objective: Objective::Reps, factors: vec![1.0], ..config("15") },
            TrainConfig { retain: Some(RETAIN), ..config("15") },
            TrainConfig { retain: Some(Retain { weight: 2.0, ..RETAIN }), ..config("15") },
            TrainConfig { retain: Some(Retain { budget: Some(0.1), ..RETAIN }), ..config("15") },
            TrainConfig { learning_rate: LearningRate::Percent(1.0), ..config("15") },
            TrainConfig { max_grad_norm: Some(1.0), ..config("15") },
            TrainConfig { budget: TrainingBudget::Steps(5), ..config("15") },
            TrainConfig { precision: Precision::EXACT, ..config("15") },
        ];
        let all: Vec<String> = std::iter::once(base).chain(others.iter().map(run)).collect();
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
    }
}
