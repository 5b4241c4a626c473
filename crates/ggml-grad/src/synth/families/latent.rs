//! DeepSeek's models and those like them: keys and values, in the larger ones queries too, pass through a latent space.

use super::{DENSE, Family, MOE, Refusal, family};
use crate::synth::builder::ModelBuilder;

/// Those beyond DeepSeek's and MiniCPM's.
pub(super) static MORE: &[Family] = &[
    family("plm", "plm", DENSE.heads(8, 8, 32), plm, "MLA in a dense model, squared ReLU").ungrouped().variant(),
    family(
        "mistral4",
        "mistral4",
        MOE.heads(8, 8, 32).layers(4),
        mistral4,
        "deepseek2 with queries scaled by their position",
    )
    .ungrouped()
    .variant(),
    family(
        "deepseek32",
        "deepseek32",
        MOE.heads(8, 8, 32).layers(4).experts(8, 2),
        deepseek32,
        "MLA over the tokens that an indexer picks",
    )
    .ungrouped()
    .refused(Refusal::MissingRule),
    family(
        "dots3note",
        "dots3note",
        MOE.heads(8, 8, 32).layers(5).experts(8, 2),
        dots3note,
        "deepseek32 with a gate per head, and windows on another latent attention in every second block",
    )
    .ungrouped()
    .refused(Refusal::MissingRule),
    family(
        "glm-dsa",
        "glm-dsa",
        MOE.heads(8, 8, 32).layers(4).experts(8, 2),
        deepseek32,
        "MLA over the tokens that an indexer picks",
    )
    .ungrouped()
    .refused(Refusal::MissingRule),
];

/// Width of a head's rotated part.
fn rotated(d: &ModelBuilder<'_>) -> usize {
    d.shape.head_dim / 2
}

struct Form {
    latent_query: bool,
    /// Keys and values expanded by one matrix, as in older files.
    unsplit: bool,
    v3_router: bool,
    /// A latent space half as wide in every second block.
    narrow: bool,
}

/// The large models of today.
const V3: Form = Form { latent_query: true, unsplit: false, v3_router: true, narrow: false };

fn build(d: &mut ModelBuilder<'_>, form: &Form) {
    let (n, n_ff, n_head) = (d.shape.n_embd, d.shape.n_ff, d.shape.n_head);
    // A head is `head_dim` numbers without rotation and half as many with.
    let (nope, rope) = (d.shape.head_dim, rotated(d));
    let (latent, value) = (n.min(512), d.shape.head_dim);
    d.rms();
    d.size("leading_dense_block_count", 1);
    d.size("attention.q_lora_rank", if form.latent_query { n } else { 0 });
    d.size("attention.kv_lora_rank", latent);
    d.size("rope.dimension_count", rope);
    if form.unsplit {
        d.size("attention.head_count_kv", n_head);
        d.size("attention.key_length", nope + rope);
        d.size("attention.value_length", value);
    } else {
        // Through the latent space all heads share one key and value.
        d.size("attention.head_count_kv", 1);
        d.size("attention.key_length", latent + rope);
        d.size("attention.value_length", latent);
        d.size("attention.key_length_mla", nope + rope);
        d.size("attention.value_length_mla", value);
    }
    d.size("expert_feed_forward_length", n_ff);
    d.size("expert_shared_count", 1);
    if form.v3_router {
        const SIGMOID: usize = 2;
        d.size("expert_gating_func", SIGMOID);
        d.constant("expert_weights_scale", 2.5);
        d.switch("expert_weights_norm", true);
        if d.shape.n_expert.is_multiple_of(4) && d.shape.n_expert >= 8 {
            d.size("expert_group_count", 4);
            d.size("expert_group_used_count", 2);
        }
    }
    d.embedding();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        let latent = if form.narrow && i % 2 == 1 { latent / 2 } else { latent };
        d.norm(&format!("blk.{i}.attn_norm"), n);
        if form.latent_query {
            d.matrix(&format!("blk.{i}.attn_q_a"), &[n, n]);
            d.norm(&format!("blk.{i}.attn_q_a_norm"), n);
            d.matrix(&format!("blk.{i}.attn_q_b"), &[n, n_head * (nope + rope)]);
        } else {
            d.matrix(&format!("blk.{i}.attn_q"), &[n, n_head * (nope + rope)]);
        }
        d.matrix(&format!("blk.{i}.attn_kv_a_mqa"), &[n, latent + rope]);
        d.norm(&format!("blk.{i}.attn_kv_a_norm"), latent);
        if form.unsplit {
            d.matrix(&format!("blk.{i}.attn_kv_b"), &[latent, n_head * (nope + value)]);
        } else {
            d.matrix(&format!("blk.{i}.attn_k_b"), &[nope, latent, n_head]);
            d.matrix(&format!("blk.{i}.attn_v_b"), &[latent, value, n_head]);
        }
        d.matrix(&format!("blk.{i}.attn_output"), &[n_head * value, n]);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        if i == 0 {
            d.gated(i, "", n_ff);
        } else {
            d.experts(i);
            if form.v3_router {
                d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
            }
            d.gated(i, "_shexp", n_ff);
        }
    }
}

/// Another model with latent attention, expanded to heads, but a dense one.
pub(super) fn minicpm3(d: &mut ModelBuilder<'_>) {
    let (n, n_head) = (d.shape.n_embd, d.shape.n_head);
    let (nope, rope) = (d.shape.head_dim, rotated(d));
    let (latent, value) = (n.min(512), d.shape.head_dim);
    d.rms();
    d.size("attention.q_lora_rank", n);
    d.size("attention.kv_lora_rank", latent);
    d.size("attention.key_length", nope + rope);
    d.size("attention.value_length", value);
    d.size("rope.dimension_count", rope);
    d.tied_embedding();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.matrix(&format!("blk.{i}.attn_q_a"), &[n, n]);
        d.norm(&format!("blk.{i}.attn_q_a_norm"), n);
        d.matrix(&format!("blk.{i}.attn_q_b"), &[n, n_head * (nope + rope)]);
        d.matrix(&format!("blk.{i}.attn_kv_a_mqa"), &[n, latent + rope]);
        d.norm(&format!("blk.{i}.attn_kv_a_norm"), latent);
        d.matrix(&format!("blk.{i}.attn_kv_b"), &[latent, n_head * (nope + value)]);
        d.matrix(&format!("blk.{i}.attn_output"), &[n_head * value, n]);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
    }
}

pub(super) fn deepseek2(d: &mut ModelBuilder<'_>) {
    // llama.cpp knows the smaller models, without a latent query, by their depth.
    let small = [26, 27].contains(&d.shape.n_layer);
    build(d, &Form { latent_query: !small, ..V3 });
}

pub(super) fn lite(d: &mut ModelBuilder<'_>) {
    build(d, &Form { latent_query: false, v3_router: false, ..V3 });
}

pub(super) fn unsplit(d: &mut ModelBuilder<'_>) {
    build(d, &Form { latent_query: false, unsplit: true, v3_router: false, ..V3 });
}

pub(super) fn mistral4(d: &mut ModelBuilder<'_>) {
    d.constant("attention.temperature_scale", 0.1);
    // Short, so that short texts reach past it: queries grow behind it.
    d.size("attention.temperature_length", 8);
    build(d, &Form { v3_router: false, ..V3 });
}

/// Tokens that an indexer picks for each query: few, so that it leaves some out of short texts.
const PICKED: usize = 12;

pub(super) fn deepseek32(d: &mut ModelBuilder<'_>) {
    indexer_sizes(d);
    build(d, &V3);
    for i in 0..d.shape.n_layer {
        indexer(d, i);
    }
}

/// Heads of an indexer, and their width.
const INDEXER: (usize, usize) = (4, 64);

fn indexer_sizes(d: &mut ModelBuilder<'_>) {
    d.size("attention.indexer.head_count", INDEXER.0);
    d.size("attention.indexer.key_length", INDEXER.1);
    d.size("attention.indexer.top_k", PICKED);
}

fn indexer(d: &mut ModelBuilder<'_>, i: usize) {
    let (n, (heads, width)) = (d.shape.n_embd, INDEXER);
    let name = |part: &str| format!("blk.{i}.indexer.{part}");
    d.norm_bias(&name("k_norm"), width);
    d.small_matrix(&name("proj"), &[n, heads]);
    d.matrix(&name("attn_k"), &[n, width]);
    d.matrix(&name("attn_q_b"), &[n, heads * width]);
}

fn dots3note(d: &mut ModelBuilder<'_>) {
    let windows: Vec<bool> = (0..d.shape.n_layer).map(|i| i % 2 == 1).collect();
    let narrow = d.shape.n_embd.min(512) / 2;
    let (nope, rope) = (d.shape.head_dim, rotated(d));
    indexer_sizes(d);
    d.window();
    d.constant("rope.freq_base_swa", 1e4);
    d.switches("attention.sliding_window_pattern", &windows);
    d.switches("attention.indexer.types", &windows.iter().map(|w| !w).collect::<Vec<_>>());
    d.size("attention.kv_lora_rank_swa", narrow);
    d.size("attention.key_length_swa", narrow + rope);
    d.size("attention.value_length_swa", narrow);
    d.size("attention.key_length_mla_swa", nope + rope);
    d.size("attention.value_length_mla_swa", nope);
    build(d, &Form { narrow: true, ..V3 });
    for (i, window) in windows.into_iter().enumerate() {
        d.norm(&format!("blk.{i}.attn_k_norm"), rope);
        d.matrix(&format!("blk.{i}.attn_gate"), &[d.shape.n_embd, d.shape.n_head]);
        if !window {
            indexer(d, i);
        }
    }
}

pub(super) fn plm(d: &mut ModelBuilder<'_>) {
    let (n, n_head) = (d.shape.n_embd, d.shape.n_head);
    let (nope, rope) = (d.shape.head_dim, rotated(d));
    let (latent, value) = (n.min(512), d.shape.head_dim);
    d.rms();
    d.size("attention.kv_lora_rank", latent);
    d.size("attention.key_length", nope + rope);
    d.size("attention.value_length", value);
    d.size("rope.dimension_count", rope);
    d.tied_embedding();
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.matrix(&format!("blk.{i}.attn_q"), &[n, n_head * (nope + rope)]);
        d.matrix(&format!("blk.{i}.attn_kv_a_mqa"), &[n, latent + rope]);
        d.norm(&format!("blk.{i}.attn_kv_a_norm"), latent);
        d.matrix(&format!("blk.{i}.attn_kv_b"), &[latent, n_head * (nope + value)]);
        d.matrix(&format!("blk.{i}.attn_output"), &[n_head * value, n]);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.plain(i, false);
    }
}
