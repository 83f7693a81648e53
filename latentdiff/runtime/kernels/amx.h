// Code shared by the AMX kernels: the tile configuration of a thread, and sums in tile registers.

#pragma once

#include "panels.h"

namespace {

// A compiler barrier: some compilers do not know that tile instructions read and write memory.
inline void written() { asm volatile("" ::: "memory"); }

// Configures the tile registers with rows of 64 bytes: tiles 0 to 6 with `rows` rows, tile 7 with 16. The destructor
// restores the previous configuration of the thread.
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

// The sums [rows * TILE, PANEL] are in tiles 0 to 2 * rows - 1 during accumulation. `fresh`: start from zero, not memory.
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
