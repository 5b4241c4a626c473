//! Captures that come from a cache.

use super::cache::{Cache, CacheType, Stored};
use super::layout::Layout;
use super::{Engine, EngineError, Example};
use crate::data::TokenizedPair;
use ggml_grad::graph::lift::LiftError;
use ggml_grad::graph::{CaptureError, SavedTensors, capture_decode, capture_structure};
use ggml_grad::llama;

/// A capture that may lack its reference.
pub(super) struct Begun {
    pub example: Example,
    /// Values from below the layer, for the cache; None for a capture that came from there, with its reference.
    pub kept: Option<SavedTensors>,
    key: Option<String>,
}

impl Begun {
    /// The example, stored in a cache that has not got it.
    pub(super) fn finish(self, cache: Option<&mut Cache>) -> Example {
        let Self { example, kept, key } = self;
        if let (Some(cache), Some(key), Some(kept)) = (cache, key, kept) {
            let stored = Stored {
                residual: example.residual().to_vec(),
                norms: example.norms.clone(),
                kept,
                reference: example.reference.clone(),
            };
            cache.store(&key, &stored);
        }
        example
    }
}

impl Engine {
    /// Reads captures from a cache from now on, and writes those that it lacks; None: no longer.
    pub fn set_cache(&mut self, cache: Option<Cache>) {
        self.cache = cache;
    }

    /// The cache in use.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// What could not be read from the cache, or written to it, since this was asked last.
    pub fn take_cache_notices(&mut self) -> Vec<String> {
        self.cache.as_mut().map(Cache::take_notices).unwrap_or_default()
    }

    /// All that decides the numbers of a capture beside its tokens and the model. References are kept as the forward pass
    /// gives them, which depends on what may be rounded.
    fn traits(&self) -> String {
        // Kernels are chosen by what this processor has.
        let cpu: Vec<&str> = llama::cpu_features().iter().filter(|f| f.in_cpu).map(|f| f.name).collect();
        format!(
            "layers {:?}, {}, {} threads, {:?}, bidpo {}, llama.cpp {}, {}, {}, CPU {}",
            self.layers,
            self.model.placement().words(),
            self.ctx.n_threads(),
            self.precision(),
            env!("CARGO_PKG_VERSION"),
            llama::LLAMA_CPP_SYS_VERSION,
            llama::backends().join(" "),
            llama::system_info(),
            cpu.join(" ")
        )
    }

    /// All of a capture but its reference; with that, if a cache has it.
    pub(super) fn begin(&mut self, cache: Option<&mut Cache>, pairs: &[&TokenizedPair]) -> Result<Begun, EngineError> {
        let (mut key, mut kind) = (None, CacheType::F32);
        if let Some(cache) = cache {
            let name = cache.key(&self.traits(), pairs);
            if let Some(stored) = cache.load(&name) {
                match self.restore(pairs, stored)? {
                    Ok(example) => return Ok(Begun { example, kept: None, key: None }),
                    Err(reason) => cache.unused(&name, &reason),
                }
            }
            (key, kind) = (Some(name), cache.kind());
        }
        let layout = Layout::new(pairs)?;
        let mut captured = capture_decode(&mut self.ctx, &layout.batch, &self.layers, &mut self.keep)?;
        // What follows is computed from the residual stream as the cache holds it.
        kind.round(&mut captured.residual);
        let example = self.example(layout, captured.lifted, captured.residual)?;
        Ok(Begun { example, kept: Some(captured.kept), key })
    }

    /// The example of a stored capture: only its structure and its inputs come from llama.cpp, which computes nothing. The
    /// inner error says why what is stored does not fit.
    fn restore(&mut self, pairs: &[&TokenizedPair], stored: Stored) -> Result<Result<Example, String>, EngineError> {
        let layout = Layout::new(pairs)?;
        let lifted = match capture_structure(&mut self.ctx, &layout.batch, &self.layers, stored.kept) {
            Err(CaptureError::Lift(e @ LiftError::Below { .. })) => return Ok(Err(e.to_string())),
            lifted => lifted?,
        };
        let n_embd = self.model.n_embd();
        let rows = |v| lifted.graph.ne(v)[1..].iter().product::<usize>();
        let fits = lifted.entries.len() == stored.norms.len()
            && lifted.entries.iter().zip(&stored.norms).all(|(e, norms)| norms.len() == rows(e.at))
            && stored.residual.len() == stored.norms[0].len() * n_embd
            && stored.reference.len() == layout.n_pairs;
        if !fits {
            return Ok(Err("sizes that do not fit this graph".into()));
        }
        let mut example = self.example(layout, lifted, stored.residual)?;
        example.norms = stored.norms;
        example.reference = stored.reference;
        Ok(Ok(example))
    }

    /// Compares a capture that went through the cache with one of the same pairs that did not. Returns the largest
    /// difference of a response's log-probability under the reference (0 for a cache of F32), or None where the first is
    /// not what a cache may hold: something decides the numbers that its key does not tell.
    pub fn cache_rounding(&self, cached: &Example, fresh: &Example) -> Option<f64> {
        let kind = self.cache.as_ref()?.kind();
        let mut rows = fresh.residual().to_vec();
        kind.round(&mut rows);
        let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let pairs = || fresh.reference.iter().zip(&cached.reference);
        let rounding = pairs()
            .flat_map(|(a, b)| [a.chosen - b.chosen, a.rejected - b.rejected])
            .fold(0.0f64, |max, d| max.max(d.abs()));
        let exact = kind == crate::engine::CacheType::Bf16 || pairs().all(|(a, b)| a == b);
        (bits(&rows) == bits(cached.residual()) && exact).then_some(rounding)
    }
}
