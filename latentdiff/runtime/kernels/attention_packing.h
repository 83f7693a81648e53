// Packs the queries, keys and values of a head into the layouts that the two products of attention.cpp read.

#pragma once

#include "parallel.h"
#include "vec.h"

namespace {

constexpr int VECTORS = LANES == 4 ? 4 : 2;  // vectors of queries in a block
constexpr int QUERIES = VECTORS * LANES;
constexpr int ROWS = REGISTERS / VECTORS / 2;  // rows of keys or values whose sums are in registers at once

// [batch, length, heads, dim] of T inside a larger tensor; the last two are dense.
struct Rows {
    const char* data;
    int64_t batch_stride, row_stride;  // in bytes
    template <typename T>
    static Rows of(const void* data, int64_t batch_stride, int64_t row_stride) {
        return {static_cast<const char*>(data), batch_stride * int64_t{sizeof(T)}, row_stride * int64_t{sizeof(T)}};
    }
    const char* at(int64_t batch, int64_t offset, int64_t row) const {
        return data + batch * batch_stride + row * row_stride + offset;
    }
};

struct Problem {
    int64_t threads, batch, heads, queries, keys, dim;
    float scale;
    Rows q, k, v;
    char* out;  // [batch, queries, heads, dim]
};

// The types of the tensors: a word contains two bfloat16 values or one float, and the operands `Operand::VALUES` values.
struct Bfloat16Source {
    using Type = bits;
    static constexpr int VALUES = 2;
};

struct FloatSource {
    using Type = float;
    static constexpr int VALUES = 1;
};

template <typename Operand, typename Source>
class Packing {
  public:
    explicit Packing(const Problem& p) : p(p) {}

    static constexpr bool SPLIT = Source::VALUES > Operand::VALUES;  // a word of the tensor becomes two operands

    int64_t row_words() const { return p.dim / Source::VALUES; }
    int64_t depth() const { return p.dim / Operand::VALUES; }
    int64_t value_rows() const { return round_up(p.dim, ROWS); }
    int64_t key_size() const { return round_up(p.keys, LANES) * depth(); }
    int64_t value_size() const { return divide_up(p.keys, Operand::VALUES) * value_rows() + LANES; }
    int64_t offset(int64_t map) const { return map % p.heads * p.dim * int64_t{sizeof(typename Source::Type)}; }

    // Packs LANES rows from `row` on, with zeros from `end` on, as [depth, LANES]. Returns their squared lengths.
    floats pack_rows(const Rows& rows, int64_t map, int64_t row, int64_t end, uint32_t* to) const {
        floats squares{};
        const char* from = rows.at(map / p.heads, offset(map), row);
        for (int64_t word = 0; word < row_words(); word += LANES) {
            const int64_t count = smaller<int64_t>(LANES, row_words() - word);
            words block[LANES];
            for (int i = 0; i < LANES; ++i)
                block[i] = row + i < end ? load_first(from + i * rows.row_stride + word * 4, count) : words{};
            transpose(block);
            for (int64_t i = 0; i < count; ++i) {
                uint32_t* place = to + (word + i) * LANES;
                if constexpr (SPLIT) {
                    const words even = (words)low(block[i]), odd = (words)high(block[i]);
                    store(place, even);
                    store(place + row_words() * LANES, odd);
                    squares = Operand::dot(Operand::dot(squares, even, even), odd, odd);
                } else {
                    store(place, block[i]);
                    squares = Operand::dot(squares, block[i], block[i]);
                }
            }
        }
        return squares;
    }

    // Packs the keys as [keys / LANES, depth, LANES]. Returns the largest squared length; infinity if one is not finite.
    float pack_keys(int64_t map, uint32_t* to) const {
        float longest = 0;
        for (int64_t key = 0; key < p.keys; key += LANES, to += depth() * LANES) {
            const floats squares = pack_rows(p.k, map, key, p.keys, to);
            for (int i = 0; i < LANES; ++i) longest = squares[i] < INFINITY ? larger(longest, squares[i]) : INFINITY;
        }
        return longest;
    }

    // Packs the values as [keys / Operand::VALUES, value_rows]; for bfloat16, all even dimensions precede all odd ones.
    void pack_values(int64_t map, uint32_t* to) const {
        const int64_t half = p.dim / Source::VALUES;
        for (int64_t key = 0; key < p.keys; key += Operand::VALUES, to += value_rows()) {
            const char* from = p.v.at(map / p.heads, offset(map), key);
            const bool pair = key + 1 < p.keys;
            for (int64_t word = 0; word < half; word += LANES) {
                const int64_t count = smaller<int64_t>(LANES, half - word);
                const words first = load_first(from + word * 4, count);
                if constexpr (Source::VALUES == 1) {
                    store_first(to + word, first, count);
                } else if constexpr (Operand::VALUES == 1) {
                    store_first(to + word, (words)low(first), count);
                    store_first(to + half + word, (words)high(first), count);
                } else {
                    const words second = pair ? load_first(from + p.v.row_stride + word * 4, count) : words{};
                    store_first(to + word, (first & 0xffffu) | second << 16, count);
                    store_first(to + half + word, first >> 16 | (second & 0xffff0000u), count);
                }
            }
            memset(to + p.dim, 0, (value_rows() - p.dim) * 4);
        }
    }

  protected:
    const Problem& p;
};

}  // namespace
