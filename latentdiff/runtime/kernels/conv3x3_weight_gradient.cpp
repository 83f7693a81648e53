// The gradient of the weights of a 3x3 convolution with one pixel of padding by Winograd's algorithm (winograd.h), in float32.
//
// The output of a tile is Y = A^T [(G g G^T) (B^T d B)] A, with a product of single elements; so the gradient of the weights g
// is G^T [(A dY A^T) (B^T d B)] G. The sum over all tiles is 36 matrix products of channels by channels: a quarter of the
// multiplications of a direct computation.

#include "winograd.h"

namespace {

constexpr int DEPTHS = LANES > 8 ? 8 : 4;  // input channels whose sums with WIDTH output channels stay in registers
constexpr int64_t SQUARE = SLAB * SLAB;    // sums of a pair of slabs

// T: of the values of the maps, float or bits.
template <typename T>
struct Gradient {
    int64_t threads;
    Map<T> x, of_output;
    float* out;  // [9, depth, columns]
};

// Four values of a row or column of a tile to six.
inline void transform_output_gradient(const floats* y, int step, floats* out, int out_step) {
    const floats even_a = y[0] + AA * y[2 * step], odd_a = A * y[step] + A * AA * y[3 * step];
    const floats even_b = y[0] + BB * y[2 * step], odd_b = B * y[step] + B * BB * y[3 * step];
    out[0] = y[0];
    out[out_step] = even_a + odd_a;
    out[2 * out_step] = even_a - odd_a;
    out[3 * out_step] = even_b + odd_b;
    out[4 * out_step] = even_b - odd_b;
    out[5 * out_step] = y[3 * step];
}

// Transforms the 4x4 pixels of a tile of the output's gradient. target: its place among the tiles.
template <typename T>
void transform_output_tile(const Map<T>& map, const Place& place, const T* zeros, const Tiles& tiles, int64_t target) {
    const T* pixels[OUT * OUT];
    for (int i = 0; i < OUT * OUT; ++i)
        pixels[i] = map.pixel(place.image, place.row + i / OUT, place.column + i % OUT, zeros);
    for (int64_t c = 0; c < map.channels; c += LANES) {
        floats y[OUT * OUT], rows[OUT * TILE], full[PRODUCTS];
#pragma GCC unroll 16
        for (int i = 0; i < OUT * OUT; ++i) y[i] = load(pixels[i] + c);
#pragma GCC unroll 4
        for (int row = 0; row < OUT; ++row) transform_output_gradient(y + OUT * row, 1, rows + TILE * row, 1);
#pragma GCC unroll 6
        for (int column = 0; column < TILE; ++column) transform_output_gradient(rows + column, TILE, full + column, TILE);
        float* out = tiles.at(c / SLAB, 0, target) + c % SLAB;
#pragma GCC unroll 36
        for (int i = 0; i < PRODUCTS; ++i) store(out + i * tiles.plane, full[i]);
    }
}

// Adds to sums [depth, SLAB] the products of tiles x [count, SLAB] and of_output [count, SLAB], summed over the tiles.
void multiply(int64_t count, const float* x, const float* of_output, int64_t depth, int64_t columns, float* sums) {
    for (int64_t column = 0; column < columns; column += WIDTH)
        for (int64_t first = 0; first < depth; first += DEPTHS) {
            floats sum[DEPTHS][2];
            float* place = sums + first * SLAB + column;
#pragma GCC unroll 8
            for (int i = 0; i < DEPTHS; ++i) {
                sum[i][0] = load(place + i * SLAB);
                sum[i][1] = load(place + i * SLAB + LANES);
            }
            for (int64_t tile = 0; tile < count; ++tile) {
                const float* own = of_output + tile * SLAB + column;
                const floats left = load(own), right = load(own + LANES);
#pragma GCC unroll 8
                for (int i = 0; i < DEPTHS; ++i) {
                    const floats value = splat(x[tile * SLAB + first + i]);
                    sum[i][0] += value * left;
                    sum[i][1] += value * right;
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < DEPTHS; ++i) {
                store(place + i * SLAB, sum[i][0]);
                store(place + i * SLAB + LANES, sum[i][1]);
            }
        }
}

// Six sums, `step` values apart, to the gradients of three weights.
inline void transform_sums(const floats* m, int step, floats* out, int out_step) {
    const floats sum_a = AT_A * (m[step] + m[2 * step]), difference_a = AT_A * A * (m[step] - m[2 * step]);
    const floats sum_b = AT_B * (m[3 * step] + m[4 * step]), difference_b = AT_B * B * (m[3 * step] - m[4 * step]);
    out[0] = m[0] * (1 / AABB) + sum_a + sum_b;
    out[out_step] = difference_a + difference_b;
    out[2 * out_step] = AA * sum_a + BB * sum_b + m[5 * step];
}

// Transforms 36 sums [depth, SLAB] of a pair of slabs to the gradients of their weights.
template <typename T>
void write_weights(const Gradient<T>& p, const float* sums, int64_t depth_slab, int64_t column_slab) {
    const int64_t depth = p.x.channels, columns = p.of_output.channels;
    for (int64_t c = 0; c < p.x.slab_channels(depth_slab); ++c)
        for (int64_t k = 0; k < p.of_output.slab_channels(column_slab); k += LANES) {
            floats m[PRODUCTS], rows[TILE * 3], weights[TAPS];
#pragma GCC unroll 36
            for (int i = 0; i < PRODUCTS; ++i) m[i] = load(sums + i * SQUARE + c * SLAB + k);
#pragma GCC unroll 6
            for (int row = 0; row < TILE; ++row) transform_sums(m + TILE * row, 1, rows + 3 * row, 1);
#pragma GCC unroll 3
            for (int column = 0; column < 3; ++column) transform_sums(rows + column, 3, weights + column, 3);
            float* out = p.out + (depth_slab * SLAB + c) * columns + column_slab * SLAB + k;
#pragma GCC unroll 9
            for (int tap = 0; tap < TAPS; ++tap) store(out + tap * depth * columns, weights[tap]);
        }
}

template <typename T>
void compute(const Gradient<T>& p) {
    const Map<T>&x = p.x, &of_output = p.of_output;
    const Buffer<T> zeros(larger(x.channels, of_output.channels));
    memset(zeros.get(), 0, larger(x.channels, of_output.channels) * sizeof(T));
    const int64_t pairs = x.slabs() * of_output.slabs(), chunk = chunk_of(x.tiles(), p.threads, x.channels + of_output.channels);
    const Tiles inputs(x.slabs(), chunk), gradients(of_output.slabs(), chunk);
    const Buffer<float> sums(pairs * PRODUCTS * SQUARE);
    parallel_for(p.threads, pairs * PRODUCTS, [&](int64_t k) { memset(sums.get() + k * SQUARE, 0, SQUARE * sizeof(float)); });
    for (int64_t first = 0; first < x.tiles(); first += chunk) {
        const int64_t count = smaller(chunk, x.tiles() - first);
        parallel_ranges(p.threads, count, 4, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k) {
                transform_tile(x, Place(x, first + k), zeros.get(), inputs, k);
                transform_output_tile(of_output, Place(x, first + k), zeros.get(), gradients, k);
            }
        });
        parallel_for(p.threads, pairs * PRODUCTS, [&](int64_t k) {
            const int64_t product = k % PRODUCTS, i = k / PRODUCTS / of_output.slabs(), j = k / PRODUCTS % of_output.slabs();
            multiply(count, inputs.at(i, product, 0), gradients.at(j, product, 0), x.slab_channels(i),
                     of_output.slab_channels(j), sums.get() + k * SQUARE);
        });
    }
    parallel_for(p.threads, pairs, [&](int64_t pair) {
        const int64_t slabs = of_output.slabs();
        write_weights(p, sums.get() + pair * PRODUCTS * SQUARE, pair / slabs, pair % slabs);
    });
}

}  // namespace

// x [batch, height, width, depth], of_output [batch, height, width, columns]; out: [9, depth, columns].
EXPORT void weight_gradient_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                                 const float* x, const float* of_output, float* out) {
    compute(Gradient<float>{threads, {x, batch, height, width, depth}, {of_output, batch, height, width, columns}, out});
}

EXPORT void weight_gradient_bf16(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                                 const bits* x, const bits* of_output, float* out) {
    compute(Gradient<bits>{threads, {x, batch, height, width, depth}, {of_output, batch, height, width, columns}, out});
}
