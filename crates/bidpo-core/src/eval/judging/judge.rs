//! A language model as judge of the answers that a run generated.

use super::pairwise::{HELPFUL, PairwiseComparison, TRUTHFUL, matches};
use crate::data::{ChatTemplate, TemplateChoice, TemplateError};
use crate::eval::conditions::{Condition, STEERED};
use crate::eval::items::Protocol;
use crate::eval::prompt::{Preset, QUESTION_FORM, Style};
use crate::eval::results::{Manifest, Record, Run, Shard};
use crate::eval::runs::{Measurement, Pending, RunError, Runner, new_manifest};
use crate::eval::scoring::ScorerParams;
use ggml_grad::files::FileError;
use ggml_grad::llama::Model;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A judge.
#[derive(Debug)]
pub struct Judge<'a> {
    /// The model that judges.
    pub model: &'a Arc<Model>,
    /// Its chat format.
    pub template: &'a TemplateChoice,
    /// Question to the judge; absent: [`TRUTHFUL`] for TruthfulQA, [`HELPFUL`] otherwise.
    pub criterion: Option<&'a str>,
    /// Shows the judge which answers the data call true and false.
    pub references: bool,
    /// Seed for the manifest; nothing is drawn.
    pub seed: u64,
    /// Threads.
    pub n_threads: u32,
}

/// Errors of preparing a judge.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The run holds nothing to compare.
    #[error("{file}: {reason}")]
    Nothing {
        /// The results file.
        file: String,
        /// Reason.
        reason: String,
    },
    /// The judge's chat format cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The judge's file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The comparisons of a run, ready to be judged.
#[derive(Debug)]
pub struct Judging<'a> {
    /// Manifest of the judge's run.
    pub manifest: Manifest,
    model: &'a Arc<Model>,
    style: Style,
    n_threads: u32,
    comparisons: Vec<PairwiseComparison>,
}

/// The default file for the judgements of a results file: `results.judged.jsonl` for `results.jsonl`.
pub fn judged_file(results: &Path) -> PathBuf {
    results.with_extension("judged.jsonl")
}

impl<'a> Judge<'a> {
    fn style(&self) -> Result<Style, TemplateError> {
        let template = ChatTemplate::new(self.model, self.template)?;
        // A model without a template is asked in plain text.
        let preset = if template.is_none() {
            Preset::Plain { name: "none".into(), preamble: String::new() }
        } else {
            Preset::Chat(Box::new(template))
        };
        Ok(Style { preset, form: QUESTION_FORM.into(), protocol: Protocol::Judge, seed: self.seed })
    }

    /// The comparisons of a run's steered answers with those under each other condition.
    ///
    /// # Errors
    /// [`JudgeError`].
    pub fn judging(&self, run: &Run) -> Result<Judging<'a>, JudgeError> {
        let of_truthfulqa = run.manifest.protocol == Protocol::Generate.name();
        let default = if of_truthfulqa { TRUTHFUL } else { HELPFUL };
        let criterion = self.criterion.unwrap_or(default).trim();
        let references = of_truthfulqa && self.references;
        let comparisons = matches(run, criterion, references).map_err(|reason| {
            let file = run.files.first().map_or("the results".into(), |f| f.display().to_string());
            JudgeError::Nothing { file, reason }
        })?;
        let style = self.style()?;
        let base = new_manifest(self.model, self.n_threads, self.seed)?;
        let mut prompt = style.facts();
        prompt["criterion"] = json!(criterion);
        prompt["references"] = json!(references);
        prompt["same_model"] = json!(base.model.sha256 == run.manifest.model.sha256);
        let mut selection = run.manifest.selection.clone();
        selection["answers_of"] = json!({
            "model": run.manifest.model,
            "prompt": run.manifest.prompt,
            "seed": run.manifest.seed,
            "steered": run.manifest.condition(STEERED),
        });
        let manifest = Manifest {
            benchmark: run.manifest.benchmark.clone(),
            protocol: Protocol::Judge.name().into(),
            data: run.manifest.data.clone(),
            prompt,
            selection,
            items: run.manifest.items,
            conditions: comparisons.iter().map(|x| x.condition().manifest()).collect(),
            ..base
        };
        Ok(Judging { manifest, model: self.model, style, n_threads: self.n_threads, comparisons })
    }
}

impl Judging<'_> {
    /// True where the judge is the model that generated the answers.
    pub fn is_same_model(&self) -> bool {
        self.manifest.prompt["same_model"] == true
    }

    /// One condition for each comparison.
    pub fn conditions(&self) -> Vec<Condition> {
        self.comparisons.iter().map(PairwiseComparison::condition).collect()
    }
}

impl Runner for Judging<'_> {
    fn run(&self, condition: &Condition, pending: Pending<'_>) -> Result<ControlFlow<()>, RunError> {
        let Some(comparison) = self.comparisons.iter().find(|x| x.name() == condition.name) else {
            return Ok(ControlFlow::Continue(()));
        };
        let measurement = Measurement {
            model: self.model,
            benchmark: &comparison.benchmark,
            style: &self.style,
            shard: Shard::WHOLE,
            params: ScorerParams { n_threads: self.n_threads, ..ScorerParams::default() },
        };
        let as_asked = |records: Vec<Record>| records.into_iter().map(|r| comparison.record(r)).collect();
        pending.mapped(&as_asked, |pending| measurement.run(condition, pending))
    }
}
