// What CUDA C++ gives a kernel, for an ordinary C++ compiler: the threads of a block are fibers of one thread.
//
// Owns the built-in variables and functions that our kernels use. Blocks run one after another; a thread runs
// until it waits for others. Every second block starts its threads in reverse, so that a barrier that is missing
// shows. It must not know what kernels there are.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One launch at a time in a thread of the process, one block at a time in a launch.
#define __shared__ static thread_local

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// The thread that runs now.
struct Now {
    Index thread, block, grid, threads;
    unsigned char* shared;
};
extern thread_local Now now;

// Waits until all threads of the block are here.
void wait_for_block();

// Puts eight bytes down and waits until all threads of the warp have; the slots are those of the warp's threads.
const uint64_t* exchange(uint64_t mine);

const unsigned WARP = 32;

template <typename T>
inline T from_lane(T value, unsigned lane, bool is_inside) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves eight bytes at most");
    uint64_t mine = 0;
    memcpy(&mine, &value, sizeof(T));
    const uint64_t* slots = exchange(mine);
    // Where the other lane is none of the block's threads, CUDA promises nothing; there we keep the own value.
    if (is_inside && now.thread.x / WARP * WARP + lane < now.threads.x) memcpy(&value, &slots[lane], sizeof(T));
    return value;
}

}  // namespace emulator

#define threadIdx (::emulator::now.thread)
#define blockIdx (::emulator::now.block)
#define gridDim (::emulator::now.grid)
#define blockDim (::emulator::now.threads)

inline void __syncthreads() { ::emulator::wait_for_block(); }

template <typename T>
inline T __shfl_down_sync(unsigned, T value, unsigned by, unsigned width = emulator::WARP) {
    unsigned lane = threadIdx.x % emulator::WARP;
    return emulator::from_lane(value, lane + by, lane % width + by < width);
}

template <typename T>
inline T __shfl_xor_sync(unsigned, T value, unsigned mask, unsigned width = emulator::WARP) {
    unsigned lane = threadIdx.x % emulator::WARP;
    return emulator::from_lane(value, lane ^ mask, (lane ^ mask) / width <= lane / width);
}

template <typename T>
inline T __shfl_sync(unsigned, T value, unsigned from, unsigned width = emulator::WARP) {
    unsigned lane = threadIdx.x % emulator::WARP;
    return emulator::from_lane(value, lane / width * width + from % width, true);
}

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(signed char)(a >> 8 * i) * (int)(signed char)(b >> 8 * i);
    return sum;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

struct __align__(16) int4 {
    int x, y, z, w;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(8) int2 {
    int x, y;
};
struct __align__(8) uint2 {
    unsigned x, y;
};
struct __align__(8) float2 {
    float x, y;
};
