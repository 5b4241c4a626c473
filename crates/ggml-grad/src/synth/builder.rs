//! Builds a model: its metadata and the list of its tensors.
//!
//! The methods are the parts that architectures share. Shapes are given as ggml gives them: what a matrix takes first
//! (the length of its rows), what it yields second.

use super::{Shape, random::Init};
use crate::llama::{DType, GgufWriter, LlamaError};

/// A tensor to be made.
pub(super) struct Tensor {
    pub name: String,
    /// Elements along each dimension, fastest first.
    pub ne: [usize; 4],
    pub init: Init,
    /// A matrix of the network, which takes the model's type; else F32.
    matrix: bool,
}

impl Tensor {
    /// Its type in a model of type `asked`.
    pub(super) fn dtype(&self, asked: DType) -> DType {
        let q8_0 = DType::from_name("q8_0").into_iter();
        std::iter::once(asked)
            .chain(q8_0)
            .filter(|_| self.matrix)
            .find(|t| self.ne[0].is_multiple_of(t.block()))
            .unwrap_or(DType::F32)
    }
}

/// The model so far.
pub(super) struct ModelBuilder<'a> {
    arch: &'a str,
    pub shape: Shape,
    meta: GgufWriter,
    tensors: Vec<Tensor>,
    /// The first key that was refused: [`ModelBuilder::finish`] reports it.
    refused: Option<LlamaError>,
}

/// Tensors of an attention's projections besides their matrices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// Nothing.
    None,
    /// Biases on query, key and value.
    Qkv,
    /// These, and one on the output.
    All,
}

impl<'a> ModelBuilder<'a> {
    /// A model with the metadata that all have.
    pub(super) fn new(arch: &'a str, shape: Shape) -> Self {
        let mut builder = Self { arch, shape, meta: GgufWriter::new(), tensors: Vec::new(), refused: None };
        builder.set(|meta| meta.set_text("general.architecture", arch));
        builder.set(|meta| meta.set_u32("general.quantization_version", 2));
        for (key, value) in [
            ("vocab_size", shape.n_vocab),
            ("context_length", shape.n_ctx),
            ("embedding_length", shape.n_embd),
            ("block_count", shape.n_layer),
            ("feed_forward_length", shape.n_ff),
            ("attention.head_count", shape.n_head),
            ("attention.head_count_kv", shape.n_head_kv),
            ("attention.key_length", shape.head_dim),
            ("attention.value_length", shape.head_dim),
            ("rope.dimension_count", shape.head_dim),
        ] {
            builder.size(key, value);
        }
        if shape.n_expert > 0 {
            builder.size("expert_count", shape.n_expert);
            builder.size("expert_used_count", shape.n_expert_used);
        }
        builder
    }

    /// The metadata and the tensors, in the order of adding.
    ///
    /// # Errors
    /// [`LlamaError::GgufKey`] for a key that was refused.
    pub(super) fn finish(self) -> Result<(GgufWriter, Vec<Tensor>), LlamaError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((self.meta, self.tensors)),
        }
    }

    fn set(&mut self, write: impl FnOnce(&mut GgufWriter) -> Result<(), LlamaError>) {
        if let Err(error) = write(&mut self.meta) {
            self.refused.get_or_insert(error);
        }
    }

    /// llama.cpp's name of the architecture.
    pub(super) fn arch(&self) -> &'a str {
        self.arch
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// Sets a size of the architecture; a second call for a key replaces the first.
    pub(super) fn size(&mut self, key: &str, value: usize) {
        let key = self.key(key);
        self.set(|meta| meta.set_u32(&key, u32::try_from(value).unwrap_or(u32::MAX)));
    }

    /// Sets a constant of the architecture.
    pub(super) fn constant(&mut self, key: &str, value: f32) {
        let key = self.key(key);
        self.set(|meta| meta.set_f32(&key, value));
    }

    /// Sets a switch of the architecture.
    pub(super) fn switch(&mut self, key: &str, value: bool) {
        let key = self.key(key);
        self.set(|meta| meta.set_bool(&key, value));
    }

    /// Sets a text of the architecture.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        let key = self.key(key);
        self.set(|meta| meta.set_text(&key, value));
    }

    /// Sets one size for each block.
    pub(super) fn sizes(&mut self, key: &str, values: &[usize]) {
        let key = self.key(key);
        self.set(|meta| meta.set_i32s(&key, &values.iter().map(|&n| n as i32).collect::<Vec<_>>()));
    }

    /// Sets one switch for each block.
    pub(super) fn switches(&mut self, key: &str, values: &[bool]) {
        let key = self.key(key);
        self.set(|meta| meta.set_bools(&key, values));
    }

    /// Sets the same constant for each block, under a key without the architecture's name.
    pub(super) fn block_constants(&mut self, key: &str, value: f32) {
        let values = vec![value; self.shape.n_layer];
        self.set(|meta| meta.set_f32s(key, &values));
    }

    /// Sets the same constant of the architecture for each block.
    pub(super) fn constants(&mut self, key: &str, value: f32) {
        let key = self.key(key);
        self.block_constants(&key, value);
    }

    /// RMSNorm.
    pub(super) fn rms(&mut self) {
        self.constant("attention.layer_norm_rms_epsilon", 1e-5);
    }

    /// LayerNorm.
    pub(super) fn layer_norm(&mut self) {
        self.constant("attention.layer_norm_epsilon", 1e-5);
    }

    /// SWA of 16 tokens in the blocks that have a window: short, so that short texts reach past it.
    pub(super) fn window(&mut self) {
        self.size("attention.sliding_window", 16);
    }

    fn push(&mut self, name: &str, ne: &[usize], init: Init, matrix: bool) {
        let mut shape = [1; 4];
        shape[..ne.len()].copy_from_slice(ne);
        self.tensors.push(Tensor { name: name.to_owned(), ne: shape, init, matrix });
    }

    /// A matrix of the network, scaled so that it keeps the size of what goes through it.
    pub(super) fn matrix(&mut self, name: &str, ne: &[usize]) {
        let std = 1.0 / (ne[0] as f32).sqrt();
        self.push(&format!("{name}.weight"), ne, Init::Normal { mean: 0.0, std }, true);
    }

    /// A matrix that published files keep in F32: a router, for example.
    pub(super) fn small_matrix(&mut self, name: &str, ne: &[usize]) {
        let std = 1.0 / (ne[0] as f32).sqrt();
        self.push(&format!("{name}.weight"), ne, Init::Normal { mean: 0.0, std }, false);
    }

    /// F32 numbers around `mean`. `name` is the whole name.
    pub(super) fn around(&mut self, name: &str, ne: &[usize], mean: f32, std: f32) {
        self.push(name, ne, Init::Normal { mean, std }, false);
    }

    /// F32 numbers as they are. `name` is the whole name.
    pub(super) fn given(&mut self, name: &str, values: Vec<f32>) {
        self.push(name, &[values.len()], Init::Given(values), false);
    }

    /// A norm's weights. Stored values lie around 1 in every architecture: where the network adds 1 (gemma, nemotron),
    /// the conversion has added it.
    pub(super) fn norm(&mut self, name: &str, n: usize) {
        self.around(&format!("{name}.weight"), &[n], 1.0, 0.1);
    }

    /// A bias.
    pub(super) fn bias(&mut self, name: &str, ne: &[usize]) {
        self.around(&format!("{name}.bias"), ne, 0.0, 0.1);
    }

    /// A norm with weights and bias.
    pub(super) fn norm_bias(&mut self, name: &str, n: usize) {
        self.norm(name, n);
        self.bias(name, &[n]);
    }

    /// Token embeddings tied to the LM head.
    pub(super) fn tied_embedding(&mut self) {
        let Shape { n_embd, n_vocab, .. } = self.shape;
        self.matrix("token_embd", &[n_embd, n_vocab]);
    }

    /// Token embeddings of standard deviation 1, and a separate LM head.
    pub(super) fn embedding(&mut self) {
        let Shape { n_embd, n_vocab, .. } = self.shape;
        self.push("token_embd.weight", &[n_embd, n_vocab], Init::Normal { mean: 0.0, std: 1.0 }, true);
        self.matrix("output", &[n_embd, n_vocab]);
    }

    /// Widths of query and key.
    pub(super) fn qk(&self) -> (usize, usize) {
        (self.shape.n_head * self.shape.head_dim, self.shape.n_head_kv * self.shape.head_dim)
    }

    /// Block `i`'s attention, one matrix per projection.
    pub(super) fn attention(&mut self, i: usize, bias: Bias) {
        let ((q, k), n) = (self.qk(), self.shape.n_embd);
        for (part, width) in [("q", q), ("k", k), ("v", k)] {
            let name = format!("blk.{i}.attn_{part}");
            self.matrix(&name, &[n, width]);
            if bias != Bias::None {
                self.bias(&name, &[width]);
            }
        }
        self.attention_output(i, bias);
    }

    /// Block `i`'s attention with a fused QKV matrix.
    pub(super) fn fused_attention(&mut self, i: usize, bias: Bias) {
        let ((q, k), n) = (self.qk(), self.shape.n_embd);
        let name = format!("blk.{i}.attn_qkv");
        self.matrix(&name, &[n, q + 2 * k]);
        if bias != Bias::None {
            self.bias(&name, &[q + 2 * k]);
        }
        self.attention_output(i, bias);
    }

    fn attention_output(&mut self, i: usize, bias: Bias) {
        let ((q, _), n) = (self.qk(), self.shape.n_embd);
        let name = format!("blk.{i}.attn_output");
        self.matrix(&name, &[q, n]);
        if bias == Bias::All {
            self.bias(&name, &[n]);
        }
    }

    /// QK-norm per head in block `i`.
    pub(super) fn head_norms(&mut self, i: usize) {
        for part in ["q", "k"] {
            self.norm(&format!("blk.{i}.attn_{part}_norm"), self.shape.head_dim);
        }
    }

    /// QK-norm over all heads together in block `i`.
    pub(super) fn wide_norms(&mut self, i: usize) {
        let (q, k) = self.qk();
        self.norm(&format!("blk.{i}.attn_q_norm"), q);
        self.norm(&format!("blk.{i}.attn_k_norm"), k);
    }

    /// A gated MLP of inner width `n_ff`; `suffix` names a shared expert's tensors (`_shexp`).
    pub(super) fn gated(&mut self, i: usize, suffix: &str, n_ff: usize) {
        let n = self.shape.n_embd;
        self.matrix(&format!("blk.{i}.ffn_gate{suffix}"), &[n, n_ff]);
        self.matrix(&format!("blk.{i}.ffn_up{suffix}"), &[n, n_ff]);
        self.matrix(&format!("blk.{i}.ffn_down{suffix}"), &[n_ff, n]);
    }

    /// An MLP without a gate.
    pub(super) fn plain(&mut self, i: usize, bias: bool) {
        let Shape { n_embd, n_ff, .. } = self.shape;
        for (name, n_in, n_out) in [("up", n_embd, n_ff), ("down", n_ff, n_embd)] {
            let name = format!("blk.{i}.ffn_{name}");
            self.matrix(&name, &[n_in, n_out]);
            if bias {
                self.bias(&name, &[n_out]);
            }
        }
    }

    /// A router and gated experts.
    pub(super) fn experts(&mut self, i: usize) {
        let Shape { n_embd, n_ff, n_expert, .. } = self.shape;
        self.small_matrix(&format!("blk.{i}.ffn_gate_inp"), &[n_embd, n_expert]);
        self.matrix(&format!("blk.{i}.ffn_gate_exps"), &[n_embd, n_ff, n_expert]);
        self.matrix(&format!("blk.{i}.ffn_up_exps"), &[n_embd, n_ff, n_expert]);
        self.matrix(&format!("blk.{i}.ffn_down_exps"), &[n_ff, n_embd, n_expert]);
    }

    /// RoPE factors on the wavelengths (`n` of them), growing from 1 to `last`.
    pub(super) fn rope_factors(&mut self, name: &str, n: usize, last: f32) {
        let step = |i: usize| i as f32 / (n - 1).max(1) as f32;
        self.given(&format!("{name}.weight"), (0..n).map(|i| 1.0 + (last - 1.0) * step(i) * step(i)).collect());
    }
}
