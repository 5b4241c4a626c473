//! The conditions of a run: the vector, and what it has to be measured against.

use super::common::{PromptArgs, file_name};
use crate::args::steering::SteeringArgs;
use anyhow::{Context as _, ensure};
use bidpo_core::data::{Message, Prompt};
use bidpo_core::eval::conditions::caa::mean_difference;
use bidpo_core::eval::conditions::condition::{Condition, STEERED, UNSTEERED, layers_of, same_length};
use bidpo_core::eval::items::Benchmark;
use bidpo_core::eval::prompt::{self, Preset, Style, fitting_shots};
use bidpo_core::eval::results::{ConditionKind, VectorFacts};
use bidpo_core::eval::sweep::direction;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ControlVector, Convention, ScaledVector, SteeringVector, TRAINING_CURVE, combine, warnings};
use ggml_grad::files::sha256_of_file;
use ggml_grad::llama::Model;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What a vector is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Baseline {
    /// The model without the vector.
    Unsteered,
    /// The vector with its sign turned.
    Flipped,
    /// A random vector of equal length.
    Random,
    /// The mean difference of activations on the training items (CAA), at equal length. Needs --split.
    Caa,
    /// A system prompt, no vector.
    System,
    /// Solved training items in the prompt, no vector. Needs --split.
    Shots,
    /// The answers without their question, no vector.
    Hidden,
    /// None of them.
    None,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Unsteered, Self::Flipped, Self::Random, Self::Caa, Self::System, Self::Shots, Self::Hidden];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsteered => "unsteered",
            Self::Flipped => "flipped",
            Self::Random => "random",
            Self::Caa => "caa",
            Self::System => "system",
            Self::Shots => "shots",
            Self::Hidden => "hidden",
            Self::None => "none",
        }
    }

    /// True for those that are another prompt, not another vector.
    pub fn changes_the_prompt(self) -> bool {
        matches!(self, Self::System | Self::Shots | Self::Hidden)
    }
}

/// A further vector, by name: `dpo=other.gguf`, `dpo=other.gguf:1.5`.
#[derive(Debug, Clone, PartialEq)]
pub struct Compare {
    /// What it is called in the tables.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Factor on it; without one it is brought to the steered vector's length.
    pub scale: Option<f32>,
}

impl FromStr for Compare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} names no further vector: write NAME=FILE.gguf or NAME=FILE.gguf:SCALE");
        let (name, file) = text.split_once('=').ok_or_else(bad)?;
        let (name, file) = (name.trim(), file.trim());
        // A colon may stand in a path too: behind the last one only a number is a scale.
        let (path, scale) = match file.rsplit_once(':') {
            Some((path, scale)) if scale.parse::<f32>().is_ok_and(f32::is_finite) => (path, scale.parse().ok()),
            _ => (file, None),
        };
        if name.is_empty() || path.is_empty() || [STEERED, UNSTEERED].contains(&name) {
            return Err(bad());
        }
        Ok(Self { name: name.into(), path: path.into(), scale })
    }
}

impl Compare {
    /// Its condition beside a vector that adds `control`.
    fn condition(&self, control: &ControlVector, model: &Model) -> anyhow::Result<Condition> {
        let place = || self.path.display().to_string();
        let vector = SteeringVector::load(&self.path)?;
        for warning in warnings(&vector, model) {
            eprintln!("bidpo: warning: {}: {warning}", place());
        }
        let n_embd = model.n_embd();
        let added = match self.scale {
            Some(scale) => {
                let dial = ScaledVector { name: self.name.clone(), vector: Arc::new(vector), scale };
                combine(&[dial], None, model)?
            }
            None => {
                ensure!(
                    vector.n_embd() == n_embd,
                    "{}: its directions have {} numbers, this model needs {n_embd}",
                    place(),
                    vector.n_embd()
                );
                let at = |&l: &usize| direction(&vector, l).map(|(d, _)| (l, d.clone()));
                let directions =
                    layers_of(control, n_embd).iter().map(at).collect::<Result<_, _>>().with_context(place)?;
                Some(same_length(control, n_embd, &directions))
            }
        };
        let kind = ConditionKind::OtherVector {
            file: file_name(&self.path),
            sha256: sha256_of_file(&self.path).with_context(place)?,
            scale: self.scale.map(f64::from),
            length: if self.scale.is_some() { "as in the file, times the scale" } else { "the steered vector's" }
                .into(),
        };
        Ok(Condition::new(&self.name, kind, added))
    }
}

/// The vector that was asked for.
pub struct Steered {
    /// `None` at scale 0.
    pub control: Option<ControlVector>,
    /// [`ConditionKind::Steered`]: the files, the layers.
    pub kind: ConditionKind,
}

/// What a manifest says of a vector that is used; its training losses too, where the file has them.
pub fn vector_facts(
    path: &Path,
    sha256: &str,
    scale: f64,
    percent: Option<f64>,
    vector: &SteeringVector,
) -> VectorFacts {
    VectorFacts {
        file: file_name(path),
        sha256: sha256.to_owned(),
        scale,
        percent_of_residual_norm: percent,
        training_curve: vector.provenance.str(TRAINING_CURVE).and_then(|c| serde_json::from_str(c).ok()),
        convention: None,
        other: serde_json::Map::new(),
    }
}

/// Loads the vectors of the command line; `None` where there are none.
pub fn steered(args: &SteeringArgs, model: &Arc<Model>, n_threads: u32) -> anyhow::Result<Option<Steered>> {
    let steering = args.load(model, n_threads)?;
    if steering.dials.is_empty() {
        return Ok(None);
    }
    let mut vectors = Vec::new();
    for (i, (path, dial)) in args.vectors.iter().zip(&steering.dials).enumerate() {
        let sha256 = sha256_of_file(path).with_context(|| path.display().to_string())?;
        let percent = dial.vector.percent_of_scale(dial.scale);
        let mut facts = vector_facts(path, &sha256, f64::from(dial.scale), percent, &dial.vector);
        if args.convention(i) != Convention::Output {
            facts.convention = Some(args.convention(i).to_string());
        }
        vectors.push(facts);
    }
    let control = steering.control_vector(model)?;
    let layers = control.as_ref().and_then(|c| Layers::new(layers_of(c, model.n_embd())).ok());
    Ok(Some(Steered { control, kind: ConditionKind::Steered { vectors, layers, chosen_on: None } }))
}

/// The conditions that need nothing but the vector.
pub fn of_vector(steered: Option<&Steered>, wanted: &[Baseline], model: &Model, seed: u64) -> Vec<Condition> {
    let mut out = Vec::new();
    if wanted.contains(&Baseline::Unsteered) || steered.is_none() {
        out.push(Condition::unsteered());
    }
    let Some(steered) = steered else { return out };
    out.push(Condition::new(STEERED, steered.kind.clone(), steered.control.clone()));
    let Some(control) = &steered.control else { return out };
    if wanted.contains(&Baseline::Flipped) {
        out.push(Condition::negated(control));
    }
    if wanted.contains(&Baseline::Random) {
        out.push(Condition::random(control, model.n_embd(), seed));
    }
    out
}

/// The conditions of a multiple-choice run, and notes on those that had to be left out.
#[allow(clippy::too_many_arguments, reason = "each is one independent part of the run")]
pub fn conditions(
    steered: Option<&Steered>,
    wanted: &[Baseline],
    prompts: &PromptArgs,
    model: &Arc<Model>,
    style: &Style,
    benchmark: &Benchmark,
    train: Option<&Benchmark>,
    compare: &[Compare],
    n_threads: u32,
) -> anyhow::Result<(Vec<Condition>, Vec<String>)> {
    let mut out = of_vector(steered, wanted, model, style.seed);
    let mut without_items = Vec::new();
    let control = steered.and_then(|s| s.control.as_ref());
    if let Some(control) = control {
        for other in compare {
            out.push(other.condition(control, model)?);
        }
    }
    if wanted.contains(&Baseline::Caa)
        && let Some(control) = control
    {
        match train {
            Some(train) => {
                let layers = layers_of(control, model.n_embd());
                eprintln!("Mean difference of activations on {} training items ...", train.items.len());
                let (direction, n) = mean_difference(model, train, style, &layers, n_threads)?;
                let control = same_length(control, model.n_embd(), &direction);
                out.push(Condition::mean_difference(control, n));
            }
            None => without_items.push("the mean difference (CAA)"),
        }
    }
    if wanted.contains(&Baseline::System) {
        let system = prompts.system.trim().to_owned();
        let refused = match &style.preset {
            Preset::Chat(template) => {
                let chat = Prompt::Messages(vec![Message::system(&system), Message::user("x")]);
                template.encode_prompt(model, &chat).err()
            }
            Preset::Plain { .. } => None,
        };
        match refused {
            None => out.push(Condition::system_prompt(&system)),
            Some(error) => eprintln!("bidpo: the system prompt is left out: {error}"),
        }
    }
    if wanted.contains(&Baseline::Shots) {
        match train {
            Some(train) => {
                let shots = fitting_shots(model, style, benchmark, train, prompts.shots as usize)?;
                if shots.len() < (prompts.shots as usize).min(train.items.len()) {
                    eprintln!("{} solved examples fit the model's context, not {}.", shots.len(), prompts.shots);
                }
                if !shots.is_empty() {
                    out.push(Condition::few_shot(shots));
                }
            }
            None => without_items.push("solved training items in the prompt"),
        }
    }
    if wanted.contains(&Baseline::Hidden) {
        out.push(Condition::choices_only());
    }
    let mut notes = Vec::new();
    if !without_items.is_empty() {
        let names = without_items.join(" and ");
        notes.push(format!("{names}, for which --split gives training items (`bidpo data split` writes one)"));
    }
    if control.is_some() && compare.is_empty() && wanted.len() == Baseline::ALL.len() {
        notes.push(
            "a vector trained by DPO on the same pairs (`bidpo train --objective dpo`, then --compare dpo=FILE.gguf)"
                .into(),
        );
    }
    if let Some(name) =
        out.iter().enumerate().find_map(|(i, c)| out[..i].iter().any(|o| o.name == c.name).then(|| c.name.clone()))
    {
        anyhow::bail!("two conditions are called {name:?}: give --compare another name");
    }
    Ok((out, notes))
}

/// Leaves out solved examples that do not fit the context, and says where: `subject (examples left)`, which is returned too.
pub fn fit_examples(benchmark: &mut Benchmark, style: &Style, model: &Arc<Model>) -> anyhow::Result<Vec<String>> {
    let fewer = prompt::fit_examples(benchmark, style, model)?;
    if !fewer.is_empty() {
        eprintln!(
            "The model's context ({} tokens) holds fewer solved examples than asked for in: {}.",
            model.n_ctx_train(),
            fewer.join(", ")
        );
    }
    Ok(fewer)
}
