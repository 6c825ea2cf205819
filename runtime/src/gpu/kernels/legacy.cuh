// The formats of 32 weights a block and plain floats, as `kernels/cpu/{legacy,portable}.rs` describe them.
//
// Owns the reading of whole blocks by one thread. Knows no activations. Stored integers come out signed, without the
// format's offset.
#pragma once

#include "loads.cuh"
#include "tables.cuh"

// 32 weights: d * word + m.
struct Part32 {
    // Weights 4 i .. 4 i + 4, one a byte.
    int words[8];
    float d, m;
};

namespace formats {

// 32 weights of 4 bits: the low halves of 16 bytes, then the high ones.
static __device__ __forceinline__ unsigned nibbles(const unsigned (&packed)[4], unsigned i) {
    return packed[i % 4] >> 4 * (i / 4) & 0x0f0f0f0f;
}

struct Q4_0 {
    static constexpr unsigned BYTES = 18;
    static constexpr bool HAS_MIN = false;

    __device__ __forceinline__ explicit Q4_0(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        unsigned packed[4];
        loads::words_at<4>(block + 2, packed);
        out.d = loads::half_at(block);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = loads::less<8>(nibbles(packed, i));
        }
    }
};

struct Q4_1 {
    static constexpr unsigned BYTES = 20;
    static constexpr bool HAS_MIN = true;

    __device__ __forceinline__ explicit Q4_1(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        const unsigned head = loads::word_at(block);
        unsigned packed[4];
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            packed[i] = loads::word_at(block + 4 + 4 * i);
        }
        out.d = half_to_float(static_cast<unsigned short>(head));
        out.m = half_to_float(static_cast<unsigned short>(head >> 16));
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = static_cast<int>(nibbles(packed, i));
        }
    }
};

// Weight i's fifth bit is bit i.
static __device__ __forceinline__ unsigned fifth_bits(unsigned bits, unsigned i) {
    return loads::spread(bits >> 4 * i) << 4;
}

struct Q5_0 {
    static constexpr unsigned BYTES = 22;
    static constexpr bool HAS_MIN = false;

    __device__ __forceinline__ explicit Q5_0(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        unsigned packed[4];
        loads::words_at<4>(block + 6, packed);
        const unsigned bits = loads::split_word_at(block + 2);
        out.d = loads::half_at(block);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = loads::less<16>(nibbles(packed, i) | fifth_bits(bits, i));
        }
    }
};

struct Q5_1 {
    static constexpr unsigned BYTES = 24;
    static constexpr bool HAS_MIN = true;

    __device__ __forceinline__ explicit Q5_1(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        const unsigned head = loads::word_at(block), bits = loads::word_at(block + 4);
        unsigned packed[4];
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            packed[i] = loads::word_at(block + 8 + 4 * i);
        }
        out.d = half_to_float(static_cast<unsigned short>(head));
        out.m = half_to_float(static_cast<unsigned short>(head >> 16));
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = static_cast<int>(nibbles(packed, i) | fifth_bits(bits, i));
        }
    }
};

struct Q8_0 {
    static constexpr unsigned BYTES = 34;
    static constexpr bool HAS_MIN = false;

    __device__ __forceinline__ explicit Q8_0(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        unsigned words[8];
        loads::words_at<8>(block + 2, words);
        out.d = loads::half_at(block);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = static_cast<int>(words[i]);
        }
    }
};

struct Iq4Nl {
    static constexpr unsigned BYTES = 18;
    static constexpr bool HAS_MIN = false;
    loads::Levels levels;

    __device__ __forceinline__ explicit Iq4Nl(const unsigned char* tables) : levels(tables + TABLE_NONLINEAR) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        unsigned packed[4];
        loads::words_at<4>(block + 2, packed);
        out.d = loads::half_at(block);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = levels.of_bytes(nibbles(packed, i));
        }
    }
};

struct Mxfp4 {
    static constexpr unsigned BYTES = 17;
    static constexpr bool HAS_MIN = false;
    loads::Levels levels;

    __device__ __forceinline__ explicit Mxfp4(const unsigned char* tables) : levels(tables + TABLE_E2M1) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, Part32& out) const {
        unsigned packed[4];
        loads::words_anywhere<4>(block + 1, packed);
        // The integers are doubled, so d is half the power of two: 2^(e - 128), below the normal range for e < 2.
        const unsigned e = loads::byte_at(block);
        out.d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            out.words[i] = levels.of_bytes(nibbles(packed, i));
        }
    }
};

struct F32 {
    static constexpr unsigned BYTES = 4;

    static __device__ __forceinline__ float one(const unsigned char* at) { return loads::get<float>(at); }

    // Two at a multiple of 8.
    static __device__ __forceinline__ void two(const unsigned char* at, float (&out)[2]) {
        const float2 both = loads::get<float2>(at);
        out[0] = both.x, out[1] = both.y;
    }
};

struct F16 {
    static constexpr unsigned BYTES = 2;

    static __device__ __forceinline__ float one(const unsigned char* at) { return loads::half_at(at); }

    // Two at a multiple of 4.
    static __device__ __forceinline__ void two(const unsigned char* at, float (&out)[2]) {
        const unsigned both = loads::word_at(at);
        out[0] = half_to_float(static_cast<unsigned short>(both));
        out[1] = half_to_float(static_cast<unsigned short>(both >> 16));
    }
};

struct BF16 {
    static constexpr unsigned BYTES = 2;

    static __device__ __forceinline__ float one(const unsigned char* at) {
        return __uint_as_float(loads::short_at(at) << 16);
    }

    // Two at a multiple of 4.
    static __device__ __forceinline__ void two(const unsigned char* at, float (&out)[2]) {
        const unsigned both = loads::word_at(at);
        out[0] = __uint_as_float(both << 16);
        out[1] = __uint_as_float(both & 0xffff0000);
    }
};

} // namespace formats
