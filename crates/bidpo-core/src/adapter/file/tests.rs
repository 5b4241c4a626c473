//! The file's reader and writer.

use super::*;
use ggml_grad::llama::{Adapter, Context, ContextParams, Model, ModelParams};
use ggml_grad::synth;

fn values(n: usize, k: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * k).sin() * 0.1).collect()
}

fn small() -> AdapterFile {
    let mut adapter = AdapterFile::new("llama", Some(8.0));
    for (name, rank, n_in, n_out) in
        [("blk.0.attn_q.weight", 2, 6, 4), ("blk.1.ffn_down.weight", 1, 5, 6), ("token_embd.weight", 2, 3, 7)]
    {
        let pair = LowRank::new(rank, values(rank * n_in, 0.7), values(n_out * rank, 1.1)).unwrap();
        adapter.pairs.insert(Target::of(name), pair);
    }
    adapter.invocation_tokens = vec![5, 9];
    adapter.provenance.set_str("method", "bidpo");
    adapter.other.insert("general.name".into(), GgufValue::Str("an adapter".into()));
    adapter
}

#[test]
fn a_file_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let adapter = small();
    adapter.save(&path, AdapterKind::F32).unwrap();
    let first = std::fs::read(&path).unwrap();
    let back = AdapterFile::load(&path).unwrap();
    assert_eq!(back, adapter);
    assert!(AdapterFile::is_one(&path).unwrap());
    back.save(&path, AdapterKind::F32).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "the same adapter gives the same bytes");
    // ne of the published form: A [n_in, r], B [r, n_out]; flipped for the table.
    let file = GgufFile::open(&path).unwrap();
    let ne = |name: &str| file.tensors().find(|t| t.0 == name).unwrap().2;
    assert_eq!(ne("blk.0.attn_q.weight.lora_a"), [6, 2, 1, 1]);
    assert_eq!(ne("blk.0.attn_q.weight.lora_b"), [2, 4, 1, 1]);
    assert_eq!(ne("token_embd.weight.lora_a"), [2, 7, 1, 1]);
    assert_eq!(ne("token_embd.weight.lora_b"), [2, 3, 1, 1]);
    assert!(file.is_f32(ALPHA) && file.u32s(INVOCATION) == Some(&[5, 9][..]));

    adapter.save(&path, AdapterKind::F16).unwrap();
    let rounded = AdapterFile::load(&path).unwrap();
    for (a, b) in adapter.pairs.values().zip(rounded.pairs.values()) {
        let near =
            a.a.iter().zip(&b.a).chain(a.b.iter().zip(&b.b)).all(|(x, y)| (x - y).abs() <= x.abs() / 1024.0 + 1e-7);
        assert!(near);
    }
    assert_eq!((back.layers(), back.matrices()), (vec![0, 1], vec!["attn_q", "ffn_down", "token_embd"]));
    let pair = &back.pairs[&Target::of("blk.0.attn_q.weight")];
    assert_eq!((back.ranks(), back.factor(pair, 0.5)), ((1, 2), 2.0));
}

#[test]
fn files_that_are_no_adapters_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let refused = |edit: &dyn Fn(&mut GgufWriter)| {
        let mut writer = GgufWriter::new();
        for (key, value) in [(TYPE, "adapter"), (ARCHITECTURE, "llama"), (FORM, "lora")] {
            writer.set_text(key, value).unwrap();
        }
        edit(&mut writer);
        writer.write(&path).unwrap();
        AdapterFile::load(&path).unwrap_err().to_string()
    };
    let pair = |w: &mut GgufWriter, name: &str| {
        w.add_f32_rows(&format!("{name}.lora_a"), 3, vec![1.0; 6]).unwrap();
        w.add_f32_rows(&format!("{name}.lora_b"), 2, vec![1.0; 8]).unwrap();
    };
    type Edit<'a> = &'a dyn Fn(&mut GgufWriter);
    let cases: [(Edit<'_>, &str); 9] = [
        (&|w| w.set_text(TYPE, "model").unwrap(), "\"model\""),
        (&|w| w.set_text(FORM, "loha").unwrap(), "loha"),
        (&|w| w.set_text(ARCHITECTURE, "").unwrap(), "general.architecture"),
        (&|w| w.set_text(ALPHA, "8").unwrap(), "adapter.lora.alpha"),
        (&|_| {}, "0 pairs"),
        (&|w| w.add_f32_rows("blk.0.attn_q.weight.lora_a", 3, vec![1.0; 6]).unwrap(), "half a pair"),
        (&|w| w.add_f32("blk.0.attn_q.weight", vec![1.0]).unwrap(), "no part of an adapter"),
        (&|w| pair(w, "blk.0.attn_q.bias"), ".weight"),
        (
            &|w| {
                w.add_f32_rows("x.weight.lora_a", 3, vec![1.0, 1.0, f32::INFINITY]).unwrap();
                w.add_f32_rows("x.weight.lora_b", 1, vec![1.0; 8]).unwrap();
            },
            "finite",
        ),
    ];
    for (edit, said) in cases {
        let error = refused(edit);
        assert!(error.contains(said) && error.contains("a.gguf"), "{said}: {error}");
    }
    let mut large = small();
    large.pairs.values_mut().next().unwrap().a[0] = 1e6;
    assert!(large.save(&path, AdapterKind::F16).unwrap_err().to_string().contains("write F32"));
    assert!(AdapterFile::new("llama", None).save(&path, AdapterKind::F32).is_err());
}

#[test]
fn damaged_files_are_errors_and_never_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    small().save(&path, AdapterKind::F32).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        AdapterFile::load(&path)
    };
    for length in (0..whole.len() - 32).step_by(41) {
        assert!(load(&whole[..length]).is_err(), "the first {length} bytes");
    }
    for i in (0..whole.len().min(1400)).step_by(29) {
        for value in [0, 1, 0x7f, 0xff, whole[i] ^ 1] {
            let mut bytes = whole.clone();
            bytes[i] = value;
            if let Ok(adapter) = load(&bytes) {
                adapter.check().unwrap();
            }
        }
    }
}

/// llama.cpp loads what is written, the logits move, and come back at scale 0.
#[test]
fn llama_cpp_loads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let of_model = folder.path().join("m.gguf");
    let family = synth::families().iter().find(|f| f.arch() == "llama").unwrap();
    synth::write(&of_model, family, &family.shape(), DType::F32, 1).unwrap();
    let model = Model::load(&of_model, &ModelParams::default()).unwrap();
    let name = "blk.1.attn_q.weight";
    let [n_in, n_out, ..] = GgufFile::open(&of_model).unwrap().tensors().find(|t| t.0 == name).unwrap().2;
    let mut adapter = AdapterFile::new("llama", None);
    let pair = LowRank::new(2, values(2 * n_in, 0.3), values(2 * n_out, 0.9)).unwrap();
    adapter.pairs.insert(Target::of(name), pair);
    let path = folder.path().join("a.gguf");
    for kind in [AdapterKind::F32, AdapterKind::F16] {
        adapter.save(&path, kind).unwrap();
        let loaded = std::sync::Arc::new(Adapter::load(&model, &path).unwrap());
        let mut ctx = Context::new(&model, &ContextParams { n_ctx: 64, n_threads: 1, ..Default::default() }).unwrap();
        let mut logits = |scale: f32| {
            ctx.set_adapters(&[(loaded.clone(), scale)]).unwrap();
            let row = ctx.prefill(&[1, 2, 3, 4], 0).unwrap();
            ctx.logits(row).unwrap().to_vec()
        };
        let (zero, one) = (logits(0.0), logits(1.0));
        assert_ne!(zero, one);
        assert_eq!(logits(0.0), zero);
        assert_eq!(logits(1.0), one);
    }
    let refused = |adapter: &AdapterFile| {
        adapter.save(&path, AdapterKind::F32).unwrap();
        Adapter::load(&model, &path).unwrap_err().to_string()
    };
    let mut other = adapter.clone();
    other.architecture = "gemma3".into();
    assert!(refused(&other).contains("gemma3"));
    let mut wide = adapter.clone();
    wide.pairs.insert(Target::of("blk.0.attn_q.weight"), LowRank::new(1, vec![1.0; 3], vec![1.0; 3]).unwrap());
    assert!(refused(&wide).contains("do not fit"));
    let mut missing = adapter;
    missing.pairs.insert(Target::of("blk.0.nothing.weight"), LowRank::new(1, vec![1.0; 3], vec![1.0; 3]).unwrap());
    assert!(refused(&missing).contains("no tensor blk.0.nothing.weight"));
}
