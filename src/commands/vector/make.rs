//! Vectors made of vectors, and where they go.

use anyhow::Context as _;
use bidpo_core::chat::printable;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Format, Match, SteeringVector, match_architecture};
use ggml_grad::files::sha256_of_file;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes the vector, and says what was written, on stderr.
pub fn write(vector: &SteeringVector, path: &Path) -> anyhow::Result<ExitCode> {
    vector.save(path)?;
    let layers = Layers::new(vector.layers())?.labelled();
    let norm = super::words::significant(match vector.layers()[..] {
        [layer] => vector.norm(layer),
        _ => vector.total_norm(),
    });
    eprintln!("bidpo: {}: {layers}, {} dimensions, norm {norm}", path.display(), vector.n_embd());
    if Format::of(path) == Format::Npy {
        eprintln!(
            "bidpo: a .npy file holds the numbers only: the layers, the architecture and the provenance are not in it"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// `sum of weight * vector`, in f32 and in the order given, as llama.cpp adds several control vectors.
pub fn add(files: &[PathBuf], vectors: &[SteeringVector], weights: &[f32]) -> anyhow::Result<SteeringVector> {
    let ([first, second, rest @ ..], [w1, w2, weights_of_rest @ ..]) = (vectors, weights) else {
        anyhow::bail!("a sum needs two vectors");
    };
    say_names(files, vectors);
    let mut sum = first.linear(*w1, second, *w2)?;
    for (vector, &weight) in rest.iter().zip(weights_of_rest) {
        sum = sum.linear(1.0, vector, weight)?;
    }
    let terms = files.iter().zip(weights).map(|(f, w)| Ok(format!("{w} * {}", named(f)?)));
    record(&mut sum, terms.collect::<anyhow::Result<Vec<_>>>()?.join(" + "));
    Ok(sum)
}

/// The mean.
pub fn average(files: &[PathBuf], vectors: &[SteeringVector]) -> anyhow::Result<SteeringVector> {
    say_names(files, vectors);
    let mut mean = SteeringVector::average(vectors)?;
    let names = files.iter().map(|f| named(f)).collect::<anyhow::Result<Vec<_>>>()?;
    record(&mut mean, format!("mean of {}", names.join(", ")));
    Ok(mean)
}

/// Says on stderr where the files do not name one architecture by the same word.
fn say_names(files: &[PathBuf], vectors: &[SteeringVector]) {
    let stated = |i: usize| match vectors[i].model_hint.as_str() {
        "" => "nothing".to_owned(),
        name => printable(&format!("{name:?}")).into(),
    };
    for i in 1..vectors.len() {
        let (first, other) = (&vectors[0].model_hint, &vectors[i].model_hint);
        let meaning = match match_architecture(first, other) {
            Match::Same => "two names of one architecture",
            Match::Unknown => "nothing tells whether both were made for one model",
            Match::Different => continue, // an error follows
        };
        if first != other {
            let (a, b) = (files[0].display(), files[i].display());
            eprintln!("note: {a} says {} as its architecture, {b} {}: {meaning}", stated(0), stated(i));
        }
    }
}

/// The file's name and the start of its SHA-256.
fn named(file: &Path) -> anyhow::Result<String> {
    let hash = sha256_of_file(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = ggml_grad::files::display_name(file);
    Ok(format!("{name} (SHA-256 {}...)", &hash[..12]))
}

fn record(vector: &mut SteeringVector, made_of: String) {
    vector.provenance.set_str("made_of", made_of);
    vector.provenance.set_float("norm", vector.total_norm());
}
