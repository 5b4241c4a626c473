//! Before the first step: what the run will need, and what it keeps of each pair.

use super::engine::{Agreement, Engine, Example};
use super::trainer::{Event, MemoryNeed, NamedPair, TrainError};
use crate::data::TokenizedPair;
use crate::memory::text;
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
    let count = train.len() + valid.len();
    let (mut agreement, mut rounding) = (Agreement::default(), None);
    let mut examples = Vec::with_capacity(count);
    // The longest pair first: what it needs is known before the work begins.
    let mut longest = Some(measure(engine, train, valid, allow_swap, observe)?);
    let all: Vec<&NamedPair> = train.iter().chain(valid).collect();
    let sizes: Vec<usize> = all.iter().map(|p| p.tokens.n_tokens()).collect();
    // The first by itself, for it is checked; the others in groups.
    let groups = std::iter::once(0..1).chain(engine.groups(&sizes[1..]).into_iter().map(|g| g.start + 1..g.end + 1));
    for group in groups {
        let known = longest.take_if(|(at, _)| group.contains(at));
        let new: Vec<usize> = group.clone().filter(|i| known.as_ref().is_none_or(|(at, _)| at != i)).collect();
        let tokens: Vec<&TokenizedPair> = new.iter().map(|&i| &all[i].tokens).collect();
        let mut done = group.start;
        let captured = engine
            .capture_each(&tokens, &mut |example| {
                done += 1;
                observe(Event::Captured { done, total: count, tokens: example.n_tokens });
                !interrupt.load(Ordering::Relaxed)
            })
            .map_err(|(i, source)| TrainError::Pair { pair: all[new[i]].name.clone(), source })?;
        let stopped = captured.is_none() || interrupt.load(Ordering::Relaxed);
        let mut captured = captured.unwrap_or_default();
        if let Some((at, example)) = known {
            observe(Event::Captured { done: group.end, total: count, tokens: example.n_tokens });
            captured.insert((at - group.start).min(captured.len()), example);
        }
        if group.start == 0 && !stopped {
            let (pair, example) = (all[0], &captured[0]);
            if engine.cache().is_none() {
                agreement = engine.verify(&[&pair.tokens], example)?;
            } else {
                // What comes from a file is compared with what is computed now, which is compared with llama_decode.
                let named = |source| TrainError::Pair { pair: pair.name.clone(), source };
                let fresh = engine.capture_fresh(&[&pair.tokens]).map_err(named)?;
                agreement = engine.verify(&[&pair.tokens], &fresh)?;
                rounding = engine.cache_rounding(example, &fresh);
                if rounding.is_none() {
                    observe(Event::Notice(&format!(
                        "the cache holds other numbers for pair {} than are computed now: it is not used in this run; \
                         empty its folder",
                        pair.name
                    )));
                    engine.set_cache(None);
                    if let Some((at, example)) = &mut longest {
                        *example = engine.capture_fresh(&[&all[*at].tokens])?;
                    }
                    captured[0] = fresh;
                }
            }
        }
        for notice in engine.take_notices().into_iter().chain(engine.take_cache_notices()) {
            observe(Event::Notice(&notice));
        }
        examples.extend(captured);
        if stopped {
            return Ok(None);
        }
    }
    Ok(Some(Captured { examples, agreement, rounding }))
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
    let step_bytes = engine.step_bytes(&example).map_err(named)?;
    let joined_bytes = engine.plan_joining(&example, step_bytes, tokens);
    let mut need = MemoryNeed {
        longest,
        step_bytes: step_bytes as u64,
        joined_tokens: engine.joined_tokens(),
        joined_bytes,
        captured_bytes: (example.input_bytes() as f64 * tokens as f64 / longest as f64) as u64
            + (example.graph_bytes() * all().count()) as u64,
    };
    let model_bytes = engine.model().mapped_bytes();
    let available = crate::memory::available();
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
