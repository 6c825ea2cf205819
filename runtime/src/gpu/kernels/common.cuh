// What all kernels share: arithmetic that has the bits of the CPU path, and structs of the launch interface.
//
// Owns f16 conversions (those of the `half` crate), our exponential (`kernels/vector.rs`) and `Jobs`. Compiled by
// nvcc with --fmad=false, and by a C++ compiler for the emulated card.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
// A struct that is a parameter is read where it lies, not copied by every thread.
#define PARAMETER(type) const __grid_constant__ type
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = (type*)dynamic_shared
#define UNROLL _Pragma("unroll")
#else
#include "emulator.h"
#define PARAMETER(type) const type&
#define DYNAMIC_SHARED(type, name) type* name = (type*)::emulator::now.shared
#define UNROLL
#endif

#define ALL_LANES 0xffffffffu

typedef unsigned char u8;
typedef unsigned short u16;

// `Jobs::x_step` where a job's `rows` are no address but up to eight numbers of rows below 256, a byte each, the first
// lowest.
#define PACKED_ROWS 0xffffffffu

// One matrix and the activation rows it multiplies.
struct Job {
    const u8* w;
    const unsigned* rows;
    float* out;
    unsigned n, count, x_first;
    unsigned out_stride;  // floats
};

// What a launch takes: many small jobs on rows of the same activations.
struct Jobs {
    const u8* x;
    unsigned x_stride;  // bytes between activation rows
    unsigned x_step;
    Job job[96];
};

static_assert(sizeof(Job) == 40 && sizeof(Jobs) == 3856, "as the host packs it");

// What every kernel begins with. Where the card can (compute capability 9.0), blocks of the next kernel come to the
// multiprocessors as soon as all of this one's have, and wait here until what was queued before is done and seen, so that
// starting takes no time of its own. Above this nothing is read that a kernel writes, and nothing is written at all.
__device__ __forceinline__ void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The float of an f16.
__device__ __forceinline__ float half_to_float(u16 bits) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    unsigned sign = (unsigned)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) {
        unsigned quiet = rest > 0x7c00 ? 0x400000 : 0;
        return __uint_as_float(sign | 0x7f800000 | quiet | (rest & 0x3ff) << 13);
    }
    // The exponent's bias is off by 112; the product is exact, for subnormal numbers too.
    float value = __uint_as_float(rest << 13) * __uint_as_float((127 + 112) << 23);
    return __uint_as_float(sign | __float_as_uint(value));
#endif
}

// The nearest f16, halves to even. What is not a number keeps the front of its bits, as on x86.
__device__ __forceinline__ u16 float_to_half(float value) {
    unsigned bits = __float_as_uint(value);
    unsigned sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (u16)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
    if (rest >= 0x477ff000) return (u16)(sign | 0x7c00);  // 65520 and more
    if (rest < 0x38800000) {
        // Subnormal: adding 0.5 leaves the steps of 2^-24 in the last bits.
        float shifted = __uint_as_float(rest) + 0.5f;
        return (u16)(sign | (__float_as_uint(shifted) - 0x3f000000));
    }
    unsigned rounded = rest + 0xfff + (rest >> 13 & 1);
    return (u16)(sign | ((rounded - (112u << 23)) >> 13));
}

// The float of a bf16.
__device__ __forceinline__ float bf16_to_float(u16 bits) {
    unsigned quiet = (bits & 0x7fff) > 0x7f80 ? 0x40 : 0;
    return __uint_as_float((bits | quiet) << 16);
}

// 2^n in the range of normal numbers.
__device__ __forceinline__ float power_of_two(int n) {
    return __uint_as_float(((unsigned)n + 127u) << 23);
}

// e^x, bit by bit that of `vector.rs`, where it is explained.
__device__ __forceinline__ float exp_ours(float x) {
    const float ROUND = 12582912.0f;
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float rounded = x * 1.44269504088896340736f + ROUND;
    float n = rounded - ROUND;
    float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
    float sum = 1.9875691e-4f;
    sum = sum * r + 1.3981999e-3f;
    sum = sum * r + 8.333452e-3f;
    sum = sum * r + 4.1665796e-2f;
    sum = sum * r + 1.6666665e-1f;
    sum = sum * r + 0.5f;
    float power = (sum * (r * r) + r) + 1.0f;
    int whole = (int)(__float_as_uint(rounded) - __float_as_uint(ROUND));
    int half = whole >> 1;
    return power * power_of_two(half) * power_of_two((int)((unsigned)whole - (unsigned)half));
}

// The greater of two numbers; one that is not a number never replaces another.
__device__ __forceinline__ float greater(float a, float b) { return b > a ? b : a; }
