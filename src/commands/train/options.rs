//! Options of `bidpo train`.

use crate::args::kinds::KindChoice;
use crate::args::steering::VectorArg;
use crate::args::template::VariableArgs;
use anyhow::ensure;
use bidpo_core::data::{SplitBy, TemplateChoice, Think};
use bidpo_core::engine::CacheType;
use bidpo_core::intervention::{Kind, KindSpec, LoraSpec, Scope, TargetName};
use bidpo_core::layers::Layers;
use bidpo_core::train::{
    Backward, ChooseBy, Forward, HeldOutFractions, Init, LearningRate, Objective, Precision, RANDOM_DRAWS, Retain,
    Schedule, TrainConfig, TrainingBudget,
};
use std::path::PathBuf;
use std::str::FromStr;

/// Options of `bidpo train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) model: crate::args::ModelArgs,
    /// Preference pairs: JSON Lines, JSON, CSV, TSV (also .gz, .zst) or Parquet in any usual form (docs/data.md), or a built-in
    /// set: misconceptions, plain-vs-flowery.
    #[arg(long, short = 'd', value_name = "FILE|NAME", default_value = "misconceptions")]
    pub(super) data: PathBuf,
    #[command(flatten)]
    pub(super) read: crate::args::data::DataArgs,
    /// Layer whose output is steered [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    pub(super) layer: Option<usize>,
    /// Several layers with one direction each, trained together: 10-20, or 5,9,12-14.
    #[arg(long, value_name = "LIST", conflicts_with = "layer")]
    pub(super) layers: Option<Layers>,
    /// Kind of intervention: add (a constant vector), gate (a vector behind a gate that each token opens), linear-gate,
    /// prompt-gate (the prompt decides, for its answer), project, clamp or lowrank (docs/interventions.md); lora (an adapter
    /// that every llama.cpp program loads) or lora+add (an adapter and a vector below it, two files).
    #[arg(long, value_name = "KIND", default_value = "add")]
    pub(super) kind: KindChoice,
    /// Positions at which the intervention acts: all, prompt, answer, think, not-think (the answer's thought, and the rest of the
    /// answer), first:N, last:N (of the prompt), after:N (answer tokens), or a union such as first:1+answer.
    #[arg(long, value_name = "SCOPE", default_value = "all")]
    pub(super) scope: Scope,
    /// Temperature of the sigmoid of gate and prompt-gate [default: 1].
    #[arg(long, value_name = "TAU", value_parser = positive, hide_short_help = true)]
    pub(super) tau: Option<f64>,
    /// What decides a prompt-gate: last (the prompt's last token) or mean (its mean) [default: last].
    #[arg(long, value_name = "ROWS", value_parser = ["last", "mean"], hide_short_help = true)]
    pub(super) decided_by: Option<String>,
    /// Rank of lowrank, and of each pair of lora [default: 8].
    #[arg(long, value_name = "R", value_parser = at_least_one, hide_short_help = true)]
    pub(super) rank: Option<usize>,
    /// Factor of lora: the change of a matrix is alpha / rank times B A [default: twice the rank].
    #[arg(long, value_name = "A", value_parser = positive, hide_short_help = true)]
    pub(super) alpha: Option<f64>,
    /// Matrices that lora changes, as GGUF files name them, in the blocks of --layers or in one: attn_q,ffn_down or ffn_down@15
    /// [default: the projections of attention and feed-forward network, in the blocks above the middle].
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_short_help = true)]
    pub(super) targets: Vec<TargetName>,
    /// Begin with the parameters of this file instead of no change: a file of the same kind, or a constant vector, before which
    /// a gate begins half open; for lora an adapter whose matrices are all trained.
    #[arg(long, value_name = "FILE.gguf")]
    pub(super) init: Option<PathBuf>,
    /// LoRA adapter that is loaded in training, at scale 1 or FILE:SCALE: policy and reference both have it. Can be repeated.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]")]
    pub(super) loras: Vec<VectorArg>,
    /// Constant vector that is loaded in training, at scale 1 or FILE:SCALE: policy and reference both have it. Can be repeated.
    #[arg(long = "vector", short = 'v', value_name = "FILE.gguf[:SCALE]")]
    pub(super) vectors: Vec<VectorArg>,
    /// File of the vector; its card goes into a .md file of the same name [default: named after data and model].
    #[arg(long = "output", short = 'o', value_name = "FILE.gguf")]
    pub(super) output: Option<PathBuf>,
    /// Chat template: auto (the model's own), none, a known name, or a Jinja file.
    #[arg(long, default_value = "auto", value_name = "T")]
    pub(super) template: TemplateChoice,
    #[command(flatten)]
    pub(super) variables: VariableArgs,
    /// Thoughts in answers that are trained: auto (as finished chats of the template hold the answer: after an empty thought
    /// or none), skip (the same, and a thought that an answer brings along is left out), keep (after the generation prompt as
    /// it stands, for answers that begin with the thought).
    #[arg(long, default_value_t = Think::Auto, value_name = "auto|skip|keep")]
    pub(super) think: Think,
    /// Objective: bidpo (the vector works in both directions), dpo, ipo (dpo whose margin is drawn to 1 / (2 beta) nats), simpo
    /// (log-probabilities a token, compared without a reference), sft (the chosen answer alone), or reps (log-probabilities a
    /// token; the vector is added times a random factor, or its component is taken out).
    #[arg(long, default_value = "bidpo")]
    pub(super) objective: Objective,
    /// Inverse temperature of the preference model [default: 0.1; simpo: 2].
    #[arg(long, value_parser = positive)]
    pub(super) beta: Option<f64>,
    /// Target margin of simpo [default: half of beta].
    #[arg(long, value_parser = not_negative, hide_short_help = true)]
    pub(super) gamma: Option<f64>,
    /// Factors on the change, of which reps draws one for each pair [default: 0.2,0.4,...,2].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = factor, hide_short_help = true)]
    pub(super) factors: Vec<f32>,
    /// Texts on which nothing should change: builtin (passages that the price is not measured on), a .txt of passages between
    /// blank lines, preference pairs (their chosen answers), or rows with a prompt (and a response; without one the unsteered
    /// model answers) or a text. Adds weight x KL(unsteered || steered) a token to the loss. Off unless given.
    #[arg(long, value_name = "FILE|builtin")]
    pub(super) retain: Option<PathBuf>,
    /// Weight of that divergence [default: 1]; with --retain-kl, the weight that the run begins with.
    #[arg(long, value_name = "W", requires = "retain", value_parser = positive)]
    pub(super) retain_weight: Option<f64>,
    /// Budget of that divergence, nats a token: the weight rises while the divergence is above it, and falls while it is below.
    #[arg(long, value_name = "NATS", requires = "retain", value_parser = positive)]
    pub(super) retain_kl: Option<f64>,
    /// Retained texts in a step [default: half as many as pairs].
    #[arg(long, value_name = "N", requires = "retain", value_parser = at_least_one, hide_short_help = true)]
    pub(super) retain_batch: Option<usize>,
    /// Learning rate: auto, a number in the units of the residual stream, or a percentage of the median residual norm
    /// (several layers share the percentage).
    #[arg(long, default_value = "auto", value_name = "LR")]
    pub(super) lr: LearningRate,
    /// Learning-rate schedule after the warm-up: cosine, linear or constant.
    #[arg(long, default_value = "cosine")]
    pub(super) schedule: Schedule,
    /// Warm-up ratio: fraction of the steps in which the learning rate rises.
    #[arg(long, default_value_t = 0.1, value_parser = fraction)]
    pub(super) warmup: f64,
    /// Decoupled weight decay, in the units of the residual stream: no component grows beyond its inverse. 0: none.
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    pub(super) weight_decay: f64,
    /// Training pairs in a step.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    pub(super) batch: usize,
    /// Passes over the training pairs.
    #[arg(long, default_value_t = 5, value_parser = at_least_one, conflicts_with = "steps")]
    pub(super) epochs: usize,
    /// Optimizer steps, instead of --epochs.
    #[arg(long, value_parser = at_least_one)]
    pub(super) steps: Option<usize>,
    /// Seed of the split, of the order of the pairs and of their directions.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Train with so many seeds, --seed and those behind it, on the same split, and report the spread between them. The vector of
    /// the first is kept.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = at_least_one)]
    pub(super) seeds: usize,
    /// Maximum L2 norm of a step's gradient [default: none].
    #[arg(long, visible_alias = "max-grad-norm", value_parser = positive)]
    pub(super) clip: Option<f64>,
    /// Fraction of the pairs for validation, which chooses the best epoch [default: a sixth].
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub(super) val: Option<f64>,
    /// Fraction of the pairs held out as test pairs, to measure the finished vector on [default: a sixth].
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub(super) test: Option<f64>,
    /// Pairs that stay in one part: groups (near-duplicate prompts, or answers that are the same but for names, numbers and
    /// one word), prompts (near-duplicate prompts) or pairs (none: the rule of bidpo 0.2.0, under which held-out pairs may
    /// repeat training pairs).
    #[arg(long, value_name = "RULE", default_value = "groups")]
    pub(super) split_by: SplitBy,
    /// Epochs without a lower validation loss before stopping; 0 never stops.
    #[arg(long, default_value_t = 3)]
    pub(super) patience: usize,
    /// Scales that validation averages over: both (+1 and -1) or positive (+1, for a vector that is only added)
    /// [default: those that the objective trains].
    #[arg(long, value_name = "SCALES")]
    pub(super) choose_by: Option<ChooseBy>,
    /// Scale the finished vector to this percentage of the median residual norm (several layers: the mean over them).
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    pub(super) renorm: Option<f64>,
    /// Measure the range of scales within which KL(unsteered || steered) on neutral text stays within this budget, nats a token
    /// [0.2 where none is given], and write it into the file, as `bidpo calibrate` does.
    #[arg(long, value_name = "KL", num_args = 0..=1, default_missing_value = "0.2", value_parser = crate::commands::measure::calibrate::budget)]
    pub(super) calibrate: Option<f64>,
    /// A system prompt to compare with on the test pairs (each built-in set has one). Repeat it to give several: the best on
    /// the validation pairs is compared.
    #[arg(long = "baseline-prompt", value_name = "TEXT")]
    pub(super) baseline_prompts: Vec<String>,
    /// Random interventions of the same kind and size in the held-out table; 0: none.
    #[arg(long, value_name = "N", default_value_t = RANDOM_DRAWS)]
    pub(super) random: usize,
    /// Resume from the checkpoint of an interrupted run.
    #[arg(long, conflicts_with = "fresh")]
    pub(super) resume: bool,
    /// Start again and overwrite an existing checkpoint.
    #[arg(long)]
    pub(super) fresh: bool,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 10, value_parser = at_least_one, hide_short_help = true)]
    pub(super) checkpoint_every: usize,
    /// Directory of cached activations (residual stream and reference log-probabilities of each pair), written and read.
    /// Off unless given here or in BIDPO_CACHE.
    #[arg(long, value_name = "DIR", env = "BIDPO_CACHE")]
    pub(super) cache: Option<PathBuf>,
    /// Dtype of the cached residual streams: f32, or bf16, half as large and rounded.
    #[arg(long, visible_alias = "cache-dtype", default_value = "f32", value_name = "TYPE", hide_short_help = true)]
    pub(super) cache_type: CacheType,
    /// Kernels of the forward pass: `fast` uses bidpo's where they are faster (the same arithmetic in a different reduction
    /// order; `bidpo check` measures the effect), `exact` only kernels that are bit-exact with llama_decode.
    #[arg(long, value_name = "KERNELS", default_value = "fast", hide_short_help = true)]
    pub(super) forward: Forward,
    /// Kernels of the backward pass with quantized weights: both operands rounded to bf16 where the CPU multiplies bf16
    /// (sums in f32), or f32.
    #[arg(long, value_name = "DTYPE", default_value = "bf16", hide_short_help = true)]
    pub(super) backward: Backward,
    /// Train although model and activations exceed the free memory.
    #[arg(long, hide_short_help = true)]
    pub(super) allow_swap: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

fn number(s: &str, ok: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    s.parse::<f64>().ok().filter(|&x| x.is_finite() && ok(x)).ok_or_else(|| format!("must be {what}"))
}

fn positive(s: &str) -> Result<f64, String> {
    number(s, |x| x > 0.0, "a positive number")
}

fn factor(s: &str) -> Result<f32, String> {
    s.trim().parse().ok().filter(|x: &f32| x.is_finite() && *x > 0.0).ok_or_else(|| "must be a positive number".into())
}

fn not_negative(s: &str) -> Result<f64, String> {
    number(s, |x| x >= 0.0, "zero or a positive number")
}

fn fraction(s: &str) -> Result<f64, String> {
    number(s, |x| (0.0..1.0).contains(&x), "at least 0 and below 1")
}

fn percentage(s: &str) -> Result<f64, String> {
    number(s.strip_suffix('%').unwrap_or(s), |x| x > 0.0, "a positive percentage such as 5%")
}

fn at_least_one(s: &str) -> Result<usize, String> {
    usize::from_str(s).ok().filter(|&n| n > 0).ok_or_else(|| "must be a whole number of at least 1".into())
}

impl Args {
    /// The kind with its settings.
    ///
    /// # Errors
    /// A setting that the kind does not have.
    pub(super) fn kind_spec(&self) -> anyhow::Result<KindSpec> {
        let kind = self.kind.stream();
        let sigmoid = matches!(kind, Kind::Gate | Kind::PromptGate);
        ensure!(sigmoid || self.tau.is_none(), "--tau belongs to gate and prompt-gate, not to kind {}", self.kind);
        ensure!(
            kind == Kind::PromptGate || self.decided_by.is_none(),
            "--decided-by belongs to prompt-gate, not to kind {}",
            self.kind
        );
        ensure!(
            kind == Kind::LowRank || self.kind.is_lora() || self.rank.is_none(),
            "--rank belongs to lowrank and lora, not to kind {}",
            self.kind
        );
        ensure!(
            self.objective == Objective::Simpo || self.gamma.is_none(),
            "--gamma belongs to simpo, not to objective {}",
            self.objective
        );
        ensure!(
            self.objective == Objective::Reps || self.factors.is_empty(),
            "--factors belongs to reps, not to objective {}",
            self.objective
        );
        let default = KindSpec::default();
        Ok(KindSpec {
            kind,
            tau: self.tau.unwrap_or(default.tau),
            mean: self.decided_by.as_deref() == Some("mean"),
            rank: self.rank.filter(|_| !self.kind.is_lora()).unwrap_or(default.rank),
        })
    }

    fn beta(&self) -> f64 {
        self.beta.unwrap_or(self.objective.default_beta())
    }

    pub(super) fn config(
        &self,
        layers: Layers,
        kind: KindSpec,
        lora: Option<LoraSpec>,
        init: Option<Init>,
    ) -> TrainConfig {
        TrainConfig {
            layers,
            kind,
            lora,
            init,
            scope: self.scope.clone(),
            objective: self.objective,
            beta: self.beta(),
            gamma: self.gamma.unwrap_or(self.beta() / 2.0),
            factors: if self.factors.is_empty() { Objective::FACTORS.to_vec() } else { self.factors.clone() },
            retain: self.retain.as_ref().map(|_| Retain {
                weight: self.retain_weight.unwrap_or(Retain::WEIGHT),
                budget: self.retain_kl,
                texts: self.retain_batch,
            }),
            // With an adapter a number is that of its matrices.
            learning_rate: match self.lr {
                LearningRate::Absolute(_) if self.kind.is_lora() => LearningRate::Auto,
                lr => lr,
            },
            schedule: self.schedule,
            warmup_ratio: self.warmup,
            weight_decay: self.weight_decay,
            precision: Precision { forward: self.forward, backward: self.backward },
            batch: self.batch,
            budget: self.steps.map_or(TrainingBudget::Epochs(self.epochs), TrainingBudget::Steps),
            seed: self.seed,
            max_grad_norm: self.clip,
            patience: self.patience,
            choose_by: self.choose_by,
            renorm: self.renorm,
            checkpoint_every: self.checkpoint_every,
            allow_swap: self.allow_swap,
        }
    }

    pub(super) fn held_out(&self) -> HeldOutFractions {
        HeldOutFractions { valid: self.val, test: self.test }
    }
}
