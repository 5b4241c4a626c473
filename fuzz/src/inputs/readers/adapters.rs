//! LoRA adapters: GGUF files, folders of PEFT's, and what is made of a model's weights.

use super::{file, seeds, told};
use bidpo_core::adapter::{Ablation, AdapterFile, AdapterKind, CONFIG, HeadCounts, LoadedAdapter, WEIGHTS, merge};
use ggml_grad::llama::{Adapter, Context, ContextParams, Model, ModelParams};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

/// Folder of the adapter that PEFT's files hold.
const FOLDER: &str = "peft";

/// A file, and what is computed under it if llama.cpp loads it. What is accepted survives a file of our own.
pub(super) fn gguf(bytes: &[u8]) -> bool {
    let path = file("a.gguf", bytes);
    told(AdapterFile::is_one(&path));
    // llama.cpp's own reader, also where ours has refused the file.
    decode_under(&path);
    let Some(adapter) = told(AdapterFile::load(&path)) else { return false };
    adapter.check().expect("an adapter that was read");
    adapter.norms();
    let ours = path.with_file_name("ours_adapter.gguf");
    // Values that no F16 holds, and keys of another tool that no GGUF holds.
    told(adapter.save(&ours, AdapterKind::F16));
    if told(adapter.save(&ours, AdapterKind::F32)).is_some() {
        let again = AdapterFile::load(&ours).expect("an adapter that was written is read");
        assert_eq!((again.pairs, again.alpha), (adapter.pairs, adapter.alpha));
    }
    true
}

/// Some tokens under the adapter, and the same as before once it is off.
fn decode_under(path: &Path) {
    thread_local! {
        static CONTEXT: RefCell<Context> = RefCell::new(Context::new(&a_model(), &ContextParams {
            n_ctx: 64,
            n_threads: 1,
            ..ContextParams::default()
        }).expect("a context"));
    }
    CONTEXT.with_borrow_mut(|ctx| {
        let model = Arc::clone(ctx.model());
        let Some(adapter) = told(Adapter::load(&model, path)) else { return };
        let mut logits = |adapters: &[(Arc<Adapter>, f32)]| {
            told(ctx.set_adapters(adapters))?;
            let row = told(ctx.prefill(&[5, 6, 7], 0))?;
            told(ctx.finite_logits(row)).map(<[f32]>::to_vec)
        };
        let before = logits(&[]).expect("logits of the model");
        logits(&[(Arc::new(adapter), 1.0)]);
        assert_eq!(logits(&[]), Some(before), "an adapter that is off has an effect");
    });
    told(LoadedAdapter::open(path, &CONTEXT.with_borrow(|ctx| Arc::clone(ctx.model()))));
}

/// A model of some kilobytes in this thread's own folder: adapters are compared with its file.
fn a_model() -> Arc<Model> {
    let path = file("of_adapters.gguf", &seeds::models()[0]);
    Model::load(&path, &ModelParams::default()).expect("a model of our own")
}

/// The weights of a PEFT folder with valid settings.
pub(super) fn peft(bytes: &[u8]) -> bool {
    folder(&seeds::peft_configs()[0], bytes)
}

/// The settings of a PEFT folder with valid weights.
pub(super) fn config(bytes: &[u8]) -> bool {
    folder(bytes, &seeds::peft_weights()[0])
}

/// A folder of PEFT's. What is accepted survives a folder of our own.
fn folder(config: &[u8], weights: &[u8]) -> bool {
    file(&format!("{FOLDER}/{WEIGHTS}"), weights);
    let path = file(&format!("{FOLDER}/{CONFIG}"), config);
    let folder = path.parent().expect("a folder");
    let heads = heads();
    let Some(adapter) = told(AdapterFile::load_peft(folder, &heads)) else { return false };
    adapter.check().expect("an adapter that was read");
    let ours = folder.with_file_name("ours_peft");
    adapter.save_peft(&ours, &heads).expect("what a folder holds can be written as one");
    let again = AdapterFile::load_peft(&ours, &heads).expect("a folder that was written is read");
    assert!(again.pairs.keys().eq(adapter.pairs.keys()));
    true
}

/// Head counts of the models among the seeds.
pub(super) fn heads() -> HeadCounts {
    HeadCounts { architecture: "llama".to_owned(), name: Some("tiny".to_owned()), of_q: 1, of_k: 1 }
}

/// A model whose weights are read to take a direction out of them, and are written again without it.
pub(super) fn ablation(bytes: &[u8]) -> bool {
    let path = file("w.gguf", bytes);
    told(HeadCounts::of_model(&path));
    let direction: Vec<f32> = (0..32).map(|i| i as f32 - 8.0).collect();
    let Some(found) = told(Ablation::new(&path, &direction, 1.0, None)) else { return false };
    found.inexact.iter().for_each(|note| super::shown(&note.to_string()));
    // A model may name no architecture.
    if told(found.adapter.check()).is_none() {
        return false;
    }
    told(merge(&path, &[(found.adapter, 1.0)], &path.with_file_name("merged.gguf")));
    true
}
