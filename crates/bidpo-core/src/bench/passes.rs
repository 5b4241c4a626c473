//! Forward passes that keep something: the first epoch, and extraction.

use super::step::{plan_batches, sequences};
use super::{BenchError, Line, Measured, Name, Outcome, Prefill, Subject, alternate};
use crate::adapter::Adapters;
use crate::data::TokenizedPair;
use crate::engine::Engine;
use crate::extract::{ExtractJob, Positions};
use ggml_grad::files::FileError;
use ggml_grad::llama::{LlamaError, Token};
use std::collections::BTreeMap;
use std::time::Instant;

/// Tracing the pairs: what the first epoch costs beside its steps.
pub(super) fn capture(s: &mut Subject<'_>, prefill: &mut Prefill) -> Result<Line, BenchError> {
    s.say("first epoch: capturing the pairs");
    let longest = s.pairs.iter().map(TokenizedPair::n_tokens).max().unwrap_or(1);
    let mut engine = Engine::new(&s.model, &[s.layer], longest, 1, s.settings.threads)?;
    let plan = plan_batches(&mut engine, &s.pairs)?;
    let pairs: Vec<&TokenizedPair> = s.pairs.iter().collect();
    let way = prefill.fastest(&sequences(&s.pairs), false)?;
    let rounds = alternate(
        s.settings.rounds,
        &mut || {
            let started = Instant::now();
            std::hint::black_box(engine.trace_each(&pairs, plan, &mut |_| true).map_err(|(_, e)| e)?);
            Ok::<_, BenchError>(1e3 * started.elapsed().as_secs_f64())
        },
        &mut || Ok(1e3 * prefill.seconds(&way)?),
    )?;
    Ok(Line {
        name: Name::Capture,
        what: format!("residual stream and reference log-probabilities of {} pairs", s.pairs.len()),
        against: format!("one prefill of each by llama.cpp ({})", way.words),
        unit: "ms",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Capture.limit(&s.model, s.layer),
    })
}

/// Extraction to a file, last position, all layers.
pub(super) fn extract(s: &mut Subject<'_>, prefill: &mut Prefill) -> Result<Line, BenchError> {
    s.say("extract: last position at all layers");
    let prompts: Vec<Vec<Token>> =
        s.pairs.iter().flat_map(|p| [&p.chosen, &p.rejected].map(|r| [&p.prompt[..], r].concat())).collect();
    let layers: Vec<usize> = (0..s.model.n_layer()).collect();
    let folder = tempfile::tempdir().map_err(FileError::write(&std::env::temp_dir())).map_err(LlamaError::from)?;
    let file = folder.path().join("residual.safetensors");
    let way = prefill.fastest(&prompts, false)?;
    let rounds = alternate(
        s.settings.rounds,
        &mut || {
            let (started, threads) = (Instant::now(), s.settings.threads);
            let nothing = BTreeMap::new();
            ExtractJob {
                model: &s.model,
                layers: &layers,
                prompts: &prompts,
                positions: Positions::Last,
                metadata: &nothing,
                adapters: &Adapters::default(),
                n_threads: threads,
            }
            .write(&file, &mut |_| true)?;
            Ok::<_, BenchError>(1e3 * started.elapsed().as_secs_f64())
        },
        &mut || Ok(1e3 * prefill.seconds(&way)?),
    )?;
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    Ok(Line {
        name: Name::Extract,
        what: format!("{} prompts, last position at all layers, context and file included", prompts.len()),
        against: format!("llama.cpp's prefill of the same {tokens} tokens ({})", way.words),
        unit: "ms",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Extract.limit(&s.model, s.layer),
    })
}
