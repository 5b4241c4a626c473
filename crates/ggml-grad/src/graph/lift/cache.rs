//! The KV cache: a write followed by reads becomes plain data flow, trimmed to the cells in use.

use super::{LiftError, Lifter};
use crate::graph::capture::{RawLeaf, RawNode};
use crate::graph::emit::Data;
use crate::graph::ir::{Elem, Value};
use crate::llama::{DType, sys};
use crate::numeric;

impl Lifter<'_> {
    /// The cache write behind a view of a cache.
    pub(super) fn cache_write(&self, node: &RawNode) -> Option<&RawNode> {
        // A view of a view of a cache is an ordinary view of what the first one gives.
        if node.op != sys::GGML_OP_VIEW || node.src.first().copied().flatten() != node.root {
            return None;
        }
        self.writes.get(&node.root?).map(|&i| &self.capture.nodes[i])
    }

    /// The mask of an attention, its columns trimmed to `n_kv`.
    pub(super) fn mask(&mut self, node: &RawNode, n_kv: usize) -> Result<Value, LiftError> {
        let id = node.src[1].ok_or_else(|| self.pattern(node, "no mask"))?;
        let Some(RawLeaf::Input { ne, dtype, bytes }) = self.capture.leaves.get(&id) else {
            return Err(self.pattern(node, "a mask that is no input"));
        };
        if *dtype != DType::F32 {
            return Err(self.pattern(node, format!("a mask of type {}", dtype.name())));
        }
        if ne[0] == n_kv {
            return self.value(node, 1);
        }
        if let Some(&v) = self.done.get(&id) {
            return Ok(v);
        }
        if ne[0] < n_kv {
            return Err(self.pattern(node, format!("a mask of {} columns for {n_kv} cells", ne[0])));
        }
        let full = numeric::f32_from_le(bytes);
        let mut data = Vec::with_capacity(full.len() / ne[0] * n_kv);
        for row in full.chunks_exact(ne[0]) {
            if row[n_kv..].iter().any(|&m| m != f32::NEG_INFINITY) {
                return Err(self.pattern(node, "a mask that lets tokens see beyond the batch"));
            }
            data.extend_from_slice(&row[..n_kv]);
        }
        let (v, _) = self.out.graph.input([n_kv, ne[1], ne[2], ne[3]], Elem::F32);
        self.out.inputs.push(Data::F32(data));
        self.done.insert(id, v);
        Ok(v)
    }

    /// A view of a cache, as the value that was written to it.
    pub(super) fn cache_read(&mut self, read: &RawNode, write: &RawNode) -> Result<Value, LiftError> {
        let wrap = |source| LiftError::Ir { name: read.name.clone(), source };
        let t = self.n_tokens;
        let written = self.value(write, 0)?;
        let ids = match write.src.get(1).copied().flatten().and_then(|id| self.capture.leaves.get(&id)) {
            Some(RawLeaf::Input { dtype: DType::I64, bytes, .. }) => numeric::i64_from_le(bytes),
            _ => return Err(self.pattern(write, "row numbers of a cache write that are no 64-bit input")),
        };
        if read.ne[3] != 1 {
            return Err(self.pattern(read, "a cache split in streams"));
        }
        if read.view_offset != 0 {
            return Err(self.pattern(read, "a cache read that does not start at its first cell"));
        }
        let transposed = write.ne[0] == 1 && read.nb[1] > read.nb[2];
        let (head, n_head, cells) =
            if transposed { (read.ne[2], read.ne[1], read.ne[0]) } else { (read.ne[0], read.ne[1], read.ne[2]) };
        // If layers differ in width, all write rows of the widest one, padded.
        let width = if transposed { ids.len() / t } else { head * n_head };
        // Tokens must sit in cells 0..t in order: then the written value is the cache's content.
        let in_order = if transposed {
            let cell_stride = read.nb[2] / read.nb[0]; // elements from one channel of a head to the next
            ids.len() == width * t
                && width >= head * n_head
                && ids.iter().enumerate().all(|(i, &id)| id as usize == (i % width) * cell_stride + i / width)
        } else {
            ids.len() == t && ids.iter().enumerate().all(|(i, &id)| id as usize == i)
        };
        if !in_order {
            return Err(self.pattern(write, "tokens of the batch are not in the first cells of the cache, in order"));
        }
        if cells < self.n_kv {
            return Err(self.pattern(read, format!("a cache read of {cells} cells for {} tokens", t)));
        }
        let extra = self.n_kv - t;
        let g = &mut self.out.graph;
        // Fused projections are written to the cache as windows into their rows.
        let written = g.contiguous(written);
        let mut rows = g.reshape(written, [width, t, 1, 1]).map_err(wrap)?;
        if width > head * n_head {
            let nb = g.node(rows).nb;
            rows = g.view(rows, [head * n_head, t, 1, 1], nb, 0).map_err(wrap)?;
            rows = g.contiguous(rows);
        }
        let rows = g.reshape(rows, [head, n_head, t, 1]).map_err(wrap)?;
        let padded = g.pad(rows, [0, 0, extra, 0]); // [head, n_head, n_kv]
        if !transposed {
            return Ok(padded);
        }
        let p = g.permute(padded, [2, 1, 0, 3]).map_err(wrap)?; // [n_kv, n_head, head]
        let ne = g.ne(p);
        g.cont(p, ne).map_err(wrap)
    }
}
