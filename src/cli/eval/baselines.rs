//! The conditions of a run: the vector, and what it has to be measured against.

use super::common::{PromptArgs, file_name};
use crate::cli::steering::SteeringArgs;
use anyhow::Context as _;
use bidpo::data::{Message, Prompt};
use bidpo::eval::benchmark::{Benchmark, Item};
use bidpo::eval::caa::mean_difference;
use bidpo::eval::condition::{Condition, STEERED, flipped, layers_of, random, same_length};
use bidpo::eval::prompt::{Change, Preset, Style};
use bidpo::files::sha256_of_file;
use bidpo::layers::Layers;
use bidpo::llama::Model;
use bidpo::steer::{ControlVector, Convention};
use serde_json::{Value, json};
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

/// The vector that was asked for.
pub struct Steered {
    /// `None` at scale 0.
    pub control: Option<ControlVector>,
    /// What the manifest says of it.
    pub facts: Value,
}

/// Loads the vectors of the command line; `None` where there are none.
pub fn steered(args: &SteeringArgs, model: &Arc<Model>, n_threads: u32) -> anyhow::Result<Option<Steered>> {
    let steering = args.load(model, n_threads)?;
    if steering.dials.is_empty() {
        return Ok(None);
    }
    let mut vectors = Vec::new();
    for (i, (path, dial)) in args.vectors.iter().zip(&steering.dials).enumerate() {
        let mut facts = json!({
            "file": file_name(path),
            "sha256": sha256_of_file(path).with_context(|| path.display().to_string())?,
            "scale": dial.scale,
            "percent_of_residual_norm": dial.vector.percent_of_scale(dial.scale),
        });
        if args.convention(i) != Convention::Output {
            facts["convention"] = json!(args.convention(i).to_string());
        }
        vectors.push(facts);
    }
    let control = steering.control_vector(model)?;
    let layers = control.as_ref().and_then(|c| Layers::new(layers_of(c, model.n_embd())).ok());
    Ok(Some(Steered { control, facts: json!({ "vectors": vectors, "layers": layers.map(|l| l.to_string()) }) }))
}

/// The conditions that need nothing but the vector.
pub fn of_vector(steered: Option<&Steered>, wanted: &[Baseline], model: &Model, seed: u64) -> Vec<Condition> {
    let mut out = Vec::new();
    if wanted.contains(&Baseline::Unsteered) || steered.is_none() {
        out.push(Condition::unsteered());
    }
    let Some(steered) = steered else { return out };
    let new = |name: &str, kind: &str, control: Option<ControlVector>, facts: Value| {
        Condition::new(name, kind, control, Change::default(), facts)
    };
    out.push(new(STEERED, "steered", steered.control.clone(), steered.facts.clone()));
    let Some(control) = &steered.control else { return out };
    if wanted.contains(&Baseline::Flipped) {
        out.push(new("sign flipped", "flipped", Some(flipped(control)), Value::Null));
    }
    if wanted.contains(&Baseline::Random) {
        out.push(new("random vector", "random", Some(random(control, model.n_embd(), seed)), json!({ "seed": seed })));
    }
    out
}

/// The conditions of a multiple-choice run, and notes on those that had to be left out.
#[allow(clippy::too_many_arguments, reason = "each is one independent part of the run")]
pub fn conditions(
    steered: Option<&Steered>,
    wanted: &[Baseline],
    prompt: &PromptArgs,
    model: &Arc<Model>,
    style: &Style,
    benchmark: &Benchmark,
    train: Option<&Benchmark>,
    n_threads: u32,
) -> anyhow::Result<(Vec<Condition>, Vec<String>)> {
    let mut out = of_vector(steered, wanted, model, style.seed);
    let mut notes = Vec::new();
    let control = steered.and_then(|s| s.control.as_ref());
    if wanted.contains(&Baseline::Caa)
        && let Some(control) = control
    {
        match train {
            Some(train) => {
                let layers = layers_of(control, model.n_embd());
                eprintln!("Mean difference of activations on {} training items ...", train.items.len());
                let (direction, n) = mean_difference(model, train, style, &layers, n_threads)?;
                let control = same_length(control, model.n_embd(), &direction);
                let facts = json!({ "training_items": n });
                out.push(Condition::new("mean difference (CAA)", "caa", Some(control), Change::default(), facts));
            }
            None => notes.push("the mean difference (CAA)".to_owned()),
        }
    }
    let prompted = |name: &str, kind: &str, change: Change| Condition::new(name, kind, None, change, Value::Null);
    if wanted.contains(&Baseline::System) {
        let system = prompt.system.trim().to_owned();
        let refused = match &style.preset {
            Preset::Chat(template) => {
                let chat = Prompt::Messages(vec![Message::system(&system), Message::user("x")]);
                template.encode_prompt(model, &chat).err()
            }
            Preset::Plain { .. } => None,
        };
        match refused {
            None => out.push(prompted("system prompt", "system", Change { system: Some(system), ..Change::default() })),
            Some(error) => eprintln!("bidpo: the system prompt is left out: {error}"),
        }
    }
    if wanted.contains(&Baseline::Shots) {
        match train {
            Some(train) => {
                let shots = fitting_shots(model, style, benchmark, train, prompt.shots as usize)?;
                if shots.len() < (prompt.shots as usize).min(train.items.len()) {
                    eprintln!("{} solved examples fit the model's context, not {}.", shots.len(), prompt.shots);
                }
                if !shots.is_empty() {
                    let name = format!("{} solved examples", shots.len());
                    out.push(prompted(&name, "shots", Change { shots, ..Change::default() }));
                }
            }
            None => notes.push("solved training items in the prompt".to_owned()),
        }
    }
    if wanted.contains(&Baseline::Hidden) {
        out.push(prompted("question hidden", "hidden", Change { hide_question: true, ..Change::default() }));
    }
    Ok((out, notes))
}

/// The first training items, as many as are asked for and fit the context before the longest item.
fn fitting_shots(
    model: &Arc<Model>,
    style: &Style,
    benchmark: &Benchmark,
    train: &Benchmark,
    wanted: usize,
) -> anyhow::Result<Vec<Item>> {
    // The longest by characters are among the longest by tokens.
    let mut longest: Vec<usize> = (0..benchmark.items.len()).collect();
    let size = |i: &usize| {
        let item = &benchmark.items[*i];
        let answers = item.answers.iter().map(|a| a.text.len());
        item.question.len() + if style.protocol.shows_options() { answers.sum() } else { answers.max().unwrap_or(0) }
    };
    longest.sort_by_key(|i| std::cmp::Reverse(size(i)));
    longest.truncate(8);
    let longest: Vec<usize> = longest.into_iter().filter(|&i| benchmark.items[i].group == 0).collect();
    // Tokens of the longest whole prompt with k examples.
    let tokens = |k: usize| -> anyhow::Result<usize> {
        let change = Change { shots: train.items[..k].to_vec(), ..Change::default() };
        let (prompts, _) = style.prompts(model, benchmark, 0, &longest, &change)?;
        let requests = prompts.tokens(model)?;
        let whole = requests.iter().map(|r| r.context.len() + r.answers.iter().map(Vec::len).max().unwrap_or(0));
        Ok(whole.max().unwrap_or(0))
    };
    // A little room: other items may be a few tokens longer.
    let limit = model.n_ctx_train().saturating_sub(16);
    let (mut fits, mut too_many) = (0, wanted.min(train.items.len()) + 1);
    while too_many - fits > 1 {
        let k = if fits == 0 && too_many == wanted.min(train.items.len()) + 1 {
            too_many - 1
        } else {
            (fits + too_many) / 2
        };
        // A context that the tokenizer or the scorer refuses as too long does not fit either.
        match tokens(k) {
            Ok(n) if n <= limit => fits = k,
            Ok(_) => too_many = k,
            Err(error) if error.to_string().contains("the model was trained for") => too_many = k,
            Err(error) => return Err(error),
        }
    }
    Ok(train.items[..fits].to_vec())
}
