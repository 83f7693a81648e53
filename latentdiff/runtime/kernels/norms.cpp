// What torch does slowly between the matrix products, for bfloat16 and float: GroupNorm with the SiLU that may follow
// it, and GEGLU; forward and backward. Everything is computed in float.

#include <math.h>
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

// function(row) for each row.
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
        for (int64_t i = 0; i < width; ++i) {
            const float g = load(gate[i]);
            float density;
            store(y[row * width + i], load(value[i]) * g * normal(g, density));
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

// GroupNorm (Wu & He 2018) of maps [batch, pixels, channels]; a thread takes whole pictures, which fit its cache, so that
// several readings of one cost little more than the first, or where pictures are few a part of the pixels of each.
// mean and rstd are [batch, channels].
struct Shape {
    int64_t threads, batch, pixels, channels, groups;
    int64_t width() const { return channels / groups; }
};

// Sums over a group's channels, divided by its number of values, written to each of the channels.
void average_groups(const Shape& shape, float* sums) {
    const float count = static_cast<float>(shape.pixels * shape.width());
    for (int64_t first = 0; first < shape.channels; first += shape.width()) {
        float total = 0;
        for (int64_t c = first; c < first + shape.width(); ++c) total += sums[c];
        for (int64_t c = first; c < first + shape.width(); ++c) sums[c] = total / count;
    }
}

// Of `pixels` pixels from x on: each channel's mean, and the sum of the squared distances from it.
template <typename T>
void moments(int64_t pixels, int64_t channels, const T* x, float* mean, float* squares) {
    memset(mean, 0, channels * sizeof(float));
    memset(squares, 0, channels * sizeof(float));
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < channels; ++c) mean[c] += load(x[p * channels + c]);
    for (int64_t c = 0; c < channels; ++c) mean[c] /= static_cast<float>(pixels);
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < channels; ++c) {
            const float centred = load(x[p * channels + c]) - mean[c];
            squares[c] += centred * centred;
        }
}

// From the moments of equal parts [parts, 2, channels] to the groups' mean and 1 / deviation, by the law of total variance;
// `shift` moves a channel's mean.
void merge(const Shape& shape, int64_t parts, const float* moments, const float* shift, float eps, float* mean, float* rstd) {
    const int64_t channels = shape.channels;
    const float pixels = static_cast<float>(shape.pixels / parts);
    const auto part_mean = [&](int64_t part, int64_t c) { return moments[2 * part * channels + c] + (shift ? shift[c] : 0); };
    memset(mean, 0, channels * sizeof(float));
    memset(rstd, 0, channels * sizeof(float));
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < channels; ++c) mean[c] += pixels * part_mean(part, c);
    average_groups(shape, mean);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < channels; ++c) {
            const float centred = part_mean(part, c) - mean[c];
            rstd[c] += moments[(2 * part + 1) * channels + c] + pixels * centred * centred;
        }
    average_groups(shape, rstd);
    for (int64_t c = 0; c < channels; ++c) rstd[c] = 1.0f / sqrtf(rstd[c] + eps);
}

// y = x * scale + offset, channel by channel, and SiLU where asked for.
template <bool silu, typename T>
void apply(int64_t pixels, int64_t channels, const T* x, const float* scale, const float* offset, T* y) {
    for (int64_t p = 0; p < pixels; ++p)
#pragma omp simd  // the maps do not overlap
        for (int64_t c = 0; c < channels; ++c) {
            const float u = load(x[p * channels + c]) * scale[c] + offset[c];
            store(y[p * channels + c], silu ? u * sigmoid(u) : u);
        }
}

// Of x plus `shift` [batch, channels], where there is one. write(n, first, pixels, scale, offset) is told, for `pixels` pixels
// of picture n from `first` on, what each channel is multiplied by and what is added.
template <typename T, typename Write>
void group_norm(const Shape& shape, const T* x, const float* shift, const float* weight, const float* bias, float eps,
                float* mean, float* rstd, Write write) {
    const int64_t channels = shape.channels;
    int64_t parts = shape.batch < shape.threads ? shape.threads : 1;
    while (shape.pixels % parts) --parts;
    const int64_t pixels = shape.pixels / parts, size = pixels * channels;
    const auto picture = [&](int64_t n) {
        const Buffer<float> sums(2 * parts * channels), scale(channels), offset(channels);
        const int64_t threads = parts > 1 ? shape.threads : 1;
        const T* from = x + n * parts * size;
        const float* moved = shift ? shift + n * channels : nullptr;
        float *m = mean + n * channels, *r = rstd + n * channels;
        parallel_for(threads, parts, [&](int64_t part) {
            float* own = sums.get() + 2 * part * channels;
            moments(pixels, channels, from + part * size, own, own + channels);
        });
        merge(shape, parts, sums.get(), moved, eps, m, r);
        for (int64_t c = 0; c < channels; ++c) {
            scale[c] = r[c] * weight[c];
            offset[c] = bias[c] + ((moved ? moved[c] : 0) - m[c]) * scale[c];
        }
        parallel_for(threads, parts, [&](int64_t part) { write(n, part * pixels, pixels, scale.get(), offset.get()); });
    };
    if (parts > 1) {
        for (int64_t n = 0; n < shape.batch; ++n) picture(n);
        return;
    }
    parallel_for(shape.threads, shape.batch, picture);
}

template <bool silu, typename T>
void group_norm_forward(const Shape& shape, const T* x, const float* shift, const float* weight, const float* bias, float eps,
                        T* y, float* mean, float* rstd) {
    const auto write = [&](int64_t n, int64_t first, int64_t pixels, const float* scale, const float* offset) {
        const int64_t start = (n * shape.pixels + first) * shape.channels;
        apply<silu>(pixels, shape.channels, x + start, scale, offset, y + start);
    };
    group_norm(shape, x, shift, weight, bias, eps, mean, rstd, write);
}

// GroupNorm and SiLU to whole numbers from 0 to 255, round(SiLU * steps + zero), inside a frame of one pixel that is left as
// it is. `steps`: a channel's, [channels].
template <typename T>
void group_norm_silu_int8(const Shape& shape, int64_t width, const T* x, const float* shift, const float* weight,
                          const float* bias, float eps, const float* steps, float zero, uint8_t* y) {
    const int64_t channels = shape.channels, height = shape.pixels / width;
    const Buffer<float> statistics(2 * shape.batch * channels);
    const auto write = [&](int64_t n, int64_t first, int64_t pixels, const float* scale, const float* offset) {
        for (int64_t p = first; p < first + pixels; ++p) {
            const int64_t row = n * (height + 2) + p / width + 1;
            const T* from = x + (n * shape.pixels + p) * channels;
            uint8_t* to = y + (row * (width + 2) + p % width + 1) * channels;
#pragma omp simd  // the maps do not overlap
            for (int64_t c = 0; c < channels; ++c) {
                const float u = load(from[c]) * scale[c] + offset[c];
                const float whole = nearbyintf(u * sigmoid(u) * steps[c] + zero);
                to[c] = static_cast<uint8_t>(static_cast<int32_t>(smaller(larger(whole, 0.0f), 255.0f)));
            }
        }
    };
    group_norm(shape, x, shift, weight, bias, eps, statistics.get(), statistics.get() + shape.batch * channels, write);
}

template <bool silu, typename T>
void group_norm_backward(const Shape& shape, const T* x, const T* dy, const float* weight, const float* bias, const float* mean,
              const float* rstd, T* dx, float* dweight, float* dbias) {
    parallel_ranges(shape.threads, shape.batch, 1, [&](int64_t begin, int64_t end) {
        const Buffer<float> du(shape.pixels * shape.channels), a(shape.channels), b(shape.channels);
        for (int64_t n = begin; n < end; ++n) {
            const int64_t offset = n * shape.pixels * shape.channels;
            const float *m = mean + n * shape.channels, *r = rstd + n * shape.channels;
            float *dw = dweight + n * shape.channels, *db = dbias + n * shape.channels;
            memset(dw, 0, shape.channels * sizeof(float));
            memset(db, 0, shape.channels * sizeof(float));
            for (int64_t p = 0; p < shape.pixels; ++p)
                for (int64_t c = 0; c < shape.channels; ++c) {
                    const int64_t i = p * shape.channels + c;
                    const float unit = (load(x[offset + i]) - m[c]) * r[c];
                    float d = load(dy[offset + i]);
                    if (silu) {
                        const float u = unit * weight[c] + bias[c], s = sigmoid(u);
                        d *= s * (1.0f + u * (1.0f - s));
                    }
                    du[i] = d;
                    dw[c] += d * unit;
                    db[c] += d;
                }
            for (int64_t c = 0; c < shape.channels; ++c) {
                a[c] = weight[c] * db[c];
                b[c] = weight[c] * dw[c];
            }
            average_groups(shape, a.get());
            average_groups(shape, b.get());
            for (int64_t p = 0; p < shape.pixels; ++p)
                for (int64_t c = 0; c < shape.channels; ++c) {
                    const int64_t i = p * shape.channels + c;
                    const float unit = (load(x[offset + i]) - m[c]) * r[c];
                    store(dx[offset + i], r[c] * (du[i] * weight[c] - a[c] - unit * b[c]));
                }
        }
    });
}

}  // namespace

#define GROUP_NORM(name, T, silu)                                                                                     \
    EXPORT void name##_forward(int64_t threads, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, const void* x,    \
                                   const float* shift, const float* weight, const float* bias, float eps, void* y,    \
                                   float* statistics) {                                                               \
        group_norm_forward<silu>(Shape{threads, batch, pixels, channels, groups}, static_cast<const T*>(x), shift, weight,     \
                                 bias, eps, static_cast<T*>(y), statistics, statistics + batch * channels);           \
    }                                                                                                                 \
    EXPORT void name##_backward(int64_t threads, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, const void* x,   \
                                    const void* dy, const float* weight, const float* bias, const float* statistics,  \
                                    void* dx, float* sums) {                                                          \
        group_norm_backward<silu>(Shape{threads, batch, pixels, channels, groups}, static_cast<const T*>(x),                   \
                                  static_cast<const T*>(dy), weight, bias, statistics, statistics + batch * channels, \
                                  static_cast<T*>(dx), sums, sums + batch * channels);                                \
    }

#define GROUP_NORM_INT8(name, T)                                                                                      \
    EXPORT void name(int64_t threads, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, int64_t width,              \
                         const void* x, const float* shift, const float* weight, const float* bias, float eps,        \
                         const float* steps, float zero, uint8_t* y) {                                                \
        group_norm_silu_int8(Shape{threads, batch, pixels, channels, groups}, width, static_cast<const T*>(x), shift, weight,  \
                             bias, eps, steps, zero, y);                                                              \
    }

#define GEGLU(name, T)                                                                                                \
    EXPORT void name##_forward(int64_t threads, int64_t rows, int64_t width, const void* x, void* y) {                             \
        geglu_forward(threads, rows, width, static_cast<const T*>(x), static_cast<T*>(y));                                     \
    }                                                                                                                 \
    EXPORT void name##_backward(int64_t threads, int64_t rows, int64_t width, const void* x, const void* dy, void* dx) {           \
        geglu_backward(threads, rows, width, static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(dx));        \
    }

GROUP_NORM(group_norm_bf16, bfloat16, false)
GROUP_NORM(group_norm_fp32, float, false)
GROUP_NORM(group_norm_silu_bf16, bfloat16, true)
GROUP_NORM(group_norm_silu_fp32, float, true)
GROUP_NORM_INT8(group_norm_silu_int8_bf16, bfloat16)
GEGLU(geglu_bf16, bfloat16)
GEGLU(geglu_fp32, float)
