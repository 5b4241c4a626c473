//! Before the first step: the memory that a run needs, its batches, the checks of graph and cache, the traces of its pairs.

use crate::data::TokenizedPair;
use crate::engine::{Agreement, BatchPlan, Engine, EngineError, TracedPair};
use crate::train::error::TrainError;
use crate::train::events::{Event, MemoryNeed};
use crate::train::objective::Objective;
use crate::train::pairs::NamedPair;
use ggml_grad::memory::text;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// All pairs of a run, traced, with the facts that tracing found.
pub(in crate::train) struct Preflight {
    /// Training pairs, then validation pairs.
    pub traced: Vec<TracedPair>,
    /// Batches of the run.
    pub plan: BatchPlan,
    /// Comparison of the lifted graph with `llama_decode`, on the first pair.
    pub agreement: Agreement,
    /// Change of a log-probability on the first pair by the rounding of the cache, in nats; `None` without a cache.
    pub rounding: Option<f64>,
}

/// Result of the check of the first pair.
struct Checked {
    agreement: Agreement,
    cache: CacheCheck,
}

/// Result of comparing a cache with a fresh capture.
enum CacheCheck {
    /// No cache is in use.
    Unused,
    /// The cache holds the numbers of the fresh capture, but for this rounding in nats.
    Trusted(f64),
    /// The cache holds other numbers.
    Refused,
}

/// Traces the pairs; `None` where it was interrupted. `recorded`: tokens of a batch, at most, in the run that is resumed.
///
/// # Errors
/// [`TrainError`].
pub(in crate::train) fn preflight(
    engine: &mut Engine,
    (train, valid): (&[NamedPair], &[NamedPair]),
    (objective, retained): (Objective, &[NamedPair]),
    allow_swap: bool,
    recorded: Option<usize>,
    interrupt: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Preflight>, TrainError> {
    let all: Vec<&NamedPair> = train.iter().chain(valid).collect();
    let total = all.len();
    let named = |i: usize, source| TrainError::Pair { pair: all[i].name.clone(), source };
    // The engine takes a pair with one response. All objectives but one compare two.
    if objective != Objective::Sft
        && let Some(i) = all.iter().position(|pair| pair.tokens.rejected.is_empty())
    {
        return Err(named(i, EngineError::Pair("a rejected response without a single token".into())));
    }
    // The longest pair first: its memory is known before the work begins.
    let longest = (0..total)
        .max_by_key(|&i| (all[i].tokens.n_tokens(), std::cmp::Reverse(i)))
        .ok_or_else(|| TrainError::Config("there is no training pair: give at least one".into()))?;
    let mut traced: BTreeMap<usize, TracedPair> = BTreeMap::new();
    traced.insert(longest, engine.trace(&all[longest].tokens).map_err(|e| named(longest, e))?);
    let sets = (&all[..], retained);
    let plan = plan_memory(engine, sets, &traced[&longest], all[longest], allow_swap, recorded, observe)?;
    // The first pair is the one that is checked.
    if longest != 0 {
        traced.insert(0, engine.trace(&all[0].tokens).map_err(|e| named(0, e))?);
    }
    let Checked { agreement, cache } = check_first(engine, all[0], &traced[&0])?;
    let rounding = match cache {
        CacheCheck::Unused => None,
        CacheCheck::Trusted(rounding) => Some(rounding),
        CacheCheck::Refused => {
            observe(Event::Notice(&format!(
                "the cache holds other numbers for pair {} than are computed now: it is not used in this run; empty its \
                 folder",
                all[0].name
            )));
            engine.take_cache();
            for (&i, pair) in &mut traced {
                *pair = engine.trace(&all[i].tokens).map_err(|e| named(i, e))?;
            }
            None
        }
    };
    tell_notices(engine, observe);
    let mut done = traced.len();
    observe(Event::Captured { done, total, tokens: all[0].tokens.n_tokens() });
    let rest: Vec<usize> = (0..total).filter(|i| !traced.contains_key(i)).collect();
    let tokens: Vec<&TokenizedPair> = rest.iter().map(|&i| &all[i].tokens).collect();
    let captured = engine.trace_each(&tokens, plan, &mut |pair| {
        done += 1;
        observe(Event::Captured { done, total, tokens: pair.n_tokens() });
        !interrupt.load(Ordering::Relaxed)
    });
    let captured = captured.map_err(|(i, e)| named(rest[i], e))?;
    tell_notices(engine, observe);
    let Some(captured) = captured.filter(|_| !interrupt.load(Ordering::Relaxed)) else { return Ok(None) };
    traced.extend(rest.into_iter().zip(captured));
    Ok(Some(Preflight { traced: traced.into_values().collect(), plan, agreement, rounding }))
}

fn tell_notices(engine: &mut Engine, observe: &mut dyn FnMut(Event<'_>)) {
    for notice in engine.take_notices().into_iter().chain(engine.take_cache_notices()) {
        observe(Event::Notice(&notice));
    }
}

/// Compares the first pair's graph with `llama_decode`, and its traced numbers, which may come from a cache, with a fresh
/// capture.
fn check_first(engine: &mut Engine, pair: &NamedPair, traced: &TracedPair) -> Result<Checked, TrainError> {
    if engine.cache().is_none() {
        return Ok(Checked { agreement: engine.verify(traced)?, cache: CacheCheck::Unused });
    }
    let fresh =
        engine.trace_fresh(&pair.tokens).map_err(|source| TrainError::Pair { pair: pair.name.clone(), source })?;
    let agreement = engine.verify(&fresh)?;
    let cache = engine.cache_rounding(traced, &fresh).map_or(CacheCheck::Refused, CacheCheck::Trusted);
    Ok(Checked { agreement, cache })
}

/// Plans the batches and compares the memory of the run with the free memory. `traced` is the trace of `pair`, the longest
/// one.
fn plan_memory(
    engine: &mut Engine,
    (all, retained): (&[&NamedPair], &[NamedPair]),
    traced: &TracedPair,
    pair: &NamedPair,
    allow_swap: bool,
    recorded: Option<usize>,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<BatchPlan, TrainError> {
    let longest = traced.n_tokens();
    // Residual streams grow with the tokens, masks with their square: by share of tokens no pair is counted too small.
    let tokens: usize = all.iter().map(|p| p.tokens.n_tokens()).sum();
    let planned =
        engine.plan_batches(traced, tokens).map_err(|source| TrainError::Pair { pair: pair.name.clone(), source })?;
    let mut plan = planned.plan;
    // A resumed run that began without batches continues without: batching changes the last bits of gradients.
    if recorded == Some(0) {
        plan = BatchPlan::UNBATCHED;
    }
    // Retained texts are kept like pairs, with the final hidden state of each token, and their graphs are like a pair's.
    let of_texts: usize = retained.iter().map(|t| t.tokens.n_tokens()).sum();
    let longest_text = retained.iter().map(|t| t.tokens.n_tokens()).max().unwrap_or(0);
    let kept = |tokens: usize| (traced.as_ref().input_bytes() as f64 * tokens as f64 / longest as f64) as u64;
    let hidden = (of_texts * engine.model().n_embd() * size_of::<f32>()) as u64;
    let graphs = |n: usize| (traced.as_ref().graph_bytes() * n) as u64;
    let mut need = MemoryNeed {
        longest,
        // By share of tokens too: attention keeps a bounded part of its scores.
        step_bytes: (planned.step_bytes as f64 * longest_text.max(longest) as f64 / longest as f64) as u64,
        joined_tokens: plan.max_tokens(),
        joined_bytes: if plan.is_batched() { planned.batch_bytes } else { 0 },
        at_once_bytes: 0,
        captured_bytes: kept(tokens) + graphs(all.len()),
        retained_bytes: if retained.is_empty() { 0 } else { kept(of_texts) + hidden + graphs(retained.len()) },
    };
    let model_bytes = engine.model().mapped_bytes();
    let available = ggml_grad::memory::available();
    let traces = need.captured_bytes.saturating_add(need.retained_bytes);
    let with = |bytes: u64| bytes.saturating_add(traces).saturating_add(model_bytes);
    let needed = with(need.step_bytes);
    if plan.is_batched() && available.is_some_and(|n| with(need.joined_bytes) > n) {
        observe(Event::Notice(&format!(
            "{} for pairs computed together are more than is free: each is computed by itself, which takes longer and \
             changes the last bits of gradients",
            text(need.joined_bytes)
        )));
        plan = BatchPlan::UNBATCHED;
        (need.joined_tokens, need.joined_bytes) = (0, 0);
    }
    let free = available.map_or(usize::MAX, |free| (free.saturating_sub(with(0)) / planned.token_bytes) as usize);
    engine.set_tokens_at_once(planned.tokens_at_once.min(free));
    if engine.batches_at_once() > 1 {
        need.at_once_bytes = planned.token_bytes * planned.tokens_at_once.min(free).min(tokens) as u64;
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
            captured_bytes: traces,
            model_bytes,
            available,
        }),
        _ => Ok(plan),
    }
}
