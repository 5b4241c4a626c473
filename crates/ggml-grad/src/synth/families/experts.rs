//! More mixtures of experts: other routers, shared experts, dense blocks below, windows.

use super::mixture::blocks;
use super::{Family, MOE, family};
use crate::synth::builder::{Bias, ModelBuilder};
use crate::synth::families::renamed::axes;
use crate::synth::families::unusual::alternating_windows;

const SIGMOID: usize = 2;

pub(super) static ALL: &[Family] = &[
    family("qwen3vlmoe", "qwen3vlmoe", MOE, qwen3vlmoe, "positions in three axes (text only)").variant(),
    family("phimoe", "phimoe", MOE, phimoe, "LayerNorm and biases, long and short RoPE factors").square().variant(),
    family("deepseek", "deepseek", MOE.layers(4), deepseek, "shared expert, dense first block").square().variant(),
    family(
        "deepseek2-ocr",
        "deepseek2-ocr",
        MOE.heads(8, 8, 32).layers(4),
        deepseek,
        "deepseek2 without latent attention, dense first block",
    )
    .square()
    .ungrouped()
    .variant(),
    family(
        "dots1",
        "dots1",
        MOE.heads(8, 8, 32).layers(4),
        dots1,
        "sigmoid router with bias, QK-norm, shared expert, dense first block",
    )
    .ungrouped()
    .variant(),
    family("bailingmoe", "bailingmoe", MOE, bailingmoe, "shared expert, renormalized weights").variant(),
    family(
        "bailingmoe2",
        "bailingmoe2",
        MOE.layers(4).experts(8, 2),
        bailingmoe2,
        "fused QKV, QK-norm, sigmoid router with bias and groups, dense first block",
    )
    .square()
    .variant(),
    family(
        "glm4moe",
        "glm4moe",
        MOE.layers(4),
        glm4moe,
        "QKV biases, QK-norm, partial RoPE, sigmoid router with bias, shared expert, dense first block",
    )
    .variant(),
    family("ernie4_5-moe", "ernie4_5-moe", MOE.layers(4), ernie, "router with bias, shared expert, dense first block")
        .variant(),
    family("grovemoe", "grovemoe", MOE, grovemoe, "experts in groups that share a smaller one each").variant(),
    family("minimax-m2", "minimax-m2", MOE, minimax_m2, "QK-norm over all heads, sigmoid router with bias").variant(),
    family(
        "exaone-moe",
        "exaone-moe",
        MOE.layers(5),
        exaone_moe,
        "SWA and RoPE in every second block, QK-norm, sigmoid router with bias, shared expert, dense first block",
    )
    .variant(),
    family(
        "cohere2moe",
        "cohere2moe",
        MOE.layers(5),
        cohere2moe,
        "cohere2 with experts: parallel attention and MoE, shared expert, dense first block",
    )
    .variant(),
    family(
        "mimo2",
        "mimo2",
        MOE.layers(5),
        mimo2,
        "attention sinks and SWA in every second block, scaled values, sigmoid router with bias, dense first block",
    )
    .variant(),
    family(
        "step35",
        "step35",
        MOE.layers(5),
        step35,
        "a gate per head, SWA in every second block, clamped SwiGLU, shared expert, dense first block",
    )
    .variant(),
    family("mellum", "mellum", MOE.layers(4), mellum, "SWA in every second block, QK-norm").variant(),
    family("maple", "maple", MOE.layers(4), maple, "SWA in every second block, QK-norm, clamped SwiGLU").variant(),
    family(
        "laguna",
        "laguna",
        MOE.layers(5),
        laguna,
        "a gate per head, SWA in every second block, QK-norm, sigmoid router with bias, dense first block",
    )
    .variant(),
    family(
        "hy_v3",
        "hy_v3",
        MOE.layers(4),
        hy_v3,
        "QK-norm, sigmoid router with bias, shared expert, dense first block",
    )
    .variant(),
    family("minicpm-moe", "minicpm", MOE, mixtral_tied, "minicpm with experts").variant(),
    family("mistral3-moe", "mistral3", MOE, super::mixture::mixtral, "mistral3 with experts").variant(),
];

/// Norms and attention of every block; experts in all but the first, which is dense. `ffn_norm`: the name of the norm
/// before them.
struct Mix {
    bias: Bias,
    head_norms: bool,
    ffn_norm: &'static str,
    router_bias: bool,
    /// Shared experts' width, in experts.
    shared: usize,
}

const PLAIN: Mix = Mix { bias: Bias::None, head_norms: false, ffn_norm: "ffn_norm", router_bias: false, shared: 1 };

fn dense_first(d: &mut ModelBuilder<'_>, mix: &Mix) {
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.size("leading_dense_block_count", 1);
    d.size("expert_feed_forward_length", n_ff);
    d.size("expert_shared_count", mix.shared);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, mix.bias);
        if mix.head_norms {
            d.head_norms(i);
        }
        if !mix.ffn_norm.is_empty() {
            d.norm(&format!("blk.{i}.{}", mix.ffn_norm), n);
        }
        if i == 0 {
            d.gated(i, "", n_ff);
            continue;
        }
        d.experts(i);
        if mix.router_bias {
            d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
        }
        if mix.shared > 0 {
            d.gated(i, "_shexp", mix.shared * n_ff);
        }
    }
}

/// A sigmoid router whose weights are renormalized and scaled.
fn sigmoid(d: &mut ModelBuilder<'_>) {
    d.size("expert_gating_func", SIGMOID);
    d.constant("expert_weights_scale", 2.5);
    d.switch("expert_weights_norm", true);
}

fn mixtral_tied(d: &mut ModelBuilder<'_>) {
    d.tied_embedding();
    blocks(d, Bias::None);
}

fn qwen3vlmoe(d: &mut ModelBuilder<'_>) {
    axes(d, d.shape.head_dim);
    super::mixture::qwen3moe(d);
}

fn phimoe(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.layer_norm();
    d.size("rope.scaling.original_context_length", 2048);
    d.constant("rope.scaling.attn_factor", 1.19);
    d.rope_factors("rope_factors_short", d.shape.head_dim / 2, 2.0);
    d.rope_factors("rope_factors_long", d.shape.head_dim / 2, 32.0);
    d.embedding();
    d.bias("output", &[d.shape.n_vocab]);
    let n = d.shape.n_embd;
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::All);
        d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        d.experts(i);
    }
}

fn deepseek(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    dense_first(d, &Mix { shared: 2, ..PLAIN });
}

fn dots1(d: &mut ModelBuilder<'_>) {
    d.rms();
    sigmoid(d);
    d.embedding();
    dense_first(d, &Mix { head_norms: true, router_bias: true, ..PLAIN });
}

fn bailingmoe(d: &mut ModelBuilder<'_>) {
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_count", 1);
    d.switch("expert_weights_norm", true);
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.gated(i, "_shexp", d.shape.n_ff);
    }
}

fn bailingmoe2(d: &mut ModelBuilder<'_>) {
    d.rms();
    sigmoid(d);
    if d.shape.n_expert.is_multiple_of(4) && d.shape.n_expert >= 8 {
        d.size("expert_group_count", 4);
        d.size("expert_group_used_count", 2);
    }
    d.size("leading_dense_block_count", 1);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_count", 1);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.head_norms(i);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        if i == 0 {
            d.gated(i, "", n_ff);
        } else {
            d.experts(i);
            d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
            d.gated(i, "_shexp", n_ff);
        }
    }
}

fn glm4moe(d: &mut ModelBuilder<'_>) {
    d.rms();
    sigmoid(d);
    d.size("rope.dimension_count", d.shape.head_dim / 2);
    d.embedding();
    let mix = Mix { bias: Bias::Qkv, head_norms: true, ffn_norm: "post_attention_norm", router_bias: true, ..PLAIN };
    dense_first(d, &mix);
}

fn ernie(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("interleave_moe_layer_step", 1);
    d.size("expert_shared_feed_forward_length", d.shape.n_ff);
    d.tied_embedding();
    dense_first(d, &Mix { router_bias: true, ..PLAIN });
}

fn grovemoe(d: &mut ModelBuilder<'_>) {
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    let together = if d.shape.n_expert.is_multiple_of(2) { 2 } else { 1 };
    let (groups, small) = (d.shape.n_expert / together, n_ff / 2);
    d.size("expert_feed_forward_length", n_ff);
    d.size("expert_chunk_feed_forward_length", small);
    d.constant("expert_group_scale", 0.05);
    d.size("experts_per_group", together);
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.head_norms(i);
        d.matrix(&format!("blk.{i}.ffn_gate_chexps"), &[n, small, groups]);
        d.matrix(&format!("blk.{i}.ffn_up_chexps"), &[n, small, groups]);
        d.matrix(&format!("blk.{i}.ffn_down_chexps"), &[small, n, groups]);
    }
}

fn minimax_m2(d: &mut ModelBuilder<'_>) {
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_gating_func", SIGMOID);
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.wide_norms(i);
        d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
    }
}

fn exaone_moe(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    sigmoid(d);
    d.embedding();
    dense_first(d, &Mix { head_norms: true, router_bias: true, ..PLAIN });
}

fn cohere2moe(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    alternating_windows(d);
    d.constant("logit_scale", 0.25);
    d.switch("expert_weights_norm", true);
    d.tied_embedding();
    dense_first(d, &Mix { ffn_norm: "", ..PLAIN });
}

fn mimo2(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    d.constant("rope.freq_base_swa", 1e4);
    d.constant("attention.value_scale", 0.7);
    d.embedding();
    dense_first(d, &Mix { router_bias: true, shared: 0, ..PLAIN });
    for i in (0..d.shape.n_layer).step_by(2) {
        d.around(&format!("blk.{i}.attn_sinks.weight"), &[d.shape.n_head], 0.0, 1.0);
    }
}

fn step35(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    sigmoid(d);
    d.constant("rope.freq_base_swa", 1e4);
    d.size("expert_shared_feed_forward_length", d.shape.n_ff);
    d.constants("swiglu_clamp_exp", 0.3);
    d.constants("swiglu_clamp_shexp", 0.4);
    d.embedding();
    dense_first(d, &Mix { head_norms: true, router_bias: true, ..PLAIN });
    head_gates(d);
}

/// A gate for each head's output.
fn head_gates(d: &mut ModelBuilder<'_>) {
    for i in 0..d.shape.n_layer {
        d.matrix(&format!("blk.{i}.attn_gate"), &[d.shape.n_embd, d.shape.n_head]);
    }
}

fn mellum(d: &mut ModelBuilder<'_>) {
    alternating_windows(d);
    super::mixture::qwen3moe(d);
}

fn maple(d: &mut ModelBuilder<'_>) {
    alternating_windows(d);
    d.constants("swiglu_clamp_exp", 0.3);
    super::mixture::qwen3moe(d);
}

fn laguna(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    sigmoid(d);
    d.constant("rope.freq_base_swa", 1e4);
    d.size("rope.dimension_count_swa", d.shape.head_dim / 2);
    d.embedding();
    dense_first(d, &Mix { head_norms: true, router_bias: true, ..PLAIN });
    head_gates(d);
}

fn hy_v3(d: &mut ModelBuilder<'_>) {
    d.rms();
    sigmoid(d);
    d.tied_embedding();
    dense_first(d, &Mix { head_norms: true, ..PLAIN });
    for i in 1..d.shape.n_layer {
        // Without the usual suffix.
        d.around(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert], 0.0, 0.1);
    }
}
