// 3x3 convolutions in bfloat16 on AMX for feature maps with many pixels.
//
// All images form one sequence of places, with a zero place before each row of pixels and a row of zeros before each
// image. A tap is then the same shift everywhere, also at the borders; results at zero places are discarded. A block of
// places stays in the L2 cache, separately for each 32 channels, while it is multiplied by one panel after another.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)


#include "amx.h"

namespace {

constexpr int64_t TAPS = 9, GROUP = 3 * TILE;  // GROUP: places whose sums are in tile registers
constexpr int64_t SUMS = GROUP * PANEL;
constexpr int64_t MOST_PLACES = 24 * GROUP, MOST_DEPTHS = 10;  // of a block: 0.8 MB and 0.2 MB of a panel

struct Convolution {
    int64_t threads, images, height, width, depths, columns;
    const bits *x, *weight, *bias, *residual;  // weight: [columns / PANEL, depths, TAPS, 2, TILE, DEPTH]
    bits* out;
    int64_t line() const { return width + 1; }
    int64_t reach() const { return line() + 1; }  // of the taps, in both directions
    int64_t places() const { return images * (height + 1) * line() - reach(); }  // from the first pixel to the last

    // The pixel index of `count` places from `first` on; -1 for zero places.
    void locate(int64_t first, const Buffer<int64_t>& pixels, int64_t count) const {
        int64_t x = first % line(), y = first / line() % (height + 1), image = first / line() / (height + 1);
        for (int64_t i = 0; i < count; ++i) {
            pixels[i] = x == 0 || y == 0 || image >= images ? -1 : (image * height + y - 1) * width + x - 1;
            if (++x < line()) continue;
            x = 0;
            if (++y > height) y = 0, ++image;
        }
    }
};

// Copies the channels of the listed pixels to [depths, pixels, DEPTH].
void pack(const Convolution& c, const int64_t* pixels, int64_t count, int64_t depth, int64_t depths, bits* to) {
    for (int64_t i = 0; i < count; ++i, to += DEPTH) {
        const bits* from = c.x + (pixels[i] * c.depths + depth) * DEPTH;
        for (int64_t d = 0; d < depths; ++d) {
            const __m512i value = pixels[i] < 0 ? _mm512_setzero_si512() : _mm512_loadu_si512(from + d * DEPTH);
            _mm512_store_si512(to + d * count * DEPTH, value);
        }
    }
}

// at[i]: the offset of the rows that tap i reads. stride: the distance between depths.
struct Taps {
    int64_t at[TAPS], stride;
};

// Adds GROUP places from `left` on, times `depths` of a panel, to sums [GROUP, PANEL].
void accumulate(const bits* left, const Taps& taps, const bits* weight, int64_t depths, bool fresh, Prefetcher ahead,
                float* sums) {
    written();
    begin_sums<3>(sums, fresh);
    for (int64_t depth = 0; depth < depths; ++depth, left += taps.stride)
        for (int64_t i = 0; i < TAPS; ++i, weight += PANEL_BITS) {
            const bits* rows = left + taps.at[i];
            _tile_loadd(7, weight, 64);
            _tile_loadd(6, rows, 64);
            _tile_dpbf16ps(0, 6, 7);
            _tile_loadd(6, rows + TILE_BITS, 64);
            _tile_dpbf16ps(2, 6, 7);
            _tile_loadd(6, rows + 2 * TILE_BITS, 64);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(7, weight + TILE_BITS, 64);
            _tile_dpbf16ps(5, 6, 7);
            _tile_loadd(6, rows + TILE_BITS, 64);
            _tile_dpbf16ps(3, 6, 7);
            _tile_loadd(6, rows, 64);
            _tile_dpbf16ps(1, 6, 7);
            ahead.step();
        }
    store_sums<3>(sums);
    written();
}

void write(const Convolution& c, const float* sums, const int64_t* pixels, int64_t panel, bool more) {
    const Columns columns{c.columns, panel * PANEL, c.bias, c.residual, c.out};
    for (int64_t i = 0; i < GROUP; ++i) {
        if (pixels[i] >= 0) columns.write(sums + i * PANEL, pixels[i]);
        if (more && pixels[i + GROUP] >= 0) columns.prefetch(pixels[i + GROUP]);
    }
}

// The product of a block of places with some panels, which one thread computes, and its buffers.
class Block {
  public:
    Block(const Convolution& c, int64_t places, int64_t panels)
        : c(c), groups(places / GROUP), count(places + 2 * c.reach()), pixels(count),
          chunk(smaller(c.depths, MOST_DEPTHS)), once(chunk == c.depths), left(chunk * count * DEPTH),
          sums((once ? 1 : groups * panels) * SUMS) {
        for (int64_t i = 0; i < TAPS; ++i) taps.at[i] = (i / 3 * c.line() + i % 3) * DEPTH;
        taps.stride = count * DEPTH;
    }

    void compute(int64_t first, int64_t begin, int64_t end) {
        c.locate(first, pixels, count);
        for (int64_t depth = 0; depth < c.depths; depth += chunk) {
            const int64_t depths = smaller(chunk, c.depths - depth);
            pack(c, pixels.get(), count, depth, depths, left.get());
            for (int64_t panel = begin; panel < end; ++panel) {
                float* own = sums.get() + (once ? 0 : (panel - begin) * groups * SUMS);
                multiply(panel, depth, depths, panel + 1 < end, own);
            }
        }
    }

  private:
    void multiply(int64_t panel, int64_t depth, int64_t depths, bool more, float* own) {
        const bits* weight = c.weight + (panel * c.depths + depth) * TAPS * PANEL_BITS;
        const bits* next = weight + c.depths * TAPS * PANEL_BITS;
        const int64_t lines = more ? divide_up(PANEL, groups) : 0, steps = depths * TAPS;
        for (int64_t group = 0; group < groups; ++group, own += once ? 0 : SUMS) {
            const Prefetcher ahead{next + group * lines * steps * LINE, next + steps * PANEL_BITS, lines};
            accumulate(left.get() + group * GROUP * DEPTH, taps, weight, depths, depth == 0, ahead, own);
            if (depth + depths == c.depths) write(c, own, pixels.get() + c.reach() + group * GROUP, panel, group + 1 < groups);
        }
    }

    const Convolution& c;
    int64_t groups, count;
    Buffer<int64_t> pixels;  // of the places, and of the surrounding places that the taps read
    int64_t chunk;
    bool once;  // whether one pass over the block completes the sums
    Buffer<bits> left;
    Buffer<float> sums;
    Taps taps;
};

void convolve(const Convolution& c) {
    const int64_t threads = c.threads, all = c.columns / PANEL;
    int64_t blocks = divide_up(c.places(), MOST_PLACES);
    const int64_t panels = divide_up(all, divide_up(threads, blocks)), shares = divide_up(all, panels);
    if (shares == 1) blocks = round_up(blocks, threads);
    const int64_t places = round_up(divide_up(c.places(), blocks), GROUP);
    parallel_ranges(threads, blocks * shares, 1, [&](int64_t begin, int64_t end) {
        Block block(c, places, panels);
        const Tiles tiles;
        for (int64_t i = begin; i < end; ++i)
            block.compute(i / shares * places, i % shares * panels, smaller(all, (i % shares + 1) * panels));
    });
}

}  // namespace

// 3x3 convolution of x [images, height, width, depth] with one pixel of zero padding, as `convolution_bf16`.
EXPORT void large_convolution_bf16(int64_t threads, int64_t images, int64_t height, int64_t width, int64_t depth,
                                   int64_t columns, const void* x, const void* weight, const void* bias,
                                   const void* residual, void* out) {
    convolve({threads, images, height, width, depth / DEPTH, columns, static_cast<const bits*>(x),
              static_cast<const bits*>(weight), static_cast<const bits*>(bias), static_cast<const bits*>(residual),
              static_cast<bits*>(out)});
}

#endif
