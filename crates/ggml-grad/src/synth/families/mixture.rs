//! Mixtures of experts.

use crate::synth::builder::{Bias, ModelBuilder};

/// Norms around attention and experts, as in most mixtures.
pub(super) fn blocks(d: &mut ModelBuilder<'_>, bias: Bias) {
    d.rms();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, bias);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        d.experts(i);
    }
}

pub(super) fn mixtral(d: &mut ModelBuilder<'_>) {
    d.embedding();
    blocks(d, Bias::None);
}

pub(super) fn qwen2moe(d: &mut ModelBuilder<'_>) {
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.size("expert_feed_forward_length", n_ff);
    d.size("expert_shared_feed_forward_length", 2 * n_ff);
    d.embedding();
    blocks(d, Bias::Qkv);
    for i in 0..d.shape.n_layer {
        d.small_matrix(&format!("blk.{i}.ffn_gate_inp_shexp"), &[n]);
        d.gated(i, "_shexp", 2 * n_ff);
    }
}

pub(super) fn qwen3moe(d: &mut ModelBuilder<'_>) {
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.head_norms(i);
    }
}

pub(super) fn olmoe(d: &mut ModelBuilder<'_>) {
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.wide_norms(i);
    }
}

pub(super) fn gpt_oss(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.window();
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.constant("rope.freq_base", 150_000.0);
    d.text("rope.scaling.type", "yarn");
    d.constant("rope.scaling.factor", 4.0);
    d.size("rope.scaling.original_context_length", (d.shape.n_ctx / 4).max(1));
    d.embedding();
    let (n, n_ff, n_expert) = (d.shape.n_embd, d.shape.n_ff, d.shape.n_expert);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::All);
        d.around(&format!("blk.{i}.attn_sinks.weight"), &[d.shape.n_head], 0.0, 1.0);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.experts(i);
        d.bias(&format!("blk.{i}.ffn_gate_inp"), &[n_expert]);
        d.bias(&format!("blk.{i}.ffn_gate_exps"), &[n_ff, n_expert]);
        d.bias(&format!("blk.{i}.ffn_up_exps"), &[n_ff, n_expert]);
        d.bias(&format!("blk.{i}.ffn_down_exps"), &[n, n_expert]);
    }
}

pub(super) fn grok(d: &mut ModelBuilder<'_>) {
    d.constant("embedding_scale", (d.shape.n_embd as f32).sqrt());
    d.constant("attention.output_scale", 1.0 / (d.shape.head_dim as f32).sqrt());
    d.constant("attn_logit_softcapping", 4.0);
    d.constant("router_logit_softcapping", 30.0);
    d.constant("logit_scale", 0.577);
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_output_norm"), d.shape.n_embd);
        d.norm(&format!("blk.{i}.layer_output_norm"), d.shape.n_embd);
    }
}

pub(super) fn llama4(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.size("interleave_moe_layer_step", 2);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.constant("rope.freq_base", 500_000.0);
    d.embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        if i % 2 == 1 {
            d.experts(i);
            d.gated(i, "_shexp", n_ff);
        } else {
            d.gated(i, "", n_ff);
        }
    }
}

pub(super) fn granitemoe(d: &mut ModelBuilder<'_>) {
    d.constant("embedding_scale", 12.0);
    d.constant("residual_scale", 0.22);
    d.constant("attention.scale", 1.0 / d.shape.head_dim as f32);
    d.constant("logit_scale", 4.0);
    d.size("expert_shared_feed_forward_length", 2 * d.shape.n_ff);
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.gated(i, "_shexp", 2 * d.shape.n_ff);
    }
}

pub(super) fn smallthinker(d: &mut ModelBuilder<'_>) {
    const SIGMOID: usize = 2;
    d.window();
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_gating_func", SIGMOID);
    d.embedding();
    blocks(d, Bias::None);
}

pub(super) fn hunyuan_moe(d: &mut ModelBuilder<'_>) {
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_feed_forward_length", 2 * d.shape.n_ff);
    d.tied_embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.head_norms(i);
        d.gated(i, "_shexp", 2 * d.shape.n_ff);
    }
}

pub(super) fn dbrx(d: &mut ModelBuilder<'_>) {
    d.layer_norm();
    d.constant("attention.clamp_kqv", 6.0);
    d.embedding();
    let n = d.shape.n_embd;
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.fused_attention(i, Bias::None);
        d.norm(&format!("blk.{i}.attn_output_norm"), n);
        d.experts(i);
    }
}

pub(super) fn arctic(d: &mut ModelBuilder<'_>) {
    d.embedding();
    blocks(d, Bias::None);
    for i in 0..d.shape.n_layer {
        d.gated(i, "", d.shape.n_embd);
        d.norm(&format!("blk.{i}.ffn_norm_exps"), d.shape.n_embd);
    }
}

pub(super) fn afmoe(d: &mut ModelBuilder<'_>) {
    d.rms();
    d.window();
    d.size("leading_dense_block_count", 1);
    d.size("expert_feed_forward_length", d.shape.n_ff);
    d.size("expert_shared_count", 1);
    d.constant("expert_weights_scale", 2.5);
    d.switch("expert_weights_norm", true);
    d.tied_embedding();
    let (n, n_ff) = (d.shape.n_embd, d.shape.n_ff);
    d.norm("output_norm", n);
    for i in 0..d.shape.n_layer {
        d.norm(&format!("blk.{i}.attn_norm"), n);
        d.attention(i, Bias::None);
        d.head_norms(i);
        d.matrix(&format!("blk.{i}.attn_gate"), &[n, d.qk().0]);
        d.norm(&format!("blk.{i}.post_attention_norm"), n);
        d.norm(&format!("blk.{i}.ffn_norm"), n);
        if i == 0 {
            d.gated(i, "", n_ff);
        } else {
            d.experts(i);
            d.bias(&format!("blk.{i}.exp_probs_b"), &[d.shape.n_expert]);
            d.gated(i, "_shexp", n_ff);
        }
        d.norm(&format!("blk.{i}.post_ffw_norm"), n);
    }
}
