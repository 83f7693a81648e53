// GroupNorm (Wu & He 2018), optionally followed by SiLU, forward and backward, for bfloat16 and float.

#include "elements.h"

namespace {

// Maps [batch, pixels, channels]; mean and rstd are [batch, channels].
struct Shape {
    int64_t threads, batch, pixels, channels, groups;
    int64_t width() const { return channels / groups; }
};

// The division of the work among threads: each thread computes complete images, which fit its cache, so that further
// passes over an image cost little. If there are fewer images than threads, the threads share the pixels of each image.
struct Division {
    explicit Division(const Shape& shape)
        : threads(shape.threads), batch(shape.batch), parts(shape.batch < shape.threads ? shape.threads : 1) {
        while (shape.pixels % parts) --parts;
        pixels = shape.pixels / parts;
    }

    // Calls function(n) for each image.
    template <typename Function>
    void each_image(const Function& function) const {
        parallel_for(parts > 1 ? 1 : threads, batch, function);
    }

    // Calls function(i) for each part of an image.
    template <typename Function>
    void each_part(const Function& function) const {
        parallel_for(parts > 1 ? threads : 1, parts, function);
    }

    int64_t threads, batch, parts, pixels;  // parts: per image; pixels: per part
};

// Replaces each channel's sum by the average of its group.
void average_groups(const Shape& shape, float* sums) {
    const float count = static_cast<float>(shape.pixels * shape.width());
    for (int64_t first = 0; first < shape.channels; first += shape.width()) {
        float total = 0;
        for (int64_t c = first; c < first + shape.width(); ++c) total += sums[c];
        for (int64_t c = first; c < first + shape.width(); ++c) sums[c] = total / count;
    }
}

// Computes the mean of each channel, and the sum of squared deviations from it, over `pixels` pixels.
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

// Combines the moments of equal parts [parts, 2, channels] to the mean and reciprocal deviation of each group, by the law of
// total variance. shift: added to the mean of each channel.
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

// y = x * scale + offset per channel, optionally followed by SiLU.
template <bool silu, typename T>
void apply(int64_t pixels, int64_t channels, const T* x, const float* scale, const float* offset, T* y) {
    for (int64_t p = 0; p < pixels; ++p)
#pragma omp simd  // the maps do not overlap
        for (int64_t c = 0; c < channels; ++c) {
            const float u = load(x[p * channels + c]) * scale[c] + offset[c];
            store(y[p * channels + c], silu ? u * sigmoid(u) : u);
        }
}

// Computes the statistics of x plus the optional `shift` [batch, channels], and calls write(n, first, pixels, scale, offset)
// for ranges of pixels of image n, with a factor and an offset per channel.
template <typename T, typename Write>
void group_norm(const Shape& shape, const T* x, const float* shift, const float* weight, const float* bias, float eps,
                float* mean, float* rstd, Write write) {
    const Division work(shape);
    const int64_t channels = shape.channels, parts = work.parts, size = work.pixels * channels;
    work.each_image([&](int64_t n) {
        const Buffer<float> sums(2 * parts * channels), scale(channels), offset(channels);
        const T* from = x + n * parts * size;
        const float* moved = shift ? shift + n * channels : nullptr;
        float *m = mean + n * channels, *r = rstd + n * channels;
        work.each_part([&](int64_t part) {
            float* own = sums.get() + 2 * part * channels;
            moments(work.pixels, channels, from + part * size, own, own + channels);
        });
        merge(shape, parts, sums.get(), moved, eps, m, r);
        for (int64_t c = 0; c < channels; ++c) {
            scale[c] = r[c] * weight[c];
            offset[c] = bias[c] + ((moved ? moved[c] : 0) - m[c]) * scale[c];
        }
        work.each_part([&](int64_t part) { write(n, part * work.pixels, work.pixels, scale.get(), offset.get()); });
    });
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

// GroupNorm and SiLU with uint8 output, round(SiLU * steps + zero), with a border of one pixel that is not written.
// steps: [channels].
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

// The values of the forward pass that the gradients of an image need, per channel.
struct Channels {
    const float *mean, *rstd, *weight, *bias;
};

// Computes the gradient of the input of SiLU, `du`, and the sums of the gradients of weight and bias over these pixels.
template <bool silu, typename T>
void before_silu(int64_t pixels, int64_t channels, const T* x, const T* dy, const Channels& of, float* du, float* dweight,
                 float* dbias) {
    memset(dweight, 0, channels * sizeof(float));
    memset(dbias, 0, channels * sizeof(float));
    for (int64_t p = 0; p < pixels; ++p, x += channels, dy += channels, du += channels)
#pragma omp simd  // the maps do not overlap
        for (int64_t c = 0; c < channels; ++c) {
            const float unit = (load(x[c]) - of.mean[c]) * of.rstd[c];
            float d = load(dy[c]);
            if (silu) {
                const float u = unit * of.weight[c] + of.bias[c], s = sigmoid(u);
                d *= s * (1.0f + u * (1.0f - s));
            }
            du[c] = d;
            dweight[c] += d * unit;
            dbias[c] += d;
        }
}

// Computes the gradient of x from `du` and from the averages of weight * dbias and weight * dweight over each group.
template <typename T>
void before_norm(int64_t pixels, int64_t channels, const T* x, const float* du, const Channels& of, const float* from_bias,
                 const float* from_weight, T* dx) {
    for (int64_t p = 0; p < pixels; ++p, x += channels, dx += channels, du += channels)
#pragma omp simd  // the maps do not overlap
        for (int64_t c = 0; c < channels; ++c) {
            const float unit = (load(x[c]) - of.mean[c]) * of.rstd[c];
            store(dx[c], of.rstd[c] * (du[c] * of.weight[c] - from_bias[c] - unit * from_weight[c]));
        }
}

// dweight, dbias: per image, [batch, channels].
template <bool silu, typename T>
void group_norm_backward(const Shape& shape, const T* x, const T* dy, const float* weight, const float* bias, const float* mean,
                         const float* rstd, T* dx, float* dweight, float* dbias) {
    const Division work(shape);
    const int64_t channels = shape.channels, parts = work.parts, size = work.pixels * channels;
    work.each_image([&](int64_t n) {
        const Buffer<float> du(parts * size), sums(2 * parts * channels), a(channels), b(channels);
        const int64_t start = n * parts * size;
        const Channels of{mean + n * channels, rstd + n * channels, weight, bias};
        work.each_part([&](int64_t i) {
            const int64_t first = start + i * size;
            float* own = sums.get() + 2 * i * channels;
            before_silu<silu>(work.pixels, channels, x + first, dy + first, of, du.get() + i * size, own, own + channels);
        });
        for (int64_t c = 0; c < channels; ++c) {
            float of_weight = 0, of_bias = 0;
            for (int64_t i = 0; i < parts; ++i) {
                of_weight += sums[2 * i * channels + c];
                of_bias += sums[(2 * i + 1) * channels + c];
            }
            dweight[n * channels + c] = of_weight;
            dbias[n * channels + c] = of_bias;
            a[c] = weight[c] * of_bias;
            b[c] = weight[c] * of_weight;
        }
        average_groups(shape, a.get());
        average_groups(shape, b.get());
        work.each_part([&](int64_t i) {
            const int64_t first = start + i * size;
            before_norm(work.pixels, channels, x + first, du.get() + i * size, of, a.get(), b.get(), dx + first);
        });
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

GROUP_NORM(group_norm_bf16, bfloat16, false)
GROUP_NORM(group_norm_fp32, float, false)
GROUP_NORM(group_norm_silu_bf16, bfloat16, true)
GROUP_NORM(group_norm_silu_fp32, float, true)
GROUP_NORM_INT8(group_norm_silu_int8_bf16, bfloat16)
GROUP_NORM_INT8(group_norm_silu_int8_fp32, float)
