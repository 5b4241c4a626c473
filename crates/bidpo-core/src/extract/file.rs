//! The result as a safetensors file, written row by row while the model runs.
//!
//! Layout: an 8-byte little-endian length, a JSON header, then the tensors
//! (<https://huggingface.co/docs/safetensors>). All sizes are known once the prompts are tokenized, so each row is
//! written to its final place at once and never kept in memory.

use super::{ExtractError, Extractor, NormStats, ResidualRows, row_norms};
use crate::adapter::Adapters;
use ggml_grad::files::{FileError, temporary_beside};
use ggml_grad::llama::{Model, Token};
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// Token positions to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// The last token of each prompt: `[n_prompts, n_embd]`.
    Last,
    /// Every token: `[n_tokens of all prompts, n_embd]`, with `prompt_offsets` `[n_prompts + 1]`, the first row of
    /// each prompt.
    All,
    /// The mean over the tokens of each prompt: `[n_prompts, n_embd]`.
    Mean,
}

impl Positions {
    /// `last`, `all` or `mean`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::All => "all",
            Self::Mean => "mean",
        }
    }
}

/// An extraction to a safetensors file.
#[derive(Debug, Clone, Copy)]
pub struct ExtractJob<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// Layers to read.
    pub layers: &'a [usize],
    /// Tokens of each prompt, BOS included.
    pub prompts: &'a [Vec<Token>],
    /// Token positions to keep.
    pub positions: Positions,
    /// Entries of the file's header, next to those that [`ExtractJob::write`] adds.
    pub metadata: &'a BTreeMap<String, String>,
    /// LoRA adapters under which the model runs.
    pub adapters: &'a Adapters,
    /// Threads of a computation.
    pub n_threads: u32,
}

impl ExtractJob<'_> {
    /// Runs the prompts and writes `layer.N` tensors (F32) to `path`, which is replaced only once all rows are written. `progress` receives
    /// the number of prompts done and stops the run by returning false.
    ///
    /// Returns the norms of the residual stream over all token positions, layer by layer. With [`Positions::Last`], the last block
    /// contributes only the positions that are computed there, the last ones among them.
    ///
    /// # Errors
    /// As [`Extractor`]; [`ExtractError::NoPrompts`], [`ExtractError::Io`], [`ExtractError::Interrupted`].
    pub fn write(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<BTreeMap<usize, NormStats>, ExtractError> {
        let &Self { model, layers, prompts, positions, metadata, adapters, n_threads } = self;
        let longest = prompts.iter().map(Vec::len).max().ok_or(ExtractError::NoPrompts)?;
        if let Some(i) = prompts.iter().position(Vec::is_empty) {
            return Err(ExtractError::EmptyPrompt { number: i + 1 });
        }
        let limit = model.n_ctx_train();
        if let Some(i) = prompts.iter().position(|p| p.len() > limit) {
            return Err(ExtractError::TooLong { number: i + 1, n_tokens: prompts[i].len(), limit });
        }
        let mut extractor = match positions {
            Positions::Last => Extractor::of_last_positions(model, layers, longest, n_threads)?,
            Positions::All | Positions::Mean => Extractor::new(model, layers, longest, n_threads)?,
        };
        extractor.set_adapters(adapters)?;
        let n_embd = model.n_embd();
        let failed = FileError::write(path);
        let layout = Layout::new(extractor.layers(), prompts, positions, n_embd);

        let mut file = temporary_beside(path).map_err(failed)?;
        file.write_all(&layout.header(metadata)).map_err(failed)?;
        let data_start = file.stream_position().map_err(failed)?;
        let mut write = |offset: u64, bytes: &[u8]| {
            file.seek(SeekFrom::Start(data_start + offset))
                .and_then(|_| file.write_all(bytes))
                .map_err(|e| ExtractError::Io(failed(e)))
        };
        if positions == Positions::All {
            write(0, &layout.offsets.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        let mut norms: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        // For Positions::Mean, of the prompts that are not done: by prompt and layer, the sum over the positions so far.
        let mut sums: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
        extractor.run_all(prompts, progress, &mut |ResidualRows { prompt, layer, first, data }| {
            norms.entry(layer).or_default().extend(row_norms(data, n_embd));
            let n_tokens = prompts[prompt].len();
            let is_done = first + data.len() / n_embd == n_tokens;
            let mut put = |row: usize, values: &[f32]| {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                write(layout.start(layer) + (row * n_embd * 4) as u64, &bytes)
            };
            match positions {
                Positions::All => put(layout.offsets[prompt] as usize + first, data),
                Positions::Last if is_done => put(prompt, &data[data.len() - n_embd..]),
                Positions::Last => Ok(()),
                Positions::Mean => {
                    let sum = sums.entry((prompt, layer)).or_insert_with(|| vec![0.0; n_embd]);
                    add_rows(sum, data);
                    if !is_done {
                        return Ok(());
                    }
                    let mean: Vec<f32> = sum.iter().map(|x| (x / n_tokens as f64) as f32).collect();
                    sums.remove(&(prompt, layer));
                    put(prompt, &mean)
                }
            }
        })?;
        file.as_file().sync_all().map_err(failed)?;
        ggml_grad::files::persist(file, path).map_err(failed)?;
        progress(prompts.len());
        Ok(norms.into_iter().filter_map(|(layer, n)| Some((layer, NormStats::of(&n)?))).collect())
    }
}

/// Adds the rows `[n, n_embd]` to a sum `[n_embd]`.
fn add_rows(sum: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
}

/// Offsets in the data part of the file.
struct Layout {
    layers: Vec<usize>,
    n_rows: usize,
    n_embd: usize,
    /// First row of each prompt, then the number of all rows; written only for [`Positions::All`].
    offsets: Vec<i64>,
    offset_bytes: usize,
    positions: Positions,
}

impl Layout {
    fn new(layers: &[usize], prompts: &[Vec<Token>], positions: Positions, n_embd: usize) -> Self {
        let mut offsets = vec![0i64];
        for prompt in prompts {
            offsets.push(offsets[offsets.len() - 1] + prompt.len() as i64);
        }
        let all = positions == Positions::All;
        Self {
            layers: layers.to_vec(),
            n_rows: if all { offsets[prompts.len()] as usize } else { prompts.len() },
            n_embd,
            offset_bytes: if all { offsets.len() * 8 } else { 0 },
            offsets,
            positions,
        }
    }

    /// First byte of a layer's tensor.
    fn start(&self, layer: usize) -> u64 {
        let index = self.layers.iter().position(|&l| l == layer).unwrap_or(0);
        (self.offset_bytes + index * self.n_rows * self.n_embd * 4) as u64
    }

    /// Length and JSON, padded with spaces to a multiple of eight so that the data is aligned. Keys in a fixed order:
    /// the same run writes the same bytes.
    fn header(&self, metadata: &BTreeMap<String, String>) -> Vec<u8> {
        let mut meta = metadata.clone();
        meta.insert("positions".into(), self.positions.name().into());
        meta.insert("n_prompts".into(), (self.offsets.len() - 1).to_string());
        meta.insert("n_tokens".into(), self.offsets[self.offsets.len() - 1].to_string());
        meta.insert(
            "layer_convention".into(),
            "layer.N is the residual stream after block N, counted from 0 (llama.cpp's direction.N)".into(),
        );
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!(meta));
        if self.positions == Positions::All {
            let entry = serde_json::json!({
                "dtype": "I64", "shape": [self.offsets.len()], "data_offsets": [0, self.offset_bytes],
            });
            header.insert("prompt_offsets".into(), entry);
        }
        for &layer in &self.layers {
            let start = self.start(layer);
            let entry = serde_json::json!({
                "dtype": "F32",
                "shape": [self.n_rows, self.n_embd],
                "data_offsets": [start, start + (self.n_rows * self.n_embd * 4) as u64],
            });
            header.insert(format!("layer.{layer}"), entry);
        }
        let mut json = serde_json::Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [(json.len() as u64).to_le_bytes().to_vec(), json].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_by_column() {
        let mut sum = vec![0.5, 0.0];
        add_rows(&mut sum, &[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(sum, [4.5, 8.0]);
    }

    /// The reader of the safetensors crate accepts what is written here.
    #[test]
    fn the_layout_is_valid() {
        for positions in [Positions::Last, Positions::All, Positions::Mean] {
            let layout = Layout::new(&[3, 7], &[vec![1, 2], vec![3]], positions, 4);
            let mut bytes = layout.header(&BTreeMap::from([("model".into(), "m \"x\"".into())]));
            let data = layout.start(7) as usize + layout.n_rows * 16;
            bytes.resize(bytes.len() + data, 0);
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let rows = if positions == Positions::All { 3 } else { 2 };
            assert_eq!(tensors.tensor("layer.7").unwrap().shape(), [rows, 4]);
            assert_eq!(tensors.tensor("prompt_offsets").is_ok(), positions == Positions::All);
            let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(meta.metadata().as_ref().unwrap()["model"], "m \"x\"");
        }
    }
}
