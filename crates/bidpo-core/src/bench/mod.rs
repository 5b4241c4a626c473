//! Speed. Every figure is a ratio to llama.cpp itself (or to another reference), both measured in turns in one
//! run on this machine.

mod busy;
mod children;
mod clock;
mod error;
mod generate;
mod kinds;
mod limits;
mod line;
mod pairs;
mod passes;
mod peer;
mod prefill;
mod report;
mod step;
mod truthfulqa;

pub use clock::{Rounds, Spread, alternate};
pub use error::BenchError;
pub use line::{Line, Measured, Name, Outcome, Verdict};
pub use pairs::{N_PAIRS, PairFile, pairs, write_pairs};
pub use prefill::Prefill;
pub use report::{ModelReport, OpTime, Split, Threads};

use crate::check::middle_layer;
use crate::data::{ChatTemplate, TemplateChoice, TokenizedPair};
use crate::engine::check_model;
use ggml_grad::llama::{Model, ModelParams};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Settings of a benchmark.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Steered layer; the middle one if not given.
    pub layer: Option<usize>,
    /// Threads of both sides.
    pub threads: u32,
    /// Rounds: measurements of each side.
    pub rounds: NonZeroUsize,
    /// The lines to measure.
    pub only: Vec<Name>,
    /// mc_task.json or TruthfulQA.csv.
    pub truthfulqa: Option<PathBuf>,
    /// Number of its questions.
    pub questions: usize,
    /// Result of benches/peers.
    pub pytorch: Option<PathBuf>,
    /// A Python with what benches/peers installs: PyTorch's step is then measured in turns with ours.
    pub pytorch_python: Option<PathBuf>,
    /// The bidpo program, for what is measured in processes of its own.
    pub program: PathBuf,
}

/// A model with all that its measurements share.
struct Subject<'a> {
    model: Arc<Model>,
    template: ChatTemplate,
    pairs: Vec<TokenizedPair>,
    layer: usize,
    settings: &'a Settings,
    /// Speaks of what goes on.
    say: &'a mut dyn FnMut(&str),
}

/// Measures one model. `say` is told what is being measured.
///
/// # Errors
/// [`BenchError`].
pub fn bench(path: &Path, settings: &Settings, say: &mut dyn FnMut(&str)) -> Result<ModelReport, BenchError> {
    let model = Model::load(path, &ModelParams::default())?;
    let layer = settings.layer.unwrap_or_else(|| middle_layer(&model));
    check_model(&model, layer)?;
    let template = ChatTemplate::new(&model, &TemplateChoice::Auto)?;
    let pairs = pairs(&model, &template)?;
    let mut subject = Subject { model, template, pairs, layer, settings, say };
    let mut report = ModelReport::new(&subject.model, layer, settings.threads, &subject.pairs);
    let wants = |name: Name| settings.only.contains(&name);

    if [Name::Step, Name::Capture, Name::Extract, Name::Truthfulqa].into_iter().any(wants) {
        let mut prefill = Prefill::new(&subject.model, settings.threads)?;
        if wants(Name::Step) {
            let (line, split) = step::against_prefill(&mut subject, &mut prefill)?;
            report.lines.push(line);
            report.split = Some(split);
        }
        if wants(Name::Capture) {
            report.lines.push(passes::capture(&mut subject, &mut prefill)?);
        }
        if wants(Name::Extract) {
            report.lines.push(passes::extract(&mut subject, &mut prefill)?);
        }
        if wants(Name::Truthfulqa) {
            report.lines.push(truthfulqa::line(&mut subject, &mut prefill)?);
        }
    }
    if wants(Name::Generate) {
        report.lines.push(generate::line(&mut subject)?);
    }
    if wants(Name::Memory) {
        report.lines.push(children::memory(&mut subject, Name::Memory)?);
    }
    if wants(Name::LoraMemory) {
        report.lines.push(children::memory(&mut subject, Name::LoraMemory)?);
    }
    if wants(Name::Start) {
        report.lines.push(children::start(&mut subject)?);
    }
    if wants(Name::Busy) {
        report.lines.push(busy::step(&mut subject)?);
    }
    if wants(Name::Together) {
        report.lines.push(busy::together(&mut subject)?);
    }
    report.lines.extend(kinds::lines(&mut subject)?);
    if wants(Name::Pytorch) {
        report.lines.push(step::against_pytorch(&mut subject, None)?);
    }
    if wants(Name::PytorchLora) {
        report.lines.push(step::against_pytorch(&mut subject, Some(kinds::RANK))?);
    }
    if wants(Name::Threads) {
        report.threads = Some(step::threads(&mut subject)?);
    }
    Ok(report)
}

impl Subject<'_> {
    fn say(&mut self, text: &str) {
        (self.say)(text);
    }

    fn unique_tokens(&self) -> usize {
        self.pairs.iter().map(TokenizedPair::n_tokens).sum()
    }
}
