// LayerNorm (Ba et al. 2016) with uint8 output, for 8-bit products.

#include "elements.h"

namespace {

// One row [width]: round(LayerNorm(x) * steps + zero), clamped to 0 and 255.
template <typename T>
void layer_norm_int8(int64_t width, const T* x, const float* weight, const float* bias, float eps, const float* steps, float zero,
                     uint8_t* y) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += load(x[c]);
    const float mean = sum / static_cast<float>(width);
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < width; ++c) {
        const float centred = load(x[c]) - mean;
        squares += centred * centred;
    }
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
#pragma omp simd  // the rows do not overlap
    for (int64_t c = 0; c < width; ++c) {
        const float value = (load(x[c]) - mean) * rstd * weight[c] + bias[c];
        const float whole = nearbyintf(value * steps[c] + zero);
        y[c] = static_cast<uint8_t>(static_cast<int32_t>(smaller(larger(whole, 0.0f), 255.0f)));
    }
}

// x, y: [rows, width]; weight, bias, steps: [width].
template <typename T>
void layer_norms_int8(int64_t threads, int64_t rows, int64_t width, const T* x, const float* weight, const float* bias, float eps,
                      const float* steps, float zero, uint8_t* y) {
    parallel_ranges(threads, rows, 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            layer_norm_int8(width, x + row * width, weight, bias, eps, steps, zero, y + row * width);
    });
}

}  // namespace

EXPORT void layer_norm_int8_bf16(int64_t threads, int64_t rows, int64_t width, const void* x, const float* weight,
                                 const float* bias, float eps, const float* steps, float zero, uint8_t* y) {
    layer_norms_int8(threads, rows, width, static_cast<const bfloat16*>(x), weight, bias, eps, steps, zero, y);
}

EXPORT void layer_norm_int8_fp32(int64_t threads, int64_t rows, int64_t width, const void* x, const float* weight,
                                 const float* bias, float eps, const float* steps, float zero, uint8_t* y) {
    layer_norms_int8(threads, rows, width, static_cast<const float*>(x), weight, bias, eps, steps, zero, y);
}
