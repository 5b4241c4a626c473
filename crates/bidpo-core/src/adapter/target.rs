//! The matrix of a model that a pair changes.

use std::fmt;

/// A model tensor's name in parts: `blk.3.attn_q.weight`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The block; `None` for a matrix outside the blocks.
    pub layer: Option<usize>,
    /// The kind of matrix: `attn_q`, `ffn_down`, `token_embd`.
    pub matrix: String,
}

impl Target {
    /// From the name of a tensor, with or without `.weight`.
    pub fn of(tensor: &str) -> Self {
        let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        match block.and_then(|(n, matrix)| Some((n.parse().ok()?, matrix))) {
            Some((layer, matrix)) => Self { layer: Some(layer), matrix: matrix.to_owned() },
            None => Self { layer: None, matrix: name.to_owned() },
        }
    }

    /// The tensor's name in a GGUF model.
    pub fn tensor(&self) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{}.weight", self.matrix),
            None => format!("{}.weight", self.matrix),
        }
    }

    /// True for a table of embeddings, whose A and B are flipped in llama.cpp's adapters.
    pub fn is_table(&self) -> bool {
        self.matrix.ends_with("token_embd")
    }
}

impl fmt::Display for Target {
    /// `attn_q@3`, `token_embd`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{}@{layer}", self.matrix),
            None => f.write_str(&self.matrix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        for (tensor, layer, matrix, said) in [
            ("blk.3.attn_q.weight", Some(3), "attn_q", "attn_q@3"),
            ("blk.12.ffn_down_exps.weight", Some(12), "ffn_down_exps", "ffn_down_exps@12"),
            ("token_embd.weight", None, "token_embd", "token_embd"),
            ("blk.x.attn_q.weight", None, "blk.x.attn_q", "blk.x.attn_q"),
        ] {
            let target = Target::of(tensor);
            assert_eq!((target.layer, target.matrix.as_str(), target.to_string()), (layer, matrix, said.to_owned()));
            assert_eq!(target.tensor(), tensor);
        }
    }
}
