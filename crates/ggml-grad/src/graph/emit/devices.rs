//! Graphs whose weights lie on devices: ggml's scheduler runs every op where its weight is, copies what crosses from one
//! device to another, and gives the CPU what a device cannot compute.

use super::RunError;
use crate::llama::{Weight, sys};
use crate::llama::{device_name, is_rpc};

/// The devices' backends, and the scheduler over them.
#[derive(Debug)]
pub(super) struct Devices {
    backends: Vec<(sys::ggml_backend_dev_t, sys::ggml_backend_t)>,
    sched: sys::ggml_backend_sched_t,
    /// Nodes and leaves that the scheduler was made for.
    capacity: usize,
    /// Bytes that the graph measured last needs on each.
    measured: Vec<usize>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { backends: Vec::new(), sched: std::ptr::null_mut(), capacity: 0, measured: Vec::new() }
    }
}

impl Devices {
    /// The scheduler, made ready for a graph, if a weight lies outside of the CPU's memory.
    ///
    /// # Errors
    /// [`RunError::Binding`] where a device cannot be started.
    ///
    /// # Safety
    /// `graph` is alive, of tensors that have no memory but for weights and inputs; `cpu` is a CPU backend.
    pub(super) unsafe fn prepare(
        &mut self,
        weights: &[Weight],
        cpu: sys::ggml_backend_t,
        graph: *mut sys::ggml_cgraph,
    ) -> Result<Option<sys::ggml_backend_sched_t>, RunError> {
        let used: Vec<_> = weights.iter().filter_map(Weight::device).collect();
        if used.is_empty() {
            return Ok(None);
        }
        let mut new = false;
        for device in used {
            if !self.backends.iter().any(|(d, _)| *d == device) {
                // SAFETY: a live device.
                let backend = unsafe { sys::ggml_backend_dev_init(device, std::ptr::null()) };
                if backend.is_null() {
                    return Err(RunError::Binding(format!("{} does not start", device_name(device))));
                }
                self.backends.push((device, backend));
                new = true;
            }
        }
        // SAFETY: by contract; the backends are alive.
        unsafe {
            let n_nodes = sys::ggml_graph_n_nodes(graph) as usize;
            // A graph has at most as many leaves as nodes have sources that are no nodes; twice the nodes is more than
            // any of ours has of both.
            let needed = 4 * n_nodes + 256;
            if new || self.capacity < needed {
                self.drop_sched();
                let mut list: Vec<sys::ggml_backend_t> = self.backends.iter().map(|b| b.1).collect();
                // ggml wants the CPU last: it takes what the others cannot.
                list.push(cpu);
                self.sched = sys::ggml_backend_sched_new(
                    list.as_mut_ptr(),
                    std::ptr::null_mut(),
                    list.len() as i32,
                    needed,
                    false,
                    false,
                );
                self.capacity = needed;
            }
            sys::ggml_backend_sched_reset(self.sched);
            let workers = self.backends.iter().any(|(d, _)| is_rpc(*d));
            for i in 0..n_nodes {
                let node = sys::ggml_graph_node(graph, i as i32);
                if on_cpu((*node).op, workers) {
                    sys::ggml_backend_sched_set_tensor_backend(self.sched, node, cpu);
                }
                // Inputs are in the CPU's memory; while a graph is measured they have none yet.
                for source in (*node).src.into_iter().filter(|s| !s.is_null()) {
                    if (*source).op == sys::GGML_OP_NONE && (*source).buffer.is_null() && (*source).view_src.is_null() {
                        sys::ggml_backend_sched_set_tensor_backend(self.sched, source, cpu);
                    }
                }
            }
        }
        Ok(Some(self.sched))
    }

    /// Bytes of the CPU's memory that a graph needs; None where no weight lies on a device.
    ///
    /// # Errors
    /// As [`Devices::prepare`]; [`RunError::Memory`] where there is no room.
    ///
    /// # Safety
    /// As [`Devices::prepare`]; the graph is not run afterwards.
    pub(super) unsafe fn measure(
        &mut self,
        weights: &[Weight],
        cpu: sys::ggml_backend_t,
        graph: *mut sys::ggml_cgraph,
    ) -> Result<Option<usize>, RunError> {
        // SAFETY: by contract.
        unsafe {
            if self.prepare(weights, cpu, graph)?.is_none() {
                return Ok(None);
            }
            // The memory is taken, and kept for the runs: ggml's way to measure only forgets what was assigned above.
            let there = sys::ggml_backend_sched_alloc_graph(self.sched, graph);
            let size = |backend| sys::ggml_backend_sched_get_buffer_size(self.sched, backend);
            self.measured = self.backends.iter().map(|b| size(b.1)).collect();
            let host = size(cpu);
            sys::ggml_backend_sched_reset(self.sched);
            if !there {
                return Err(RunError::Memory {
                    nodes: sys::ggml_graph_n_nodes(graph) as usize,
                    detail: " on the devices: offload fewer layers (--gpu-layers), or leave out the longest pairs"
                        .into(),
                });
            }
            Ok(Some(host))
        }
    }

    /// Devices with the bytes that the graph measured last needs there.
    pub(super) fn measured(&self) -> Vec<(String, usize)> {
        self.backends.iter().zip(&self.measured).map(|(&(d, _), &n)| (device_name(d), n)).collect()
    }

    /// Bytes of activations in the CPU's memory.
    pub(super) fn host_bytes(&self, cpu: sys::ggml_backend_t) -> usize {
        if self.sched.is_null() {
            return 0;
        }
        // SAFETY: both alive.
        unsafe { sys::ggml_backend_sched_get_buffer_size(self.sched, cpu) }
    }

    fn drop_sched(&mut self) {
        if !self.sched.is_null() {
            // SAFETY: freed once.
            unsafe { sys::ggml_backend_sched_free(self.sched) };
            self.sched = std::ptr::null_mut();
        }
    }

    /// Frees the scheduler and the backends. (The CPU's must still be alive.)
    pub(super) fn free(&mut self) {
        self.drop_sched();
        for (_, backend) in self.backends.drain(..) {
            // SAFETY: freed once.
            unsafe { sys::ggml_backend_free(backend) };
        }
    }
}

/// True for ops that must not leave the CPU: bidpo's kernels, which are functions of this process, and, where a device is a
/// worker's, ops that its backend may lack. Other devices say themselves what they lack; of a worker's, ggml takes for
/// granted that it computes everything.
fn on_cpu(op: sys::ggml_op, workers: bool) -> bool {
    matches!(op, sys::GGML_OP_CUSTOM | sys::GGML_OP_MAP_CUSTOM1 | sys::GGML_OP_MAP_CUSTOM2 | sys::GGML_OP_MAP_CUSTOM3)
        || workers && matches!(op, sys::GGML_OP_GET_ROWS_BACK | sys::GGML_OP_REPEAT_BACK)
}
