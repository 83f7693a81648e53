// Attention (Vaswani et al. 2017, eq. 1) for bfloat16 on AMX: one pass over the keys with a running maximum
// (Milakov & Gimelshein 2018; Dao et al. 2022), so that no map of queries by keys is ever written to memory.
//
// Both products are computed transposed, S' = K Q' and O' = V' P': then a query is a column, its maximum and its sum are
// lanes of vectors, and exp(S') is already in the layout in which the second product reads it.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "amx.h"

namespace {

constexpr int64_t QUERIES = 32;   // two tiles of columns
constexpr int64_t KEYS = 64;      // keys between two looks at the maximum; scores of a block stay in the first cache
constexpr int64_t BLOCKS = 2;     // of queries that share one reading of keys and values

// [batch, length, heads, dim] inside a larger tensor; the last two are dense.
struct Rows {
    const bits* data;
    int64_t batch_stride, row_stride;
    const bits* row(int64_t batch, int64_t head, int64_t dim, int64_t i) const {
        return data + batch * batch_stride + i * row_stride + head * dim;
    }
};

struct Problem {
    int64_t batch, heads, queries, keys, dim;
    Rows q, k, v;
    bits* out;  // [batch, queries, heads, dim]
    float scale;
    int64_t key_depth() const { return round_up(dim, DEPTH); }
    int64_t value_rows() const { return round_up(dim, TILE); }
    int64_t padded_keys() const { return round_up(keys, DEPTH); }
};

// 16 rows' 32-bit word at `data`; zeros for rows from `count` on.
inline __m512i gather(const bits* data, int64_t row_stride, int64_t count) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(row_stride)));
    const __mmask16 mask = count >= TILE ? 0xffff : static_cast<__mmask16>((1 << std::max<int64_t>(count, 0)) - 1);
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, index, data, sizeof(bits));
}

// Keys as they are, zeros up to whole tiles: [padded_keys, key_depth].
void pack_keys(const Problem& p, int64_t batch, int64_t head, bits* to) {
    const int64_t depth = p.key_depth();
    std::memset(to, 0, p.padded_keys() * depth * sizeof(bits));
    for (int64_t i = 0; i < p.keys; ++i) std::memcpy(to + i * depth, p.k.row(batch, head, p.dim, i), p.dim * sizeof(bits));
}

// Values, transposed: [padded_keys / DEPTH, value_rows, DEPTH keys].
void pack_values(const Problem& p, int64_t batch, int64_t head, bits* to) {
    const int64_t rows = p.value_rows();
    alignas(64) bits even[DEPTH], odd[DEPTH];
    for (int64_t i = 0; i < DEPTH; ++i) odd[i] = 1 + (even[i] = static_cast<bits>(2 * i));
    const __m512i first = _mm512_load_si512(even), second = _mm512_load_si512(odd);
    for (int64_t key = 0; key < p.keys; key += DEPTH, to += rows * DEPTH) {
        const bits* from = p.v.row(batch, head, p.dim, key);
        std::memset(to + p.dim * DEPTH, 0, (rows - p.dim) * DEPTH * sizeof(bits));
        for (int64_t d = 0; d < p.dim; d += 2) {
            const __m512i low = gather(from + d, p.v.row_stride, p.keys - key);
            const __m512i high = gather(from + d + TILE * p.v.row_stride, p.v.row_stride, p.keys - key - TILE);
            _mm512_store_si512(to + d * DEPTH, _mm512_permutex2var_epi16(low, first, high));
            _mm512_store_si512(to + (d + 1) * DEPTH, _mm512_permutex2var_epi16(low, second, high));
        }
    }
}

// QUERIES rows as the right-hand tiles of a product, pairs of dimensions as 32 bits: [key_depth / DEPTH, 2, TILE pairs, TILE].
void pack_queries(const Problem& p, int64_t batch, int64_t head, int64_t first, bits* to) {
    std::memset(to, 0, p.key_depth() * QUERIES * sizeof(bits));
    for (int64_t half = 0; half < 2; ++half) {
        const int64_t row = first + half * TILE;
        const bits* from = p.q.row(batch, head, p.dim, row);
        for (int64_t d = 0; d < p.dim; d += 2) {
            bits* tile = to + (d / DEPTH * 2 + half) * TILE_BITS;
            _mm512_store_si512(tile + d % DEPTH * TILE, gather(from + d, p.q.row_stride, p.queries - row));
        }
    }
}

// scores [2 * TILE, QUERIES] = keys [2 * TILE, depth] times the packed queries.
void score(const bits* keys, const bits* queries, int64_t depth, float* scores) {
    written();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < depth; d += DEPTH) {
        _tile_loadd(4, keys + d, depth * sizeof(bits));
        _tile_loadd(6, queries + d * QUERIES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, queries + d * QUERIES + TILE_BITS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, keys + TILE * depth + d, depth * sizeof(bits));
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, scores, QUERIES * 4);
    _tile_stored(1, scores + TILE, QUERIES * 4);
    _tile_stored(2, scores + TILE * QUERIES, QUERIES * 4);
    _tile_stored(3, scores + TILE * QUERIES + TILE, QUERIES * 4);
}

// 2^x to a relative 9e-5, a twentieth of what bfloat16 keeps, and 1 at 0: a cubic of the fraction, then the exponent.
inline __m512 power_of_two(__m512 x) {
    const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.0770672f), fraction, _mm512_set1_ps(0.2276448f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(0.6951168f));
    y = _mm512_fmadd_ps(y, fraction, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, x);
}

// Two rows of probabilities as pairs of bfloat16: the right-hand layout of the second product.
inline __m512i pair_up(__m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    return _mm512_mask_blend_epi16(0xAAAAAAAA, low, _mm512_add_epi32(_mm512_castps_si512(odd), half));
}

// For TILE queries, one a lane: the largest score so far, times the scale, and the sum of the exponentials.
struct Running {
    __m512 shift = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();

    // Takes in the scores [count, QUERIES], of which the TILE columns from `scores` on. Returns what earlier sums shrink by.
    __m512 see(const float* scores, int64_t count, __m512 scale) {
        __m512 maximum[4];
        for (int64_t i = 0; i < 4; ++i) maximum[i] = _mm512_loadu_ps(scores + i * QUERIES);
        for (int64_t row = 4; row < count; row += 4)
            for (int64_t i = 0; i < 4; ++i)
                maximum[i] = _mm512_max_ps(maximum[i], _mm512_loadu_ps(scores + (row + i) * QUERIES));
        const __m512 top = _mm512_max_ps(_mm512_max_ps(maximum[0], maximum[1]), _mm512_max_ps(maximum[2], maximum[3]));
        const __m512 now = _mm512_max_ps(shift, _mm512_mul_ps(top, scale));
        const __m512 shrink = power_of_two(_mm512_sub_ps(shift, now));
        shift = now;
        sum = _mm512_mul_ps(sum, shrink);
        return shrink;
    }

    // 2^(scale * score - shift) of DEPTH rows of scores, as pairs of rows in `to` [TILE pairs, TILE].
    void exponentials(const float* scores, __m512 scale, bits* to) {
        __m512 odd_sum = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < TILE; ++pair, scores += 2 * QUERIES) {
            const __m512 even = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores), scale, shift));
            const __m512 odd = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + QUERIES), scale, shift));
            sum = _mm512_add_ps(sum, even);
            odd_sum = _mm512_add_ps(odd_sum, odd);
            _mm512_store_si512(to + pair * 2 * TILE, pair_up(even, odd));
        }
        sum = _mm512_add_ps(sum, odd_sum);
    }
};

void multiply_rows(float* rows, int64_t count, __m512 left, __m512 right) {
    for (int64_t i = 0; i < count; ++i, rows += QUERIES) {
        _mm512_storeu_ps(rows, _mm512_mul_ps(_mm512_loadu_ps(rows), left));
        _mm512_storeu_ps(rows + TILE, _mm512_mul_ps(_mm512_loadu_ps(rows + TILE), right));
    }
}

// sums [TILE * tiles, QUERIES] += values times weights, over `count` keys.
template <int tiles>
void accumulate(const bits* values, int64_t value_rows, const bits* weights, int64_t count, float* sums) {
    constexpr int64_t bytes = QUERIES * 4;
    written();
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + TILE, bytes);
    if constexpr (tiles > 1) {
        _tile_loadd(2, sums + TILE * QUERIES, bytes);
        _tile_loadd(3, sums + TILE * QUERIES + TILE, bytes);
    }
    if constexpr (tiles > 2) {
        _tile_loadd(4, sums + 2 * TILE * QUERIES, bytes);
        _tile_loadd(5, sums + 2 * TILE * QUERIES + TILE, bytes);
    }
    for (int64_t key = 0; key < count; key += DEPTH, values += value_rows * DEPTH, weights += 2 * TILE_BITS) {
        _tile_loadd(7, weights, 64);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 6, 7);
        if constexpr (tiles > 1) {
            _tile_loadd(6, values + TILE_BITS, 64);
            _tile_dpbf16ps(2, 6, 7);
        }
        if constexpr (tiles > 2) {
            _tile_loadd(6, values + 2 * TILE_BITS, 64);
            _tile_dpbf16ps(4, 6, 7);
        }
        _tile_loadd(7, weights + TILE_BITS, 64);
        if constexpr (tiles > 2) _tile_dpbf16ps(5, 6, 7);
        if constexpr (tiles > 1) {
            _tile_loadd(6, values + TILE_BITS, 64);
            _tile_dpbf16ps(3, 6, 7);
        }
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(1, 6, 7);
    }
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + TILE, bytes);
    if constexpr (tiles > 1) {
        _tile_stored(2, sums + TILE * QUERIES, bytes);
        _tile_stored(3, sums + TILE * QUERIES + TILE, bytes);
    }
    if constexpr (tiles > 2) {
        _tile_stored(4, sums + 2 * TILE * QUERIES, bytes);
        _tile_stored(5, sums + 2 * TILE * QUERIES + TILE, bytes);
    }
}

// QUERIES queries on their way over the keys.
struct Block {
    const bits* queries;  // packed
    float* sums;          // [value_rows, QUERIES]
    Running left, right;
};

// Takes `count` keys from `key` on into one block.
void take_in(const Problem& p, const bits* keys, const bits* values, int64_t key, Block& block) {
    alignas(64) float scores[KEYS * QUERIES];
    alignas(64) bits weights[KEYS * QUERIES];
    const int64_t depth = p.key_depth(), rows = p.value_rows(), count = std::min(KEYS, p.padded_keys() - key);
    const __m512 scale = _mm512_set1_ps(p.scale * 1.44269504f), one = _mm512_set1_ps(1.0f);  // exp(x) = 2^(x / ln 2)
    for (int64_t row = 0; row < count; row += DEPTH)
        score(keys + (key + row) * depth, block.queries, depth, scores + row * QUERIES);
    for (int64_t i = std::max<int64_t>(p.keys - key, 0) * QUERIES; i < count * QUERIES; ++i) scores[i] = -INFINITY;
    const __m512 shrink_left = block.left.see(scores, count, scale);
    const __m512 shrink_right = block.right.see(scores + TILE, count, scale);
    if (_mm512_cmpneq_ps_mask(shrink_left, one) | _mm512_cmpneq_ps_mask(shrink_right, one))
        multiply_rows(block.sums, rows, shrink_left, shrink_right);
    for (int64_t row = 0; row < count; row += DEPTH) {
        block.left.exponentials(scores + row * QUERIES, scale, weights + row * QUERIES);
        block.right.exponentials(scores + row * QUERIES + TILE, scale, weights + row * QUERIES + TILE_BITS);
    }
    for (int64_t row = 0; row < rows; row += 3 * TILE) {
        const bits* from = values + key * rows + row * DEPTH;
        if (rows - row >= 3 * TILE) accumulate<3>(from, rows, weights, count, block.sums + row * QUERIES);
        else if (rows - row == 2 * TILE) accumulate<2>(from, rows, weights, count, block.sums + row * QUERIES);
        else accumulate<1>(from, rows, weights, count, block.sums + row * QUERIES);
    }
}

// The sums of `block` over the sums of its exponentials, turned into rows of the answer from query `first` on.
void write(const Problem& p, const Block& block, int64_t batch, int64_t head, int64_t first) {
    const __m512 one = _mm512_set1_ps(1.0f);
    multiply_rows(block.sums, p.dim, _mm512_div_ps(one, block.left.sum), _mm512_div_ps(one, block.right.sum));
    for (int64_t n = 0; n < std::min(QUERIES, p.queries - first); ++n) {
        bits* to = p.out + ((batch * p.queries + first + n) * p.heads + head) * p.dim;
        for (int64_t d = 0; d < p.dim; ++d) {
            uint32_t word;
            std::memcpy(&word, block.sums + d * QUERIES + n, 4);
            to[d] = static_cast<bits>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
        }
    }
}

// One head's answer for `count` blocks of queries from `first` on, which share what is read of keys and values.
void attend(const Problem& p, const bits* keys, const bits* values, bits* queries, float* sums, int64_t batch, int64_t head,
            int64_t first, int64_t count) {
    Block blocks[BLOCKS];
    std::memset(sums, 0, count * p.value_rows() * QUERIES * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
        bits* packed = queries + i * p.key_depth() * QUERIES;
        pack_queries(p, batch, head, first + i * QUERIES, packed);
        blocks[i].queries = packed;
        blocks[i].sums = sums + i * p.value_rows() * QUERIES;
    }
    for (int64_t key = 0; key < p.padded_keys(); key += KEYS)
        for (int64_t i = 0; i < count; ++i) take_in(p, keys, values, key, blocks[i]);
    for (int64_t i = 0; i < count; ++i) write(p, blocks[i], batch, head, first + i * QUERIES);
}

void attention(const Problem& p) {
    const int64_t maps = p.batch * p.heads, blocks = (p.queries + QUERIES - 1) / QUERIES;
    const int64_t shares = (blocks + BLOCKS - 1) / BLOCKS;
    const int64_t key_size = p.padded_keys() * p.key_depth(), value_size = p.padded_keys() * p.value_rows();
    const auto keys = aligned<bits>(maps * key_size), values = aligned<bits>(maps * value_size);
#pragma omp parallel
    {
        const auto queries = aligned<bits>(BLOCKS * p.key_depth() * QUERIES);
        const auto sums = aligned<float>(BLOCKS * p.value_rows() * QUERIES);
#pragma omp for
        for (int64_t map = 0; map < maps; ++map) {
            pack_keys(p, map / p.heads, map % p.heads, keys.get() + map * key_size);
            pack_values(p, map / p.heads, map % p.heads, values.get() + map * value_size);
        }
        const Tiles tiles;
#pragma omp for
        for (int64_t i = 0; i < maps * shares; ++i) {
            const int64_t map = i / shares, first = i % shares * BLOCKS, count = std::min(BLOCKS, blocks - first);
            attend(p, keys.get() + map * key_size, values.get() + map * value_size, queries.get(), sums.get(),
                   map / p.heads, map % p.heads, first * QUERIES, count);
        }
    }
}

}  // namespace

// Whether the system lets this process use the tiles' registers (Linux asks for it once a process).
extern "C" int amx_ready() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

extern "C" void attention_bf16(int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t dim, float scale,
                               const void* q, int64_t q_batch, int64_t q_row, const void* k, int64_t k_batch,
                               int64_t k_row, const void* v, int64_t v_batch, int64_t v_row, void* out) {
    attention({batch, heads, queries, keys, dim, Rows{static_cast<const bits*>(q), q_batch, q_row},
               Rows{static_cast<const bits*>(k), k_batch, k_row}, Rows{static_cast<const bits*>(v), v_batch, v_row},
               static_cast<bits*>(out), scale});
}

#endif
