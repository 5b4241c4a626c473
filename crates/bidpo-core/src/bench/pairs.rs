//! The eight pairs that everything is measured on.

use super::BenchError;
use crate::data::{ChatTemplate, PreferenceSet, Prompt, TokenizedPair};
use ggml_grad::llama::{Model, Token};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Pairs in a step.
pub const N_PAIRS: usize = 8;

/// Prompt, chosen and rejected of each pair: two of the built-in misconceptions asked and answered at once, which makes
/// about 100 tokens of each prompt with an answer.
pub(super) fn texts() -> Result<Vec<[String; 3]>, BenchError> {
    let set = PreferenceSet::builtin("misconceptions")?;
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join(" "),
    };
    Ok(set
        .pairs
        .chunks_exact(2)
        .take(N_PAIRS)
        .map(|two| {
            let join = |f: &dyn Fn(usize) -> String| format!("{} {}", f(0), f(1));
            [join(&|i| text(&two[i].prompt)), join(&|i| two[i].chosen.clone()), join(&|i| two[i].rejected.clone())]
        })
        .collect())
}

/// The eight pairs in the model's tokens and chat format.
///
/// # Errors
/// [`BenchError::Template`].
pub fn pairs(model: &Model, template: &ChatTemplate) -> Result<Vec<TokenizedPair>, BenchError> {
    texts()?
        .into_iter()
        .map(|[prompt, chosen, rejected]| Ok(template.encode_pair(model, &Prompt::Text(prompt), &chosen, &rejected)?))
        .collect()
}

/// The pairs for another program: token ids, so that both train on exactly the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairFile {
    /// File name of the model.
    pub model: String,
    /// Steered layer: the vector is added to the output of this block, counted from 0.
    pub layer: usize,
    /// The pairs.
    pub pairs: Vec<Pair>,
}

/// One pair as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Prompt.
    pub prompt: Vec<Token>,
    /// Preferred response.
    pub chosen: Vec<Token>,
    /// The other response.
    pub rejected: Vec<Token>,
}

impl PairFile {
    /// Of these pairs.
    pub fn new(model: &str, layer: usize, pairs: &[TokenizedPair]) -> Self {
        let of = |p: &TokenizedPair| Pair {
            prompt: p.prompt.clone(),
            chosen: p.chosen.clone(),
            rejected: p.rejected.clone(),
        };
        Self { model: model.to_owned(), layer, pairs: pairs.iter().map(of).collect() }
    }
}

/// Writes the pairs for benches/peers.
///
/// # Errors
/// [`BenchError`].
pub fn write_pairs(path: &Path, model: &Model, layer: usize) -> Result<(), BenchError> {
    let template = ChatTemplate::new(model, &crate::data::TemplateChoice::Auto)?;
    let file = PairFile::new(&crate::check::file_name(model.path()), layer, &pairs(model, &template)?);
    let failed = |reason: String| BenchError::File { path: path.to_owned(), reason };
    let json = serde_json::to_string(&file).map_err(|e| failed(e.to_string()))?;
    ggml_grad::files::write_atomically(path, json.as_bytes()).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_pairs_each_its_own() {
        let texts = texts().unwrap();
        assert_eq!(texts.len(), N_PAIRS);
        for (i, [prompt, chosen, rejected]) in texts.iter().enumerate() {
            assert_ne!(chosen, rejected);
            assert!(texts[..i].iter().all(|[p, ..]| p != prompt));
        }
    }
}
