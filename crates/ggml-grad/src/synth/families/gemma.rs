//! Google's gemma family.

use crate::synth::builder::{Bias, ModelBuilder};

fn block(d: &mut ModelBuilder<'_>, i: usize, post_norms: bool) {
    let n = d.shape.n_embd;
    d.norm(&format!("blk.{i}.attn_norm"), n);
    d.attention(i, Bias::None);
    d.norm(&format!("blk.{i}.ffn_norm"), n);
    d.gated(i, "", d.shape.n_ff);
    if post_norms {
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}

fn head(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.tied_embedding();
    d.norm("output_norm", d.shape.n_embd);
}

pub(super) fn gemma(d: &mut ModelBuilder<'_>) {
    head(d);
    for i in 0..d.shape.n_layer {
        block(d, i, false);
    }
}

pub(super) fn gemma2(d: &mut ModelBuilder<'_>) {
    head(d);
    d.window();
    // Published models cap at 50 and 30; random logits are smaller, and a cap that bends nothing tests nothing.
    d.constant("attn_logit_softcapping", 4.0);
    d.constant("final_logit_softcapping", 6.0);
    for i in 0..d.shape.n_layer {
        block(d, i, true);
    }
}

pub(super) fn gemma3(d: &mut ModelBuilder<'_>) {
    head(d);
    d.window();
    d.constant("rope.freq_base", 1e6);
    d.constant("rope.freq_base_swa", 1e4);
    for i in 0..d.shape.n_layer {
        block(d, i, true);
        d.head_norms(i);
    }
}

/// Embeddings of each token for each block, `width` wide.
fn per_layer_embedding(d: &mut ModelBuilder<'_>, width: usize) {
    let (n, n_layer, n_vocab) = (d.shape.n_embd, d.shape.n_layer, d.shape.n_vocab);
    d.matrix("per_layer_token_embd", &[width * n_layer, n_vocab]);
    d.matrix("per_layer_model_proj", &[n, width * n_layer]);
    d.norm("per_layer_proj_norm", width);
    for i in 0..n_layer {
        d.matrix(&format!("blk.{i}.inp_gate"), &[n, width]);
        d.matrix(&format!("blk.{i}.proj"), &[width, n]);
        d.norm(&format!("blk.{i}.post_norm"), n);
    }
}

pub(super) fn gemma3n(d: &mut ModelBuilder<'_>) {
    // llama.cpp's constants for the architecture: streams, width of the per-layer embedding, rank of the side path.
    const STREAMS: usize = 4;
    const PER_LAYER: usize = 256;
    const RANK: usize = 64;
    head(d);
    d.window();
    d.constant("rope.freq_base", 1e6);
    let n = d.shape.n_embd;
    d.matrix("altup_proj", &[n, n, STREAMS - 1]);
    d.matrix("altup_unembd_proj", &[n, n, STREAMS - 1]);
    per_layer_embedding(d, PER_LAYER);
    for i in 0..d.shape.n_layer {
        block(d, i, true);
        d.head_norms(i);
        d.small_matrix(&format!("blk.{i}.altup_correct_coef"), &[STREAMS, STREAMS]);
        d.norm(&format!("blk.{i}.altup_correct_scale"), n);
        d.small_matrix(&format!("blk.{i}.altup_predict_coef"), &[STREAMS, STREAMS * STREAMS]);
        d.small_matrix(&format!("blk.{i}.altup_router"), &[n, STREAMS]);
        d.norm(&format!("blk.{i}.altup_router_norm"), n);
        d.matrix(&format!("blk.{i}.laurel_l"), &[n, RANK]);
        d.matrix(&format!("blk.{i}.laurel_r"), &[RANK, n]);
        d.norm(&format!("blk.{i}.laurel_post_norm"), n);
    }
}

pub(super) fn gemma4(d: &mut ModelBuilder<'_>) {
    head(d);
    d.window();
    let (n, n_layer, n_head, n_kv) = (d.shape.n_embd, d.shape.n_layer, d.shape.n_head, d.shape.n_head_kv);
    // Every third block sees everything and has heads twice as wide as those with a window. The blocks after the first
    // two thirds take over keys and values, each from the last block of its own kind, which must be the last two.
    let windows: Vec<bool> = (0..n_layer).map(|i| i % 3 != 2).collect();
    let (narrow, wide) = (d.shape.head_dim, 2 * d.shape.head_dim);
    d.switches("attention.sliding_window_pattern", &windows);
    d.size("attention.shared_kv_layers", if n_layer > 3 { n_layer - (2 * n_layer / 3 / 3 * 3).max(3) } else { 0 });
    for (key, width) in [("", wide), ("_swa", narrow)] {
        d.size(&format!("attention.key_length{key}"), width);
        d.size(&format!("attention.value_length{key}"), width);
        d.size(&format!("rope.dimension_count{key}"), width);
    }
    d.constant("rope.freq_base", 1e6);
    d.constant("rope.freq_base_swa", 1e4);
    d.constant("final_logit_softcapping", 6.0);
    d.size("embedding_length_per_layer_input", 64);
    d.rope_factors("rope_freqs", wide / 2, 8.0);
    per_layer_embedding(d, 64);
    for (i, window) in windows.into_iter().enumerate() {
        let width = if window { narrow } else { wide };
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.matrix(&format!("blk.{i}.attn_q"), &[n, n_head * width]);
        d.matrix(&format!("blk.{i}.attn_k"), &[n, n_kv * width]);
        d.matrix(&format!("blk.{i}.attn_v"), &[n, n_kv * width]);
        d.matrix(&format!("blk.{i}.attn_output"), &[n_head * width, n]);
        d.norm(&format!("blk.{i}.attn_q_norm"), width);
        d.norm(&format!("blk.{i}.attn_k_norm"), width);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.gated(i, "", d.shape.n_ff);
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
        d.norm(&format!("blk.{i}.layer_output_scale"), 1);
    }
}
