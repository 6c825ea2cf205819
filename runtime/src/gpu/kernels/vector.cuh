// Norms, activations and sums over rows. Each function of the CPU path that a kernel has the bits of is named.
#pragma once

#include "quantize.cuh"

// `out[i] += x[i]`
extern "C" __global__ void add_rows(const float* x, float* out, unsigned len) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] += x[i];
}

// `out[i] = a[i] + b[i]`
extern "C" __global__ void sum_rows(const float* a, const float* b, float* out, unsigned len) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] = a[i] + b[i];
}

// `out[i] += bias[i % width]`
extern "C" __global__ void add_bias(const float* bias, float* out, unsigned width, unsigned len) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) out[i] += bias[i % width];
}

// `gate[i] = silu(gate[i]) * up[i]` in rows: `vector::silu_mul`; quantized besides, where `packed` is given, in the
// layout `side`; rows are then whole groups of it. A warp every 256 values, eight warps a block.
extern "C" __global__ void silu_mul(float* gate, const float* up, u8* packed, unsigned side, unsigned width,
                                    unsigned rows) {
    const unsigned block = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (block >= rows * ((width + 255) / 256)) return;
    const quantize::Place place(block, width);
    const size_t first = (size_t)place.row * width + place.start;
    float* g = gate + first;
    const float* u = up + first;
    const auto value = [g, u](unsigned i) {
        const float x = g[i];
        return g[i] = x / (1.0f + exp_ours(-x)) * u[i];
    };
    if (side != quantize::NONE) {
        quantize::pack(side, value, place.count, packed + (size_t)block * quantize::BLOCK_BYTES, lane);
    } else {
        quantize::read(value, place.count, lane);
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
    combine_row(routed, place, weight, branch, width, used);
}

// Few enough picks to come with the launch: what `gpu/shapes.rs` calls PICKS_MAX.
struct Picks {
    unsigned place[128];
    float weight[128];
};

extern "C" __global__ void combine_few(const float* routed, PARAMETER(Picks) picks, float* branch, unsigned width,
                                       unsigned used) {
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

// What `vector::rms_norm` multiplies a row with. The mean of squares is in f64, in whose rounding the order of
// summation does not show once the factor is an f32.
__device__ __forceinline__ float rms_scale(const float* x, unsigned width, float eps) {
    double squares = 0.0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) squares += (double)x[i] * (double)x[i];
    double mean = block_sum(squares) / (double)width;
    return (float)(1.0 / sqrt(mean + (double)eps));
}

// RMS norm of rows; `x` may be `out`. Before, `add` is added to the rows of `x` where it is given; besides, what is
// written to `out` is quantized to `packed` in the layout `side`, where it is one. One block a row, 256 threads.
extern "C" __global__ void rms_norm(float* x, const float* add, const float* weight, float* out, u8* packed,
                                    unsigned side, unsigned width, unsigned x_stride, unsigned out_stride, float eps) {
    float* row = x + (size_t)blockIdx.x * x_stride;
    float* to = out + (size_t)blockIdx.x * out_stride;
    if (add) {
        const float* more = add + (size_t)blockIdx.x * x_stride;
        // A thread reads below what it writes here.
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) row[i] += more[i];
    }
    const float scale = rms_scale(row, width, eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = row[i] * scale * weight[i];
    if (side == quantize::NONE) return;
    __syncthreads();
    const unsigned per_row = (width + 255) / 256;
    for (unsigned block = threadIdx.x / 32; block < per_row; block += blockDim.x / 32) {
        const quantize::Place place(block, width);
        const float* from = to + place.start;
        const auto value = [from](unsigned i) { return from[i]; };
        u8* at = packed + ((size_t)blockIdx.x * per_row + block) * quantize::BLOCK_BYTES;
        quantize::pack(side, value, place.count, at, threadIdx.x % 32);
    }
}
