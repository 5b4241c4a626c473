//! The control vector of a context.

use super::Context;
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{LlamaError, last_log_lines, sys};

impl Context {
    /// Adds vectors to the residual stream after blocks `first..=last`, at every token position.
    ///
    /// `data` is `[n_layer - 1, n_embd]`, its first row belonging to layer 1. K/V computed earlier were computed under
    /// another vector: they are cleared here, so the caller has to prefill again.
    ///
    /// # Errors
    /// [`LlamaError::ControlVector`] when the shapes or the range do not fit the model.
    pub fn set_control_vector(&mut self, data: &[f32], first: usize, last: usize) -> Result<(), LlamaError> {
        let (n_layer, n_embd) = (self.model.n_layer(), self.model.n_embd());
        if data.len() != (n_layer - 1) * n_embd {
            return Err(LlamaError::ControlVector(format!(
                "a control vector for this model holds {} x {n_embd} floats, not {}",
                n_layer - 1,
                data.len()
            )));
        }
        if first < 1 || last >= n_layer || first > last {
            return Err(LlamaError::ControlVector(format!(
                "layers {first}-{last} cannot be steered: this model takes 1 to {}",
                n_layer - 1
            )));
        }
        // SAFETY: data has the length llama.cpp expects, so that no stale value of an earlier call remains.
        let (raw, p, n) = (self.raw, data.as_ptr(), data.len());
        // SAFETY: as above.
        let set = guarded(|| unsafe {
            throwing::llama_set_adapter_cvec(raw, p, n, n_embd as i32, first as i32, last as i32)
        });
        if set.map_err(LlamaError::Failed)? != 0 {
            return Err(LlamaError::ControlVector(format!(
                "llama.cpp refused the control vector: {}",
                last_log_lines()
            )));
        }
        self.clear_kv();
        Ok(())
    }

    /// As [`Context::set_control_vector`], with `vectors`, `[n_layers, n_embd]`, at `layers`, in ascending order.
    ///
    /// # Errors
    /// As [`Context::set_control_vector`].
    pub fn set_layer_vectors(&mut self, layers: &[usize], vectors: &[f32]) -> Result<(), LlamaError> {
        let (n_layer, n_embd) = (self.model.n_layer(), self.model.n_embd());
        let (Some(&first), Some(&last)) = (layers.first(), layers.last()) else {
            return Err(LlamaError::ControlVector("vectors at no layer: give at least one layer".into()));
        };
        if vectors.len() != layers.len() * n_embd || layers.iter().any(|&l| l < 1 || l >= n_layer) {
            return Err(LlamaError::ControlVector(format!(
                "{} floats at layers {layers:?}: this model takes {n_embd} at each of the layers 1 to {}",
                vectors.len(),
                n_layer - 1
            )));
        }
        let mut data = vec![0.0; (n_layer - 1) * n_embd];
        for (layer, v) in layers.iter().zip(vectors.chunks_exact(n_embd)) {
            data[(layer - 1) * n_embd..layer * n_embd].copy_from_slice(v);
        }
        self.set_control_vector(&data, first, last)
    }

    /// Takes the control vector off again and clears the KV cache.
    pub fn clear_control_vector(&mut self) {
        self.slot.rows = None;
        // SAFETY: a NULL vector switches it off.
        unsafe {
            sys::llama_set_adapter_cvec(self.raw, std::ptr::null(), 0, self.model.n_embd() as i32, -1, -1);
        }
        self.clear_kv();
    }
}
