//! More recurrent models and hybrids: those of `recurrent` and `states` with experts, gates or other parts.

use super::recurrent::{lfm2_block, lfm2_head, recurrent_2, recurrent_sizes_2};
use super::states::{delta_block, delta_experts, delta_sizes};
use super::{DENSE, Family, MOE, family};
use crate::synth::builder::{Bias, ModelBuilder};
use crate::synth::families::renamed::axes;

const SIGMOID: usize = 2;

pub(super) static ALL: &[Family] = &[
    family(
        "qwen35",
        "qwen35",
        DENSE.layers(4),
        qwen35,
        "hybrid: gated delta nets, gated attention in every second block",
    )
    .at_least(2)
    .variant(),
    family("qwen35moe", "qwen35moe", MOE.layers(4), qwen35moe, "hybrid: qwen35 with experts and a gated shared one")
        .at_least(2)
        .variant(),
    family("lfm2moe", "lfm2moe", MOE.layers(4), lfm2moe, "hybrid: lfm2 with experts, dense first block")
        .square()
        .at_least(2)
        .variant(),
    family(
        "nemotron-h-moe",
        "nemotron_h_moe",
        MOE.layers(6),
        nemotron_h_moe,
        "hybrid: nemotron-h with experts (squared ReLU) in place of MLPs",
    )
    .at(&[1, 3])
    .at_least(4)
    .variant(),
    family(
        "minimax-01",
        "minimax-01",
        MOE.layers(4),
        minimax_01,
        "hybrid: lightning attention (a matrix state with a decay for each head), attention in every second block, MoE",
    )
    .at_least(2)
    .variant(),
    family(
        "rwkv6qwen2",
        "rwkv6qwen2",
        DENSE,
        rwkv6qwen2,
        "recurrent: RWKV 6 with GQA and SwiGLU, gated linear attention",
    )
    .variant(),
    family("arwkv7", "arwkv7", DENSE, arwkv7, "recurrent: RWKV 7 with RMSNorm and SwiGLU").variant(),
];

fn qwen35(d: &mut ModelBuilder<'_>) {
    delta_sizes(d);
    axes(d, d.shape.head_dim / 2);
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        delta_block(d, i, &["ssm_alpha", "ssm_beta"]);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn qwen35moe(d: &mut ModelBuilder<'_>) {
    delta_sizes(d);
    axes(d, d.shape.head_dim / 2);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_feed_forward_length", d.shape.n_ff);
    d.embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        delta_block(d, i, &["ssm_alpha", "ssm_beta"]);
        delta_experts(d, i);
    }
}

fn lfm2moe(d: &mut ModelBuilder<'_>) {
    d.size("leading_dense_block_count", 1);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_gating_func", SIGMOID);
    for (i, heads) in lfm2_head(d).into_iter().enumerate() {
        lfm2_block(d, i, heads);
        if i == 0 {
            d.gated(i, "", d.shape.n_ff);
        } else {
            d.experts(i);
            d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
        }
    }
}

fn nemotron_h_moe(d: &mut ModelBuilder<'_>) {
    recurrent_sizes_2(d);
    d.layer_norm();
    let (n, n_ff, n_expert) = (d.shape.n_embd, d.shape.n_ff, d.shape.n_expert);
    d.size("expert_feed_forward_length", n_ff);
    d.size("expert_shared_feed_forward_length", n_ff);
    d.size("expert_shared_count", 1);
    d.switch("expert_weights_norm", true);
    d.constant("expert_weights_scale", 2.5);
    // Recurrent, experts, attention, experts, and again: a block is one of them.
    let part = |i: usize| ["recurrent", "experts", "attention", "experts"][i % 4];
    let of =
        |name: &str, n: usize| (0..d.shape.n_layer).map(|i| if part(i) == name { n } else { 0 }).collect::<Vec<_>>();
    let (heads, widths) = (of("attention", d.shape.n_head_kv), of("experts", n_ff));
    d.sizes("attention.head_count_kv", &heads);
    d.sizes("feed_forward_length", &widths);
    d.embedding();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        match part(i) {
            "recurrent" => recurrent_2(d, i),
            "experts" => {
                d.small_matrix(&format!("blk.{i}.ffn_gate_inp"), &[n, n_expert]);
                d.bias(&format!("blk.{i}.exp_probs_b"), &[n_expert]);
                d.matrix(&format!("blk.{i}.ffn_up_exps"), &[n, n_ff, n_expert]);
                d.matrix(&format!("blk.{i}.ffn_down_exps"), &[n_ff, n, n_expert]);
                d.matrix(&format!("blk.{i}.ffn_up_shexp"), &[n, n_ff]);
                d.matrix(&format!("blk.{i}.ffn_down_shexp"), &[n_ff, n]);
            }
            _ => d.attention(i, Bias::None),
        }
    }
}

/// Width of a head of RWKV, and rank of its small matrices.
const HEAD: usize = 64;
const RANK: usize = 16;

fn rwkv6qwen2(d: &mut ModelBuilder<'_>) {
    d.rms();
    let n = d.shape.n_embd;
    // Half as many heads of keys and values.
    let kv = if (n / HEAD).is_multiple_of(2) { n / 2 } else { n };
    for (key, size) in [
        ("wkv.head_size", HEAD),
        ("token_shift_count", 1),
        ("time_mix_extra_dim", RANK),
        ("time_decay_extra_dim", RANK),
        ("attention.head_count", n / HEAD),
        ("attention.head_count_kv", kv / HEAD),
    ] {
        d.size(key, size);
    }
    d.embedding();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.small_matrix(&format!("blk.{i}.time_mix_w1"), &[n, 5 * RANK]);
        d.small_matrix(&format!("blk.{i}.time_mix_w2"), &[RANK, n, 5]);
        d.around(&format!("blk.{i}.time_mix_lerp_x.weight"), &[n, 1, 1], 0.5, 0.2);
        d.around(&format!("blk.{i}.time_mix_lerp_fused.weight"), &[n, 1, 1, 5], 0.5, 0.2);
        // Decays are exp(-exp(x)).
        d.around(&format!("blk.{i}.time_mix_decay.weight"), &[n], -1.0, 0.5);
        d.small_matrix(&format!("blk.{i}.time_mix_decay_w1"), &[n, RANK]);
        d.small_matrix(&format!("blk.{i}.time_mix_decay_w2"), &[RANK, n]);
        for (name, width) in [("key", kv), ("value", kv), ("receptance", n)] {
            d.matrix(&format!("blk.{i}.time_mix_{name}"), &[n, width]);
            d.bias(&format!("blk.{i}.time_mix_{name}"), &[width]);
        }
        for name in ["gate", "output"] {
            d.matrix(&format!("blk.{i}.time_mix_{name}"), &[n, n]);
        }
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn arwkv7(d: &mut ModelBuilder<'_>) {
    d.rms();
    for part in ["decay", "iclr", "value_residual_mix", "gate"] {
        d.size(&format!("attention.{part}_lora_rank"), RANK);
    }
    d.size("wkv.head_size", HEAD);
    d.size("token_shift_count", 1);
    for key in ["attention.head_count", "attention.head_count_kv"] {
        d.size(key, 0);
    }
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        for name in ["key", "value", "receptance", "output"] {
            d.matrix(&format!("blk.{i}.time_mix_{name}"), &[n, n]);
        }
        super::states::rwkv7_mix(d, i);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

fn minimax_01(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.constant("residual_scale", 1.5);
    d.size("full_attention_interval", 2);
    d.embedding();
    let n = d.shape.n_embd;
    let (q, _) = d.qk();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if i % 2 == 1 {
            d.attention(i, Bias::None);
        } else {
            d.norm(&format!("blk.{i}.attn_norm_2"), q);
            d.matrix(&format!("blk.{i}.attn_qkv"), &[n, 3 * q]);
            d.matrix(&format!("blk.{i}.attn_gate"), &[n, q]);
            d.matrix(&format!("blk.{i}.attn_output"), &[q, n]);
        }
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.experts(i);
    }
}
