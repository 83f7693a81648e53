// The weights of softmax, 2^((score - moved) * slope), as operands of the product with the values.

#pragma once

#include "vec.h"

namespace {

constexpr float WHOLE = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is in the low bits of the sum
constexpr float LEAST_POWER = -126.0f;
constexpr float STEPS = 256.0f;  // steps from one power of two to the next; bfloat16 has half as many
constexpr float UNMOVED = WHOLE + 127 * STEPS + 1;  // half of its low bits, rounded down, is 2^0 in bfloat16

// A weight in the precision of an operand: 2^whole is written to the exponent bits, and 2^rest with |rest| <= 1/2 is a
// polynomial with the smallest relative error (1e-4 for bfloat16, 2e-7 for float).
template <typename Operand>
inline floats weight(floats score, floats moved, float slope) {
    const floats to_whole = splat(WHOLE), distance = at_least(score - moved, LEAST_POWER / slope);
    const floats shifted = distance * slope + to_whole, rest = distance * slope - (shifted - to_whole);
    floats power;
    if constexpr (Operand::VALUES == 2) {
        power = ((0.0558282f * rest + 0.2401526f) * rest + 0.6931440f) * rest + 0.9999253f;
    } else {
        power = ((1.54035e-4f * rest + 1.33336e-3f) * rest + 9.6181291e-3f) * rest + 5.5504109e-2f;
        power = ((power * rest + 0.24022651f) * rest + 0.69314718f) * rest + 1.0f;
    }
    return (floats)((words)power + ((words)shifted << 23));
}

#if defined(__AVX512BF16__)
#define HAS_WEIGHT_PAIR

// The bits of 2^x in bfloat16, read as an integer, are 128 (127 + x) if x is an integer. Otherwise they are smaller by an
// amount that depends only on the fraction of x (Schraudolph 1999). One fma computes twice 128 (127 + x), rounded, in the low
// half of a word; an amount from a table is subtracted, and half of the result is the weight. The relative error is 0.0019;
// rounding to bfloat16 alone causes 0.0017.

// 256 (1 + f) - 256 * 2^f for f from 0 on in steps of 1/64, rounded to the integers with the smallest error.
alignas(64) constexpr uint8_t BEND[64] = {
    1, 2, 3, 4, 5, 6, 8, 8, 10, 10, 11, 12, 13, 14, 15, 16, 16, 17, 18, 18, 19, 19, 20, 20, 21, 21, 21, 22, 22, 22, 22, 22,
    22, 23, 23, 23, 22, 22, 22, 22, 22, 21, 21, 21, 20, 20, 19, 19, 18, 17, 17, 16, 15, 14, 13, 12, 11, 10, 9, 7, 6, 5, 3, 2};

// Two weights in one word, the first in the low half. even, odd: (score - moved) * slope * STEPS + UNMOVED, at least WHOLE.
inline __m512i weight_pair(__m512 even, __m512 odd) {
    const __m512i to_high_half = _mm512_set4_epi32(0x0d0c0000, 0x09080000, 0x05040000, 0x01000000);
    const __m512i both = _mm512_mask_shuffle_epi8((__m512i)even, 0xCCCCCCCCCCCCCCCC, (__m512i)odd, to_high_half);
    const __m512i place = _mm512_srli_epi16(both, 2);  // in its six low bits
#if defined(__AVX512VBMI__)
    const __m512i bend = _mm512_maskz_permutexvar_epi8(0x5555555555555555, place, _mm512_load_si512(BEND));
#else
    const __m256i* table = reinterpret_cast<const __m256i*>(BEND);
    const __m512i first = _mm512_cvtepu8_epi16(_mm256_load_si256(table)), second = _mm512_cvtepu8_epi16(_mm256_load_si256(table + 1));
    const __m512i bend = _mm512_permutex2var_epi16(first, place, second);
#endif
    return _mm512_srli_epi16(_mm512_subs_epu16(both, bend), 1);
}
#endif

}  // namespace
