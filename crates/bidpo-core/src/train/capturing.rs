//! Before the first step: what the run will need, and what it keeps of each pair.

use super::error::TrainError;
use super::events::{Event, MemoryNeed, NamedPair};
use crate::data::TokenizedPair;
use crate::engine::{Agreement, Engine, Example};
use ggml_grad::memory::text;
use std::sync::atomic::{AtomicBool, Ordering};

/// All pairs of a run, captured.
pub(super) struct Captured {
    /// Training pairs, then validation pairs.
    pub examples: Vec<Example>,
    /// Lifted graph and `llama_decode`, on the first pair.
    pub agreement: Agreement,
    /// With a cache in use, what its rounding changes on the first pair, in nats.
    pub rounding: Option<f64>,
}

/// Captures the pairs; None where it was interrupted.
///
/// # Errors
/// [`TrainError`].
pub(super) fn capture_all(
    engine: &mut Engine,
    (train, valid): (&[NamedPair], &[NamedPair]),
    allow_swap: bool,
    interrupt: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Captured>, TrainError> {
    let all: Vec<&NamedPair> = train.iter().chain(valid).collect();
    let total = all.len();
    let named = |i: usize, source| TrainError::Pair { pair: all[i].name.clone(), source };
    // The longest pair first: what it needs is known before the work begins.
    let (at, longest) = measure(engine, train, valid, allow_swap, observe)?;
    let mut longest = Some(longest);
    // The first by itself, for it is checked.
    let first = match longest.take_if(|_| at == 0) {
        Some(example) => example,
        None => engine.capture(&[&all[0].tokens]).map_err(|e| named(0, e))?,
    };
    let had_cache = engine.cache().is_some();
    let (agreement, rounding, first) = check_first(engine, all[0], first, observe)?;
    if let Some(example) = longest.as_mut().filter(|_| had_cache && engine.cache().is_none()) {
        // It came from, or went into, a cache that turned out not to be trusted.
        *example = engine.capture(&[&all[at].tokens]).map_err(|e| named(at, e))?;
    }
    tell_notices(engine, observe);
    observe(Event::Captured { done: 1, total, tokens: first.n_tokens });
    let mut done = 1 + usize::from(longest.is_some());
    let rest: Vec<usize> = (1..total).filter(|&i| longest.is_none() || i != at).collect();
    let tokens: Vec<&TokenizedPair> = rest.iter().map(|&i| &all[i].tokens).collect();
    let captured = engine.capture_each(&tokens, &mut |example| {
        done += 1;
        observe(Event::Captured { done, total, tokens: example.n_tokens });
        !interrupt.load(Ordering::Relaxed)
    });
    let captured = captured.map_err(|(i, e)| named(rest[i], e))?;
    tell_notices(engine, observe);
    let Some(captured) = captured.filter(|_| !interrupt.load(Ordering::Relaxed)) else { return Ok(None) };
    let mut examples = vec![first];
    examples.extend(captured);
    if let Some(example) = longest {
        examples.insert(at, example);
    }
    Ok(Some(Captured { examples, agreement, rounding }))
}

fn tell_notices(engine: &mut Engine, observe: &mut dyn FnMut(Event<'_>)) {
    for notice in engine.take_notices().into_iter().chain(engine.take_cache_notices()) {
        observe(Event::Notice(&notice));
    }
}

/// Compares the first pair's graph with `llama_decode`, and what a cache holds of it with what is computed now: a cache of
/// other numbers is not used any more. Returns the example that counts, and the cache's rounding.
fn check_first(
    engine: &mut Engine,
    pair: &NamedPair,
    example: Example,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<(Agreement, Option<f64>, Example), TrainError> {
    let tokens = [&pair.tokens];
    if engine.cache().is_none() {
        return Ok((engine.verify(&tokens, &example)?, None, example));
    }
    let named = |source| TrainError::Pair { pair: pair.name.clone(), source };
    let fresh = engine.capture_fresh(&tokens).map_err(named)?;
    let agreement = engine.verify(&tokens, &fresh)?;
    let rounding = engine.cache_rounding(&example, &fresh);
    if rounding.is_some() {
        return Ok((agreement, rounding, example));
    }
    observe(Event::Notice(&format!(
        "the cache holds other numbers for pair {} than are computed now: it is not used in this run; empty its folder",
        pair.name
    )));
    engine.set_cache(None);
    Ok((agreement, None, fresh))
}

/// Captures the longest pair and compares what the run will need with what there is. Returns the pair's place among
/// training and validation pairs, and its example.
fn measure(
    engine: &mut Engine,
    train: &[NamedPair],
    valid: &[NamedPair],
    allow_swap: bool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<(usize, Example), TrainError> {
    let all = || train.iter().chain(valid);
    let (at, pair) = all()
        .enumerate()
        .max_by_key(|(i, p)| (p.tokens.n_tokens(), std::cmp::Reverse(*i)))
        .expect("there is a training pair");
    let named = |source| TrainError::Pair { pair: pair.name.clone(), source };
    let example = engine.capture(&[&pair.tokens]).map_err(named)?;
    let longest = example.n_tokens;
    // Residual streams grow with the tokens, masks with their square: by share of tokens no pair is counted too small.
    let tokens: usize = all().map(|p| p.tokens.n_tokens()).sum();
    let (step_bytes, joined_bytes) = engine.plan_joining(&example, tokens).map_err(named)?;
    let mut need = MemoryNeed {
        longest,
        step_bytes,
        joined_tokens: engine.joined_tokens(),
        joined_bytes,
        captured_bytes: (example.input_bytes() as f64 * tokens as f64 / longest as f64) as u64
            + (example.graph_bytes() * all().count()) as u64,
    };
    let model_bytes = engine.model().mapped_bytes();
    let available = ggml_grad::memory::available();
    let with = |bytes: u64| bytes.saturating_add(need.captured_bytes).saturating_add(model_bytes);
    let needed = with(need.step_bytes);
    if need.joined_tokens > 0 && available.is_some_and(|n| with(need.joined_bytes) > n) {
        observe(Event::Notice(&format!(
            "{} for pairs computed together are more than is free: each is computed by itself, which takes longer and \
             changes the last bits of gradients",
            text(need.joined_bytes)
        )));
        engine.forbid_joining();
        (need.joined_tokens, need.joined_bytes) = (0, 0);
    }
    observe(Event::Memory(&need));
    for (device, bytes) in engine.step_device_bytes() {
        observe(Event::Notice(&format!("that gradient takes {} on {device}", text(bytes as u64))));
    }
    match available {
        Some(available) if needed > available && !allow_swap => Err(TrainError::Memory {
            pair: pair.name.clone(),
            tokens: longest,
            step_bytes: need.step_bytes,
            captured_bytes: need.captured_bytes,
            model_bytes,
            available,
        }),
        _ => Ok((at, example)),
    }
}
