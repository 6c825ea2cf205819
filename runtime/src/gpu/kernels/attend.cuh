// The key/value cache and attention over it, bit by bit `kernels/kv_rows.rs` and `kernels/attend.rs`, where layout
// and order of arithmetic are explained.
//
// A cache holds rows of one KV head after another: head h's position p is row `h * context_len + p`. A row of the
// pass sees its own position and all before it.
#pragma once

#include "common.cuh"

// Values of a Q8_0 block, its bytes, and positions of a tile.
#define KV_BLOCK 32u
#define KV_BLOCK_BYTES 34u
#define TILE 32u

// How a cache row is laid out: values in Q8_0 blocks, then values in f16.
struct RowLayout {
    unsigned quantized, halves;
    __device__ __forceinline__ unsigned dim() const { return quantized + halves; }
    __device__ __forceinline__ unsigned halves_at() const { return quantized / KV_BLOCK * KV_BLOCK_BYTES; }
    __device__ __forceinline__ unsigned bytes() const { return halves_at() + 2 * halves; }
};

__device__ __forceinline__ float signed_byte(unsigned bits) { return (float)(signed char)(bits & 0xff); }

// `pack_block` by one warp, a value each.
__device__ __forceinline__ void pack_block(float value, u8* block) {
    unsigned lane = threadIdx.x % 32;
    unsigned largest = __float_as_uint(value) & 0x7fffffff;
    for (unsigned by = 16; by > 0; by /= 2) {
        unsigned other = __shfl_xor_sync(ALL_LANES, largest, by, 32);
        largest = other > largest ? other : largest;
    }
    // What is not finite comes last in the order of integers.
    u16 factor = largest < 0x7f800000 ? float_to_half(__uint_as_float(largest) / 127.0f) : (u16)0x7e00;
    float inverse = factor == 0 ? 0.0f : 1.0f / half_to_float(factor);
    float rounded = rintf(value * inverse);
    rounded = rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded;
    block[lane] = rounded == rounded ? (u8)(signed char)rounded : 0;
    if (lane == 0) *(u16*)(block + KV_BLOCK) = factor;
}

// Packs the rows of the pass into the cache: `RowLayout::pack`. One block a (row, head), 128 threads.
extern "C" __global__ void store_rows(const float* x, u8* cache, unsigned heads, unsigned x_stride,
                                      unsigned context_len, unsigned start, unsigned quantized, unsigned halves) {
    unsigned row = blockIdx.x / heads, head = blockIdx.x % heads;
    RowLayout layout = {quantized, halves};
    const float* values = x + (size_t)blockIdx.x * x_stride;
    u8* to = cache + ((size_t)head * context_len + start + row) * layout.bytes();
    for (unsigned block = threadIdx.x / 32; block < quantized / KV_BLOCK; block += blockDim.x / 32)
        pack_block(values[block * KV_BLOCK + threadIdx.x % 32], to + block * KV_BLOCK_BYTES);
    u16* cells = (u16*)(to + layout.halves_at());
    for (unsigned i = threadIdx.x; i < halves; i += blockDim.x) cells[i] = float_to_half(values[quantized + i]);
}

// Queries against latent rows: `[absorbed | rotated part of q]`. One block a (row, head), 128 threads.
extern "C" __global__ void mla_query(const float* absorbed, const float* q, float* out, unsigned kv_lora,
                                     unsigned nope, unsigned rope) {
    const float* latent = absorbed + (size_t)blockIdx.x * kv_lora;
    const float* rotated = q + (size_t)blockIdx.x * (nope + rope) + nope;
    float* to = out + (size_t)blockIdx.x * (kv_lora + rope);
    for (unsigned i = threadIdx.x; i < kv_lora + rope; i += blockDim.x)
        to[i] = i < kv_lora ? latent[i] : rotated[i - kv_lora];
}

// Where the two values `i`, `i + 1` (`i` even) of rows of one layout lie, and how to read them. Both are of one
// kind: blocks are of 32.
struct PairPlace {
    unsigned cell_at, factor_at;
    bool is_quantized, has_second, is_aligned;

    __device__ __forceinline__ PairPlace(RowLayout layout, unsigned i, unsigned dim, const u8* rows) {
        is_quantized = i < layout.quantized;
        factor_at = i / KV_BLOCK * KV_BLOCK_BYTES + KV_BLOCK;
        cell_at = is_quantized ? factor_at - KV_BLOCK + i % KV_BLOCK
                               : layout.halves_at() + 2 * (i - layout.quantized);
        has_second = i + 1 < dim;
        is_aligned = (((size_t)rows | layout.bytes() | cell_at) & 3) == 0;
    }

    // The cells of both: signed bytes or f16.
    __device__ __forceinline__ unsigned cells(const u8* row) const {
        const u16* cell = (const u16*)(row + cell_at);
        if (is_quantized) return cell[0];
        if (is_aligned && has_second) return *(const unsigned*)cell;
        return cell[0] | (has_second ? (unsigned)cell[1] << 16 : 0);
    }

    __device__ __forceinline__ u16 factor(const u8* row) const {
        return is_quantized ? *(const u16*)(row + factor_at) : (u16)0;
    }

    __device__ __forceinline__ float first(unsigned cells, float factor) const {
        return is_quantized ? signed_byte(cells) * factor : half_to_float((u16)cells);
    }

    __device__ __forceinline__ float second(unsigned cells, float factor) const {
        return is_quantized ? signed_byte(cells >> 8) * factor : half_to_float((u16)(cells >> 16));
    }
};

// Dimensions of keys that a block unpacks at a time, and floats from one unpacked key to the next: the four keys
// that a warp reads at once lie in different banks.
#define KEY_SECTION 128u
#define KEY_STRIDE (KEY_SECTION + 8u)
#define SCORE_THREADS 256u

// Unpacks dimensions `from..from + KEY_SECTION` of a tile's `count` keys, zeros behind their end.
__device__ __forceinline__ void unpack_keys(const u8* rows, RowLayout layout, unsigned count, unsigned from,
                                            float* tile) {
    const unsigned PAIRS = KEY_SECTION / 2, EACH = TILE * PAIRS / SCORE_THREADS;
    unsigned pair = threadIdx.x % PAIRS, position = threadIdx.x / PAIRS, i = from + 2 * pair;
    bool is_there = i < layout.dim();
    PairPlace place(layout, i, layout.dim(), rows);
    unsigned cells[EACH];
    u16 factors[EACH];
    // All loads are on their way before the first is used.
    UNROLL
    for (unsigned k = 0; k < EACH; k++) {
        unsigned at = position + k * (SCORE_THREADS / PAIRS);
        const u8* row = rows + (size_t)at * layout.bytes();
        bool is_read = is_there && at < count;
        cells[k] = is_read ? place.cells(row) : 0;
        factors[k] = is_read ? place.factor(row) : (u16)0;
    }
    UNROLL
    for (unsigned k = 0; k < EACH; k++) {
        float* to = tile + (position + k * (SCORE_THREADS / PAIRS)) * KEY_STRIDE + 2 * pair;
        float factor = half_to_float(factors[k]);
        to[0] = is_there ? place.first(cells[k], factor) : 0.0f;
        to[1] = is_there && place.has_second ? place.second(cells[k], factor) : 0.0f;
    }
}

// Scores of one (row, head) in one tile: eight threads a position, each with one of the eight sums of
// `AttendSpace::score`. 256 threads.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS)
attend_scores(const float* q, const u8* keys, float* scores, unsigned heads, unsigned kv_heads, unsigned quantized,
              unsigned halves, unsigned context_len, unsigned start, float scale, unsigned score_stride) {
    __shared__ float query[KEY_SECTION];
    __shared__ float tile[TILE * KEY_STRIDE];
    unsigned head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * TILE, limit = start + row + 1;
    if (first >= limit) return;
    RowLayout layout = {quantized, halves};
    size_t pair = (size_t)row * heads + head, kv_head = head / (heads / kv_heads);
    const u8* rows = keys + (kv_head * context_len + first) * layout.bytes();
    unsigned count = limit - first < TILE ? limit - first : TILE;
    unsigned lane = threadIdx.x % 8, position = threadIdx.x / 8;
    float sum = 0.0f;
    for (unsigned from = 0; from < layout.dim(); from += KEY_SECTION) {
        unsigned i = from + threadIdx.x;
        if (threadIdx.x < KEY_SECTION) query[threadIdx.x] = i < layout.dim() ? q[pair * layout.dim() + i] * scale : 0.0f;
        unpack_keys(rows, layout, count, from, tile);
        __syncthreads();
        unsigned width = layout.dim() - from < KEY_SECTION ? layout.dim() - from : KEY_SECTION;
        for (unsigned at = lane; at < (width + 7) / 8 * 8; at += 8)
            sum = fmaf(tile[position * KEY_STRIDE + at], query[at], sum);
        __syncthreads();
    }
    for (unsigned by = 1; by < 8; by *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by, 8);
    if (lane == 0 && position < count) scores[pair * score_stride + first + position] = sum;
}

// Values that a block of `attend_values` computes, two by each thread of its first warp.
#define VALUES_PER_BLOCK 64u
#define VALUE_THREADS 128u
// Tiles whose weights are computed together.
#define SECTION_TILES 8u
#define SECTION (SECTION_TILES * TILE)
// Positions that are loaded while as many before them are added.
#define BATCH 16u

// Weights of one section, for all values of a block.
struct Section {
    float weights[SECTION];
    // Largest score of each tile, and what is multiplied before its values are added.
    float maxima[SECTION_TILES], factors[SECTION_TILES];
};

// `AttendSpace::weigh` for the section at `first`; returns the running maximum. All threads take part; behind a
// barrier that the caller sets, weights and factors can be read.
__device__ __forceinline__ float weigh(const float* scores, unsigned first, unsigned limit, float max,
                                       Section& section) {
    const unsigned WARPS = VALUE_THREADS / 32, EACH = SECTION_TILES / WARPS;
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float mine[EACH];
    UNROLL
    for (unsigned k = 0; k < EACH; k++) {
        unsigned position = first + (warp + k * WARPS) * TILE + lane;
        mine[k] = position < limit ? scores[position] : -INFINITY;
        float largest = mine[k];
        // What is not a number is never the largest.
        largest = greater(-INFINITY, largest);
        for (unsigned by = 16; by > 0; by /= 2)
            largest = greater(largest, __shfl_xor_sync(ALL_LANES, largest, by, 32));
        if (lane == 0) section.maxima[warp + k * WARPS] = largest;
    }
    __syncthreads();
    UNROLL
    for (unsigned t = 0; t < SECTION_TILES; t++) {
        float next = greater(max, section.maxima[t]);
        if (t % WARPS == warp) {
            section.weights[t * TILE + lane] = exp_ours(mine[t / WARPS] - next);
            if (lane == 0) section.factors[t] = next != max ? exp_ours(max - next) : 1.0f;
        }
        max = next;
    }
    return max;
}

// One of the eight sums of weights, over a section's first tiles.
__device__ __forceinline__ float add_weights(const Section& section, unsigned tiles, unsigned lane, float sum) {
    for (unsigned t = 0; t < tiles; t++) {
        sum *= section.factors[t];
        for (unsigned i = lane; i < TILE; i += 8) sum += section.weights[t * TILE + i];
    }
    return sum;
}

// Two values of one query: chains of fused products over positions, with the next batch of cells on its way.
struct Chain {
    const u8* rows;
    unsigned row_bytes, limit;
    PairPlace place;
    float first, second;
    unsigned cells[BATCH];
    u16 factors[BATCH];

    __device__ __forceinline__ Chain(const u8* rows, RowLayout layout, unsigned limit, unsigned i, unsigned dim)
        : rows(rows), row_bytes(layout.bytes()), limit(limit), place(layout, i, dim, rows), first(0), second(0) {
        load(0, cells, factors);
    }

    // Behind the last position it is that position again, which is not used.
    __device__ __forceinline__ void load(unsigned position, unsigned* cells, u16* factors) const {
        UNROLL
        for (unsigned i = 0; i < BATCH; i++) {
            unsigned at = position + i < limit ? position + i : limit - 1;
            const u8* row = rows + (size_t)at * row_bytes;
            cells[i] = place.cells(row);
            factors[i] = place.factor(row);
        }
    }

    __device__ __forceinline__ void add_one(unsigned i, float weight) {
        float factor = half_to_float(factors[i]);
        first = fmaf(place.first(cells[i], factor), weight, first);
        second = fmaf(place.second(cells[i], factor), weight, second);
    }

    // Adds the section at `position`: `count` positions of it are seen.
    __device__ __forceinline__ void add(unsigned position, unsigned count, const Section& section) {
        for (unsigned at = 0; at < count; at += BATCH) {
            unsigned next[BATCH];
            u16 next_factors[BATCH];
            load(position + at + BATCH, next, next_factors);
            if (at % TILE == 0) {
                first *= section.factors[at / TILE];
                second *= section.factors[at / TILE];
            }
            const float* weights = section.weights + at;
            if (at + BATCH <= count) {
                UNROLL
                for (unsigned i = 0; i < BATCH; i++) add_one(i, weights[i]);
            } else {
                UNROLL
                for (unsigned i = 0; i < BATCH; i++)
                    if (at + i < count) add_one(i, weights[i]);
            }
            UNROLL
            for (unsigned i = 0; i < BATCH; i++) {
                cells[i] = next[i];
                factors[i] = next_factors[i];
            }
        }
    }
};

// Attends one (row, head) from its scores: 64 of its values. All threads compute weights; the first warp adds
// values, the last eight threads the sums of weights. 128 threads.
extern "C" __global__ void __launch_bounds__(VALUE_THREADS)
attend_values(float* scores, const u8* values, float* out, unsigned heads, unsigned kv_heads, unsigned value_dim,
              unsigned quantized, unsigned halves, unsigned context_len, unsigned start, unsigned score_stride) {
    __shared__ Section section;
    __shared__ float sums[8];
    unsigned head = blockIdx.y, row = blockIdx.z, limit = start + row + 1;
    RowLayout layout = {quantized, halves};
    size_t pair = (size_t)row * heads + head, kv_head = head / (heads / kv_heads);
    unsigned i = blockIdx.x * VALUES_PER_BLOCK + 2 * threadIdx.x;
    bool adds_values = threadIdx.x < VALUES_PER_BLOCK / 2 && i < value_dim;
    bool adds_weights = threadIdx.x / 8 == VALUE_THREADS / 8 - 1;
    // Threads that add no values look at the first two.
    Chain chain(values + kv_head * context_len * layout.bytes(), layout, limit, adds_values ? i : 0, value_dim);
    float max = -INFINITY, sum = 0.0f;
    for (unsigned first = 0; first < limit; first += SECTION) {
        max = weigh(scores + pair * score_stride, first, limit, max, section);
        __syncthreads();
        unsigned count = limit - first < SECTION ? limit - first : SECTION;
        if (adds_values) chain.add(first, count, section);
        if (adds_weights) sum = add_weights(section, (count + TILE - 1) / TILE, threadIdx.x % 8, sum);
        // The next section's maxima are written at once, its weights behind another barrier.
    }
    if (adds_weights) sums[threadIdx.x % 8] = sum;
    __syncthreads();
    float total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    float factor = 1.0f / total;
    float* to = out + pair * value_dim + i;
    if (adds_values) to[0] = chain.first * factor;
    if (adds_values && i + 1 < value_dim) to[1] = chain.second * factor;
}
