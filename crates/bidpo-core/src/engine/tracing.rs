//! Tracing pairs: one decode up to the lowest layer, or a file of the cache in its place.

use super::adapter::gradients_of;
use super::cache::{Cache, CacheType, Stored};
use super::layout::{Layout, Prompts};
use super::traced::PairGraph;
use super::{BatchPlan, Engine, EngineError, PairLogp, TracedBatch, TracedPair};
use crate::data::TokenizedPair;
use ggml_grad::graph::lift::{LiftError, Lifted};
use ggml_grad::graph::{CaptureError, SavedTensors};
use ggml_grad::llama;
use ggml_grad::trace::DownstreamGraph;

/// A batch that may lack its references.
struct PendingTrace<T> {
    traced: T,
    source: Source,
}

/// Origin of a trace.
enum Source {
    /// The cache: it has its references.
    Cache,
    /// A decode. The saved tensors, and the name under which the cache is to store it, if there is one.
    Decode { saved: SavedTensors, key: Option<String> },
}

/// Result of reading a stored trace.
enum Restored {
    Traced(Box<TracedBatch>),
    /// It does not fit the graph.
    Unusable(String),
}

/// Use of the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CachePolicy {
    Use,
    Bypass,
}

impl<T> PendingTrace<T> {
    fn lacks_references(&self) -> bool {
        matches!(self.source, Source::Decode { .. })
    }
}

impl<T: AsRef<TracedBatch>> PendingTrace<T> {
    /// The trace, stored in a cache that has not got it.
    fn finish(self, cache: Option<&mut Cache>) -> T {
        if let (Some(cache), Source::Decode { saved, key: Some(key) }) = (cache, self.source) {
            let traced = self.traced.as_ref();
            let stored = Stored {
                residual: traced.residual().to_vec(),
                norms: traced.norms.clone(),
                kept: saved,
                reference: traced.references.clone(),
            };
            cache.store(&key, &stored);
        }
        self.traced
    }
}

impl Engine {
    /// Traces a pair: llama.cpp computes the model below the lowest layer, the lifted graph the rest, once, without an
    /// intervention. The engine's cache is read and written.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn trace(&mut self, pair: &TokenizedPair) -> Result<TracedPair, EngineError> {
        single(self.trace_through(&[pair], CachePolicy::Use)?)
    }

    /// As [`Engine::trace`], past the cache.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn trace_fresh(&mut self, pair: &TokenizedPair) -> Result<TracedPair, EngineError> {
        single(self.trace_through(&[pair], CachePolicy::Bypass)?)
    }

    /// Traces several pairs in one decode.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn trace_batch(&mut self, pairs: &[&TokenizedPair]) -> Result<TracedBatch, EngineError> {
        self.trace_through(pairs, CachePolicy::Use)
    }

    fn trace_through(&mut self, pairs: &[&TokenizedPair], cache: CachePolicy) -> Result<TracedBatch, EngineError> {
        let mut pending = self.begin(pairs, cache)?;
        if pending.lacks_references() {
            self.compute_references(&mut pending.traced)?;
        }
        Ok(pending.finish(self.cache.as_mut()))
    }

    /// Traces each pair by itself, as [`Engine::trace`] does, but computes the references of each batch of the plan in one
    /// graph where that is possible. `seen` is called with each pair and returns whether to continue; `None` where it
    /// returned false.
    ///
    /// # Errors
    /// Any of [`EngineError`], with the pair's index.
    pub fn trace_each(
        &mut self,
        pairs: &[&TokenizedPair],
        plan: BatchPlan,
        seen: &mut dyn FnMut(&TokenizedPair) -> bool,
    ) -> Result<Option<Vec<TracedPair>>, (usize, EngineError)> {
        let sizes: Vec<usize> = pairs.iter().map(|p| p.n_tokens()).collect();
        let mut traced = Vec::with_capacity(pairs.len());
        for groups in plan.batches(&sizes).chunks(self.batches_at_once()) {
            let first = groups[0].start;
            let mut pending = Vec::with_capacity(groups.len());
            for group in groups {
                let mut of_group = Vec::with_capacity(group.len());
                for i in group.clone() {
                    let one = self.begin(&pairs[i..=i], CachePolicy::Use).map_err(|e| (i, e))?;
                    let pair = single(one.traced).map_err(|e| (i, e))?;
                    of_group.push(PendingTrace { traced: pair, source: one.source });
                    if !seen(pairs[i]) {
                        return Ok(None);
                    }
                }
                pending.push(of_group);
            }
            let new = pending.iter_mut().map(|group| {
                group.iter_mut().filter(|p| p.lacks_references()).map(|p| &mut p.traced).collect::<Vec<_>>()
            });
            let new = new.filter(|group| !group.is_empty()).collect();
            self.compute_batch_references(new).map_err(|e| (first, e))?;
            traced.extend(pending.into_iter().flatten().map(|p| p.finish(self.cache.as_mut())));
        }
        Ok(Some(traced))
    }

    /// All of a trace but its references; with those, if the cache has it.
    fn begin(
        &mut self,
        pairs: &[&TokenizedPair],
        policy: CachePolicy,
    ) -> Result<PendingTrace<TracedBatch>, EngineError> {
        let (mut key, mut kind) = (None, CacheType::F32);
        let traits = self.traits();
        if let Some(cache) = self.cache.as_mut().filter(|_| policy == CachePolicy::Use) {
            let name = cache.key(&traits, pairs);
            kind = cache.kind();
            if let Some(stored) = cache.load(&name) {
                match self.restore(pairs, stored)? {
                    Restored::Traced(traced) => return Ok(PendingTrace { traced: *traced, source: Source::Cache }),
                    Restored::Unusable(reason) => {
                        if let Some(cache) = &mut self.cache {
                            cache.unused(&name, &reason);
                        }
                    }
                }
            }
            key = Some(name);
        }
        let layout = Layout::new(pairs, Prompts::of(&self.model))?;
        let mut captured = self.context.capture(&layout.batch)?;
        // What follows is computed from the residual stream as the cache holds it.
        kind.round(&mut captured.residual);
        let traced = self.assemble(layout, captured.lifted, captured.residual)?;
        Ok(PendingTrace { traced, source: Source::Decode { saved: captured.kept, key } })
    }

    /// The batch of a stored trace: only its structure and its inputs come from llama.cpp, which computes nothing.
    fn restore(&mut self, pairs: &[&TokenizedPair], stored: Stored) -> Result<Restored, EngineError> {
        let layout = Layout::new(pairs, Prompts::of(&self.model))?;
        let lifted = match self.context.capture_structure(&layout.batch, stored.kept) {
            Err(CaptureError::Lift(e @ LiftError::Below { .. })) => return Ok(Restored::Unusable(e.to_string())),
            lifted => lifted?,
        };
        let n_embd = self.model.n_embd();
        let rows = |v| lifted.graph.ne(v)[1..].iter().product::<usize>();
        let fits = lifted.hook_points.len() == stored.norms.len()
            && lifted.hook_points.iter().zip(&stored.norms).all(|(h, norms)| norms.len() == rows(h.at))
            && stored.residual.len() == stored.norms[0].len() * n_embd
            && stored.reference.len() == layout.pairs.len();
        if !fits {
            return Ok(Restored::Unusable("sizes that do not fit this graph".into()));
        }
        let mut traced = self.assemble(layout, lifted, stored.residual)?;
        traced.norms = stored.norms;
        traced.references = stored.reference;
        Ok(Restored::Traced(Box::new(traced)))
    }

    /// A traced batch, all but what a run of it tells.
    fn assemble(
        &mut self,
        mut layout: Layout,
        mut lifted: Lifted,
        residual: Vec<f32>,
    ) -> Result<TracedBatch, EngineError> {
        self.background.keep(&lifted)?;
        let ops = std::mem::take(&mut lifted.ops);
        let row_owner = lifted
            .hook_points
            .iter()
            .map(|h| layout.row_pair(&lifted.graph, h))
            .collect::<Result<Vec<Vec<usize>>, EngineError>>()?;
        let sequences = layout.sequences(residual.len() / self.model.n_embd(), &self.scope);
        let of = gradients_of(&*self.intervention);
        let downstream = DownstreamGraph::with_gradients(lifted, residual, &self.exec, self.attention, of)?;
        let mut placed = self.place(downstream, &mut layout.labels.labels)?;
        placed.downstream.finish()?;
        Ok(TracedBatch {
            graph: PairGraph {
                downstream: placed.downstream,
                labels: layout.labels,
                row_owner,
                sequences,
                scores: placed.scores,
                divergence: placed.divergence,
                gradient_scale: placed.gradient_scale,
            },
            references: vec![PairLogp::default(); layout.pairs.len()],
            pairs: layout.pairs,
            norms: Vec::new(),
            ops,
        })
    }

    /// The engine with a cache: traces that it holds are read from it, others are written to it.
    pub fn with_cache(mut self, cache: Option<Cache>) -> Self {
        self.cache = cache;
        self
    }

    /// The cache in use.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// Hands the cache over: the engine is without one from now on.
    pub fn take_cache(&mut self) -> Option<Cache> {
        self.cache.take()
    }

    /// Notices about files that could not be read from the cache, or written to it, since this was asked last.
    pub fn take_cache_notices(&mut self) -> Vec<String> {
        self.cache.as_mut().map(Cache::take_notices).unwrap_or_default()
    }

    /// All that decides the numbers of a trace beside its tokens and the model. References are kept as the forward pass
    /// gives them, which depends on what may be rounded.
    fn traits(&self) -> String {
        // Kernels are chosen by what this processor has.
        let cpu: Vec<&str> = llama::cpu_features().iter().filter(|f| f.in_cpu).map(|f| f.name).collect();
        format!(
            "layers {:?}{}{}, {}, {} threads, {:?}, bidpo {}, llama.cpp {}, {}, {}, CPU {}",
            self.layers(),
            self.adapter_trait(),
            self.background.sha256().map_or_else(String::new, |sha256| format!(", with {sha256}")),
            self.model.placement(),
            self.context.n_threads(),
            self.precision(),
            env!("CARGO_PKG_VERSION"),
            llama::LLAMA_CPP_SYS_VERSION,
            llama::backends().join(" "),
            llama::system_info(),
            cpu.join(" ")
        )
    }

    /// Compares a trace that went through the cache with one of the same pair that did not. Returns the largest difference of
    /// a response's log-probability under the reference (0 for a cache of F32), or `None` where the first is not what a cache
    /// may hold: something decides the numbers that its key does not tell.
    pub fn cache_rounding(&self, cached: &TracedPair, fresh: &TracedPair) -> Option<f64> {
        let kind = self.cache.as_ref()?.kind();
        let mut rows = fresh.residual().to_vec();
        kind.round(&mut rows);
        let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let (a, b) = (fresh.reference(), cached.reference());
        let rounding = (a.chosen - b.chosen).abs().max((a.rejected - b.rejected).abs());
        let exact = kind == CacheType::Bf16 || a == b;
        (bits(&rows) == bits(cached.residual()) && exact).then_some(rounding)
    }
}

fn single(batch: TracedBatch) -> Result<TracedPair, EngineError> {
    let n = batch.n_pairs();
    TracedPair::new(batch).ok_or_else(|| EngineError::Pair(format!("{n} pairs in a trace of one")))
}
