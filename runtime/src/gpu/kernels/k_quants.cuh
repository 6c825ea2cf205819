// The K-quants: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, as `kernels/cpu/k_quants.rs` describes them.
//
// Owns what one of eight threads reads of a block: thread l has values 4 l .. 4 l + 4 of every 32, and the minima of
// values 32 l .. 32 l + 32. Knows no activations.
#pragma once

#include "loads.cuh"

// A thread's part of 256 weights.
struct Part256 {
    // Four weights of each 32, one a byte, as they are stored.
    int words[8];
    // The scale of each word.
    int scales[8];
    // What is taken off for sixteens 2 l and 2 l + 1, if anything is: see `Minus`.
    int minus[2];
    float d, d_min;
};

// What a format takes off the products d * scale * word.
enum class Minus {
    NOTHING,
    // d_min * minimum.
    MINIMA,
    // d * scale * offset, since stored integers are that much too large.
    OFFSET,
};

namespace formats {

// Byte `index` of some words.
static __device__ __forceinline__ int byte_of(const unsigned* words, unsigned index) {
    return static_cast<int>(words[index / 4] >> 8 * (index % 4) & 255);
}

struct Q2K {
    static constexpr unsigned BYTES = 84;
    static constexpr Minus MINUS = Minus::MINIMA;

    __device__ __forceinline__ explicit Q2K(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned scales[4];
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            scales[i] = loads::word_at(block + 4 * i) >> 8 * (lane / 4);
        }
        const unsigned mins = loads::short_at(block + 2 * lane);
        const unsigned d = loads::word_at(block + 80);
        UNROLL
        for (unsigned i = 0; i < 2; i++) {
            const unsigned four_planes = loads::word_at(block + 16 + 32 * i + 4 * lane);
            UNROLL
            for (unsigned plane = 0; plane < 4; plane++) {
                out.words[4 * i + plane] = static_cast<int>(four_planes >> 2 * plane & 0x03030303);
                out.scales[4 * i + plane] = byte_of(scales, 2 * (4 * i + plane)) & 15;
            }
        }
        out.minus[0] = static_cast<int>(mins >> 4 & 15);
        out.minus[1] = static_cast<int>(mins >> 12);
        out.d = half_to_float(static_cast<unsigned short>(d));
        out.d_min = half_to_float(static_cast<unsigned short>(d >> 16));
    }
};

struct Q3K {
    static constexpr unsigned BYTES = 110;
    static constexpr Minus MINUS = Minus::OFFSET;

    __device__ __forceinline__ explicit Q3K(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned packed[3];
        loads::words_at<3>(block + 96, packed);
        const unsigned third_bits = loads::split_word_at(block + 4 * lane);
        unsigned planes[2];
        planes[0] = loads::split_word_at(block + 32 + 4 * lane);
        planes[1] = loads::split_word_at(block + 64 + 4 * lane);
        out.d = loads::half_at(block + 108);
        const unsigned low_pair = (lane % 4 < 2 ? packed[0] : packed[1]) >> (16 * (lane % 2) + 4 * (lane / 4));
        const unsigned high_pair = packed[2] >> (16 * (lane % 2) + 2 * (lane / 2));
        out.minus[0] = 4 * scale(low_pair, high_pair), out.minus[1] = 4 * scale(low_pair >> 8, high_pair >> 8);
        // Of two neighbouring scales the first 16 of 32 weights have one, the others the next.
        UNROLL
        for (unsigned i = 0; i < 3; i++) {
            packed[i] >>= 8 * (lane / 4);
        }
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            out.scales[j] =
                scale(packed[j % 4 / 2] >> (16 * (j % 2) + 4 * (j / 4)), packed[2] >> (16 * (j % 2) + 2 * (j / 2)));
            const unsigned word = planes[j / 4] >> 2 * (j % 4) & 0x03030303;
            out.words[j] = static_cast<int>(word | (third_bits >> j & 0x01010101) << 2);
        }
    }

    // The low 4 bits and the high 2 bits of a scale, whatever stands above them; stored 32 too large.
    static __device__ __forceinline__ int scale(unsigned low, unsigned high) {
        return static_cast<int>((low & 15) | (high & 3) << 4) - 32;
    }
};

// What Q4_K and Q5_K begin with: d, d_min, scales and minima of 6 bits.
static __device__ __forceinline__ void six_bits(const unsigned char* block, unsigned lane, Part256& out) {
    unsigned head[4];
    loads::aligned_words<4>(block, head);
    const unsigned scales[2] = {
        head[1] & 0x3f3f3f3f,
        (head[3] & 0x0f0f0f0f) | (head[1] >> 2 & 0x30303030),
    };
    const unsigned min_words[2] = {
        head[2] & 0x3f3f3f3f,
        (head[3] >> 4 & 0x0f0f0f0f) | (head[2] >> 2 & 0x30303030),
    };
    UNROLL
    for (unsigned j = 0; j < 8; j++) {
        out.scales[j] = byte_of(scales, j);
    }
    const unsigned mins = lane < 4 ? min_words[0] : min_words[1];
    out.minus[0] = out.minus[1] = static_cast<int>(mins >> 8 * (lane % 4) & 255);
    out.d = half_to_float(static_cast<unsigned short>(head[0]));
    out.d_min = half_to_float(static_cast<unsigned short>(head[0] >> 16));
}

struct Q4K {
    static constexpr unsigned BYTES = 144;
    static constexpr Minus MINUS = Minus::MINIMA;

    __device__ __forceinline__ explicit Q4K(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        six_bits(block, lane, out);
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned two = loads::word_at(block + 16 + 32 * i + 4 * lane);
            out.words[2 * i] = static_cast<int>(two & 0x0f0f0f0f);
            out.words[2 * i + 1] = static_cast<int>(two >> 4 & 0x0f0f0f0f);
        }
    }
};

struct Q5K {
    static constexpr unsigned BYTES = 176;
    static constexpr Minus MINUS = Minus::MINIMA;

    __device__ __forceinline__ explicit Q5K(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        six_bits(block, lane, out);
        const unsigned fifth_bits = loads::word_at(block + 16 + 4 * lane);
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const unsigned two = loads::word_at(block + 48 + 32 * i + 4 * lane);
            const unsigned first = fifth_bits >> 2 * i & 0x01010101;
            const unsigned second = fifth_bits >> (2 * i + 1) & 0x01010101;
            out.words[2 * i] = static_cast<int>((two & 0x0f0f0f0f) | first << 4);
            out.words[2 * i + 1] = static_cast<int>((two >> 4 & 0x0f0f0f0f) | second << 4);
        }
    }
};

struct Q6K {
    static constexpr unsigned BYTES = 210;
    static constexpr Minus MINUS = Minus::OFFSET;

    __device__ __forceinline__ explicit Q6K(const unsigned char*) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned low[4], high[2];
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            low[i] = loads::split_word_at(block + 32 * i + 4 * lane);
        }
        high[0] = loads::split_word_at(block + 128 + 4 * lane);
        high[1] = loads::split_word_at(block + 160 + 4 * lane);
        out.d = loads::half_at(block + 208);
        const unsigned pair = loads::short_at(block + 192 + 2 * lane);
        out.minus[0] = 32 * static_cast<signed char>(pair), out.minus[1] = 32 * static_cast<signed char>(pair >> 8);
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned scale = loads::byte_at(block + 192 + 2 * j + lane / 4);
            out.scales[j] = static_cast<signed char>(scale);
            const unsigned four = low[j / 4 * 2 + j % 2] >> j % 4 / 2 * 4 & 0x0f0f0f0f;
            const unsigned two = high[j / 4] >> 2 * (j % 4) & 0x03030303;
            out.words[j] = static_cast<int>(four | two << 4);
        }
    }
};

} // namespace formats
