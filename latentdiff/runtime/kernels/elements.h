// Single values of the kernels that compilers turn into vector code: bfloat16 and float are computed in float.

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

inline void store(bfloat16& target, float value) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    target.bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store(float& target, float value) { target = value; }

// e^x to a relative 2e-7, in operations that compilers turn into vector code: 2^whole by the exponent's bits, 2^rest,
// |rest| <= 1/2, by its Taylor polynomial.
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

// Phi(x), the normal distribution's, by Abramowitz & Stegun (1964), 7.1.26: within 1e-7. Its density goes to `density`.
inline float normal(float x, float& density) {
    const float bell = exponential(-0.5f * x * x), t = 1.0f / (1.0f + 0.231641888f * fabsf(x));
    const float series = 0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)));
    const float tail = 0.5f * t * series * bell;
    density = 0.398942280f * bell;
    return x < 0 ? tail : 1.0f - tail;
}

}  // namespace
