//! An adapter added to the weights of a model: `W' = W + s B A`, de-quantized, added, and quantized again.

use super::{AdapterError, AdapterFile, LowRank, Target};
use ggml_grad::files::sha256_of_bytes;
use ggml_grad::llama::{DType, GgufFile, GgufWriter, LlamaError, dequantize, quantize};
use std::path::Path;

/// Values de-quantized at a time.
const PIECE: usize = 1 << 20;
/// What a merged file says of itself: hashes of the adapters with their scales.
pub const MERGED: &str = "bidpo.merged_lora";

/// A tensor that a merge has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedTensor {
    /// Its name.
    pub name: String,
    /// Type in the model.
    pub from: DType,
    /// Type in the merged file: another one where ggml cannot quantize to the first.
    pub to: DType,
}

/// A pair that is added to a tensor.
struct Addition<'a> {
    pair: &'a LowRank,
    factor: f64,
}

/// Writes `out`: the model with adapters merged at their scales. Tensors that no adapter changes keep their bytes; of a model
/// that is split over several files, `model` is the first, and one file is written.
///
/// # Errors
/// [`AdapterError::Impossible`] for a pair that the model has no matrix for; [`AdapterError::Llama`] for files that cannot be read
/// or written.
pub fn merge(model: &Path, adapters: &[(AdapterFile, f32)], out: &Path) -> Result<Vec<MergedTensor>, AdapterError> {
    let files = GgufFile::open_parts(model)?;
    let tensors: Vec<(&GgufFile, &str, DType, [usize; 4])> =
        files.iter().flat_map(|f| f.tensors().map(move |(name, dtype, ne)| (f, name, dtype, ne))).collect();
    for (adapter, _) in adapters {
        for (target, pair) in &adapter.pairs {
            fits(target, pair, &tensors)?;
        }
    }
    let mut writer = GgufWriter::new();
    // First, so that a look at the file's start tells what it is.
    writer.set_text(MERGED, &described(adapters))?;
    writer.copy_meta_of(model)?;
    for key in ["split.no", "split.count", "split.tensors.count"] {
        writer.remove(key);
    }
    let mut merged = Vec::new();
    let mut types = Vec::new();
    for (_, name, dtype, ne) in &tensors {
        let to = if additions(name, adapters).is_empty() { *dtype } else { target_type(*dtype, ne[0]) };
        if !additions(name, adapters).is_empty() {
            merged.push(MergedTensor { name: (*name).to_owned(), from: *dtype, to });
        }
        writer.declare(name, to, *ne)?;
        types.push(to);
    }
    writer.write_with(out, &mut |i, sink| {
        let (file, name, dtype, ne) = tensors[i];
        let additions = additions(name, adapters);
        // Whole rows: a row is whole blocks.
        let rows = (PIECE / ne[0].max(1)).max(1);
        let mut row = 0;
        let mut failed = Ok(());
        file.read_pieces(name, rows * dtype.row_bytes(ne[0]), &mut |bytes| {
            if failed.is_err() {
                return;
            }
            failed = if additions.is_empty() {
                sink.push(bytes)
            } else {
                let added = added(dtype, bytes, ne, &mut row, &additions, types[i]);
                added.map_err(|why| too_large(name, &why)).and_then(|bytes| sink.push(&bytes))
            };
        })?;
        failed
    })?;
    Ok(merged)
}

/// Rows of a tensor with the additions, in the type `to`; `row` counts them.
fn added(
    dtype: DType,
    bytes: &[u8],
    ne: [usize; 4],
    row: &mut usize,
    additions: &[Addition<'_>],
    to: DType,
) -> Result<Vec<u8>, LlamaError> {
    let mut values = dequantize(dtype, bytes);
    let mut sum = vec![0.0f64; ne[0]];
    for weights in values.chunks_exact_mut(ne[0]) {
        let (expert, out) = (*row / ne[1], *row % ne[1]);
        sum.iter_mut().zip(&*weights).for_each(|(s, &w)| *s = f64::from(w));
        additions.iter().for_each(|a| a.pair.add_row(expert, out, a.factor, &mut sum));
        weights.iter_mut().zip(&sum).for_each(|(w, &s)| *w = s as f32);
        *row += 1;
    }
    let bytes = quantize(to, &values, ne[0])?;
    // The scale of a block is an f16 in most types.
    match dequantize(to, &bytes).iter().all(|x| x.is_finite()) {
        true => Ok(bytes),
        false => Err(LlamaError::Gguf(format!("{} cannot hold a number so large", to.name()))),
    }
}

fn too_large(name: &str, why: &LlamaError) -> LlamaError {
    LlamaError::Gguf(format!("{name} cannot be merged: {why}; is the adapter's scale too large?"))
}

/// The pairs for a tensor.
fn additions<'a>(name: &str, adapters: &'a [(AdapterFile, f32)]) -> Vec<Addition<'a>> {
    let target = Target::of(name);
    let of = |(adapter, scale): &'a (AdapterFile, f32)| {
        let pair = adapter.pairs.get(&target).filter(|_| target.tensor() == name)?;
        Some(Addition { pair, factor: adapter.factor(pair, *scale) })
    };
    adapters.iter().filter_map(of).collect()
}

/// The type itself where ggml quantizes to it, else the nearest one that holds at least as much.
fn target_type(dtype: DType, width: usize) -> DType {
    let q8 = DType::from_name("q8_0").filter(|q8| width.is_multiple_of(q8.block()));
    if DType::WEIGHTS.contains(&dtype) { dtype } else { q8.unwrap_or(DType::F16) }
}

fn fits(target: &Target, pair: &LowRank, tensors: &[(&GgufFile, &str, DType, [usize; 4])]) -> Result<(), AdapterError> {
    let name = target.tensor();
    let Some((_, _, dtype, ne)) = tensors.iter().find(|t| t.1 == name) else {
        return Err(AdapterError::Impossible(format!("the model has no tensor {name}")));
    };
    if [ne[0], ne[1], ne[2]] != [pair.n_in, pair.n_out, pair.n_experts] || ne[3] != 1 {
        return Err(AdapterError::Impossible(format!(
            "{name} is {ne:?} in the model, and the adapter changes {} matrices of {} x {}",
            pair.n_experts, pair.n_out, pair.n_in
        )));
    }
    match dtype.is_float() {
        true => Ok(()),
        false => Err(AdapterError::Impossible(format!("{name} is {}, which holds no floats", dtype.name()))),
    }
}

/// Hashes of the values, and scales.
fn described(adapters: &[(AdapterFile, f32)]) -> String {
    let one = |(adapter, scale): &(AdapterFile, f32)| {
        let values = adapter.pairs.values().flat_map(|p| p.a.iter().chain(&p.b));
        let bytes: Vec<u8> = values.flat_map(|x| x.to_le_bytes()).collect();
        format!("{}:{scale}", sha256_of_bytes(&bytes))
    };
    adapters.iter().map(one).collect::<Vec<_>>().join(",")
}
