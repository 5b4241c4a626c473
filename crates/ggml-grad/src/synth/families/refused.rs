//! Models that bidpo does not train on, for the tests that it says so.

use super::recurrent::alternating_heads;
use crate::synth::builder::ModelBuilder;

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

/// llama.cpp's graph of it takes no control vectors.
pub(super) fn plamo2(d: &mut ModelBuilder<'_>) {
    const STATE: usize = 16;
    const CONV: usize = 4;
    const SCANS: usize = 8;
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    let (inner, rank) = (2 * n, (n / 16).max(64));
    d.rms();
    d.size("ssm.conv_kernel", CONV);
    d.size("ssm.inner_size", inner);
    d.size("ssm.state_size", STATE);
    d.size("ssm.time_step_rank", SCANS);
    d.size("ssm.group_count", 0);
    let heads = alternating_heads(d);
    let (q, k) = d.qk();
    d.tied_embedding();
    d.norm("output_norm", n);
    for (i, heads) in heads.into_iter().enumerate() {
        let bare = |d: &mut ModelBuilder<'_>, name: &str, n: usize| {
            d.around(&format!("blk.{i}.{name}"), &[n], 1.0, 0.1);
        };
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if heads == 0 {
            d.matrix(&format!("blk.{i}.ssm_in"), &[n, 2 * inner]);
            d.small_matrix(&format!("blk.{i}.ssm_conv1d"), &[CONV, inner]);
            d.matrix(&format!("blk.{i}.ssm_x"), &[inner, rank + 2 * STATE]);
            d.matrix(&format!("blk.{i}.ssm_dt"), &[rank, SCANS]);
            d.bias(&format!("blk.{i}.ssm_dt"), &[SCANS]);
            d.around(&format!("blk.{i}.ssm_a"), &[SCANS], -1.0, 0.1);
            d.around(&format!("blk.{i}.ssm_d"), &[SCANS], 1.0, 0.1);
            d.matrix(&format!("blk.{i}.ssm_out"), &[inner, n]);
            for (name, n) in [("ssm_dt_norm", rank), ("ssm_b_norm", STATE), ("ssm_c_norm", STATE)] {
                bare(d, name, n);
            }
        } else {
            d.matrix(&format!("blk.{i}.attn_qkv"), &[n, q + 2 * k]);
            for (part, heads) in [("q", d.shape.n_head), ("k", heads)] {
                d.around(&format!("blk.{i}.attn_{part}_norm.weight"), &[d.shape.head_dim, heads], 1.0, 0.1);
            }
            d.matrix(&format!("blk.{i}.attn_output"), &[q, n]);
        }
        bare(d, "post_attention_norm", n);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.matrix(&format!("blk.{i}.ffn_up"), &[n, 2 * n_ff]);
        d.matrix(&format!("blk.{i}.ffn_down"), &[n_ff, n]);
        bare(d, "post_ffw_norm", n);
    }
}
