//! The file: a GGUF adapter as llama.cpp loads it, with provenance in keys of our own. See docs/adapters.md.

use super::{AdapterError, LowRank, Target};
use crate::steer::Provenance;
use ggml_grad::llama::{DType, GgufFile, GgufValue, GgufWriter, quantize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// More matrices than any model has.
const MOST_PAIRS: usize = 1 << 14;
/// More numbers than any adapter has: 8 GB of them.
const MOST_VALUES: usize = 1 << 31;
/// Values turned into bytes at a time.
const PIECE: usize = 1 << 14;
/// The prefix of provenance.
const PREFIX: &str = "bidpo.";
const TYPE: &str = "general.type";
const ARCHITECTURE: &str = "general.architecture";
const FORM: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const INVOCATION: &str = "adapter.alora.invocation_tokens";
const A: &str = ".lora_a";
const B: &str = ".lora_b";

/// How an adapter's file keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdapterKind {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
}

impl AdapterKind {
    /// ggml's type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    /// The kind that keeps the numbers of a file as they are.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn of_file(path: &Path) -> Result<Self, AdapterError> {
        let half = GgufFile::open(path)?.tensors().all(|(_, dtype, _)| dtype == DType::F16);
        Ok(if half { Self::F16 } else { Self::F32 })
    }
}

/// A LoRA adapter as its file holds it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdapterFile {
    /// `general.architecture`: that of the model it changes.
    pub architecture: String,
    /// `adapter.lora.alpha`: the pair's factor is `scale * alpha / rank`. Absent or 0: it is the scale itself.
    pub alpha: Option<f32>,
    /// The pairs by the matrices they change.
    pub pairs: BTreeMap<Target, LowRank>,
    /// Norms, which llama.cpp passes over.
    pub skipped: Vec<String>,
    /// `adapter.alora.invocation_tokens`: the adapter is meant to act from these tokens on.
    pub invocation_tokens: Vec<u32>,
    /// `bidpo.*`.
    pub provenance: Provenance,
    /// All other keys. Lists are not kept.
    pub other: BTreeMap<String, GgufValue>,
}

impl AdapterFile {
    /// An adapter for models of an architecture, without pairs.
    pub fn new(architecture: &str, alpha: Option<f32>) -> Self {
        Self { architecture: architecture.to_owned(), alpha, ..Self::default() }
    }

    /// True for a GGUF file that says it is an adapter.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn is_one(path: &Path) -> Result<bool, AdapterError> {
        Ok(GgufFile::open(path)?.get(TYPE) == Some(&GgufValue::Str("adapter".to_owned())))
    }

    /// Reads an adapter: bidpo's own, and those of llama.cpp's `convert_lora_to_gguf.py`. Values of F16 and BF16 become F32.
    ///
    /// # Errors
    /// [`AdapterError::Llama`] for a file that cannot be read, is no GGUF, is damaged or cut short;
    /// [`AdapterError::NotAnAdapter`] for a GGUF that is no usable adapter.
    pub fn load(path: &Path) -> Result<Self, AdapterError> {
        let refuse = |reason: String| AdapterError::NotAnAdapter { path: path.to_owned(), reason };
        let file = GgufFile::open(path)?;
        let mut adapter = Self::of_metadata(&file).map_err(refuse)?;
        adapter.read_pairs(&file).map_err(|e| match e {
            AdapterError::Invalid(reason) => refuse(reason),
            other => other,
        })?;
        Ok(adapter)
    }

    fn of_metadata(file: &GgufFile) -> Result<Self, String> {
        let text = |key: &str| match file.get(key) {
            Some(GgufValue::Str(text)) => Some(text.as_str()),
            _ => None,
        };
        let architecture = text(ARCHITECTURE).unwrap_or_default();
        match text(TYPE) {
            Some("adapter") => {}
            _ if architecture == "controlvector" => {
                return Err("it is a control vector, no adapter: give it with --vector".to_owned());
            }
            _ => {
                return Err(format!(
                    "not an adapter: {TYPE} is {}, an adapter says \"adapter\"; a model goes to --model",
                    text(TYPE).map_or_else(|| "missing".to_owned(), |t| format!("{t:?}"))
                ));
            }
        }
        if architecture.is_empty() {
            return Err(format!("not an adapter: it has no text key {ARCHITECTURE}"));
        }
        match text(FORM) {
            Some("lora") => {}
            Some(other) => return Err(format!("{FORM} is {other:?}: llama.cpp and bidpo load \"lora\" only")),
            None => return Err(format!("it has no text key {FORM}")),
        }
        let alpha = match file.get(ALPHA) {
            None => None,
            Some(GgufValue::Float(x)) if x.is_finite() && (*x as f32).is_finite() => Some(*x as f32),
            Some(other) => return Err(format!("{ALPHA} is {other:?}: a finite number is wanted")),
        };
        let known = [TYPE, ARCHITECTURE, FORM, ALPHA, INVOCATION];
        let mut adapter = Self::new(architecture, alpha);
        adapter.invocation_tokens = file.u32s(INVOCATION).unwrap_or_default().to_vec();
        for (key, value) in file.meta().iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            match (key.strip_prefix(PREFIX), value) {
                (Some(key), _) => drop(adapter.provenance.entries.insert(key.to_owned(), value.clone())),
                (None, GgufValue::Other(_)) => {}
                (None, _) => drop(adapter.other.insert(key.clone(), value.clone())),
            }
        }
        Ok(adapter)
    }

    fn read_pairs(&mut self, file: &GgufFile) -> Result<(), AdapterError> {
        let invalid = |reason: String| AdapterError::Invalid(reason);
        let shapes: BTreeMap<&str, (DType, [usize; 4])> =
            file.tensors().map(|(name, dtype, ne)| (name, (dtype, ne))).collect();
        let mut bases = BTreeSet::new();
        let mut total = 0usize;
        for (name, (dtype, ne)) in &shapes {
            let values = ne.iter().try_fold(1usize, |n, &k| n.checked_mul(k)).unwrap_or(usize::MAX);
            total = total.saturating_add(values);
            if total > MOST_VALUES {
                return Err(invalid(format!("it holds more than {MOST_VALUES} numbers")));
            }
            match name.strip_suffix(A).or_else(|| name.strip_suffix(B)) {
                Some(base) => drop(bases.insert(base)),
                None if name.ends_with("_norm.weight") => self.skipped.push((*name).to_owned()),
                None => {
                    return Err(invalid(format!(
                        "tensor {name} ({}) is no part of an adapter: names end in {A} or {B}",
                        dtype.name()
                    )));
                }
            }
        }
        if bases.is_empty() || bases.len() > MOST_PAIRS {
            return Err(invalid(format!("it holds {} pairs of matrices, expected 1 to {MOST_PAIRS}", bases.len())));
        }
        for base in bases {
            let read = |end: &str| {
                let name = format!("{base}{end}");
                let Some(&(dtype, ne)) = shapes.get(name.as_str()) else {
                    return Err(invalid(format!("tensor {name} is missing: half a pair")));
                };
                match file.read_floats(&name)? {
                    Some(values) => Ok((ne, values)),
                    None => Err(invalid(format!("tensor {name} is {}, expected f32, f16 or bf16", dtype.name()))),
                }
            };
            let ((of_a, a), (of_b, b)) = (read(A)?, read(B)?);
            let target = Target::of(base);
            if target.tensor() != base {
                return Err(invalid(format!("{base} is no matrix of a model: its name must end in .weight")));
            }
            let named = |e: AdapterError| match e {
                AdapterError::Invalid(reason) => AdapterError::Invalid(format!("{base}: {reason}")),
                other => other,
            };
            self.pairs.insert(target.clone(), pair_of(&target, of_a, a, of_b, b).map_err(named)?);
        }
        Ok(())
    }

    /// Checks that it can be written.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`].
    pub fn check(&self) -> Result<(), AdapterError> {
        let invalid = |reason: String| Err(AdapterError::Invalid(reason));
        if self.architecture.is_empty() {
            return invalid("it names no architecture".to_owned());
        }
        if self.alpha.is_some_and(|alpha| !alpha.is_finite()) {
            return invalid(format!("alpha is {:?}: a finite number is wanted", self.alpha));
        }
        if self.pairs.is_empty() {
            return invalid("it holds no pair of matrices".to_owned());
        }
        self.pairs.values().try_for_each(LowRank::check)
    }

    /// Writes the file (all of it or nothing), so that llama.cpp loads it unchanged. Norms that llama.cpp passes over are not
    /// written.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] for values that no reader would take, among them those that are too large for F16;
    /// [`AdapterError::Key`] for a key that GGUF cannot hold; [`AdapterError::Llama`] when the file cannot be written.
    pub fn save(&self, path: &Path, kind: AdapterKind) -> Result<(), AdapterError> {
        self.check()?;
        let largest = |pair: &LowRank| pair.a.iter().chain(&pair.b).fold(0.0f32, |m, x| m.max(x.abs()));
        if kind == AdapterKind::F16
            && let Some((target, pair)) = self.pairs.iter().find(|(_, pair)| largest(pair) > half::f16::MAX.to_f32())
        {
            return Err(AdapterError::Invalid(format!(
                "{target} holds {}, and F16 ends at {}: write F32",
                largest(pair),
                half::f16::MAX
            )));
        }
        let refused = |source| AdapterError::Key { path: path.to_owned(), source };
        let mut writer = GgufWriter::new();
        writer.set_text(TYPE, "adapter")?;
        writer.set_text(ARCHITECTURE, &self.architecture)?;
        writer.set_text(FORM, "lora")?;
        if let Some(alpha) = self.alpha {
            writer.set_f32(ALPHA, alpha)?;
        }
        if !self.invocation_tokens.is_empty() {
            writer.set_u32s(INVOCATION, &self.invocation_tokens)?;
        }
        for (key, value) in &self.other {
            writer.set(key, value).map_err(refused)?;
        }
        for (key, value) in &self.provenance.entries {
            writer.set(&format!("{PREFIX}{key}"), value).map_err(refused)?;
        }
        let mut data: Vec<(Cow<'_, [f32]>, usize)> = Vec::new();
        for (target, pair) in &self.pairs {
            let (of_a, of_b) = shapes(target, pair);
            let (a, b) = (Cow::from(&pair.a), Cow::from(&pair.b));
            let (first, second) = match target.is_table() {
                true => (b, Cow::from(transposed(&pair.a, pair.n_in))),
                false => (a, b),
            };
            for (end, ne, values) in [(A, of_a, first), (B, of_b, second)] {
                writer.declare(&format!("{}{end}", target.tensor()), kind.dtype(), ne)?;
                data.push((values, ne[0]));
            }
        }
        writer.write_with(path, &mut |i, sink| {
            let (values, width) = &data[i];
            let width = *width;
            for rows in values.chunks(width * PIECE.div_ceil(width)) {
                sink.push(&quantize(kind.dtype(), rows, width)?)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The factor on a pair's `B A` at a scale: llama.cpp's `scale * alpha / rank`, or the scale alone.
    pub fn factor(&self, pair: &LowRank, scale: f32) -> f64 {
        match self.alpha {
            Some(alpha) if alpha != 0.0 => f64::from(scale) * f64::from(alpha) / pair.rank as f64,
            _ => f64::from(scale),
        }
    }

    /// The Frobenius norm of what each matrix gains at scale 1, by the tensor's name.
    pub fn norms(&self) -> BTreeMap<String, f64> {
        let norm = |(t, pair): (&Target, &LowRank)| (t.tensor(), self.factor(pair, 1.0).abs() * pair.norm());
        self.pairs.iter().map(norm).collect()
    }

    /// The blocks it changes, in order.
    pub fn layers(&self) -> Vec<usize> {
        self.pairs.keys().filter_map(|t| t.layer).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The kinds of matrices it changes, in order.
    pub fn matrices(&self) -> Vec<&str> {
        self.pairs.keys().map(|t| t.matrix.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The smallest and the largest rank.
    pub fn ranks(&self) -> (usize, usize) {
        let ranks = || self.pairs.values().map(|p| p.rank);
        (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
    }

    /// Numbers of all pairs.
    pub fn n_values(&self) -> usize {
        self.pairs.values().map(|p| p.a.len() + p.b.len()).sum()
    }
}

/// Shapes of the file's `lora_a` and `lora_b`, `ne[0]` fastest. A table of embeddings has the two flipped: its A is read by row.
fn shapes(target: &Target, pair: &LowRank) -> ([usize; 4], [usize; 4]) {
    let LowRank { n_in, n_out, rank, n_experts, .. } = *pair;
    match target.is_table() {
        true => ([rank, n_out, n_experts, 1], [rank, n_in, n_experts, 1]),
        false => ([n_in, rank, n_experts, 1], [rank, n_out, n_experts, 1]),
    }
}

/// Rows of `width` numbers as columns.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    let rows = values.len() / width.max(1);
    (0..width).flat_map(|column| (0..rows).map(move |row| values[row * width + column])).collect()
}

/// A pair from the file's two tensors.
fn pair_of(
    target: &Target,
    of_a: [usize; 4],
    a: Vec<f32>,
    of_b: [usize; 4],
    b: Vec<f32>,
) -> Result<LowRank, AdapterError> {
    let rank = if target.is_table() { of_a[0] } else { of_a[1] };
    if rank != of_b[0] || of_a[2..] != of_b[2..] || of_a[3] != 1 {
        return Err(AdapterError::Invalid(format!("A {of_a:?} and B {of_b:?} have no common rank")));
    }
    if target.is_table() {
        // Both hold rows of `rank` numbers: [n_vocab, rank] and [n_embd, rank].
        if of_a[2] != 1 {
            return Err(AdapterError::Invalid(format!("A {of_a:?} and B {of_b:?} are no pair for a table")));
        }
        let pair = LowRank { n_in: of_b[1], n_out: of_a[1], rank, n_experts: 1, a: transposed(&b, rank), b: a };
        pair.check()?;
        return Ok(pair);
    }
    LowRank::of_experts(of_a[2], rank, a, b)
}

#[cfg(test)]
mod tests;
