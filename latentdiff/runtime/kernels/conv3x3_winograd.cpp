// 3x3 convolutions by Winograd's algorithm (winograd.h): 36 products for 4x4 output pixels instead of 144. Maps and weights
// are float32 or bfloat16; everything between is float32.
//
// The 36 values of each channel of a tile are multiplied by 36 transformed weights and summed over the channels like 36
// matrix products; the sums of a tile are transformed to 4x4 output pixels. Weights are transformed during the call, for a
// few channels at a time that then stay in the L2 cache: it takes a few hundredths of the time of the products, and less than
// reading transformed weights from memory.

#include "winograd.h"

namespace {

constexpr int ROWS = REGISTERS == 16 ? 6 : 12;  // tiles whose sums with a panel stay in registers
constexpr int64_t PANEL = SLAB * WIDTH + APART, SUMS = BLOCK * WIDTH + APART;

// T: of the values of maps and weights, float or bits.
template <typename T>
struct Convolution {
    int64_t threads;
    Map<T> x;
    int64_t columns;
    const T *weights, *bias, *residual;  // weights: in panels of columns, as in panels.py
    T* out;                              // [batch, height, width, columns], like residual
};

// Six sums to four outputs.
inline void transform_output(floats* m, int step) {
    const floats sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const floats sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    m[0] += sum_a + sum_b;
    m[step] = A * difference_a + B * difference_b;
    m[2 * step] = AA * sum_a + BB * sum_b;
    m[3 * step] = A * AA * difference_a + B * BB * difference_b + m[5 * step];
}

// Three weights, `step` values apart, to six.
inline void transform_weights(const floats* w, int step, floats* out, int out_step) {
    const floats even_a = AT_A * (w[0] + AA * w[2 * step]), odd_a = AT_A * A * w[step];
    const floats even_b = AT_B * (w[0] + BB * w[2 * step]), odd_b = AT_B * B * w[step];
    out[0] = w[0] * (1 / AABB);
    out[out_step] = even_a + odd_a;
    out[2 * out_step] = even_a - odd_a;
    out[3 * out_step] = even_b + odd_b;
    out[4 * out_step] = even_b - odd_b;
    out[5 * out_step] = w[2 * step];
}

// The weights of a tap and a channel, of LANES columns from `column` on.
inline floats weights_of(const Convolution<float>& p, int64_t tap, int64_t channel, int64_t column) {
    return load(p.weights + ((column / WIDTH * TAPS + tap) * p.x.channels + channel) * WIDTH + column % WIDTH);
}

inline floats weights_of(const Convolution<bits>& p, int64_t tap, int64_t channel, int64_t column) {
    constexpr int64_t HALF = 16, DEPTH = 32;  // columns of half a panel, and depths that are together
    const int64_t block = (column / (2 * HALF) * (p.x.channels / DEPTH) + channel / DEPTH) * TAPS + tap;
    const int64_t row = (2 * block + column / HALF % 2) * (DEPTH / 2) + channel % DEPTH / 2;
    const words pair = load_pairs(p.weights + 2 * (row * HALF + column % HALF));
    return channel % 2 ? high(pair) : low(pair);
}

// Transforms the weights of a slab and of WIDTH columns from `first` on to 36 panels [SLAB, WIDTH], PANEL values apart.
template <typename T>
void transform_slab(const Convolution<T>& p, int64_t slab, int64_t first, float* out) {
    for (int64_t c = 0; c < p.x.slab_channels(slab); ++c)
        for (int64_t k = 0; k < WIDTH; k += LANES) {
            floats w[TAPS], rows[3 * TILE], full[PRODUCTS];
#pragma GCC unroll 9
            for (int tap = 0; tap < TAPS; ++tap) w[tap] = weights_of(p, tap, slab * SLAB + c, first + k);
#pragma GCC unroll 3
            for (int row = 0; row < 3; ++row) transform_weights(w + 3 * row, 1, rows + TILE * row, 1);
#pragma GCC unroll 6
            for (int column = 0; column < TILE; ++column) transform_weights(rows + column, TILE, full + column, TILE);
#pragma GCC unroll 36
            for (int i = 0; i < PRODUCTS; ++i) store(out + i * PANEL + c * WIDTH + k, full[i]);
        }
}

// Adds the products of tiles [COUNT, SLAB] with a panel [depth, WIDTH] to sums [COUNT, WIDTH]. next: tiles to prefetch.
template <int COUNT>
inline void multiply(const float* tiles, const float* panel, int64_t depth, float* sums, const float* next) {
    floats sum[COUNT][2];
#pragma GCC unroll 12
    for (int i = 0; i < COUNT; ++i) {
        sum[i][0] = load(sums + i * WIDTH);
        sum[i][1] = load(sums + i * WIDTH + LANES);
    }
    for (int64_t c = 0; c < depth; ++c, panel += WIDTH, next += COUNT) {
        __builtin_prefetch(next, 0, 2);
        const floats first = load(panel), second = load(panel + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < COUNT; ++i) {
            const floats value = splat(tiles[i * SLAB + c]);
            sum[i][0] += value * first;
            sum[i][1] += value * second;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < COUNT; ++i) {
        store(sums + i * WIDTH, sum[i][0]);
        store(sums + i * WIDTH + LANES, sum[i][1]);
    }
}

// The same for any number of tiles. next: the tiles that are read afterwards.
void multiply(int64_t count, const float* tiles, const float* panel, int64_t depth, float* sums, const float* next) {
    for (; count >= ROWS; count -= ROWS, tiles += ROWS * SLAB, sums += ROWS * WIDTH)
        multiply<ROWS>(tiles, panel, depth, sums, count == ROWS ? next : tiles + ROWS * SLAB);
    for (; count >= 4; count -= 4, tiles += 4 * SLAB, sums += 4 * WIDTH) multiply<4>(tiles, panel, depth, sums, next);
    for (; count > 0; --count, tiles += SLAB, sums += WIDTH) multiply<1>(tiles, panel, depth, sums, next);
}

// Transforms 36 sums, `plane` values apart, to the output pixels of a tile in WIDTH columns from `first` on.
template <typename T>
void write_tile(const Convolution<T>& p, const Place& place, const float* sums, int64_t plane, int64_t first) {
    for (int64_t column = first; column < first + WIDTH; column += LANES, sums += LANES) {
        floats m[PRODUCTS];
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) m[i] = load(sums + i * plane);
#pragma GCC unroll 6
        for (int row = 0; row < TILE; ++row) transform_output(m + TILE * row, 1);
#pragma GCC unroll 4
        for (int c = 0; c < OUT; ++c) transform_output(m + c, TILE);
        const floats bias = p.bias ? load(p.bias + column) : floats{};
        const int64_t rows = smaller<int64_t>(OUT, p.x.height - place.row), columns = smaller<int64_t>(OUT, p.x.width - place.column);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t pixel = (place.image * p.x.height + place.row + row) * p.x.width + place.column + c;
                const int64_t at = pixel * p.columns + column;
                const floats value = m[TILE * row + c] + bias;
                store(p.out + at, p.residual ? value + load(p.residual + at) : value);
            }
    }
}

// Computes WIDTH columns from `column` on of a block of tiles. first: the tile of the map that is the first of `tiles`.
template <typename T>
void convolve_block(const Convolution<T>& p, const Tiles& tiles, int64_t first, int64_t from, int64_t count, int64_t column) {
    const Buffer<float> sums(PRODUCTS * SUMS), weights(PRODUCTS * PANEL);
    for (int64_t i = 0; i < PRODUCTS; ++i) memset(sums.get() + i * SUMS, 0, count * WIDTH * sizeof(float));
    for (int64_t slab = 0; slab < p.x.slabs(); ++slab) {
        transform_slab(p, slab, column, weights.get());
        for (int64_t i = 0; i < PRODUCTS; ++i)
            multiply(count, tiles.at(slab, i, from), weights.get() + i * PANEL, p.x.slab_channels(slab),
                     sums.get() + i * SUMS, tiles.at(slab, i + 1, from));
    }
    for (int64_t k = 0; k < count; ++k) write_tile(p, Place(p.x, first + from + k), sums.get() + k * WIDTH, SUMS, column);
}

// x convolved with one pixel of zero padding, plus bias [columns] and residual, both optional.
template <typename T>
void convolve(const Convolution<T>& p) {
    const Buffer<T> zeros(p.x.channels);
    memset(zeros.get(), 0, p.x.channels * sizeof(T));
    const int64_t chunk = chunk_of(p.x.tiles(), p.threads, p.x.channels), panels = p.columns / WIDTH;
    const Tiles tiles(p.x.slabs(), chunk);
    for (int64_t first = 0; first < p.x.tiles(); first += chunk) {
        const int64_t count = smaller(chunk, p.x.tiles() - first), blocks = divide_up(count, BLOCK);
        parallel_ranges(p.threads, count, 4, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k) transform_tile(p.x, Place(p.x, first + k), zeros.get(), tiles, k);
        });
        parallel_for(p.threads, panels * blocks, [&](int64_t unit) {
            const int64_t panel = unit / blocks, from = unit % blocks * BLOCK;
            convolve_block(p, tiles, first, from, smaller(BLOCK, count - from), panel * WIDTH);
        });
    }
}

}  // namespace

EXPORT void winograd_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                          const float* x, const float* weights, const float* bias, const float* residual, float* out) {
    convolve(Convolution<float>{threads, {x, batch, height, width, depth}, columns, weights, bias, residual, out});
}

EXPORT void winograd_bf16(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                          const bits* x, const bits* weights, const bits* bias, const bits* residual, bits* out) {
    convolve(Convolution<bits>{threads, {x, batch, height, width, depth}, columns, weights, bias, residual, out});
}
