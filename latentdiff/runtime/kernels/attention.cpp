// Attention (Vaswani et al. 2017, eq. 1) with vector instructions, for blocks of queries and keys, so that the matrix
// of scores is never written to memory (Dao et al. 2022).
//
// Both products are computed transposed, S' = K Q' and O' = V' P': each lane is a query, so softmax needs no sums across
// lanes, and exp(S') is already in the layout that the second product needs.
//
// Softmax does not change when a constant is subtracted from all scores of a query. The constant is usually the maximum,
// which needs an additional pass or rescaled sums. Here it is derived from the bound |q| |k| (Cauchy-Schwarz), so that no
// weight is above 2^MOST. If the sums of weights are then too small, the maximum is computed in an additional pass.

#include "attention_packing.h"
#include "softmax_weights.h"

namespace {

constexpr int64_t KEYS = 256;                  // per block: all their weights are computed before the products
constexpr float MOST = 80.0f;                  // exponent of the largest weight; sums of values may reach 2^128
constexpr float FAR = 230.0f;                  // exponent; with a larger bound, sums of weights would be too small
constexpr float ENOUGH = 8.0779357e-28f;  // 2^-90: in a sum of at least this, weights below 2^-126 are negligible
constexpr float LOG2_E = 1.44269504f;

template <typename Operand, typename Source>
class Attention : Packing<Operand, Source> {
  public:
    explicit Attention(const Problem& p) : Base(p) {}

    void compute() const {
        const int64_t maps = p.batch * p.heads, blocks = divide_up(p.queries, QUERIES);
        const Buffer<uint32_t> keys(maps * key_size()), values(maps * value_size());
        const Buffer<float> longest(maps);
        parallel_for(p.threads, maps, [&](int64_t i) {
            longest[i] = pack_keys(i, keys.get() + i * key_size());
            pack_values(i, values.get() + i * value_size());
        });
        parallel_ranges(p.threads, maps * blocks, 16, [&](int64_t begin, int64_t end) {
            const Buffer<uint32_t> queries(depth() * QUERIES), weights(KEYS / Operand::VALUES * QUERIES);
            const Buffer<float> sums(value_rows() * QUERIES);
            for (int64_t i = begin; i < end; ++i) {
                const int64_t map = i / blocks;
                Block block{map, i % blocks * QUERIES, keys.get() + map * key_size(), values.get() + map * value_size(),
                            longest[map], queries.get(), weights.get(), sums.get(), {}, {}, {}, false};
                attend(block);
            }
        });
    }

  private:
    using Base = Packing<Operand, Source>;
    using Base::depth, Base::key_size, Base::offset, Base::p, Base::row_words, Base::value_rows, Base::value_size;
    using Base::pack_keys, Base::pack_rows, Base::pack_values;

    // The state of QUERIES queries of one head during the loop over the keys.
    struct Block {
        int64_t map, first;
        const uint32_t *keys, *values;
        float longest;
        uint32_t *queries, *weights;
        float* sums;             // [value_rows, QUERIES]
        floats moved[VECTORS];   // subtracted from the scores
        floats bias[VECTORS];    // added to the scores by `weight_pair` instead
        floats total[VECTORS];   // of the weights
        bool bounded;            // whether `moved` is derived from the bound, which implies that the scores are finite
    };

    float slope() const { return p.scale * LOG2_E; }

    // Derives `moved` from the bounds of the scores, unless a bound is too large.
    void pack_queries(Block& block) const {
        block.bounded = true;
        for (int v = 0; v < VECTORS; ++v) {
            float bound[LANES];
            store(bound, pack_rows(p.q, block.map, block.first + v * LANES, p.queries, block.queries + v * depth() * LANES));
            for (int i = 0; i < LANES; ++i) bound[i] = sqrtf(bound[i] * block.longest) * slope();
            for (int i = 0; i < LANES; ++i) block.bounded &= bound[i] <= FAR;
            const floats moved = at_least(load(bound), MOST) - MOST;
            block.moved[v] = moved / slope();
            block.bias[v] = UNMOVED - moved * STEPS;
        }
    }

    // sums [ROWS, VECTORS]: the products of ROWS rows with QUERIES columns, over `steps` words.
    static void multiply(const uint32_t* left, int64_t left_step, const uint32_t* const (&right)[VECTORS], int64_t right_step,
                         int64_t steps, floats (&sums)[ROWS][VECTORS]) {
        for (auto& row : sums)
            for (floats& sum : row) sum = floats{};
        for (int64_t step = 0; step < steps; ++step, left += left_step) {
            words columns[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) columns[v] = load(right[v] + step * right_step);
#pragma GCC unroll 16
            for (int row = 0; row < ROWS; ++row) {
                const words value = splat(left[row]);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sums[row][v] = Operand::dot(sums[row][v], columns[v], value);
            }
        }
    }

    // Unscaled scores of ROWS keys from `key` on.
    void score(const Block& block, int64_t key, floats (&scores)[ROWS][VECTORS]) const {
        const uint32_t* keys = block.keys + key / LANES * depth() * LANES + key % LANES;
        const uint32_t* queries[VECTORS];
        for (int v = 0; v < VECTORS; ++v) queries[v] = block.queries + v * depth() * LANES;
        multiply(keys, LANES, queries, LANES, depth(), scores);
    }

#if defined(HAS_WEIGHT_PAIR)
    // The argument of `weight_pair`; the smallest weights are 0.
    __m512 step(floats score, floats bias) const {
        return _mm512_max_ps((__m512)(score * (slope() * STEPS) + bias), _mm512_set1_ps(WHOLE));
    }
#endif

    // Weights of Operand::VALUES keys, whose scores are in the rows from `row` on, as one word for each of LANES queries.
    template <bool bounded>
    words weights(const Block& block, const floats (&scores)[ROWS][VECTORS], int row, int v) const {
        const floats first = scores[row][v], moved = block.moved[v];
        if constexpr (Operand::VALUES == 2) {
            const floats second = scores[row + 1][v];
#if defined(HAS_WEIGHT_PAIR)
            if constexpr (bounded) return (words)weight_pair(step(first, block.bias[v]), step(second, block.bias[v]));
#endif
            return round_pair(weight<Operand>(first, moved, slope()), weight<Operand>(second, moved, slope()));
        } else {
            return (words)weight<Operand>(first, moved, slope());
        }
    }

    // A mask of a word in which only the first `left` keys exist.
    static uint32_t present(int64_t left) { return left >= Operand::VALUES ? ~0u : left == 1 ? 0xffffu : 0u; }

    // Computes the weights of ROWS keys from `key` on, adds them to the total, and stores them as operands [ROWS / VALUES,
    // QUERIES].
    template <bool bounded>
    void weigh(const Block& block, int64_t key, uint32_t* to, floats (&total)[VECTORS]) const {
        const bool last = key + ROWS > p.keys;
        floats scores[ROWS][VECTORS];
        score(block, key, scores);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; row += Operand::VALUES) {
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                words word = weights<bounded>(block, scores, row, v);
                if (last) word &= present(p.keys - key - row);
                total[v] = Operand::dot(total[v], word, splat(Operand::ONES));
                store(to + (row / Operand::VALUES * VECTORS + v) * LANES, word);
            }
        }
    }

    // Computes the weights of all keys and their products with the values. The sums over KEYS keys are added to the previous
    // sums, which has smaller rounding errors than adding each key to them.
    void add_keys(Block& block) const {
        memset(block.sums, 0, value_rows() * QUERIES * sizeof(float));
        for (floats& total : block.total) total = floats{};
        const uint32_t* right[VECTORS];
        for (int v = 0; v < VECTORS; ++v) right[v] = block.weights + v * LANES;
        for (int64_t first = 0; first < p.keys; first += KEYS) {
            const int64_t end = smaller(p.keys, first + KEYS), count = divide_up(end - first, Operand::VALUES);
            floats total[VECTORS] = {};
            for (int64_t key = first; key < end; key += ROWS) {
                uint32_t* to = block.weights + (key - first) / Operand::VALUES * QUERIES;
                if (block.bounded) weigh<true>(block, key, to, total);
                else weigh<false>(block, key, to, total);
            }
            for (int v = 0; v < VECTORS; ++v) block.total[v] += total[v];
            const uint32_t* values = block.values + first / Operand::VALUES * value_rows();
            for (int64_t row = 0; row < value_rows(); row += ROWS) {
                floats sums[ROWS][VECTORS];
                multiply(values + row, value_rows(), right, QUERIES, count, sums);
#pragma GCC unroll 16
                for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; ++v) {
                        float* place = block.sums + (row + i) * QUERIES + v * LANES;
                        store(place, load(place) + sums[i][v]);
                    }
            }
        }
    }

    void find_maximum(Block& block) const {
        for (floats& moved : block.moved) moved = splat(-INFINITY);
        for (int64_t key = 0; key < p.keys; key += ROWS) {
            floats scores[ROWS][VECTORS];
            score(block, key, scores);
            for (int64_t row = 0; row < smaller<int64_t>(ROWS, p.keys - key); ++row)
                for (int v = 0; v < VECTORS; ++v) block.moved[v] = maximum(scores[row][v], block.moved[v]);
        }
    }

    static bool enough(const Block& block) {
        bool all = true;
        for (const floats& total : block.total)
            for (int i = 0; i < LANES; ++i) all &= total[i] >= ENOUGH;
        return all;
    }

    void attend(Block& block) const {
        pack_queries(block);
        if (block.bounded) add_keys(block);
        if (!block.bounded || !enough(block)) {
            block.bounded = false;
            find_maximum(block);
            add_keys(block);
        }
        write(block);
    }

    // Writes the sums divided by the totals as rows of the output.
    void write(const Block& block) const {
        const int64_t size = sizeof(typename Source::Type), stride = p.heads * p.dim * size, half = row_words();
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t query = block.first + v * LANES, count = smaller<int64_t>(LANES, p.queries - query);
            const floats factor = 1.0f / block.total[v];
            const float* sums = block.sums + v * LANES;
            char* to = p.out + (block.map / p.heads * p.queries + query) * stride + offset(block.map);
            for (int64_t word = 0; word < half; word += LANES) {
                words rows[LANES] = {};
                for (int64_t i = 0; i < smaller<int64_t>(LANES, half - word); ++i) {
                    const floats even = load(sums + (word + i) * QUERIES) * factor;
                    if constexpr (Source::VALUES == 1) rows[i] = (words)even;
                    else rows[i] = round_pair(even, load(sums + (half + word + i) * QUERIES) * factor);
                }
                transpose(rows);
                for (int64_t i = 0; i < count; ++i) store_first(to + i * stride + word * 4, rows[i], half - word);
            }
        }
    }
};

template <typename Operand, typename Source>
void attention(int64_t threads, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t dim, float scale,
               const Rows& q, const Rows& k, const Rows& v, void* out) {
    const Problem p{threads, batch, heads, queries, keys, dim, scale, q, k, v, static_cast<char*>(out)};
    Attention<Operand, Source>(p).compute();
}

#if defined(HAS_PAIR)
using Bfloat16Operand = Pair;
#else
using Bfloat16Operand = Single;
#endif

}  // namespace

#define ATTENTION(name, Operand, Source)                                                                              \
    EXPORT void name(int64_t threads, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t dim,       \
                     float scale, const void* q, int64_t q_batch, int64_t q_row, const void* k, int64_t k_batch,      \
                     int64_t k_row, const void* v, int64_t v_batch, int64_t v_row, void* out) {                       \
        using T = Source::Type;                                                                                       \
        attention<Operand, Source>(threads, batch, heads, queries, keys, dim, scale, Rows::of<T>(q, q_batch, q_row),  \
                                   Rows::of<T>(k, k_batch, k_row), Rows::of<T>(v, v_batch, v_row), out);              \
    }

#if !defined(__AMX_BF16__)  // attention_amx.cpp
ATTENTION(attention_bf16, Bfloat16Operand, Bfloat16Source)
#endif
ATTENTION(attention_fp32, Single, FloatSource)
