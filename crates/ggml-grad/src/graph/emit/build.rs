//! Making the ggml graph: tensors for the nodes that are needed, op by op.
//!
//! [`Kernel::of`] decides what computes a node; [`Builder`] makes the tensors.

use super::{Backward, Bindings, Forward, Precision, RunError};
use crate::graph::ggml_ops;
use crate::graph::ir::{Elem, Glu, Graph, InputId, Node, Op, OpParams, Unary, Value, WeightId};
use crate::graph::kernels::head::{log_prob_head, loss_head};
use crate::graph::kernels::products::activations::{self, Layout};
use crate::graph::kernels::products::{given, int8, matmul_t};
use crate::graph::kernels::recurrent::{conv, matrix_scan, ssm_scan};
use crate::graph::kernels::{attention, cpu, gelu, pointwise, rows};
use crate::llama::{DType, Weight, sys};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};

/// ggml's `GGML_N_TASKS_MAX`: as many workers as there are threads.
const N_TASKS_MAX: i32 = -1;

/// A ggml context that is freed on every way out.
pub(super) struct Arena(pub *mut sys::ggml_context);

impl Arena {
    fn new(n_tensors: usize, graph_size: Option<usize>) -> Option<Self> {
        // SAFETY: ggml_init allocates its own memory for the size computed by ggml's own functions.
        unsafe {
            let graph = graph_size.map_or(0, |n| sys::ggml_graph_overhead_custom(n, false));
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (n_tensors + 1) + graph,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            (!ctx.is_null()).then_some(Self(ctx))
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::ggml_free(self.0) };
    }
}

/// Settings for turning ops into tensors.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// A [`crate::graph::kernels::head::task::LossTask`].
    pub task: *mut c_void,
    /// GELU without ggml's table.
    pub smooth: bool,
    pub precision: Precision,
    /// Weights lie on devices, where bidpo's kernels do not run.
    pub on_devices: bool,
}

/// A ggml graph of what some values depend on, its inputs and activations without memory yet.
pub(super) struct Built {
    pub inputs: Arena,
    /// Holds the tensors and the graph.
    _arena: Arena,
    pub graph: *mut sys::ggml_cgraph,
    /// By number of the value; null where nothing depends on it.
    pub tensors: Vec<*mut sys::ggml_tensor>,
    /// Inputs with their data.
    pub uploads: Vec<(*mut sys::ggml_tensor, *const c_void, usize)>,
    nodes: usize,
    /// True if the result of the graph's head is used, not only its log-probabilities.
    pub head_is_used: bool,
}

impl Built {
    /// Builds the graph of what `wanted` depends on.
    ///
    /// # Errors
    /// [`RunError::Binding`] for inputs or weights that do not fit; [`RunError::Memory`].
    pub(super) fn new(graph: &Graph, bind: &Bindings<'_>, wanted: &[Value], setup: Setup) -> Result<Self, RunError> {
        if bind.inputs.len() != graph.n_inputs() || bind.weights.len() != graph.n_weights() {
            return Err(RunError::Binding(format!(
                "the graph has {} inputs and {} weights, the run brings {} and {}",
                graph.n_inputs(),
                graph.n_weights(),
                bind.inputs.len(),
                bind.weights.len()
            )));
        }
        let setup = Setup { on_devices: bind.weights.iter().any(|w| w.device().is_some()), ..setup };
        let n = graph.nodes().len();
        let needed = needed(graph, wanted, setup);
        let is_head = |v: &Value| matches!(graph.node(*v).op, Op::LossHead | Op::LogProbHead);
        let uses = |(i, node): (usize, &Node)| needed[i] && node.src.iter().any(is_head);
        let head_is_used = graph.nodes().iter().enumerate().any(uses);
        let mut builder = Builder::new(graph, bind, setup)?;
        for i in (0..n).filter(|&i| needed[i]) {
            builder.tensors[i] = builder.tensor(i)?;
        }
        let Builder { inputs, arena, tensors, uploads, .. } = builder;
        // SAFETY: the arena has room for a graph of all tensors, which are alive as long as it is.
        let ggml_graph = unsafe {
            let ggml_graph = sys::ggml_new_graph_custom(arena.0, 2 * n + 64, false);
            for &v in wanted {
                sys::ggml_set_output(tensors[v.0 as usize]);
            }
            // In the order of the nodes, not in the order of a walk from the results: the backward pass recomputes a value
            // where it is used.
            for i in (0..n).filter(|&i| needed[i]) {
                sys::ggml_build_forward_expand(ggml_graph, tensors[i]);
            }
            ggml_graph
        };
        Ok(Self { inputs, _arena: arena, graph: ggml_graph, tensors, uploads, nodes: n, head_is_used })
    }

    pub(super) fn memory(&self, detail: &str) -> RunError {
        RunError::Memory { nodes: self.nodes, detail: detail.to_owned() }
    }
}

/// The sources of a node that are used: of an attention, those of the kernel or the result of ggml's.
fn used(node: &Node, setup: Setup) -> &[Value] {
    match (node.op, setup.precision.forward) {
        (Op::Attention { .. }, Forward::Fast) => &node.src[..4],
        (Op::Attention { .. }, Forward::Exact) => &node.src[4..],
        _ => &node.src,
    }
}

/// Marks the nodes that the wanted values depend on.
fn needed(graph: &Graph, wanted: &[Value], setup: Setup) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes().len()];
    for v in wanted {
        needed[v.0 as usize] = true;
    }
    for i in (0..needed.len()).rev() {
        if needed[i] {
            for s in used(&graph.nodes()[i], setup) {
                needed[s.0 as usize] = true;
            }
        }
    }
    needed
}

fn elem_type(elem: Elem) -> sys::ggml_type {
    match elem {
        Elem::F32 | Elem::Weight => sys::GGML_TYPE_F32,
        Elem::F16 => sys::GGML_TYPE_F16,
        Elem::I32 => sys::GGML_TYPE_I32,
    }
}

/// # Safety
/// `ctx` is alive and has room.
unsafe fn new_tensor(ctx: *mut sys::ggml_context, kind: sys::ggml_type, ne: [usize; 4]) -> *mut sys::ggml_tensor {
    // SAFETY: by contract.
    unsafe { sys::ggml_new_tensor_4d(ctx, kind, ne[0] as i64, ne[1] as i64, ne[2] as i64, ne[3] as i64) }
}

/// The element type of a tensor of ggml's type: a weight's own, where the IR has no name for it.
pub(in crate::graph) fn elem_of(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::F16 => Elem::F16,
        DType::I32 => Elem::I32,
        _ => Elem::Weight,
    }
}

/// The kernel that computes a node.
enum Kernel {
    /// Nothing: data of the run.
    Input(InputId),
    /// Nothing: a tensor of the model.
    Weight(WeightId),
    /// Nothing: the result of the one source that is used.
    Source,
    /// ggml, by this op with these parameters.
    Ggml(sys::ggml_op, OpParams),
    /// ggml, by a tensor that its constructor lays out: views and copies.
    Constructor,
    /// A kernel of bidpo's, with its user data.
    Custom(sys::ggml_custom_op_t, *mut c_void),
    /// As [`Kernel::Custom`], with a weight as the first source, which the kernel reads in its file layout.
    CustomOnWeight(sys::ggml_custom_op_t, *mut c_void),
    /// The gradient of an attention with respect to its queries, whose result the kernel extends to so many floats.
    AttentionBackQ(*mut c_void, usize),
    /// The int8 matmul, on quantized activations.
    Int8MatMul,
    /// The fused LM-head loss: two kernels, on quantized activations.
    LossHead,
    /// The gradient of a scan: two kernels, the second of which adds up parts.
    SsmScanBack,
}

impl Kernel {
    /// # Errors
    /// [`RunError::Binding`] for an op that neither ggml nor bidpo computes: a row is missing in [`ggml_ops`].
    fn of(graph: &Graph, node: &Node, weights: &[Weight], setup: Setup) -> Result<Self, RunError> {
        let none = std::ptr::null_mut();
        let bf16 = || matmul_t::task(setup.precision.backward == Backward::Bf16);
        Ok(match node.op {
            Op::Input(id) => Self::Input(id),
            Op::Weight(id) => Self::Weight(id),
            Op::Reshape | Op::View { .. } | Op::Permute(_) | Op::Cont | Op::Cast | Op::SetRows => Self::Constructor,
            Op::MulMat(_) if uses_int8(graph, node, weights, setup) => Self::Int8MatMul,
            Op::MulMat(_) if uses_given(graph, node, setup) => Self::Custom(Some(given::product), none),
            Op::OuterSum => Self::Custom(Some(given::outer_sum), none),
            Op::MulMatT => Self::CustomOnWeight(Some(matmul_t::run), bf16()),
            Op::MulMatIdT => Self::CustomOnWeight(Some(matmul_t::run_id), bf16()),
            Op::ScatterRows => Self::Custom(Some(rows::scatter), none),
            Op::SsmConvBack => Self::Custom(Some(conv::backward), none),
            Op::SsmScanBack => Self::SsmScanBack,
            Op::MatrixScanBack(kind) => Self::Custom(Some(matrix_scan::backward), matrix_scan::task(kind)),
            Op::Attention { .. } if setup.precision.forward == Forward::Exact => Self::Source,
            Op::Attention { scale } => Self::Custom(Some(attention::forward), attention::task(scale)),
            Op::AttentionBackQ { scale } => {
                let [k, n_head, n, _] = graph.ne(node.src[0]);
                Self::AttentionBackQ(attention::task(scale), attention::backward_q_floats(k, n_head, n))
            }
            Op::AttentionBackKv { scale } => Self::Custom(Some(attention::backward_kv), attention::task(scale)),
            Op::LossHead => Self::LossHead,
            Op::LogProbHead => Self::Custom(Some(log_prob_head::run), setup.task),
            Op::GeluBack => Self::Custom(Some(pointwise::gelu_back), none),
            Op::SiluBack => Self::Custom(Some(pointwise::silu_back), none),
            Op::RmsNormBack { eps } => Self::Custom(Some(pointwise::rms_norm_back), pointwise::norm_task(eps)),
            // GELU without ggml's table.
            Op::Unary(Unary::Gelu) | Op::Glu(Glu::Geglu) if setup.smooth => Self::Custom(Some(gelu::tanh), none),
            Op::Unary(Unary::GeluQuick) | Op::Glu(Glu::GegluQuick) if setup.smooth => {
                Self::Custom(Some(gelu::quick), none)
            }
            op => {
                let missing = || RunError::Binding(format!("no kernel computes {}", op.name()));
                let (op, params) = ggml_ops::emit(op).ok_or_else(missing)?;
                Self::Ggml(op, params)
            }
        })
    }
}

/// True if bidpo's int8 kernel computes this matmul: with a quantized weight in host memory, not repacked. ggml's would be
/// faster for a few rows, but results must be batch-invariant.
fn uses_int8(graph: &Graph, node: &Node, weights: &[Weight], setup: Setup) -> bool {
    let (w, x) = (graph.node(node.src[0]), graph.node(node.src[1]));
    let Op::Weight(id) = w.op else { return false };
    let weight = weights[id.0 as usize].node();
    let DType(kind) = weight.dtype();
    setup.precision.forward == Forward::Fast
        && cpu::level().has_int8()
        && int8::has_fast(kind)
        && weight.is_host()
        && w.ne[2] * w.ne[3] == 1
        && x.elem == Elem::F32
        && graph.is_contiguous(node.src[1])
}

/// True if bidpo's kernel computes this matmul with a matrix of an adapter: ggml's sums may depend on the other rows. Where weights
/// lie on devices, no batch is computed and ggml computes it where the activations are.
fn uses_given(graph: &Graph, node: &Node, setup: Setup) -> bool {
    let [w, x] = node.src[..] else { return false };
    setup.precision.forward == Forward::Fast
        && !setup.on_devices
        && graph.is_given_matrix(w)
        && graph.node(x).elem == Elem::F32
        && graph.is_contiguous(x)
}

/// The first matmul of the graph that is left to ggml, in words.
pub(super) fn ggml_matmul(graph: &Graph, weights: &[Weight], setup: Setup) -> Option<String> {
    let node = graph.nodes().iter().find(|node| match node.op {
        Op::MulMat(_) => !uses_int8(graph, node, weights, setup) && !uses_given(graph, node, setup),
        Op::MulMatId(_) => true,
        _ => false,
    })?;
    Some(match (node.op, graph.node(node.src[0]).op) {
        (Op::MulMatId(_), _) => "the matmuls of a mixture of experts".into(),
        (_, Op::Weight(id)) => {
            let weight = weights[id.0 as usize].node();
            format!("matmuls with weights in {} ({})", weight.dtype().name(), weight.name())
        }
        _ => "matmuls of two activations".into(),
    })
}

/// Quantized activations in the graph, by what they were made from, for which type of weight and how they lie.
type QuantizedActivations = HashMap<(Value, sys::ggml_type, Layout), *mut sys::ggml_tensor>;

/// Makes the tensors of a graph, sources before users.
struct Builder<'a> {
    graph: &'a Graph,
    bind: &'a Bindings<'a>,
    setup: Setup,
    inputs: Arena,
    arena: Arena,
    tensors: Vec<*mut sys::ggml_tensor>,
    uploads: Vec<(*mut sys::ggml_tensor, *const c_void, usize)>,
    quantized: QuantizedActivations,
}

impl<'a> Builder<'a> {
    fn new(graph: &'a Graph, bind: &'a Bindings<'a>, setup: Setup) -> Result<Self, RunError> {
        let n = graph.nodes().len();
        let memory = || RunError::Memory { nodes: n, detail: String::new() };
        Ok(Self {
            graph,
            bind,
            setup,
            inputs: Arena::new(graph.n_inputs(), None).ok_or_else(memory)?,
            // A node may need two tensors.
            arena: Arena::new(2 * n, Some(2 * n + 64)).ok_or_else(memory)?,
            tensors: vec![std::ptr::null_mut(); n],
            uploads: Vec::new(),
            quantized: HashMap::new(),
        })
    }

    /// The tensor of a node whose sources have theirs.
    fn tensor(&mut self, i: usize) -> Result<*mut sys::ggml_tensor, RunError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let mut src: Vec<_> = used(node, self.setup).iter().map(|s| self.tensors[s.0 as usize]).collect();
        let kernel = Kernel::of(graph, node, self.bind.weights, self.setup)?;
        if let Kernel::CustomOnWeight(..) | Kernel::LossHead = kernel {
            src[0] = self.file_layout(node.src[0])?;
        }
        let name = || CString::new(node.op.name()).unwrap_or_default();
        // SAFETY: the arena is alive and has room for two tensors a node; the sources were made before, with the shapes
        // and types that the IR's constructors checked.
        Ok(unsafe {
            match kernel {
                Kernel::Input(id) => self.input(id, node)?,
                Kernel::Weight(id) => self.weight(id, node)?,
                Kernel::Source => src[0],
                Kernel::Ggml(op, params) => ggml_node(self.arena.0, node, op, &params, &src),
                Kernel::Constructor => constructed(self.arena.0, node, &src),
                Kernel::Custom(run, user) | Kernel::CustomOnWeight(run, user) => {
                    self.custom(sys::GGML_TYPE_F32, node.ne, &src, (&name(), run), user)
                }
                Kernel::AttentionBackQ(user, floats) => {
                    let run: sys::ggml_custom_op_t = Some(attention::backward_q);
                    self.custom(sys::GGML_TYPE_F32, [floats, 1, 1, 1], &src, (&name(), run), user)
                }
                Kernel::Int8MatMul => {
                    let x = self.quantized(node.src[1], src[0], Layout::Columns);
                    let run: sys::ggml_custom_op_t = Some(int8::fast);
                    self.custom(
                        sys::GGML_TYPE_F32,
                        node.ne,
                        &[src[0], x],
                        (c"integer product", run),
                        std::ptr::null_mut(),
                    )
                }
                Kernel::LossHead => self.loss_head(node, src[0]),
                Kernel::SsmScanBack => {
                    let shape = ssm_scan::Sizes::of(graph, node);
                    let run: sys::ggml_custom_op_t = Some(ssm_scan::backward);
                    let none = std::ptr::null_mut();
                    let parts = self.custom(sys::GGML_TYPE_F32, [shape.floats(), 1, 1, 1], &src, (&name(), run), none);
                    let run: sys::ggml_custom_op_t = Some(ssm_scan::finish);
                    self.custom(
                        sys::GGML_TYPE_F32,
                        node.ne,
                        &[parts, src[1], src[2], src[4]],
                        (c"scan, end", run),
                        none,
                    )
                }
            }
        })
    }

    fn input(&mut self, id: InputId, node: &Node) -> Result<*mut sys::ggml_tensor, RunError> {
        // SAFETY: the arena of the inputs has room for all of them.
        let (t, n_bytes) = unsafe {
            let t = new_tensor(self.inputs.0, elem_type(node.elem), node.ne);
            (t, sys::ggml_nbytes(t))
        };
        let (data, len) = self.bind.inputs[id.0 as usize].bytes();
        if len != n_bytes {
            return Err(RunError::Binding(format!("input {} wants {n_bytes} bytes ({:?}), got {len}", id.0, node.ne)));
        }
        self.uploads.push((t, data, len));
        Ok(t)
    }

    fn weight(&self, id: WeightId, node: &Node) -> Result<*mut sys::ggml_tensor, RunError> {
        let w = self.bind.weights[id.0 as usize].node();
        if w.ne() != node.ne {
            return Err(RunError::Binding(format!(
                "weight {} is {:?}, the graph wants {:?}",
                w.name(),
                w.ne(),
                node.ne
            )));
        }
        Ok(w.id().ptr())
    }

    /// The tensor of a weight, or of a view of one, in its file layout (not repacked) and in host memory.
    fn file_layout(&self, w: Value) -> Result<*mut sys::ggml_tensor, RunError> {
        let (graph, tensor) = (self.graph, self.tensors[w.0 as usize]);
        let mut at = w;
        while !matches!(graph.node(at).op, Op::Weight(_) | Op::Input(_)) && !graph.node(at).src.is_empty() {
            at = graph.node(at).src[0];
        }
        let Op::Weight(id) = graph.node(at).op else { return Ok(tensor) };
        let weight = &self.bind.weights[id.0 as usize];
        let unreadable = |why: &str| RunError::Binding(format!("weight {} {why}", weight.node().name()));
        if at == w {
            return weight.plain_ptr().ok_or_else(|| unreadable("cannot be read by the CPU where llama.cpp keeps it"));
        }
        if weight.node().is_host() {
            return Ok(tensor);
        }
        Err(unreadable(if weight.device().is_some() {
            "is used through a view, and lies on a device: keep this model's layers on the CPU (--gpu-layers 0)"
        } else {
            "is used through a view, and not in host memory: load the model without repacking"
        }))
    }

    /// The activations `x`, quantized for matmuls with `w`; made once for all matmuls that read them.
    ///
    /// # Safety
    /// The arena has room; the weight's type is one that [`activations::packed_bytes`] knows.
    unsafe fn quantized(&mut self, x: Value, w: *mut sys::ggml_tensor, layout: Layout) -> *mut sys::ggml_tensor {
        // SAFETY: by contract.
        unsafe {
            let (kind, tensor) = ((*w).type_, self.tensors[x.0 as usize]);
            if let Some(&quantized) = self.quantized.get(&(x, kind, layout)) {
                return quantized;
            }
            let [k, a, b, c] = (*tensor).ne.map(|n| n as usize);
            let n_bytes = activations::packed_bytes(kind, layout, k, a * b * c).unwrap_or_default();
            let task = activations::pack_task(kind, layout);
            let run: sys::ggml_custom_op_t = Some(activations::pack);
            let quantized =
                self.custom(sys::GGML_TYPE_I8, [n_bytes, 1, 1, 1], &[tensor], (c"round activations", run), task);
            self.quantized.insert((x, kind, layout), quantized);
            quantized
        }
    }

    /// The tensor of [`Op::LossHead`].
    ///
    /// # Safety
    /// The arena has room; `w` is the LM head in its file layout.
    unsafe fn loss_head(&mut self, node: &Node, w: *mut sys::ggml_tensor) -> *mut sys::ggml_tensor {
        let [k, rows, ..] = node.ne;
        let sums = [k, rows * (node.src.len() - 1), 1, 1];
        let (partial, finish): (sys::ggml_custom_op_t, sys::ggml_custom_op_t) =
            (Some(loss_head::partial), Some(loss_head::finish));
        let task = self.setup.task;
        // SAFETY: by contract.
        unsafe {
            // Hidden states, and the reference's where there is one.
            let mut src = vec![w];
            for &h in &node.src[1..] {
                src.push(self.quantized(h, w, Layout::Columns));
            }
            let sums = self.custom(sys::GGML_TYPE_F32, sums, &src, (c"loss head", partial), task);
            self.custom(sys::GGML_TYPE_F32, node.ne, &[sums, w], (c"loss head, end", finish), task)
        }
    }

    /// The tensor of a kernel of bidpo's.
    ///
    /// # Safety
    /// The arena has room; the sources exist and are what `run` expects.
    unsafe fn custom(
        &self,
        kind: sys::ggml_type,
        ne: [usize; 4],
        src: &[*mut sys::ggml_tensor],
        (name, run): (&CStr, sys::ggml_custom_op_t),
        user: *mut c_void,
    ) -> *mut sys::ggml_tensor {
        let (mut args, n) = (src.to_vec(), src.len() as i32);
        let [a, b, c, d] = ne.map(|n| n as i64);
        // SAFETY: by contract.
        unsafe {
            let t = sys::ggml_custom_4d(self.arena.0, kind, a, b, c, d, args.as_mut_ptr(), n, run, N_TASKS_MAX, user);
            sys::ggml_set_name(t, name.as_ptr())
        }
    }
}

/// The tensor of a view or a copy, by ggml's own constructors, which know how views share memory.
///
/// # Safety
/// `ctx` is alive and has room; the sources exist and fit the op, which is one of [`Kernel::Constructor`].
unsafe fn constructed(
    ctx: *mut sys::ggml_context,
    node: &Node,
    src: &[*mut sys::ggml_tensor],
) -> *mut sys::ggml_tensor {
    let ne = node.ne.map(|n| n as i64);
    // SAFETY: by contract.
    unsafe {
        match node.op {
            Op::Reshape => sys::ggml_reshape_4d(ctx, src[0], ne[0], ne[1], ne[2], ne[3]),
            Op::View { offset } => {
                sys::ggml_view_4d(ctx, src[0], ne[0], ne[1], ne[2], ne[3], node.nb[1], node.nb[2], node.nb[3], offset)
            }
            Op::Permute(axes) => {
                let a = axes.map(|a| a as i32);
                sys::ggml_permute(ctx, src[0], a[0], a[1], a[2], a[3])
            }
            // The rows are written into the memory of the first source: nothing else reads it afterwards.
            Op::SetRows => sys::ggml_set_rows(ctx, src[0], src[1], src[2]),
            Op::Cast => sys::ggml_cast(ctx, src[0], elem_type(node.elem)),
            _ => sys::ggml_cont_4d(ctx, src[0], ne[0], ne[1], ne[2], ne[3]),
        }
    }
}

/// The tensor of an op of ggml's, as ggml's constructors write it: op, parameters, sources. This keeps a lifted op, with all
/// its parameters, the op that it was.
///
/// # Safety
/// `ctx` is alive and has room; the sources exist and fit the op.
unsafe fn ggml_node(
    ctx: *mut sys::ggml_context,
    node: &Node,
    op: sys::ggml_op,
    params: &OpParams,
    src: &[*mut sys::ggml_tensor],
) -> *mut sys::ggml_tensor {
    // SAFETY: a fresh tensor; the struct has room for 16 parameters and 10 sources.
    unsafe {
        let t = new_tensor(ctx, elem_type(node.elem), node.ne);
        (*t).op = op;
        (*t).op_params.copy_from_slice(params);
        for (slot, s) in (*t).src.iter_mut().zip(src) {
            *slot = *s;
        }
        t
    }
}
