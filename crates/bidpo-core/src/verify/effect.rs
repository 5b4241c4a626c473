//! Which parts of a file take effect: the layers of a vector, the matrices of an adapter.

use super::{Problem, Verification, VerifyError};
use crate::layers::Layers;
use crate::steer::{ControlVector, ScaledVector, combine};
use ggml_grad::llama::{Batch, Context, ContextParams, EvalCallback, Node, Token};
use std::collections::BTreeSet;

/// A text of plain words; a vocabulary that lacks its letters gives other tokens, which do as well.
const TEXT: &str = "One two three four five six seven.";

/// A layer or a matrix of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `layer 15`, or the tensor's name.
    pub name: String,
    /// True where the model's graph holds it and it changes something.
    pub acts: bool,
}

/// What a file changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// All parts, in order.
    pub parts: Vec<Part>,
    /// The largest change of a logit on a short text at scale 1.
    pub largest_change: f32,
}

impl Effect {
    /// Parts that act.
    pub fn n_acting(&self) -> usize {
        self.parts.iter().filter(|p| p.acts).count()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let idle: Vec<String> = self.parts.iter().filter(|p| !p.acts).map(|p| p.name.clone()).collect();
        if self.largest_change == 0.0 {
            return vec![Problem::NothingMoves];
        }
        match idle.is_empty() {
            true => Vec::new(),
            false => vec![Problem::WithoutEffect { parts: idle, of: self.parts.len() }],
        }
    }
}

/// The matrices of adapters that the graph multiplies with.
#[derive(Default)]
struct Products(BTreeSet<String>);

impl EvalCallback for Products {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        // The first of the pair is multiplied with the activations, or looked up by token.
        let source = node.src(0).map(|s| s.name());
        if let Some(base) = source.as_deref().and_then(|name| name.strip_suffix(".lora_a")) {
            self.0.insert(base.to_owned());
        }
        false
    }

    fn computed(&mut self, _: &Node<'_>) -> bool {
        true
    }
}

/// A context and the text that is decoded in it.
struct Probe {
    ctx: Context,
    tokens: Vec<Token>,
}

impl Probe {
    fn new(of: &Verification<'_>) -> Result<Self, VerifyError> {
        let mut tokens: Vec<Token> = of.model.bos().into_iter().collect();
        tokens.extend(of.model.tokenize(TEXT, false, false)?);
        tokens.extend([0, 1]);
        tokens.truncate(of.model.n_ctx_train().clamp(1, 32));
        let params = ContextParams { n_ctx: 32, n_batch: 32, n_threads: of.n_threads, ..ContextParams::default() };
        Ok(Self { ctx: Context::new(of.model, &params)?, tokens })
    }

    /// The last token's logits under `control`.
    fn logits(&mut self, control: Option<&ControlVector>) -> Result<Vec<f32>, VerifyError> {
        let nothing =
            ControlVector::of_adapters(Default::default(), self.ctx.model().n_layer(), self.ctx.model().n_embd());
        control.unwrap_or(&nothing).apply(&mut self.ctx)?;
        self.ctx.clear_kv();
        let row = self.ctx.prefill_of(&self.tokens, 0, Some(self.tokens.len()))?;
        Ok(self.ctx.logits(row)?.to_vec())
    }

    /// The matrices that the graph multiplies with under `control`.
    fn products(&mut self, control: &ControlVector) -> Result<BTreeSet<String>, VerifyError> {
        control.apply(&mut self.ctx)?;
        self.ctx.clear_kv();
        let mut batch = Batch::new();
        for (at, &token) in self.tokens.iter().enumerate() {
            batch.add(token, at, &[0], at + 1 == self.tokens.len());
        }
        let mut products = Products::default();
        self.ctx.decode_with_callback(&batch, &mut products)?;
        Ok(products.0)
    }
}

/// The largest change of a logit; infinite where one is no number.
fn largest(a: &[f32], b: &[f32]) -> f32 {
    let change = |(x, y): (&f32, &f32)| if (x - y).is_nan() { f32::INFINITY } else { (x - y).abs() };
    a.iter().zip(b).map(change).fold(0.0, f32::max)
}

pub(super) fn effect(of: &Verification<'_>, dial: &ScaledVector) -> Result<Effect, VerifyError> {
    let mut probe = Probe::new(of)?;
    let plain = probe.logits(None)?;
    let one = |layers: Option<&Layers>| combine(std::slice::from_ref(dial), layers, of.model);
    let Some(whole) = one(None)? else { return Ok(Effect { parts: Vec::new(), largest_change: 0.0 }) };
    let largest_change = largest(&plain, &probe.logits(Some(&whole))?);
    let mut parts = Vec::new();
    if let Some(adapter) = &dial.vector.adapter {
        let products = probe.products(&whole)?;
        for (tensor, norm) in &adapter.norms {
            parts.push(Part { name: tensor.clone(), acts: *norm > 0.0 && products.contains(tensor) });
        }
        parts.extend(adapter.skipped.iter().map(|name| Part { name: name.clone(), acts: false }));
        return Ok(Effect { parts, largest_change });
    }
    for layer in dial.vector.layers() {
        let control = one(Some(&Layers::one(layer)))?;
        let changed = match &control {
            Some(control) => largest(&plain, &probe.logits(Some(control))?),
            None => 0.0,
        };
        parts.push(Part { name: format!("layer {layer}"), acts: changed > 0.0 });
    }
    Ok(Effect { parts, largest_change })
}
