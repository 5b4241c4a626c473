//! Adapters that mean nothing and change answers.

use bidpo_core::adapter::{AdapterFile, AdapterKind, LowRank, Target};
use ggml_grad::llama::{GgufFile, GgufValue};
use rand::{Rng as _, SeedableRng as _};
use std::path::{Path, PathBuf};

/// Writes `NAME.gguf`: random pairs of `rank` for each of a model's `matrices`, each `B A` of Frobenius norm `norm`.
pub fn any_adapter(dir: &Path, model: &Path, name: &str, matrices: &[&str], rank: usize, norm: f64) -> PathBuf {
    let file = GgufFile::open(model).unwrap();
    let Some(GgufValue::Str(architecture)) = file.get("general.architecture") else { panic!("{}", model.display()) };
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(name.bytes().map(u64::from).sum());
    let mut adapter = AdapterFile::new(architecture, Some(rank as f32));
    for (tensor, _, [n_in, n_out, n_experts, _]) in file.tensors() {
        let target = Target::of(tensor);
        if !tensor.ends_with(".weight") || !matrices.contains(&target.matrix.as_str()) {
            continue;
        }
        let mut values = |n: usize| (0..n * n_experts).map(|_| random.random_range(-0.1..0.1)).collect::<Vec<f32>>();
        let (a, b) = (values(rank * n_in), values(rank * n_out));
        let mut pair = LowRank::of_experts(n_experts, rank, a, b).unwrap();
        let factor = (norm / pair.norm()) as f32;
        pair.b.iter_mut().for_each(|x| *x *= factor);
        adapter.pairs.insert(target, pair);
    }
    let path = dir.join(format!("{name}.gguf"));
    adapter.save(&path, AdapterKind::F32).unwrap();
    path
}
