//! The mean difference of activations, the baseline without training: CAA (Rimsky et al. 2024, arXiv 2312.06681), at the
//! last token of true and false answers.

use crate::eval::items::Benchmark;
use crate::eval::prompt::{PromptError, PromptOverride, Prompts, Style};
use crate::eval::scoring::TokenRequest;
use crate::extract::{ExtractError, Extractor};
use ggml_grad::llama::{Model, Token};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What can go wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum CaaError {
    /// No prompt could be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The activations cannot be read.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// No item has a true and a false answer.
    #[error("no training item has a true and a false answer: no mean difference can be taken")]
    NoItems,
}

/// For each of `layers`, the mean over the items of (residual stream after the best answer's last token, minus that after
/// the first false answer's), `[n_embd]`; the prompts are those of `style`. Also the number of items.
///
/// # Errors
/// [`CaaError`].
pub fn mean_difference(
    model: &Arc<Model>,
    benchmark: &Benchmark,
    style: &Style,
    layers: &[usize],
    n_threads: u32,
) -> Result<(BTreeMap<usize, Vec<f32>>, usize), CaaError> {
    let all: Vec<usize> = (0..benchmark.items.len()).collect();
    let mut pairs: Vec<(Vec<Token>, Vec<Token>)> = Vec::new();
    let (prompts, views): (Prompts, _) = style.prompts(model, benchmark, 0, &all, &PromptOverride::default())?;
    for ((i, order), request) in views.iter().zip(prompts.tokens(model).map_err(PromptError::from)?) {
        let item = &benchmark.items[*i];
        let (Some(best), Some(worst)) = (item.best(), item.first_false()) else { continue };
        let place = |answer| {
            let at = item.answers.iter().position(|a| a == answer)?;
            match order {
                Some(order) => order.iter().position(|&a| a == at),
                None => Some(at),
            }
        };
        let (Some(best), Some(worst)) = (place(best), place(worst)) else { continue };
        let TokenRequest { context, answers } = &request;
        pairs.push(([&context[..], &answers[best]].concat(), [&context[..], &answers[worst]].concat()));
    }
    let longest = pairs.iter().map(|(a, b)| a.len().max(b.len())).max().ok_or(CaaError::NoItems)?;
    let mut extractor = Extractor::new(model, layers, longest, n_threads)?;
    let n_embd = model.n_embd();
    let mut sums: BTreeMap<usize, Vec<f64>> = layers.iter().map(|&l| (l, vec![0.0; n_embd])).collect();
    for (i, (best, worst)) in pairs.iter().enumerate() {
        for (sign, tokens) in [(1.0, best), (-1.0, worst)] {
            for (layer, rows) in extractor.run(tokens, i + 1)? {
                if let Some(sum) = sums.get_mut(&layer) {
                    let last = &rows[rows.len() - n_embd..];
                    sum.iter_mut().zip(last).for_each(|(s, &x)| *s += sign * f64::from(x));
                }
            }
        }
    }
    let n = pairs.len();
    let mean = |sum: Vec<f64>| sum.into_iter().map(|x| (x / n as f64) as f32).collect();
    Ok((sums.into_iter().map(|(l, s)| (l, mean(s))).collect(), n))
}
