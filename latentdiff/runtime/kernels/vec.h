// A thin layer over vector instructions, written in GNU vector types (gcc and clang).
//
// Only this file knows the processor: how many 32-bit lanes a vector has, how two words are multiplied, how floats are
// rounded to bfloat16, and how the first lanes are loaded and stored.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using bits = uint16_t;  // a bfloat16

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 32;
#endif

constexpr int64_t WIDTH = 2 * LANES;  // columns of a panel of float32 weights

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef bits halves __attribute__((vector_size(2 * LANES)));

inline words load(const uint32_t* from) {
    words value;
    memcpy(&value, from, sizeof(value));
    return value;
}

inline floats load(const float* from) {
    floats value;
    memcpy(&value, from, sizeof(value));
    return value;
}

// Loads bfloat16 values.
inline floats load(const bits* from) {
    halves value;
    memcpy(&value, from, sizeof(value));
    return (floats)(__builtin_convertvector(value, words) << 16);
}

inline void store(uint32_t* to, words value) { memcpy(to, &value, sizeof(value)); }

inline void store(float* to, floats value) { memcpy(to, &value, sizeof(value)); }

inline words splat(uint32_t value) { return words{} + value; }

inline floats splat(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return (floats)splat(word);
}

// The bits of a bfloat16 in the upper half of each word: rounds to nearest, ties to even; NaN stays NaN.
inline words rounded(floats value) {
    const words word = (words)value;
    return value == value ? word + 0x7fffu + (word >> 16 & 1u) : splat(0x7fc00000u);
}

// Stores as bfloat16.
inline void store(bits* to, floats value) {
    const halves upper = __builtin_convertvector(rounded(value) >> 16, halves);
    memcpy(to, &upper, sizeof(upper));
}

inline words load_pairs(const bits* from) {
    words value;
    memcpy(&value, from, sizeof(value));
    return value;
}

inline words splat_pair(const bits* from) {
    uint32_t word;
    memcpy(&word, from, 4);
    return splat(word);
}

// Both keep a NaN in `a`.
inline floats at_least(floats a, float limit) { return a < splat(limit) ? splat(limit) : a; }

inline floats maximum(floats a, floats b) { return a < b ? b : a; }

// Loads the first `count` lanes, and zeros in the others. Memory behind them is not accessed.
inline words load_first(const void* from, int64_t count) {
    if (count >= LANES) return load(static_cast<const uint32_t*>(from));
#if defined(__AVX512F__)
    return (words)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    return (words)_mm256_maskload_epi32(static_cast<const int*>(from), mask);
#else
    uint32_t value[LANES] = {};
    for (int64_t i = 0; i < count; ++i) memcpy(value + i, static_cast<const char*>(from) + 4 * i, 4);
    return load(value);
#endif
}

inline void store_first(void* to, words value, int64_t count) {
    if (count >= LANES) return store(static_cast<uint32_t*>(to), value);
#if defined(__AVX512F__)
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), (__m512i)value);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
    _mm256_maskstore_epi32(static_cast<int*>(to), mask, (__m256i)value);
#else
    memcpy(to, &value, 4 * count);
#endif
}

// Interleaves the lanes of a and b: of their first halves, and of their second halves.
#if defined(__AVX512F__)
#define ZIP(a, b, first)                                                                                              \
    __builtin_shufflevector(a, b, first, first + 16, first + 1, first + 17, first + 2, first + 18, first + 3,         \
                            first + 19, first + 4, first + 20, first + 5, first + 21, first + 6, first + 22,          \
                            first + 7, first + 23)
#elif defined(__AVX2__)
#define ZIP(a, b, first)                                                                                              \
    __builtin_shufflevector(a, b, first, first + 8, first + 1, first + 9, first + 2, first + 10, first + 3, first + 11)
#else
#define ZIP(a, b, first) __builtin_shufflevector(a, b, first, first + 4, first + 1, first + 5)
#endif

// Transposes rows[i][j] to rows[j][i]; each round of perfect shuffles moves one bit of the row index to the lane index.
inline void transpose(words (&rows)[LANES]) {
    words other[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; ++i) {
            other[2 * i] = ZIP(rows[i], rows[i + LANES / 2], 0);
            other[2 * i + 1] = ZIP(rows[i], rows[i + LANES / 2], LANES / 2);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = other[i];
    }
}

// A word with two bfloat16 values, the first in the low half.
inline floats low(words pair) { return (floats)(pair << 16); }

inline floats high(words pair) { return (floats)(pair & 0xffff0000u); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline words round_pair(floats low, floats high) {
#if defined(__AVX512BF16__)
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (words)_mm512_permutexvar_epi16(order, both);
#else
    return rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
#endif
}

// The operand of one lane: a float, or two bfloat16 values if the processor has an instruction for their product.
struct Single {
    static constexpr int VALUES = 1;
    static constexpr uint32_t ONES = 0x3f800000;
    static floats dot(floats sum, words a, words b) { return (floats)a * (floats)b + sum; }
};

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_PAIR
struct Pair {
    static constexpr int VALUES = 2;
    static constexpr uint32_t ONES = 0x3f803f80;
    static floats dot(floats sum, words a, words b) {
#if defined(__AVX512BF16__)
        return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        return (floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
    }
};
#endif

}  // namespace
