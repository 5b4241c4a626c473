//! Int8 matmuls of quantized weights with quantized activations, in the integer arithmetic that ggml uses for them.
//!
//! [`exact`] is bit-exact with ggml: each element of the result is eight F32 sums, one for each four bytes of a block in
//! turn, added up in ggml's order. It is faster because each weight is unpacked once for all tokens. [`Columns`] adds up a
//! block in integers before it continues in F32: fewer roundings than ggml's sums, but not the same ones.

use crate::graph::kernels::products::activations::{Layout, Packed, TILE_COLUMNS};
use crate::graph::kernels::products::quants::Format;
#[cfg(target_arch = "x86_64")]
use crate::graph::kernels::products::transpose::transpose16;
use crate::graph::kernels::{grid, share};
use crate::llama::sys;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// Rows of a tile of [`exact`].
const TILE_ROWS: usize = 4;
/// Rows of weights that [`exact`] unpacks at once.
const PANEL_ROWS: usize = 16;

/// Unpacked rows of weights.
#[derive(Default)]
pub(in crate::graph::kernels) struct Rows {
    k: usize,
    groups: usize,
    u: Vec<u8>,      // [rows, k]
    scale: Vec<f32>, // [rows, groups]
    min: Vec<f32>,   // [rows, groups]
}

impl Rows {
    /// Room for `rows` rows of `k` numbers.
    pub(in crate::graph::kernels) fn resize(&mut self, rows: usize, k: usize, groups: usize) {
        (self.k, self.groups) = (k, groups);
        self.u.resize(rows * k, 0);
        self.scale.resize(rows * groups, 0.0);
        self.min.resize(rows * groups, 0.0);
    }

    /// Unpacks a stored row, to be row `at`.
    pub(in crate::graph::kernels) fn unpack(&mut self, format: &Format, stored: &[u8], at: usize) {
        let (u, groups) = (at * self.k..(at + 1) * self.k, at * self.groups..(at + 1) * self.groups);
        format.unpack_row(stored, &mut self.u[u], &mut self.scale[groups.clone()], &mut self.min[groups]);
    }

    /// An unpacked row.
    pub(in crate::graph::kernels) fn row(&self, format: Format, r: usize) -> Row<'_> {
        let groups = r * self.groups..(r + 1) * self.groups;
        Row {
            format,
            u: &self.u[r * self.k..(r + 1) * self.k],
            scale: &self.scale[groups.clone()],
            min: &self.min[groups],
        }
    }
}

/// # Safety
/// `row` points to a stored row of `k` numbers that stays.
unsafe fn stored<'a>(format: &Format, row: *const u8, k: usize) -> &'a [u8] {
    // SAFETY: by contract.
    unsafe { std::slice::from_raw_parts(row, k / format.block * format.bytes) }
}

thread_local! {
    static ROWS: RefCell<Rows> = RefCell::default();
}

/// True for the types that [`exact`] multiplies.
pub(in crate::graph) fn has_exact(kind: sys::ggml_type) -> bool {
    Format::of(kind).is_some_and(|f| f.block == 32)
}

/// The custom op: src0 = W `[k, n]` of a type of [`has_exact`], src1 = activations in [`Layout::Pairs`], dst `[n, m]` F32.
pub(in crate::graph) unsafe extern "C" fn exact(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: `emit` builds the node with these shapes, on a CPU that has the instructions; workers write disjoint columns
    // of the rows of dst.
    unsafe {
        let (d, w, x) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let Some(format) = Format::of(w.type_) else { return };
        let [k, n] = [w.ne[0] as usize, w.ne[1] as usize];
        let packed = Packed::new(format, Layout::Pairs, k, (d.ne[1] * d.ne[2] * d.ne[3]) as usize);
        let groups = packed.groups();
        let (t0, t1) = share(n.div_ceil(TILE_ROWS), ith as usize, nth as usize);
        let (r0, r1) = (t0 * TILE_ROWS, (t1 * TILE_ROWS).min(n));
        ROWS.with_borrow_mut(|rows| {
            rows.resize(PANEL_ROWS, k, groups);
            for first in (r0..r1).step_by(PANEL_ROWS) {
                let count = PANEL_ROWS.min(r1 - first);
                for r in 0..count {
                    rows.unpack(&format, stored(&format, w.data.cast::<u8>().add((first + r) * w.nb[1]), k), r);
                }
                let to = d.data.cast::<f32>().add(first);
                for tile in 0..packed.columns() / TILE_COLUMNS {
                    for r in (0..count).step_by(TILE_ROWS) {
                        let sums = exact_tile(rows, r, &packed, x.data.cast::<u8>(), tile);
                        let columns = TILE_COLUMNS.min(packed.m - tile * TILE_COLUMNS);
                        let to = to.add(tile * TILE_COLUMNS * n + r);
                        let here = TILE_ROWS.min(count - r);
                        for (c, column) in sums.iter().enumerate().take(columns) {
                            // Of a length that the compiler knows: sixteen bytes are no work for a function.
                            if here == TILE_ROWS {
                                to.add(c * n).cast::<[f32; TILE_ROWS]>().write_unaligned(*column);
                            } else {
                                std::ptr::copy_nonoverlapping(column.as_ptr(), to.add(c * n), here);
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Rows of weights that [`fast`] unpacks at once.
const FAST_ROWS: usize = 32;

/// True for the types that [`fast`] multiplies.
pub(in crate::graph) fn has_fast(kind: sys::ggml_type) -> bool {
    Format::of(kind).is_some()
}

/// The custom op: src0 = W `[k, n]` of a type of [`has_fast`], src1 = activations in [`Layout::Columns`], dst `[n, m]` F32.
pub(in crate::graph) unsafe extern "C" fn fast(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    thread_local! {
        static PANEL: RefCell<Option<(sys::ggml_type, Columns)>> = const { RefCell::new(None) };
    }
    // SAFETY: `emit` builds the node with these shapes, on a CPU that has the instructions; workers write disjoint columns
    // of the rows of dst.
    unsafe {
        let (d, w, x) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let Some(format) = Format::of(w.type_) else { return };
        let [k, n] = [w.ne[0] as usize, w.ne[1] as usize];
        let packed = Packed::new(format, Layout::Columns, k, (d.ne[1] * d.ne[2] * d.ne[3]) as usize);
        let m = packed.m;
        // For each four numbers of a row, in cycles: matmuls, by thirty-two rows and four columns, and rows unpacked.
        let cost = |sixteens: usize, fours: usize| {
            let tiles = (sixteens / 2) as f64 + if sixteens.is_multiple_of(2) { 0.0 } else { 0.6 };
            8.0 * tiles * fours as f64 + 20.0 * sixteens as f64
        };
        let (sixteens, fours) = (n.div_ceil(Columns::LANES), m.div_ceil(4));
        let (_, across, down) = grid(sixteens, fours, nth as usize, cost);
        let ith = ith as usize;
        if ith >= across * down {
            return;
        }
        let (t0, t1) = share(sixteens, ith % across, across);
        let (r0, r1) = (t0 * Columns::LANES, (t1 * Columns::LANES).min(n));
        let (f0, f1) = share(fours, ith / across, down);
        let (c0, c1) = (4 * f0, (4 * f1).min(m));
        PANEL.with_borrow_mut(|panel| {
            let panel = match panel {
                Some((kind, columns)) if *kind == w.type_ && columns.k == k => columns,
                _ => &mut panel.insert((w.type_, Columns::new(format, k))).1,
            };
            for first in (r0..r1).step_by(FAST_ROWS) {
                let count = FAST_ROWS.min(r1 - first);
                panel.load(w.data.cast::<u8>().add(first * w.nb[1]), w.nb[1], count);
                let to = d.data.cast::<f32>().add(first + c0 * n);
                if count.is_multiple_of(Columns::LANES) {
                    panel.multiply(&packed, x.data.cast(), (c0, c1), to, n);
                    continue;
                }
                // The last sixteen are not whole: by way of a buffer.
                let width = count.next_multiple_of(Columns::LANES);
                let mut buffer = vec![0.0f32; (c1 - c0) * width];
                panel.multiply(&packed, x.data.cast(), (c0, c1), buffer.as_mut_ptr(), width);
                for (c, column) in buffer.chunks_exact(width).enumerate() {
                    std::ptr::copy_nonoverlapping(column.as_ptr(), to.add(c * n), count);
                }
            }
        });
    }
}

/// Four rows, from row `r` of the panel, by the eight columns of a tile: `[column][row]`.
#[cfg(target_arch = "x86_64")]
unsafe fn exact_tile(rows: &Rows, r: usize, packed: &Packed, x: *const u8, tile: usize) -> [[f32; 4]; 8] {
    // SAFETY: `emit` uses the op only where the CPU has these instructions.
    unsafe {
        if packed.format.has_min {
            exact_tile_of::<true>(rows, r, packed, x, tile)
        } else {
            exact_tile_of::<false>(rows, r, packed, x, tile)
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn exact_tile(_: &Rows, _: usize, _: &Packed, _: *const u8, _: usize) -> [[f32; 4]; 8] {
    unreachable!("the op is built only where the CPU has the instructions")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn exact_tile_of<const MIN: bool>(
    rows: &Rows,
    r: usize,
    packed: &Packed,
    x: *const u8,
    tile: usize,
) -> [[f32; 4]; 8] {
    use x86::*;
    const PAIRS: usize = TILE_COLUMNS / 2;
    // SAFETY: the panel holds rows r..r+4 (those beyond the matrix are old bytes, whose sums nobody reads), the packed
    // activations the tile's eight columns.
    unsafe {
        let (k, groups, record) = (packed.k, packed.groups(), packed.record());
        let u: [*const u8; TILE_ROWS] = std::array::from_fn(|i| rows.u.as_ptr().add((r + i) * k));
        let scale: [*const f32; TILE_ROWS] = std::array::from_fn(|i| rows.scale.as_ptr().add((r + i) * groups));
        let min: [*const f32; TILE_ROWS] = std::array::from_fn(|i| rows.min.as_ptr().add((r + i) * groups));
        let pairs: [*const u8; PAIRS] = std::array::from_fn(|p| x.add((tile * PAIRS + p) * groups * record));
        let sums = x.add(packed.second()).cast::<f32>().add(tile * groups * TILE_COLUMNS);
        let mut acc = [[_mm512_setzero_ps(); PAIRS]; TILE_ROWS];
        let mut mins = [_mm256_setzero_ps(); TILE_ROWS];
        for b in 0..groups {
            let w: [__m512i; TILE_ROWS] =
                std::array::from_fn(|i| _mm512_broadcast_i64x4(_mm256_loadu_si256(u[i].add(32 * b).cast())));
            let dw: [__m512; TILE_ROWS] = std::array::from_fn(|i| _mm512_set1_ps(*scale[i].add(b)));
            for p in 0..PAIRS {
                let at = pairs[p].add(b * record);
                let q = _mm512_loadu_si512(at.cast());
                let (correct, dx) = if MIN {
                    (_mm512_setzero_si512(), _mm512_loadu_ps(at.add(64).cast()))
                } else {
                    (_mm512_loadu_si512(at.add(64).cast()), _mm512_loadu_ps(at.add(128).cast()))
                };
                for i in 0..TILE_ROWS {
                    let dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(correct, w[i], q));
                    acc[i][p] = _mm512_fmadd_ps(_mm512_mul_ps(dw[i], dx), dot, acc[i][p]);
                }
            }
            if MIN {
                let s = _mm256_loadu_ps(sums.add(b * TILE_COLUMNS));
                for i in 0..TILE_ROWS {
                    mins[i] = _mm256_fmadd_ps(_mm256_set1_ps(*min[i].add(b)), s, mins[i]);
                }
            }
        }
        // The eight lanes of each number in ggml's order: halves, then halves of those, then the last two.
        let mut out = [[0.0f32; TILE_ROWS]; TILE_COLUMNS];
        for p in 0..PAIRS {
            let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
            let (ab, cd) = (halves(acc[0][p], acc[1][p]), halves(acc[2][p], acc[3][p]));
            let two = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
            let one = _mm512_add_ps(_mm512_shuffle_ps(two, two, 0x88), _mm512_shuffle_ps(two, two, 0xdd));
            let mut f = [0.0f32; 16];
            _mm512_storeu_ps(f.as_mut_ptr(), one);
            out[2 * p] = [f[0], f[8], f[1], f[9]];
            out[2 * p + 1] = [f[4], f[12], f[5], f[13]];
        }
        if MIN {
            for i in 0..TILE_ROWS {
                let mut s = [0.0f32; TILE_COLUMNS];
                _mm256_storeu_ps(s.as_mut_ptr(), mins[i]);
                for (out, s) in out.iter_mut().zip(s) {
                    out[i] += s;
                }
            }
        }
        out
    }
}

/// Rows of weights in groups of sixteen, one lane a row, to be multiplied with [`Layout::Columns`].
pub(in crate::graph::kernels) struct Columns {
    format: Format,
    k: usize,
    groups: usize,
    /// Rows as they come out of the format; kept for whoever needs the numbers themselves.
    rows: Rows,
    w: Vec<u32>,     // [rows / 16, k / 4, 16]: four numbers of a row
    scale: Vec<f32>, // [rows / 16, groups, 16]
    min: Vec<f32>,   // [rows / 16, groups, 16]
}

impl Columns {
    /// Rows that share the lanes of a register.
    pub(in crate::graph::kernels) const LANES: usize = 16;

    pub(in crate::graph::kernels) fn new(format: Format, k: usize) -> Self {
        Self {
            format,
            k,
            groups: k / format.group,
            rows: Rows::default(),
            w: Vec::new(),
            scale: Vec::new(),
            min: Vec::new(),
        }
    }

    /// Unpacks `count` rows; the rest of the last sixteen are zeros.
    ///
    /// # Safety
    /// `first` points to that many stored rows, `stride` bytes apart.
    pub(in crate::graph::kernels) unsafe fn load(&mut self, first: *const u8, stride: usize, count: usize) {
        let (k, groups) = (self.k, self.groups);
        let padded = count.next_multiple_of(Self::LANES);
        self.rows.resize(padded, k, groups);
        self.w.resize(padded * k / 4, 0);
        self.scale.resize(padded * groups, 0.0);
        self.min.resize(padded * groups, 0.0);
        for r in 0..count {
            // SAFETY: by contract.
            self.rows.unpack(&self.format, unsafe { stored(&self.format, first.add(r * stride), k) }, r);
        }
        self.rows.u[count * k..].fill(0);
        self.rows.scale[count * groups..].fill(0.0);
        self.rows.min[count * groups..].fill(0.0);
        for sixteen in 0..padded / Self::LANES {
            let r0 = sixteen * Self::LANES;
            let w = &mut self.w[r0 * k / 4..(r0 + Self::LANES) * k / 4];
            transpose_words(&self.rows.u[r0 * k..(r0 + Self::LANES) * k], k, w);
            for g in 0..groups {
                for lane in 0..Self::LANES {
                    self.scale[r0 * groups + g * Self::LANES + lane] = self.rows.scale[(r0 + lane) * groups + g];
                    if self.format.has_min {
                        self.min[r0 * groups + g * Self::LANES + lane] = self.rows.min[(r0 + lane) * groups + g];
                    }
                }
            }
        }
    }

    /// A loaded row.
    pub(in crate::graph::kernels) fn row(&self, r: usize) -> Row<'_> {
        self.rows.row(self.format, r)
    }

    /// All loaded rows times columns `c0..c1` of the packed activations: `out[column][row]`, rows `stride` apart.
    ///
    /// # Safety
    /// On a CPU with the instructions of [`crate::graph::kernels::cpu::CpuLevel::Avx512Vnni`]; `x` as `packed` says, in [`Layout::Columns`]; `out` has
    /// room.
    pub(in crate::graph::kernels) unsafe fn multiply(
        &self,
        packed: &Packed,
        x: *const u8,
        (c0, c1): (usize, usize),
        out: *mut f32,
        stride: usize,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by contract.
        unsafe {
            let product = Product { rows: self, packed, x, stride };
            match (self.format.group, self.format.has_min) {
                (16, false) => product.all::<4, false>(c0, c1, out),
                (16, true) => product.all::<4, true>(c0, c1, out),
                (_, false) => product.all::<8, false>(c0, c1, out),
                (_, true) => product.all::<8, true>(c0, c1, out),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("used only where the CPU has the instructions: {packed:?} {x:?} {c0} {c1} {out:?} {stride}");
    }
}

/// A product of [`Columns`].
#[cfg(target_arch = "x86_64")]
struct Product<'a> {
    rows: &'a Columns,
    packed: &'a Packed,
    x: *const u8,
    stride: usize,
}

#[cfg(target_arch = "x86_64")]
impl Product<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn all<const W: usize, const MIN: bool>(&self, c0: usize, c1: usize, out: *mut f32) {
        let sixteens = self.rows.w.len() * 4 / self.rows.k / Columns::LANES;
        // SAFETY: as `Columns::multiply`.
        unsafe {
            for c in (c0..c1).step_by(4) {
                let out = out.add((c - c0) * self.stride);
                for sixteen in (0..sixteens).step_by(2) {
                    let out = out.add(sixteen * Columns::LANES);
                    match (c1 - c, sixteens - sixteen) {
                        (4.., 2..) => self.tile::<4, 2, W, MIN>(c, sixteen, out),
                        (3, 2..) => self.tile::<3, 2, W, MIN>(c, sixteen, out),
                        (2, 2..) => self.tile::<2, 2, W, MIN>(c, sixteen, out),
                        (_, 2..) => self.tile::<1, 2, W, MIN>(c, sixteen, out),
                        (4.., _) => self.tile::<4, 1, W, MIN>(c, sixteen, out),
                        (3, _) => self.tile::<3, 1, W, MIN>(c, sixteen, out),
                        (2, _) => self.tile::<2, 1, W, MIN>(c, sixteen, out),
                        _ => self.tile::<1, 1, W, MIN>(c, sixteen, out),
                    }
                }
            }
        }
    }

    /// `16 S` rows by `C` columns; groups of `4 W` numbers. Two sixteens share what is loaded of a column.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    #[inline]
    unsafe fn tile<const C: usize, const S: usize, const W: usize, const MIN: bool>(
        &self,
        c: usize,
        sixteen: usize,
        out: *mut f32,
    ) {
        use x86::*;
        const LANES: usize = Columns::LANES;
        let (rows, packed, x) = (self.rows, self.packed, self.x);
        // SAFETY: as `Columns::multiply`.
        unsafe {
            let (k, groups, part) = (rows.k, rows.groups, packed.columns() * rows.groups);
            let scales = x.add(packed.second()).cast::<f32>();
            let q: [*const i32; C] = std::array::from_fn(|i| x.add((c + i) * k).cast());
            let dx: [*const f32; C] = std::array::from_fn(|i| scales.add((c + i) * groups));
            let w: [*const u32; S] = std::array::from_fn(|s| rows.w.as_ptr().add((sixteen + s) * k / 4 * LANES));
            let at = |of: &[f32], s: usize| of.as_ptr().add((sixteen + s) * groups * LANES);
            let scale: [*const f32; S] = std::array::from_fn(|s| at(&rows.scale, s));
            let min: [*const f32; S] = std::array::from_fn(|s| at(&rows.min, s));
            let mut acc = [[_mm512_setzero_ps(); S]; C];
            for g in 0..groups {
                let mut dot: [[__m512i; S]; C] =
                    std::array::from_fn(|i| [_mm512_set1_epi32(*dx[i].add(part + g).cast::<i32>()); S]);
                for j in 0..W {
                    let w: [__m512i; S] =
                        std::array::from_fn(|s| _mm512_loadu_si512(w[s].add((g * W + j) * LANES).cast()));
                    for i in 0..C {
                        let q = _mm512_set1_epi32(q[i].add(g * W + j).read_unaligned());
                        for s in 0..S {
                            dot[i][s] = _mm512_dpbusd_epi32(dot[i][s], w[s], q);
                        }
                    }
                }
                let dw: [__m512; S] = std::array::from_fn(|s| _mm512_loadu_ps(scale[s].add(g * LANES)));
                for i in 0..C {
                    let d = _mm512_set1_ps(*dx[i].add(g));
                    for s in 0..S {
                        acc[i][s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][s]), _mm512_mul_ps(dw[s], d), acc[i][s]);
                    }
                    if MIN {
                        let sum = _mm512_set1_ps(*dx[i].add(2 * part + g));
                        for s in 0..S {
                            acc[i][s] = _mm512_fmadd_ps(_mm512_loadu_ps(min[s].add(g * LANES)), sum, acc[i][s]);
                        }
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (s, &acc) in acc.iter().enumerate() {
                    _mm512_storeu_ps(out.add(i * self.stride + s * LANES), acc);
                }
            }
        }
    }
}

/// Rows of bytes `[16, k]` to words `[k / 4, 16]`.
fn transpose_words(rows: &[u8], k: usize, out: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if crate::graph::kernels::cpu::level().has_int8() {
        done = k / 64 * 64;
        // SAFETY: the CPU has the instructions; sixteen rows of k bytes, and as many words.
        unsafe { transpose_avx512(rows, k, out) };
    }
    for (lane, row) in rows.chunks_exact(k).enumerate() {
        for (j, four) in row.as_chunks::<4>().0.iter().enumerate().skip(done / 4) {
            out[j * Columns::LANES + lane] = u32::from_ne_bytes(*four);
        }
    }
}

/// Whole 64 columns of [`transpose_words`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn transpose_avx512(rows: &[u8], k: usize, out: &mut [u32]) {
    use x86::*;
    // SAFETY: by the caller.
    unsafe {
        for j in 0..k / 64 {
            let r: [__m512i; 16] =
                std::array::from_fn(|i| _mm512_loadu_si512(rows.as_ptr().add(i * k + 64 * j).cast()));
            transpose16(r, out.as_mut_ptr().add(16 * j * Columns::LANES));
        }
    }
}

/// One unpacked row of weights.
#[derive(Clone, Copy)]
pub(in crate::graph::kernels) struct Row<'a> {
    pub format: Format,
    pub u: &'a [u8],
    pub scale: &'a [f32],
    pub min: &'a [f32],
}
