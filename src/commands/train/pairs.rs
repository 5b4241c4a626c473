//! The pairs of a run, in tokens.

use crate::args::data::list;
use anyhow::ensure;
use bidpo_core::data::{ChatTemplate, PreferenceSet, SkippedRow};
use bidpo_core::engine::covered_positions;
use bidpo_core::intervention::Scope;
use bidpo_core::train::{NamedPair, Parts, encode_pair};
use ggml_grad::llama::Model;

/// The pairs of a run.
pub(super) struct Pairs {
    pub(super) train: Vec<NamedPair>,
    pub(super) valid: Vec<NamedPair>,
    pub(super) test: Vec<NamedPair>,
    /// The pairs with each of the baseline's system prompts.
    pub(super) prompted: Vec<Prompted>,
}

/// A set in tokens, in the order of its file.
pub(super) struct EncodedSet<'a> {
    pub(super) set: &'a PreferenceSet,
    pub(super) model: &'a Model,
    pub(super) template: &'a ChatTemplate,
    pub(super) pairs: Vec<NamedPair>,
}

/// The pairs of the set in tokens. Those that cannot be trained on (too long for the model's context, refused by the template)
/// are taken out of the set and said, up to half of all; the first of them is an error if `strict`.
pub(super) fn encode_usable(
    set: &mut PreferenceSet,
    model: &Model,
    template: &ChatTemplate,
    strict: bool,
) -> anyhow::Result<Vec<NamedPair>> {
    let all = std::mem::take(&mut set.pairs);
    let n = all.len();
    let (mut encoded, mut left_out, mut first) = (Vec::with_capacity(n), Vec::new(), None);
    for pair in all {
        match encode_pair(&pair, model, template, None) {
            Ok(named) => {
                encoded.push(named);
                set.pairs.push(pair);
            }
            Err(error) if strict || n == 1 => return Err(error.into()),
            Err(error) => {
                left_out.push(SkippedRow { place: pair.origin, reason: error.reason() });
                first.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first.filter(|_| 2 * left_out.len() > n) {
        let error = anyhow::Error::from(error);
        return Err(
            error.context(format!("{} of {n} pairs cannot be trained on, more than half; the first", left_out.len()))
        );
    }
    list(&left_out, n, "pairs cannot be trained on and are left out (--strict stops at the first)");
    set.reading.skipped.extend(left_out);
    Ok(encoded)
}

/// Refuses a scope that holds no position of any pair; says where it holds none of some.
pub(super) fn check_scope(pairs: &[NamedPair], scope: &Scope) -> anyhow::Result<()> {
    let mut outside = pairs.iter().filter(|pair| covered_positions(&pair.tokens, scope) == 0);
    let Some(first) = outside.next() else { return Ok(()) };
    let n = 1 + outside.count();
    let hint = match scope.reads_thoughts() {
        true => "their answers hold no thought where the template marks one; see them with bidpo template --data FILE",
        false => "their prompts or answers are shorter",
    };
    ensure!(n < pairs.len(), "scope {scope} holds no position of any of the {n} pairs: {hint}");
    eprintln!(
        "note: scope {scope} holds no position of {n} of {} pairs (the first: {}): {hint}",
        pairs.len(),
        first.name
    );
    Ok(())
}

impl<'a> EncodedSet<'a> {
    pub(super) fn pick(&self, indices: &[usize]) -> Vec<NamedPair> {
        indices.iter().map(|&i| self.pairs[i].clone()).collect()
    }

    pub(super) fn parts(&self, parts: &Parts, baseline_prompts: &[&str]) -> anyhow::Result<Pairs> {
        let split = &parts.split;
        let prompted = |text: &str| -> anyhow::Result<Prompted> {
            let one = |&i: &usize| encode_pair(&self.set.pairs[i], self.model, self.template, Some(text));
            // A single prompt is not chosen.
            let valid: &[usize] = if baseline_prompts.len() > 1 { &split.valid } else { &[] };
            Ok(Prompted {
                text: text.to_owned(),
                valid: valid.iter().map(one).collect::<Result<_, _>>()?,
                test: split.test.iter().map(one).collect::<Result<_, _>>()?,
            })
        };
        Ok(Pairs {
            prompted: baseline_prompts.iter().map(|text| prompted(text)).collect::<Result<_, _>>()?,
            train: self.pick(&split.train),
            valid: self.pick(&split.valid),
            test: self.pick(&split.test),
        })
    }
}

/// Pairs with a system prompt.
pub(super) struct Prompted {
    pub(super) text: String,
    pub(super) valid: Vec<NamedPair>,
    pub(super) test: Vec<NamedPair>,
}

impl Pairs {
    /// Tokens of the longest pair.
    pub(super) fn longest(&self) -> usize {
        let plain = [&self.train, &self.valid, &self.test].into_iter().flatten();
        let prompted = self.prompted.iter().flat_map(|p| p.valid.iter().chain(&p.test));
        plain.chain(prompted).map(|p| p.tokens.n_tokens()).max().unwrap_or_default()
    }
}
