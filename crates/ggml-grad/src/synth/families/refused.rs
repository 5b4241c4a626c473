//! Models that bidpo does not train on, for the tests that it says so.

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
