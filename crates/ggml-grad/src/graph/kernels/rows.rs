//! Rows added up where integers say: the gradient of taking rows out of several matrices.

use super::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// The custom op: src0 = g `[n, m, a, b]`, src1 = row numbers `[m, a, b]`, dst `[n, rows, a, b]` = for each matrix the sum
/// of the rows of g that go to each row. A number beyond the rows adds to none.
pub(in crate::graph) unsafe extern "C" fn scatter(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: `emit` passes F32 tensors g and dst, contiguous, and I32 numbers with any strides, all in host memory.
    // Workers take disjoint matrices of dst.
    unsafe {
        let (d, g, ids) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let [n, rows, a, b] = d.ne.map(|x| x as usize);
        let m = g.ne[1] as usize;
        let (from, to) = share(a * b, ith as usize, nth as usize);
        for matrix in from..to {
            let (i2, i3) = (matrix % a, matrix / a);
            let out = std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(matrix * n * rows), n * rows);
            out.fill(0.0);
            for i in 0..m {
                let at = ids.data.cast::<u8>().add(i * ids.nb[0] + i2 * ids.nb[1] + i3 * ids.nb[2]);
                let row = at.cast::<i32>().read_unaligned() as usize;
                let source = std::slice::from_raw_parts(g.data.cast::<f32>().add((matrix * m + i) * n), n);
                if let Some(to) = out.get_mut(row.saturating_mul(n)..).and_then(|rest| rest.get_mut(..n)) {
                    to.iter_mut().zip(source).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    }
}
