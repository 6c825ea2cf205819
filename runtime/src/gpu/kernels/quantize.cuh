// Activation rows in 8 bits, bit by bit as `kernels/cpu/activations.rs` makes them.
//
// Owns the two layouts' quantizers: a warp makes one block of 256. It must not know weights.
#pragma once

#include "loads.cuh"

namespace quantize {

// Threads of a block that only quantizes, as `gpu/shapes.rs` says. Lane t of a warp has values 4 t .. 4 t + 4 of each
// half of 256.
const unsigned THREADS = 32;
// Bytes of 256 quantized values.
const unsigned BLOCK_BYTES = 320;

// Which layout: what `gpu/shapes.rs` calls `side_number`.
enum Side : unsigned { NONE = 0, X32 = 1, X256 = 2 };

// What one thread has of 256 values: four of the first half, four of the second.
struct Values {
    float at[2][4];
};

// A block of 256 values of a row, by its number among those of all rows.
struct Place {
    unsigned row, start;
    // Values of the row from `start` on, up to 256.
    unsigned count;

    __device__ __forceinline__ Place(unsigned block, unsigned width) {
        const unsigned per_row = (width + 255) / 256;
        row = block / per_row, start = block % per_row * 256;
        count = width - start < 256 ? width - start : 256;
    }
};

// Where in the block value `i` of a half stands.
__device__ __forceinline__ unsigned index(unsigned half, unsigned i, unsigned lane) { return 128 * half + 4 * lane + i; }

// Values behind `count` are zero. `value(i)` is value i of the block.
template <typename V> __device__ __forceinline__ Values read(const V& value, unsigned count, unsigned lane) {
    Values values;
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned at = index(half, i, lane);
            values.at[half][i] = at < count ? value(at) : 0.0f;
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

// One scale for 256 values; sums of 16. By one warp.
__device__ __forceinline__ void pack_x256(const Values& values, u8* out, unsigned lane) {
    const unsigned first = largest(values.at[0]), second = largest(values.at[1]);
    const Scale scale(largest_of(first > second ? first : second, 32));
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        int sum = 0;
        ((unsigned*)out)[32 * half + lane] = scale.round(values.at[half], sum);
        sum = sum_of(sum, 4);
        if (lane % 4 == 0) ((short*)(out + 256))[8 * half + lane / 4] = (short)sum;
    }
    if (lane == 0) *(float*)(out + 288) = scale.d;
}

// A scale and a sum for every 32 values. By one warp.
__device__ __forceinline__ void pack_x32(const Values& values, u8* out, unsigned lane) {
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        const Scale scale(largest_of(largest(values.at[half]), 8));
        int sum = 0;
        ((unsigned*)out)[32 * half + lane] = scale.round(values.at[half], sum);
        sum = sum_of(sum, 8);
        if (lane % 8 == 0) {
            const unsigned group = 4 * half + lane / 8;
            ((float*)(out + 256))[group] = scale.d;
            ((int*)(out + 288))[group] = sum;
        }
    }
}

// A block in either layout, by one warp.
__device__ __forceinline__ void pack(unsigned side, const Values& values, u8* out, unsigned lane) {
    if (side == X256) pack_x256(values, out, lane);
    else pack_x32(values, out, lane);
}

// Quantizes rows, a warp a block of 256 values. Groups of 32 that a row does not fill are zero.
__device__ __forceinline__ void rows(unsigned side, const float* x, u8* out, unsigned width, unsigned x_stride,
                                     unsigned count) {
    if (blockIdx.x >= count * ((width + 255) / 256)) return;
    const Place place(blockIdx.x, width);
    const float* from = x + (size_t)place.row * x_stride + place.start;
    const auto value = [from](unsigned i) { return loads::get<float>(from + i); };
    const unsigned whole = side == X256 ? place.count : place.count / 32 * 32;
    pack(side, read(value, whole, threadIdx.x), out + (size_t)blockIdx.x * BLOCK_BYTES, threadIdx.x);
}

} // namespace quantize

extern "C" __global__ void quantize_x256(const float* x, u8* out, unsigned width, unsigned x_stride, unsigned rows) {
    after_previous();
    quantize::rows(quantize::X256, x, out, width, x_stride, rows);
}

extern "C" __global__ void quantize_x32(const float* x, u8* out, unsigned width, unsigned x_stride, unsigned rows) {
    after_previous();
    quantize::rows(quantize::X32, x, out, width, x_stride, rows);
}
