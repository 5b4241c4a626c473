//! From the intermediate representation to a ggml graph, and running it.
//!
//! Inputs get a separate buffer (ggml's allocator would recycle them), weights are the model's own tensors, and all
//! else is laid out by ggml's graph allocator, whose buffer is kept between runs.

#![allow(unsafe_code)] // ggml's C API, and tensors that hold addresses.

mod build;
mod devices;
mod profile;

use super::ir::{Elem, Graph, Value};
use super::kernels::cpu::{CpuLevelError, cpu_level};
use super::kernels::head::loss_head;
use super::kernels::head::task::LossTask;
use crate::llama::{DType, Weight, sys};
use build::{Built, Setup};
use devices::Devices;
use profile::Watch;
use std::ffi::c_void;
use std::str::FromStr;
use std::time::{Duration, Instant};

pub use super::kernels::head::task::{Label, LabelWeightFn};
pub(super) use build::elem_of;
pub use profile::Profile;

/// A graph that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Memory ran out.
    #[error("no memory for a graph of {nodes} nodes{detail}")]
    Memory {
        /// Nodes of the graph.
        nodes: usize,
        /// The failed allocation, where known.
        detail: String,
    },
    /// ggml failed.
    #[error("ggml failed to compute the graph (status {0})")]
    Compute(i32),
    /// Inputs or weights that do not fit the graph.
    #[error("{0}")]
    Binding(String),
    /// A value of `BIDPO_CPU` that cannot be used.
    #[error(transparent)]
    CpuLevel(#[from] CpuLevelError),
}

/// Data of one input for one run.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Floats.
    F32(Vec<f32>),
    /// Integers.
    I32(Vec<i32>),
    /// Raw bytes of any type (F16 masks).
    Bytes(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> (*const c_void, usize) {
        match self {
            Self::F32(v) => (v.as_ptr().cast(), v.len() * 4),
            Self::I32(v) => (v.as_ptr().cast(), v.len() * 4),
            Self::Bytes(v) => (v.as_ptr().cast(), v.len()),
        }
    }
}

/// Kernels of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forward {
    /// By ggml's own kernels, as `llama_decode` does.
    Exact,
    /// By bidpo's kernels where they are faster: matmuls with quantized weights, attention, and the fused LM-head loss. They
    /// quantize activations as ggml does and compute the same sums in a different reduction order.
    #[default]
    Fast,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Exact, Self::Fast]
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| format!("invalid kernels {s:?}: expected exact or fast"))
    }
}

impl Forward {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }
}

impl FromStr for Backward {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16]
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| format!("invalid kernels {s:?}: expected f32 or bf16"))
    }
}

impl Backward {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Precision of products with transposed quantized weights in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backward {
    /// Weights and gradients in F32.
    F32,
    /// Both rounded to BF16, sums in F32, where the CPU multiplies BF16; F32 elsewhere, and for weights that are not
    /// quantized.
    #[default]
    Bf16,
}

/// Use of reduced-precision kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Precision {
    /// The forward pass.
    pub forward: Forward,
    /// The backward pass.
    pub backward: Backward,
}

impl Precision {
    /// None: ggml's kernels in the forward pass, F32 in the backward pass.
    pub const EXACT: Self = Self { forward: Forward::Exact, backward: Backward::F32 };
}

/// The data of a run: inputs, weights, labels.
#[derive(Default)]
pub struct Bindings<'a> {
    /// Data of each input, by [`super::ir::InputId`].
    pub inputs: Vec<&'a Data>,
    /// Tensor of each weight, by [`super::ir::WeightId`].
    pub weights: &'a [Weight],
    /// Labels of the graph's [`Op::LogProbHead`](super::ir::Op::LogProbHead), sorted by row.
    pub labels: &'a [Label],
    /// Replaces the labels' coefficients; only for graphs with an [`super::ir::Op::LossHead`].
    pub weigh: Option<LabelWeightFn<'a>>,
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The values to read, contiguous, in the order of the request.
    pub values: Vec<Vec<f32>>,
    /// The same for integer values.
    pub integers: Vec<Vec<i32>>,
    /// log p of each label.
    pub log_probs: Vec<f64>,
    /// For each label, the divergence of its row from the reference; NaN where the head has none.
    pub divergences: Vec<f64>,
}

/// Time of an executor's runs by phase, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Making the ggml graph.
    pub build: Duration,
    /// Memory for inputs and activations, and copying the inputs there.
    pub upload: Duration,
    /// ggml's computation: the only part that uses more than one thread.
    pub compute: Duration,
    /// Copying the results out.
    pub read: Duration,
    /// Runs that came to their end.
    pub runs: usize,
}

/// Runs graphs where their weights are: on the CPU backend of ggml, or across the CPU and the devices that hold weights.
#[derive(Debug)]
pub struct Executor {
    backend: sys::ggml_backend_t,
    alloc: sys::ggml_gallocr_t,
    pool: *mut sys::ggml_threadpool,
    n_threads: u32,
    smooth: bool,
    precision: Precision,
    timings: Timings,
    profile: Option<Profile>,
    /// Backends of the devices that the graphs run so far had weights on.
    devices: Devices,
}

// SAFETY: ggml's backend, allocator and thread pool may be used from any one thread at a time.
unsafe impl Send for Executor {}

/// A backend buffer that is freed on every way out.
struct Buffer(sys::ggml_backend_buffer_t);

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: freed once.
            unsafe { sys::ggml_backend_buffer_free(self.0) };
        }
    }
}

/// A pool of `n_threads` threads; null if there is none.
///
/// # Safety
/// The caller frees it.
unsafe fn thread_pool(n_threads: u32) -> *mut sys::ggml_threadpool {
    // SAFETY: parameters of ggml's own.
    unsafe {
        let mut params = sys::ggml_threadpool_params_default(n_threads as i32);
        // Sleep between graphs instead of spinning: the work between two runs is Rust's.
        params.poll = 0;
        sys::ggml_threadpool_new(&raw mut params)
    }
}

impl Executor {
    /// An executor with `n_threads` workers.
    ///
    /// # Errors
    /// [`RunError::Memory`] when ggml cannot start; [`RunError::CpuLevel`].
    pub fn new(n_threads: u32) -> Result<Self, RunError> {
        cpu_level()?;
        crate::llama::init();
        // SAFETY: each object is checked, owned by self and freed in drop.
        unsafe {
            let backend = sys::ggml_backend_cpu_init();
            let alloc = sys::ggml_gallocr_new(sys::ggml_backend_cpu_buffer_type());
            let pool = thread_pool(n_threads);
            if backend.is_null() || alloc.is_null() || pool.is_null() {
                return Err(RunError::Memory { nodes: 0, detail: String::new() });
            }
            sys::ggml_backend_cpu_set_n_threads(backend, n_threads as i32);
            sys::ggml_backend_cpu_set_threadpool(backend, pool);
            Ok(Self {
                backend,
                alloc,
                pool,
                n_threads,
                smooth: false,
                precision: Precision::default(),
                timings: Timings::default(),
                profile: None,
                devices: Devices::default(),
            })
        }
    }

    /// Takes over the settings of another, but for its threads.
    pub fn set_same(&mut self, other: &Self) {
        (self.smooth, self.precision) = (other.smooth, other.precision);
    }

    /// Sets the number of workers of later runs.
    ///
    /// # Errors
    /// [`RunError::Memory`] when no threads can be had: the number is as before.
    pub fn set_threads(&mut self, n_threads: u32) -> Result<(), RunError> {
        if n_threads == self.n_threads {
            return Ok(());
        }
        // SAFETY: the new pool is checked, and the backend has it before the old one ends; no graph is being computed.
        unsafe {
            let pool = thread_pool(n_threads);
            if pool.is_null() {
                return Err(RunError::Memory { nodes: 0, detail: format!(" ({n_threads} threads)") });
            }
            sys::ggml_backend_cpu_set_n_threads(self.backend, n_threads as i32);
            sys::ggml_backend_cpu_set_threadpool(self.backend, pool);
            sys::ggml_threadpool_free(self.pool);
            (self.pool, self.n_threads) = (pool, n_threads);
        }
        Ok(())
    }

    /// Computes GELU in later runs without ggml's table of 16-bit floats: not what llama.cpp computes, but smooth, so that
    /// finite differences can be compared with a gradient.
    pub fn set_smooth(&mut self, smooth: bool) {
        self.smooth = smooth;
    }

    /// Sets the precision of later runs.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// The precision of runs.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// True if [`Graph::loss_head`] can be computed with this LM head, on this CPU, within the precision set.
    pub fn can_fuse_head(&self, output: &Weight) -> bool {
        let DType(kind) = output.node().dtype();
        self.precision == Precision::default() && loss_head::can_fuse(kind) && output.device().is_none()
    }

    /// A matmul of the graph that is left to ggml, in words; None where bidpo's kernels compute all of them. Those are
    /// batch-invariant: a row's result does not depend on the other rows.
    pub fn foreign_product(&self, graph: &Graph, weights: &[Weight]) -> Option<String> {
        build::ggml_matmul(graph, weights, self.setup(std::ptr::null_mut()))
    }

    fn setup(&self, task: *mut c_void) -> Setup {
        Setup { task, smooth: self.smooth, precision: self.precision, on_devices: false }
    }

    /// Runs as much of `graph` as `computed` and `read` depend on, and reads back `read`.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run(
        &mut self,
        graph: &Graph,
        bind: &Bindings<'_>,
        computed: &[Value],
        read: &[Value],
    ) -> Result<Outcome, RunError> {
        let started = Instant::now();
        let wanted: Vec<Value> = computed.iter().chain(read).copied().collect();
        let mut task = LossTask::new(bind.labels, bind.weigh, self.n_threads as usize);
        let built = Built::new(graph, bind, &wanted, self.setup((&raw mut task).cast()))?;
        task.grad = built.head_is_used;
        let built_at = Instant::now();
        // SAFETY: the tensors of `built` are alive until its end; weights live as long as the model, which the caller
        // holds; `task` outlives the run.
        unsafe {
            let buffer = Buffer(if built.uploads.is_empty() {
                std::ptr::null_mut()
            } else {
                sys::ggml_backend_alloc_ctx_tensors(built.inputs.0, self.backend)
            });
            if buffer.0.is_null() && !built.uploads.is_empty() {
                return Err(built.memory(" (inputs)"));
            }
            for &(t, data, len) in &built.uploads {
                sys::ggml_backend_tensor_set(t, data, 0, len);
            }
            let on_devices = self.devices.prepare(bind.weights, self.backend, built.graph)?;
            let allocated = match on_devices {
                Some(sched) => sys::ggml_backend_sched_alloc_graph(sched, built.graph),
                None => sys::ggml_gallocr_alloc_graph(self.alloc, built.graph),
            };
            if !allocated {
                return Err(built.memory(" (activations)"));
            }
            let uploaded_at = Instant::now();
            let mut watch = Watch::new();
            if self.profile.is_some() {
                Watch::start(&mut watch, self.backend, built.graph);
            }
            let status = match on_devices {
                Some(sched) => sys::ggml_backend_sched_graph_compute(sched, built.graph),
                None => sys::ggml_backend_graph_compute(self.backend, built.graph),
            };
            if let Some(profile) = &mut self.profile {
                watch.stop(self.backend, built.graph, profile);
            }
            let computed_at = Instant::now();
            if status != sys::GGML_STATUS_SUCCESS {
                return Err(RunError::Compute(status));
            }
            let mut outcome =
                Outcome { log_probs: task.log_probs, divergences: task.divergences, ..Outcome::default() };
            for v in read {
                let t = built.tensors[v.0 as usize];
                let mut bytes = vec![0.0f32; sys::ggml_nelements(t) as usize];
                sys::ggml_backend_tensor_get(t, bytes.as_mut_ptr().cast(), 0, bytes.len() * 4);
                if graph.node(*v).elem == Elem::I32 {
                    outcome.integers.push(bytes.iter().map(|x| x.to_bits() as i32).collect());
                } else {
                    outcome.values.push(bytes);
                }
            }
            self.timings.build += built_at - started;
            self.timings.upload += uploaded_at - built_at;
            self.timings.compute += computed_at - uploaded_at;
            self.timings.read += computed_at.elapsed();
            self.timings.runs += 1;
            Ok(outcome)
        }
    }

    /// Records the time of each op in later runs on the CPU.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::new());
    }

    /// Between [`Executor::start_profile`] and [`Executor::take_profile`].
    pub fn is_profiling(&self) -> bool {
        self.profile.is_some()
    }

    /// The profile since [`Executor::start_profile`]. Ends profiling.
    pub fn take_profile(&mut self) -> Profile {
        self.profile.take().unwrap_or_default()
    }

    /// Time of the runs since the last call, by phase.
    pub fn take_timings(&mut self) -> Timings {
        std::mem::take(&mut self.timings)
    }

    /// Bytes of the CPU's memory that a run would need for inputs and activations, without running it.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn measure(&mut self, graph: &Graph, bind: &Bindings<'_>, wanted: &[Value]) -> Result<usize, RunError> {
        let built = Built::new(graph, bind, wanted, self.setup(std::ptr::null_mut()))?;
        // SAFETY: nothing of the graph has memory yet, which is how a scheduler measures.
        if let Some(size) = unsafe { self.devices.measure(bind.weights, self.backend, built.graph)? } {
            return Ok(size);
        }
        // SAFETY: a separate allocator, which only computes sizes: nothing is allocated, and the graph is not run.
        unsafe {
            let alloc = sys::ggml_gallocr_new(sys::ggml_backend_cpu_buffer_type());
            if alloc.is_null() {
                return Err(built.memory(""));
            }
            let mut size = 0usize;
            sys::ggml_gallocr_reserve_n_size(alloc, built.graph, std::ptr::null(), std::ptr::null(), &raw mut size);
            sys::ggml_gallocr_free(alloc);
            Ok(size)
        }
    }

    /// Devices with the bytes that the graph measured last needs there.
    pub fn measured_on_devices(&self) -> Vec<(String, usize)> {
        self.devices.measured()
    }

    /// Bytes of activations that the largest run so far needed, in the CPU's memory.
    pub fn activation_bytes(&self) -> usize {
        // SAFETY: alive; buffer 0 is the only one of a CPU allocator.
        unsafe { sys::ggml_gallocr_get_buffer_size(self.alloc, 0) }.max(self.devices.host_bytes(self.backend))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // SAFETY: each freed once, the scheduler before the backends it uses, the backend before its pool.
        unsafe {
            self.devices.free();
            sys::ggml_gallocr_free(self.alloc);
            sys::ggml_backend_free(self.backend);
            sys::ggml_threadpool_free(self.pool);
        }
    }
}
