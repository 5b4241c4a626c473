//! Traced pairs whose weights are placed on devices.

use super::{Engine, EngineError};
use ggml_grad::graph::emit::{Backward, Label};
use ggml_grad::graph::ir::Value;
use ggml_grad::graph::passes::lower::{DivergenceScores, LabelScores, Plan, lower};
use ggml_grad::llama::{DType, Weight, device_memory};
use ggml_grad::memory::text;
use ggml_grad::trace::DownstreamGraph;
use std::collections::{BTreeMap, BTreeSet};

/// Factor on the gradient where transposed copies are F16, whose smallest numbers are larger than many gradients.
const F16_GRADIENT_SCALE: f32 = 1024.0;

/// A graph as it runs where its weights are.
pub(super) struct Placed {
    pub downstream: DownstreamGraph,
    /// Values that the labels' log-probabilities follow from, where the LM head runs on a device.
    pub scores: Option<LabelScores>,
    /// Values that the divergences follow from, where such a head runs on a device.
    pub divergence: Option<DivergenceScores>,
    /// Factor on the gradients that the graph gives.
    pub gradient_scale: f32,
}

impl Engine {
    /// Rewrites a graph with weights on devices so that it can run there; leaves any other as it is.
    pub(super) fn place(&mut self, mut graph: DownstreamGraph, labels: &mut [Label]) -> Result<Placed, EngineError> {
        let devices: Vec<_> = graph.weights.iter().map(Weight::device).collect();
        if devices.iter().all(Option::is_none) {
            return Ok(Placed { downstream: graph, scores: None, divergence: None, gradient_scale: 1.0 });
        }
        // First the copies: which type they have decides whether small gradients survive.
        let types = self.transposed_types();
        let transposed: BTreeSet<usize> = graph.graph.transposed_weights().map(|id| id.0 as usize).collect();
        let mut kinds = BTreeMap::new();
        for i in transposed {
            if let Some(kind) = graph.weights[i].transposed_type(&types)? {
                kinds.insert(i, kind);
            }
        }
        self.announce_copies(&graph.weights, &kinds)?;
        let mut copies = BTreeMap::new();
        for (&i, &kind) in &kinds {
            if let Some(copy) = graph.weights[i].transposed(kind)? {
                copies.insert(i, copy);
            }
        }
        let gradient_scale = if kinds.values().any(|&k| k == DType::F16) { F16_GRADIENT_SCALE } else { 1.0 };
        let on_device: Vec<bool> = devices.iter().map(Option::is_some).collect();
        let head = graph.graph.output_weight(graph.logits).is_some_and(|w| on_device[w.0 as usize]);
        for label in labels.iter_mut() {
            label.coef *= gradient_scale;
        }
        let plan = Plan { on_device: &on_device, head, labels, inputs: &graph.inputs };
        let lowered = lower(&graph.graph, &plan)?;
        let map = |v: Value| lowered.map[v.0 as usize];
        graph.hook_points.iter_mut().for_each(|h| h.at = map(h.at));
        graph.adapters.iter_mut().for_each(|a| a.at = map(a.at));
        graph.weights.extend(lowered.transposed.iter().filter_map(|id| copies.remove(&(id.0 as usize))));
        (graph.logits, graph.head) = (map(graph.logits), map(graph.head));
        graph.grads.iter_mut().for_each(|g| *g = map(*g));
        graph.inputs.extend(lowered.inputs);
        graph.graph = lowered.graph;
        Ok(Placed { downstream: graph, scores: lowered.head, divergence: lowered.divergence, gradient_scale })
    }

    /// Says how much memory the copies that are not there yet will take on each device, and refuses what has no room.
    fn announce_copies(&mut self, weights: &[Weight], kinds: &BTreeMap<usize, DType>) -> Result<(), EngineError> {
        let mut need: BTreeMap<String, (usize, u64, DType)> = BTreeMap::new();
        for (weight, &kind) in
            kinds.iter().map(|(&i, kind)| (&weights[i], kind)).filter(|(w, k)| !w.has_transposed(**k))
        {
            let Some(name) = weight.device_name() else { continue };
            let (count, bytes, _) = need.entry(name).or_insert((0, 0, kind));
            *count += 1;
            *bytes += kind.row_bytes(weight.node().ne().iter().product()) as u64;
        }
        for (device, (count, bytes, kind)) in need {
            let free = device_memory(&device).map(|(free, _)| free);
            if let Some(free) = free.filter(|&free| free < bytes) {
                return Err(EngineError::Model(format!(
                    "the backward pass needs transposed copies of {count} weights on {device}: {} in {}, and {} are free \
                     there. Offload fewer layers (--gpu-layers), or train at a higher layer",
                    text(bytes),
                    kind.name(),
                    text(free)
                )));
            }
            let rounding = match kind {
                DType::F32 => "exact",
                DType::F16 => "rounded to 11 bits",
                _ => "rounded to 8 bits: the gradient's direction changes by about 1e-5, see `bidpo check`",
            };
            self.notices.push(format!(
                "the backward pass keeps transposed copies of {count} weights on {device}: {} in {} ({rounding})",
                text(bytes),
                kind.name(),
            ));
        }
        Ok(())
    }

    /// Notices about devices since this was asked last.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// In which types transposed copies may be kept on a device, best first.
    fn transposed_types(&self) -> Vec<DType> {
        if let Some(only) = self.transposed_type {
            return vec![only];
        }
        match self.precision().backward {
            Backward::F32 => vec![DType::F32],
            Backward::Bf16 => vec![DType::BF16, DType::F16, DType::F32],
        }
    }

    /// Sets the type of transposed copies on devices instead of leaving it to the precision and the device.
    pub fn set_transposed_type(&mut self, dtype: Option<DType>) {
        self.transposed_type = dtype;
    }

    /// True where weights lie on devices: their kernels round in ways of their own, so that results agree with
    /// `llama_decode` closely and not bit for bit.
    pub fn is_on_devices(&self) -> bool {
        self.model.placement().is_offloaded()
    }
}
