//! Hybrids of delta nets whose decay is one for each channel, and latent attention: Kimi Linear and those like it.

use super::{Family, MOE, family};
use crate::synth::builder::ModelBuilder;

pub(super) static ALL: &[Family] = &[
    family(
        "kimi-linear",
        "kimi-linear",
        MOE.heads(8, 8, 32).layers(4),
        kimi_linear,
        "hybrid: delta nets with a decay per channel, latent attention without positions in every second block",
    )
    .ungrouped()
    .at_least(2)
    .variant(),
    family(
        "kimi-k3",
        "kimi-k3",
        MOE.heads(8, 8, 32).layers(5),
        kimi_k3,
        "hybrid: kimi-linear with residuals mixed over blocks, experts in a latent space, bounded activations",
    )
    .ungrouped()
    .at_least(2)
    .variant(),
    family(
        "bailingmoe3",
        "bailingmoe3",
        MOE.heads(8, 8, 32).layers(4),
        bailingmoe3,
        "hybrid: kimi-linear with bounded decays, a gate per head and rotated latent attention",
    )
    .ungrouped()
    .at_least(2)
    .variant(),
];

const CONV: usize = 4;
/// Width of a head of a delta net.
const HEAD: usize = 32;

/// Widths of a latent attention.
struct Latent {
    /// Of a head's part without rotation, and with.
    nope: usize,
    rope: usize,
    value: usize,
    /// Of what all heads share.
    shared: usize,
}

fn latent(d: &ModelBuilder<'_>) -> Latent {
    let head = d.shape.head_dim;
    Latent { nope: head, rope: head / 2, value: head, shared: d.shape.n_embd.min(512) }
}

/// Sizes of both, and of the experts. Returns for each block whether it attends.
fn sizes(d: &mut ModelBuilder<'_>) -> Vec<bool> {
    const SIGMOID: usize = 2;
    let Latent { nope, rope, value, shared } = latent(d);
    d.rms();
    for (key, size) in [
        ("ssm.conv_kernel", CONV),
        ("kda.head_dim", HEAD),
        ("attention.kv_lora_rank", shared),
        ("attention.key_length", shared + rope),
        ("attention.value_length", shared),
        ("attention.key_length_mla", nope + rope),
        ("attention.value_length_mla", value),
        ("rope.dimension_count", rope),
        ("leading_dense_block_count", 1),
        ("expert_feed_forward_length", d.shape.n_ff),
        ("expert_shared_count", 1),
        ("expert_gating_func", SIGMOID),
    ] {
        d.size(key, size);
    }
    d.constant("expert_weights_scale", 2.5);
    // All heads share one key and value.
    d.sizes("attention.head_count_kv", &(0..d.shape.n_layer).map(|i| i % 2).collect::<Vec<_>>());
    (0..d.shape.n_layer).map(|i| i % 2 == 1).collect()
}

/// `rates`: shape of the decays of heads.
fn delta_net(d: &mut ModelBuilder<'_>, i: usize, rates: &[usize]) {
    let (n, n_head) = (d.shape.n_embd, d.shape.n_head);
    let inner = n_head * HEAD;
    for part in ["q", "k", "v"] {
        d.matrix(&format!("blk.{i}.attn_{part}"), &[n, inner]);
        d.small_matrix(&format!("blk.{i}.ssm_conv1d_{part}"), &[CONV, 1, inner]);
    }
    d.matrix(&format!("blk.{i}.ssm_beta"), &[n, n_head]);
    // Negative, so that the state decays.
    d.around(&format!("blk.{i}.ssm_a"), rates, -0.5, 0.1);
    d.bias(&format!("blk.{i}.ssm_dt"), &[inner]);
    d.norm(&format!("blk.{i}.ssm_norm"), HEAD);
    d.matrix(&format!("blk.{i}.attn_output"), &[inner, n]);
}

fn latent_attention(d: &mut ModelBuilder<'_>, i: usize) {
    let Latent { nope, rope, value, shared } = latent(d);
    let (n, n_head) = (d.shape.n_embd, d.shape.n_head);
    d.matrix(&format!("blk.{i}.attn_q"), &[n, n_head * (nope + rope)]);
    d.matrix(&format!("blk.{i}.attn_kv_a_mqa"), &[n, shared + rope]);
    d.norm(&format!("blk.{i}.attn_kv_a_norm"), shared);
    d.matrix(&format!("blk.{i}.attn_k_b"), &[nope, shared, n_head]);
    d.matrix(&format!("blk.{i}.attn_v_b"), &[shared, value, n_head]);
    d.matrix(&format!("blk.{i}.attn_output"), &[n_head * value, n]);
}

/// The network of block `i`: experts, in the first block none.
fn network(d: &mut ModelBuilder<'_>, i: usize) {
    d.norm(&format!("blk.{i}.ffn_norm"), d.shape.n_embd);
    if i == 0 {
        d.gated(i, "", d.shape.n_ff);
    } else {
        d.experts(i);
        d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
        d.gated(i, "_shexp", d.shape.n_ff);
    }
}

fn kimi_linear(d: &mut ModelBuilder<'_>) {
    let attends = sizes(d);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for (i, attends) in attends.into_iter().enumerate() {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if attends {
            latent_attention(d, i);
        } else {
            delta_net(d, i, &[1, d.shape.n_head]);
            for part in ["f", "g"] {
                d.matrix(&format!("blk.{i}.ssm_{part}_a"), &[n, HEAD]);
                d.matrix(&format!("blk.{i}.ssm_{part}_b"), &[HEAD, d.shape.n_head * HEAD]);
            }
        }
        network(d, i);
    }
}

fn bailingmoe3(d: &mut ModelBuilder<'_>) {
    d.switch("kda.safe_gate", true);
    d.constant("kda.gate_lower_bound", -5.0);
    let attends = sizes(d);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for (i, attends) in attends.into_iter().enumerate() {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if attends {
            latent_attention(d, i);
            d.matrix(&format!("blk.{i}.attn_gate"), &[n, d.shape.n_head]);
        } else {
            delta_net(d, i, &[1, d.shape.n_head]);
            for part in ["f", "g"] {
                d.matrix(&format!("blk.{i}.ssm_{part}_a"), &[n, d.shape.n_head * HEAD]);
            }
        }
        network(d, i);
    }
}

fn kimi_k3(d: &mut ModelBuilder<'_>) {
    let attends = sizes(d);
    let (n, n_ff, n_head, n_expert) = (d.shape.n_embd, d.shape.n_ff, d.shape.n_head, d.shape.n_expert);
    let narrow = n / 2;
    d.constant("kda.gate_lower_bound", -5.0);
    d.size("expert_latent_length", narrow);
    d.size("attn_res.block_size", 2);
    d.constant("activation.situ_beta", 2.0);
    d.constant("activation.situ_linear_beta", 3.0);
    d.embedding();
    d.norm("output_norm", n);
    d.small_matrix("output_res_score", &[n]);
    for (i, attends) in attends.into_iter().enumerate() {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.small_matrix(&format!("blk.{i}.attn_res_score"), &[n]);
        d.small_matrix(&format!("blk.{i}.ffn_res_score"), &[n]);
        if attends {
            latent_attention(d, i);
            d.matrix(&format!("blk.{i}.attn_gate"), &[n, n_head * latent(d).value]);
        } else {
            delta_net(d, i, &[n_head]);
            d.matrix(&format!("blk.{i}.ssm_f_a"), &[n, HEAD]);
            d.matrix(&format!("blk.{i}.ssm_f_b"), &[HEAD, n_head * HEAD]);
            d.matrix(&format!("blk.{i}.ssm_g"), &[n, n_head * HEAD]);
        }
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        if i == 0 {
            d.gated(i, "", n_ff);
            continue;
        }
        d.small_matrix(&format!("blk.{i}.ffn_gate_inp"), &[n, n_expert]);
        d.bias(&format!("blk.{i}.exp_probs_b"), &[n_expert]);
        d.matrix(&format!("blk.{i}.ffn_gate_exps"), &[narrow, n_ff, n_expert]);
        d.matrix(&format!("blk.{i}.ffn_up_exps"), &[narrow, n_ff, n_expert]);
        d.matrix(&format!("blk.{i}.ffn_down_exps"), &[n_ff, narrow, n_expert]);
        d.matrix(&format!("blk.{i}.ffn_routed_down"), &[n, narrow]);
        d.matrix(&format!("blk.{i}.ffn_routed_up"), &[narrow, n]);
        d.norm(&format!("blk.{i}.ffn_routed_norm"), narrow);
        d.gated(i, "_shexp", n_ff);
    }
}
