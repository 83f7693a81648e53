// 3x3 convolutions in bfloat16 for feature maps with few pixels, on AMX or AVX-512 BF16.
//
// With many weights and few rows, each weight should be read once and sequentially, while the rows stay in the cache. A
// panel is 32 columns of the weights. Its part for some depths stays in the L2 cache while it is multiplied by all rows,
// and the next part is prefetched.

#if defined(__AVX512BF16__)


#if defined(__AMX_BF16__)
#include "amx.h"
#else
#include "panels.h"
#endif

namespace {

constexpr int64_t SUMS = PANEL * PANEL;  // two tiles of rows by one panel
constexpr int64_t TAPS = 9;
constexpr int64_t ROW_BYTES = 256 * 1024;  // of rows, which share the L2 cache with a panel

// The left operand: `rows` rows in each of `images`, in pieces of DEPTH values. tap: the offset at which a tap reads.
struct Left {
    const bits* data;
    int64_t images, rows, image_stride, depth_stride;
    int64_t tap[TAPS];
    int64_t tiles() const { return divide_up(rows, TILE); }  // per image; the last two may overlap
    int64_t start(int64_t tile) const { return smaller(tile % tiles() * TILE, rows - TILE); }
    const bits* at(int64_t tile) const { return data + tile / tiles() * image_stride + start(tile) * DEPTH; }
    int64_t place(int64_t tile) const { return tile / tiles() * rows + start(tile); }
};

struct Product {
    int64_t threads;
    Left left;
    int64_t depths, columns;
    const bits* weight;  // [columns / PANEL, depths, TAPS, 2, TILE, DEPTH]
    const bits *bias, *residual;
    bits* out;
    const bits* part(int64_t panel, int64_t depth) const { return weight + (panel * depths + depth) * TAPS * PANEL_BITS; }
};

// Adds two tiles of rows times `depths` of a panel to sums [PANEL, PANEL], which start from zero if `fresh`.
#if defined(__AMX_BF16__)
void accumulate(const Left& left, const bits* first, const bits* second, const bits* weight, int64_t depths, bool fresh,
                Prefetcher ahead, float* sums) {
    written();
    begin_sums<2>(sums, fresh);
    for (int64_t depth = 0; depth < depths; ++depth, first += left.depth_stride, second += left.depth_stride)
        for (int64_t i = 0; i < TAPS; ++i, weight += PANEL_BITS) {
            _tile_loadd(4, first + left.tap[i], 64);
            _tile_loadd(6, weight, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, weight + TILE_BITS, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, second + left.tap[i], 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            ahead.step();
        }
    store_sums<2>(sums);
    written();
}
#else
constexpr int64_t ROWS = 8;  // rows whose sums are in registers

// Adds rows times one depth of a panel, for all taps, to sums [ROWS, PANEL], and prefetches `next`.
void accumulate_rows(const Left& left, const bits* rows, const bits* weight, const bits* next, float* sums) {
    floats own[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
        own[i][0] = load(sums + i * PANEL);
        own[i][1] = load(sums + i * PANEL + TILE);
    }
    for (int64_t tap = 0; tap < TAPS; ++tap, weight += PANEL_BITS)
        for (int64_t pair = 0; pair < DEPTH; pair += 2) {
            __builtin_prefetch(next);
            next += LINE * ROWS / PANEL * 2;
            const words first = load_pairs(weight + pair * TILE), second = load_pairs(weight + TILE_BITS + pair * TILE);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                const words value = splat_pair(rows + left.tap[tap] + i * DEPTH + pair);
                own[i][0] = Pair::dot(own[i][0], first, value);
                own[i][1] = Pair::dot(own[i][1], second, value);
            }
        }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
        store(sums + i * PANEL, own[i][0]);
        store(sums + i * PANEL + TILE, own[i][1]);
    }
}

// One depth of the panel stays in the L1 cache while it is multiplied by all rows; the next depth is prefetched.
void accumulate(const Left& left, const bits* first, const bits* second, const bits* weight, int64_t depths, bool fresh,
                Prefetcher, float* sums) {
    const int64_t count = second == first ? TILE : PANEL;
    if (fresh) memset(sums, 0, SUMS * sizeof(float));
    for (int64_t depth = 0; depth < depths; ++depth, weight += TAPS * PANEL_BITS) {
        for (int64_t row = 0; row < count; row += ROWS) {
            const bits* next = weight + (PANEL + row) * TAPS * DEPTH;
            const bits* rows = (row < TILE ? first : second) + row % TILE * DEPTH + depth * left.depth_stride;
            accumulate_rows(left, rows, weight, next, sums + row * PANEL);
        }
    }
}
#endif

// Adds bias and residual to the sums of a tile, and writes them.
void write(const Product& p, const float* sums, int64_t tile, int64_t panel) {
    const Columns columns{p.columns, panel * PANEL, p.bias, p.residual, p.out};
    for (int64_t row = 0; row < TILE; ++row) columns.write(sums + row * PANEL, p.left.place(tile) + row);
}

// The work of one thread: items [begin, end), each of which is a panel and one of `splits` parts of the blocks of rows.
void multiply(const Product& p, int64_t begin, int64_t end, int64_t splits) {
    const int64_t tiles = p.left.images * p.left.tiles(), blocks = divide_up(tiles, 2), share = divide_up(blocks, splits);
    const int64_t of_depth = TAPS / 3 * p.left.images * p.left.rows * DEPTH * sizeof(bits);
    const int64_t chunk = smaller(larger<int64_t>(ROW_BYTES / of_depth, 1), p.depths);
    const bool once = chunk == p.depths;
    const Buffer<float> sums((once ? 1 : (end - begin) * share) * SUMS);
#if defined(__AMX_BF16__)
    const Tiles state;
#endif
    for (int64_t depth = 0; depth < p.depths; depth += chunk) {
        const int64_t depths = smaller(chunk, p.depths - depth);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t panel = item / splits, from = item % splits * share, to = smaller(from + share, blocks);
            const bits* weight = p.part(panel, depth);
            const bool more = item + 1 < end;
            const bits* next = p.part(more ? (item + 1) / splits : begin / splits, more ? depth : depth + chunk);
            const int64_t lines = more || depth + chunk < p.depths ? divide_up(PANEL, to - from) : 0;
            for (int64_t block = from; block < to; ++block) {
                const int64_t one = 2 * block, two = smaller(one + 1, tiles - 1);
                float* own = sums.get() + (once ? 0 : ((item - begin) * share + block - from) * SUMS);
                const int64_t offset = depth * p.left.depth_stride;
                const bits *first = p.left.at(one) + offset, *second = p.left.at(two) + offset;
                const int64_t steps = depths * TAPS;
                const Prefetcher ahead{next + (block - from) * lines * steps * LINE, next + steps * PANEL_BITS, lines};
                accumulate(p.left, first, second, weight, depths, depth == 0, ahead, own);
                if (depth + depths < p.depths) continue;
                write(p, own, one, panel);
                if (two != one) write(p, own + TILE * PANEL, two, panel);
            }
        }
    }
}

void multiply(const Product& p) {
    const int64_t tiles = p.left.images * p.left.tiles(), blocks = divide_up(tiles, 2), panels = p.columns / PANEL;
    const int64_t splits = smaller(blocks, divide_up(2 * p.threads, panels));
    parallel_ranges(p.threads, panels * splits, 1,
                    [&](int64_t begin, int64_t end) { multiply(p, begin, end, splits); });
}

// Copies a map [images, height, width, depth] three times, shifted right by one pixel, unshifted and shifted left, with
// zeros at the borders and a row of zeros above and below, separately for each DEPTH channels. The rows that a tap reads
// are then contiguous.
void spread(int64_t threads, const bits* x, int64_t images, int64_t height, int64_t width, int64_t depths, bits* to) {
    const int64_t line = width * DEPTH, copy = (height + 2) * line;
    const __m512i zero = _mm512_setzero_si512();
    parallel_ranges(threads, depths * images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t depth = i / images, image = i % images;
            const bits* from = x + image * height * width * depths * DEPTH + depth * DEPTH;
            bits* right = to + (depth * images + image) * 3 * copy;
            for (int64_t i = 0; i < 3; ++i) {
                memset(right + i * copy, 0, line * sizeof(bits));
                memset(right + (i + 1) * copy - line, 0, line * sizeof(bits));
            }
            for (int64_t y = 0; y < height; ++y) {
                right += line;
                for (int64_t place = 0; place < line; place += DEPTH, from += depths * DEPTH) {
                    const __m512i value = _mm512_loadu_si512(from);
                    if (place + DEPTH < line) _mm512_store_si512(right + place + DEPTH, value);
                    _mm512_store_si512(right + copy + place, value);
                    if (place > 0) _mm512_store_si512(right + 2 * copy + place - DEPTH, value);
                }
                _mm512_store_si512(right, zero);
                _mm512_store_si512(right + 2 * copy + line - DEPTH, zero);
            }
        }
    });
}

}  // namespace

// 3x3 convolution of x [images, height, width, depth] with one pixel of zero padding; images have at least 16 pixels.
EXPORT void convolution_bf16(int64_t threads, int64_t images, int64_t height, int64_t width, int64_t depth, int64_t columns,
                             const void* x, const void* weight, const void* bias, const void* residual, void* out) {
    const int64_t depths = depth / DEPTH, line = width * DEPTH, copy = (height + 2) * line;
    const Buffer<bits> spread_out(depths * images * 3 * copy);
    spread(threads, static_cast<const bits*>(x), images, height, width, depths, spread_out.get());
    Left left{spread_out.get(), images, height * width, 3 * copy, images * 3 * copy, {}};
    for (int64_t i = 0; i < TAPS; ++i) left.tap[i] = i % 3 * copy + i / 3 * line;
    multiply({threads, left, depths, columns, static_cast<const bits*>(weight), static_cast<const bits*>(bias),
              static_cast<const bits*>(residual), static_cast<bits*>(out)});
}

#endif
