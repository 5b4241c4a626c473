//! The threads of a context.

use crate::llama::sys;

/// A pool of threads that lives as long as its context. Without one ggml would start new threads for each graph that it
/// computes, and llama.cpp computes many of them where a callback looks at the nodes.
///
/// Where llama.cpp is built with OpenMP (Linux), that keeps the threads; they sleep by themselves (`csrc/waiting.cpp`), and pausing
/// does nothing.
#[derive(Debug)]
pub struct Pool {
    raw: *mut sys::ggml_threadpool,
    n_threads: u32,
}

// SAFETY: as for the context that owns it: used by one thread at a time.
unsafe impl Send for Pool {}

impl Pool {
    /// `n_threads` threads, asleep; None where they cannot be started.
    pub(in crate::llama) fn new(n_threads: u32) -> Option<Self> {
        // SAFETY: plain parameters; what is made is checked, owned by self and freed in drop.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n_threads as i32);
            params.paused = true;
            sys::ggml_threadpool_new(&raw mut params)
        };
        (!raw.is_null()).then_some(Self { raw, n_threads })
    }

    /// Puts the threads to sleep. They wake by themselves with the next graph; until they sleep they wait by spinning,
    /// which takes the cores from whatever else computes.
    pub(in crate::llama) fn pause(&self) {
        // SAFETY: alive, and no graph runs now.
        unsafe { sys::ggml_threadpool_pause(self.raw) };
    }

    /// Wakes them before the first graph: what is measured is not their waking.
    pub(in crate::llama) fn resume(&self) {
        // SAFETY: as above.
        unsafe { sys::ggml_threadpool_resume(self.raw) };
    }

    /// ggml's handle, alive as long as the pool.
    pub fn raw(&self) -> *mut sys::ggml_threadpool {
        self.raw
    }

    /// Number of threads.
    pub fn n_threads(&self) -> u32 {
        self.n_threads
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: freed once; a context's pool is freed after the context.
        unsafe { sys::ggml_threadpool_free(self.raw) };
    }
}
