//! The matrices that an adapter changes, as they are named: `attn_q,ffn_down` in the blocks `15-29`, or `ffn_down@15`.

use super::{Adapted, Add, Lora};
use crate::layers::Layers;
use ggml_grad::llama::{GgufFile, LlamaError, Model};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Names of the matrices that an adapter changes where none are given: those that the model has.
pub const USUAL_TARGETS: [&str; 8] =
    ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// A kind of matrix, in every block that is adapted or in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetName {
    /// The name in GGUF files, for example `ffn_down`.
    pub matrix: String,
    /// The one block.
    pub block: Option<usize>,
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (matrix, block) = match s.split_once('@') {
            Some((matrix, block)) => {
                let block = block
                    .parse()
                    .map_err(|_| format!("{s:?}: behind @ stands the number of a block, as in ffn_down@15"))?;
                (matrix, Some(block))
            }
            None => (s, None),
        };
        let plain = matrix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if matrix.is_empty() || !plain {
            return Err(format!("{s:?} is no matrix of a block: give names such as attn_q or ffn_down@15"));
        }
        Ok(Self { matrix: matrix.to_owned(), block })
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(block) => write!(f, "{}@{block}", self.matrix),
            None => f.write_str(&self.matrix),
        }
    }
}

/// An adapter to be trained, before it meets a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank of each pair.
    pub rank: usize,
    /// The factor on `B A` is `alpha / rank`; twice the rank where it is not given.
    pub alpha: Option<f32>,
    /// The matrices; none for [`USUAL_TARGETS`].
    pub targets: Vec<TargetName>,
    /// Blocks of the matrices that name none.
    pub blocks: Layers,
    /// Learning rate of the matrices; [`LoraSpec::RATE`] where it is not given.
    pub lr: Option<f64>,
    /// Vectors are trained with it.
    pub with_vectors: bool,
}

/// An adapter that does not fit a model.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The model's file cannot be read.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A block that the model does not have.
    #[error("block {block} is out of range: {model} has the blocks 0 to {last}")]
    Block {
        /// The block.
        block: usize,
        /// The model's file.
        model: String,
        /// Its last block.
        last: usize,
    },
    /// No such matrix.
    #[error("{model} has no matrix {target} there: its blocks have {}", known.join(", "))]
    Unknown {
        /// The name.
        target: String,
        /// The model's file.
        model: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// A matrix outside the blocks.
    #[error(
        "{matrix} lies outside the blocks, where adapters are not trained: with tied embeddings the table of embeddings is the \
         LM head too, and programs would multiply it with the wrong shape. Take matrices of blocks, for example attn_q or ffn_down"
    )]
    Outside {
        /// The name.
        matrix: String,
    },
    /// A rank that does not fit.
    #[error("rank {rank} does not fit {tensor} of {n_in} x {n_out} numbers: give 1 to {}", n_in.min(n_out))]
    Rank {
        /// The rank.
        rank: usize,
        /// The tensor.
        tensor: String,
        /// Its width.
        n_in: usize,
        /// Its rows.
        n_out: usize,
    },
    /// The same matrix twice.
    #[error("{tensor} is named twice: each matrix once")]
    Twice {
        /// The tensor.
        tensor: String,
    },
    /// A factor that is none.
    #[error("alpha {0} is no factor: give a number above 0, for example twice the rank")]
    Alpha(f32),
}

impl LoraSpec {
    /// Learning rate where none is given.
    pub const RATE: f64 = 1e-3;

    /// The lowest block that is changed.
    pub fn lowest(&self) -> usize {
        let named = self.targets.iter().filter_map(|t| t.block).min();
        let all = self.targets.is_empty() || self.targets.iter().any(|t| t.block.is_none());
        named.into_iter().chain(all.then(|| self.blocks[0])).min().unwrap_or(0)
    }

    /// The layer whose residual stream the traces begin with: that below the lowest block. llama.cpp has no hook point below block
    /// 1, so blocks 0 and 1 need the tokens' embeddings, layer 0.
    pub fn layer(&self) -> usize {
        self.lowest().saturating_sub(1)
    }

    /// The factor's numerator.
    pub fn alpha(&self) -> f32 {
        self.alpha.unwrap_or(2.0 * self.rank as f32)
    }

    /// The settings in words, for cards and identities.
    pub fn described(&self) -> String {
        let targets = match self.targets.is_empty() {
            true => "the usual matrices".to_owned(),
            false => self.targets.iter().map(TargetName::to_string).collect::<Vec<_>>().join(","),
        };
        format!("rank {}, alpha {}, {targets}, blocks {}", self.rank, self.alpha(), self.blocks)
    }

    /// All that decides the numbers of a run.
    pub fn identity(&self) -> String {
        format!("{}, learning rate {}", self.described(), self.lr.unwrap_or(Self::RATE))
    }

    /// The pairs on a model.
    ///
    /// # Errors
    /// [`LoraError`].
    pub fn on(&self, model: &Model) -> Result<Lora, LoraError> {
        let file = model.path().display().to_string();
        if !(self.alpha() > 0.0 && self.alpha().is_finite()) {
            return Err(LoraError::Alpha(self.alpha()));
        }
        let n_layer = model.n_layer();
        let named = self.targets.iter().filter_map(|t| t.block);
        let blocks = self.blocks.iter().copied().chain(named);
        if let Some(block) = blocks.into_iter().find(|&b| b >= n_layer) {
            return Err(LoraError::Block { block, model: file, last: n_layer - 1 });
        }
        let matrices = matrices_of(model)?;
        let known = |block: Option<usize>| -> Vec<String> {
            let mut names: Vec<String> = matrices
                .keys()
                .filter(|(b, _)| block.is_none_or(|block| block == *b))
                .map(|(_, name)| name.clone())
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        let usual = || USUAL_TARGETS.map(|matrix| TargetName { matrix: matrix.to_owned(), block: None }).to_vec();
        let targets = if self.targets.is_empty() { usual() } else { self.targets.clone() };
        let mut pairs: BTreeMap<(usize, String), Adapted> = BTreeMap::new();
        for target in &targets {
            let TargetName { matrix, block } = target;
            if ["output", "token_embd"].contains(&matrix.as_str()) {
                return Err(LoraError::Outside { matrix: matrix.clone() });
            }
            let within: Vec<usize> = block.map_or_else(|| self.blocks.to_vec(), |b| vec![b]);
            let mut found = 0;
            for block in within {
                let Some(&[n_in, n_out, n_experts]) = matrices.get(&(block, matrix.clone())) else { continue };
                found += 1;
                let tensor = format!("blk.{block}.{matrix}.weight");
                if self.rank == 0 || self.rank > n_in.min(n_out) {
                    return Err(LoraError::Rank { rank: self.rank, tensor, n_in, n_out });
                }
                let pair = Adapted { tensor: tensor.clone(), n_in, n_out, n_experts };
                if pairs.insert((block, matrix.clone()), pair).is_some() {
                    return Err(LoraError::Twice { tensor });
                }
            }
            if found == 0 && !self.targets.is_empty() {
                return Err(LoraError::Unknown { target: target.to_string(), model: file, known: known(*block) });
            }
        }
        if pairs.is_empty() {
            let target = USUAL_TARGETS.join(", ");
            return Err(LoraError::Unknown { target, model: file, known: known(None) });
        }
        let add = self.with_vectors.then(|| Add { n_layers: 1, n_embd: model.n_embd() });
        let (rank, alpha) = (self.rank, self.alpha());
        Ok(Lora { pairs: pairs.into_values().collect(), rank, alpha, lr: self.lr.unwrap_or(Self::RATE), add })
    }
}

/// Sizes `[n_in, n_out, n_experts]` of a model's matrices, by block and name.
fn matrices_of(model: &Model) -> Result<BTreeMap<(usize, String), [usize; 3]>, LlamaError> {
    let mut found = BTreeMap::new();
    for part in GgufFile::open_parts(model.path())? {
        for (name, _, ne) in part.tensors() {
            let inside = name.strip_prefix("blk.").and_then(|rest| rest.strip_suffix(".weight"));
            let Some((block, matrix)) = inside.and_then(|rest| rest.split_once('.')) else { continue };
            if let (Ok(block), true) = (block.parse(), ne[1] > 1 && ne[3] == 1) {
                found.insert((block, matrix.to_owned()), [ne[0], ne[1], ne[2]]);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let target = |s: &str| s.parse::<TargetName>();
        assert_eq!(target("attn_q"), Ok(TargetName { matrix: "attn_q".into(), block: None }));
        assert_eq!(target("ffn_down@15").unwrap().to_string(), "ffn_down@15");
        for bad in ["", "@3", "ffn_down@", "ffn_down@x", "blk.3.attn_q", "a b"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_trace_begins_below_the_lowest_block() {
        let spec = |targets: &[&str], blocks: &str| LoraSpec {
            rank: 8,
            alpha: None,
            targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
            blocks: blocks.parse().unwrap(),
            lr: None,
            with_vectors: false,
        };
        assert_eq!(spec(&[], "15-29").layer(), 14);
        assert_eq!(spec(&["ffn_down@20"], "15-29").layer(), 19);
        assert_eq!(spec(&["ffn_down@20", "attn_q"], "15-29").layer(), 14);
        assert_eq!((spec(&[], "0-3").layer(), spec(&[], "1-3").layer(), spec(&[], "2").layer()), (0, 0, 1));
    }
}
