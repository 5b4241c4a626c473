//! Random models: small GGUF files of every kind of architecture that llama.cpp runs, in any type of weight, for tests and
//! benchmarks. Their text is nonsense; their graph is that of the real models.
//!
//! ```no_run
//! use ggml_grad::{llama::DType, synth};
//! use std::path::Path;
//!
//! # fn main() -> Result<(), synth::SynthError> {
//! let family = synth::family("qwen3moe")?;
//! let dtype = DType::from_name("q4_k").unwrap_or(DType::F32);
//! synth::write(Path::new("tiny.gguf"), family, &family.shape(), dtype, 1)?;
//! # Ok(())
//! # }
//! ```

mod builder;
mod coverage;
mod families;
mod random;
mod shape;
mod vocabulary;

pub use coverage::{Architecture, Coverage, architectures};
pub use shape::Shape;

use crate::llama::{DType, LlamaError, quantize};
use builder::ModelBuilder;
use std::path::Path;

/// Why bidpo does not train on a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has an encoder.
    EncoderDecoder,
    /// llama.cpp's graph takes no control vectors.
    NoControlVectors,
    /// An op of its graph has no rule.
    MissingRule,
}

/// A kind of model: an architecture of llama.cpp, in one of its forms.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    name: &'static str,
    arch: &'static str,
    exercises: &'static str,
    layers: &'static [usize],
    least_layers: usize,
    square: bool,
    grouped: bool,
    refused: Option<Refusal>,
    variant: bool,
    shape: Shape,
    build: fn(&mut ModelBuilder<'_>),
}

impl Family {
    /// The family's name here, for example `mixtral`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// llama.cpp's name of the architecture (`general.architecture`), for example `llama`.
    pub fn arch(&self) -> &'static str {
        self.arch
    }

    /// Features of the family, in one line.
    pub fn exercises(&self) -> &'static str {
        self.exercises
    }

    /// Layers to steer in the default shape, lowest first. Above the first lies every kind of block that the family has,
    /// but for the dense ones that only stand at the bottom (deepseek2, afmoe).
    pub fn layers(&self) -> &'static [usize] {
        self.layers
    }

    /// True where the heads together must be as wide as the residual stream (`n_head * head_dim == n_embd`).
    pub fn is_square(&self) -> bool {
        self.square
    }

    /// True for the kinds that bidpo does not train on.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Why bidpo does not train on it.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refused
    }

    /// True for kinds that are made of parts that others have, put together in another way or under other keys: tests check
    /// them more briefly than those.
    pub fn is_variant(&self) -> bool {
        self.variant
    }

    /// The default shape: a few megabytes in F32.
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// All families.
pub fn families() -> &'static [Family] {
    &families::ALL
}

/// The family called `name`.
///
/// # Errors
/// [`SynthError::Family`] where there is none.
pub fn family(name: &str) -> Result<&'static Family, SynthError> {
    families::ALL.iter().find(|f| f.name == name).ok_or_else(|| SynthError::Family {
        name: name.to_owned(),
        known: families::ALL.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
    })
}

/// Why no model was written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// No family has this name.
    #[error("there is no model family {name}; bidpo knows {known}")]
    Family {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The family cannot have this shape.
    #[error("a model of the family {family} cannot have this shape: {reason}")]
    Shape {
        /// The family.
        family: &'static str,
        /// The wrong number, and the values that it can have.
        reason: String,
    },
    /// The type cannot hold weights, or the file cannot be written.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

/// Writes a random model.
///
/// Every matrix takes the type `dtype`; where its rows are no multiple of the type's block, Q8_0, and where that does not
/// fit either, F32. Norms, biases, routers and other small tensors are F32, as in published files. The same family, shape
/// and seed give the same values in every type; together with the type, the same bytes.
///
/// Tensors are made and written in pieces: a large model needs no more memory than a small one.
///
/// # Errors
/// [`SynthError::Shape`] for a shape the family cannot have; [`SynthError::Llama`] for a type that is not one of
/// [`DType::WEIGHTS`], or where the file cannot be written.
pub fn write(path: &Path, family: &Family, shape: &Shape, dtype: DType, seed: u64) -> Result<(), SynthError> {
    /// Values made at once.
    const PIECE: usize = 1 << 18;
    shape.check(family)?;
    quantize(dtype, &[], dtype.block())?; // only for its opinion of the type
    let mut builder = ModelBuilder::new(family.arch, *shape);
    (family.build)(&mut builder);
    let (mut meta, tensors) = builder.finish()?;
    // The family's name stays out of general.name: llama.cpp expects special tokens of a model whose name holds "phi3".
    meta.set_text("general.name", "random weights")?;
    meta.set_text("general.description", &format!("random weights in the form of {}", family.name))?;
    vocabulary::write(&mut meta, shape.n_vocab)?;
    for t in &tensors {
        meta.declare(&t.name, t.dtype(dtype), t.ne)?;
    }
    meta.write_with(path, &mut |i, sink| {
        let t = &tensors[i];
        let row = t.ne[0];
        let mut source = random::Source::new(seed, &t.name);
        let mut left = t.ne[1] * t.ne[2] * t.ne[3];
        let mut values = Vec::new();
        while left > 0 {
            let rows = left.min((PIECE / row).max(1));
            source.fill(&t.init, rows * row, &mut values);
            sink.push(&quantize(t.dtype(dtype), &values, row)?)?;
            left -= rows;
        }
        Ok(())
    })?;
    Ok(())
}
