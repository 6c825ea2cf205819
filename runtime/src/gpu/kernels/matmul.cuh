// The matrix products: activation rows with quantized weight rows, as `kernels/cpu/portable.rs` defines them.
//
// Owns the split into threads and the order of float arithmetic. A weight row belongs to eight threads, each the
// owner of one of the definition's eight sums (of two of the sixteen sums of floats), so that no sum is ever split;
// a thread unpacks its weights once for R activation rows, in the kernels for eight for two weight rows at a time, so that
// it also loads activations once for two. It must not know how blocks are packed (k_quants.cuh, i_quants.cuh, legacy.cuh).
#pragma once

#include "i_quants.cuh"
#include "k_quants.cuh"
#include "legacy.cuh"

namespace matmul {

// Threads of a weight row.
const unsigned LANES = 8;
// Weight rows of a block of threads: what `gpu/shapes.rs` calls MATMUL_COLUMNS.
const unsigned COLUMNS = 16;

// How a kernel for up to R activation rows at a time is launched.
template <unsigned R> struct Shape {
    // Weight rows of a thread.
    static constexpr unsigned WEIGHT_ROWS = R == 8 ? 2 : 1;
    // Threads of a block, as `gpu/shapes.rs` says.
    static constexpr unsigned THREADS = COLUMNS / WEIGHT_ROWS * LANES;
    // Blocks of threads that a multiprocessor shall have room for: few, so that a thread has registers for many
    // loads at once. Without them memory is waited for, and a matrix often has no more blocks anyway.
    static constexpr unsigned RESIDENT_BLOCKS = R == 8 ? 8 : 5;
};

// Bytes of 256 quantized activations, and where their parts stand.
const unsigned X_BYTES = 320;
const unsigned X256_SUMS = 256, X256_D = 288;
const unsigned X32_D = 256, X32_SUMS = 288;

// The block's share of a launch: a job, and its activation rows from `first` on.
struct Work {
    const Jobs& all;
    const Job& job;
    unsigned first;

    __device__ __forceinline__ Work(const Jobs& all, unsigned rows_each)
        : all(all), job(all.job[blockIdx.z]), first(blockIdx.y * rows_each) {}

    // Whether there is anything to do.
    __device__ __forceinline__ bool is_inside() const { return blockIdx.x * COLUMNS < job.n && first < job.count; }

    // Activation rows from the first on; at least one.
    __device__ __forceinline__ unsigned rows() const { return job.count - first; }

    // Asks for the block's weight rows of `row_bytes` bytes each: they are there before anything that still runs is done.
    __device__ __forceinline__ void fetch(size_t row_bytes) const {
        if (!is_inside()) return;
        const unsigned left = job.n - blockIdx.x * COLUMNS, rows_here = left < COLUMNS ? left : COLUMNS;
        loads::fetch(job.w + (size_t)blockIdx.x * COLUMNS * row_bytes, rows_here * row_bytes);
    }

    // The activations of row `i` of the job.
    __device__ __forceinline__ const u8* x(unsigned i) const {
        unsigned row = job.x_first + i * all.x_step;
        if (all.x_step == PACKED_ROWS) row = (unsigned)((unsigned long long)job.rows >> 8 * i & 255);
        else if (job.rows) row = loads::get<unsigned>(job.rows + i);
        return all.x + (size_t)row * all.x_stride;
    }
};

// What a thread works on. Weight and activation rows behind the last ones are the last ones again: all threads of a
// warp go on to the shuffles, but nothing is stored for them.
template <unsigned R, unsigned N> struct Tile {
    unsigned lane, column;
    const u8* w[N];
    const u8* x[R];

    __device__ __forceinline__ Tile(const Work& work, size_t row_bytes) {
        const unsigned n_rows = work.job.n, count = work.job.count;
        lane = threadIdx.x % LANES;
        column = blockIdx.x * COLUMNS + threadIdx.x / LANES * N;
        UNROLL
        for (unsigned n = 0; n < N; n++) {
            w[n] = work.job.w + (column + n < n_rows ? column + n : n_rows - 1) * row_bytes;
        }
        UNROLL
        for (unsigned r = 0; r < R; r++) {
            const unsigned i = work.first + r;
            x[r] = work.x(i < count ? i : count - 1);
        }
    }
};

// Adds the sums of eight threads by halves, for R products at once: as long as a thread has several, it gives half of
// them away and adds what it gets to the others. Thread l ends up with product l / (8 / R).
template <unsigned R> __device__ __forceinline__ float add_lanes(float (&sums)[R], unsigned lane) {
    unsigned left = R;
    UNROLL
    for (unsigned half = LANES / 2; half > 0; half /= 2) {
        if (left == 1) {
            sums[0] += __shfl_xor_sync(ALL_LANES, sums[0], half, LANES);
            continue;
        }
        left /= 2;
        const bool is_upper = (lane & half) != 0;
        UNROLL
        for (unsigned i = 0; i < left; i++) {
            const float given = is_upper ? sums[i] : sums[i + left];
            const float kept = is_upper ? sums[i + left] : sums[i];
            sums[i] = kept + __shfl_xor_sync(ALL_LANES, given, half, LANES);
        }
    }
    return sums[0];
}

// Stores the product that `add_lanes` left with this thread.
template <unsigned R>
__device__ __forceinline__ void store(const Work& work, unsigned lane, unsigned column, float product) {
    const unsigned i = work.first + lane / (LANES / R);
    if (lane % (LANES / R) == 0 && i < work.job.count && column < work.job.n) {
        work.job.out[(size_t)i * work.job.out_stride + column] = product;
    }
}

// Adds a thread's part of 256 products to its sum.
template <typename F>
__device__ __forceinline__ float add256(const Part256& w, const int (&q)[8], float d, int sums, float sum) {
    int lane = 0;
    UNROLL
    for (unsigned j = 0; j < 8; j++) {
        lane += w.scales[j] * __dp4a(w.words[j], q[j], 0);
    }
    const int minus = F::MINUS == Minus::NOTHING ? 0 : w.minus[0] * (short)sums + w.minus[1] * (sums >> 16);
    if (F::MINUS == Minus::OFFSET) lane -= minus;
    sum = fmaf(w.d * d, (float)lane, sum);
    if (F::MINUS == Minus::MINIMA) sum = fmaf(-(w.d_min * d), (float)minus, sum);
    return sum;
}

// Adds the products of block `b`, or nothing.
template <typename F, unsigned R, unsigned N>
__device__ __forceinline__ void step256(
    const F& format, const Tile<R, N>& tile, unsigned b, bool is_added, float (&sums)[N][R]) {
    Part256 w[N];
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        format.unpack(tile.w[n] + b * F::BYTES, tile.lane, w[n]);
    }
    UNROLL
    for (unsigned r = 0; r < R; r++) {
        const u8* x = tile.x[r] + b * X_BYTES;
        int q[8];
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            q[j] = (int)loads::word_at(x + 32 * j + 4 * tile.lane);
        }
        const float d = loads::get<float>(x + X256_D);
        const int two_sums = F::MINUS == Minus::NOTHING ? 0 : (int)loads::word_at(x + X256_SUMS + 4 * tile.lane);
        UNROLL
        for (unsigned n = 0; n < N; n++) {
            const float sum = add256<F>(w[n], q, d, two_sums, sums[n][r]);
            sums[n][r] = is_added ? sum : sums[n][r];
        }
    }
}

// Bytes of a weight row.
template <typename F> __device__ __forceinline__ size_t run256_bytes(unsigned cols) { return (size_t)cols / 256 * F::BYTES; }

// A product with a 256 format.
template <typename F, unsigned R, unsigned N, unsigned A>
__device__ __forceinline__ void run256(const Work& work, unsigned cols, const u8* tables) {
    const F format(tables);
    const unsigned blocks = cols / 256;
    const Tile<R, N> tile(work, run256_bytes<F>(cols));
    float sums[N][R] = {};
    for (unsigned first = 0; first < blocks; first += A) {
        UNROLL
        for (unsigned i = 0; i < A; i++) {
            const bool is_there = i == 0 || first + i < blocks;
            step256<F, R, N>(format, tile, is_there ? first + i : blocks - 1, is_there, sums);
        }
    }
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        store<R>(work, tile.lane, tile.column + n, add_lanes<R>(sums[n], tile.lane));
    }
}

// Adds 32 products to the sum of the thread they belong to.
template <typename F>
__device__ __forceinline__ float add32(
    const Part32& w, const unsigned (&q)[8], float d, int q_sum, float sum) {
    int lane = 0;
    UNROLL
    for (unsigned j = 0; j < 8; j++) {
        lane = __dp4a(w.words[j], (int)q[j], lane);
    }
    sum = fmaf(w.d * d, (float)lane, sum);
    if (F::HAS_MIN) sum = fmaf(w.m, d * (float)q_sum, sum);
    return sum;
}

// Adds the products of block `b`, one of this thread's, or nothing.
template <typename F, unsigned R, unsigned N>
__device__ __forceinline__ void step32(
    const F& format, const Tile<R, N>& tile, unsigned b, bool is_added, float (&sums)[N][R]) {
    Part32 w[N];
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        format.unpack(tile.w[n] + b * F::BYTES, w[n]);
    }
    UNROLL
    for (unsigned r = 0; r < R; r++) {
        const u8* x = tile.x[r] + b / LANES * X_BYTES;
        unsigned q[8];
        loads::aligned_words<8>(x + 32 * tile.lane, q);
        const float d = loads::get<float>(x + X32_D + 4 * tile.lane);
        const int q_sum = F::HAS_MIN ? (int)loads::word_at(x + X32_SUMS + 4 * tile.lane) : 0;
        UNROLL
        for (unsigned n = 0; n < N; n++) {
            const float sum = add32<F>(w[n], q, d, q_sum, sums[n][r]);
            sums[n][r] = is_added ? sum : sums[n][r];
        }
    }
}

// Bytes of a weight row.
template <typename F> __device__ __forceinline__ size_t run32_bytes(unsigned cols) { return (size_t)cols / 32 * F::BYTES; }

// A product with a 32 format. Thread l has blocks l, l + 8, ...
template <typename F, unsigned R, unsigned N, unsigned A>
__device__ __forceinline__ void run32(const Work& work, unsigned cols, const u8* tables) {
    const F format(tables);
    const unsigned blocks = cols / 32;
    const Tile<R, N> tile(work, run32_bytes<F>(cols));
    float sums[N][R] = {};
    for (unsigned first = tile.lane; first < blocks; first += A * LANES) {
        UNROLL
        for (unsigned i = 0; i < A; i++) {
            const unsigned b = first + i * LANES;
            const bool is_there = i == 0 || b < blocks;
            step32<F, R, N>(format, tile, is_there ? b : first, is_there, sums);
        }
    }
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        store<R>(work, tile.lane, tile.column + n, add_lanes<R>(sums[n], tile.lane));
    }
}

// Adds the products of floats i and i + 1, or nothing.
template <typename F, unsigned R, unsigned N>
__device__ __forceinline__ void step_floats(
    const Tile<R, N>& tile, unsigned i, bool is_added, float (&even)[N][R], float (&odd)[N][R]) {
    float w[N][2];
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        F::two(tile.w[n] + i * F::BYTES, w[n]);
    }
    UNROLL
    for (unsigned r = 0; r < R; r++) {
        float x[2];
        formats::F32::two(tile.x[r] + i * 4, x);
        UNROLL
        for (unsigned n = 0; n < N; n++) {
            const float first = fmaf(w[n][0], x[0], even[n][r]), second = fmaf(w[n][1], x[1], odd[n][r]);
            even[n][r] = is_added ? first : even[n][r];
            odd[n][r] = is_added ? second : odd[n][r];
        }
    }
}

// The sums of floats 2 l and 2 l + 1 of every 16, where all rows let them be read both at once.
template <typename F, unsigned A, unsigned R, unsigned N>
__device__ __forceinline__ void add_pairs(
    const Tile<R, N>& tile, unsigned cols, float (&even)[N][R], float (&odd)[N][R]) {
    constexpr unsigned STEP = 2 * LANES, EACH = 2 * A;
    for (unsigned first = 2 * tile.lane; first < cols; first += EACH * STEP) {
        UNROLL
        for (unsigned i = 0; i < EACH; i++) {
            const bool is_there = i == 0 || first + i * STEP < cols;
            step_floats<F, R, N>(tile, is_there ? first + i * STEP : first, is_there, even, odd);
        }
    }
}

// The same sums, float by float.
template <typename F, unsigned R, unsigned N>
__device__ __forceinline__ void add_single(
    const Tile<R, N>& tile, unsigned cols, float (&even)[N][R], float (&odd)[N][R]) {
    for (unsigned i = 2 * tile.lane; i < cols; i += i % 2 == 0 ? 1 : 2 * LANES - 1) {
        UNROLL
        for (unsigned n = 0; n < N; n++) {
            const float w = F::one(tile.w[n] + i * F::BYTES);
            UNROLL
            for (unsigned r = 0; r < R; r++) {
                const float x = formats::F32::one(tile.x[r] + i * 4);
                const float first = fmaf(w, x, even[n][r]), second = fmaf(w, x, odd[n][r]);
                even[n][r] = i % 2 == 0 ? first : even[n][r];
                odd[n][r] = i % 2 == 0 ? odd[n][r] : second;
            }
        }
    }
}

// Bytes of a weight row.
template <typename F> __device__ __forceinline__ size_t run_float_bytes(unsigned cols) { return (size_t)cols * F::BYTES; }

// A product with plain floats.
template <typename F, unsigned R, unsigned N, unsigned A>
__device__ __forceinline__ void run_float(const Work& work, unsigned cols, const u8*) {
    const Tile<R, N> tile(work, run_float_bytes<F>(cols));
    size_t odd_places = cols % 2;
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        odd_places |= (size_t)tile.w[n] % (2 * F::BYTES);
    }
    UNROLL
    for (unsigned r = 0; r < R; r++) {
        odd_places |= (size_t)tile.x[r] % 8;
    }
    float even[N][R] = {}, odd[N][R] = {};
    if (odd_places == 0) {
        add_pairs<F, A, R, N>(tile, cols, even, odd);
    } else {
        add_single<F, R, N>(tile, cols, even, odd);
    }
    UNROLL
    for (unsigned n = 0; n < N; n++) {
        const float product = add_lanes<R>(even[n], tile.lane) + add_lanes<R>(odd[n], tile.lane);
        store<R>(work, tile.lane, tile.column + n, product);
    }
}

// Columns of a weight row, and of up to eight activation rows, that a block has at once; one more keeps the rows apart
// in the banks of its memory.
const unsigned THIN_COLUMNS = 1024, THIN_STRIDE = THIN_COLUMNS + 16, THIN_ROWS = 8;
// Sums of a product: two of each of the eight threads that share a weight row elsewhere.
const unsigned SUMS = 2 * LANES;
const unsigned THIN_THREADS = 256;

// Copies a row of `width` floats, by one warp; many loads are on their way at once.
__device__ __forceinline__ void copy_row(const u8* from, unsigned width, float* to) {
    constexpr unsigned EACH = 16;
    for (unsigned first = threadIdx.x % 32; first < width; first += EACH * 32) {
        float values[EACH];
        UNROLL
        for (unsigned k = 0; k < EACH; k++) {
            const unsigned i = first + k * 32;
            values[k] = formats::F32::one(from + 4 * (i < width ? i : first));
        }
        UNROLL
        for (unsigned k = 0; k < EACH; k++) {
            const unsigned i = first + k * 32;
            if (i < width) to[i] = values[k];
        }
    }
}

// Asks for the block's weight row.
template <typename F> __device__ __forceinline__ void fetch_thin(const Work& work, unsigned cols) {
    const size_t row_bytes = run_float_bytes<F>(cols);
    if (blockIdx.x < work.job.n) loads::fetch(work.job.w + blockIdx.x * row_bytes, row_bytes);
}

// A product with plain floats where the matrix has too few rows to keep a card busy (a router): a block has one weight
// row, and all its loads are on their way at once. The sums, and their order, are those of `run_float`: thread 16 r + s
// has sum s of activation row r.
template <typename F> __device__ __forceinline__ void run_thin(const Work& work, unsigned cols) {
    __shared__ float w[THIN_COLUMNS];
    __shared__ float x[THIN_ROWS * THIN_STRIDE];
    const Job& job = work.job;
    const unsigned first = work.first, column = blockIdx.x;
    if (column >= job.n || first >= job.count) return;
    const unsigned rows = work.rows() < THIN_ROWS ? work.rows() : THIN_ROWS;
    const u8* weights = job.w + (size_t)column * cols * F::BYTES;
    const unsigned r = threadIdx.x / SUMS, s = threadIdx.x % SUMS;
    float sum = 0;
    for (unsigned from = 0; from < cols; from += THIN_COLUMNS) {
        const unsigned width = cols - from < THIN_COLUMNS ? cols - from : THIN_COLUMNS;
        for (unsigned i = threadIdx.x; i < width; i += THIN_THREADS) w[i] = F::one(weights + (from + i) * F::BYTES);
        if (rows == 1) {
            const u8* at = work.x(first) + (size_t)from * 4;
            for (unsigned i = threadIdx.x; i < width; i += THIN_THREADS) x[i] = formats::F32::one(at + 4 * i);
        } else {
            // A warp has a row: no row waits for another's loads.
            const unsigned row = threadIdx.x / 32;
            if (row < rows) copy_row(work.x(first + row) + (size_t)from * 4, width, x + row * THIN_STRIDE);
        }
        __syncthreads();
        if (r < rows) {
            for (unsigned i = s; i < width; i += SUMS) sum = fmaf(w[i], x[r * THIN_STRIDE + i], sum);
        }
        __syncthreads();
    }
    if (threadIdx.x >= THIN_ROWS * SUMS) return;
    // Sums of even columns and of odd ones by halves, then both.
    for (unsigned by = SUMS / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by, SUMS);
    if (s == 0 && r < rows) job.out[(size_t)(first + r) * job.out_stride + column] = sum;
}

} // namespace matmul

// Every format: its name in a kernel's name, its struct, the product it takes.
#define MATMUL_FORMATS(EACH)      \
    EACH(f32, F32, run_float)     \
    EACH(f16, F16, run_float)     \
    EACH(bf16, BF16, run_float)   \
    EACH(q4_0, Q4_0, run32)       \
    EACH(q4_1, Q4_1, run32)       \
    EACH(q5_0, Q5_0, run32)       \
    EACH(q5_1, Q5_1, run32)       \
    EACH(q8_0, Q8_0, run32)       \
    EACH(iq4nl, Iq4Nl, run32)     \
    EACH(mxfp4, Mxfp4, run32)     \
    EACH(q2k, Q2K, run256)        \
    EACH(q3k, Q3K, run256)        \
    EACH(q4k, Q4K, run256)        \
    EACH(q5k, Q5K, run256)        \
    EACH(q6k, Q6K, run256)        \
    EACH(iq4xs, Iq4Xs, run256)    \
    EACH(iq3xxs, Iq3Xxs, run256)  \
    EACH(iq3s, Iq3S, run256)      \
    EACH(iq2xxs, Iq2Xxs, run256)  \
    EACH(iq2xs, Iq2Xs, run256)    \
    EACH(iq2s, Iq2S, run256)      \
    EACH(iq1s, Iq1S, run256)      \
    EACH(iq1m, Iq1M, run256)

// A block computes no more rows than its job has, as far as there is code for as few: one that is not there takes as long
// as one that is, and experts have one row or two each where the launch is for up to four.
#define MATMUL_KERNEL(name, FORMAT, RUN, R, ...)                                                         \
    extern "C" __global__ void                                                                           \
    __launch_bounds__(matmul::Shape<R>::THREADS, matmul::Shape<R>::RESIDENT_BLOCKS)                      \
        matmul_##name##_r##R(PARAMETER(Jobs) jobs, unsigned cols, const unsigned char* tables) {         \
        const matmul::Work work(jobs, R);                                                                \
        work.fetch(matmul::RUN##_bytes<formats::FORMAT>(cols));                                          \
        after_previous();                                                                                \
        if (work.is_inside()) { __VA_ARGS__ }                                                            \
    }
// With N weight rows and R activation rows a thread loads A parts of a row before it multiplies the first. Where a row has
// no more, the last one is loaded again and not added: that is cheaper than to wait for what is left part by part.
#define MATMUL_RUN(FORMAT, RUN, R, N, A) matmul::RUN<formats::FORMAT, R, N, A>(work, cols, tables);
#define MATMUL_KERNELS(name, FORMAT, RUN)                                                                \
    MATMUL_KERNEL(name, FORMAT, RUN, 1, MATMUL_RUN(FORMAT, RUN, 1, 1, 4))                                \
    MATMUL_KERNEL(name, FORMAT, RUN, 4,                                                                  \
        if (work.rows() == 1) MATMUL_RUN(FORMAT, RUN, 1, 1, 4)                                           \
        else if (work.rows() == 2) MATMUL_RUN(FORMAT, RUN, 2, 1, 2)                                      \
        else MATMUL_RUN(FORMAT, RUN, 4, 1, 1))                                                           \
    MATMUL_KERNEL(name, FORMAT, RUN, 8,                                                                  \
        if (work.rows() <= 4) MATMUL_RUN(FORMAT, RUN, 4, 2, 1)                                           \
        else MATMUL_RUN(FORMAT, RUN, 8, 2, 1))

MATMUL_FORMATS(MATMUL_KERNELS)

#define MATMUL_THIN(name, FORMAT)                                                                        \
    extern "C" __global__ void __launch_bounds__(matmul::THIN_THREADS, 2)                                \
        matmul_##name##_thin(PARAMETER(Jobs) jobs, unsigned cols, const unsigned char*) {                \
        const matmul::Work work(jobs, matmul::THIN_ROWS);                                                \
        matmul::fetch_thin<formats::FORMAT>(work, cols);                                                 \
        after_previous();                                                                                \
        matmul::run_thin<formats::FORMAT>(work, cols);                                                   \
    }
MATMUL_THIN(f32, F32)
MATMUL_THIN(f16, F16)
MATMUL_THIN(bf16, BF16)
