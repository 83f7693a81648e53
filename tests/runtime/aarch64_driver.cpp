// One kernel on the numbers from stdin, its answer to stdout: `driver attention_bf16 batch heads queries keys dim`,
// `driver geglu_fp32 rows width`, `driver linear_fp32 rows depth columns`, or winograd_fp32 or weight_gradient_fp32 with `batch
// height width depth columns`. Linked with the kernels into a static program, to be run by qemu-aarch64.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

using Attention = void(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, const void*, int64_t, int64_t,
                       const void*, int64_t, int64_t, const void*, int64_t, int64_t, void*);
extern "C" Attention attention_bf16, attention_fp32;
extern "C" void geglu_fp32_forward(int64_t threads, int64_t rows, int64_t width, const void* x, void* y);
extern "C" void linear_fp32(int64_t threads, int64_t rows, int64_t depth, int64_t columns, const void* x, const void* weight,
                            const void* bias, const void* residual, void* out);
extern "C" void winograd_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t columns,
                              const void* x, const void* weight, const void* bias, const void* residual, void* out);
extern "C" void weight_gradient_fp32(int64_t threads, int64_t batch, int64_t height, int64_t width, int64_t depth,
                                     int64_t columns, const void* x, const void* of_output, float* out);

static void* read_bytes(size_t count) {
    void* data = malloc(count);
    if (!data || fread(data, 1, count, stdin) != count) exit(2);
    return data;
}

static int answer(const void* data, size_t count) { return fwrite(data, 1, count, stdout) == count ? 0 : 2; }

int main(int count, char** words) {
    int64_t sizes[5] = {};
    for (int i = 2; i < count; ++i) sizes[i - 2] = atoll(words[i]);
    if (!strcmp(words[1], "geglu_fp32")) {
        const int64_t rows = sizes[0], width = sizes[1];
        const void* x = read_bytes(rows * 2 * width * 4);
        void* y = malloc(rows * width * 4);
        geglu_fp32_forward(2, rows, width, x, y);
        return answer(y, rows * width * 4);
    }
    if (!strcmp(words[1], "linear_fp32")) {
        const int64_t rows = sizes[0], depth = sizes[1], columns = sizes[2];
        const void* x = read_bytes(rows * depth * 4);
        const void* weight = read_bytes(depth * columns * 4);
        void* out = malloc(rows * columns * 4);
        linear_fp32(2, rows, depth, columns, x, weight, nullptr, nullptr, out);
        return answer(out, rows * columns * 4);
    }
    if (!strcmp(words[1], "winograd_fp32")) {
        const int64_t pixels = sizes[0] * sizes[1] * sizes[2], depth = sizes[3], columns = sizes[4];
        const void* x = read_bytes(pixels * depth * 4);
        const void* weight = read_bytes(9 * depth * columns * 4);
        void* out = malloc(pixels * columns * 4);
        winograd_fp32(2, sizes[0], sizes[1], sizes[2], depth, columns, x, weight, nullptr, nullptr, out);
        return answer(out, pixels * columns * 4);
    }
    if (!strcmp(words[1], "weight_gradient_fp32")) {
        const int64_t pixels = sizes[0] * sizes[1] * sizes[2], depth = sizes[3], columns = sizes[4];
        const void* x = read_bytes(pixels * depth * 4);
        const void* of_output = read_bytes(pixels * columns * 4);
        float* out = static_cast<float*>(malloc(9 * depth * columns * 4));
        weight_gradient_fp32(2, sizes[0], sizes[1], sizes[2], depth, columns, x, of_output, out);
        return answer(out, 9 * depth * columns * 4);
    }
    const bool narrow = !strcmp(words[1], "attention_bf16");
    const int64_t batch = sizes[0], heads = sizes[1], queries = sizes[2], keys = sizes[3], dim = sizes[4];
    const int64_t row = heads * dim, size = narrow ? 2 : 4;
    const void* q = read_bytes(batch * queries * row * size);
    const void* k = read_bytes(batch * keys * row * size);
    const void* v = read_bytes(batch * keys * row * size);
    void* out = malloc(batch * queries * row * size);
    const float scale = 1 / __builtin_sqrtf(static_cast<float>(dim));
    (narrow ? attention_bf16 : attention_fp32)(2, batch, heads, queries, keys, dim, scale, q, queries * row, row, k,
                                               keys * row, row, v, keys * row, row, out);
    return answer(out, batch * queries * row * size);
}
