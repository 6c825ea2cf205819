// Activation rows in 8 bits, bit by bit as `kernels/cpu/activations.rs` makes them.
//
// Owns the two layouts' quantizers: a warp makes one block of 256. It must not know weights.
#pragma once

#include "loads.cuh"

namespace quantize {

// Threads of a block, as `gpu/shapes.rs` says: thread t has values 4 t .. 4 t + 4 of each half of 256.
const unsigned THREADS = 32;

// What one thread has of 256 values: four of the first half, four of the second.
struct Values {
    float at[2][4];
};

// The block of 256 that this warp makes.
struct Place {
    const float* x;
    u8* out;
    // Values of the row from `x` on, up to 256.
    unsigned count;
};

__device__ __forceinline__ Place place(const float* x, void* out, unsigned width, unsigned x_stride) {
    const unsigned per_row = (width + 255) / 256;
    const unsigned row = blockIdx.x / per_row, start = blockIdx.x % per_row * 256;
    const unsigned count = width - start < 256 ? width - start : 256;
    return {x + (size_t)row * x_stride + start, (u8*)out + (size_t)blockIdx.x * 320, count};
}

// Values behind `count` are zero.
__device__ __forceinline__ Values read(const Place& place, unsigned count) {
    Values values;
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned at = 128 * half + 4 * threadIdx.x + i;
            values.at[half][i] = at < count ? loads::get<float>(place.x + at) : 0.0f;
        }
    }
    return values;
}

// The largest magnitude of four values, as an integer: in their order infinity and NaN come last.
__device__ __forceinline__ unsigned largest(const float (&values)[4]) {
    unsigned most = 0;
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const unsigned bits = __float_as_uint(values[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

// The largest of `width` neighbouring threads.
__device__ __forceinline__ unsigned largest_of(unsigned most, unsigned width) {
    for (unsigned by = width / 2; by > 0; by /= 2) {
        const unsigned other = __shfl_xor_sync(ALL_LANES, most, by, 32);
        most = other > most ? other : most;
    }
    return most;
}

// How a group of values is rounded: by what they are multiplied, and what 1 then stands for.
struct Scale {
    float inverse, d;

    __device__ __forceinline__ explicit Scale(unsigned most) {
        const float size = __uint_as_float(most);
        if (most >= 0x7f800000) {
            inverse = 0, d = __uint_as_float(0x7fc00000);
        } else if (size < 1e-30f) {
            inverse = 0, d = 0;
        } else {
            inverse = 127.0f / size, d = size / 127.0f;
        }
    }

    // Four values as bytes; their sum is added to `sum`.
    __device__ __forceinline__ unsigned round(const float (&values)[4], int& sum) const {
        const float SHIFT = 12582912.0f;
        if (inverse == 0) return 0;
        unsigned bytes = 0;
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const float shifted = values[i] * inverse + SHIFT;
            const int q = (signed char)(__float_as_uint(shifted) - __float_as_uint(SHIFT));
            sum += q;
            bytes |= ((unsigned)q & 255) << 8 * i;
        }
        return bytes;
    }
};

// The sum over `width` neighbouring threads.
__device__ __forceinline__ int sum_of(int sum, unsigned width) {
    for (unsigned by = width / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by, 32);
    return sum;
}

} // namespace quantize

// One scale for 256 values; sums of 16.
extern "C" __global__ void quantize_x256(const float* x, void* out, unsigned width, unsigned x_stride, unsigned rows) {
    using namespace quantize;
    if (blockIdx.x >= rows * ((width + 255) / 256)) return;
    const Place place = quantize::place(x, out, width, x_stride);
    const Values values = read(place, place.count);
    const unsigned first = largest(values.at[0]), second = largest(values.at[1]);
    const Scale scale(largest_of(first > second ? first : second, 32));
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        int sum = 0;
        ((unsigned*)place.out)[32 * half + threadIdx.x] = scale.round(values.at[half], sum);
        sum = sum_of(sum, 4);
        if (threadIdx.x % 4 == 0) ((short*)(place.out + 256))[8 * half + threadIdx.x / 4] = (short)sum;
    }
    if (threadIdx.x == 0) *(float*)(place.out + 288) = scale.d;
}

// A scale and a sum for every 32 values; groups that the row does not fill are zero.
extern "C" __global__ void quantize_x32(const float* x, void* out, unsigned width, unsigned x_stride, unsigned rows) {
    using namespace quantize;
    if (blockIdx.x >= rows * ((width + 255) / 256)) return;
    const Place place = quantize::place(x, out, width, x_stride);
    const Values values = read(place, place.count / 32 * 32);
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        const Scale scale(largest_of(largest(values.at[half]), 8));
        int sum = 0;
        ((unsigned*)place.out)[32 * half + threadIdx.x] = scale.round(values.at[half], sum);
        sum = sum_of(sum, 8);
        if (threadIdx.x % 8 == 0) {
            const unsigned group = 4 * half + threadIdx.x / 8;
            ((float*)(place.out + 256))[group] = scale.d;
            ((int*)(place.out + 288))[group] = sum;
        }
    }
}
