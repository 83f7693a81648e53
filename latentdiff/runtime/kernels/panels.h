// The weight layout of the bfloat16 products: panels of 32 columns, which are read sequentially; and writing the sums of
// a panel to the output.

#pragma once

#include "parallel.h"
#include "vec.h"

namespace {

constexpr int64_t TILE = 16;   // rows of a tile, and its 32-bit columns
constexpr int64_t DEPTH = 32;  // bfloat16 values in a row of a tile, over which one product sums
constexpr int64_t TILE_BITS = TILE * DEPTH;
constexpr int64_t PANEL = 2 * TILE;            // columns of a panel
constexpr int64_t PANEL_BITS = PANEL * DEPTH;  // values of a panel for one depth and tap
constexpr int64_t LINE = 64 / sizeof(bits);    // values in a cache line

// Prefetches [at, end) during other work: `lines` cache lines per step.
struct Prefetcher {
    const bits *at, *end;
    int64_t lines;
    void step() {
        for (int64_t i = 0; i < lines && at < end; ++i, at += LINE) _mm_prefetch(at, _MM_HINT_T1);
    }
};

inline __m512 widen(const bits* from) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// The columns of a panel in the output [rows, columns], which begin at column `first`; bias and residual are optional.
struct Columns {
    int64_t columns, first;
    const bits *bias, *residual;
    bits* out;

    // Prefetches the memory that `write` accesses.
    void prefetch(int64_t row) const {
        const int64_t place = row * columns + first;
        _mm_prefetch(out + place, _MM_HINT_T1);
        if (residual) _mm_prefetch(residual + place, _MM_HINT_T1);
    }

    // Adds bias and residual to a row of sums, and writes it.
    void write(const float* sums, int64_t row) const {
        const int64_t place = row * columns + first;
        __m512 left = _mm512_loadu_ps(sums), right = _mm512_loadu_ps(sums + TILE);
        if (bias) {
            left = _mm512_add_ps(left, widen(bias + first));
            right = _mm512_add_ps(right, widen(bias + first + TILE));
        }
        if (residual) {
            left = _mm512_add_ps(left, widen(residual + place));
            right = _mm512_add_ps(right, widen(residual + place + TILE));
        }
        _mm512_storeu_si512(out + place, (__m512i)_mm512_cvtne2ps_pbh(right, left));
    }
};

}  // namespace
