// Norms, activations and sums over rows. Each function of the CPU path that a kernel has the bits of is named.
#pragma once

#include "common.cuh"

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

// `gate[i] = silu(gate[i]) * up[i]`: `vector::silu_mul`.
extern "C" __global__ void silu_mul(float* gate, const float* up, unsigned len) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    float g = gate[i];
    gate[i] = g / (1.0f + exp_ours(-g)) * up[i];
}

// Adds the weighted outputs of a row's experts in rank order, one product and one sum each: `add_scaled`.
extern "C" __global__ void combine(const float* routed, const unsigned* place, const float* weight, float* branch,
                                   unsigned width, unsigned used) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (column >= width) return;
    float sum = branch[(size_t)row * width + column];
    for (unsigned rank = 0; rank < used; rank++) {
        unsigned pick = row * used + rank;
        sum += weight[pick] * routed[(size_t)place[pick] * width + column];
    }
    branch[(size_t)row * width + column] = sum;
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

// RMS norm of rows; `x` may be `out`. One block a row, 256 threads.
extern "C" __global__ void rms_norm(const float* x, const float* weight, float* out, unsigned width,
                                    unsigned x_stride, unsigned out_stride, float eps) {
    const float* row = x + (size_t)blockIdx.x * x_stride;
    float* to = out + (size_t)blockIdx.x * out_stride;
    float scale = rms_scale(row, width, eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = row[i] * scale * weight[i];
}

// Rotary embedding of heads in place, after the norm of the whole head where there is one:
// `Gqa::norm_and_rotate`, `RopeTable::rotate`. One block a head, 128 threads.
extern "C" __global__ void rotate(float* x, const float* cos, const float* sin, unsigned heads, unsigned head_dim,
                                  unsigned x_stride, unsigned offset, unsigned half, unsigned interleaved,
                                  const float* norm, float eps) {
    float* head = x + (size_t)blockIdx.x * x_stride;
    size_t row = blockIdx.x / heads;
    if (norm) {
        float scale = rms_scale(head, head_dim, eps);
        for (unsigned i = threadIdx.x; i < head_dim; i += blockDim.x) head[i] = head[i] * scale * norm[i];
        __syncthreads();
    }
    for (unsigned i = threadIdx.x; i < half; i += blockDim.x) {
        float* first = head + offset + (interleaved ? 2 * i : i);
        float* second = first + (interleaved ? 1 : half);
        float a = *first, b = *second, c = cos[row * half + i], s = sin[row * half + i];
        *first = a * c - b * s;
        *second = a * s + b * c;
    }
}
