//! Solved examples that fit the model's context before the longest items.

use super::{PromptError, PromptOverride, Style};
use crate::eval::items::{Benchmark, Item};
use crate::eval::scoring::ScoreError;
use ggml_grad::llama::Model;

/// Items whose prompts are tokenized to find the longest one.
const CANDIDATES: usize = 8;
/// Tokens left free: items that were not tokenized may be a few tokens longer.
const MARGIN: usize = 16;

/// The first training items, at most `wanted`, that fit the context before the longest item of `benchmark`.
///
/// # Errors
/// [`PromptError`] for an item that cannot be put at all.
pub fn fitting_shots(
    model: &Model,
    style: &Style,
    benchmark: &Benchmark,
    train: &Benchmark,
    wanted: usize,
) -> Result<Vec<Item>, PromptError> {
    let longest = longest(benchmark, style, (0..benchmark.items.len()).collect());
    let longest: Vec<usize> = longest.into_iter().filter(|&i| benchmark.items[i].group == 0).collect();
    let fits = most_examples(model, wanted.min(train.items.len()), |k| {
        let overrides = PromptOverride { shots: train.items[..k].to_vec(), ..PromptOverride::default() };
        longest_prompt(style, model, benchmark, &longest, &overrides)
    })?;
    Ok(train.items[..fits].to_vec())
}

/// Leaves out the benchmark's own few-shot examples that do not fit the model's context, as MMLU's reference evaluation does:
/// the same number for all items of a group, also under the questions of other items (`swapped`). Returns the groups with
/// fewer examples, each as `subject (examples left)`.
///
/// # Errors
/// [`PromptError`] for an item that cannot be put at all.
pub fn fit_examples(
    benchmark: &mut Benchmark,
    style: &Style,
    model: &Model,
    swapped: Option<&[usize]>,
) -> Result<Vec<String>, PromptError> {
    let mut fewer = Vec::new();
    for group in 0..benchmark.groups.len() {
        let wanted = benchmark.groups[group].shots.len();
        let of_group: Vec<usize> = (0..benchmark.items.len()).filter(|&i| benchmark.items[i].group == group).collect();
        if wanted == 0 || of_group.is_empty() {
            continue;
        }
        let own = of_group.iter().map(|&i| Item { group: 0, ..benchmark.items[i].clone() });
        let under_others = of_group.iter().filter_map(|&i| {
            let question = benchmark.items[*swapped?.get(i)?].question.clone();
            Some(Item { group: 0, question, ..benchmark.items[i].clone() })
        });
        let candidates = Benchmark::plain(own.chain(under_others).collect());
        let longest = longest(&candidates, style, (0..candidates.items.len()).collect());
        let items: Vec<Item> = longest.into_iter().map(|i| candidates.items[i].clone()).collect();
        let all: Vec<usize> = (0..items.len()).collect();
        let fits = most_examples(model, wanted, |k| {
            let mut own = benchmark.groups[group].clone();
            own.shots.truncate(k);
            let small = Benchmark { items: items.clone(), groups: vec![own] };
            longest_prompt(style, model, &small, &all, &PromptOverride::default())
        })?;
        if fits < wanted {
            let name = benchmark.items.iter().find(|i| i.group == group).and_then(|i| i.category.clone());
            fewer.push(format!("{} ({fits})", name.unwrap_or_else(|| group.to_string())));
            benchmark.groups[group].shots.truncate(fits);
        }
    }
    Ok(fewer)
}

/// The longest items among those at the indices `which`.
fn longest(benchmark: &Benchmark, style: &Style, mut which: Vec<usize>) -> Vec<usize> {
    // The longest by characters are among the longest by tokens.
    let size = |i: &usize| {
        let item = &benchmark.items[*i];
        let answers = item.answers.iter().map(|a| a.text.len());
        item.question.len() + if style.protocol.shows_options() { answers.sum() } else { answers.max().unwrap_or(0) }
    };
    which.sort_by_key(|i| std::cmp::Reverse(size(i)));
    which.truncate(CANDIDATES);
    which
}

/// The most examples, at most `wanted`, with which a prompt of `tokens(examples)` tokens fits the model's context.
fn most_examples(
    model: &Model,
    wanted: usize,
    tokens: impl Fn(usize) -> Result<usize, PromptError>,
) -> Result<usize, PromptError> {
    let limit = model.n_ctx_train().saturating_sub(MARGIN);
    let (mut fits, mut too_many) = (0, wanted + 1);
    while too_many - fits > 1 {
        let k = if fits == 0 && too_many == wanted + 1 { wanted } else { (fits + too_many) / 2 };
        match tokens(k) {
            Ok(n) if n <= limit => fits = k,
            Ok(_) => too_many = k,
            Err(PromptError::Score(ScoreError::TooLong { .. })) => too_many = k,
            Err(error) => return Err(error),
        }
    }
    Ok(fits)
}

/// Tokens of the longest prompt with its longest answer, of `items` (all of group 0).
fn longest_prompt(
    style: &Style,
    model: &Model,
    benchmark: &Benchmark,
    items: &[usize],
    overrides: &PromptOverride,
) -> Result<usize, PromptError> {
    let (prompts, _) = style.prompts(model, benchmark, 0, items, overrides)?;
    let requests = prompts.tokens(model)?;
    let whole = requests.iter().map(|r| r.context.len() + r.answers.iter().map(Vec::len).max().unwrap_or(0));
    Ok(whole.max().unwrap_or(0))
}
