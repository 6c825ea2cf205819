//! The job every kernel does: some weight rows times up to eight activation rows.
//!
//! Owns its description. Must not know how the product is computed (`portable`, `avx2`, ...) or by whom
//! the work is split (`matmul`).

/// Most activation rows of one tile.
pub(in crate::kernels) const TILE_ROWS_MAX: usize = 8;

/// `out[r * out_stride + n] = weight row n . activation row r`.
pub(in crate::kernels) struct Tile<'a> {
    /// Whole weight rows, one after another.
    pub(in crate::kernels) weights: &'a [u8],
    /// Bytes from one weight row to the next.
    pub(in crate::kernels) row_bytes: usize,
    /// First block (first value, for float weights) of each activation row; a kernel for `R` rows reads
    /// the first `R`.
    pub(in crate::kernels) x: [*const u8; TILE_ROWS_MAX],
    /// Values of an activation row.
    pub(in crate::kernels) cols: usize,
    /// Where the first product goes.
    pub(in crate::kernels) out: *mut f32,
    /// Values from one activation row's products to the next's.
    pub(in crate::kernels) out_stride: usize,
}

impl<'a> Tile<'a> {
    /// The weight rows with their indices.
    #[inline(always)]
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        self.weights.chunks_exact(self.row_bytes).enumerate()
    }

    /// The activation rows as slices of `len` blocks of type `X`.
    ///
    /// # Safety
    /// The first `R` pointers lead to that many blocks of this type.
    #[inline(always)]
    pub(super) unsafe fn x<X, const R: usize>(&self, len: usize) -> [&'a [X]; R] {
        // SAFETY: the caller's promise.
        std::array::from_fn(|r| unsafe { std::slice::from_raw_parts(self.x[r].cast::<X>(), len) })
    }

    /// The same job as two, of the first four and of the other four rows: for kernels that have no registers
    /// for eight.
    #[inline(always)]
    pub(super) fn fours(&self) -> [Tile<'a>; 2] {
        let null = std::ptr::null();
        let [a, b, c, d, e, f, g, h] = self.x;
        // In bounds wherever the other four rows exist, and never followed elsewhere.
        let behind = self.out.wrapping_add(4 * self.out_stride);
        [([a, b, c, d, null, null, null, null], self.out), ([e, f, g, h, null, null, null, null], behind)]
            .map(|(x, out)| Tile { x, out, ..*self })
    }

    /// Stores the products of weight row `n`.
    ///
    /// # Safety
    /// `out` leads to `R` rows of which this thread owns column `n`.
    #[inline(always)]
    pub(super) unsafe fn store<const R: usize>(&self, n: usize, products: [f32; R]) {
        for (r, product) in products.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.out.add(r * self.out_stride + n).write(product) };
        }
    }
}

/// A kernel for a fixed number of activation rows.
///
/// # Safety
/// The instructions it was compiled for exist; the tile's pointers are as its fields say.
pub(in crate::kernels) type TileFn = unsafe fn(&Tile<'_>);

/// The kernels of one format for 1, 2, 4 and 8 activation rows.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Kernel(pub(in crate::kernels) [TileFn; 4]);
