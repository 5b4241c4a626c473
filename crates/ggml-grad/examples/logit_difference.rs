//! At which layers is the choice between two next tokens made? The gradient of their logit difference at each layer.
//!
//!     cargo run --release -p ggml-grad --example logit_difference -- MODEL.gguf "The capital of France is" " Paris" " London"

use ggml_grad::llama::{Model, ModelParams};
use ggml_grad::trace::{Target, TraceOptions, Tracer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: logit_difference MODEL.gguf [PROMPT [TOKEN_A TOKEN_B]]")?;
    let prompt = args.next().unwrap_or_else(|| "The capital of France is".into());
    let words = [args.next().unwrap_or_else(|| " Paris".into()), args.next().unwrap_or_else(|| " London".into())];

    let model = Model::load(path.as_ref(), &ModelParams::default())?;
    let tokens = model.tokenize(&prompt, true, true)?;
    let position = tokens.len() - 1;
    let mut targets = Vec::new();
    for word in &words {
        let token = *model.tokenize(word, false, false)?.first().ok_or("an empty token")?;
        targets.push(Target { position, token });
    }

    let mut tracer = Tracer::new(&model, &TraceOptions::default())?;
    let layers: Vec<usize> = tracer.hook_points().collect();
    let trace = tracer.trace(&tokens, &layers)?;
    // log p(A) - log p(B) is the difference of their logits: the normalizer cancels.
    let gradient = trace.backward(&[(targets[0], 1.0), (targets[1], -1.0)])?;
    println!("logit({:?}) - logit({:?}) = {:.3}", words[0], words[1], gradient.log_probs[0] - gradient.log_probs[1]);
    println!("layer   |gradient|, last position   |gradient|, earlier positions");
    for layer in &gradient.layers {
        let norm = |last: bool| {
            let rows = layer.positions.iter().filter(|&&p| (p == position) == last).filter_map(|&p| layer.row(p));
            rows.flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
        };
        println!("{:>5}   {:>24.4}   {:>30.4}", layer.layer, norm(true), norm(false));
    }
    Ok(())
}
