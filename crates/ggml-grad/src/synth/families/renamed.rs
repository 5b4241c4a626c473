//! Dense models with a gated feed-forward network that are llama with other keys: other biases, norms of queries and keys,
//! fused matrices, rotary positions.

use super::gated::{block, blocks};
use super::{DENSE, Family, family};
use crate::synth::builder::{Bias, ModelBuilder};

const MULTI: &str = "positions in three axes (text only)";

pub(super) static ALL: &[Family] = &[
    family("internlm2", "internlm2", DENSE, super::gated::llama, "llama").square().variant(),
    family("xverse", "xverse", DENSE, super::gated::llama, "llama").square().variant(),
    family("qwen", "qwen", DENSE.heads(8, 8, 32), qwen, "fused QKV with biases, half the stated feed-forward width")
        .square()
        .ungrouped()
        .variant(),
    family("qwen2vl", "qwen2vl", DENSE, qwen2vl, MULTI).square().variant(),
    family("qwen3vl", "qwen3vl", DENSE.heads(8, 2, 64), qwen3vl, MULTI).variant(),
    family("exaone", "exaone", DENSE, exaone, "RoPE frequency factors").variant(),
    family("exaone4", "exaone4", DENSE, exaone4, "post-norm only, QK-norm").square().variant(),
    family("chatglm", "chatglm", DENSE, chatglm, "fused gate-up matrix, partial RoPE (half of the head)")
        .square()
        .variant(),
    family("seed-oss", "seed_oss", DENSE, seed_oss, "QKV biases, heads wider than the residual stream").variant(),
    family("ernie4_5", "ernie4_5", DENSE, tied, "llama, tied embedding").variant(),
    family("paddleocr", "paddleocr", DENSE, paddleocr, MULTI).variant(),
    family("minicpm", "minicpm", DENSE, tied, "scales on embedding, residual and logits").variant(),
    family("hunyuan-dense", "hunyuan-dense", DENSE, head_normed, "QK-norm after RoPE").variant(),
    family("hunyuan_vl", "hunyuan_vl", DENSE, hunyuan_vl, "positions in three axes (text only), QK-norm after RoPE")
        .variant(),
    family("mistral3", "mistral3", DENSE, mistral3, "YaRN, queries scaled by their position").variant(),
    family("maincoder", "maincoder", DENSE, head_normed, "QK-norm after RoPE").variant(),
    family("pangu-embedded", "pangu-embedded", DENSE, pangu, "biases on all projections").variant(),
];

/// Parts of a head that turn with each of the axes of a position: all of it together.
pub(super) fn axes(d: &mut ModelBuilder<'_>, n_rot: usize) {
    let half = n_rot / 2;
    d.sizes("rope.dimension_sections", &[half - 2 * (half / 3), half / 3, half / 3, 0]);
}

fn tied(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    blocks(d, Bias::None);
}

fn qwen(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("feed_forward_length", 2 * d.shape.n_ff);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::Qkv);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn qwen2vl(d: &mut ModelBuilder<'_>) {
    axes(d, d.shape.head_dim);
    super::gated::qwen2(d);
}

fn qwen3vl(d: &mut ModelBuilder<'_>) {
    axes(d, d.shape.head_dim);
    super::gated::qwen3(d);
}

fn exaone(d: &mut ModelBuilder<'_>) {
    super::gated::llama3_rope(d);
}

fn exaone4(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.attention(i, Bias::None);
        d.head_norms(i);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.gated(i, "", d.shape.n_ff);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}

fn chatglm(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("rope.dimension_count", d.shape.head_dim / 2);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::Qkv);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.matrix(&format!("blk.{i}.ffn_up"), &[n, 2 * n_ff]);
        d.matrix(&format!("blk.{i}.ffn_down"), &[n_ff, n]);
    }
}

fn seed_oss(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::Qkv);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn paddleocr(d: &mut ModelBuilder<'_>) {
    axes(d, d.shape.head_dim);
    super::gated::llama(d);
}

fn head_normed(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        block(d, i, Bias::None);
        d.head_norms(i);
    }
}

fn hunyuan_vl(d: &mut ModelBuilder<'_>) {
    axes(d, d.shape.head_dim);
    head_normed(d);
}

fn mistral3(d: &mut ModelBuilder<'_>) {
    d.text("rope.scaling.type", "yarn");
    d.constant("rope.scaling.factor", 4.0);
    // Short, so that short texts reach past it: queries grow behind it.
    d.size("rope.scaling.original_context_length", 8);
    d.constant("attention.temperature_scale", 0.1);
    super::gated::llama(d);
}

fn pangu(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    blocks(d, Bias::All);
}
