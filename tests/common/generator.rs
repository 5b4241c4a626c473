//! The mean difference of llama.cpp's cvector-generator, from bidpo's activations.

use bidpo_core::extract::Extractor;
use ggml_grad::llama::{Model, Token};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `direction.N` for each of `numbers` before it is normalized, `[n_embd]`: the sum over all positions of positive minus negative at
/// the output of block N - 1. The shorter text is padded with the token of a space.
pub fn differences(model: &Arc<Model>, pairs: &[(&str, &str)], numbers: &[usize]) -> BTreeMap<usize, Vec<f64>> {
    let n_embd = model.n_embd();
    let tokens = |text: &str| model.tokenize(text, true, true).unwrap();
    let pad = *model.tokenize(" ", false, false).unwrap().last().unwrap();
    let blocks: Vec<usize> = numbers.iter().map(|n| n - 1).collect();
    let mut extractor = Extractor::new(model, &blocks, 64, 1).unwrap();
    let mut sums: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (positive, negative) in pairs {
        let mut both: [Vec<Token>; 2] = [tokens(positive), tokens(negative)];
        let n = both[0].len().max(both[1].len());
        both.iter_mut().for_each(|t| t.resize(n, pad));
        let [a, b] = both.map(|t| extractor.run(&t, 1).unwrap());
        for block in &blocks {
            let sum = sums.entry(block + 1).or_insert_with(|| vec![0.0; n_embd]);
            let rows = a[block].chunks_exact(n_embd).zip(b[block].chunks_exact(n_embd));
            for (i, (x, y)) in rows.flat_map(|(x, y)| x.iter().zip(y).enumerate()) {
                sum[i] += f64::from(x - y);
            }
        }
    }
    sums
}
