//! Token pairs for random models, and interventions of every kind applied to plain decodes.

use bidpo_core::data::TokenizedPair;
use bidpo_core::intervention::{Kind, KindSpec, Scope};
use bidpo_core::steer::{ControlVector, RowChanges, ScaledVector, SteeringVector, combine};
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Batch, Context, ContextParams, Model, Token};
use std::sync::Arc;

/// Four pairs whose prompts begin alike and have different lengths.
pub fn pairs() -> Vec<TokenizedPair> {
    let pair = |prompt: &[i32], chosen: &[i32], rejected: &[i32]| TokenizedPair {
        prompt: prompt.to_vec(),
        chosen: chosen.to_vec(),
        rejected: rejected.to_vec(),
    };
    vec![
        pair(&[1, 300, 17, 290, 310], &[45, 300, 271], &[303, 280]),
        pair(&[1, 300, 17, 290, 299], &[281, 302], &[45, 300, 290, 271]),
        pair(&[1, 300, 17, 45], &[310, 303, 299], &[290, 302, 281]),
        pair(&[1, 300, 17, 45, 46, 281], &[303, 17], &[299, 310]),
    ]
}

/// A trained file's value with these parameters.
pub fn vector(model: &Model, layer: usize, spec: KindSpec, scope: &Scope, theta: Vec<f32>) -> SteeringVector {
    let mut v = SteeringVector::single(layer, theta[theta.len() - 1..].to_vec(), "llama").unwrap();
    v.scope = scope.clone();
    match spec.kind {
        Kind::Add => v.directions = [(layer, theta)].into(),
        _ => {
            v.directions.clear();
            v.rows = Some(RowChanges { spec, layer, n_embd: model.n_embd(), theta });
        }
    }
    v.check().unwrap();
    v
}

/// The vector at a scale, as a context takes it.
pub fn control(model: &Model, v: SteeringVector, scale: f32) -> ControlVector {
    combine(&[ScaledVector { name: "v".into(), vector: Arc::new(v), scale }], None, model).unwrap().unwrap()
}

/// A decode of prompt and response under a steering: the context, which has the logits of every row, and its batch.
pub fn decoded(model: &Arc<Model>, control: &ControlVector, prompt: &[Token], response: &[Token]) -> (Context, Batch) {
    let mut ctx = Context::new(model, &ContextParams::exact(256, 1, 1)).unwrap();
    control.apply(&mut ctx).unwrap();
    let mut batch = Batch::new();
    for (at, &t) in prompt.iter().chain(response).enumerate() {
        let row = batch.add(t, at, &[0], true);
        batch.set_prompt(row, prompt.len());
    }
    ctx.decode(&batch).unwrap();
    (ctx, batch)
}

/// Log-probability of a response behind a prompt of so many tokens, from the logits of a decode.
pub fn response_logp(ctx: &Context, n_prompt: usize, response: &[Token]) -> f64 {
    let one = |(i, &t): (usize, &Token)| {
        let logits = ctx.logits(n_prompt - 1 + i).unwrap();
        f64::from(logits[t as usize]) - log_sum_exp(logits)
    };
    response.iter().enumerate().map(one).sum()
}

/// Log-probability of a response by a plain decode of prompt and response under a steering.
pub fn logp(model: &Arc<Model>, control: &ControlVector, prompt: &[Token], response: &[Token]) -> f64 {
    response_logp(&decoded(model, control, prompt, response).0, prompt.len(), response)
}
