// Norms, activations and sums over rows. Each function of the CPU path that a kernel has the bits of is named.
#pragma once

#include "quantize.cuh"

// `out[i] += x[i]`
extern "C" __global__ void add_rows(const float* x, float* out, unsigned len) {
    after_previous();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] += x[i];
}

// `out[i] = a[i] + b[i]`
extern "C" __global__ void sum_rows(const float* a, const float* b, float* out, unsigned len) {
    after_previous();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] = a[i] + b[i];
}

// `out[i] += bias[i % width]`
extern "C" __global__ void add_bias(const float* bias, float* out, unsigned width, unsigned len) {
    after_previous();
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] += bias[i % width];
}

// `gate[i] = silu(gate[i]) * up[i]` in rows: `vector::silu_mul`; quantized besides, where `packed` is given, in the
// layout `side`; rows are then whole groups of it. A warp every 256 values, eight warps a block.
extern "C" __global__ void silu_mul(float* gate, const float* up, u8* packed, unsigned side, unsigned width,
                                    unsigned rows) {
    after_previous();
    const unsigned block = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (block >= rows * ((width + 255) / 256)) return;
    const quantize::Place place(block, width);
    const size_t first = (size_t)place.row * width + place.start;
    float* g = gate + first;
    const float* u = up + first;
    // All of both are on their way before the first is used or written over.
    quantize::Values values = quantize::read([g](unsigned i) { return g[i]; }, place.count, lane);
    const auto up_value = [u](unsigned i) { return loads::get<float>(u + i); };
    const quantize::Values ups = quantize::read(up_value, place.count, lane);
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const float x = values.at[half][i];
            const float product = x / (1.0f + exp_ours(-x)) * ups.at[half][i];
            const unsigned at = quantize::index(half, i, lane);
            values.at[half][i] = product;
            if (at < place.count) g[at] = product;
        }
    }
    if (side != quantize::NONE) {
        quantize::pack(side, values, packed + (size_t)block * quantize::BLOCK_BYTES, lane);
    }
}

// Adds the weighted outputs of a row's experts in rank order, one product and one sum each: `add_scaled`.
__device__ __forceinline__ void combine_row(const float* routed, const unsigned* place, const float* weight,
                                            float* branch, unsigned width, unsigned used) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (column >= width) return;
    float sum = branch[(size_t)row * width + column];
    for (unsigned rank = 0; rank < used; rank++) {
        unsigned pick = row * used + rank;
        sum += weight[pick] * routed[(size_t)place[pick] * width + column];
    }
    branch[(size_t)row * width + column] = sum;
}

extern "C" __global__ void combine(const float* routed, const unsigned* place, const float* weight, float* branch,
                                   unsigned width, unsigned used) {
    after_previous();
    combine_row(routed, place, weight, branch, width, used);
}

// Few enough picks to come with the launch: what `gpu/shapes.rs` calls PICKS_MAX.
struct Picks {
    unsigned place[128];
    float weight[128];
};

extern "C" __global__ void combine_few(const float* routed, PARAMETER(Picks) picks, float* branch, unsigned width,
                                       unsigned used) {
    after_previous();
    combine_row(routed, picks.place, picks.weight, branch, width, used);
}

// Sum over a block of at most 256 threads, whole warps. All threads take part and get it.
__device__ __forceinline__ double block_sum(double value) {
    __shared__ double warps[8];
    for (unsigned by = 16; by > 0; by /= 2) value += __shfl_xor_sync(ALL_LANES, value, by, 32);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0.0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += warps[i];
    return sum;
}

// Values of a row that a thread has on their way at once: a store in between would make the next load wait.
#define ROW_BATCH 8u

// `each(i, values, k)` with `values[k]` for value i of a row, all of a batch read by `load` before.
template <typename L, typename E> __device__ __forceinline__ void over_row(unsigned width, const L& load, const E& each) {
    for (unsigned first = threadIdx.x; first < width; first += ROW_BATCH * blockDim.x) {
        decltype(load(0u)) values[ROW_BATCH];
        UNROLL
        for (unsigned k = 0; k < ROW_BATCH; k++) {
            const unsigned i = first + k * blockDim.x;
            values[k] = load(i < width ? i : first);
        }
        UNROLL
        for (unsigned k = 0; k < ROW_BATCH; k++) {
            const unsigned i = first + k * blockDim.x;
            if (i < width) each(i, values[k]);
        }
    }
}

struct TwoFloats {
    float first, second;
};

// What `vector::rms_norm` multiplies a row with, behind the addition of `more` where it is given. The mean of squares is
// in f64, in whose rounding the order of summation does not show once the factor is an f32.
__device__ __forceinline__ float rms_scale(float* row, const float* more, unsigned width, float eps) {
    double squares = 0.0;
    const auto add_square = [&squares](float value) { squares += (double)value * (double)value; };
    if (more) {
        const auto load = [=](unsigned i) { return TwoFloats{row[i], loads::get<float>(more + i)}; };
        over_row(width, load, [&](unsigned i, TwoFloats two) { add_square(row[i] = two.first + two.second); });
    } else {
        over_row(width, [row](unsigned i) { return row[i]; }, [&](unsigned, float value) { add_square(value); });
    }
    const double mean = block_sum(squares) / (double)width;
    return (float)(1.0 / sqrt(mean + (double)eps));
}

// `to = row * scale * weight`
__device__ __forceinline__ void scale_row(const float* row, float* to, const float* weight, unsigned width,
                                          float scale) {
    const auto load = [=](unsigned i) { return TwoFloats{row[i], loads::get<float>(weight + i)}; };
    over_row(width, load, [=](unsigned i, TwoFloats two) { to[i] = two.first * scale * two.second; });
}

// RMS norm of rows; `x` may be `out`. Before, `add` is added to the rows of `x` where it is given; besides, what is
// written to `out` is quantized to `packed` in the layout `side`, where it is one; rows are then whole groups of it.
// One block a row, 256 threads.
extern "C" __global__ void rms_norm(float* x, const float* add, const float* weight, float* out, u8* packed,
                                    unsigned side, unsigned width, unsigned x_stride, unsigned out_stride, float eps) {
    after_previous();
    float* row = x + (size_t)blockIdx.x * x_stride;
    float* to = out + (size_t)blockIdx.x * out_stride;
    const float scale = rms_scale(row, add ? add + (size_t)blockIdx.x * x_stride : nullptr, width, eps);
    // A thread reads what it wrote itself.
    scale_row(row, to, weight, width, scale);
    if (side == quantize::NONE) return;
    __syncthreads();
    const unsigned per_row = (width + 255) / 256, lane = threadIdx.x % 32;
    for (unsigned block = threadIdx.x / 32; block < per_row; block += blockDim.x / 32) {
        const quantize::Place place(block, width);
        const float* from = to + place.start;
        const quantize::Values values = quantize::read([from](unsigned i) { return from[i]; }, place.count, lane);
        quantize::pack(side, values, packed + ((size_t)blockIdx.x * per_row + block) * quantize::BLOCK_BYTES, lane);
    }
}
