//! The layers that a vector's directions belong to: programs number them differently, and no file says so.
//!
//! The mean difference of activations between chosen and rejected answers is taken at the output of each block. A direction that was
//! measured on such activations is most like the difference at the block where it was measured.

use super::{Problem, Verification, VerifyError};
use crate::extract::Extractor;
use crate::numbers::cosine;
use crate::steer::SteeringVector;
use ggml_grad::llama::Token;
use std::collections::BTreeMap;

/// Least mean cosine at which a direction is said to be like the activations at all.
const ALIKE: f64 = 0.1;
/// Least lead of one numbering over the other, in mean cosine.
const LEAD: f64 = 0.01;

/// How the directions compare with activations on both sides of their blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerFit {
    /// Mean over the layers of |cosine| of direction.N with the difference at the output of block N.
    pub at_output: f64,
    /// The same with the difference at the output of block N - 1.
    pub one_earlier: f64,
    /// Mean signed cosine at the output of block N.
    pub signed: f64,
    /// Layers compared.
    pub n_layers: usize,
}

impl LayerFit {
    /// What the two means say.
    pub fn in_words(&self) -> &'static str {
        let (here, before) = (self.at_output, self.one_earlier);
        if here.max(before) < ALIKE {
            "the directions are unlike the activations of these pairs, so they tell nothing of its layers"
        } else if before > here + LEAD {
            "direction.N belongs to the output of block N - 1 (cvector-generator)"
        } else if here > before + LEAD {
            "direction.N belongs to the output of block N (bidpo, repeng)"
        } else {
            "neighbouring blocks are too alike to tell"
        }
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        (self.one_earlier >= ALIKE && self.one_earlier > self.at_output + LEAD).then_some(Problem::OneBlockEarlier)
    }
}

pub(super) fn layers(of: &Verification<'_>, vector: &SteeringVector) -> Result<Option<LayerFit>, VerifyError> {
    let own: Vec<usize> = vector.layers().into_iter().filter(|&l| l >= 1 && l < of.model.n_layer()).collect();
    if own.is_empty() {
        return Ok(None);
    }
    let blocks: Vec<usize> = own.iter().flat_map(|&l| [l - 1, l]).collect();
    let n_embd = of.model.n_embd();
    let long = |pair: &crate::train::NamedPair| {
        let t = &pair.tokens;
        t.prompt.len() + t.chosen.len().max(t.rejected.len())
    };
    let longest = of.pairs.iter().map(long).max().unwrap_or(1);
    let mut extractor = Extractor::new(of.model, &blocks, longest, of.n_threads)?;
    let mut sums: BTreeMap<usize, Vec<f64>> = blocks.iter().map(|&b| (b, vec![0.0; n_embd])).collect();
    for (i, pair) in of.pairs.iter().enumerate() {
        for (answer, sign) in [(&pair.tokens.chosen, 1.0), (&pair.tokens.rejected, -1.0)] {
            let tokens: Vec<Token> = [&pair.tokens.prompt[..], answer].concat();
            for (block, rows) in extractor.run(&tokens, i + 1)? {
                // [n_tokens, n_embd]: the mean over the answer's positions.
                let n = answer.len().min(rows.len() / n_embd).max(1);
                let Some(sum) = sums.get_mut(&block) else { continue };
                for row in rows.chunks_exact(n_embd).rev().take(n) {
                    sum.iter_mut().zip(row).for_each(|(s, &x)| *s += sign * f64::from(x) / n as f64);
                }
            }
        }
    }
    let mut fit = LayerFit { at_output: 0.0, one_earlier: 0.0, signed: 0.0, n_layers: 0 };
    for &layer in &own {
        let (Some(direction), Some(here), Some(before)) =
            (vector.directions.get(&layer), sums.get(&layer), sums.get(&(layer - 1)))
        else {
            continue;
        };
        let (here, before) = (cosine(direction, here), cosine(direction, before));
        if here.is_finite() && before.is_finite() {
            fit.at_output += here.abs();
            fit.one_earlier += before.abs();
            fit.signed += here;
            fit.n_layers += 1;
        }
    }
    let n = fit.n_layers as f64;
    Ok((fit.n_layers > 0).then(|| LayerFit {
        at_output: fit.at_output / n,
        one_earlier: fit.one_earlier / n,
        signed: fit.signed / n,
        n_layers: fit.n_layers,
    }))
}
