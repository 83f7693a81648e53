// Operations on single values in loops that compilers vectorise: bfloat16 and float, computed in float.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "parallel.h"

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float load(bfloat16 value) {
    uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

inline float load(float value) { return value; }

inline void store(bfloat16& target, float value) {  // rounds to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    target.bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store(float& target, float value) { target = value; }

// e^x with a relative error of 2e-7, in operations that compilers can vectorise: 2^whole is written to the exponent bits,
// and 2^rest with |rest| <= 1/2 is a Taylor polynomial.
inline float exponential(float x) {
    const float power = smaller(larger(x * 1.44269504f, -126.0f), 126.0f);
    const float whole = nearbyintf(power), rest = (power - whole) * 0.693147181f;
    const float tail = 1.0f / 24 + rest * (1.0f / 120 + rest * (1.0f / 720 + rest * (1.0f / 5040)));
    const float polynomial = 1.0f + rest * (1.0f + rest * (0.5f + rest * (1.0f / 6 + rest * tail)));
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return polynomial * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// The cumulative normal distribution Phi(x) (Abramowitz & Stegun 1964, 7.1.26) with an error of 1e-7, and its density.
inline float normal(float x, float& density) {
    const float bell = exponential(-0.5f * x * x), t = 1.0f / (1.0f + 0.231641888f * fabsf(x));
    const float series = 0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)));
    const float tail = 0.5f * t * series * bell;
    density = 0.398942280f * bell;
    return x < 0 ? tail : 1.0f - tail;
}

}  // namespace
