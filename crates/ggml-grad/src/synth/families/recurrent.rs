//! Recurrent models (Mamba 1 and 2, short convolutions), alone or beside attention.

use crate::synth::builder::{Bias, ModelBuilder};

/// Sizes of a recurrent block's inside: numbers in the state a channel, rank of the time step.
const STATE: usize = 16;
const RANK: usize = 16;
const CONV: usize = 4;

fn recurrent_sizes(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("ssm.conv_kernel", CONV);
    d.size("ssm.inner_size", 2 * d.shape.n_embd);
    d.size("ssm.state_size", STATE);
    d.size("ssm.time_step_rank", RANK);
}

fn recurrent(d: &mut ModelBuilder<'_>, i: usize) {
    let n = d.shape.n_embd;
    let inner = 2 * n;
    d.norm(&format!("blk.{i}.attn_norm"), n);
    d.matrix(&format!("blk.{i}.ssm_in"), &[n, 2 * inner]);
    d.small_matrix(&format!("blk.{i}.ssm_conv1d"), &[CONV, inner]);
    d.bias(&format!("blk.{i}.ssm_conv1d"), &[inner]);
    d.matrix(&format!("blk.{i}.ssm_x"), &[inner, RANK + 2 * STATE]);
    d.matrix(&format!("blk.{i}.ssm_dt"), &[RANK, inner]);
    d.bias(&format!("blk.{i}.ssm_dt"), &[inner]);
    // Negative, so that the state decays.
    d.around(&format!("blk.{i}.ssm_a"), &[STATE, inner], -1.0, 0.1);
    d.around(&format!("blk.{i}.ssm_d"), &[inner], 1.0, 0.1);
    d.matrix(&format!("blk.{i}.ssm_out"), &[inner, n]);
}

pub(super) fn mamba(d: &mut ModelBuilder<'_>) {
    recurrent_sizes(d);
    for key in ["feed_forward_length", "attention.head_count", "attention.head_count_kv"] {
        d.size(key, 0);
    }
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        recurrent(d, i);
    }
}

pub(super) fn jamba(d: &mut ModelBuilder<'_>) {
    recurrent_sizes(d);
    // Every second block attends.
    let heads: Vec<usize> = (0..d.shape.n_layer).map(|i| if i % 2 == 1 { d.shape.n_head_kv } else { 0 }).collect();
    d.sizes("attention.head_count_kv", &heads);
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for (i, heads) in heads.into_iter().enumerate() {
        if heads == 0 {
            recurrent(d, i);
            d.norm(&format!("blk.{i}.ssm_dt_norm"), RANK);
            d.norm(&format!("blk.{i}.ssm_b_norm"), STATE);
            d.norm(&format!("blk.{i}.ssm_c_norm"), STATE);
        } else {
            d.norm(&format!("blk.{i}.attn_norm"), n);
            d.attention(i, Bias::None);
        }
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

/// Numbers in the state of a channel, and groups of heads that share them, of a Mamba 2 block.
const STATE_2: usize = 32;
const GROUPS: usize = 2;
/// Channels of one of its heads.
const HEAD: usize = 64;

pub(super) fn recurrent_sizes_2(d: &mut ModelBuilder<'_>) {
    d.rms();
    let inner = 2 * d.shape.n_embd;
    d.size("ssm.conv_kernel", CONV);
    d.size("ssm.inner_size", inner);
    d.size("ssm.state_size", STATE_2);
    d.size("ssm.time_step_rank", inner / HEAD);
    d.size("ssm.group_count", GROUPS);
}

pub(super) fn recurrent_2(d: &mut ModelBuilder<'_>, i: usize) {
    let n = d.shape.n_embd;
    let inner = 2 * n;
    let (heads, convolved) = (inner / HEAD, inner + 2 * GROUPS * STATE_2);
    d.matrix(&format!("blk.{i}.ssm_in"), &[n, inner + convolved + heads]);
    d.small_matrix(&format!("blk.{i}.ssm_conv1d"), &[CONV, convolved]);
    d.bias(&format!("blk.{i}.ssm_conv1d"), &[convolved]);
    d.bias(&format!("blk.{i}.ssm_dt"), &[heads]);
    // Negative, so that the state decays.
    d.around(&format!("blk.{i}.ssm_a"), &[1, heads], -1.0, 0.1);
    d.around(&format!("blk.{i}.ssm_d"), &[1, heads], 1.0, 0.1);
    d.around(&format!("blk.{i}.ssm_norm.weight"), &[inner / GROUPS, GROUPS], 1.0, 0.1);
    d.matrix(&format!("blk.{i}.ssm_out"), &[inner, n]);
}

pub(super) fn mamba2(d: &mut ModelBuilder<'_>) {
    recurrent_sizes_2(d);
    for key in ["feed_forward_length", "attention.head_count", "attention.head_count_kv"] {
        d.size(key, 0);
    }
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), d.shape.n_embd);
        recurrent_2(d, i);
    }
}

pub(super) fn falcon_h1(d: &mut ModelBuilder<'_>) {
    recurrent_sizes_2(d);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        recurrent_2(d, i);
        d.attention(i, Bias::None);
        // Without the usual suffix.
        d.around(&format!("blk.{i}.ffn_norm"), &[n], 1.0, 0.1);
        d.gated(i, "", d.shape.n_ff);
    }
}

/// Key-value heads of each block: every second one attends, the others have none.
pub(super) fn alternating_heads(d: &mut ModelBuilder<'_>) -> Vec<usize> {
    let heads: Vec<usize> = (0..d.shape.n_layer).map(|i| if i % 2 == 1 { d.shape.n_head_kv } else { 0 }).collect();
    d.sizes("attention.head_count_kv", &heads);
    heads
}

pub(super) fn granite_hybrid(d: &mut ModelBuilder<'_>) {
    recurrent_sizes_2(d);
    for (key, value) in
        [("logit_scale", 2.0), ("residual_scale", 0.5), ("embedding_scale", 4.0), ("attention.scale", 0.1)]
    {
        d.constant(key, value);
    }
    let heads = alternating_heads(d);
    d.tied_embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for (i, heads) in heads.into_iter().enumerate() {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if heads == 0 {
            recurrent_2(d, i);
        } else {
            d.attention(i, Bias::None);
        }
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

pub(super) fn nemotron_h(d: &mut ModelBuilder<'_>) {
    recurrent_sizes_2(d);
    d.layer_norm();
    // Recurrent, MLP, attention, MLP, and again: a block is one of them.
    let part = |i: usize| ["recurrent", "mlp", "attention", "mlp"][i % 4];
    let of =
        |name: &str, n: usize| (0..d.shape.n_layer).map(|i| if part(i) == name { n } else { 0 }).collect::<Vec<_>>();
    let (heads, widths) = (of("attention", d.shape.n_head_kv), of("mlp", d.shape.n_ff));
    d.sizes("attention.head_count_kv", &heads);
    d.sizes("feed_forward_length", &widths);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        match part(i) {
            "recurrent" => recurrent_2(d, i),
            "mlp" => d.plain(i, false),
            _ => d.attention(i, Bias::None),
        }
    }
}

/// Tokens that a short convolution sees.
const WINDOW: usize = 3;

/// Sizes and head of lfm2. Returns the key-value heads of each block.
pub(super) fn lfm2_head(d: &mut ModelBuilder<'_>) -> Vec<usize> {
    d.rms();
    d.size("shortconv.l_cache", WINDOW);
    let heads = alternating_heads(d);
    d.tied_embedding();
    // The norm before the LM head, under this name.
    d.norm("token_embd_norm", d.shape.n_embd);
    heads
}

/// Block `i` of lfm2 but for its network: attention, or without `heads` a short convolution.
pub(super) fn lfm2_block(d: &mut ModelBuilder<'_>, i: usize, heads: usize) {
    let n = d.shape.n_embd;
    d.norm(&format!("blk.{i}.attn_norm"), n);
    if heads == 0 {
        d.small_matrix(&format!("blk.{i}.shortconv.conv"), &[WINDOW, n]);
        d.matrix(&format!("blk.{i}.shortconv.in_proj"), &[n, 3 * n]);
        d.matrix(&format!("blk.{i}.shortconv.out_proj"), &[n, n]);
    } else {
        d.attention(i, Bias::None);
        d.head_norms(i);
    }
    d.norm(&format!("blk.{i}.ffn_norm"), n);
}

pub(super) fn lfm2(d: &mut ModelBuilder<'_>) {
    for (i, heads) in lfm2_head(d).into_iter().enumerate() {
        lfm2_block(d, i, heads);
        d.gated(i, "", d.shape.n_ff);
    }
}
