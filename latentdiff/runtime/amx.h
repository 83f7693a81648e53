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

// Compilers do not all know that tiles are loaded from memory: what was written before must be there.
inline void written() { asm volatile("" ::: "memory"); }

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// All eight tiles as 16 rows of 64 bytes while it lives; then as the thread had them.
class Tiles {
  public:
    Tiles() {
        _tile_storeconfig(before_);
        alignas(64) Config ours{};
        ours.palette = 1;
        for (int i = 0; i < 8; ++i) {
            ours.bytes[i] = 64;
            ours.rows[i] = TILE;
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

template <typename T>
std::unique_ptr<T, decltype(&std::free)> aligned(int64_t count) {
    return {static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 64))), &std::free};
}

}  // namespace
