//! The kernels against ggml's own ops and against f64.

use super::cpu;
use super::head::loss_head;
use super::head::task::{Label, LossTask};
use super::products::activations::{self, Layout};
use super::products::int8;
use super::products::quants::TYPES;
use crate::llama::sys;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ffi::c_void;

/// A ggml graph with a weight `[k, n]` and activations `[k, m]`.
struct Bench {
    ctx: *mut sys::ggml_context,
    w: *mut sys::ggml_tensor,
    x: *mut sys::ggml_tensor,
    w_values: Vec<f32>, // [n, k], dequantized
    x_values: Vec<f32>, // [m, k]
    k: usize,
    m: usize,
}

impl Bench {
    fn new(kind: sys::ggml_type, (k, n, m): (usize, usize, usize), scale: f32, rng: &mut ChaCha8Rng) -> Self {
        crate::llama::init();
        let exact: Vec<f32> = (0..n * k).map(|_| rng.random_range(-1.0..1.0)).collect();
        let x_values: Vec<f32> = (0..m * k).map(|_| scale * rng.random_range(-1.0f32..1.0)).collect();
        let mut w_values = vec![0.0; n * k];
        // SAFETY: a context with room for everything; buffers of the tensors' sizes.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: 64 << 20,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: false,
            });
            let w = sys::ggml_new_tensor_2d(ctx, kind, k as i64, n as i64);
            let x = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, k as i64, m as i64);
            sys::ggml_quantize_chunk(kind, exact.as_ptr(), (*w).data, 0, n as i64, k as i64, std::ptr::null());
            let convert = (*sys::ggml_get_type_traits(kind)).to_float.unwrap();
            convert((*w).data, w_values.as_mut_ptr(), (n * k) as i64);
            std::ptr::copy_nonoverlapping(x_values.as_ptr(), (*x).data.cast::<f32>(), m * k);
            Self { ctx, w, x, w_values, x_values, k, m }
        }
    }

    fn custom(
        &self,
        kind: sys::ggml_type,
        ne: [usize; 3],
        src: &[*mut sys::ggml_tensor],
        run: sys::ggml_custom_op_t,
        user: *mut c_void,
    ) -> *mut sys::ggml_tensor {
        let mut src = src.to_vec();
        let ne = ne.map(|n| n as i64);
        // SAFETY: live tensors.
        unsafe {
            let n = src.len() as i32;
            sys::ggml_custom_4d(self.ctx, kind, ne[0], ne[1], ne[2], 1, src.as_mut_ptr(), n, run, -1, user)
        }
    }

    /// Further activations, `[m, k]`.
    fn activations(&self, values: &[f32]) -> *mut sys::ggml_tensor {
        assert_eq!(values.len(), self.m * self.k);
        // SAFETY: a tensor of as many numbers, in a context that holds its data.
        unsafe {
            let x = sys::ggml_new_tensor_2d(self.ctx, sys::GGML_TYPE_F32, self.k as i64, self.m as i64);
            std::ptr::copy_nonoverlapping(values.as_ptr(), (*x).data.cast::<f32>(), values.len());
            x
        }
    }

    fn packed(&self, layout: Layout) -> *mut sys::ggml_tensor {
        self.packed_of(self.x, layout)
    }

    fn packed_of(&self, x: *mut sys::ggml_tensor, layout: Layout) -> *mut sys::ggml_tensor {
        // SAFETY: the weight is alive.
        let kind = unsafe { (*self.w).type_ };
        let bytes = activations::packed_bytes(kind, layout, self.k, self.m).unwrap();
        let task = activations::pack_task(kind, layout);
        self.custom(sys::GGML_TYPE_I8, [bytes, 1, 1], &[x], Some(activations::pack), task)
    }

    /// Computes a tensor with so many threads.
    fn compute(&self, t: *mut sys::ggml_tensor, threads: i32) -> Vec<f32> {
        // SAFETY: the graph's tensors are alive and have data.
        unsafe {
            let graph = sys::ggml_new_graph(self.ctx);
            sys::ggml_build_forward_expand(graph, t);
            assert_eq!(sys::ggml_graph_compute_with_ctx(self.ctx, graph, threads), sys::GGML_STATUS_SUCCESS);
            std::slice::from_raw_parts((*t).data.cast::<f32>(), sys::ggml_nelements(t) as usize).to_vec()
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::ggml_free(self.ctx) };
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Every type, odd sizes, any number of threads: bit-exact with `ggml_mul_mat`.
#[test]
fn matmuls_are_bit_exact_with_ggml() {
    if !cpu::level().has_int8() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for kind in TYPES.into_iter().filter(|&kind| int8::has_exact(kind)) {
        for size in [(32, 1, 8), (64, 5, 9), (96, 33, 16), (576, 50, 13), (1536, 7, 31), (640, 16, 8)] {
            let bench = Bench::new(kind, size, 3.0, &mut rng);
            // SAFETY: live tensors of these shapes.
            let want = bench.compute(unsafe { sys::ggml_mul_mat(bench.ctx, bench.w, bench.x) }, 1);
            for threads in [1, 2, 3, 16] {
                let x = bench.packed(Layout::Pairs);
                let ne = [size.1, size.2, 1];
                let ours = bench.custom(sys::GGML_TYPE_F32, ne, &[bench.w, x], Some(int8::exact), std::ptr::null_mut());
                let got = bench.compute(ours, threads);
                assert_eq!(bits(&got), bits(&want), "type {kind}, {size:?}, {threads} threads");
            }
        }
    }
}

/// Every type, odd sizes, any number of threads: what f64 makes of ggml's quantized activations, closer than F32 can tell from
/// what `ggml_mul_mat` makes of them.
#[test]
fn fast_matmuls_differ_from_ggml_in_reduction_order_only() {
    if !cpu::level().has_int8() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    for kind in TYPES {
        for size in [(256, 1, 8), (512, 16, 9), (256, 33, 16), (1536, 50, 13), (768, 95, 31), (2048, 48, 1)] {
            let bench = Bench::new(kind, size, 3.0, &mut rng);
            // SAFETY: live tensors of these shapes.
            let want = bench.compute(unsafe { sys::ggml_mul_mat(bench.ctx, bench.w, bench.x) }, 1);
            let scale = want.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let mut first = None;
            for threads in [1, 2, 3, 16] {
                let x = bench.packed(Layout::Columns);
                let ne = [size.1, size.2, 1];
                let ours = bench.custom(sys::GGML_TYPE_F32, ne, &[bench.w, x], Some(int8::fast), std::ptr::null_mut());
                let got = bench.compute(ours, threads);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let what = format!("type {kind}, {size:?}, {threads} threads, number {i}");
                    assert!((got - want).abs() <= 2e-6 * scale * (size.0 as f32).sqrt(), "{what}: {got} for {want}");
                }
                assert!(*first.get_or_insert_with(|| bits(&got)) == bits(&got), "{threads} threads give other bits");
            }
        }
    }
}

fn same_bits(a: &[f64], b: &[f64]) -> bool {
    a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()))
}

/// The divergence from a reference and its gradient, against f64 from ggml's own logits: a reference that is near, one that is
/// far, and the policy itself, from which it differs by nothing at all.
#[test]
fn fused_divergence_against_f64() {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    for kind in TYPES.into_iter().filter(|&kind| loss_head::can_fuse(kind)) {
        for ((k, n, m), scale, apart) in [
            ((256, 1000, 7), 0.3, 0.5),
            ((512, 130, 20), 3.0, 0.1),
            ((256, 333, 9), 20.0, 1.0),
            ((256, 200, 3), 1.0, 0.0),
        ] {
            let bench = Bench::new(kind, (k, n, m), scale, &mut rng);
            let near: Vec<f32> =
                bench.x_values.iter().map(|x| x + apart * scale * rng.random_range(-1.0..1.0)).collect();
            let reference = bench.activations(&near);
            let labels: Vec<Label> = (0..m as u32)
                .filter(|row| *row != 5)
                .map(|row| Label { row, token: rng.random_range(0..n as u32), coef: [-0.5, 2.0][row as usize % 2] })
                .collect();
            // SAFETY: live tensors of these shapes.
            let [zq, zp] =
                [bench.x, reference].map(|x| bench.compute(unsafe { sys::ggml_mul_mat(bench.ctx, bench.w, x) }, 1));
            let row = |z: &[f32], row: u32| -> (Vec<f64>, f64) {
                let z: Vec<f64> = z[row as usize * n..][..n].iter().map(|&z| f64::from(z)).collect();
                let max = z.iter().copied().fold(f64::MIN, f64::max);
                let log_z = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
                (z, log_z)
            };
            let (mut want_kl, mut want) = (Vec::new(), vec![0.0f64; m * k]);
            for label in &labels {
                let ((q, log_q), (p, log_p)) = (row(&zq, label.row), row(&zp, label.row));
                want_kl.push(p.iter().zip(&q).map(|(p, q)| (p - log_p).exp() * (p - log_p - q + log_q)).sum::<f64>());
                let out = &mut want[label.row as usize * k..][..k];
                for (v, (p, q)) in p.iter().zip(&q).enumerate() {
                    let factor = f64::from(label.coef) * ((p - log_p).exp() - (q - log_q).exp());
                    out.iter_mut().zip(&bench.w_values[v * k..]).for_each(|(out, w)| *out += factor * f64::from(*w));
                }
            }
            let mut of_one = None;
            for threads in [1usize, 2, 16] {
                let mut task = LossTask::new(&labels, None, threads);
                task.grad = true;
                let user = (&raw mut task).cast::<c_void>();
                let (x, r) = (bench.packed(Layout::Columns), bench.packed_of(reference, Layout::Columns));
                let partial =
                    bench.custom(sys::GGML_TYPE_F32, [k, 2 * m, 1], &[bench.w, x, r], Some(loss_head::partial), user);
                let head =
                    bench.custom(sys::GGML_TYPE_F32, [k, m, 1], &[partial, bench.w], Some(loss_head::finish), user);
                let got = bench.compute(head, threads as i32);
                let what = format!("type {kind}, {n} x {k}, {m} rows, {threads} threads");
                let (kl, grads) = of_one.get_or_insert_with(|| (task.divergences.clone(), got.clone()));
                assert!(same_bits(&task.divergences, kl) && *grads == got, "{what}: other bits than one thread's");
                for (got, want) in task.divergences.iter().zip(&want_kl) {
                    assert!((got - want).abs() <= 2e-5 + 1e-4 * want, "{what}: KL {got} for {want}");
                }
                if apart == 0.0 {
                    assert!(task.divergences.iter().all(|d| *d == 0.0) && got.iter().all(|g| *g == 0.0), "{what}");
                }
                for (row, (got, want)) in got.chunks(k).zip(want.chunks(k)).enumerate() {
                    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                    let error = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w));
                    let size = norm(&mut want.iter().copied());
                    assert!(error <= 1e-2 * size + 1e-3, "{what}: row {row}: {error} of {size}");
                }
            }
        }
    }
}

/// Log-probabilities and the gradient of the fused head, against f64 from ggml's own logits: with small and large logits,
/// labels far below the maximum, rows of two labels that cancel, rows without a label, tiles that are not full.
#[test]
fn fused_lm_head_loss_against_f64() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    for kind in TYPES.into_iter().filter(|&kind| loss_head::can_fuse(kind)) {
        for ((k, n, m), scale) in
            [((256, 1000, 7), 0.3), ((512, 130, 20), 3.0), ((256, 64, 1), 1.0), ((256, 333, 9), 60.0)]
        {
            let bench = Bench::new(kind, (k, n, m), scale, &mut rng);
            let mut labels = Vec::new();
            for row in (0..m as u32).filter(|row| *row != 3) {
                let mut label = |coef| labels.push(Label { row, token: rng.random_range(0..n as u32), coef });
                match row % 4 {
                    0 => label(1.0),
                    1 => label(-1.0),
                    _ => (label(1.0), label(-1.0)).1,
                }
            }
            // SAFETY: live tensors of these shapes.
            let logits = bench.compute(unsafe { sys::ggml_mul_mat(bench.ctx, bench.w, bench.x) }, 1);
            let (mut want_logp, mut want) = (Vec::new(), vec![0.0f64; m * k]);
            for label in &labels {
                let z: Vec<f64> = logits[label.row as usize * n..][..n].iter().map(|&z| f64::from(z)).collect();
                let max = z.iter().copied().fold(f64::MIN, f64::max);
                let log_z = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
                want_logp.push(z[label.token as usize] - log_z);
                let out = &mut want[label.row as usize * k..][..k];
                for (v, z) in z.iter().enumerate() {
                    let hit = f64::from(u8::from(v == label.token as usize));
                    let factor = f64::from(label.coef) * (hit - (z - log_z).exp());
                    for (out, w) in out.iter_mut().zip(&bench.w_values[v * k..]) {
                        *out += factor * f64::from(*w);
                    }
                }
            }
            let mut of_one = None;
            for threads in [1usize, 2, 3, 16] {
                let mut task = LossTask::new(&labels, None, threads);
                task.grad = true;
                let user = (&raw mut task).cast::<c_void>();
                let x = bench.packed(Layout::Columns);
                let partial =
                    bench.custom(sys::GGML_TYPE_F32, [k, m, 1], &[bench.w, x], Some(loss_head::partial), user);
                let head =
                    bench.custom(sys::GGML_TYPE_F32, [k, m, 1], &[partial, bench.w], Some(loss_head::finish), user);
                let got = bench.compute(head, threads as i32);
                let what = format!("type {kind}, {n} x {k}, {m} rows, {threads} threads");
                let (log_probs, grads) = of_one.get_or_insert_with(|| (task.log_probs.clone(), got.clone()));
                assert!(same_bits(&task.log_probs, log_probs) && *grads == got, "{what}: other bits than one thread's");
                for (got, want) in task.log_probs.iter().zip(&want_logp) {
                    assert!((got - want).abs() <= 2e-5 * (1.0 + want.abs()), "{what}: log p {got} for {want}");
                }
                for (row, (got, want)) in got.chunks(k).zip(want.chunks(k)).enumerate() {
                    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                    let error = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w));
                    let size = norm(&mut want.iter().copied());
                    assert!(error <= 4e-3 * size + 2e-4, "{what}: row {row}: {error} of {size}");
                }
            }
        }
    }
}
