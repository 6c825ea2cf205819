// Reading packed bytes: words at odd places, bytes chosen and spread within a word.
//
// Owns what the block formats share (k_quants.cuh, i_quants.cuh, legacy.cuh). It must not know formats. What is
// loaded here does not change while a kernel runs, so that loads go through the read-only path where no two kernels
// overlap (below 9.0; see `get`).
#pragma once

#include "common.cuh"

// Before a loop that is to be written out turn by turn, so that its arrays are registers.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

namespace loads {

// The T at `at`, which is aligned as a T wants to be. Where kernels overlap, the compiler must not believe that it may
// move this above `after_previous`.
template <typename T> static __device__ __forceinline__ T get(const void* at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return __ldg(static_cast<const T*>(at));
#else
    return *static_cast<const T*>(at);
#endif
}

// Asks for `bytes` bytes, by all threads of a block: they will be near when they are loaded.
static __device__ __forceinline__ void fetch(const unsigned char* from, size_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    for (size_t at = 128 * (size_t)threadIdx.x; at < bytes; at += 128 * (size_t)blockDim.x) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
    }
#else
    (void)from, (void)bytes;
#endif
}

static __device__ __forceinline__ unsigned byte_at(const unsigned char* at) { return get<unsigned char>(at); }

// At a multiple of 2.
static __device__ __forceinline__ unsigned short_at(const unsigned char* at) { return get<unsigned short>(at); }

// At a multiple of 4.
static __device__ __forceinline__ unsigned word_at(const unsigned char* at) { return get<unsigned>(at); }

// At a multiple of 2.
static __device__ __forceinline__ unsigned split_word_at(const unsigned char* at) {
    return short_at(at) | short_at(at + 2) << 16;
}

// The half float at a multiple of 2.
static __device__ __forceinline__ float half_at(const unsigned char* at) {
    return half_to_float(static_cast<unsigned short>(short_at(at)));
}

// The lower word of the two, shifted right by 0 to 31 bits.
static __device__ __forceinline__ unsigned shift_pair(unsigned low, unsigned high, unsigned bits) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> bits);
}

// N words at a multiple of 16.
template <unsigned N>
static __device__ __forceinline__ void aligned_words(const unsigned char* at, unsigned (&out)[N]) {
    UNROLL
    for (unsigned i = 0; i < N / 4; i++) {
        const uint4 four = get<uint4>(at + 16 * i);
        out[4 * i] = four.x, out[4 * i + 1] = four.y, out[4 * i + 2] = four.z, out[4 * i + 3] = four.w;
    }
}

// N words at a multiple of 2, by loads of whole words. Reads no byte behind them, and two in front of them unless
// they stand at a multiple of 4.
template <unsigned N>
static __device__ __forceinline__ void words_at(const unsigned char* at, unsigned (&out)[N]) {
    const unsigned odd = static_cast<unsigned>(reinterpret_cast<size_t>(at)) & 2;
    unsigned words[N + 1];
    UNROLL
    for (unsigned i = 0; i < N; i++) {
        words[i] = word_at(at - odd + 4 * i);
    }
    words[N] = short_at(at + 4 * N - 2);
    UNROLL
    for (unsigned i = 0; i < N; i++) {
        out[i] = shift_pair(words[i], words[i + 1], 8 * odd);
    }
}

// N words anywhere. Reads the whole words that their first and last bytes stand in.
template <unsigned N>
static __device__ __forceinline__ void words_anywhere(const unsigned char* at, unsigned (&out)[N]) {
    const unsigned odd = static_cast<unsigned>(reinterpret_cast<size_t>(at)) & 3;
    const unsigned char* last = at + 4 * N - 1;
    unsigned words[N + 1];
    UNROLL
    for (unsigned i = 0; i < N; i++) {
        words[i] = word_at(at - odd + 4 * i);
    }
    words[N] = word_at(last - (reinterpret_cast<size_t>(last) & 3));
    UNROLL
    for (unsigned i = 0; i < N; i++) {
        out[i] = shift_pair(words[i], words[i + 1], 8 * odd);
    }
}

// Byte i is byte (selector >> 4 i) & 7 of the two words.
static __device__ __forceinline__ unsigned permute(unsigned low, unsigned high, unsigned selector) {
#ifdef __CUDACC__
    return __byte_perm(low, high, selector);
#else
    const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
    unsigned out = 0;
    for (unsigned i = 0; i < 4; i++) {
        out |= (both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    }
    return out;
#endif
}

// Byte i is bit i of the lowest four.
static __device__ __forceinline__ unsigned spread(unsigned bits) { return ((bits & 15) * 0x00204081) & 0x01010101; }

// `value - OFFSET` in every byte; bytes are below 128, the offset is a power of two up to 64.
template <unsigned OFFSET> static __device__ __forceinline__ int less(unsigned bytes) {
    return static_cast<int>((bytes + (128 - OFFSET) * 0x01010101) ^ 0x80808080);
}

// 16 levels of one byte each, in registers.
struct Levels {
    unsigned words[4];

    __device__ __forceinline__ explicit Levels(const unsigned char* at) { aligned_words<4>(at, words); }

    // The levels that the four lowest hexadecimal digits name; digits above them do not count.
    __device__ __forceinline__ unsigned of(unsigned digits) const {
        const unsigned low = permute(words[0], words[1], digits);
        const unsigned high = permute(words[2], words[3], digits);
        return permute(low, high, 0x3210 | (digits & 0x8888) >> 1);
    }

    // The levels that the low digits of four bytes name.
    __device__ __forceinline__ int of_bytes(unsigned bytes) const {
        const unsigned low = bytes & 0x0f0f0f0f;
        return static_cast<int>(of(permute(low | low >> 4, 0, 0x7720)));
    }
};

} // namespace loads
