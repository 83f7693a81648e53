// AVX-512 BF16 in software, so that the kernels for it are tested on processors that have AVX-512 only. Subnormal numbers,
// which the processor takes for zero, are kept.

#pragma once

#include <immintrin.h>

#define __AVX512BF16__ 1

inline __m512 emulated_low(__m512bh pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32((__m512i)pairs, 16)); }

inline __m512 emulated_high(__m512bh pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512((__m512i)pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline __m512 emulated_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    sum = _mm512_fmadd_ps(emulated_high(a), emulated_high(b), sum);
    return _mm512_fmadd_ps(emulated_low(a), emulated_low(b), sum);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline __m256i emulated_round(__m512 x) {
    const __m512i word = _mm512_castps_si512(x), last = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), last);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

inline __m256bh emulated_cvtneps_pbh(__m512 x) { return (__m256bh)emulated_round(x); }

inline __m512bh emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
    return (__m512bh)_mm512_inserti64x4(_mm512_castsi256_si512(emulated_round(low)), emulated_round(high), 1);
}

#define _mm512_dpbf16_ps emulated_dpbf16_ps
#define _mm512_cvtneps_pbh emulated_cvtneps_pbh
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
