//! Dense models whose feed-forward network has no gate.

use crate::synth::builder::{Bias, ModelBuilder};

pub(super) fn phi2(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.size("rope.dimension_count", d.shape.head_dim / 2);
    d.embedding();
    d.bias("output", &[d.shape.n_vocab]);
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::All);
        d.plain(i, true);
    }
}

/// LayerNorms and biases everywhere, fused projections: the blocks of gpt2, gptneox and bloom.
pub(super) fn biased_blocks(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::All);
        d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        d.plain(i, true);
    }
}

pub(super) fn gptneox(d: &mut ModelBuilder<'_>) {
    d.switch("use_parallel_residual", true);
    d.size("rope.dimension_count", d.shape.head_dim / 4);
    d.embedding();
    biased_blocks(d);
}

pub(super) fn gpt2(d: &mut ModelBuilder<'_>) {
    d.tied_embedding();
    d.small_matrix("position_embd", &[d.shape.n_embd, d.shape.n_ctx]);
    biased_blocks(d);
}

pub(super) fn bloom(d: &mut ModelBuilder<'_>) {
    d.tied_embedding();
    d.norm_bias("token_embd_norm", d.shape.n_embd);
    biased_blocks(d);
}

pub(super) fn mpt(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.constant("attention.max_alibi_bias", 8.0);
    d.constant("attention.clamp_kqv", 6.0);
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.plain(i, false);
    }
}

pub(super) fn separate_blocks(d: &mut ModelBuilder<'_>, bias: bool) {
    d.layer_norm();
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, if bias { Bias::All } else { Bias::None });
        d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        d.plain(i, bias);
    }
}

pub(super) fn starcoder2(d: &mut ModelBuilder<'_>) {
    d.tied_embedding();
    separate_blocks(d, true);
}

pub(super) fn nemotron(d: &mut ModelBuilder<'_>) {
    d.size("rope.dimension_count", d.shape.head_dim / 2);
    d.embedding();
    separate_blocks(d, false);
}

pub(super) fn apertus(d: &mut ModelBuilder<'_>) {
    arcee(d);
    for i in 0..d.shape.n_layer {
        d.head_norms(i);
    }
    for (key, value) in [("alpha_n", 0.8), ("alpha_p", 0.8), ("beta", 0.5), ("eps", -1e-6)] {
        d.block_constants(&format!("xielu.{key}"), value);
    }
}

pub(super) fn arcee(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.plain(i, false);
    }
}

fn falcon_blocks(d: &mut ModelBuilder<'_>, two_norms: bool) {
    d.layer_norm();
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        if two_norms {
            d.norm_bias(&format!("blk.{i}.attn_norm_2"), n);
        }
        d.fused_attention(i, Bias::None);
        d.plain(i, false);
    }
}

pub(super) fn falcon(d: &mut ModelBuilder<'_>) {
    falcon_blocks(d, false);
}

pub(super) fn falcon_two_norms(d: &mut ModelBuilder<'_>) {
    falcon_blocks(d, true);
}
