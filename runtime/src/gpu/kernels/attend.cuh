// The key/value cache and attention over it, bit by bit `kernels/kv_rows.rs` and `kernels/attend.rs`, where layout
// and order of arithmetic are explained.
//
// A cache holds rows of one KV head after another: head h's position p is row `h * context_len + p`. A row of the
// pass sees its own position and all before it.
#pragma once

#include "vector.cuh"

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

// Packs a head's values into its row of the cache: `RowLayout::pack`. All threads of the block.
__device__ __forceinline__ void store_row(const float* values, u8* to, RowLayout layout) {
    for (unsigned block = threadIdx.x / 32; block < layout.quantized / KV_BLOCK; block += blockDim.x / 32)
        pack_block(values[block * KV_BLOCK + threadIdx.x % 32], to + block * KV_BLOCK_BYTES);
    u16* cells = (u16*)(to + layout.halves_at());
    for (unsigned i = threadIdx.x; i < layout.halves; i += blockDim.x)
        cells[i] = float_to_half(values[layout.quantized + i]);
}

// What becomes of the heads of one register.
struct Heads {
    // `[rows, heads, len]`.
    float* x;
    // Of the first `norm_len` values of a head; null for none.
    const float* norm;
    // Where the rotated part goes instead of back to its place: value `to_at` of every `to_stride`; null for its place.
    float* to;
    // The cache they are stored in; null for none.
    u8* cache;
    // `heads` is 0 where there are none. `offset` is the first value that is rotated, `len` for none.
    unsigned heads, len, offset, norm_len, to_stride, to_at;
    RowLayout layout;
    float eps;
    unsigned unused;
};

struct AllHeads {
    Heads of[3];
};

static_assert(sizeof(Heads) == 72 && sizeof(AllHeads) == 216, "as the host packs it");

// Rotates a head by the angles of its row, by all threads of the block.
__device__ __forceinline__ void rotate(float* head, float* to, const float* cos, const float* sin, unsigned len,
                                       unsigned half, bool is_interleaved) {
    for (unsigned i = threadIdx.x; i < half; i += blockDim.x) {
        const unsigned first = is_interleaved ? 2 * i : i, second = first + (is_interleaved ? 1 : half);
        const float a = head[first], b = head[second], c = cos[i], s = sin[i];
        to[first] = a * c - b * s;
        to[second] = a * s + b * c;
    }
    if (to != head)
        for (unsigned i = 2 * half + threadIdx.x; i < len; i += blockDim.x) to[i] = head[i];
}

// The heads of a pass: normed where they have a norm, rotated, and stored in the cache (`Gqa`, `Mla`,
// `RopeTable::rotate`). One block a (row, head) of each register, 128 threads.
extern "C" __global__ void place_heads(PARAMETER(AllHeads) all, const float* cos, const float* sin, unsigned half,
                                       unsigned interleaved, unsigned context_len, unsigned start, unsigned rows) {
    after_previous();
    const Heads& heads = all.of[blockIdx.y];
    if (blockIdx.x >= rows * heads.heads) return;
    const unsigned row = blockIdx.x / heads.heads, index = blockIdx.x % heads.heads;
    float* head = heads.x + (size_t)blockIdx.x * heads.len;
    if (heads.norm) {
        const float scale = rms_scale(head, nullptr, heads.norm_len, heads.eps);
        scale_row(head, head, heads.norm, heads.norm_len, scale);
        __syncthreads();
    }
    if (heads.offset < heads.len) {
        float* part = head + heads.offset;
        float* to = heads.to ? heads.to + (size_t)blockIdx.x * heads.to_stride + heads.to_at : part;
        const size_t angles = (size_t)row * half;
        rotate(part, to, cos + angles, sin + angles, heads.len - heads.offset, half, interleaved);
        __syncthreads();
    }
    if (heads.cache) {
        const size_t place = (size_t)index * context_len + start + row;
        store_row(head, heads.cache + place * heads.layout.bytes(), heads.layout);
    }
}

// How two neighbouring values of a row are read.
enum PairKind : unsigned {
    IN_BLOCK,  // two signed bytes of a Q8_0 block
    IN_WORD,   // two f16 at once
    IN_CELLS,  // f16 one by one: rows are not aligned to words, or the second is none of the row's
};

// Where the two values `i`, `i + 1` (`i` even) of rows of one layout lie. Both are of one kind: blocks are of 32.
// What reads them is compiled for each kind, so that loops over positions do not ask.
struct PairPlace {
    unsigned cell_at, factor_at;
    PairKind kind;
    bool has_second;

    __device__ __forceinline__ PairPlace(RowLayout layout, unsigned i, unsigned dim, const u8* rows) {
        bool is_quantized = i < layout.quantized;
        factor_at = i / KV_BLOCK * KV_BLOCK_BYTES + KV_BLOCK;
        cell_at = is_quantized ? factor_at - KV_BLOCK + i % KV_BLOCK
                               : layout.halves_at() + 2 * (i - layout.quantized);
        has_second = i + 1 < dim;
        bool is_word = has_second && (((size_t)rows | layout.bytes() | cell_at) & 3) == 0;
        kind = is_quantized ? IN_BLOCK : is_word ? IN_WORD : IN_CELLS;
    }

    // Both values of a row in one register, those of a block below its factor.
    template <PairKind KIND>
    __device__ __forceinline__ unsigned cells(const u8* row) const {
        const u16* cell = (const u16*)(row + cell_at);
        if (KIND == IN_BLOCK) return cell[0] | (unsigned)*(const u16*)(row + factor_at) << 16;
        if (KIND == IN_WORD) return *(const unsigned*)cell;
        return cell[0] | (has_second ? (unsigned)cell[1] << 16 : 0);
    }

    template <PairKind KIND>
    __device__ __forceinline__ static float first(unsigned cells) {
        return KIND == IN_BLOCK ? signed_byte(cells) * half_to_float((u16)(cells >> 16))
                                : half_to_float((u16)cells);
    }

    template <PairKind KIND>
    __device__ __forceinline__ static float second(unsigned cells) {
        const float high = half_to_float((u16)(cells >> 16));
        return KIND == IN_BLOCK ? signed_byte(cells >> 8) * high : high;
    }
};

// Dimensions of keys that a block unpacks at a time, and floats from one unpacked key to the next: the four keys
// that a warp reads at once lie in different banks.
#define KEY_SECTION 128u
#define KEY_STRIDE (KEY_SECTION + 8u)
#define SCORE_THREADS 256u

// Unpacks pair `pair` of a tile's `count` keys from `rows`, for every `STEP`-th position from `position` on.
template <PairKind KIND, unsigned EACH, unsigned STEP>
__device__ __forceinline__ void unpack_pairs(const u8* rows, unsigned row_bytes, const PairPlace& place,
                                             unsigned count, unsigned position, unsigned pair, float* tile) {
    unsigned cells[EACH];
    // All loads are on their way before the first is used.
    UNROLL
    for (unsigned k = 0; k < EACH; k++) {
        unsigned at = position + k * STEP;
        cells[k] = at < count ? place.cells<KIND>(rows + (size_t)at * row_bytes) : 0;
    }
    UNROLL
    for (unsigned k = 0; k < EACH; k++) {
        float* to = tile + (position + k * STEP) * KEY_STRIDE + 2 * pair;
        to[0] = place.first<KIND>(cells[k]);
        to[1] = place.has_second ? place.second<KIND>(cells[k]) : 0.0f;
    }
}

// Unpacks dimensions `from..from + KEY_SECTION` of a tile's `count` keys, zeros behind their end.
__device__ __forceinline__ void unpack_keys(const u8* rows, RowLayout layout, unsigned count, unsigned from,
                                            float* tile) {
    const unsigned PAIRS = KEY_SECTION / 2, STEP = SCORE_THREADS / PAIRS, EACH = TILE / STEP;
    unsigned pair = threadIdx.x % PAIRS, position = threadIdx.x / PAIRS, i = from + 2 * pair;
    unsigned bytes = layout.bytes();
    if (i >= layout.dim()) {
        for (unsigned at = position; at < TILE; at += STEP)
            tile[at * KEY_STRIDE + 2 * pair] = tile[at * KEY_STRIDE + 2 * pair + 1] = 0.0f;
        return;
    }
    PairPlace place(layout, i, layout.dim(), rows);
    if (place.kind == IN_BLOCK) unpack_pairs<IN_BLOCK, EACH, STEP>(rows, bytes, place, count, position, pair, tile);
    else if (place.kind == IN_WORD) unpack_pairs<IN_WORD, EACH, STEP>(rows, bytes, place, count, position, pair, tile);
    else unpack_pairs<IN_CELLS, EACH, STEP>(rows, bytes, place, count, position, pair, tile);
}

// Rows that a block attends together at most: what they share of the cache is read once.
#define ROWS_PER_BLOCK 4u

// The rows of a block, of `row_count` behind `start` positions that are attended `each` at a time.
struct BlockRows {
    // The first row, how many there are, and positions that the first and the last of them see.
    unsigned first, count, limit_first, limit_last;

    __device__ __forceinline__ BlockRows(unsigned start, unsigned row_count, unsigned each) {
        first = blockIdx.z * each;
        unsigned left = row_count - first;
        count = left < each ? left : each;
        limit_first = start + first + 1;
        limit_last = start + first + count;
    }
};

// Sums of `ROWS` queries and the thread's key, over dimensions `lane`, `lane + 8`, ... below `width`.
template <unsigned ROWS>
__device__ __forceinline__ void add_products(const float* key, const float* queries, unsigned lane, unsigned width,
                                             float* sums) {
    for (unsigned at = lane; at < (width + 7) / 8 * 8; at += 8) {
        float value = key[at];
        UNROLL
        for (unsigned r = 0; r < ROWS; r++) sums[r] = fmaf(value, queries[r * KEY_SECTION + at], sums[r]);
    }
}

// Scores of rows in one tile, of one head: eight threads a position, each with one of the eight sums of
// `AttendSpace::score`. 256 threads.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS, 4)
attend_scores(const float* q, const u8* keys, float* scores, unsigned heads, unsigned kv_heads, unsigned quantized,
              unsigned halves, unsigned context_len, unsigned start, float scale, unsigned score_stride,
              unsigned row_count) {
    after_previous();
    __shared__ float queries[ROWS_PER_BLOCK * KEY_SECTION];
    __shared__ float tile[TILE * KEY_STRIDE];
    unsigned head = blockIdx.y, first = blockIdx.x * TILE;
    BlockRows rows(start, row_count, ROWS_PER_BLOCK);
    if (first >= rows.limit_last) return;
    RowLayout layout = {quantized, halves};
    unsigned dim = layout.dim();
    size_t kv_head = head / (heads / kv_heads), query = (size_t)rows.first * heads + head;
    const u8* key_rows = keys + (kv_head * context_len + first) * layout.bytes();
    unsigned count = rows.limit_last - first < TILE ? rows.limit_last - first : TILE;
    unsigned lane = threadIdx.x % 8, position = threadIdx.x / 8;
    float sums[ROWS_PER_BLOCK] = {};
    for (unsigned from = 0; from < dim; from += KEY_SECTION) {
        for (unsigned i = threadIdx.x; i < rows.count * KEY_SECTION; i += SCORE_THREADS) {
            unsigned at = from + i % KEY_SECTION;
            queries[i] = at < dim ? q[(query + i / KEY_SECTION * heads) * dim + at] * scale : 0.0f;
        }
        unpack_keys(key_rows, layout, count, from, tile);
        __syncthreads();
        unsigned width = dim - from < KEY_SECTION ? dim - from : KEY_SECTION;
        const float* key = tile + position * KEY_STRIDE;
        // Rows that are not there are computed and not used.
        if (rows.count == 1) add_products<1>(key, queries, lane, width, sums);
        else if (rows.count == 2) add_products<2>(key, queries, lane, width, sums);
        else add_products<ROWS_PER_BLOCK>(key, queries, lane, width, sums);
        __syncthreads();
    }
    UNROLL
    for (unsigned r = 0; r < ROWS_PER_BLOCK; r++) {
        for (unsigned by = 1; by < 8; by *= 2) sums[r] += __shfl_xor_sync(ALL_LANES, sums[r], by, 8);
        if (lane == 0 && r < rows.count && first + position < rows.limit_first + r)
            scores[(query + (size_t)r * heads) * score_stride + first + position] = sums[r];
    }
}

// Values that a warp of `attend_values` computes, two by each thread.
#define VALUES_PER_WARP 64u
// Warps that compute values, and one for the sums of all rows' weights.
#define VALUE_WARPS ROWS_PER_BLOCK
#define VALUE_THREADS (32u * (VALUE_WARPS + 1))
// Tiles whose weights are computed together.
#define SECTION_TILES 8u
#define SECTION (SECTION_TILES * TILE)
// Positions that are loaded while as many before them are added.
#define BATCH 16u

// Weights of one section of one row, for all values of a block.
struct Section {
    float weights[SECTION];
    // Largest score of each tile, and what is multiplied before its values are added.
    float maxima[SECTION_TILES], factors[SECTION_TILES];
};

// Tiles of a section whose weights a warp computes: one in every `VALUE_WARPS`.
#define TILES_EACH (SECTION_TILES / VALUE_WARPS)

// Reads the scores of the warp's tiles in the section at `first`; the largest of each tile goes to `section`.
__device__ __forceinline__ void find_maxima(const float* scores, unsigned first, unsigned limit, float* mine,
                                            Section& section) {
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    UNROLL
    for (unsigned k = 0; k < TILES_EACH; k++) {
        unsigned position = first + (warp + k * VALUE_WARPS) * TILE + lane;
        mine[k] = position < limit ? scores[position] : -INFINITY;
    }
    UNROLL
    for (unsigned k = 0; k < TILES_EACH; k++) {
        // What is not a number is never the largest.
        float largest = greater(-INFINITY, mine[k]);
        for (unsigned by = 16; by > 0; by /= 2)
            largest = greater(largest, __shfl_xor_sync(ALL_LANES, largest, by, 32));
        if (lane == 0) section.maxima[warp + k * VALUE_WARPS] = largest;
    }
}

// `AttendSpace::weigh` for the warp's tiles; returns the running maximum behind the section.
__device__ __forceinline__ float weigh(const float* mine, float max, Section& section) {
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    UNROLL
    for (unsigned t = 0; t < SECTION_TILES; t++) {
        float next = greater(max, section.maxima[t]);
        if (t % VALUE_WARPS == warp) {
            section.weights[t * TILE + lane] = exp_ours(mine[t / VALUE_WARPS] - next);
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

// Cells of two values at some positions, on their way.
struct Batch {
    unsigned cells[BATCH];
};

// Two values of one query: chains of fused products over positions.
struct Chain {
    const u8* rows;
    unsigned row_bytes, limit;
    PairPlace place;
    float first, second;

    __device__ __forceinline__ Chain(const u8* rows, RowLayout layout, unsigned limit, unsigned i, unsigned dim)
        : rows(rows), row_bytes(layout.bytes()), limit(limit), place(layout, i, dim, rows), first(0), second(0) {}

    // Behind the last position it is that position again, which is not used.
    template <PairKind KIND>
    __device__ __forceinline__ void load(unsigned position, Batch& batch) const {
        UNROLL
        for (unsigned i = 0; i < BATCH; i++) {
            unsigned at = position + i < limit ? position + i : limit - 1;
            batch.cells[i] = place.cells<KIND>(rows + (size_t)at * row_bytes);
        }
    }

    template <PairKind KIND>
    __device__ __forceinline__ void add_one(unsigned cells, float weight) {
        first = fmaf(place.first<KIND>(cells), weight, first);
        second = fmaf(place.second<KIND>(cells), weight, second);
    }

    // Adds a batch, of which `count` positions are seen.
    template <PairKind KIND>
    __device__ __forceinline__ void add_batch(const Batch& batch, unsigned count, const float* weights) {
        if (count >= BATCH) {
            UNROLL
            for (unsigned i = 0; i < BATCH; i++) add_one<KIND>(batch.cells[i], weights[i]);
        } else {
            UNROLL
            for (unsigned i = 0; i < BATCH; i++)
                if (i < count) add_one<KIND>(batch.cells[i], weights[i]);
        }
    }

    // Adds the `count` positions from `position` on; while a batch is added the next is loaded.
    template <PairKind KIND>
    __device__ __forceinline__ void add_section(unsigned position, unsigned count, const Section& section) {
        Batch even, odd;
        load<KIND>(position, even);
        for (unsigned at = 0; at < count; at += 2 * BATCH) {
            first *= section.factors[at / TILE];
            second *= section.factors[at / TILE];
            load<KIND>(position + at + BATCH, odd);
            add_batch<KIND>(even, count - at, section.weights + at);
            load<KIND>(position + at + 2 * BATCH, even);
            if (at + BATCH < count) add_batch<KIND>(odd, count - at - BATCH, section.weights + at + BATCH);
        }
    }

    __device__ __forceinline__ void add(unsigned position, unsigned count, const Section& section) {
        if (place.kind == IN_BLOCK) add_section<IN_BLOCK>(position, count, section);
        else if (place.kind == IN_WORD) add_section<IN_WORD>(position, count, section);
        else add_section<IN_CELLS>(position, count, section);
    }
};

static_assert(2 * BATCH == TILE, "factors change where a pair of batches begins");

// Attends rows of one head from their scores, `rows_each` (1, 2 or 4) a block. The first four warps compute the weights
// of all rows and then 64 values each: of several rows the same ones, or of one row several times as many. The last warp
// sums the weights, eight sums a row. 160 threads.
extern "C" __global__ void __launch_bounds__(VALUE_THREADS, 2)
attend_values(float* scores, const u8* values, float* out, unsigned heads, unsigned kv_heads, unsigned value_dim,
              unsigned quantized, unsigned halves, unsigned context_len, unsigned start, unsigned score_stride,
              unsigned row_count, unsigned rows_each) {
    after_previous();
    __shared__ Section sections[ROWS_PER_BLOCK];
    __shared__ float sums[ROWS_PER_BLOCK][8];
    unsigned head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    BlockRows rows(start, row_count, rows_each);
    RowLayout layout = {quantized, halves};
    size_t kv_head = head / (heads / kv_heads), query = (size_t)rows.first * heads + head;
    unsigned warps_each = VALUE_WARPS / rows_each;
    unsigned i = (blockIdx.x * warps_each + warp % warps_each) * VALUES_PER_WARP + 2 * lane;
    // The row whose weights or values the thread adds.
    unsigned mine = warp < VALUE_WARPS ? warp / warps_each : lane / 8;
    bool adds_weights = warp == VALUE_WARPS && mine < rows.count;
    bool adds_values = warp < VALUE_WARPS && mine < rows.count && i < value_dim;
    unsigned limit = rows.limit_first + (mine < rows.count ? mine : 0);
    // Threads that add no values look at the first two.
    Chain chain(values + kv_head * context_len * layout.bytes(), layout, limit, adds_values ? i : 0, value_dim);
    float max[ROWS_PER_BLOCK], read[ROWS_PER_BLOCK][TILES_EACH], sum = 0.0f;
    UNROLL
    for (unsigned r = 0; r < ROWS_PER_BLOCK; r++) max[r] = -INFINITY;
    for (unsigned first = 0; first < rows.limit_last; first += SECTION) {
        UNROLL
        for (unsigned r = 0; r < ROWS_PER_BLOCK; r++) {
            const float* of_row = scores + (query + (size_t)r * heads) * score_stride;
            if (r < rows.count && warp < VALUE_WARPS)
                find_maxima(of_row, first, rows.limit_first + r, read[r], sections[r]);
        }
        // Nobody reads maxima any more when the next are found: a barrier lies between.
        __syncthreads();
        UNROLL
        for (unsigned r = 0; r < ROWS_PER_BLOCK; r++)
            if (r < rows.count && warp < VALUE_WARPS) max[r] = weigh(read[r], max[r], sections[r]);
        __syncthreads();
        unsigned count = first >= limit ? 0 : limit - first < SECTION ? limit - first : SECTION;
        if (adds_values) chain.add(first, count, sections[mine]);
        if (adds_weights) sum = add_weights(sections[mine], (count + TILE - 1) / TILE, lane % 8, sum);
    }
    if (adds_weights) sums[mine][lane % 8] = sum;
    __syncthreads();
    if (!adds_values) return;
    const float* s = sums[mine];
    float factor = 1.0f / (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    float* to = out + (query + (size_t)mine * heads) * value_dim + i;
    to[0] = chain.first * factor;
    if (i + 1 < value_dim) to[1] = chain.second * factor;
}
