//! A direction taken out of what a model writes into its residual stream: `W' = (1 - s u u^T) W` (Arditi et al. 2024, arXiv
//! 2406.11717, equation 5), as a rank-1 pair `B = -s u`, `A = u^T W` for each matrix that writes there.

use super::{AdapterError, AdapterFile, LowRank, Target};
use crate::layers::Layers;
use crate::numbers::norm;
use ggml_grad::llama::{DType, GgufFile, GgufValue, dequantize};
use std::fmt;
use std::path::Path;

/// Matrices of a block whose output is added to the residual stream, by llama.cpp's names.
const WRITERS: [&str; 8] = [
    "attn_output",
    "ffn_down",
    "ffn_down_exps",
    "ffn_down_shexp",
    "ffn_down_chexps",
    "ssm_out",
    "shortconv.out_proj",
    "channel_mix_value",
];

/// Norms that stand between a writing matrix and the residual stream in some architectures.
const NORMS_BEHIND: [&str; 4] = ["post_attention_norm", "post_ffw_norm", "attn_output_norm", "layer_output_norm"];

/// Values de-quantized at a time.
const PIECE: usize = 1 << 20;

/// An ablation as an adapter.
#[derive(Debug)]
pub struct Ablation {
    /// The pairs.
    pub adapter: AdapterFile,
    /// Where the direction is not taken out exactly.
    pub inexact: Vec<Inexact>,
}

/// Why a component along the direction is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inexact {
    /// The embedding of each token has one, which no adapter of the blocks takes out.
    Embedding,
    /// A norm behind the matrices multiplies each dimension by its own factor.
    NormBehind(String),
    /// A bias is added behind the product.
    Bias(String),
    /// Blocks without a matrix that is known to write there.
    UnknownBlocks(usize),
    /// Only some blocks were asked for.
    SomeBlocks,
}

impl fmt::Display for Inexact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str(
                "the token's embedding keeps its component along the direction: blocks add nothing to it, and take nothing away",
            ),
            Self::NormBehind(name) => write!(
                f,
                "norms ({name}) stand between the matrices and the residual stream: they turn what is left, and the ablation is \
                 not exact on this architecture"
            ),
            Self::Bias(name) => write!(f, "biases ({name}) are added behind the matrices, and keep their component"),
            Self::UnknownBlocks(n) => {
                write!(f, "{n} blocks have no matrix that is known to write into the residual stream: they are left as they are")
            }
            Self::SomeBlocks => f.write_str("the blocks that --blocks leaves out go on writing along the direction"),
        }
    }
}

impl Ablation {
    /// An adapter that takes `strength` of the component along `direction`, `[n_embd]`, out of what each block of the model file
    /// writes into the residual stream. `blocks` restricts it to some.
    ///
    /// # Errors
    /// [`AdapterError::Llama`] for a file that cannot be read; [`AdapterError::Impossible`] for a direction that is zero or of
    /// another width, and a model without matrices that are known to write there.
    pub fn new(model: &Path, direction: &[f32], strength: f32, blocks: Option<&Layers>) -> Result<Self, AdapterError> {
        let impossible = |reason: String| Err(AdapterError::Impossible(reason));
        let parts = GgufFile::open_parts(model)?;
        let text = |key: &str| match parts.first().and_then(|p| p.get(key)) {
            Some(GgufValue::Str(text)) => text.clone(),
            _ => String::new(),
        };
        let architecture = text("general.architecture");
        let length = norm(direction);
        if !length.is_finite() || length == 0.0 {
            return impossible(format!("the direction's norm is {length}: it points nowhere"));
        }
        let unit: Vec<f64> = direction.iter().map(|&x| f64::from(x) / length).collect();
        let mut adapter = AdapterFile::new(&architecture, None);
        let (mut norms, mut biases) = (None, None);
        let mut n_blocks = 0;
        for (part, (name, dtype, ne)) in parts.iter().flat_map(|p| p.tensors().map(move |t| (p, t))) {
            let target = Target::of(name);
            let Some(layer) = target.layer else { continue };
            n_blocks = n_blocks.max(layer + 1);
            if blocks.is_some_and(|list| !list.contains(&layer)) {
                continue;
            }
            let matrix = target.matrix.as_str();
            if NORMS_BEHIND.contains(&matrix) {
                norms.get_or_insert_with(|| matrix.to_owned());
            }
            if let Some(of) = name.strip_suffix(".bias").map(Target::of)
                && WRITERS.contains(&of.matrix.as_str())
            {
                biases.get_or_insert_with(|| format!("{}.bias", of.matrix));
            }
            if !WRITERS.contains(&matrix) || !name.ends_with(".weight") {
                continue;
            }
            if ne[1] != unit.len() {
                return impossible(format!(
                    "the direction has {} dimensions, and {name} writes {}: it was made for another model",
                    unit.len(),
                    ne[1]
                ));
            }
            adapter.pairs.insert(target, pair(part, name, dtype, ne, &unit, strength)?);
        }
        if adapter.pairs.is_empty() {
            return impossible(format!(
                "no matrix of {} is known to write into the residual stream (architecture {architecture}{})",
                model.display(),
                if blocks.is_some() { ", in the blocks of --blocks" } else { "" }
            ));
        }
        let mut inexact = vec![Inexact::Embedding];
        inexact.extend(norms.map(Inexact::NormBehind));
        inexact.extend(biases.map(Inexact::Bias));
        let unknown = match blocks {
            Some(_) => 0,
            None => n_blocks - adapter.layers().len(),
        };
        inexact.extend((unknown > 0).then_some(Inexact::UnknownBlocks(unknown)));
        inexact.extend(blocks.map(|_| Inexact::SomeBlocks));
        Ok(Self { adapter, inexact })
    }
}

/// `B = -s u`, `A = u^T W` for each matrix of a tensor, whose weights are read row by row.
fn pair(
    part: &GgufFile,
    name: &str,
    dtype: DType,
    ne: [usize; 4],
    unit: &[f64],
    strength: f32,
) -> Result<LowRank, AdapterError> {
    let [n_in, n_out, n_experts, _] = ne;
    if !dtype.is_float() {
        return Err(AdapterError::Impossible(format!("{name} is {}, which holds no floats", dtype.name())));
    }
    let mut a = vec![0.0f64; n_experts * n_in]; // [n_experts, n_in]
    let mut row = 0;
    let rows = (PIECE / n_in.max(1)).max(1);
    part.read_pieces(name, rows * dtype.row_bytes(n_in), &mut |bytes| {
        for weights in dequantize(dtype, bytes).chunks_exact(n_in) {
            let (expert, out) = (row / n_out, row % n_out);
            let sum = &mut a[expert * n_in..][..n_in];
            sum.iter_mut().zip(weights).for_each(|(x, &w)| *x += unit[out] * f64::from(w));
            row += 1;
        }
    })?;
    let b = (0..n_experts).flat_map(|_| unit.iter().map(|u| (-f64::from(strength) * u) as f32)).collect();
    LowRank::of_experts(n_experts, 1, a.into_iter().map(|x| x as f32).collect(), b)
}
