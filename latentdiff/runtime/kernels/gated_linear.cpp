// A linear layer followed by GEGLU (Shazeer 2020), in bfloat16 with AVX-512 BF16. Only the gated half of the layer's
// output is written. linear.cpp is the version for AMX.
//
// The sums of a few rows with one panel (16 columns of values and their 16 gates) stay in registers for the complete
// depth. A chunk of rows and a panel fit the L2 cache: a chunk is multiplied by all panels before the next chunk.

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

#include "gelu.h"
#include "panels.h"

namespace {

constexpr int64_t CHUNK_BYTES = 384 * 1024;  // of a chunk of rows, which shares the L2 cache with a panel
constexpr int64_t AHEAD = 2;                 // prefetch distance in the weights, in depths
constexpr int64_t SHARES = 8;                // parts of the work per thread

struct GatedLinear {
    int64_t threads, rows, depths, width;
    const bits *x, *weight, *bias;  // weight: [width / TILE, depths, 2, TILE pairs, TILE columns, 2]; bias: [2 * width]
    bits* out;                      // [rows, width]
    int64_t stride() const { return depths * DEPTH; }
    int64_t panels() const { return width / TILE; }
};

// Computes the sums [ROWS, 2] of rows with a panel.
template <int ROWS>
inline void accumulate(const bits* x, int64_t stride, const bits* weight, int64_t depths, floats (&sums)[ROWS][2]) {
    const bits* rows[ROWS];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        rows[i] = x + i * stride;
        sums[i][0] = sums[i][1] = floats{};
    }
    for (; depths > 0; --depths, weight += PANEL_BITS) {
#pragma GCC unroll 16
        for (int64_t pair = 0; pair < DEPTH; pair += 2) {
            const bits *values = weight + pair * TILE, *gates = values + TILE_BITS;
            _mm_prefetch(values + AHEAD * PANEL_BITS, _MM_HINT_T0);
            _mm_prefetch(gates + AHEAD * PANEL_BITS, _MM_HINT_T0);
            const words first = load_pairs(values), second = load_pairs(gates);
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                const words value = splat_pair(rows[i] + pair);
                sums[i][0] = Pair::dot(sums[i][0], first, value);
                sums[i][1] = Pair::dot(sums[i][1], second, value);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) rows[i] += DEPTH;
    }
}

const Gelu gelu;

// Multiplies rows [begin, end) by panels [first, last), ROWS at a time. If ROWS does not divide the number of rows, the
// last ROWS overlap the previous ones.
template <int ROWS>
void multiply(const GatedLinear& p, int64_t begin, int64_t end, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t column = panel * TILE;
        const __m512 zero = _mm512_setzero_ps();
        const __m512 value_bias = p.bias ? widen(p.bias + column) : zero;
        const __m512 gate_bias = p.bias ? widen(p.bias + p.width + column) : zero;
        for (int64_t from = begin; from < end; from += ROWS) {
            const int64_t row = smaller(from, p.rows - ROWS);
            floats sums[ROWS][2];
            accumulate<ROWS>(p.x + row * p.stride(), p.stride(), p.weight + panel * p.depths * PANEL_BITS, p.depths, sums);
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                const __m512 value = (__m512)sums[i][0] + value_bias, gate = (__m512)sums[i][1] + gate_bias;
                const __m256bh gated = _mm512_cvtneps_pbh(value * gelu(gate));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.out + (row + i) * p.width + column), (__m256i)gated);
            }
        }
    }
}

// Distributes chunks of rows times groups of panels over the threads, in an order in which all threads read the same
// weights at about the same time.
template <int ROWS>
void multiply(const GatedLinear& p) {
    const int64_t blocks = divide_up(p.rows, ROWS);
    const int64_t near = larger<int64_t>(1, CHUNK_BYTES / (ROWS * p.stride() * int64_t{sizeof(bits)}));
    const int64_t chunks = divide_up(blocks, near);
    const int64_t groups = smaller(p.panels(), divide_up(p.threads == 1 ? 1 : SHARES * p.threads, chunks));
    parallel_for(p.threads, chunks * groups, [&](int64_t i) {
        const int64_t chunk = i / groups, group = i % groups;
        const int64_t begin = chunk * blocks / chunks * ROWS, end = smaller((chunk + 1) * blocks / chunks * ROWS, p.rows);
        multiply<ROWS>(p, begin, end, group * p.panels() / groups, (group + 1) * p.panels() / groups);
    });
}

}  // namespace

// Writes value * gelu(gate), [rows, columns / 2].
EXPORT void gated_linear_bf16(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                              const void* bias, void* out) {
    const GatedLinear p{threads, rows, depth / DEPTH, columns / 2, static_cast<const bits*>(x), static_cast<const bits*>(weight),
                        static_cast<const bits*>(bias), static_cast<bits*>(out)};
    const bool few = rows < 256 && rows % 12 != 0;  // the remainder is a considerable part of the work
    if (rows >= 12 && !(few && rows % 8 == 0)) multiply<12>(p);
    else if (rows >= 8) multiply<8>(p);
    else if (rows >= 4) multiply<4>(p);
    else if (rows >= 2) multiply<2>(p);
    else if (rows == 1) multiply<1>(p);
}

#endif
