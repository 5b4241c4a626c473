//! Recurrent layers: gradients of convolutions over time and of scans.
//!
//! A scan's backward pass stores states at the ends of chunks of tokens only and computes those inside a chunk again, so its
//! memory is that of the tokens' activations, not tokens times states. The work is divided in a way that the number of threads
//! does not decide: results are the same for every number.

pub(in crate::graph) mod conv;
pub(in crate::graph) mod matrix_scan;
pub(in crate::graph) mod ssm_scan;

/// Numbers of a tensor in host memory, from its first to its last element, gaps included.
///
/// # Safety
/// An F32 tensor in host memory that nothing writes to.
unsafe fn numbers<'a>(t: *const crate::llama::sys::ggml_tensor) -> &'a [f32] {
    // SAFETY: by contract; the extents and strides are the tensor's own.
    unsafe {
        let span: usize = (0..4).map(|i| ((*t).ne[i] as usize - 1) * (*t).nb[i]).sum();
        std::slice::from_raw_parts((*t).data.cast::<f32>(), span / 4 + 1)
    }
}

/// The extents of a tensor.
fn extents(t: &crate::llama::sys::ggml_tensor) -> [usize; 4] {
    t.ne.map(|n| n as usize)
}
