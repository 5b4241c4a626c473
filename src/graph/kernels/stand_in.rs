//! The kernels of [`super::int8`] in llama.cpp's own graphs: products that they compute faster than ggml, to the same bits.

use super::activations::{self, Layout};
use super::{cpu::cpu, int8};
use crate::llama::{DType, Node, NodeId, Pool, StandIn, sys};
use std::ffi::c_void;

/// Columns from which on taking a weight apart pays.
const COLUMNS: usize = 8;

/// Computes the products with weights whose blocks are taken apart by [`super::quants`].
pub(crate) struct Products {
    /// Rounded activations.
    packed: Vec<Line>,
    /// What they were rounded from, and for which type of weight. Several products in a row use the same.
    packed_from: Option<(NodeId, sys::ggml_type)>,
    /// For the tensors of a graph of two nodes.
    arena: Vec<Line>,
    work: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// At least so many bytes.
fn bytes(lines: &mut Vec<Line>, n: usize) -> *mut c_void {
    if lines.len() * 64 < n {
        lines.resize(n.div_ceil(64), Line([0; 64]));
    }
    lines.as_mut_ptr().cast()
}

impl Products {
    /// None where this CPU lacks the instructions.
    pub fn stand_in() -> Option<Box<dyn StandIn>> {
        let made = || -> Box<dyn StandIn> {
            Box::new(Self { packed: Vec::new(), packed_from: None, arena: Vec::new(), work: Vec::new() })
        };
        cpu().int8.then(made)
    }
}

/// Rows one behind the other, without gaps.
fn is_contiguous(node: &Node<'_>) -> bool {
    let (ne, nb) = (node.ne(), node.nb());
    nb[0] == 4 && (1..4).all(|i| ne[i] == 1 || nb[i] == nb[i - 1] * ne[i - 1])
}

impl StandIn for Products {
    fn takes(&mut self, node: &Node<'_>) -> bool {
        // About to be computed (again, where llama.cpp runs a batch in several passes): what was rounded is the old one.
        self.packed_from.take_if(|(from, _)| *from == node.id());
        if node.op() != sys::GGML_OP_MUL_MAT || !node.is_computed() || node.dtype() != DType::F32 {
            return false;
        }
        let (Some(w), Some(x)) = (node.src(0), node.src(1)) else { return false };
        let ne = x.ne();
        int8::has_exact(w.dtype().0)
            && w.is_leaf()
            && w.is_weight()
            && w.is_host()
            && w.ne()[2] * w.ne()[3] == 1
            && ne[1] * ne[2] * ne[3] >= COLUMNS
            && x.dtype() == DType::F32
            && [&x, node].into_iter().all(|t| t.is_host() && is_contiguous(t))
    }

    fn compute(&mut self, node: &Node<'_>, pool: &Pool) -> Result<(), String> {
        // SAFETY: `takes` saw that the sources are a plain weight of a known type and contiguous floats in host memory, and
        // llama.cpp that they are ready. Tensors and graph live in `arena` until the context is freed; the buffers are as
        // large as ggml and `packed_bytes` say.
        unsafe {
            let t = node.id().ptr();
            let (theirs_w, theirs_x) = ((*t).src[0], (*t).src[1]);
            let (kind, [k, a, b, c]) = ((*theirs_w).type_, (*theirs_x).ne.map(|n| n as usize));
            let n_bytes = activations::packed_bytes(kind, Layout::Pairs, k, a * b * c).ok_or("no such format")?;
            let size = 5 * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead_custom(8, false);
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: size,
                mem_buffer: bytes(&mut self.arena, size),
                no_alloc: true,
            });
            if ctx.is_null() {
                return Err("no memory for two tensors".into());
            }
            // Leaves of our own on the same memory: a graph of theirs would be a graph of all that leads to them.
            let leaf = |theirs: *mut sys::ggml_tensor| {
                let ours = sys::ggml_new_tensor(ctx, (*theirs).type_, 4, (*theirs).ne.as_ptr());
                ((*ours).nb, (*ours).data) = ((*theirs).nb, (*theirs).data);
                ours
            };
            let (w, x) = (leaf(theirs_w), leaf(theirs_x));
            let from = Some((NodeId(theirs_x as usize), kind));
            let packed = if self.packed_from == from {
                sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_I8, n_bytes as i64)
            } else {
                let (mut src, task) = (x, activations::pack_task(kind, Layout::Pairs));
                let run = Some(activations::pack as _);
                sys::ggml_custom_4d(ctx, sys::GGML_TYPE_I8, n_bytes as i64, 1, 1, 1, &raw mut src, 1, run, -1, task)
            };
            (*packed).data = bytes(&mut self.packed, n_bytes);
            let ([n0, n1, n2, n3], run) = ((*t).ne, Some(int8::exact as _));
            let (mut src, no_task) = ([w, packed], std::ptr::null_mut());
            let product =
                sys::ggml_custom_4d(ctx, sys::GGML_TYPE_F32, n0, n1, n2, n3, src.as_mut_ptr(), 2, run, -1, no_task);
            (*product).data = (*t).data;
            let graph = sys::ggml_new_graph_custom(ctx, 8, false);
            sys::ggml_build_forward_expand(graph, product);
            let mut plan = sys::ggml_graph_plan(graph, pool.n_threads() as i32, pool.raw());
            plan.work_data = bytes(&mut self.work, plan.work_size).cast();
            let status = sys::ggml_graph_compute(graph, &raw mut plan);
            sys::ggml_free(ctx);
            // A leaf (the embeddings, say) is not offered before it changes.
            self.packed_from = from.filter(|_| (*theirs_x).op != sys::GGML_OP_NONE);
            if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { Err(format!("ggml failed with status {status}")) }
        }
    }
}
