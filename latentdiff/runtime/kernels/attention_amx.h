// Packs the queries, keys and values of a head into the tile layouts that attention_amx.cpp reads.

#pragma once

#include "amx.h"
#include "softmax_weights.h"

namespace {

constexpr int64_t QUERIES = 32;       // two tiles of columns
constexpr float MOST = 80.0f;         // exponent of the largest weight: sums may reach 2^128, so values may be 1e-12 to 1e12
constexpr float FAR = 230.0f;         // exponent; with a larger bound, sums of weights would be too small
constexpr float LEAST = 8.0779357e-28f;  // 2^-90: in a sum of at least this, weights below 2^-126 are negligible
constexpr bits ONE = 0x3f80;

// [batch, length, heads, dim] inside a larger tensor; the last two are dense.
struct Rows {
    const bits* data;
    int64_t batch_stride, row_stride;
    const bits* row(int64_t batch, int64_t head, int64_t dim, int64_t i) const {
        return data + batch * batch_stride + i * row_stride + head * dim;
    }
};

struct Problem {
    int64_t threads, batch, heads, queries, keys, dim;
    Rows q, k, v;
    bits* out;  // [batch, queries, heads, dim]
    float scale;
    int64_t key_depth() const { return round_up(dim, DEPTH); }
    int64_t value_rows() const { return round_up(dim + 1, TILE); }  // one of the rows contains ones
    int64_t padded_keys() const { return round_up(keys, DEPTH); }
    float slope() const { return scale * 1.44269504f * STEPS; }  // exp(x) = 2^(x / ln 2)
};

// The packed keys and values of a head, which all of its queries share.
struct Map {
    int64_t batch, head;
    const bits *keys, *values;  // packed
    float longest;              // largest squared length of a key; infinity if one is not finite
};

// The state of QUERIES queries during the loop over the keys.
struct Block {
    const bits* queries;  // packed
    float* sums;          // [value_rows, QUERIES]
    __m512 bias[2];       // added to score * slope
    bool unmoved;         // whether all exponents of scores are within -MOST and MOST
    bool bounded;         // whether the bias is derived from the bound of the scores, not from their maximum
};

// The offsets of 16 rows, and a mask of those that are below `count`.
inline __m512i starts(int64_t row_stride) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(row_stride)));
}

inline __mmask16 present(int64_t count) {
    return count >= TILE ? 0xffff : static_cast<__mmask16>((1 << larger<int64_t>(count, 0)) - 1);
}

// The 32-bit words at `data` in 16 rows; zeros for rows from `count` on.
inline __m512i gather(const bits* data, int64_t row_stride, int64_t count) {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), present(count), starts(row_stride), data, sizeof(bits));
}

// The `Block::bias` that divides weights by 2^powers, with powers rounded up to an integer.
inline __m512 moved_by(__m512 powers) {
    const __m512 whole = _mm512_roundscale_ps(powers, _MM_FROUND_TO_POS_INF);
    return _mm512_fnmadd_ps(whole, _mm512_set1_ps(STEPS), _mm512_set1_ps(UNMOVED));
}

// `sum` plus the products of the pairs in a and b.
inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Packs the keys as [padded_keys, key_depth], padded with zeros to complete tiles. Returns `Map::longest`.
float pack_keys(const Problem& p, int64_t batch, int64_t head, bits* to) {
    const int64_t depth = p.key_depth();
    float longest = 0;
    memset(to, 0, p.padded_keys() * depth * sizeof(bits));
    for (int64_t i = 0; i < p.keys; ++i, to += depth) {
        memcpy(to, p.k.row(batch, head, p.dim, i), p.dim * sizeof(bits));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t d = 0; d < depth; d += DEPTH) {
            const __m512i row = _mm512_loadu_si512(to + d);
            sum = add_products(sum, row, row);
        }
        const float squares = _mm512_reduce_add_ps(sum);
        longest = squares < INFINITY ? larger(longest, squares) : INFINITY;
    }
    return longest;
}

// Packs the transposed values and a row of ones as [padded_keys / DEPTH, value_rows, DEPTH keys].
void pack_values(const Problem& p, int64_t batch, int64_t head, bits* to) {
    const int64_t rows = p.value_rows();
    alignas(64) bits even[DEPTH], odd[DEPTH];
    for (int64_t i = 0; i < DEPTH; ++i) odd[i] = 1 + (even[i] = static_cast<bits>(2 * i));
    const __m512i first = _mm512_load_si512(even), second = _mm512_load_si512(odd);
    for (int64_t key = 0; key < p.keys; key += DEPTH, to += rows * DEPTH) {
        const bits* from = p.v.row(batch, head, p.dim, key);
        memset(to + p.dim * DEPTH, 0, (rows - p.dim) * DEPTH * sizeof(bits));
        for (int64_t i = 0; i < DEPTH; ++i) to[p.dim * DEPTH + i] = ONE;
        for (int64_t d = 0; d < p.dim; d += 2) {
            const __m512i low = gather(from + d, p.v.row_stride, p.keys - key);
            const __m512i high = gather(from + d + TILE * p.v.row_stride, p.v.row_stride, p.keys - key - TILE);
            _mm512_store_si512(to + d * DEPTH, _mm512_permutex2var_epi16(low, first, high));
            _mm512_store_si512(to + (d + 1) * DEPTH, _mm512_permutex2var_epi16(low, second, high));
        }
    }
}

// Packs QUERIES rows as the right operand, in pairs of dimensions: [key_depth / DEPTH, 2, TILE pairs, TILE]. Subtracts from
// the scores the excess of their bound |q| |k| (Cauchy-Schwarz) over MOST, so that no weight is above 2^MOST.
void pack_queries(const Problem& p, const Map& map, int64_t first, bits* to, Block& block) {
    memset(to, 0, p.key_depth() * QUERIES * sizeof(bits));
    __mmask16 unmoved = 0xffff, bounded = 0xffff;
    for (int64_t half = 0; half < 2; ++half) {
        const int64_t row = first + half * TILE;
        const bits* from = p.q.row(map.batch, map.head, p.dim, row);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t d = 0; d < p.dim; d += 2) {
            bits* tile = to + (d / DEPTH * 2 + half) * TILE_BITS;
            const __m512i pairs = gather(from + d, p.q.row_stride, p.queries - row);
            _mm512_store_si512(tile + d % DEPTH * TILE, pairs);
            squares = add_products(squares, pairs, pairs);
        }
        const __m512 most = _mm512_set1_ps(MOST), length = _mm512_sqrt_ps(_mm512_mul_ps(squares, _mm512_set1_ps(map.longest)));
        const __m512 bound = _mm512_mul_ps(length, _mm512_set1_ps(p.slope() / STEPS));
        unmoved &= _mm512_cmp_ps_mask(bound, most, _CMP_LE_OQ);
        bounded &= _mm512_cmp_ps_mask(bound, _mm512_set1_ps(FAR), _CMP_LE_OQ);
        block.bias[half] = moved_by(_mm512_sub_ps(_mm512_max_ps(bound, most), most));
    }
    block.unmoved = unmoved == 0xffff;
    block.bounded = bounded == 0xffff;
}

}  // namespace
