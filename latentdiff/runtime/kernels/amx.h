// What the kernels for AMX share: the state that a thread needs to use tiles, and sums in tiles.

#pragma once

#include "panels.h"

namespace {

// Compilers do not all know that tiles are loaded from memory: what was written before must be there.
inline void written() { asm volatile("" ::: "memory"); }

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

}  // namespace
