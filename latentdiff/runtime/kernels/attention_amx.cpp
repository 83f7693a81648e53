// Attention (Vaswani et al. 2017, eq. 1) for bfloat16 on AMX, for blocks of queries and keys, so that the matrix of
// scores is never written to memory (Dao et al. 2022).
//
// Both products are computed transposed, S' = K Q' and O' = V' P': each column is a query, and exp(S') is already in the
// layout that the second product needs. A row of ones in V' gives the sums of the rounded weights.
//
// Softmax does not change when a constant is subtracted from all scores of a query. bfloat16 represents 2^-126 to 2^127, so
// the constant need not be the maximum: it is derived from the lengths of queries and keys, which bound the scores. If the
// sums of weights are then too small, the maximum is computed in an additional pass over the keys.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)

#include "attention_amx.h"

namespace {

constexpr int64_t KEYS = 256;  // per block: all their weights are computed before the products

// Computes the scores [DEPTH, QUERIES] of the keys from `key` on; minus infinity for keys that do not exist. Calls
// `meanwhile` after each product, four times per DEPTH dimensions: tile and vector units only run in parallel if their
// instructions alternate.
template <typename Meanwhile>
void score(const Problem& p, const bits* keys, int64_t key, const bits* queries, float* scores, Meanwhile meanwhile) {
    const int64_t depth = p.key_depth();
    keys += key * depth;
    written();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < depth; d += DEPTH) {
        _tile_loadd(4, keys + d, depth * sizeof(bits));
        _tile_loadd(6, queries + d * QUERIES, 64);
        _tile_dpbf16ps(0, 4, 6);
        meanwhile();
        _tile_loadd(7, queries + d * QUERIES + TILE_BITS, 64);
        _tile_dpbf16ps(1, 4, 7);
        meanwhile();
        _tile_loadd(5, keys + TILE * depth + d, depth * sizeof(bits));
        _tile_dpbf16ps(2, 5, 6);
        meanwhile();
        _tile_dpbf16ps(3, 5, 7);
        meanwhile();
    }
    _tile_stored(0, scores, QUERIES * 4);
    _tile_stored(1, scores + TILE, QUERIES * 4);
    _tile_stored(2, scores + TILE * QUERIES, QUERIES * 4);
    _tile_stored(3, scores + TILE * QUERIES + TILE, QUERIES * 4);
    for (int64_t i = (p.keys - key) * QUERIES; i < DEPTH * QUERIES; ++i) scores[i] = -INFINITY;
}

// Sets the bias so that the largest weight of each query is above 1/2 and at most 1. If a score of a query is NaN or too
// large to be subtracted in single precision, all its weights become 0, and its output NaN.
void find_maximum(const Problem& p, const bits* keys, Block& block) {
    alignas(64) float scores[DEPTH * QUERIES];
    __m512 top[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
    __mmask16 invalid[2] = {};
    for (int64_t key = 0; key < p.keys; key += DEPTH) {
        score(p, keys, key, block.queries, scores, [] {});
        for (int64_t i = 0; i < 2 * DEPTH; ++i) {
            const __m512 x = _mm512_load_ps(scores + i * TILE);
            top[i % 2] = _mm512_max_ps(top[i % 2], x);
            invalid[i % 2] |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        }
    }
    block.unmoved = false;
    const __m512 limit = _mm512_set1_ps(68719476736.0f);  // 2^36: rounding errors are at most 2^12, or 16 powers of two
    for (int64_t half = 0; half < 2; ++half) {
        const __m512 steps = _mm512_mul_ps(top[half], _mm512_set1_ps(p.slope()));
        invalid[half] |= _mm512_cmp_ps_mask(_mm512_abs_ps(steps), limit, _CMP_NLT_UQ);
        const __m512 bias = moved_by(_mm512_mul_ps(steps, _mm512_set1_ps(1 / STEPS)));
        block.bias[half] = _mm512_mask_mov_ps(bias, invalid[half], _mm512_set1_ps(-INFINITY));
    }
}

// Converts scores of QUERIES queries to weights, 2^(score * slope / STEPS) with the bias, in the layout of the second product.
template <bool unmoved>
class Weights {
  public:
    Weights(const Problem& p, const Block& block) : block_(block), slope_(_mm512_set1_ps(p.slope())) {}

    void start(const float* scores, bits* weights) {
        scores_ = scores;
        weights_ = weights;
        left_ = TILE;
    }

    // Converts the next `pairs` pairs of rows, or as many as remain.
    void compute(int64_t pairs) {
        pairs = smaller(pairs, left_);
        left_ -= pairs;
        for (; pairs > 0; --pairs, scores_ += 2 * QUERIES, weights_ += 2 * TILE) {
            _mm512_store_si512(weights_, pair(scores_, block_.bias[0]));
            _mm512_store_si512(weights_ + TILE_BITS, pair(scores_ + TILE, block_.bias[1]));
        }
    }

  private:
    __m512i pair(const float* scores, __m512 bias) const {
        return weight_pair(line(scores, bias), line(scores + QUERIES, bias));
    }

    __m512 line(const float* scores, __m512 bias) const {
        const __m512 x = _mm512_fmadd_ps(_mm512_load_ps(scores), slope_, bias);
        return unmoved ? x : _mm512_max_ps(x, _mm512_set1_ps(WHOLE));  // the smallest weights are 0
    }

    const Block& block_;
    __m512 slope_;
    const float* scores_ = nullptr;
    bits* weights_ = nullptr;
    int64_t left_ = 0;
};

// Computes the weights [count / DEPTH, 2, TILE pairs, TILE] of `count` keys from `key` on. While the scores of DEPTH keys are
// computed, the previous scores are converted to weights.
template <bool unmoved>
void weigh(const Problem& p, const bits* keys, int64_t key, int64_t count, const Block& block, bits* to) {
    alignas(64) float scores[2][DEPTH * QUERIES];
    const int64_t calls = 4 * p.key_depth() / DEPTH, share = divide_up(TILE, calls);
    Weights<unmoved> weights(p, block);
    for (int64_t row = 0; row < count; row += DEPTH) {
        float* next = scores[row / DEPTH % 2];
        score(p, keys, key + row, block.queries, next, [&] { weights.compute(share); });
        weights.start(next, to + row * QUERIES);
    }
    weights.compute(TILE);
}

// Adds the products of values and weights of `count` keys to sums [TILE * tiles, QUERIES].
template <int tiles>
void accumulate(const bits* values, int64_t value_rows, const bits* weights, int64_t count, float* sums) {
    static_assert(QUERIES == PANEL);
    written();
    begin_sums<tiles>(sums, false);
    for (int64_t key = 0; key < count; key += DEPTH, values += value_rows * DEPTH, weights += 2 * TILE_BITS) {
        _tile_loadd(4, values, 64);
        _tile_loadd(6, weights, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weights + TILE_BITS, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (tiles > 1) {
            _tile_loadd(5, values + TILE_BITS, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    store_sums<tiles>(sums);
}

// Adds KEYS keys from `key` on, or as many as remain, to the sums of a block.
void add_keys(const Problem& p, const Map& map, int64_t key, const Block& block) {
    alignas(64) bits weights[KEYS * QUERIES];
    const int64_t rows = p.value_rows(), count = smaller(KEYS, p.padded_keys() - key);
    if (block.unmoved) weigh<true>(p, map.keys, key, count, block, weights);
    else weigh<false>(p, map.keys, key, count, block, weights);
    for (int64_t row = 0; row < rows; row += 2 * TILE) {
        const bits* from = map.values + key * rows + row * DEPTH;
        if (rows - row > TILE) accumulate<2>(from, rows, weights, count, block.sums + row * QUERIES);
        else accumulate<1>(from, rows, weights, count, block.sums + row * QUERIES);
    }
}

// Writes the sums of `block`, divided by the sums of its weights, as rows of the output from query `first` on.
void write(const Problem& p, const Map& map, const Block& block, int64_t first) {
    const auto rounded = [](const float* row, __m512 factor) {
        const __m256bh halves = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_load_ps(row), factor));
        return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves));
    };
    for (int64_t half = 0; half < 2; ++half) {
        const int64_t query = first + half * TILE, stride = p.heads * p.dim;
        const float* sums = block.sums + half * TILE;
        const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(sums + p.dim * QUERIES));
        bits* to = p.out + (map.batch * p.queries + query) * stride + map.head * p.dim;
        for (int64_t d = 0; d < p.dim; d += 2) {
            const __m512i high = _mm512_slli_epi32(rounded(sums + (d + 1) * QUERIES, factor), 16);
            const __m512i both = _mm512_or_si512(rounded(sums + d * QUERIES, factor), high);
            _mm512_mask_i32scatter_epi32(to + d, present(p.queries - query), starts(stride), both, sizeof(bits));
        }
    }
}

// Whether the sum of each query's weights is so large that weights which underflowed are negligible.
bool enough(const Problem& p, const Block& block) {
    const float* sum = block.sums + p.dim * QUERIES;
    const __m512 least = _mm512_min_ps(_mm512_load_ps(sum), _mm512_load_ps(sum + TILE));
    return _mm512_cmp_ps_mask(least, _mm512_set1_ps(LEAST), _CMP_GE_OQ) == 0xffff;
}

void add_all_keys(const Problem& p, const Map& map, const Block& block) {
    memset(block.sums, 0, p.value_rows() * QUERIES * sizeof(float));
    for (int64_t key = 0; key < p.keys; key += KEYS) add_keys(p, map, key, block);
}

// Computes the output of QUERIES queries of one head from `first` on.
void attend(const Problem& p, const Map& map, bits* queries, float* sums, int64_t first) {
    Block block{queries, sums};
    pack_queries(p, map, first, queries, block);
    if (block.bounded) add_all_keys(p, map, block);
    if (!block.bounded || !enough(p, block)) {
        find_maximum(p, map.keys, block);
        add_all_keys(p, map, block);
    }
    write(p, map, block, first);
}

void attention(const Problem& p) {
    const int64_t count = p.batch * p.heads, blocks = divide_up(p.queries, QUERIES);
    const int64_t key_size = p.padded_keys() * p.key_depth(), value_size = p.padded_keys() * p.value_rows();
    const Buffer<bits> keys(count * key_size), values(count * value_size);
    const Buffer<Map> maps(count);
    parallel_for(p.threads, count, [&](int64_t i) {
        bits *k = keys.get() + i * key_size, *v = values.get() + i * value_size;
        maps[i] = {i / p.heads, i % p.heads, k, v, pack_keys(p, i / p.heads, i % p.heads, k)};
        pack_values(p, i / p.heads, i % p.heads, v);
    });
    parallel_ranges(p.threads, count * blocks, 1, [&](int64_t begin, int64_t end) {
        const Buffer<bits> queries(p.key_depth() * QUERIES);
        const Buffer<float> sums(p.value_rows() * QUERIES);
        const Tiles tiles;
        for (int64_t i = begin; i < end; ++i)
            attend(p, maps[i / blocks], queries.get(), sums.get(), i % blocks * QUERIES);
    });
}

}  // namespace

EXPORT void attention_bf16(int64_t threads, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t dim,
                           float scale, const void* q, int64_t q_batch, int64_t q_row, const void* k, int64_t k_batch,
                           int64_t k_row, const void* v, int64_t v_batch, int64_t v_row, void* out) {
    attention({threads, batch, heads, queries, keys, dim, Rows{static_cast<const bits*>(q), q_batch, q_row},
               Rows{static_cast<const bits*>(k), k_batch, k_row}, Rows{static_cast<const bits*>(v), v_batch, v_row},
               static_cast<bits*>(out), scale});
}

#endif
