//! Dense models with a gated feed-forward network: the llama kind.

use crate::synth::Shape;
use crate::synth::builder::{Bias, ModelBuilder};

/// Norm, attention, norm, network: the block of most models.
pub(super) fn block(d: &mut ModelBuilder<'_>, i: usize, bias: Bias) {
    let n = d.shape.n_embd;
    d.norm(&format!("blk.{i}.attn_norm"), n);
    d.attention(i, bias);
    d.norm(&format!("blk.{i}.ffn_norm"), n);
    d.gated(i, "", d.shape.n_ff);
}

pub(super) fn blocks(d: &mut ModelBuilder<'_>, bias: Bias) {
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        block(d, i, bias);
    }
}

pub(super) fn llama(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    blocks(d, Bias::None);
}

pub(super) fn llama3_rope(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("rope.freq_base", 500_000.0);
    d.rope_factors("rope_freqs", d.shape.head_dim / 2, 8.0);
    d.tied_embedding();
    blocks(d, Bias::None);
}

pub(super) fn qwen2(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("rope.freq_base", 1e6);
    d.embedding();
    blocks(d, Bias::Qkv);
}

pub(super) fn qwen3(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("rope.freq_base", 1e6);
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        block(d, i, Bias::None);
        d.head_norms(i);
    }
}

fn granite_scales(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("embedding_scale", 12.0);
    d.constant("residual_scale", 0.22);
    d.constant("attention.scale", 1.0 / d.shape.head_dim as f32);
    d.constant("logit_scale", 4.0);
}

pub(super) fn granite(d: &mut ModelBuilder<'_>) {
    granite_scales(d);
    d.tied_embedding();
    blocks(d, Bias::None);
}

pub(super) fn granite_swa(d: &mut ModelBuilder<'_>) {
    granite_scales(d);
    d.window();
    // One block sees everything: the one before the last, so that blocks of both kinds lie above layer 1.
    let n = d.shape.n_layer;
    d.switches("attention.sliding_window_pattern", &(0..n).map(|i| i + 2 != n).collect::<Vec<_>>());
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..n {
        d.around(&format!("blk.{i}.attn_sinks.weight"), &[d.shape.n_head], 0.0, 1.0);
    }
}

pub(super) fn phi3(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("rope.scaling.original_context_length", 2048);
    d.constant("rope.scaling.attn_factor", 1.19);
    d.rope_factors("rope_factors_short", d.shape.head_dim / 2, 2.0);
    d.rope_factors("rope_factors_long", d.shape.head_dim / 2, 32.0);
    d.embedding();
    d.norm("output_norm", d.shape.n_embd);
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.matrix(&format!("blk.{i}.ffn_up"), &[n, 2 * n_ff]);
        d.matrix(&format!("blk.{i}.ffn_down"), &[n_ff, n]);
    }
}

pub(super) fn olmo2(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.attention(i, Bias::None);
        d.wide_norms(i);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.gated(i, "", d.shape.n_ff);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}

pub(super) fn olmo3(d: &mut ModelBuilder<'_>) {
    d.window();
    olmo2(d);
}

fn stablelm_blocks(d: &mut ModelBuilder<'_>, parallel: bool) {
    d.layer_norm();
    d.size("rope.dimension_count", d.shape.head_dim / 4);
    d.switch("use_parallel_residual", parallel);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, if parallel { Bias::None } else { Bias::Qkv });
        if parallel {
            for (part, heads) in [("q", d.shape.n_head), ("k", d.shape.n_head_kv)] {
                d.around(&format!("blk.{i}.attn_{part}_norm.weight"), &[d.shape.head_dim, heads], 1.0, 0.1);
            }
        } else {
            d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        }
        d.gated(i, "", d.shape.n_ff);
    }
}

pub(super) fn stablelm(d: &mut ModelBuilder<'_>) {
    stablelm_blocks(d, false);
}

pub(super) fn stablelm_parallel(d: &mut ModelBuilder<'_>) {
    stablelm_blocks(d, true);
}

pub(super) fn command_r(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.constant("logit_scale", 0.25);
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.gated(i, "", d.shape.n_ff);
        if d.shape.n_layer >= 64 && d.arch() == "command-r" {
            // llama.cpp knows the larger model by its depth.
            for (part, heads) in [("q", d.shape.n_head), ("k", d.shape.n_head_kv)] {
                d.around(&format!("blk.{i}.attn_{part}_norm.weight"), &[d.shape.head_dim, heads], 1.0, 0.1);
            }
        }
    }
}

pub(super) fn cohere2(d: &mut ModelBuilder<'_>) {
    d.window();
    command_r(d);
}

pub(super) fn orion(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

pub(super) fn baichuan(d: &mut ModelBuilder<'_>) {
    llama(d);
}

pub(super) fn refact(d: &mut ModelBuilder<'_>) {
    llama(d);
}

pub(super) fn smollm3(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    blocks(d, Bias::None);
}

pub(super) fn glm4(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("rope.dimension_count", d.shape.head_dim / 2);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::Qkv);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.matrix(&format!("blk.{i}.ffn_up"), &[n, 2 * n_ff]);
        d.matrix(&format!("blk.{i}.ffn_down"), &[n_ff, n]);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}

pub(super) fn olmo(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.constant("attention.clamp_kqv", 6.0);
    d.embedding();
    for i in 0..d.shape.n_layer {
        d.attention(i, Bias::None);
        d.gated(i, "", d.shape.n_ff);
    }
}

pub(super) fn openelm(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    let Shape { n_layer, n_embd: n, n_head, n_head_kv, head_dim, n_ff, .. } = d.shape;
    // The first half of the blocks is narrower, where the sizes can be halved.
    let half = |size: usize, i: usize| if i < n_layer / 2 && size.is_multiple_of(2) { size / 2 } else { size };
    let kv: Vec<usize> = (0..n_layer).map(|i| half(n_head_kv, i)).collect();
    let heads: Vec<usize> = kv.iter().map(|kv| kv * (n_head / n_head_kv)).collect();
    let ff: Vec<usize> = (0..n_layer).map(|i| half(n_ff, i)).collect();
    d.sizes("attention.head_count", &heads);
    d.sizes("attention.head_count_kv", &kv);
    d.sizes("feed_forward_length", &ff);
    d.norm("output_norm", n);
    for i in 0..n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.matrix(&format!("blk.{i}.attn_qkv"), &[n, (heads[i] + 2 * kv[i]) * head_dim]);
        d.matrix(&format!("blk.{i}.attn_output"), &[heads[i] * head_dim, n]);
        d.head_norms(i);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", ff[i]);
    }
}

pub(super) fn bitnet(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_sub_norm"), d.shape.n_embd);
        d.norm(&format!("blk.{i}.ffn_sub_norm"), d.shape.n_ff);
        for matrix in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            d.around(&format!("blk.{i}.{matrix}.scale"), &[1], 1.0, 0.1);
        }
    }
}
