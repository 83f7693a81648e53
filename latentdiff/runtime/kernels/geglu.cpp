// GEGLU (Shazeer 2020), value * gelu(gate), forward and backward, for bfloat16 and float.

#include "elements.h"

namespace {

// Calls function(row) for each row.
template <typename Function>
void parallel_rows(int64_t threads, int64_t rows, const Function& function) {
    parallel_ranges(threads, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) function(row);
    });
}

// y [rows, width] = value * gelu(gate), where x [rows, 2 * width] holds both (Shazeer 2020).
template <typename T>
void geglu_forward(int64_t threads, int64_t rows, int64_t width, const T* x, T* y) {
    parallel_rows(threads, rows, [&](int64_t row) {
        const T *value = x + 2 * row * width, *gate = value + width;
        T* out = y + row * width;
#pragma omp simd  // the maps do not overlap
        for (int64_t i = 0; i < width; ++i) {
            const float g = load(gate[i]);
            float density;
            store(out[i], load(value[i]) * g * normal(g, density));
        }
    });
}

template <typename T>
void geglu_backward(int64_t threads, int64_t rows, int64_t width, const T* x, const T* dy, T* dx) {
    parallel_rows(threads, rows, [&](int64_t row) {
        const T *value = x + 2 * row * width, *gate = value + width, *dout = dy + row * width;
        T *dvalue = dx + 2 * row * width, *dgate = dvalue + width;
#pragma omp simd  // the maps do not overlap
        for (int64_t i = 0; i < width; ++i) {
            const float d = load(dout[i]), g = load(gate[i]);
            float density;
            const float phi = normal(g, density);
            store(dvalue[i], d * g * phi);
            store(dgate[i], d * load(value[i]) * (phi + g * density));
        }
    });
}

}  // namespace

#define GEGLU(name, T)                                                                                                \
    EXPORT void name##_forward(int64_t threads, int64_t rows, int64_t width, const void* x, void* y) {                             \
        geglu_forward(threads, rows, width, static_cast<const T*>(x), static_cast<T*>(y));                                     \
    }                                                                                                                 \
    EXPORT void name##_backward(int64_t threads, int64_t rows, int64_t width, const void* x, const void* dy, void* dx) {           \
        geglu_backward(threads, rows, width, static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(dx));        \
    }

GEGLU(geglu_bf16, bfloat16)
GEGLU(geglu_fp32, float)
