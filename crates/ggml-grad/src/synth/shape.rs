//! The sizes of a model.

use super::{Family, SynthError, vocabulary};

/// The sizes of a model, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward network, in a mixture that of one expert.
    pub n_ff: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Context length in the metadata; where positions are learned, also rows of their table.
    pub n_ctx: usize,
    /// Experts; 0 in a dense model.
    pub n_expert: usize,
    /// Experts a token takes.
    pub n_expert_used: usize,
}

impl Shape {
    /// A dense model's default: 256 wide, so that a row holds one block of every type.
    pub(super) const DENSE: Self = Self {
        n_layer: 3,
        n_embd: 256,
        n_head: 8,
        n_head_kv: 2,
        head_dim: 32,
        n_ff: 512,
        n_vocab: 317,
        n_ctx: 4096,
        n_expert: 0,
        n_expert_used: 0,
    };

    /// A mixture's default: two of four experts.
    pub(super) const MOE: Self = Self { n_ff: 256, n_expert: 4, n_expert_used: 2, ..Self::DENSE };

    /// With another number of blocks.
    pub(super) const fn layers(self, n_layer: usize) -> Self {
        Self { n_layer, ..self }
    }

    /// With other heads.
    pub(super) const fn heads(self, n_head: usize, n_head_kv: usize, head_dim: usize) -> Self {
        Self { n_head, n_head_kv, head_dim, ..self }
    }

    /// With other experts.
    pub(super) const fn experts(self, n_expert: usize, n_expert_used: usize) -> Self {
        Self { n_expert, n_expert_used, ..self }
    }

    /// Refuses what llama.cpp would abort on.
    pub(super) fn check(&self, family: &Family) -> Result<(), SynthError> {
        let error = |reason: String| Err(SynthError::Shape { family: family.name, reason });
        let moe = family.shape.n_expert > 0;
        for (what, value, min, max) in [
            ("blocks", self.n_layer, family.least_layers, 512),
            ("the width", self.n_embd, 32, 1 << 17),
            ("heads", self.n_head, 1, 1 << 10),
            ("key-value heads", self.n_head_kv, 1, 1 << 10),
            ("the head's width", self.head_dim, 16, 1 << 10),
            ("the feed-forward width", self.n_ff, 1, 1 << 20),
            ("tokens", self.n_vocab, vocabulary::SMALLEST, 1 << 20),
            ("the context", self.n_ctx, 1, 1 << 24),
            ("experts", self.n_expert, usize::from(moe), if moe { 512 } else { 0 }),
            ("experts used", self.n_expert_used, usize::from(moe), self.n_expert),
        ] {
            if !(min..=max).contains(&value) {
                return error(format!("{what} can be {min} to {max}, not {value}"));
            }
        }
        if !self.head_dim.is_multiple_of(8) || !self.n_embd.is_multiple_of(2) {
            return error(format!(
                "a head's width is a multiple of 8 and the stream's of 2, not {} and {}",
                self.head_dim, self.n_embd
            ));
        }
        if !self.n_head.is_multiple_of(self.n_head_kv) {
            return error(format!("{} key-value heads do not divide {} heads", self.n_head_kv, self.n_head));
        }
        if !family.grouped && self.n_head_kv != self.n_head {
            return error(format!(
                "each of its {} heads has keys and values of its own, not {}",
                self.n_head, self.n_head_kv
            ));
        }
        if family.square && self.n_head * self.head_dim != self.n_embd {
            return error(format!(
                "{} heads of {} are not as wide as the stream ({})",
                self.n_head, self.head_dim, self.n_embd
            ));
        }
        Ok(())
    }
}
