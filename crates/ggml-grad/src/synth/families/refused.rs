//! Models that bidpo does not train on, for the tests that it says so.

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

pub(super) fn t5(d: &mut ModelBuilder<'_>) {
    const BUCKETS: usize = 8;
    d.rms();
    d.size("attention.relative_buckets_count", BUCKETS);
    d.size("decoder_start_token_id", 0);
    d.tied_embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    for side in ["enc", "dec"] {
        d.norm(&format!("{side}.output_norm"), n);
        for i in 0..d.shape.n_layer {
            let attentions: &[&str] = if side == "dec" { &["attn", "cross_attn"] } else { &["attn"] };
            for a in attentions {
                let name = format!("{side}.blk.{i}.{a}");
                d.norm(&format!("{name}_norm"), n);
                d.small_matrix(&format!("{name}_rel_b"), &[d.shape.n_head, BUCKETS]);
                for part in ["q", "k", "v", "o"] {
                    d.matrix(&format!("{name}_{part}"), &[n, n]);
                }
            }
            let name = format!("{side}.blk.{i}.ffn");
            d.norm(&format!("{name}_norm"), n);
            d.matrix(&format!("{name}_up"), &[n, n_ff]);
            d.matrix(&format!("{name}_down"), &[n_ff, n]);
        }
    }
}
