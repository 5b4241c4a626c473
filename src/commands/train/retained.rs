//! The texts of --retain.

use super::options::Args;
use anyhow::Context as _;
use bidpo_core::data::inspect::PairText;
use bidpo_core::data::{ChatTemplate, PairGroups};
use bidpo_core::intervention::{Kind, KindSpec};
use bidpo_core::steer::ControlVector;
use bidpo_core::train::{ANSWER, NamedPair, Parts, RetainSet};
use ggml_grad::llama::Model;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Texts on which nothing should change.
pub(super) struct RetainedTexts(RetainSet);

impl RetainedTexts {
    /// Reads them; those whose prompts are trained on are counted in a warning.
    pub(super) fn open(file: &Path, pairs: &[PairText], groups: &PairGroups, parts: &Parts) -> anyhow::Result<Self> {
        let set = RetainSet::open(file).with_context(|| format!("--retain {}", file.display()))?;
        let repeats: Vec<usize> = groups.repeated.iter().map(|r| r.1).collect();
        let train: Vec<PairText> =
            parts.split.train.iter().filter(|i| !repeats.contains(i)).map(|&i| pairs[i].clone()).collect();
        let overlap = set.overlap(&train);
        if let [first, ..] = overlap[..] {
            eprintln!(
                "warning: {} of {} retained texts have the prompt of a training pair, or nearly so (the first: {first}): there \
                 the loss asks for a change and for none. Take them out of one of the files",
                overlap.len(),
                set.items.len()
            );
        }
        Ok(Self(set))
    }

    /// The texts in tokens.
    pub(super) fn encode(
        &self,
        args: &Args,
        model: &Arc<Model>,
        template: &ChatTemplate,
        kind: KindSpec,
        beside: Option<&ControlVector>,
        interrupt: &AtomicBool,
    ) -> anyhow::Result<Vec<NamedPair>> {
        if self.0.unanswered() > 0 {
            eprintln!(
                "the unsteered model answers {} retained prompts, up to {ANSWER} tokens each ...",
                self.0.unanswered()
            );
        }
        let halves = kind.kind == Kind::PromptGate || !args.scope.is_all();
        Ok(self.0.encode(model, template, halves, beside, args.model.threads(), interrupt)?)
    }

    /// Name and hash of the file.
    pub(super) fn described(&self) -> (&str, &str) {
        (&self.0.name, &self.0.sha256)
    }
}
