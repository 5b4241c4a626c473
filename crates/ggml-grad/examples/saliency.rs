//! Saliency of prompt tokens for the next token: gradient times residual stream, summed over each position.
//!
//!     cargo run --release -p ggml-grad --example saliency -- MODEL.gguf "The capital of France is" [LAYER]

use ggml_grad::llama::{Model, ModelParams};
use ggml_grad::trace::{Target, TraceOptions, Tracer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: saliency MODEL.gguf [PROMPT [LAYER]]")?;
    let prompt = args.next().unwrap_or_else(|| "The capital of France is".into());
    let layer: usize = args.next().map_or(Ok(1), |layer| layer.parse())?;

    let model = Model::load(path.as_ref(), &ModelParams::default())?;
    let tokens = model.tokenize(&prompt, true, true)?;
    let mut tracer = Tracer::new(&model, &TraceOptions::default())?;
    let trace = tracer.trace(&tokens, &[layer])?;

    // The most probable next token.
    let logits = trace.logits()?; // [n_tokens, n_vocab]
    let last = &logits[logits.len() - model.n_vocab()..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).ok_or("no logits")?;
    let target = Target { position: tokens.len() - 1, token: best as i32 };

    let gradient = trace.backward(&[(target, 1.0)])?;
    let residual = trace.residual(layer)?;
    println!("log p({:?}) = {:.3} nats", model.detokenize(&[target.token], true), gradient.log_probs[0]);
    println!("gradient x residual stream at layer {layer}, by position:");
    let scores: Vec<f32> = (0..tokens.len())
        .filter_map(|i| Some(gradient.layers[0].row(i)?.iter().zip(residual.row(i)?).map(|(g, x)| g * x).sum()))
        .collect();
    let largest = scores.iter().fold(0f32, |max, s| max.max(s.abs()));
    for (token, score) in tokens.iter().zip(&scores) {
        let bar = "#".repeat((30.0 * score.abs() / largest).round() as usize);
        println!("{:>16} {score:>8.3} {bar}", format!("{:?}", model.detokenize(&[*token], true)));
    }
    Ok(())
}
