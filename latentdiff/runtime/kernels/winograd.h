// The parts of Winograd's algorithm F(4x4, 3x3) (Lavin & Gray 2016, arXiv 1509.09308) that a convolution and the gradient of
// its weights share: maps, tiles and the transform of the input.
//
// A tile of 6x6 input pixels is transformed to 36 values per channel. The transforms interpolate at 0, +-3/4, +-3/2 and
// infinity. With these points the error is half of that with 0, +-1, +-2 and infinity: 1.6e-6 instead of 3.4e-6 in relative
// L2 norm, where a direct convolution has 0.3e-6.

#pragma once

#include "parallel.h"
#include "vec.h"

namespace {

constexpr int OUT = 4, TILE = 6, PRODUCTS = TILE * TILE, TAPS = 9;
constexpr int64_t BLOCK = 96;             // tiles that are multiplied together
constexpr int64_t SLAB = 64;              // channels whose transformed values are together
constexpr int64_t CHUNK_BYTES = 2 << 20;  // of transformed tiles, per thread
constexpr int64_t APART = 16;             // values between planes, so that they differ in cache sets
constexpr float A = 0.75f, B = 1.5f;      // the points
constexpr float AA = A * A, BB = B * B, AABB = AA * BB;
constexpr float AT_A = 1 / (2 * AA * (AA - BB)), AT_B = 1 / (2 * BB * (BB - AA));

// A map [batch, height, width, channels] of float or bits.
template <typename T>
struct Map {
    const T* values;
    int64_t batch, height, width, channels;
    int64_t down() const { return divide_up(height, OUT); }
    int64_t across() const { return divide_up(width, OUT); }
    int64_t tiles() const { return batch * down() * across(); }
    int64_t slabs() const { return divide_up(channels, SLAB); }
    int64_t slab_channels(int64_t slab) const { return smaller(SLAB, channels - slab * SLAB); }
    // The channels of a pixel, or `outside` if it is not in the map.
    const T* pixel(int64_t image, int64_t row, int64_t column, const T* outside) const {
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        return inside ? values + ((image * height + row) * width + column) * channels : outside;
    }
};

// The image of a tile and the first row and column of its 4x4 pixels.
struct Place {
    template <typename T>
    Place(const Map<T>& map, int64_t tile)
        : image(tile / (map.down() * map.across())),
          row(tile / map.across() % map.down() * OUT),
          column(tile % map.across() * OUT) {}
    int64_t image, row, column;
};

// Transformed tiles: [slab, 36, tile, SLAB].
struct Tiles {
    Tiles(int64_t slabs, int64_t count) : plane(count * SLAB + APART), values(slabs * PRODUCTS * plane) {}
    float* at(int64_t slab, int64_t product, int64_t tile) const {
        return values.get() + (slab * PRODUCTS + product) * plane + tile * SLAB;
    }
    int64_t plane;
    Buffer<float> values;
};

// Tiles to transform at a time, of `channels` values each.
inline int64_t chunk_of(int64_t tiles, int64_t threads, int64_t channels) {
    return smaller(tiles, round_up(threads * CHUNK_BYTES / (PRODUCTS * channels * int64_t{sizeof(float)}), BLOCK));
}

// Six values of a row or column of a tile, `step` values apart, in place.
inline void transform_input(floats* d, int step) {
    floats &d0 = d[0], &d1 = d[step], &d2 = d[2 * step], &d3 = d[3 * step], &d4 = d[4 * step], &d5 = d[5 * step];
    const floats even_a = d4 - BB * d2, odd_a = A * (d3 - BB * d1), even_b = d4 - AA * d2, odd_b = B * (d3 - AA * d1);
    d0 = AABB * d0 - (AA + BB) * d2 + d4;
    d5 = AABB * d1 - (AA + BB) * d3 + d5;
    d1 = even_a + odd_a;
    d2 = even_a - odd_a;
    d3 = even_b + odd_b;
    d4 = even_b - odd_b;
}

// Transforms a tile with the pixels around it. zeros: the pixels outside the map. target: its place among the tiles.
template <typename T>
void transform_tile(const Map<T>& map, const Place& place, const T* zeros, const Tiles& tiles, int64_t target) {
    const T* pixels[PRODUCTS];
    for (int i = 0; i < PRODUCTS; ++i)
        pixels[i] = map.pixel(place.image, place.row - 1 + i / TILE, place.column - 1 + i % TILE, zeros);
    for (int64_t c = 0; c < map.channels; c += LANES) {
        floats d[PRODUCTS];
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) d[i] = load(pixels[i] + c);
#pragma GCC unroll 6
        for (int row = 0; row < TILE; ++row) transform_input(d + TILE * row, 1);
#pragma GCC unroll 6
        for (int column = 0; column < TILE; ++column) transform_input(d + column, TILE);
        float* out = tiles.at(c / SLAB, 0, target) + c % SLAB;
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) store(out + i * tiles.plane, d[i]);
    }
}

}  // namespace
