// Linear layers in bfloat16 on AMX for any number of rows, and 1x1 convolutions of channels-last feature maps.
//
// As many panels of the weights as fit stay in the L2 cache while they are multiplied by all rows, two or three tiles of
// rows at a time. These tiles stay in the L1 cache; panels are loaded past it. The output of the previous sums is written
// during the accumulation of the next ones: tile and vector units only run in parallel if their instructions alternate.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)


#include "amx.h"
#include "gelu.h"

namespace {

constexpr int64_t MOST_TILES = 3;  // tiles of rows whose sums are in tile registers
constexpr int64_t SUMS = MOST_TILES * TILE * PANEL;
constexpr int64_t WEIGHT_BYTES = 840 * 1024;  // of weights that stay in the L2 cache
constexpr int64_t ROW_TILES = 40;             // of 1 kB each, that stay in the L1 cache
constexpr int64_t LEAST_PANELS = 10;          // for which a pass over the rows is worthwhile
constexpr int64_t BLOCK = 16;                 // groups of rows for which a pass over the weights is worthwhile

enum class Epilogue { plain, adding, gated };

struct Linear {
    int64_t threads, rows, depths, columns;
    const bits *x, *weight, *bias, *residual;  // weight: [columns / PANEL, depths, 2, TILE, DEPTH]
    bits* out;
    int64_t panel_size() const { return depths * PANEL_BITS; }
    int64_t tiles() const { return divide_up(rows, TILE); }  // the last two may overlap
    int64_t start(int64_t tile) const { return smaller(tile * TILE, larger<int64_t>(0, rows - TILE)); }
    const bits* at(int64_t tile) const { return x + start(tile) * depths * DEPTH; }
    // The tiles of rows in a group, and the depths that are multiplied before the next panel.
    int64_t group() const { return 3 * depths <= ROW_TILES ? 3 : 2; }
    int64_t piece() const { return divide_up(depths, divide_up(depths, ROW_TILES / group())); }
    int64_t groups() const { return divide_up(tiles(), group()); }
};

// A group of tiles: their first rows, and the addresses of these.
struct Group {
    int64_t tiles = 0, start[MOST_TILES] = {};
    const bits* at[MOST_TILES] = {};
    Group() = default;
    Group(const Linear& p, int64_t first) : tiles(smaller(p.group(), p.tiles() - first)) {
        for (int64_t i = 0; i < MOST_TILES; ++i) {
            start[i] = p.start(first + i);
            at[i] = p.at(first + i);
        }
    }
};

// Writes sums [tiles * TILE, PANEL] to the output, one row per step, with bias and epilogue.
template <Epilogue epilogue>
class Finish {
  public:
    Finish(const Linear& p, const Gelu& gelu) : p_(p), gelu_(gelu), width_(epilogue == Epilogue::gated ? p.columns / 2 : p.columns) {}

    void start(const float* sums, const Group& group, int64_t panel) {
        group_ = group;
        sums_ = sums;
        row_ = 0;
        rows_ = group.tiles * smaller(TILE, p_.rows);
        column_ = panel * COLUMNS;
        if (!p_.bias) return;
        first_ = widen(p_.bias + column_);
        second_ = widen(p_.bias + column_ + (epilogue == Epilogue::gated ? width_ : TILE));
    }

    void step() {
        if (row_ == rows_) return;
        const int64_t place = (group_.start[row_ / TILE] + row_ % TILE) * width_ + column_;
        __m512 left = _mm512_add_ps(_mm512_load_ps(sums_), first_);
        __m512 right = _mm512_add_ps(_mm512_load_ps(sums_ + TILE), second_);
        ++row_;
        sums_ += PANEL;
        _mm_prefetch(p_.out + place + COLUMNS, _MM_HINT_T1);  // the columns of the next panel
        if constexpr (epilogue == Epilogue::gated) {
            const __m256bh gated = _mm512_cvtneps_pbh(_mm512_mul_ps(left, gelu_(right)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p_.out + place), (__m256i)gated);
            return;
        }
        if constexpr (epilogue == Epilogue::adding) {
            _mm_prefetch(p_.residual + place + COLUMNS, _MM_HINT_T0);
            left = _mm512_add_ps(left, widen(p_.residual + place));
            right = _mm512_add_ps(right, widen(p_.residual + place + TILE));
        }
        _mm512_storeu_si512(p_.out + place, (__m512i)_mm512_cvtne2ps_pbh(right, left));
    }

    void complete() {
        while (row_ < rows_) step();
    }

  private:
    static constexpr int64_t COLUMNS = epilogue == Epilogue::gated ? TILE : PANEL;  // of the output, per panel

    const Linear& p_;
    const Gelu& gelu_;
    int64_t width_, row_ = 0, rows_ = 0, column_ = 0;
    Group group_;
    const float* sums_ = nullptr;
    __m512 first_ = _mm512_setzero_ps(), second_ = _mm512_setzero_ps();  // bias
};

// Adds rows, `stride` bytes apart, times `depths` of a panel to sums [tiles * TILE, PANEL]. Calls `meanwhile` after each
// product, and `further` at each depth.
template <int tiles, typename Meanwhile, typename Further>
void accumulate(const Group& rows, int64_t stride, const bits* weight, int64_t depth, int64_t depths, float* sums,
                Meanwhile meanwhile, Further further) {
    const int64_t offset = depth * DEPTH;
    const bits *a = rows.at[0] + offset, *b = rows.at[1] + offset, *c = rows.at[2] + offset;
    written();
    begin_sums<tiles>(sums, depth == 0);
    for (; depths > 0; --depths, a += DEPTH, b += DEPTH, c += DEPTH, weight += PANEL_BITS) {
        _tile_stream_loadd(7, weight, 64);
        _tile_loadd(6, a, stride);
        _tile_dpbf16ps(0, 6, 7);
        meanwhile();
        if constexpr (tiles > 1) {
            _tile_loadd(6, b, stride);
            _tile_dpbf16ps(2, 6, 7);
            meanwhile();
        }
        if constexpr (tiles > 2) {
            _tile_loadd(6, c, stride);
            _tile_dpbf16ps(4, 6, 7);
            meanwhile();
        }
        further();
        _tile_stream_loadd(7, weight + TILE_BITS, 64);
        if constexpr (tiles > 2) {
            _tile_dpbf16ps(5, 6, 7);
            meanwhile();
            _tile_loadd(6, b, stride);
        }
        if constexpr (tiles > 1) {
            _tile_dpbf16ps(3, 6, 7);
            meanwhile();
            _tile_loadd(6, a, stride);
        }
        _tile_dpbf16ps(1, 6, 7);
        meanwhile();
    }
    store_sums<tiles>(sums);
    written();
}

// The work of one thread: groups of rows [first, last) times panels [begin, end). A chunk of panels that stays in the cache
// is multiplied by one group after another. If too few complete panels fit, a piece (some depths) of more panels is
// multiplied by a block of groups, whose sums are completed by the following pieces.
template <Epilogue epilogue>
class Share {
  public:
    Share(const Linear& p, const Gelu& gelu, int64_t first, int64_t last, int64_t begin, int64_t end)
        : p(p), first(first), last(last), begin(begin), end(end), piece(p.piece()), finish(p, gelu) {
        const int64_t part = last - first > BLOCK ? 1 : 2;  // with few rows, loading the first panels would take too long
        const int64_t fitting = WEIGHT_BYTES / part / (p.panel_size() * 2), least = smaller(end - begin, LEAST_PANELS / part);
        block = fitting < least ? BLOCK : 1;
        chunk = divide_up(end - begin, divide_up(end - begin, larger(fitting, least)));
        slots = piece == p.depths ? 2 : block * chunk + 1;
        sums.allocate(slots * SUMS);
    }

    void compute() {
        for (int64_t panel = begin; panel < end; panel += chunk)
            for (int64_t group = first; group < last; group += block)
                multiply(group, smaller(last, group + block), panel, smaller(end, panel + chunk));
        finish.complete();
    }

  private:
    const bits* weight(int64_t panel, int64_t depth) const { return p.weight + panel * p.panel_size() + depth * PANEL_BITS; }

    void multiply(int64_t group, int64_t groups, int64_t panel, int64_t panels) {
        const int64_t count = panels - panel, turns = block > 1 ? groups - group : last - first;
        for (int64_t depth = 0; depth < p.depths; depth += piece)
            for (int64_t g = group; g < groups; ++g) {
                const int64_t next = (g + 1) * p.group(), turn = block > 1 ? g - group : g - first;
                const bool more = block == 1 && g + 1 < last;
                rows = {p.at(next), p.at(next + p.group()), more ? divide_up(p.group() * TILE, count) : 0};
                const Group now(p, g * p.group());
                for (int64_t i = 0; i < count; ++i) {
                    prefetch_weights(panel + i, depth, turn, turns);
                    add(now, panel + i, depth, sums.get() + (slot + (g - group) * count + i) % slots * SUMS);
                }
            }
        slot = (slot + (groups - group) * count) % slots;
    }

    // Prefetches a part of the weights that follow this panel in the cache.
    void prefetch_weights(int64_t panel, int64_t depth, int64_t turn, int64_t turns) {
        const bool on = block > 1 && depth + piece < p.depths;
        const bits* next = on ? weight(panel, depth + piece) : weight(panel + chunk, block > 1 ? 0 : depth);
        const int64_t lines = on || panel + chunk < end ? divide_up(PANEL, turns) : 0;
        weights = {next + turn * lines * piece * LINE, next + piece * PANEL_BITS, lines};
    }

    void add(const Group& group, int64_t panel, int64_t depth, float* own) {
        const int64_t stride = p.depths * DEPTH * sizeof(bits), depths = smaller(piece, p.depths - depth);
        const bits* from = weight(panel, depth);
        const auto meanwhile = [this] { finish.step(); };
        const auto further = [this] { rows.step(), weights.step(); };
        if (group.tiles == 1) accumulate<1>(group, stride, from, depth, depths, own, meanwhile, further);
        if (group.tiles == 2) accumulate<2>(group, stride, from, depth, depths, own, meanwhile, further);
        if (group.tiles == 3) accumulate<3>(group, stride, from, depth, depths, own, meanwhile, further);
        finish.complete();
        if (depth + depths == p.depths) finish.start(own, group, panel);
    }

    const Linear& p;
    int64_t first, last, begin, end;
    int64_t piece;         // depths of a panel per pass
    int64_t chunk, block;  // panels and groups of rows per pass
    int64_t slots;         // buffers for sums: 2, or if several passes complete them, block * chunk + 1
    int64_t slot = 0;      // the next of these
    Buffer<float> sums;
    Finish<epilogue> finish;
    Prefetcher rows{}, weights{};
};

const Gelu gelu;

// Distributes the rows over the threads, and the panels too if there are not enough rows for every thread.
template <Epilogue epilogue>
void multiply(const Linear& p) {
    const int64_t groups = p.groups(), panels = p.columns / PANEL, threads = p.threads;
    int64_t rows = smaller(larger<int64_t>(groups / BLOCK, 1), threads);
    while (threads % rows) --rows;
    const int64_t columns = threads / rows;
    parallel_for(threads, threads, [&](int64_t i) {
        const int64_t row = i / columns, column = i % columns;
        const int64_t begin = column * panels / columns, end = (column + 1) * panels / columns;
        if (begin == end) return;
        const Tiles state(smaller(TILE, p.rows));
        Share<epilogue>(p, gelu, row * groups / rows, (row + 1) * groups / rows, begin, end).compute();
    });
}

}  // namespace

// x [rows, depth] times weights, plus the optional bias [columns] and residual [rows, columns].
EXPORT void linear_bf16(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                            const void* bias, const void* residual, void* out) {
    const Linear p{threads, rows, depth / DEPTH, columns, static_cast<const bits*>(x), static_cast<const bits*>(weight),
                   static_cast<const bits*>(bias), static_cast<const bits*>(residual), static_cast<bits*>(out)};
    if (rows == 0) return;
    if (residual) multiply<Epilogue::adding>(p);
    else multiply<Epilogue::plain>(p);
}

// value * gelu(gate) (Shazeer 2020), [rows, columns / 2]. In the weights, TILE columns of values alternate with TILE columns
// of gates; in the bias [columns], all values come first.
EXPORT void gated_linear_bf16(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                                  const void* bias, void* out) {
    const Linear p{threads, rows, depth / DEPTH, columns, static_cast<const bits*>(x), static_cast<const bits*>(weight),
                   static_cast<const bits*>(bias), nullptr, static_cast<bits*>(out)};
    if (rows > 0) multiply<Epilogue::gated>(p);
}

#endif
