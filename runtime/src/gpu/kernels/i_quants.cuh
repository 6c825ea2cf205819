// The I-quants of 256 weights a block, as `kernels/cpu/i_quants.rs` describes them.
//
// Owns what one of eight threads reads of a block: thread l has values 4 l .. 4 l + 4 of every 32, which is row l of
// a codebook of fours, half l % 2 of row l / 2 of a codebook of eights. Knows no activations.
#pragma once

#include "k_quants.cuh"
#include "tables.cuh"

namespace formats {

// Four weights, negated where a bit is set. No weight is 0, so that nothing carries from byte to byte.
static __device__ __forceinline__ int negate(unsigned weights, unsigned bits) {
    const unsigned ones = loads::spread(bits);
    return static_cast<int>((weights ^ ones * 255) + ones);
}

// A thread's four of seven signs, whose eighth makes the number of set ones even.
static __device__ __forceinline__ unsigned even_signs(unsigned seven, unsigned lane) {
    seven &= 127;
    const unsigned parity = 0x6996u >> ((seven ^ seven >> 4) & 15) & 1;
    return (seven | parity << 7) >> 4 * (lane % 2);
}

static __device__ __forceinline__ int odd(unsigned scale) { return static_cast<int>(2 * scale + 1); }

struct Iq4Xs {
    static constexpr unsigned BYTES = 136;
    static constexpr Minus MINUS = Minus::NOTHING;
    loads::Levels levels;

    __device__ __forceinline__ explicit Iq4Xs(const unsigned char* tables) : levels(tables + TABLE_NONLINEAR) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        const unsigned head = loads::word_at(block), low = loads::word_at(block + 4);
        out.d = half_to_float(static_cast<unsigned short>(head));
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned digits = loads::word_at(block + 8 + 16 * j + 4 * (lane % 4)) >> 4 * (lane / 4);
            out.words[j] = levels.of_bytes(digits);
            const unsigned scale = (low >> 4 * j & 15) | (head >> (16 + 2 * j) & 3) << 4;
            out.scales[j] = static_cast<int>(scale) - 32;
        }
    }
};

struct Iq3Xxs {
    static constexpr unsigned BYTES = 98;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq3Xxs(const unsigned char* tables) : rows(tables + TABLE_IQ3_XXS) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned signs[8];
        loads::words_at<8>(block + 66, signs);
        out.d = loads::half_at(block) * 0.25f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned weights = loads::word_at(rows + 4 * loads::byte_at(block + 2 + 8 * j + lane));
            out.words[j] = negate(weights, even_signs(signs[j] >> 7 * (lane / 2), lane));
            out.scales[j] = odd(signs[j] >> 28);
        }
    }
};

struct Iq3S {
    static constexpr unsigned BYTES = 110;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq3S(const unsigned char* tables) : rows(tables + TABLE_IQ3_S) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned high[2];
        loads::words_at<2>(block + 66, high);
        const unsigned scales = loads::split_word_at(block + 106);
        out.d = loads::half_at(block);
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned ninth = high[j / 4] >> (8 * (j % 4) + lane) & 1;
            const unsigned row = loads::byte_at(block + 2 + 8 * j + lane) | ninth << 8;
            const unsigned signs = loads::byte_at(block + 74 + 4 * j + lane / 2);
            out.words[j] = negate(loads::word_at(rows + 4 * row), signs >> 4 * (lane % 2));
            out.scales[j] = odd(scales >> 4 * j & 15);
        }
    }
};

// The thread's half of row `row` of a codebook of eights.
static __device__ __forceinline__ unsigned half_row(const unsigned char* rows, unsigned row, unsigned lane) {
    return loads::word_at(rows + 8 * row + 4 * (lane % 2));
}

struct Iq2Xxs {
    static constexpr unsigned BYTES = 66;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq2Xxs(const unsigned char* tables) : rows(tables + TABLE_IQ2_XXS) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned words[16];
        loads::words_at<16>(block + 2, words);
        out.d = loads::half_at(block) * 0.125f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned row = words[2 * j] >> 8 * (lane / 2) & 255, signs = words[2 * j + 1];
            out.words[j] = negate(half_row(rows, row, lane), even_signs(signs >> 7 * (lane / 2), lane));
            out.scales[j] = odd(signs >> 28);
        }
    }
};

struct Iq2Xs {
    static constexpr unsigned BYTES = 74;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq2Xs(const unsigned char* tables) : rows(tables + TABLE_IQ2_XS) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned scales[2];
        loads::words_at<2>(block + 66, scales);
        out.d = loads::half_at(block) * 0.125f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned code = loads::short_at(block + 2 + 8 * j + 2 * (lane / 2));
            out.words[j] = negate(half_row(rows, code & 511, lane), even_signs(code >> 9, lane));
            out.scales[j] = odd(byte_of(scales, j) >> 4 * (lane / 4) & 15);
        }
    }
};

struct Iq2S {
    static constexpr unsigned BYTES = 82;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq2S(const unsigned char* tables) : rows(tables + TABLE_IQ2_S) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        // The row numbers' high bits, then the scales.
        unsigned words[4];
        loads::words_at<4>(block + 66, words);
        out.d = loads::half_at(block) * 0.125f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned high = words[j / 4] >> (8 * (j % 4) + lane / 2 * 2) & 3;
            const unsigned row = loads::byte_at(block + 2 + 4 * j + lane / 2) | high << 8;
            const unsigned signs = loads::byte_at(block + 34 + 4 * j + lane / 2);
            out.words[j] = negate(half_row(rows, row, lane), signs >> 4 * (lane % 2));
            out.scales[j] = odd(byte_of(words, 8 + j) >> 4 * (lane / 4) & 15);
        }
    }
};

// 8 w + 1 for the weights w of a half row, 8 w - 1 where `flag` is 1 (not 0). Rows are 128 too large, so that no
// byte borrows.
static __device__ __forceinline__ int eighths(unsigned weights, unsigned flag) {
    return static_cast<int>((weights - flag * 0x02020202) ^ 0x80808080);
}

struct Iq1S {
    static constexpr unsigned BYTES = 50;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq1S(const unsigned char* tables) : rows(tables + TABLE_IQ1) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned high[4];
        loads::words_at<4>(block + 34, high);
        out.d = loads::half_at(block) * 0.125f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned bits = high[j / 2] >> 16 * (j % 2) & 0xffff;
            const unsigned low = loads::byte_at(block + 2 + 4 * j + lane / 2);
            const unsigned row = low | (bits >> 3 * (lane / 2) & 7) << 8;
            out.words[j] = eighths(half_row(rows, row, lane), bits >> 15);
            out.scales[j] = odd(bits >> 12 & 7);
        }
    }
};

struct Iq1M {
    static constexpr unsigned BYTES = 56;
    static constexpr Minus MINUS = Minus::NOTHING;
    const unsigned char* rows;

    __device__ __forceinline__ explicit Iq1M(const unsigned char* tables) : rows(tables + TABLE_IQ1) {}

    __device__ __forceinline__ void unpack(const unsigned char* block, unsigned lane, Part256& out) const {
        unsigned packed[2];
        packed[0] = loads::word_at(block + 48);
        packed[1] = loads::word_at(block + 52);
        const unsigned d = (packed[0] >> 12 & 0x000f) | (packed[0] >> 24 & 0x00f0) | (packed[1] >> 4 & 0x0f00)
            | (packed[1] >> 16 & 0xf000);
        out.d = half_to_float(static_cast<unsigned short>(d)) * 0.125f;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const unsigned bits = loads::short_at(block + 32 + 2 * j) >> 4 * (lane / 2);
            const unsigned row = loads::byte_at(block + 4 * j + lane / 2) | (bits & 7) << 8;
            out.words[j] = eighths(half_row(rows, row, lane), bits >> 3 & 1);
            const unsigned scales = packed[j / 4] >> 16 * (j / 2 % 2);
            out.scales[j] = odd(scales >> (6 * (j % 2) + 3 * (lane / 4)) & 7);
        }
    }
};

} // namespace formats
