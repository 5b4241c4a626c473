//! Flags that benchmarks share: the run, the prompt, the items.

use super::ModelArgs;
use super::steering::SteeringArgs;
use super::template::{VariableArgs, say_notes};
use anyhow::{Context as _, bail, ensure};
use bidpo_core::data::{ChatTemplate, Part, Prompt, TemplateChoice, Think};
use bidpo_core::eval::conditions::{BUILTIN_SYSTEM_PROMPTS, Baseline, OtherVector, SystemPrompts};
use bidpo_core::eval::items::{ItemSelection, Protocol};
use bidpo_core::eval::prompt::{Preset, Style};
use bidpo_core::eval::results::Shard;
use bidpo_core::eval::truthfulqa::qa_preamble;
use ggml_grad::files::{check_writable, display_name};
use ggml_grad::llama::Model;
use std::path::{Path, PathBuf};

/// A baseline, by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BaselineName {
    /// The model without the vector.
    Unsteered,
    /// The negated vector (scale -1).
    #[value(alias = "flipped")]
    Negated,
    /// Norm-matched random vectors (--random of them).
    Random,
    /// The mean difference of activations on the training items (CAA), norm-matched. Needs --split.
    Caa,
    /// System prompts, no vector.
    System,
    /// Few-shot: solved training items in the prompt, no vector. Needs --split.
    #[value(alias = "shots")]
    FewShot,
    /// The answers without their question, no vector.
    #[value(alias = "hidden")]
    ChoicesOnly,
    /// The answers without their question, with the vector: what the vector gains there it gains by the answers' wording.
    HiddenSteered,
    /// The answers under another item's question, no vector.
    Swapped,
    /// The answers under another item's question, with the vector.
    SwappedSteered,
    /// None of them.
    None,
}

impl BaselineName {
    /// The library's baseline; `None` for none.
    fn baseline(self) -> Option<Baseline> {
        Some(match self {
            Self::Unsteered => Baseline::Unsteered,
            Self::Negated => Baseline::Negated,
            Self::Random => Baseline::Random,
            Self::Caa => Baseline::MeanDifference,
            Self::System => Baseline::System,
            Self::FewShot => Baseline::FewShot,
            Self::ChoicesOnly => Baseline::ChoicesOnly,
            Self::HiddenSteered => Baseline::ChoicesOnlySteered,
            Self::Swapped => Baseline::Swapped,
            Self::SwappedSteered => Baseline::SwappedSteered,
            Self::None => return None,
        })
    }
}

/// Options of every benchmark.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub steering: SteeringArgs,
    /// Baselines to measure with the vector [default: all that apply]. A condition costs as much as `steered` does; a random
    /// vector, a system prompt and a second vector are one condition each, and few-shot examples cost what they are long.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    pub baselines: Option<Vec<BaselineName>>,
    /// A second vector to measure next to --vector, under this name: dpo=other.gguf. It is applied at the steered layers,
    /// rescaled to the norm of --vector there (a vector of one layer is moved); FILE:SCALE skips the rescaling and
    /// multiplies the vector by SCALE.
    #[arg(long, value_name = "NAME=FILE.gguf[:SCALE]", requires = "vectors")]
    pub compare: Vec<OtherVector>,
    /// Random vectors of the baseline `random`: the vector's rank among them says more than one draw.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "vectors",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub random: u32,
    /// Only the first N items.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Seed of random vectors, of option permutations and of the questions of other items.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write the results to this file, or into this directory: a manifest, then one line for each item and condition. The
    /// same command resumes an interrupted run.
    #[arg(long, short = 'o', value_name = "FILE.jsonl|DIR")]
    pub out: Option<PathBuf>,
    /// Measure only every n-th item, starting with the i-th; `bidpo report` merges the shards.
    #[arg(long, value_name = "i/n", requires = "out")]
    pub shard: Option<Shard>,
    /// Print the results as one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl RunArgs {
    /// The results file that --out names.
    pub fn out_file(&self) -> Option<PathBuf> {
        let out = self.out.as_ref()?;
        if out.extension().is_some_and(|e| e == "jsonl") && !out.is_dir() {
            return Some(out.clone());
        }
        let name = match self.shard.filter(|s| *s != Shard::WHOLE) {
            Some(s) => format!("shard-{}-of-{}.jsonl", s.number, s.of),
            None => "results.jsonl".into(),
        };
        Some(out.join(name))
    }

    /// Checks before any long work that --out can be written.
    pub fn check_out(&self) -> anyhow::Result<()> {
        let (Some(out), Some(file)) = (&self.out, self.out_file()) else { return Ok(()) };
        if *out != file {
            std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder --out {}", out.display()))?;
        }
        check_writable(&file).with_context(|| format!("cannot write --out {}", file.display()))
    }

    /// The baselines that were asked for; by default `possible` with a vector, and the unsteered model without one.
    pub fn wanted(&self, steered: bool, possible: &[Baseline]) -> anyhow::Result<Vec<Baseline>> {
        if let (false, Some(name)) = (steered, self.refused_baseline(Baseline::needs_a_vector)) {
            bail!("--baselines {name} is made from a vector: give one with --vector, or an adapter with --lora");
        }
        Ok(match &self.baselines {
            Some(list) => list.iter().filter_map(|b| b.baseline()).collect(),
            None if steered => possible.to_vec(),
            None => vec![Baseline::Unsteered],
        })
    }

    /// The first of --baselines for which `refused` holds, as it is written.
    pub fn refused_baseline(&self, refused: impl Fn(Baseline) -> bool) -> Option<String> {
        use clap::ValueEnum as _;
        let name = self.baselines.iter().flatten().find(|b| b.baseline().is_some_and(&refused))?;
        name.to_possible_value().map(|v| v.get_name().to_owned())
    }
}

/// Options about the prompt.
#[derive(Debug, clap::Args)]
pub struct PromptArgs {
    /// Text around a question: qa (the reference's six pairs of TruthfulQA), none, chat (the model's chat template), or a
    /// text file with a preamble [default: qa for TruthfulQA without options, none otherwise].
    #[arg(long, alias = "preamble", value_name = "qa|none|chat|FILE")]
    pub prompt: Option<String>,
    /// Chat format under --prompt chat: auto (the model's own), chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a
    /// Jinja file [default: auto].
    #[arg(long, value_name = "T")]
    pub template: Option<TemplateChoice>,
    #[command(flatten)]
    pub variables: VariableArgs,
    /// Thoughts in answers that are scored: auto (as finished chats of the template hold the answer: after an empty thought or
    /// none), skip (the same, and a thought that an answer brings along is left out), keep (after the generation prompt as it
    /// stands, for answers that begin with the thought) [default: auto].
    #[arg(long, value_name = "auto|skip|keep")]
    pub think: Option<Think>,
    /// Text of the baseline `system`, in place of the six built-in ones; may be given several times. Of several the best on
    /// the validation part of --split is measured; without one all are, and none is called the best.
    #[arg(long, value_name = "TEXT")]
    pub system: Vec<String>,
    /// A text file of system prompts, one a line.
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    pub system_prompts: Option<PathBuf>,
    /// Solved training items of the baseline `few-shot`, fewer where the context is full [default: as many as the vector saw
    /// training pairs]. Every item is read after them: some two hundred cost several times the other conditions.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub shots: Option<u32>,
    /// Use only the first N training items of the split for the baselines: the number that the vector was trained on, if
    /// that was fewer than all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub train_limit: Option<u32>,
}

/// A preset whose text is read before the model is loaded.
#[derive(Debug)]
pub enum Preamble {
    Plain { name: String, text: String },
    Chat,
}

impl PromptArgs {
    /// Texts of the baseline `system`: --system, the lines of --system-prompts, or the first `n` built-in ones.
    pub fn systems(&self, n: usize) -> anyhow::Result<SystemPrompts> {
        let texts = match &self.system_prompts {
            None if self.system.is_empty() => BUILTIN_SYSTEM_PROMPTS.iter().take(n).map(|s| (*s).to_owned()).collect(),
            None => self.system.clone(),
            Some(file) => {
                let text = ggml_grad::files::read_text(file)
                    .with_context(|| format!("--system-prompts {}: it cannot be read as text", file.display()))?;
                text.strip_prefix('\u{feff}').unwrap_or(&text).lines().map(str::to_owned).collect()
            }
        };
        let texts: Vec<String> = texts.iter().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
        let source = self.system_prompts.as_ref().map_or("--system".into(), |f| f.display().to_string());
        ensure!(!texts.is_empty(), "{source}: there is no system prompt in it; write one a line");
        if let Some(twice) = texts.iter().enumerate().find_map(|(i, t)| texts[..i].contains(t).then_some(t)) {
            bail!("{source}: the system prompt {twice:?} is there twice; leave one out");
        }
        Ok(SystemPrompts::new(texts))
    }

    /// Refuses flags about training items where there are none.
    pub fn refuse_without_training_items(&self, why: &str) -> anyhow::Result<()> {
        ensure!(self.train_limit.is_none(), "--train-limit: {why}");
        ensure!(self.shots.is_none(), "--shots: {why}");
        Ok(())
    }

    /// The preset's text: --prompt, or `default`.
    pub fn preamble(&self, default: &str) -> anyhow::Result<Preamble> {
        Preamble::named(self.prompt.as_deref().unwrap_or(default))
    }

    /// The prompts of a run on a loaded model.
    pub fn style(
        &self,
        preamble: Preamble,
        form: &str,
        protocol: Protocol,
        seed: u64,
        model: &Model,
    ) -> anyhow::Result<Style> {
        let preset = match preamble {
            Preamble::Plain { name, .. } if self.template.is_some() => {
                bail!("--template: the prompt is {name}, which has no chat format; give --prompt chat")
            }
            Preamble::Plain { name, .. } if self.think.is_some() || !self.variables.set.is_empty() => {
                let flag = if self.think.is_some() { "--think" } else { "--template-set" };
                bail!("{flag}: the prompt is {name}, which has no chat format; give --prompt chat")
            }
            Preamble::Plain { name, text } => Preset::Plain { name, preamble: text },
            Preamble::Chat => {
                let choice = self.template.as_ref().unwrap_or(&TemplateChoice::Auto);
                let settings = self.variables.settings(self.think.unwrap_or_default());
                let template = ChatTemplate::with_settings(model, choice, &settings)?;
                if template.is_none() {
                    bail!(
                        "--prompt chat: {} carries no chat template; name one with --template, or use --prompt none",
                        model.path().display()
                    );
                }
                if let Some(notice) = template.notice() {
                    eprintln!("note: {notice}");
                }
                // What is done to each answer is done to this one.
                template.encode_answers(model, &Prompt::Text("Q".into()), &["A"])?;
                say_notes(&template, 0);
                Preset::Chat(Box::new(template))
            }
        };
        Ok(Style { preset, form: form.to_owned(), protocol, seed })
    }
}

impl Preamble {
    /// qa, none, chat, or a text file.
    pub fn named(name: &str) -> anyhow::Result<Preamble> {
        let plain = |text: String| Ok(Preamble::Plain { name: name.to_owned(), text });
        match name {
            "qa" => plain(qa_preamble()),
            "none" => plain(String::new()),
            "chat" => Ok(Preamble::Chat),
            file => {
                let text = ggml_grad::files::read_text(std::path::Path::new(file)).with_context(|| {
                    format!("--prompt {file}: neither qa, none, chat nor a text file that can be read")
                })?;
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end();
                if text.is_empty() {
                    bail!("--prompt {file}: the file is empty; use --prompt none for no preamble");
                }
                Ok(Preamble::Plain { name: display_name(Path::new(file)), text: text.to_owned() })
            }
        }
    }
}

/// A question's form as a flag gives it, `\n` for a new line and `{question}` in it; `default` without the flag. A chat has no
/// form.
pub fn question_form(flag: Option<&str>, default: &str, preset: &str) -> anyhow::Result<String> {
    let Some(flag) = flag else { return Ok(default.to_owned()) };
    ensure!(flag.contains("{question}"), "--prompt-format {flag:?} does not hold {{question}}");
    ensure!(
        preset != "chat",
        "--prompt-format: under --prompt chat the question is the user's message and has no other form; give --prompt none"
    );
    Ok(flag.replace("\\n", "\n"))
}

/// Options about which items.
#[derive(Debug, clap::Args)]
pub struct SplitArgs {
    /// A split of the data (`bidpo data split`): measure one part of it, and take training items for the baselines from
    /// its training part.
    #[arg(long, value_name = "FILE.json")]
    pub split: Option<PathBuf>,
    /// Part of the split to measure.
    #[arg(long, value_enum, default_value = "test", requires = "split")]
    pub part: PartName,
}

impl SplitArgs {
    /// The items of the part, the first `limit` of them; of all `n` items without a split.
    pub fn select(&self, limit: Option<u32>, n: usize, data_sha256: &str) -> anyhow::Result<ItemSelection> {
        Ok(match &self.split {
            Some(split) => ItemSelection::of_part(split, self.part.into(), limit, n, data_sha256)?,
            None => ItemSelection::all(n, limit),
        })
    }
}

/// A part of a split.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum PartName {
    /// Training items.
    Train,
    /// Validation items, to choose configurations by.
    Valid,
    /// Test items, to report on.
    Test,
}

impl From<PartName> for Part {
    fn from(name: PartName) -> Self {
        match name {
            PartName::Train => Self::Train,
            PartName::Valid => Self::Valid,
            PartName::Test => Self::Test,
        }
    }
}
