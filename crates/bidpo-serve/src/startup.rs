//! Before the first request: does steering row by row do what llama.cpp's own control vector does?

use bidpo_core::steer::{ControlVector, decode_steered};
use ggml_grad::llama::{Batch, Context, LlamaError, Token};

/// Compares steering row by row ([`decode_steered`]) with llama.cpp's own control vector on a few tokens, at every layer at
/// once. The KV cache is empty afterwards.
///
/// # Errors
/// [`LlamaError::Unsupported`] where the outputs of the blocks are not found, where llama.cpp ignores control vectors, and
/// where the logits differ (on a device by more than rounding).
pub fn check_steering(ctx: &mut Context) -> Result<(), LlamaError> {
    let model = std::sync::Arc::clone(ctx.model());
    let (n_layer, n_embd) = (model.n_layer(), model.n_embd());
    let no = |reason: &str| {
        Err(LlamaError::Unsupported(format!(
            "{} cannot be steered by this server: {reason} (architecture {}). Without --vectors it is served unsteered",
            model.path().display(),
            model.architecture()
        )))
    };
    if n_layer < 2 {
        return no("it has no layer that takes a control vector");
    }
    let mut tokens: Vec<Token> = model.bos().into_iter().collect();
    tokens.extend(model.tokenize("One two three four five six seven.", false, false)?);
    // A vocabulary may lack all of these characters; any tokens do.
    tokens.extend([0, 1]);
    let mut batch = Batch::new();
    for (at, &token) in tokens.iter().enumerate() {
        batch.add(token, at, &[0], at + 2 >= tokens.len());
    }
    // Far below the residual stream, but far above its rounding.
    let data = (0..(n_layer - 1) * n_embd).map(|i| ((i * 7919 % 31) as f32 - 15.0) / 64.0).collect();
    let vector = ControlVector::constant(data, 1, n_layer - 1);

    ctx.clear_kv();
    decode_steered(ctx, &batch, &vec![None; tokens.len()])?;
    let unsteered = last_logits(ctx, &batch)?;
    ctx.clear_kv();
    if let Err(error) = decode_steered(ctx, &batch, &vec![Some(&vector); tokens.len()]) {
        return no(&error.to_string());
    }
    let by_row = last_logits(ctx, &batch)?;
    vector.apply(ctx)?;
    ctx.decode(&batch)?;
    let by_llama = last_logits(ctx, &batch)?;
    ctx.clear_control_vector();

    if by_llama == unsteered {
        return no("llama.cpp ignores control vectors for it");
    }
    let farthest = by_llama.iter().zip(&by_row).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let moved = by_llama.iter().zip(&unsteered).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Devices may compute a graph that is looked at with other kernels than one that is not.
    let allowed = if model.placement().is_offloaded() { 0.1 * moved } else { 0.0 };
    if farthest > allowed {
        return no(&format!(
            "steered row by row its logits differ by {farthest} from llama.cpp's own, which the vector moves by {moved}"
        ));
    }
    Ok(())
}

/// Logits of the last two tokens.
fn last_logits(ctx: &Context, batch: &Batch) -> Result<Vec<f32>, LlamaError> {
    let n = batch.len();
    Ok([ctx.logits(n - 2)?, ctx.logits(n - 1)?].concat())
}
