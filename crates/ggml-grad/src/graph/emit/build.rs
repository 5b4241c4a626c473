//! Making the ggml graph: tensors for the nodes that are needed, op by op.

use super::{Backward, Bindings, Forward, Precision, RunError};
use crate::graph::ir::{Elem, Glu, Graph, Node, Op, Unary, Value};
use crate::graph::kernels::activations::{self, Layout};
use crate::graph::kernels::{attention, cpu, gelu, int8, log_prob_head, loss_head, matmul_t, pointwise, rows};
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

/// How ops become tensors.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// A [`crate::graph::kernels::task::LossTask`].
    pub task: *mut c_void,
    pub smooth: bool,
    pub precision: Precision,
    pub n_workers: usize,
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
    pub(super) fn new(graph: &Graph, bind: &Bindings<'_>, wanted: &[Value], setup: Setup) -> Result<Self, RunError> {
        let n = graph.nodes().len();
        if bind.inputs.len() != graph.n_inputs() || bind.weights.len() != graph.n_weights() {
            return Err(RunError::Binding(format!(
                "the graph has {} inputs and {} weights, the run brings {} and {}",
                graph.n_inputs(),
                graph.n_weights(),
                bind.inputs.len(),
                bind.weights.len()
            )));
        }
        let needed = needed(graph, wanted, setup);
        let memory = || RunError::Memory { nodes: n, detail: String::new() };
        let inputs = Arena::new(graph.n_inputs(), None).ok_or_else(memory)?;
        // A node may need two tensors.
        let arena = Arena::new(2 * n, Some(2 * n + 64)).ok_or_else(memory)?;
        let mut tensors: Vec<*mut sys::ggml_tensor> = vec![std::ptr::null_mut(); n];
        let mut uploads = Vec::new();
        let mut packs = Packs::new();
        let is_head = |v: &Value| matches!(graph.node(*v).op, Op::LossHead | Op::LogProbHead);
        let uses = |(i, node): (usize, &Node)| needed[i] && node.src.iter().any(is_head);
        let head_is_used = graph.nodes().iter().enumerate().any(uses);
        // SAFETY: `inputs` and `arena` outlive the tensors made in them; sources are made before their users because
        // nodes are in order.
        let ggml_graph = unsafe {
            for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| needed[*i]) {
                match node.op {
                    Op::Input(id) => {
                        let t = new_tensor(inputs.0, elem_type(node.elem), node.ne);
                        let (data, len) = bind.inputs[id.0 as usize].bytes();
                        if len != sys::ggml_nbytes(t) {
                            return Err(RunError::Binding(format!(
                                "input {} wants {} bytes ({:?}), got {len}",
                                id.0,
                                sys::ggml_nbytes(t),
                                node.ne
                            )));
                        }
                        uploads.push((t, data, len));
                        tensors[i] = t;
                    }
                    Op::Weight(id) => {
                        let w = bind.weights[id.0 as usize].node();
                        if w.ne() != node.ne {
                            return Err(RunError::Binding(format!(
                                "weight {} is {:?}, the graph wants {:?}",
                                w.name(),
                                w.ne(),
                                node.ne
                            )));
                        }
                        tensors[i] = w.id().ptr();
                    }
                    Op::MulMatT | Op::MulMatIdT | Op::LossHead => {
                        let w = node.src[0];
                        let tensor = plain(graph, w, bind.weights, &tensors)?;
                        let forward = std::mem::replace(&mut tensors[w.0 as usize], tensor);
                        tensors[i] = match node.op {
                            Op::LossHead => loss_head(arena.0, node, &tensors, setup, &mut packs),
                            _ => emit(arena.0, node, &tensors, setup),
                        };
                        tensors[w.0 as usize] = forward;
                    }
                    Op::Attention { .. } if setup.precision.forward == Forward::Exact => {
                        tensors[i] = tensors[node.src[4].0 as usize];
                    }
                    Op::MulMat(_) if own_product(graph, node, bind.weights, setup) => {
                        tensors[i] = product(arena.0, node, &tensors, &mut packs);
                    }
                    _ => tensors[i] = emit(arena.0, node, &tensors, setup),
                }
            }
            let ggml_graph = sys::ggml_new_graph_custom(arena.0, 2 * n + 64, false);
            for &v in wanted {
                sys::ggml_set_output(tensors[v.0 as usize]);
            }
            // In the order of the nodes, not in the order that a walk from the results meets them: what the backward pass
            // computes again it computes where it is used.
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

/// Which nodes the wanted values depend on.
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

/// The tensor of a weight, or of a view of one, that our kernels can read.
fn plain(
    graph: &Graph,
    w: Value,
    weights: &[Weight],
    tensors: &[*mut sys::ggml_tensor],
) -> Result<*mut sys::ggml_tensor, RunError> {
    let mut at = w;
    while !matches!(graph.node(at).op, Op::Weight(_) | Op::Input(_)) && !graph.node(at).src.is_empty() {
        at = graph.node(at).src[0];
    }
    let Op::Weight(id) = graph.node(at).op else { return Ok(tensors[w.0 as usize]) };
    let weight = &weights[id.0 as usize];
    let unreadable = |why: &str| RunError::Binding(format!("weight {} {why}", weight.node().name()));
    if at == w {
        return weight.plain_ptr().ok_or_else(|| unreadable("cannot be read by the CPU where llama.cpp keeps it"));
    }
    if weight.node().is_host() {
        return Ok(tensors[w.0 as usize]);
    }
    Err(unreadable(if weight.device().is_some() {
        "is used through a view, and lies on a device: keep this model's layers on the CPU (--gpu-layers 0)"
    } else {
        "is used through a view, and not in host memory: load the model without repacking"
    }))
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

fn bits(x: f32) -> i32 {
    x.to_bits() as i32
}

fn unary_params(kind: Unary) -> Vec<i32> {
    let code = match kind {
        Unary::Tanh => sys::GGML_UNARY_OP_TANH,
        Unary::Silu => sys::GGML_UNARY_OP_SILU,
        Unary::Gelu => sys::GGML_UNARY_OP_GELU,
        Unary::GeluErf => sys::GGML_UNARY_OP_GELU_ERF,
        Unary::GeluQuick => sys::GGML_UNARY_OP_GELU_QUICK,
        Unary::Relu => sys::GGML_UNARY_OP_RELU,
        Unary::Sigmoid => sys::GGML_UNARY_OP_SIGMOID,
        Unary::Exp => sys::GGML_UNARY_OP_EXP,
        Unary::Softplus => sys::GGML_UNARY_OP_SOFTPLUS,
        Unary::Neg => sys::GGML_UNARY_OP_NEG,
        Unary::Abs => sys::GGML_UNARY_OP_ABS,
        Unary::Sgn => sys::GGML_UNARY_OP_SGN,
        Unary::Step => sys::GGML_UNARY_OP_STEP,
        Unary::Xielu { n, p, beta, eps } => {
            return vec![sys::GGML_UNARY_OP_XIELU as i32, bits(n), bits(p), bits(beta), bits(eps)];
        }
    };
    vec![code as i32]
}

fn glu_params(kind: Glu) -> Vec<i32> {
    let (code, alpha, limit) = match kind {
        Glu::Reglu => (sys::GGML_GLU_OP_REGLU, 0.0, 0.0),
        Glu::Swiglu => (sys::GGML_GLU_OP_SWIGLU, 0.0, 0.0),
        Glu::Geglu => (sys::GGML_GLU_OP_GEGLU, 0.0, 0.0),
        Glu::GegluErf => (sys::GGML_GLU_OP_GEGLU_ERF, 0.0, 0.0),
        Glu::GegluQuick => (sys::GGML_GLU_OP_GEGLU_QUICK, 0.0, 0.0),
        Glu::SwigluOai { alpha, limit } => (sys::GGML_GLU_OP_SWIGLU_OAI, alpha, limit),
        Glu::SwigluClamp { limit } => (sys::GGML_GLU_OP_SWIGLU_CLAMP, 0.0, limit),
    };
    vec![code as i32, 0, bits(alpha), bits(limit)]
}

/// The kernel of ours that computes an op, if one does. `smooth`: GELU without ggml's table.
fn own_kernel(op: Op, smooth: bool) -> sys::ggml_custom_op_t {
    match op {
        Op::MulMatT => Some(matmul_t::run),
        Op::MulMatIdT => Some(matmul_t::run_id),
        Op::ScatterRows => Some(rows::scatter),
        Op::Attention { .. } => Some(attention::forward),
        Op::AttentionBackQ { .. } => Some(attention::backward_q),
        Op::AttentionBackKv { .. } => Some(attention::backward_kv),
        Op::LogProbHead => Some(log_prob_head::run),
        Op::GeluBack => Some(pointwise::gelu_back),
        Op::SiluBack => Some(pointwise::silu_back),
        Op::RmsNormBack { .. } => Some(pointwise::rms_norm_back),
        Op::Unary(Unary::Gelu) | Op::Glu(Glu::Geglu) if smooth => Some(gelu::tanh),
        Op::Unary(Unary::GeluQuick) | Op::Glu(Glu::GegluQuick) if smooth => Some(gelu::quick),
        _ => None,
    }
}

/// Rounded activations in the graph, by what they were rounded from, for which type and how they lie.
type Packs = HashMap<(Value, sys::ggml_type, Layout), *mut sys::ggml_tensor>;

/// True if a kernel of ours computes this product: of a quantized weight, plain in host memory. For a few rows ggml's would
/// be faster; but a row's numbers must not depend on how many others there are.
fn own_product(graph: &Graph, node: &Node, weights: &[Weight], setup: Setup) -> bool {
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

/// The first product of the graph that is left to ggml, in words.
pub(super) fn foreign_product(graph: &Graph, weights: &[Weight], setup: Setup) -> Option<String> {
    let node = graph.nodes().iter().find(|node| match node.op {
        Op::MulMat(_) => !own_product(graph, node, weights, setup),
        Op::MulMatId(_) => true,
        _ => false,
    })?;
    Some(match (node.op, graph.node(node.src[0]).op) {
        (Op::MulMatId(_), _) => "the products of a mixture of experts".into(),
        (_, Op::Weight(id)) => {
            let weight = weights[id.0 as usize].node();
            format!("products with weights in {} ({})", weight.dtype().name(), weight.name())
        }
        _ => "products of two activations".into(),
    })
}

/// The activations of a product, rounded; made once for all products that use them.
///
/// # Safety
/// `ctx` is alive and has room; the tensors exist; the weight's type is one that is taken apart.
unsafe fn rounded(
    ctx: *mut sys::ggml_context,
    x: Value,
    w: *mut sys::ggml_tensor,
    layout: Layout,
    tensors: &[*mut sys::ggml_tensor],
    packs: &mut Packs,
) -> *mut sys::ggml_tensor {
    // SAFETY: by contract.
    unsafe {
        let (kind, tensor) = ((*w).type_, tensors[x.0 as usize]);
        let [k, a, b, c] = (*tensor).ne.map(|n| n as usize);
        let bytes = activations::packed_bytes(kind, layout, k, a * b * c).unwrap_or_default();
        *packs.entry((x, kind, layout)).or_insert_with(|| {
            let task = activations::pack_task(kind, layout);
            custom(
                ctx,
                sys::GGML_TYPE_I8,
                [bytes, 1, 1, 1],
                &[tensor],
                (c"round activations", Some(activations::pack)),
                task,
            )
        })
    }
}

/// The tensor of a product that [`own_product`] accepts.
///
/// # Safety
/// As [`emit`].
unsafe fn product(
    ctx: *mut sys::ggml_context,
    node: &Node,
    tensors: &[*mut sys::ggml_tensor],
    packs: &mut Packs,
) -> *mut sys::ggml_tensor {
    // SAFETY: by contract.
    unsafe {
        let w = tensors[node.src[0].0 as usize];
        let x = rounded(ctx, node.src[1], w, Layout::Columns, tensors, packs);
        custom(ctx, sys::GGML_TYPE_F32, node.ne, &[w, x], (c"integer product", Some(int8::fast)), std::ptr::null_mut())
    }
}

/// The tensor of [`Op::LossHead`].
///
/// # Safety
/// As [`emit`].
unsafe fn loss_head(
    ctx: *mut sys::ggml_context,
    node: &Node,
    tensors: &[*mut sys::ggml_tensor],
    setup: Setup,
    packs: &mut Packs,
) -> *mut sys::ggml_tensor {
    // SAFETY: by contract.
    unsafe {
        let w = tensors[node.src[0].0 as usize];
        let h = rounded(ctx, node.src[1], w, Layout::Columns, tensors, packs);
        let [k, rows, ..] = node.ne;
        let planes = [k, rows, setup.n_workers, 1];
        let partial =
            custom(ctx, sys::GGML_TYPE_F32, planes, &[w, h], (c"loss head", Some(loss_head::partial)), setup.task);
        custom(
            ctx,
            sys::GGML_TYPE_F32,
            node.ne,
            &[partial, w],
            (c"loss head, end", Some(loss_head::finish)),
            setup.task,
        )
    }
}

/// A custom op.
///
/// # Safety
/// `ctx` is alive and has room; the sources exist and are what `run` expects.
unsafe fn custom(
    ctx: *mut sys::ggml_context,
    kind: sys::ggml_type,
    ne: [usize; 4],
    src: &[*mut sys::ggml_tensor],
    (name, run): (&CStr, sys::ggml_custom_op_t),
    user: *mut c_void,
) -> *mut sys::ggml_tensor {
    let mut args = src.to_vec();
    let ne = ne.map(|n| n as i64);
    // SAFETY: by contract.
    unsafe {
        let t = sys::ggml_custom_4d(
            ctx,
            kind,
            ne[0],
            ne[1],
            ne[2],
            ne[3],
            args.as_mut_ptr(),
            args.len() as i32,
            run,
            N_TASKS_MAX,
            user,
        );
        sys::ggml_set_name(t, name.as_ptr())
    }
}

/// True for ops that only lay out, copy or convert what they read.
fn is_layout(op: Op) -> bool {
    matches!(op, Op::Reshape | Op::View { .. } | Op::Permute(_) | Op::Cont | Op::SetRows | Op::Cast)
}

/// The tensor of an op that [`is_layout`], by ggml's own constructors, which know how views share memory.
///
/// # Safety
/// `ctx` is alive and has room; the sources exist and fit the op.
unsafe fn layout(ctx: *mut sys::ggml_context, node: &Node, src: &[*mut sys::ggml_tensor]) -> *mut sys::ggml_tensor {
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

/// Makes the ggml tensor of one node.
///
/// Views go through ggml's functions, which know how views share memory. All other ops are written as ggml's own
/// constructors write them: op, parameters, sources. That is what keeps a lifted op, parameters and all, the op it was.
///
/// # Safety
/// `ctx` is alive and has room; the tensors of the node's sources exist.
unsafe fn emit(
    ctx: *mut sys::ggml_context,
    node: &Node,
    tensors: &[*mut sys::ggml_tensor],
    setup: Setup,
) -> *mut sys::ggml_tensor {
    let src: Vec<*mut sys::ggml_tensor> = used(node, setup).iter().map(|s| tensors[s.0 as usize]).collect();
    let f = bits;
    let (op, params): (sys::ggml_op, Vec<i32>) = match node.op {
        Op::Input(_) | Op::Weight(_) => unreachable!("made by the caller"),
        _ if is_layout(node.op) => {
            // SAFETY: live tensors of the right shapes, as the IR's constructors checked.
            return unsafe { layout(ctx, node, &src) };
        }
        _ if own_kernel(node.op, setup.smooth).is_some() => {
            let run = own_kernel(node.op, setup.smooth);
            let user = match node.op {
                Op::LogProbHead => setup.task,
                Op::RmsNormBack { eps } => pointwise::norm_task(eps),
                Op::Attention { scale } | Op::AttentionBackQ { scale } | Op::AttentionBackKv { scale } => {
                    attention::task(scale)
                }
                Op::MulMatT | Op::MulMatIdT => matmul_t::task(setup.precision.backward == Backward::Bf16),
                _ => std::ptr::null_mut(),
            };
            let name = CString::new(node.op.name()).unwrap_or_default();
            // SAFETY: live tensors of the shapes that the kernel expects, as the IR's constructors checked.
            return unsafe { custom(ctx, sys::GGML_TYPE_F32, node.ne, &src, (&name, run), user) };
        }
        Op::MulMatT
        | Op::MulMatIdT
        | Op::ScatterRows
        | Op::LogProbHead
        | Op::GeluBack
        | Op::SiluBack
        | Op::RmsNormBack { .. }
        | Op::Attention { .. }
        | Op::AttentionBackQ { .. }
        | Op::AttentionBackKv { .. } => unreachable!("own_kernel has one"),
        Op::LossHead => unreachable!("made by the caller"),
        Op::Reshape | Op::View { .. } | Op::Permute(_) | Op::Cont | Op::SetRows | Op::Cast => {
            unreachable!("laid out by ggml's constructors")
        }
        Op::Add => (sys::GGML_OP_ADD, vec![]),
        Op::Sub => (sys::GGML_OP_SUB, vec![]),
        Op::Mul => (sys::GGML_OP_MUL, vec![]),
        Op::Div => (sys::GGML_OP_DIV, vec![]),
        Op::AddId => (sys::GGML_OP_ADD_ID, vec![]),
        Op::Clamp { min, max } => (sys::GGML_OP_CLAMP, vec![f(min), f(max)]),
        Op::Sqr => (sys::GGML_OP_SQR, vec![]),
        Op::Sqrt => (sys::GGML_OP_SQRT, vec![]),
        Op::SumRows => (sys::GGML_OP_SUM_ROWS, vec![]),
        Op::Mean => (sys::GGML_OP_MEAN, vec![]),
        Op::Repeat => (sys::GGML_OP_REPEAT, vec![]),
        Op::Scale { s, b } => (sys::GGML_OP_SCALE, vec![f(s), f(b)]),
        Op::MulMat(p) => (sys::GGML_OP_MUL_MAT, p.to_vec()),
        Op::MulMatId(p) => (sys::GGML_OP_MUL_MAT_ID, p.to_vec()),
        Op::Norm { eps } => (sys::GGML_OP_NORM, vec![f(eps)]),
        Op::L2Norm { eps } => (sys::GGML_OP_L2_NORM, vec![f(eps)]),
        Op::RmsNorm { eps } => (sys::GGML_OP_RMS_NORM, vec![f(eps)]),
        Op::Rope(p) => (sys::GGML_OP_ROPE, p.to_vec()),
        Op::RopeBack(p) => (sys::GGML_OP_ROPE_BACK, p.to_vec()),
        Op::SoftMax { scale, max_bias } => (sys::GGML_OP_SOFT_MAX, vec![f(scale), f(max_bias)]),
        // The bias shifts scores by constants, so it has no part in the gradient; ggml insists on 0.
        Op::SoftMaxBack { scale } => (sys::GGML_OP_SOFT_MAX_BACK, vec![f(scale), f(0.0)]),
        Op::Glu(kind) => (sys::GGML_OP_GLU, glu_params(kind)),
        Op::Unary(kind) => (sys::GGML_OP_UNARY, unary_params(kind)),
        Op::Pad(extra) => {
            let e = extra.map(|x| x as i32);
            (sys::GGML_OP_PAD, vec![0, e[0], 0, e[1], 0, e[2], 0, e[3], 0])
        }
        Op::Concat { dim } => (sys::GGML_OP_CONCAT, vec![dim as i32]),
        Op::Other { code, params, .. } => (code, params.to_vec()),
        Op::GetRows => (sys::GGML_OP_GET_ROWS, vec![]),
        Op::GetRowsBack => (sys::GGML_OP_GET_ROWS_BACK, vec![]),
        Op::RepeatBack => (sys::GGML_OP_REPEAT_BACK, vec![]),
        Op::Acc { nb, offset } => (sys::GGML_OP_ACC, vec![nb[0] as i32, nb[1] as i32, nb[2] as i32, offset as i32, 0]),
    };
    // SAFETY: a fresh tensor of this arena; at most 3 sources and 16 parameters, which the struct has room for.
    unsafe {
        let t = new_tensor(ctx, elem_type(node.elem), node.ne);
        (*t).op = op;
        (&mut (*t).op_params)[..params.len()].copy_from_slice(&params);
        for (slot, s) in (*t).src.iter_mut().zip(&src) {
            *slot = *s;
        }
        t
    }
}
