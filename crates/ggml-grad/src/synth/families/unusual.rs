//! Dense models whose blocks are put together in ways of their own: other orders, gates, skipped parts, loops.

use super::gated::{block, blocks};
use super::{DENSE, Family, family};
use crate::synth::builder::{Bias, ModelBuilder};

pub(super) static ALL: &[Family] = &[
    family("plamo", "plamo", DENSE, plamo, "one norm, parallel attention and MLP").square().variant(),
    family(
        "plamo3",
        "plamo3",
        DENSE.layers(4),
        plamo3,
        "fused QKV and gate-up matrices, QK-norm, post-norms, SWA in every second block",
    )
    .variant(),
    family("codeshell", "codeshell", DENSE, codeshell, "LayerNorm and biases everywhere, GELU, RoPE")
        .square()
        .variant(),
    family("jais", "jais", DENSE.heads(8, 8, 32), jais, "ALiBi, biased SwiGLU").square().variant(),
    family("jais2", "jais2", DENSE, jais2, "squared ReLU, LayerNorm and biases everywhere").variant(),
    family("deci", "deci", DENSE.layers(5), deci, "blocks without attention, or with a matrix in its place").variant(),
    family("cogvlm", "cogvlm", DENSE.heads(8, 8, 32), cogvlm, "matrices for text beside those for images")
        .square()
        .ungrouped()
        .variant(),
    family("nanbeige", "nanbeige", DENSE.layers(4), nanbeige, "the same blocks run twice").variant(),
    family("spark2_5", "spark2_5", DENSE.layers(4), spark, "attention with a gate per head, SWA in every second block")
        .variant(),
    family(
        "muse-glimmer",
        "muse-glimmer",
        DENSE.layers(4),
        muse_glimmer,
        "gated attention, QK-norm, pre- and post-norms, SWA in every second block, soft-capped logits",
    )
    .variant(),
    family("talkie", "talkie", DENSE, talkie, "no weights in norms, embeddings added to every block").variant(),
    family("graniteswitch", "graniteswitch", DENSE, granite_switch, "low-rank adapters that tokens switch on")
        .variant(),
    family("hrm_text", "hrm_text", DENSE.layers(4), hrm_text, "two stacks of blocks that run in turns")
        .at_least(2)
        .variant(),
];

fn plamo(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.gated(i, "", d.shape.n_ff);
    }
}

/// SWA of 16 tokens in every second block, from the first.
pub(super) fn alternating_windows(d: &mut ModelBuilder<'_>) {
    d.window();
    d.switches("attention.sliding_window_pattern", &(0..d.shape.n_layer).map(|i| i % 2 == 0).collect::<Vec<_>>());
}

fn plamo3(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    d.constant("rope.freq_base_swa", 1e4);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.head_norms(i);
        // Without the usual suffix.
        d.around(&format!("blk.{i}.post_attention_norm"), &[n], 1.0, 0.1);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.matrix(&format!("blk.{i}.ffn_up"), &[n, 2 * n_ff]);
        d.matrix(&format!("blk.{i}.ffn_down"), &[n_ff, n]);
        d.around(&format!("blk.{i}.post_ffw_norm"), &[n], 1.0, 0.1);
    }
}

fn codeshell(d: &mut ModelBuilder<'_>) {
    d.embedding();
    super::plain::biased_blocks(d);
}

fn jais(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.constant("attention.max_alibi_bias", 8.0);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm_bias(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::All);
        d.norm_bias(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", n_ff);
        for (part, width) in [("gate", n_ff), ("up", n_ff), ("down", n)] {
            d.bias(&format!("blk.{i}.ffn_{part}"), &[width]);
        }
    }
}

fn jais2(d: &mut ModelBuilder<'_>) {
    d.embedding();
    super::plain::separate_blocks(d, true);
}

fn deci(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    // Attention, a matrix in its place, nothing in its place, and again.
    let part = |i: usize| ["attention", "matrix", "nothing"][i % 3];
    let of = |has: fn(&str) -> bool, n: usize| {
        (0..d.shape.n_layer).map(|i| if has(part(i)) { n } else { 0 }).collect::<Vec<_>>()
    };
    let heads = of(|p| p != "nothing", d.shape.n_head);
    let kv = of(|p| p == "attention", d.shape.n_head_kv);
    d.sizes("attention.head_count", &heads);
    d.sizes("attention.head_count_kv", &kv);
    for i in 0..d.shape.n_layer {
        match part(i) {
            "attention" => block(d, i, Bias::None),
            other => {
                if other == "matrix" {
                    d.norm(&format!("blk.{i}.attn_norm"), n);
                    d.matrix(&format!("blk.{i}.attn_output"), &[n, n]);
                }
                d.norm(&format!("blk.{i}.ffn_norm"), n);
                d.gated(i, "", d.shape.n_ff);
            }
        }
    }
}

fn cogvlm(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", n_ff);
        for (name, n_in, n_out) in [
            ("vis_attn_qkv", n, 3 * n),
            ("vis_attn_output", n, n),
            ("vis_gate", n, n_ff),
            ("vis_up", n, n_ff),
            ("vis_down", n_ff, n),
        ] {
            d.matrix(&format!("blk.{i}.{name}"), &[n_in, n_out]);
        }
    }
}

fn nanbeige(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.embedding();
    d.norm("output_norm", d.shape.n_embd);
    let loops = if d.shape.n_layer.is_multiple_of(2) { 2 } else { 1 };
    let stored = d.shape.n_layer / loops;
    d.size("block_count", stored);
    d.size("num_loops", loops);
    for i in 0..stored {
        block(d, i, Bias::None);
    }
}

fn spark(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.matrix(&format!("blk.{i}.attn_gate"), &[d.shape.n_embd, d.shape.n_head]);
    }
}

fn muse_glimmer(d: &mut ModelBuilder<'_>) {
    d.rms();
    alternating_windows(d);
    d.constant("final_logit_softcapping", 6.0);
    d.constant("logit_scale", 0.5);
    d.embedding();
    let n = d.shape.n_embd;
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.head_norms(i);
        d.matrix(&format!("blk.{i}.attn_gate"), &[n, d.qk().0]);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}

fn talkie(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("logit_scale", 0.5);
    d.embedding();
    for i in 0..d.shape.n_layer {
        d.attention(i, Bias::None);
        d.around(&format!("blk.{i}.attn_q_norm.weight"), &[1, d.shape.n_head], 1.0, 0.1);
        d.gated(i, "", d.shape.n_ff);
        d.around(&format!("blk.{i}.layer_output_scale.weight"), &[1], 0.5, 0.1);
    }
}

fn hrm_text(d: &mut ModelBuilder<'_>) {
    d.rms();
    // Two rounds of the lower stack, then the upper one, where the number of blocks allows that.
    let n = d.shape.n_layer;
    let (stack, rounds, lower) = if n.is_multiple_of(4) { (n / 4, 2, 1) } else { (1, 1, n - 1) };
    d.size("hrm.layers_per_stack", stack);
    d.size("hrm.h_cycles", rounds);
    d.size("hrm.l_cycles", lower);
    d.embedding();
    let n = d.shape.n_embd;
    d.around("hrm.z_l_init", &[n], 0.0, 1.0);
    for i in 0..2 * stack {
        d.attention(i, Bias::None);
        d.matrix(&format!("blk.{i}.attn_gate"), &[n, d.qk().0]);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn granite_switch(d: &mut ModelBuilder<'_>) {
    const RANK: usize = 8;
    // The token "e", which everyday texts hold.
    const TOKEN: usize = 260;
    d.rms();
    d.constant("logit_scale", 4.0);
    d.constant("residual_scale", 0.5);
    d.size("adapters.count", 1);
    d.size("adapters.lora_rank", RANK);
    d.constant("adapters.router_gain", 20.0);
    d.sizes("adapters.token_ids_activate", &[TOKEN]);
    d.sizes("adapters.token_ids_substitute", &[TOKEN]);
    d.embedding();
    let (n, n_ff, (q, k)) = (d.shape.n_embd, d.shape.n_ff, d.qk());
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", n_ff);
        for (name, n_in, n_out) in [
            ("attn_q", n, q),
            ("attn_k", n, k),
            ("attn_v", n, k),
            ("attn_output", q, n),
            ("ffn_gate", n, n_ff),
            ("ffn_up", n, n_ff),
            ("ffn_down", n_ff, n),
        ] {
            let std = |n: usize| 1.0 / (n as f32).sqrt();
            d.around(&format!("blk.{i}.{name}.lora_a"), &[n_in, RANK, 2], 0.0, std(n_in));
            d.around(&format!("blk.{i}.{name}.lora_b"), &[RANK, n_out, 2], 0.0, std(RANK));
        }
    }
}
