//! Baselines: the conditions that a vector is compared with.

use super::caa::{CaaError, mean_difference};
use super::condition::{Condition, STEERED, layers_of, same_length};
use super::other::{OtherVector, other_conditions};
use super::swap::swapped_places;
use super::systems::{SystemPrompts, refuses_system_prompts};
use crate::adapter::AdapterError;
use crate::data::TemplateError;
use crate::eval::items::Benchmark;
use crate::eval::prompt::{PromptError, Style, fitting_shots};
use crate::eval::results::{ConditionKind, ShotLimit, VectorFacts};
use crate::steer::{ControlVector, SteerError, SteeringVector, TRAINING_CURVE};
use ggml_grad::files::{FileError, display_name};
use ggml_grad::llama::Model;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// The model without the vector.
    Unsteered,
    /// The vector times -1.
    Negated,
    /// Random vectors with the steered vector's norm at each layer.
    Random,
    /// The mean difference of activations on the training items (CAA), rescaled to the steered vector's norm.
    MeanDifference,
    /// System prompts, no vector.
    System,
    /// Solved training items in the prompt, no vector.
    FewShot,
    /// The options without the question, no vector.
    ChoicesOnly,
    /// The options without the question, with the vector.
    ChoicesOnlySteered,
    /// The answers under another item's question, no vector.
    Swapped,
    /// The answers under another item's question, with the vector.
    SwappedSteered,
}

impl Baseline {
    /// All baselines.
    pub const ALL: [Self; 10] = [
        Self::Unsteered,
        Self::Negated,
        Self::Random,
        Self::MeanDifference,
        Self::System,
        Self::FewShot,
        Self::ChoicesOnly,
        Self::ChoicesOnlySteered,
        Self::Swapped,
        Self::SwappedSteered,
    ];

    /// True for the baselines that are another prompt.
    pub fn changes_the_prompt(self) -> bool {
        matches!(self, Self::System | Self::FewShot) || self.changes_the_question()
    }

    /// True for those that are made from the vector under test.
    pub fn needs_a_vector(self) -> bool {
        let changed = matches!(self, Self::Negated | Self::Random | Self::MeanDifference);
        changed || matches!(self, Self::ChoicesOnlySteered | Self::SwappedSteered)
    }

    /// True for those that are made from training items.
    pub fn needs_training_items(self) -> bool {
        matches!(self, Self::MeanDifference | Self::FewShot)
    }

    /// True for those that do not show the item's own question.
    pub fn changes_the_question(self) -> bool {
        matches!(self, Self::ChoicesOnly | Self::ChoicesOnlySteered | Self::Swapped | Self::SwappedSteered)
    }
}

/// The steered condition.
#[derive(Debug, Clone)]
pub struct Steered {
    /// Vectors that are added; `None` at scale 0.
    pub control: Option<ControlVector>,
    /// [`ConditionKind::Steered`]: the files, the layers.
    pub kind: ConditionKind,
    /// Pairs that the vector was trained on, where its file tells; of several vectors the largest number.
    pub training_pairs: Option<usize>,
}

/// Entry of the manifest for a vector file, with its training losses where it has them, or for an adapter.
pub fn vector_facts(
    path: &Path,
    sha256: &str,
    scale: f64,
    percent: Option<f64>,
    vector: &SteeringVector,
) -> VectorFacts {
    let mut other = serde_json::Map::new();
    if let Some(adapter) = &vector.adapter {
        other.insert("adapter".into(), serde_json::json!({ "ranks": adapter.ranks, "matrices": adapter.matrices }));
    }
    VectorFacts {
        file: display_name(path),
        sha256: sha256.to_owned(),
        scale,
        percent_of_residual_norm: percent,
        training_curve: vector.provenance.str(TRAINING_CURVE).and_then(|c| serde_json::from_str(c).ok()),
        convention: None,
        other,
    }
}

/// Errors of making the conditions of a run.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// A vector file cannot be used.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// An adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A vector does not fit.
    #[error("{path}: {source}")]
    Vector {
        /// The file.
        path: PathBuf,
        /// Reason.
        source: SteerError,
    },
    /// Its scope reads thoughts, and the template marks none.
    #[error("{path}: {source}")]
    Scope {
        /// The file.
        path: PathBuf,
        /// Reason.
        source: TemplateError,
    },
    /// A vector of another width.
    #[error("{path}: its directions have {width} components, this model needs {n_embd}")]
    Width {
        /// The file.
        path: PathBuf,
        /// Components of its directions.
        width: usize,
        /// Width of the model's residual stream.
        n_embd: usize,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The mean difference cannot be taken.
    #[error(transparent)]
    MeanDifference(#[from] CaaError),
    /// A prompt cannot be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Nothing to take the norm of a further vector from.
    #[error(
        "--compare {0:?} is rescaled to the norm of the vector under test, and there is none: an adapter has no norm, and a \
         vector at scale 0 has the norm 0. Give FILE.gguf:SCALE"
    )]
    NoNorm(String),
    /// Two conditions of one name.
    #[error("two conditions are called {0:?}: give --compare another name")]
    SameName(String),
}

/// Notices while the conditions of a run are made.
#[derive(Debug)]
pub enum BaselineNotice {
    /// Activations of so many training items are about to be read.
    MeanDifference(usize),
    /// The few-shot examples.
    Examples {
        /// Examples in the prompt.
        shots: usize,
        /// Why they are not more.
        limit: ShotLimit,
        /// Training items to take them from.
        items: usize,
    },
    /// The chat template takes no system prompt.
    NoSystemPrompt(TemplateError),
    /// A reason to doubt that a vector belongs to the model.
    Vector {
        /// The vector's file.
        path: PathBuf,
        /// The reason.
        warning: String,
    },
}

impl fmt::Display for BaselineNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MeanDifference(n) => write!(f, "Mean difference of activations on {n} training items ..."),
            Self::Examples { shots, limit, items } => {
                let why = match limit {
                    ShotLimit::Context => "no more fit the model's context",
                    ShotLimit::Asked => "--shots asks for no more",
                    ShotLimit::TrainingPairs => "the vector was trained on so many pairs",
                    ShotLimit::TrainingItems => "there are no more",
                };
                write!(f, "{shots} solved examples of {items} training items: {why}.")
            }
            Self::NoSystemPrompt(error) => write!(f, "bidpo: the system prompt is left out: {error}"),
            Self::Vector { path, warning } => write!(f, "bidpo: warning: {}: {warning}", path.display()),
        }
    }
}

/// Pairs that a vector was trained on, where its file tells.
pub fn training_pairs(vector: &SteeringVector) -> Option<usize> {
    vector.provenance.number("pairs_train").map(|n| n as usize)
}

/// Which baselines of a vector to make, and what they are made from.
#[derive(Debug)]
pub struct Baselines<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The vector under test.
    pub steered: Option<&'a Steered>,
    /// Baselines to make. Those that only a vector gives sense to are skipped without one.
    pub wanted: &'a [Baseline],
    /// Further vectors.
    pub others: &'a [OtherVector],
    /// Random vectors.
    pub n_random: usize,
    /// System prompts.
    pub systems: &'a SystemPrompts,
    /// Few-shot examples, fewer where the context is full; `None` for as many as the vector saw training pairs.
    pub n_shots: Option<usize>,
    /// Prompts of the run; its seed draws the random vectors and the questions of other items.
    pub style: &'a Style,
    /// Items to be measured.
    pub benchmark: &'a Benchmark,
    /// Training items, for the mean difference and the few-shot examples.
    pub train: Option<&'a Benchmark>,
    /// Threads.
    pub n_threads: u32,
}

/// The conditions of a run.
#[derive(Debug)]
pub struct Conditions {
    /// Conditions, in the order in which they are run.
    pub list: Vec<Condition>,
    /// Comparisons that were not possible and how to make them so, as phrases.
    pub skipped: Vec<String>,
    /// The mean difference of activations as it was taken, `[n_embd]` a layer; empty where it is not among the conditions.
    pub mean_difference: BTreeMap<usize, Vec<f32>>,
}

/// The steered condition and those of its baselines that need nothing but the vector.
pub fn vector_conditions(
    steered: Option<&Steered>,
    wanted: &[Baseline],
    n_embd: usize,
    seed: u64,
    n_random: usize,
) -> Vec<Condition> {
    let mut out = Vec::new();
    if wanted.contains(&Baseline::Unsteered) || steered.is_none() {
        out.push(Condition::unsteered());
    }
    let Some(steered) = steered else { return out };
    out.push(Condition::new(STEERED, steered.kind.clone(), steered.control.clone()));
    let Some(control) = &steered.control else { return out };
    if wanted.contains(&Baseline::Negated) {
        out.push(Condition::negated(control));
    }
    if wanted.contains(&Baseline::Random) && control.has_vectors() {
        out.extend(Condition::random(control, n_embd, seed, n_random));
    }
    out
}

/// Refuses two conditions of one name.
///
/// # Errors
/// [`BaselineError::SameName`].
pub fn unique_names(list: &[Condition]) -> Result<(), BaselineError> {
    match list.iter().enumerate().find(|(i, c)| list[..*i].iter().any(|o| o.name == c.name)) {
        Some((_, condition)) => Err(BaselineError::SameName(condition.name.clone())),
        None => Ok(()),
    }
}

impl Baselines<'_> {
    /// Makes the conditions. The mean difference runs the model on the training items.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub fn conditions(&self, notice: &mut dyn FnMut(BaselineNotice)) -> Result<Conditions, BaselineError> {
        let n_embd = self.model.n_embd();
        let mut list = vector_conditions(self.steered, self.wanted, n_embd, self.style.seed, self.n_random);
        let mut without_items = Vec::new();
        let mut direction = BTreeMap::new();
        let control = self.steered.and_then(|s| s.control.as_ref());
        // What has a vector's norm needs a vector.
        let vector = control.filter(|c| c.has_vectors());
        let template = self.style.template();
        list.extend(other_conditions(self.others, control, self.model, template, notice)?);
        if let (Some(control), true) = (vector, self.wants(Baseline::MeanDifference)) {
            match self.train {
                Some(train) => {
                    notice(BaselineNotice::MeanDifference(train.items.len()));
                    let layers = layers_of(control, n_embd);
                    let (taken, n) = mean_difference(self.model, train, self.style, &layers, self.n_threads)?;
                    list.push(Condition::mean_difference(same_length(control, n_embd, &taken), n));
                    direction = taken;
                }
                None => without_items.push("the mean difference (CAA)"),
            }
        }
        if self.wants(Baseline::System) {
            list.extend(self.system_prompts(notice));
        }
        if self.wants(Baseline::FewShot) {
            match self.train {
                Some(train) => list.extend(self.few_shot(train, notice)?),
                None => without_items.push("solved training items in the prompt"),
            }
        }
        let mut skipped = Vec::new();
        list.extend(self.other_questions(control, &mut skipped));
        if !without_items.is_empty() {
            let names = without_items.join(" and ");
            skipped.push(format!("{names}, for which --split gives training items (`bidpo data split` writes one)"));
        }
        if vector.is_some() && self.others.is_empty() && self.wanted.len() == Baseline::ALL.len() {
            skipped.push(
                "a vector trained by DPO on the same pairs (`bidpo train --objective dpo`, then --compare dpo=FILE.gguf)"
                    .into(),
            );
        }
        unique_names(&list)?;
        if control.is_some() && vector.is_none() && self.wants(Baseline::Random) {
            skipped
                .push("random vectors and the mean difference, for an adapter has no norm that they could have".into());
        }
        if self.steered.is_some() && control.is_none() && self.wanted.iter().any(|b| b.needs_a_vector()) {
            skipped.push("what is made from the vector, for its scale is 0".into());
        }
        Ok(Conditions { list, skipped, mean_difference: direction })
    }

    fn wants(&self, baseline: Baseline) -> bool {
        self.wanted.contains(&baseline)
    }

    /// The conditions in which the item's own question is not shown.
    fn other_questions(&self, control: Option<&ControlVector>, skipped: &mut Vec<String>) -> Vec<Condition> {
        let mut out = Vec::new();
        if self.wants(Baseline::ChoicesOnly) {
            out.push(Condition::choices_only());
        }
        if let (Some(control), true) = (control, self.wants(Baseline::ChoicesOnlySteered)) {
            out.push(Condition::choices_only_steered(control));
        }
        let steered = control.filter(|_| self.wants(Baseline::SwappedSteered));
        if !self.wants(Baseline::Swapped) && steered.is_none() {
            return out;
        }
        let seed = self.style.seed;
        let Some(places) = swapped_places(self.benchmark, seed) else {
            skipped.push("another item's question, for all items have the same one".into());
            return out;
        };
        if self.wants(Baseline::Swapped) {
            out.push(Condition::swapped(places.clone(), seed));
        }
        out.extend(steered.map(|control| Condition::swapped_steered(places, seed, control)));
        out
    }

    /// The system prompts, unless the chat template refuses them.
    fn system_prompts(&self, notice: &mut dyn FnMut(BaselineNotice)) -> Vec<Condition> {
        if let Some(error) = refuses_system_prompts(self.style, self.model) {
            notice(BaselineNotice::NoSystemPrompt(error));
            return Vec::new();
        }
        self.systems.conditions()
    }

    fn few_shot(
        &self,
        train: &Benchmark,
        notice: &mut dyn FnMut(BaselineNotice),
    ) -> Result<Option<Condition>, BaselineError> {
        let items = train.items.len();
        let pairs = self.steered.and_then(|s| s.training_pairs);
        let (wanted, limit) = match (self.n_shots, pairs) {
            (Some(asked), _) if asked <= items => (asked, ShotLimit::Asked),
            (None, Some(pairs)) if pairs < items => (pairs, ShotLimit::TrainingPairs),
            _ => (items, ShotLimit::TrainingItems),
        };
        let shots = fitting_shots(self.model, self.style, self.benchmark, train, wanted)?;
        let limit = if shots.len() < wanted { ShotLimit::Context } else { limit };
        notice(BaselineNotice::Examples { shots: shots.len(), limit, items });
        Ok((!shots.is_empty()).then(|| Condition::few_shot(shots, limit)))
    }
}
