// What the kernels for AMX share: tiles' sizes, and the state that a thread needs to use them.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace {

using bits = uint16_t;  // a bfloat16

constexpr int64_t TILE = 16;   // rows of a tile, and its columns of 32 bits
constexpr int64_t DEPTH = 32;  // bfloat16 in a row of a tile: what one product sums over
constexpr int64_t TILE_BITS = TILE * DEPTH;
constexpr int64_t PANEL = 2 * TILE;            // columns of weights that lie together
constexpr int64_t PANEL_BITS = PANEL * DEPTH;  // of one depth and tap
constexpr int64_t LINE = 64 / sizeof(bits);    // of the cache

// Compilers do not all know that tiles are loaded from memory: what was written before must be there.
inline void written() { asm volatile("" ::: "memory"); }

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// All eight tiles as 16 rows of 64 bytes while it lives, all but the last with fewer if asked for; then as the thread had
// them.
class Tiles {
  public:
    explicit Tiles(int64_t rows = TILE) {
        _tile_storeconfig(before_);
        alignas(64) Config ours{};
        ours.palette = 1;
        for (int i = 0; i < 8; ++i) {
            ours.bytes[i] = 64;
            ours.rows[i] = i < 7 ? rows : TILE;
        }
        written();
        _tile_loadconfig(&ours);
    }
    ~Tiles() {
        if (before_[0] == 0) _tile_release();
        else _tile_loadconfig(before_);
    }

  private:
    struct Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };
    alignas(64) uint8_t before_[64];
};

// Sums [rows * TILE, PANEL] are tiles 0 to 2 * rows - 1 while products are added to them: from zero, or on from memory.
template <int rows>
void begin_sums(const float* sums, bool fresh) {
    constexpr int64_t bytes = PANEL * sizeof(float);
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (rows > 1) {
            _tile_zero(2);
            _tile_zero(3);
        }
        if constexpr (rows > 2) {
            _tile_zero(4);
            _tile_zero(5);
        }
        return;
    }
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + TILE, bytes);
    if constexpr (rows > 1) {
        _tile_loadd(2, sums + TILE * PANEL, bytes);
        _tile_loadd(3, sums + TILE * PANEL + TILE, bytes);
    }
    if constexpr (rows > 2) {
        _tile_loadd(4, sums + 2 * TILE * PANEL, bytes);
        _tile_loadd(5, sums + 2 * TILE * PANEL + TILE, bytes);
    }
}

template <int rows>
void store_sums(float* sums) {
    constexpr int64_t bytes = PANEL * sizeof(float);
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + TILE, bytes);
    if constexpr (rows > 1) {
        _tile_stored(2, sums + TILE * PANEL, bytes);
        _tile_stored(3, sums + TILE * PANEL + TILE, bytes);
    }
    if constexpr (rows > 2) {
        _tile_stored(4, sums + 2 * TILE * PANEL, bytes);
        _tile_stored(5, sums + 2 * TILE * PANEL + TILE, bytes);
    }
}

// What is read later, asked for meanwhile: `lines` of the cache at each step.
struct Ahead {
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

// A panel's columns of an answer [rows, columns], from column `first` on; bias and residual may be missing.
struct Columns {
    int64_t columns, first;
    const bits *bias, *residual;
    bits* out;

    // What `write` will read and write.
    void ask(int64_t row) const {
        const int64_t place = row * columns + first;
        _mm_prefetch(out + place, _MM_HINT_T1);
        if (residual) _mm_prefetch(residual + place, _MM_HINT_T1);
    }

    // One row of sums, with bias and residual.
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

template <typename T>
std::unique_ptr<T, decltype(&std::free)> aligned(int64_t count) {
    return {static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 64))), &std::free};
}

}  // namespace
