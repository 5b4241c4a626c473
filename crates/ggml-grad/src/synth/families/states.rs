//! Recurrent models whose states are matrices: RWKV 6 and 7, gated delta nets beside attention.

use crate::synth::builder::ModelBuilder;

/// Width of a head of RWKV (ggml's kernel of RWKV 7 takes multiples of 64 only), and rank of its small matrices.
const HEAD: usize = 64;
const RANK: usize = 16;

fn rwkv(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.size("wkv.head_size", HEAD);
    d.size("token_shift_count", 2);
    for key in ["attention.head_count", "attention.head_count_kv"] {
        d.size(key, 0);
    }
    d.embedding();
    let n = d.shape.n_embd;
    d.norm_bias("token_embd_norm", n);
    d.norm_bias("output_norm", n);
    for i in 0..d.shape.n_layer {
        for name in ["attn_norm", "attn_norm_2", "time_mix_ln"] {
            d.norm_bias(&format!("blk.{i}.{name}"), n);
        }
        for name in ["key", "value", "receptance", "output"] {
            d.matrix(&format!("blk.{i}.time_mix_{name}"), &[n, n]);
        }
        d.around(&format!("blk.{i}.channel_mix_lerp_k.weight"), &[n, 1, 1], 0.5, 0.2);
        d.matrix(&format!("blk.{i}.channel_mix_key"), &[n, d.shape.n_ff]);
        d.matrix(&format!("blk.{i}.channel_mix_value"), &[d.shape.n_ff, n]);
    }
}

pub(super) fn rwkv6(d: &mut ModelBuilder<'_>) {
    d.size("time_mix_extra_dim", RANK);
    d.size("time_decay_extra_dim", RANK);
    d.size("rescale_every_n_layers", 2);
    rwkv(d);
    let n = d.shape.n_embd;
    for i in 0..d.shape.n_layer {
        d.matrix(&format!("blk.{i}.time_mix_gate"), &[n, n]);
        d.small_matrix(&format!("blk.{i}.time_mix_w1"), &[n, 5 * RANK]);
        d.small_matrix(&format!("blk.{i}.time_mix_w2"), &[RANK, n, 5]);
        d.around(&format!("blk.{i}.time_mix_lerp_x.weight"), &[n, 1, 1], 0.5, 0.2);
        d.around(&format!("blk.{i}.time_mix_lerp_fused.weight"), &[n, 1, 1, 5], 0.5, 0.2);
        d.around(&format!("blk.{i}.time_mix_first.weight"), &[HEAD, n / HEAD], 0.5, 0.2);
        // Decays are exp(-exp(x)).
        d.around(&format!("blk.{i}.time_mix_decay.weight"), &[n], -1.0, 0.5);
        d.small_matrix(&format!("blk.{i}.time_mix_decay_w1"), &[n, RANK]);
        d.small_matrix(&format!("blk.{i}.time_mix_decay_w2"), &[RANK, n]);
        d.around(&format!("blk.{i}.channel_mix_lerp_r.weight"), &[n, 1, 1], 0.5, 0.2);
        d.matrix(&format!("blk.{i}.channel_mix_receptance"), &[n, n]);
    }
}

pub(super) fn rwkv7(d: &mut ModelBuilder<'_>) {
    for part in ["decay", "iclr", "value_residual_mix", "gate"] {
        d.size(&format!("attention.{part}_lora_rank"), RANK);
    }
    rwkv(d);
    for i in 0..d.shape.n_layer {
        rwkv7_mix(d, i);
    }
}

/// The small tensors of block `i`'s time mixing in RWKV 7.
pub(super) fn rwkv7_mix(d: &mut ModelBuilder<'_>, i: usize) {
    let n = d.shape.n_embd;
    for part in ["w", "a", "v"] {
        d.around(&format!("blk.{i}.time_mix_{part}0.weight"), &[n], 0.0, 0.5);
        d.small_matrix(&format!("blk.{i}.time_mix_{part}1"), &[n, RANK]);
        d.small_matrix(&format!("blk.{i}.time_mix_{part}2"), &[RANK, n]);
    }
    d.small_matrix(&format!("blk.{i}.time_mix_g1"), &[n, RANK]);
    d.small_matrix(&format!("blk.{i}.time_mix_g2"), &[RANK, n]);
    d.around(&format!("blk.{i}.time_mix_lerp_fused.weight"), &[n, 1, 1, 6], 0.5, 0.2);
    d.around(&format!("blk.{i}.time_mix_k_k.weight"), &[n], 1.0, 0.1);
    d.around(&format!("blk.{i}.time_mix_k_a.weight"), &[n], 1.0, 0.1);
    d.around(&format!("blk.{i}.time_mix_r_k.weight"), &[n], 0.0, 0.2);
}

/// Heads of keys, heads of values, width of both in a gated delta net.
const DELTA: (usize, usize, usize) = (2, 4, 32);
const CONV: usize = 4;

/// Sizes of gated delta nets with a gated attention in every second block.
pub(super) fn delta_sizes(d: &mut ModelBuilder<'_>) {
    d.rms();
    let (keys, values, width) = DELTA;
    for (key, value) in [
        ("ssm.conv_kernel", CONV),
        ("ssm.inner_size", values * width),
        ("ssm.state_size", width),
        ("ssm.time_step_rank", values),
        ("ssm.group_count", keys),
        ("full_attention_interval", 2),
        ("rope.dimension_count", d.shape.head_dim / 2),
    ] {
        d.size(key, value);
    }
}

/// Block `i` but for its network: a gated delta net, or in every second block a gated attention. `rates`: the matrices of
/// the delta net's decay and step, whose rows are those of one or two heads of values.
pub(super) fn delta_block(d: &mut ModelBuilder<'_>, i: usize, rates: &[&str]) {
    let n = d.shape.n_embd;
    let (q, k) = d.qk();
    d.norm(&format!("blk.{i}.attn_norm"), n);
    d.norm(&format!("blk.{i}.post_attention_norm"), n);
    if i % 2 == 1 {
        // Each query with a gate.
        d.matrix(&format!("blk.{i}.attn_q"), &[n, 2 * q]);
        d.matrix(&format!("blk.{i}.attn_k"), &[n, k]);
        d.matrix(&format!("blk.{i}.attn_v"), &[n, k]);
        d.matrix(&format!("blk.{i}.attn_output"), &[q, n]);
        d.head_norms(i);
        return;
    }
    let (keys, values, width) = DELTA;
    let (of_keys, of_values) = (keys * width, values * width);
    d.matrix(&format!("blk.{i}.attn_qkv"), &[n, 2 * of_keys + of_values]);
    d.matrix(&format!("blk.{i}.attn_gate"), &[n, of_values]);
    d.small_matrix(&format!("blk.{i}.ssm_conv1d"), &[CONV, 2 * of_keys + of_values]);
    d.bias(&format!("blk.{i}.ssm_dt"), &[values]);
    // Negative, so that the state decays.
    d.around(&format!("blk.{i}.ssm_a"), &[values], -0.5, 0.1);
    for name in rates {
        d.matrix(&format!("blk.{i}.{name}"), &[n, 2 * values / rates.len()]);
    }
    d.norm(&format!("blk.{i}.ssm_norm"), width);
    d.matrix(&format!("blk.{i}.ssm_out"), &[of_values, n]);
}

/// Experts and a gated shared one.
pub(super) fn delta_experts(d: &mut ModelBuilder<'_>, i: usize) {
    d.experts(i);
    d.small_matrix(&format!("blk.{i}.ffn_gate_inp_shexp"), &[d.shape.n_embd]);
    d.gated(i, "_shexp", d.shape.n_ff);
}

pub(super) fn qwen3next(d: &mut ModelBuilder<'_>) {
    delta_sizes(d);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_feed_forward_length", d.shape.n_ff);
    d.embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        delta_block(d, i, &["ssm_ba"]);
        delta_experts(d, i);
    }
}
