// 3x3 convolutions of float32 maps by Winograd's algorithm F(4x4, 3x3) (Lavin & Gray 2016, arXiv 1509.09308): 36 products
// for 4x4 output pixels instead of 144.
//
// A tile of 6x6 input pixels is transformed to 36 values per channel, which are multiplied by 36 transformed weights and
// summed over the channels like 36 matrix products; the sums of a tile are transformed to 4x4 output pixels. The transforms
// interpolate at 0, +-3/4, +-3/2 and infinity. With these points the error is half of that with 0, +-1, +-2 and infinity:
// 1.6e-6 instead of 3.4e-6 in relative L2 norm, where a direct convolution has 0.3e-6.

#include "parallel.h"
#include "vec.h"

namespace {

constexpr int OUT = 4, TILE = 6, PRODUCTS = TILE * TILE;
constexpr int ROWS = REGISTERS == 16 ? 6 : 12;         // tiles whose sums with a panel stay in registers
constexpr int64_t BLOCK = 96;                          // tiles whose 36 sums with a panel share the L2 cache
constexpr int64_t AHEAD = 24;                          // prefetch distance in a panel, in channels
constexpr int64_t CHUNK_BYTES = 2 << 20;               // of transformed input, per thread
constexpr int64_t APART = 16;                          // values between planes, so that they differ in cache sets
constexpr float A = 0.75f, B = 1.5f;                   // the points
constexpr float AA = A * A, BB = B * B, AABB = AA * BB;

struct Convolution {
    int64_t threads, batch, height, width, depth, columns;
    const float *x, *weights, *bias, *residual;  // x: [batch, height, width, depth]; weights: [columns / WIDTH, 36, depth, WIDTH]
    float* out;                                  // [batch, height, width, columns]
    int64_t down() const { return divide_up(height, OUT); }
    int64_t across() const { return divide_up(width, OUT); }
    int64_t tiles() const { return batch * down() * across(); }
};

// The image of a tile and the first row and column of its output.
struct Place {
    Place(const Convolution& p, int64_t tile)
        : image(tile / (p.down() * p.across())), row(tile / p.across() % p.down() * OUT), column(tile % p.across() * OUT) {}
    int64_t image, row, column;
};

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

// Six sums to four outputs.
inline void transform_output(floats* m, int step) {
    const floats sum_a = m[step] + m[2 * step], difference_a = m[step] - m[2 * step];
    const floats sum_b = m[3 * step] + m[4 * step], difference_b = m[3 * step] - m[4 * step];
    m[0] += sum_a + sum_b;
    m[step] = A * difference_a + B * difference_b;
    m[2 * step] = AA * sum_a + BB * sum_b;
    m[3 * step] = A * AA * difference_a + B * BB * difference_b + m[5 * step];
}

// Three weights to six.
inline void transform_weights(const float (&w)[3], float (&out)[TILE]) {
    const float at_a = 1 / (2 * AA * (AA - BB)), at_b = 1 / (2 * BB * (BB - AA));
    out[0] = w[0] / AABB;
    out[1] = at_a * (w[0] + A * w[1] + AA * w[2]);
    out[2] = at_a * (w[0] - A * w[1] + AA * w[2]);
    out[3] = at_b * (w[0] + B * w[1] + BB * w[2]);
    out[4] = at_b * (w[0] - B * w[1] + BB * w[2]);
    out[5] = w[2];
}

// Transforms a tile to 36 vectors of `depth` values, `plane` values apart. Pixels outside the map are `zeros`.
void transform_tile(const Convolution& p, const Place& place, const float* zeros, float* out, int64_t plane) {
    const float* pixels[PRODUCTS];
    for (int i = 0; i < PRODUCTS; ++i) {
        const int64_t row = place.row - 1 + i / TILE, column = place.column - 1 + i % TILE;
        const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
        pixels[i] = inside ? p.x + ((place.image * p.height + row) * p.width + column) * p.depth : zeros;
    }
    for (int64_t c = 0; c < p.depth; c += LANES) {
        floats d[PRODUCTS];
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) d[i] = load(pixels[i] + c);
#pragma GCC unroll 6
        for (int row = 0; row < TILE; ++row) transform_input(d + TILE * row, 1);
#pragma GCC unroll 6
        for (int column = 0; column < TILE; ++column) transform_input(d + column, TILE);
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) store(out + i * plane + c, d[i]);
    }
}

// Computes the products [COUNT, WIDTH] of tiles [COUNT, depth] with a panel [depth, WIDTH]. next: tiles to prefetch.
template <int COUNT>
inline void multiply(const float* tiles, const float* panel, int64_t depth, float* sums, const float* next) {
    floats sum[COUNT][2] = {};
    for (int64_t c = 0; c < depth; ++c, panel += WIDTH, next += COUNT) {
        __builtin_prefetch(panel + AHEAD * WIDTH);
        __builtin_prefetch(panel + AHEAD * WIDTH + LANES);
        __builtin_prefetch(next, 0, 2);
        const floats first = load(panel), second = load(panel + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < COUNT; ++i) {
            const floats value = splat(tiles[i * depth + c]);
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
    for (; count >= ROWS; count -= ROWS, tiles += ROWS * depth, sums += ROWS * WIDTH)
        multiply<ROWS>(tiles, panel, depth, sums, count == ROWS ? next : tiles + ROWS * depth);
    for (; count >= 4; count -= 4, tiles += 4 * depth, sums += 4 * WIDTH) multiply<4>(tiles, panel, depth, sums, next);
    for (; count > 0; --count, tiles += depth, sums += WIDTH) multiply<1>(tiles, panel, depth, sums, next);
}

// Transforms 36 sums, `plane` values apart, to the output pixels of a tile in WIDTH columns from `first` on.
void write_tile(const Convolution& p, const Place& place, const float* sums, int64_t plane, int64_t first) {
    for (int64_t column = first; column < first + WIDTH; column += LANES, sums += LANES) {
        floats m[PRODUCTS];
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) m[i] = load(sums + i * plane);
#pragma GCC unroll 6
        for (int row = 0; row < TILE; ++row) transform_output(m + TILE * row, 1);
#pragma GCC unroll 4
        for (int c = 0; c < OUT; ++c) transform_output(m + c, TILE);
        const floats bias = p.bias ? load(p.bias + column) : floats{};
        const int64_t rows = smaller<int64_t>(OUT, p.height - place.row), columns = smaller<int64_t>(OUT, p.width - place.column);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t c = 0; c < columns; ++c) {
                const int64_t pixel = (place.image * p.height + place.row + row) * p.width + place.column + c;
                const int64_t at = pixel * p.columns + column;
                const floats value = m[TILE * row + c] + bias;
                store(p.out + at, p.residual ? value + load(p.residual + at) : value);
            }
    }
}

// Multiplies a block of transformed tiles by one panel and writes its output.
void convolve(const Convolution& p, int64_t first_tile, int64_t count, const float* tiles, int64_t plane, int64_t panel) {
    const Buffer<float> sums(PRODUCTS * BLOCK * WIDTH);
    const float* weights = p.weights + panel * PRODUCTS * p.depth * WIDTH;
    for (int64_t i = 0; i < PRODUCTS; ++i)
        multiply(count, tiles + i * plane, weights + i * p.depth * WIDTH, p.depth, sums.get() + i * BLOCK * WIDTH,
                 tiles + (i + 1) * plane);
    for (int64_t k = 0; k < count; ++k)
        write_tile(p, Place(p, first_tile + k), sums.get() + k * WIDTH, BLOCK * WIDTH, panel * WIDTH);
}

}  // namespace

// Transforms weights [columns, depth, 3, 3] to [columns / WIDTH, 36, depth, WIDTH].
EXPORT void winograd_weights_fp32(int64_t threads, int64_t columns, int64_t depth, const float* weight, float* out) {
    parallel_for(threads, columns / WIDTH, [&](int64_t panel) {
        for (int64_t k = 0; k < WIDTH; ++k)
            for (int64_t c = 0; c < depth; ++c) {
                const float* kernel = weight + ((panel * WIDTH + k) * depth + c) * 9;
                float rows[3][TILE];
                for (int i = 0; i < 3; ++i) transform_weights({kernel[3 * i], kernel[3 * i + 1], kernel[3 * i + 2]}, rows[i]);
                for (int j = 0; j < TILE; ++j) {
                    float column[TILE];
                    transform_weights({rows[0][j], rows[1][j], rows[2][j]}, column);
                    for (int i = 0; i < TILE; ++i)
                        out[((panel * PRODUCTS + i * TILE + j) * depth + c) * WIDTH + k] = column[i];
                }
            }
    });
}

// x [batch, height, width, depth] convolved with one pixel of zero padding, plus bias [columns] and residual, both optional.
EXPORT void winograd_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                          const float* x, const float* weights, const float* bias, const float* residual, float* out) {
    const Convolution p{threads, batch, height, width, depth, columns, x, weights, bias, residual, out};
    const Buffer<float> zeros(depth);
    memset(zeros.get(), 0, depth * sizeof(float));
    const int64_t chunk = smaller(p.tiles(), round_up(threads * CHUNK_BYTES / (PRODUCTS * depth * int64_t{sizeof(float)}), BLOCK));
    const int64_t plane = chunk * depth + APART, panels = columns / WIDTH;
    const Buffer<float> tiles(PRODUCTS * plane);
    for (int64_t first = 0; first < p.tiles(); first += chunk) {
        const int64_t count = smaller(chunk, p.tiles() - first), blocks = divide_up(count, BLOCK);
        parallel_ranges(threads, count, 4, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k)
                transform_tile(p, Place(p, first + k), zeros.get(), tiles.get() + k * depth, plane);
        });
        parallel_for(threads, panels * blocks, [&](int64_t unit) {
            const int64_t panel = unit / blocks, from = unit % blocks * BLOCK;
            convolve(p, first + from, smaller(BLOCK, count - from), tiles.get() + from * depth, plane, panel);
        });
    }
}
