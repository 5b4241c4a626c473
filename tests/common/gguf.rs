//! Tiny GGUF models written by hand, after the format's specification (version 3): enough for llama.cpp to load an
//! architecture that no small published model has.

use std::path::Path;

/// A metadata value.
pub enum Meta {
    Text(&'static str),
    U32(u32),
    F32(f32),
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// Writes a model with F32 tensors of these names and shapes (fastest dimension first), all values 0.01.
pub fn write(path: &Path, meta: &[(&str, Meta)], tensors: &[(String, Vec<u64>)]) {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        text(&mut out, key);
        match value {
            Meta::U32(x) => {
                out.extend(4u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Meta::F32(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Meta::Text(x) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, x);
            }
        }
    }
    let (mut offset, mut sizes) = (0u64, Vec::new());
    for (name, shape) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(0u32.to_le_bytes()); // F32
        out.extend(offset.to_le_bytes());
        let size = (4 * shape.iter().product::<u64>()).next_multiple_of(32);
        sizes.push(size);
        offset += size;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for size in sizes {
        (0..size / 4).for_each(|_| out.extend(0.01f32.to_le_bytes()));
    }
    std::fs::write(path, out).unwrap();
}

/// A mamba model of two blocks: recurrent, no attention.
pub fn mamba(path: &Path) {
    let (embd, inner, state, rank, conv, vocab) = (16, 32, 4, 2, 4, 32);
    let meta = [
        ("general.architecture", Meta::Text("mamba")),
        ("tokenizer.ggml.model", Meta::Text("none")),
        ("mamba.vocab_size", Meta::U32(vocab as u32)),
        ("mamba.context_length", Meta::U32(64)),
        ("mamba.embedding_length", Meta::U32(embd as u32)),
        ("mamba.block_count", Meta::U32(2)),
        ("mamba.feed_forward_length", Meta::U32(0)),
        ("mamba.attention.head_count", Meta::U32(0)),
        ("mamba.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("mamba.ssm.conv_kernel", Meta::U32(conv as u32)),
        ("mamba.ssm.inner_size", Meta::U32(inner as u32)),
        ("mamba.ssm.state_size", Meta::U32(state as u32)),
        ("mamba.ssm.time_step_rank", Meta::U32(rank as u32)),
    ];
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![embd, vocab]), ("output_norm.weight".to_owned(), vec![embd])];
    for i in 0..2 {
        for (name, shape) in [
            ("attn_norm.weight", vec![embd]),
            ("ssm_in.weight", vec![embd, 2 * inner]),
            ("ssm_conv1d.weight", vec![conv, inner]),
            ("ssm_conv1d.bias", vec![inner]),
            ("ssm_x.weight", vec![inner, rank + 2 * state]),
            ("ssm_dt.weight", vec![rank, inner]),
            ("ssm_dt.bias", vec![inner]),
            ("ssm_a", vec![state, inner]),
            ("ssm_d", vec![inner]),
            ("ssm_out.weight", vec![inner, embd]),
        ] {
            tensors.push((format!("blk.{i}.{name}"), shape));
        }
    }
    write(path, &meta, &tensors);
}

/// A T5 model of two blocks: encoder and decoder.
pub fn t5(path: &Path) {
    let (embd, heads, ff, vocab) = (16, 2, 32, 32);
    let meta = [
        ("general.architecture", Meta::Text("t5")),
        ("tokenizer.ggml.model", Meta::Text("none")),
        ("t5.vocab_size", Meta::U32(vocab as u32)),
        ("t5.context_length", Meta::U32(64)),
        ("t5.embedding_length", Meta::U32(embd as u32)),
        ("t5.block_count", Meta::U32(2)),
        ("t5.feed_forward_length", Meta::U32(ff as u32)),
        ("t5.attention.head_count", Meta::U32(heads as u32)),
        ("t5.attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        ("t5.attention.layer_norm_epsilon", Meta::F32(1e-6)),
        ("t5.attention.relative_buckets_count", Meta::U32(8)),
        ("t5.decoder_start_token_id", Meta::U32(0)),
    ];
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![embd, vocab]),
        ("enc.output_norm.weight".to_owned(), vec![embd]),
        ("dec.output_norm.weight".to_owned(), vec![embd]),
    ];
    for i in 0..2 {
        for side in ["enc", "dec"] {
            let mut push = |name: &str, shape: &[u64]| {
                tensors.push((format!("{side}.blk.{i}.{name}.weight"), shape.to_vec()));
            };
            let attentions: &[&str] = if side == "dec" { &["attn", "cross_attn"] } else { &["attn"] };
            for a in attentions {
                push(&format!("{a}_norm"), &[embd]);
                push(&format!("{a}_rel_b"), &[heads, 8]);
                for part in ["q", "k", "v", "o"] {
                    push(&format!("{a}_{part}"), &[embd, embd]);
                }
            }
            push("ffn_norm", &[embd]);
            push("ffn_up", &[embd, ff]);
            push("ffn_down", &[ff, embd]);
        }
    }
    write(path, &meta, &tensors);
}
