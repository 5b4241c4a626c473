//! Time of a run by op.
//!
//! ggml asks after each node whether to abort; the answer is always no, and the time of the question is noted. A node's
//! time is that of the first worker, with its wait for the others.

use crate::llama::sys;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::time::{Duration, Instant};

/// Time and number of the nodes of each op, by ggml's name or, for bidpo's kernels, by the name of the op.
pub type Profile = BTreeMap<String, (Duration, usize)>;

/// Watches one run.
pub(super) struct Watch {
    times: Vec<Instant>,
}

impl Watch {
    /// Starts with the run.
    ///
    /// # Safety
    /// The watch stays where it is until [`Watch::stop`].
    pub(super) unsafe fn start(this: &mut Self, backend: sys::ggml_backend_t, graph: *mut sys::ggml_cgraph) {
        // SAFETY: by contract, the pointer is valid as long as the callback is set.
        unsafe {
            this.times.clear();
            this.times.reserve(sys::ggml_graph_n_nodes(graph) as usize + 1);
            this.times.push(Instant::now());
            sys::ggml_backend_cpu_set_abort_callback(backend, Some(note), std::ptr::from_mut(this).cast());
        }
    }

    pub(super) fn new() -> Self {
        Self { times: Vec::new() }
    }

    /// Ends with the run, and adds what it saw; nothing where ggml joined nodes in a way not known here.
    ///
    /// # Safety
    /// The graph that ran, still alive.
    pub(super) unsafe fn stop(
        &self,
        backend: sys::ggml_backend_t,
        graph: *mut sys::ggml_cgraph,
        profile: &mut Profile,
    ) {
        // SAFETY: by contract.
        unsafe {
            sys::ggml_backend_cpu_set_abort_callback(backend, None, std::ptr::null_mut());
            let names = computed(graph);
            if names.len() + 1 != self.times.len() {
                return;
            }
            for (name, at) in names.into_iter().zip(self.times.windows(2)) {
                let entry = profile.entry(name).or_default();
                entry.0 += at[1] - at[0];
                entry.1 += 1;
            }
        }
    }
}

unsafe extern "C" fn note(watch: *mut c_void) -> bool {
    // SAFETY: as `start` passes it; only the first worker calls. There is room: no allocation.
    let times = unsafe { &mut (*watch.cast::<Watch>()).times };
    if times.len() < times.capacity() {
        times.push(Instant::now());
    }
    false
}

/// Names of the nodes that ggml's CPU backend computes, those it joins as one.
unsafe fn computed(graph: *mut sys::ggml_cgraph) -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: nodes of a live graph; names are C strings.
    unsafe {
        let n = sys::ggml_graph_n_nodes(graph);
        let node = |i: i32| &*sys::ggml_graph_node(graph, i);
        let users =
            |t: *const sys::ggml_tensor| (0..n).flat_map(|i| node(i).src).filter(|s| std::ptr::eq(*s, t)).count();
        let mut i = 0;
        while i < n {
            let t = node(i);
            let mut name = match t.op {
                sys::GGML_OP_NONE
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE => {
                    i += 1;
                    continue;
                }
                sys::GGML_OP_CUSTOM => CStr::from_ptr(t.name.as_ptr()).to_string_lossy().into_owned(),
                op => CStr::from_ptr(sys::ggml_op_name(op)).to_string_lossy().into_owned(),
            };
            if t.op == sys::GGML_OP_RMS_NORM && i + 1 < n {
                let next = node(i + 1);
                let reads = next.src.iter().any(|s| std::ptr::eq(*s, t));
                let output = t.flags & sys::GGML_TENSOR_FLAG_OUTPUT as i32 != 0;
                if next.op == sys::GGML_OP_MUL && reads && !output && users(t) == 1 {
                    name.push_str("+MUL");
                    i += 1;
                }
            }
            names.push(name);
            i += 1;
        }
    }
    names
}
