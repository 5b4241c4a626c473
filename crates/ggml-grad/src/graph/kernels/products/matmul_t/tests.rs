//! Tests of the transposed matmul.

use super::*;
use crate::graph::kernels::cpu::tests::at_every_level;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A weight of `n` rows of `k` random numbers in a type of ggml's, and what it dequantizes to.
struct Weight {
    kind: sys::ggml_type,
    bytes: Vec<u8>,
    values: Vec<f32>, // [n, k]
    k: usize,
    n: usize,
}

impl Weight {
    fn new(kind: sys::ggml_type, k: usize, n: usize, rng: &mut ChaCha8Rng) -> Self {
        crate::llama::init();
        let exact: Vec<f32> = (0..n * k).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut values = exact.clone();
        // SAFETY: the buffers hold n rows of k numbers, k a multiple of the type's block.
        unsafe {
            assert_eq!(k % sys::ggml_blck_size(kind) as usize, 0);
            let mut bytes = vec![0u8; n * sys::ggml_row_size(kind, k as i64)];
            let to = bytes.as_mut_ptr().cast::<c_void>();
            // Some types insist on weights of importance.
            let importance = vec![1.0f32; k];
            sys::ggml_quantize_chunk(kind, exact.as_ptr(), to, 0, n as i64, k as i64, importance.as_ptr());
            if let Some(convert) = (*sys::ggml_get_type_traits(kind)).to_float {
                convert(bytes.as_ptr().cast::<c_void>(), values.as_mut_ptr(), (n * k) as i64);
            }
            Self { kind, bytes, values, k, n }
        }
    }

    /// `W^T g` by the op with `nth` workers, one after the other: a number that two of them write would be lost.
    fn product(&mut self, g: &mut [f32], nth: usize) -> Vec<f32> {
        self.product_in(false, g, nth)
    }

    /// The same, in BF16 if `half`.
    fn product_in(&mut self, half: bool, g: &mut [f32], nth: usize) -> Vec<f32> {
        let (k, n, m) = (self.k, self.n, g.len() / self.n);
        let mut d = vec![f32::NAN; m * k];
        // SAFETY: tensors without memory of their own, pointed at buffers of their size; freed with the context.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 5,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            let tensor = |kind, ne0: usize, ne1: usize, data: *mut c_void| {
                let t = sys::ggml_new_tensor_2d(ctx, kind, ne0 as i64, ne1 as i64);
                (*t).data = data;
                t
            };
            let dst = tensor(sys::GGML_TYPE_F32, k, m, d.as_mut_ptr().cast());
            (*dst).src[0] = tensor(self.kind, k, n, self.bytes.as_mut_ptr().cast());
            (*dst).src[1] = tensor(sys::GGML_TYPE_F32, n, m, g.as_mut_ptr().cast());
            for ith in 0..nth {
                run(dst, ith as c_int, nth as c_int, task(half));
            }
            // With something to add, the sum of both, to the rounding of one more addition.
            let mut more: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 8.0).collect();
            let alone = d.clone();
            (*dst).src[2] = tensor(sys::GGML_TYPE_F32, k, m, more.as_mut_ptr().cast());
            for ith in 0..nth {
                run(dst, ith as c_int, nth as c_int, task(half));
            }
            let size = alone.iter().fold(8.0f32, |max, x| max.max(x.abs()));
            for ((sum, x), more) in d.iter().zip(&alone).zip(&more) {
                let close = (sum - (x + more)).abs() <= 1e-5 * size;
                assert!(close || x.is_nan() && sum.is_nan(), "{sum} for {x} + {more}");
            }
            sys::ggml_free(ctx);
            d = alone;
        }
        d
    }

    /// The same product in f64, and for each number the sum of its terms' magnitudes.
    fn exact(&self, g: &[f32]) -> Vec<(f64, f64)> {
        let (k, n) = (self.k, self.n);
        let mut out = Vec::new();
        for g in g.chunks_exact(n) {
            for column in 0..k {
                let terms = (0..n).map(|r| f64::from(g[r]) * f64::from(self.values[r * k + column]));
                out.push(terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs())));
            }
        }
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// F32 sums of up to some hundred terms: a few units in the last place of the terms' magnitudes.
fn assert_exact(got: &[f32], want: &[(f64, f64)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
        // Written so that NaN fails.
        assert!((f64::from(*got) - want).abs() <= 2e-6 * size, "{what}: number {i} is {got}, not {want}");
    }
}

/// Sizes at the edges: one row, one column, a panel and one more, parts of a tile on either side, more workers than
/// column units. The bytes may not depend on the number of workers.
#[test]
fn every_type_and_edge_against_f64() {
    at_every_level(|_| every_type_and_edge_against_f64_here());
}

fn every_type_and_edge_against_f64_here() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let types = [
        (sys::GGML_TYPE_F32, &[1, 15, 17, 64, 200][..]),
        (sys::GGML_TYPE_F16, &[1, 50, 64, 130]),
        (sys::GGML_TYPE_BF16, &[48, 65]),
        (sys::GGML_TYPE_Q4_0, &[32, 96, 192]),
        (sys::GGML_TYPE_Q4_1, &[32, 160]),
        (sys::GGML_TYPE_Q5_0, &[64, 224]),
        (sys::GGML_TYPE_Q8_0, &[32, 288]),
        (sys::GGML_TYPE_Q5_1, &[32, 96]),
        (sys::GGML_TYPE_Q2_K, &[256]),
        (sys::GGML_TYPE_Q3_K, &[512]),
        (sys::GGML_TYPE_Q4_K, &[256, 768]),
        (sys::GGML_TYPE_Q5_K, &[256]),
        (sys::GGML_TYPE_Q6_K, &[256, 512]),
        (sys::GGML_TYPE_IQ4_NL, &[96]),
        (sys::GGML_TYPE_IQ4_XS, &[256]),
        (sys::GGML_TYPE_MXFP4, &[64]),
        (sys::GGML_TYPE_TQ1_0, &[256]),
        (sys::GGML_TYPE_TQ2_0, &[256]),
    ];
    for (kind, widths) in types {
        for &k in widths {
            for (n, m) in [(1, 1), (1, 7), (63, 5), (64, 6), (65, 13), (130, 2)] {
                let mut w = Weight::new(kind, k, n, &mut rng);
                let mut g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
                let one = w.product(&mut g, 1);
                let what = format!("type {kind}, {n} rows of {k}, {m} rows of g");
                assert_exact(&one, &w.exact(&g), &what);
                for nth in [2, 3, 5, 16] {
                    assert_eq!(bits(&w.product(&mut g, nth)), bits(&one), "{what}: {nth} threads");
                }
            }
        }
    }
}

/// Each term is off by at most two roundings of 2^-8; weights that are not quantized stay as they are.
#[test]
fn bf16_against_f64() {
    at_every_level(|_| bf16_against_f64_here());
}

fn bf16_against_f64_here() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let types = [
        (sys::GGML_TYPE_F32, &[64, 90][..]),
        (sys::GGML_TYPE_Q4_0, &[32, 160]),
        (sys::GGML_TYPE_Q4_1, &[96, 576]),
        (sys::GGML_TYPE_Q5_0, &[224]),
        (sys::GGML_TYPE_Q5_1, &[96]),
        (sys::GGML_TYPE_Q8_0, &[32, 288]),
        (sys::GGML_TYPE_IQ4_NL, &[64]),
        (sys::GGML_TYPE_Q4_K, &[768]),
        (sys::GGML_TYPE_Q5_K, &[256]),
        (sys::GGML_TYPE_Q6_K, &[512]),
        (sys::GGML_TYPE_Q3_K, &[256]),
    ];
    for (kind, widths) in types {
        for &k in widths {
            for (n, m) in [(1, 1), (2, 7), (63, 5), (64, 6), (131, 13)] {
                let mut w = Weight::new(kind, k, n, &mut rng);
                let mut g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
                let one = w.product_in(true, &mut g, 1);
                let rounds = !bits(&one).eq(&bits(&w.product(&mut g, 1)));
                assert!(!rounds || Format::of(kind).is_some(), "type {kind} was rounded");
                for (i, (got, (want, size))) in one.iter().zip(w.exact(&g)).enumerate() {
                    assert!((f64::from(*got) - want).abs() <= size / 127.0, "{kind}, {n} x {k}: {i}: {got}, {want}");
                }
                for nth in [2, 3, 5, 16] {
                    assert_eq!(bits(&w.product_in(true, &mut g, nth)), bits(&one), "type {kind}: {nth} threads");
                }
                g[0] = f32::NAN;
                assert!(w.product_in(true, &mut g, 1)[..k].iter().all(|x| x.is_nan()), "NaN is lost");
            }
        }
    }
}

/// The types that are slow to quantize to, with one shape each.
#[test]
fn types_of_few_bits_against_f64() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for kind in [
        sys::GGML_TYPE_IQ1_S,
        sys::GGML_TYPE_IQ1_M,
        sys::GGML_TYPE_IQ2_XXS,
        sys::GGML_TYPE_IQ2_XS,
        sys::GGML_TYPE_IQ2_S,
        sys::GGML_TYPE_IQ3_XXS,
        sys::GGML_TYPE_IQ3_S,
    ] {
        let mut w = Weight::new(kind, 512, 3, &mut rng);
        let mut g: Vec<f32> = (0..3 * 7).map(|_| rng.random_range(-1.0..1.0)).collect();
        let one = w.product(&mut g, 1);
        assert_exact(&one, &w.exact(&g), &format!("type {kind}"));
        assert_eq!(bits(&w.product(&mut g, 2)), bits(&one), "type {kind}: 2 threads");
    }
}

/// One of several matrices for each plane of g, or for each row: against the products with one matrix.
#[test]
fn several_matrices() {
    at_every_level(|_| several_matrices_here());
}

fn several_matrices_here() {
    const EXPERTS: usize = 3;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (kind, k, n) in [(sys::GGML_TYPE_F32, 150, 7), (sys::GGML_TYPE_Q4_K, 512, 70), (sys::GGML_TYPE_Q8_0, 96, 5)] {
        let matrices: Vec<Weight> = (0..EXPERTS).map(|_| Weight::new(kind, k, n, &mut rng)).collect();
        let mut bytes: Vec<u8> = matrices.iter().flat_map(|w| w.bytes.clone()).collect();
        // Planes: two of g to each matrix. Rows: slots and tokens, with a number that names no matrix.
        let (m, planes) = (4, 2 * EXPERTS);
        let mut ids: Vec<i32> = (0..m * planes).map(|_| rng.random_range(0..EXPERTS as i32)).collect();
        ids[5] = 99;
        let mut g: Vec<f32> = (0..n * m * planes).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut want = [Vec::new(), Vec::new()];
        for (row, g) in g.chunks_exact(n).enumerate() {
            want[0].extend(matrices[row / m / 2].exact(g));
            match matrices.get(ids[row] as usize) {
                Some(w) => want[1].extend(w.exact(g)),
                None => want[1].extend(vec![(0.0, 0.0); k]),
            }
        }
        for (by_row, want) in [false, true].into_iter().zip(&want) {
            for nth in [1, 2, 5, 16] {
                let mut d = vec![f32::NAN; k * m * planes];
                // SAFETY: as in `product`.
                unsafe {
                    let ctx = sys::ggml_init(sys::ggml_init_params {
                        mem_size: sys::ggml_tensor_overhead() * 5,
                        mem_buffer: std::ptr::null_mut(),
                        no_alloc: true,
                    });
                    let tensor = |kind, ne: [usize; 3], data: *mut c_void| {
                        let t = sys::ggml_new_tensor_3d(ctx, kind, ne[0] as i64, ne[1] as i64, ne[2] as i64);
                        (*t).data = data;
                        t
                    };
                    let dst = tensor(sys::GGML_TYPE_F32, [k, m, planes], d.as_mut_ptr().cast());
                    (*dst).src[0] = tensor(kind, [k, n, EXPERTS], bytes.as_mut_ptr().cast());
                    (*dst).src[1] = tensor(sys::GGML_TYPE_F32, [n, m, planes], g.as_mut_ptr().cast());
                    if by_row {
                        (*dst).src[2] = tensor(sys::GGML_TYPE_I32, [m, planes, 1], ids.as_mut_ptr().cast());
                    }
                    for ith in 0..nth {
                        let op = if by_row { run_id } else { run };
                        op(dst, ith, nth, std::ptr::null_mut());
                    }
                    sys::ggml_free(ctx);
                }
                assert_exact(&d, want, &format!("type {kind}, {nth} threads, by row {by_row}"));
            }
        }
    }
}

#[test]
fn every_level_agrees() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (k, n, m) in [(150, 40, 13), (64, 64, 6), (9, 1, 1)] {
        let w = Weight::new(sys::GGML_TYPE_F32, k, n, &mut rng);
        let g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
        let product = |which: unsafe fn(&Part<'_>)| {
            let mut d = vec![0.0; m * k];
            let part = Part {
                panel: &w.values,
                width: k,
                rows: n,
                g: &g,
                n,
                n0: 0,
                m0: 0,
                m1: m,
                d: d.as_mut_ptr(),
                stride: k,
            };
            // SAFETY: d holds m rows of k numbers; the caller checks the CPU's features.
            unsafe { which(&part) };
            d
        };
        let want = w.exact(&g);
        // SAFETY: the part is intact.
        at_every_level(|level| assert_exact(&product(|p| unsafe { p.accumulate() }), &want, level.name()));
    }
}
