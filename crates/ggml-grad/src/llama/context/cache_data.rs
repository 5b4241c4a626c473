//! The data of the KV cache behind its cells.
//!
//! llama.cpp frees cells without touching what they held, and attention multiplies the values of free cells by zero. A NaN
//! there makes every later result of that sequence NaN, so a sequence that met one has to be overwritten.

use crate::llama::callback::{Node, NodeId};
use crate::llama::{Batch, Context, EvalCallback, LlamaError, sys};
use std::collections::BTreeMap;
use std::ffi::c_void;

/// Zeros written at once.
const PIECE: usize = 1 << 20;

/// The start of the names that llama.cpp gives to the tensors of its memories.
const CACHE: &str = "cache_";

/// Collects the cache's tensors from the graph of a decode: address, with the elements along the third dimension.
#[derive(Default)]
struct CacheTensors(BTreeMap<NodeId, usize>);

impl EvalCallback for CacheTensors {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let sources = (0..node.t().src.len()).filter_map(|i| node.src(i));
        for t in sources.chain([*node]).flat_map(|t| [Some(t), t.view_src()]).flatten() {
            if t.is_leaf() && !t.is_input() && !t.is_weight() && t.name().starts_with(CACHE) {
                self.0.insert(t.id(), t.ne()[2]);
            }
        }
        false
    }

    fn computed(&mut self, _: &Node<'_>) -> bool {
        true
    }
}

impl Context {
    /// Removes sequence `seq` from the KV cache and overwrites its data with zeros. False, with the sequence removed and the
    /// data as they were, where the memory is not divided by sequence (a shared cache, a recurrent state): only
    /// [`Context::clear_kv`] then clears them.
    ///
    /// # Errors
    /// As [`Context::decode`]: one token is computed to find the cache.
    pub fn clear_sequence(&mut self, seq: i32) -> Result<bool, LlamaError> {
        self.kv_remove(seq, 0);
        let mut found = CacheTensors::default();
        let mut batch = Batch::new();
        batch.add(0, 0, &[seq], false);
        let decoded = self.decode_with_callback(&batch, &mut found);
        self.kv_remove(seq, 0);
        decoded?;
        let Ok(stream) = usize::try_from(seq) else { return Ok(false) };
        let n_streams = self.n_seq_max();
        if found.0.is_empty() || stream >= n_streams || found.0.values().any(|&n| n != n_streams) {
            return Ok(false);
        }
        for (tensor, _) in found.0 {
            // SAFETY: a tensor of the context's memory, alive as long as the context; stream is below its third dimension,
            // so `size` bytes from `start` lie inside of it.
            unsafe {
                let tensor = tensor.ptr();
                let size = (*tensor).nb[2];
                let zeros = vec![0u8; size.min(PIECE)];
                for at in (0..size).step_by(PIECE) {
                    let n = zeros.len().min(size - at);
                    sys::ggml_backend_tensor_set(tensor, zeros.as_ptr().cast::<c_void>(), stream * size + at, n);
                }
            }
        }
        Ok(true)
    }
}
