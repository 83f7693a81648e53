// Linear layers in bfloat16 on AMX, of any number of rows, and with them 1x1 convolutions of channels-last maps.
//
// As many panels of the weights as the second cache holds stay there while the rows pass by, two or three tiles of
// them at a time; these stay in the first cache, past which the panels are loaded. Sums become an answer while the next
// are summed: tiles and vectors only work at once where their instructions alternate.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <omp.h>

#include <algorithm>

#include "amx.h"
#include "gelu.h"

namespace {

constexpr int64_t MOST_TILES = 3;  // of rows whose sums are in tiles at once
constexpr int64_t SUMS = MOST_TILES * TILE * PANEL;
constexpr int64_t NEAR = 840 * 1024;         // bytes of weights that are to stay in the second cache
constexpr int64_t NEAREST = 40;              // tiles of rows, 1 kB each, that are to stay in the first
constexpr int64_t LINE = 64 / sizeof(bits);  // of the cache
constexpr int64_t GROUPS = 16;               // of rows that are worth a pass over the weights

enum class Way { plain, adding, gated };

struct Linear {
    int64_t rows, depths, columns;
    const bits *x, *weight, *bias, *residual;  // weight: [columns / PANEL, depths, 2, TILE, DEPTH]
    bits* out;
    int64_t panel_size() const { return depths * PANEL_BITS; }
    int64_t tiles() const { return divide_up(rows, TILE); }  // the last two may overlap
    int64_t start(int64_t tile) const { return std::clamp<int64_t>(tile * TILE, 0, std::max<int64_t>(0, rows - TILE)); }
    const bits* at(int64_t tile) const { return x + start(tile) * depths * DEPTH; }
    // Tiles of rows in a group, and how many depths of them are met before the next panel comes.
    int64_t group() const { return 3 * depths <= NEAREST ? 3 : 2; }
    int64_t piece() const { return divide_up(depths, divide_up(depths, NEAREST / group())); }
    int64_t groups() const { return divide_up(tiles(), group()); }
};

// What is read later, asked for meanwhile: `lines` of the cache at each step.
struct Ahead {
    const bits *at, *end;
    int64_t lines;
    void step() {
        for (int64_t i = 0; i < lines && at < end; ++i, at += LINE) _mm_prefetch(at, _MM_HINT_T1);
    }
};

// Tiles of rows: where they begin, among the rows and in memory.
struct Group {
    int64_t tiles = 0, start[MOST_TILES] = {};
    const bits* at[MOST_TILES] = {};
    Group() = default;
    Group(const Linear& p, int64_t first) : tiles(std::min(p.group(), p.tiles() - first)) {
        for (int64_t i = 0; i < MOST_TILES; ++i) {
            start[i] = p.start(first + i);
            at[i] = p.at(first + i);
        }
    }
};

// Sums [tiles * TILE, PANEL] on their way to an answer, a row at each step.
template <Way way>
class Finish {
  public:
    Finish(const Linear& p, const Gelu& gelu) : p_(p), gelu_(gelu), width_(way == Way::gated ? p.columns / 2 : p.columns) {}

    void start(const float* sums, const Group& group, int64_t panel) {
        group_ = group;
        sums_ = sums;
        row_ = 0;
        rows_ = group.tiles * std::min(TILE, p_.rows);
        column_ = panel * (way == Way::gated ? TILE : PANEL);
        if (!p_.bias) return;
        first_ = widen(p_.bias + column_);
        second_ = widen(p_.bias + column_ + (way == Way::gated ? width_ : TILE));
    }

    void step() {
        if (row_ == rows_) return;
        const int64_t place = (group_.start[row_ / TILE] + row_ % TILE) * width_ + column_;
        __m512 left = _mm512_add_ps(_mm512_load_ps(sums_), first_);
        __m512 right = _mm512_add_ps(_mm512_load_ps(sums_ + TILE), second_);
        ++row_;
        sums_ += PANEL;
        if constexpr (way == Way::gated) {
            const __m256bh gated = _mm512_cvtneps_pbh(_mm512_mul_ps(left, gelu_(right)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p_.out + place), (__m256i)gated);
            return;
        }
        if constexpr (way == Way::adding) {
            left = _mm512_add_ps(left, widen(p_.residual + place));
            right = _mm512_add_ps(right, widen(p_.residual + place + TILE));
        }
        _mm512_storeu_si512(p_.out + place, (__m512i)_mm512_cvtne2ps_pbh(right, left));
    }

    void complete() {
        while (row_ < rows_) step();
    }

  private:
    const Linear& p_;
    const Gelu& gelu_;
    int64_t width_, row_ = 0, rows_ = 0, column_ = 0;
    Group group_;
    const float* sums_ = nullptr;
    __m512 first_ = _mm512_setzero_ps(), second_ = _mm512_setzero_ps();  // the bias
};

// sums [tiles * TILE, PANEL] (+)= a group's rows times `depths` of a panel. Calls `meanwhile` after each product, `further`
// at each depth.
template <int tiles, typename Meanwhile, typename Further>
void accumulate(const bits* const* rows, int64_t offset, int64_t stride, const bits* weight, int64_t depths, float* sums,
                Meanwhile meanwhile, Further further) {
    const bits *a = rows[0] + offset, *b = rows[1] + offset, *c = rows[2] + offset;
    written();
    begin_sums<tiles>(sums, offset == 0);
    for (int64_t depth = 0; depth < depths; ++depth, a += DEPTH, b += DEPTH, c += DEPTH, weight += PANEL_BITS) {
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

// What one thread does: some groups of rows by some panels, from first and begin on.
template <Way way>
class Share {
  public:
    Share(const Linear& p, const Gelu& gelu, int64_t first, int64_t last, int64_t begin, int64_t end)
        : p(p), first(first), last(last), begin(begin), end(end),
          chunk(divide_up(end - begin, divide_up((end - begin) * p.panel_size() * 2, NEAR))),
          slots(p.piece() == p.depths ? 2 : chunk + 1), sums(aligned<float>(slots * SUMS)), finish(p, gelu) {}

    void compute() {
        for (int64_t from = begin; from < end; from += chunk) {
            const int64_t to = std::min(end, from + chunk), after = std::min(end, to + chunk);
            panels = {panel(to), panel(after), divide_up(PANEL, last - first)};
            for (int64_t group = first; group < last; ++group) {
                const int64_t next = (group + 1) * p.group();
                rows = {p.at(next), p.at(next + p.group()), group + 1 < last ? divide_up(p.group() * TILE, to - from) : 0};
                multiply(Group(p, group * p.group()), from, to);
            }
        }
        finish.complete();
    }

  private:
    const bits* panel(int64_t index) const { return p.weight + index * p.panel_size(); }

    void multiply(const Group& group, int64_t from, int64_t to) {
        for (int64_t depth = 0; depth < p.depths; depth += p.piece()) {
            const int64_t depths = std::min(p.piece(), p.depths - depth);
            for (int64_t index = from; index < to; ++index) {
                float* own = sums.get() + (slot + index - from) % slots * SUMS;
                add(group, depth, depths, panel(index) + depth * PANEL_BITS, own);
                if (depth + depths == p.depths) finish.start(own, group, index);
            }
        }
        slot = (slot + to - from) % slots;
    }

    void add(const Group& group, int64_t depth, int64_t depths, const bits* weight, float* own) {
        const int64_t offset = depth * DEPTH, stride = p.depths * DEPTH * sizeof(bits);
        const auto meanwhile = [this] { finish.step(); };
        const auto further = [this] { rows.step(), panels.step(); };
        if (group.tiles == 1) accumulate<1>(group.at, offset, stride, weight, depths, own, meanwhile, further);
        if (group.tiles == 2) accumulate<2>(group.at, offset, stride, weight, depths, own, meanwhile, further);
        if (group.tiles == 3) accumulate<3>(group.at, offset, stride, weight, depths, own, meanwhile, further);
        finish.complete();
    }

    const Linear& p;
    int64_t first, last, begin, end;
    int64_t chunk;     // panels that stay near
    int64_t slots;     // for the sums of each of them, or where they are whole at once of the last two
    int64_t slot = 0;  // that is next
    decltype(aligned<float>(0)) sums;
    Finish<way> finish;
    Ahead rows{}, panels{};
};

// Threads share the rows as long as each has enough of them to read all weights for, then the panels too.
template <Way way>
void multiply(const Linear& p) {
    static const Gelu gelu;
    const int64_t groups = p.groups(), panels = p.columns / PANEL, threads = omp_get_max_threads();
    int64_t rows = std::clamp<int64_t>(groups / GROUPS, 1, threads);
    while (threads % rows) --rows;
    const int64_t columns = threads / rows;
#pragma omp parallel for
    for (int64_t i = 0; i < threads; ++i) {
        const int64_t row = i / columns, column = i % columns;
        const int64_t begin = column * panels / columns, end = (column + 1) * panels / columns;
        if (begin == end) continue;
        const Tiles state(std::min(TILE, p.rows));
        Share<way>(p, gelu, row * groups / rows, (row + 1) * groups / rows, begin, end).compute();
    }
}

}  // namespace

// x [rows, depth] times weights, plus bias [columns] and residual [rows, columns] where they are.
extern "C" void linear_bf16(int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                            const void* bias, const void* residual, void* out) {
    const Linear p{rows, depth / DEPTH, columns, static_cast<const bits*>(x), static_cast<const bits*>(weight),
                   static_cast<const bits*>(bias), static_cast<const bits*>(residual), static_cast<bits*>(out)};
    if (rows == 0) return;
    if (residual) multiply<Way::adding>(p);
    else multiply<Way::plain>(p);
}

// value * gelu(gate) (Shazeer 2020), [rows, columns / 2]. TILE columns of values and as many of gates take turns in the
// weights; the bias [columns] has all values first.
extern "C" void gated_linear_bf16(int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                                  const void* bias, void* out) {
    const Linear p{rows, depth / DEPTH, columns, static_cast<const bits*>(x), static_cast<const bits*>(weight),
                   static_cast<const bits*>(bias), nullptr, static_cast<bits*>(out)};
    if (rows > 0) multiply<Way::gated>(p);
}

#endif
