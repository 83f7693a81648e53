// Linear layers in float32, optionally followed by GEGLU (Shazeer 2020). The weights are in panels of WIDTH columns; with
// GEGLU, of LANES values and their gates.
//
// The sums of a few rows with one panel stay in registers for the complete depth, so a row is rounded alike in any batch.
// A chunk of rows and a panel fit the L2 cache: a chunk is multiplied by all panels before the next chunk.

#include "elements.h"
#include "vec.h"

namespace {

constexpr int ROWS = REGISTERS == 16 ? 6 : 12;  // rows whose sums with a panel stay in registers
constexpr int64_t AHEAD = 24;                   // prefetch distance in a panel, in depths
constexpr int64_t CHUNK_BYTES = 512 * 1024;     // of a chunk of rows, which shares the L2 cache with a panel
constexpr int64_t LEAST_BLOCKS = 8;             // of ROWS rows in a chunk, so that weights larger than the cache are read seldom
constexpr int64_t PAGE = 1024;                  // values in a page
constexpr int64_t APART = 16;                   // values in a cache line
constexpr int64_t TAPS = 9;
constexpr int64_t GATHERED = 1024;              // pixels whose surroundings are held at once
constexpr int64_t SHARES = 4;                   // parts of the work per thread

struct Linear {
    int64_t threads, rows, depth, stride, columns;  // stride: values between rows of x; columns: of the output
    const float *x, *weight, *bias, *residual;      // weight: [panels, depth, WIDTH]; residual: [rows, columns]
    float* out;                                     // [rows, columns]
};

// Writes the sums of COUNT rows with a panel.
struct Plain {
    static constexpr int64_t COLUMNS = WIDTH;
    template <int COUNT>
    static void write(const Linear& p, int64_t row, int64_t column, const floats (&sums)[COUNT][2]) {
        float values[COUNT * WIDTH];  // the sums, in memory: the loop below would take registers from the product's loop
#pragma GCC unroll 12
        for (int i = 0; i < COUNT; ++i) {
            store(values + i * WIDTH, sums[i][0]);
            store(values + i * WIDTH + LANES, sums[i][1]);
        }
        for (int i = 0; i < COUNT; ++i)
            for (int64_t k = 0; k < WIDTH; k += LANES) {
                const int64_t at = (row + i) * p.columns + column + k;
                floats value = load(values + i * WIDTH + k);
                if (p.bias) value += load(p.bias + column + k);
                if (p.residual) value += load(p.residual + at);
                store(p.out + at, value);
            }
    }
};

// Writes value * gelu(gate) of COUNT rows.
struct Gated {
    static constexpr int64_t COLUMNS = LANES;
    template <int COUNT>
    static void write(const Linear& p, int64_t row, int64_t column, const floats (&sums)[COUNT][2]) {
        float value[COUNT * LANES], gate[COUNT * LANES];
        const floats value_bias = p.bias ? load(p.bias + column) : floats{};
        const floats gate_bias = p.bias ? load(p.bias + p.columns + column) : floats{};
#pragma GCC unroll 12
        for (int i = 0; i < COUNT; ++i) {
            store(value + i * LANES, sums[i][0] + value_bias);
            store(gate + i * LANES, sums[i][1] + gate_bias);
        }
#pragma omp simd
        for (int i = 0; i < COUNT * LANES; ++i) {
            float density;
            value[i] *= gate[i] * normal(gate[i], density);
        }
        for (int i = 0; i < COUNT; ++i) store(p.out + (row + i) * p.columns + column, load(value + i * LANES));
    }
};

// Rows [begin, end) of x, `stride` values apart.
struct Chunk {
    const float* x;
    int64_t begin, end, stride;
};

// Multiplies COUNT rows from `row` on by a panel, whose output begins at `column`.
template <typename Output, int COUNT>
inline void multiply(const Linear& p, const Chunk& chunk, int64_t row, const float* panel, int64_t column) {
    const float* x = chunk.x + (row - chunk.begin) * chunk.stride;
    floats sums[COUNT][2] = {};
    for (int64_t c = 0; c < p.depth; ++c, ++x, panel += WIDTH) {
        __builtin_prefetch(panel + AHEAD * WIDTH);
        if (LANES == 16) __builtin_prefetch(panel + AHEAD * WIDTH + LANES);
        const floats first = load(panel), second = load(panel + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < COUNT; ++i) {
            const floats value = splat(x[i * chunk.stride]);
            sums[i][0] += value * first;
            sums[i][1] += value * second;
        }
    }
    Output::write(p, row, column, sums);
}

// Multiplies all rows of a chunk by a panel.
template <typename Output>
void multiply(const Linear& p, const Chunk& chunk, const float* panel, int64_t column) {
    constexpr int FEWER = ROWS * 2 / 3;
    int64_t row = chunk.begin, left = chunk.end - row;
    for (; left >= ROWS && left != 2 * FEWER; left -= ROWS, row += ROWS) multiply<Output, ROWS>(p, chunk, row, panel, column);
    for (; left >= FEWER; left -= FEWER, row += FEWER) multiply<Output, FEWER>(p, chunk, row, panel, column);
    for (; left >= 2; left -= 2, row += 2) multiply<Output, 2>(p, chunk, row, panel, column);
    if (left == 1) multiply<Output, 1>(p, chunk, row, panel, column);
}

// Rows that are a multiple of a page apart share sets of the L1 cache: these are copied to rows that are not.
Chunk spread(const Linear& p, int64_t begin, int64_t end, Buffer<float>& copy) {
    const float* from = p.x + begin * p.stride;
    if (p.stride % PAGE != 0) return {from, begin, end, p.stride};
    const int64_t stride = p.depth + APART;
    copy.allocate((end - begin) * stride);
    for (int64_t row = 0; row < end - begin; ++row)
        memcpy(copy.get() + row * stride, from + row * p.stride, p.depth * sizeof(float));
    return {copy.get(), begin, end, stride};
}

// Distributes chunks of rows times groups of panels over the threads, in an order in which all threads read the same
// weights at about the same time.
template <typename Output>
void multiply(const Linear& p) {
    const int64_t panels = p.columns / Output::COLUMNS, blocks = divide_up(p.rows, ROWS);
    const int64_t near = larger<int64_t>(LEAST_BLOCKS, CHUNK_BYTES / (ROWS * p.depth * int64_t{sizeof(float)}));
    const int64_t chunks = divide_up(blocks, near);
    const int64_t groups = smaller(panels, divide_up(p.threads == 1 ? 1 : SHARES * p.threads, chunks));
    parallel_for(p.threads, chunks * groups, [&](int64_t i) {
        const int64_t chunk = i / groups, group = i % groups;
        const int64_t begin = chunk * blocks / chunks * ROWS, end = smaller((chunk + 1) * blocks / chunks * ROWS, p.rows);
        Buffer<float> copy;
        const Chunk rows = spread(p, begin, end, copy);
        for (int64_t panel = group * panels / groups; panel < (group + 1) * panels / groups; ++panel)
            multiply<Output>(p, rows, p.weight + panel * p.depth * WIDTH, panel * Output::COLUMNS);
    });
}

struct Map {
    int64_t batch, height, width, depth;
    const float* x;  // [batch, height, width, depth]
    int64_t pixels() const { return batch * height * width; }
};

// Writes the 3x3 pixels around a pixel, [9, depth]; zeros for those outside the map.
void gather(const Map& map, int64_t pixel, float* out) {
    const int64_t row = pixel / map.width % map.height, column = pixel % map.width;
    for (int64_t tap = 0; tap < TAPS; ++tap, out += map.depth) {
        const int64_t down = tap / 3 - 1, right = tap % 3 - 1;
        const bool inside = row + down >= 0 && row + down < map.height && column + right >= 0 && column + right < map.width;
        if (inside) memcpy(out, map.x + (pixel + down * map.width + right) * map.depth, map.depth * sizeof(float));
        else memset(out, 0, map.depth * sizeof(float));
    }
}

}  // namespace

EXPORT int64_t panel_width() { return WIDTH; }

// Writes x weight^T + bias + residual, [rows, columns]; bias and residual are optional.
EXPORT void linear_fp32(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const float* x, const float* weight,
                        const float* bias, const float* residual, float* out) {
    if (rows > 0) multiply<Plain>({threads, rows, depth, depth, columns, x, weight, bias, residual, out});
}

// Writes value * gelu(gate), [rows, columns / 2].
EXPORT void gated_linear_fp32(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const float* x, const float* weight,
                              const float* bias, float* out) {
    if (rows > 0) multiply<Gated>({threads, rows, depth, depth, columns / 2, x, weight, bias, nullptr, out});
}

// x [batch, height, width, depth] convolved with one pixel of zero padding, plus bias and residual, both optional.
EXPORT void convolution_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                             const float* x, const float* weight, const float* bias, const float* residual, float* out) {
    const Map map{batch, height, width, depth, x};
    const int64_t most = smaller(map.pixels(), GATHERED), stride = TAPS * depth + APART;
    const Buffer<float> taps(most * stride);
    for (int64_t first = 0; first < map.pixels(); first += most) {
        const int64_t rows = smaller(most, map.pixels() - first);
        parallel_ranges(threads, rows, 4, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) gather(map, first + row, taps.get() + row * stride);
        });
        const float* added = residual ? residual + first * columns : nullptr;
        multiply<Plain>({threads, rows, TAPS * depth, stride, columns, taps.get(), weight, bias, added, out + first * columns});
    }
}
