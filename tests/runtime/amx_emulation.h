// AMX's tiles in software, so that the kernels for AMX are tested on processors that have AVX-512 BF16 only.

#pragma once

#include <immintrin.h>
#define __AMX_BF16__ 1
#include <stdint.h>
#include <string.h>

struct EmulatedTile {
    uint8_t rows[16][64];
};

static thread_local EmulatedTile emulated_tiles[8];
static thread_local uint8_t emulated_config[64];

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

inline int emulated_rows(int tile) { return emulated_config[48 + tile]; }

inline void emulated_load(int tile, const void* from, int64_t stride) {
    memset(&emulated_tiles[tile], 0, sizeof(EmulatedTile));
    for (int i = 0; i < emulated_rows(tile); ++i)
        memcpy(emulated_tiles[tile].rows[i], static_cast<const char*>(from) + i * stride, 64);
}

inline void emulated_store(int tile, void* to, int64_t stride) {
    for (int i = 0; i < emulated_rows(tile); ++i)
        memcpy(static_cast<char*>(to) + i * stride, emulated_tiles[tile].rows[i], 64);
}

inline void emulated_dpbf16ps(int sums, int left, int right) {
    for (int i = 0; i < emulated_rows(sums); ++i) {
        __m512 sum = _mm512_loadu_ps(emulated_tiles[sums].rows[i]);
        for (int pair = 0; pair < 16; ++pair) {
            int value;
            memcpy(&value, emulated_tiles[left].rows[i] + 4 * pair, 4);
            const __m512i columns = _mm512_loadu_si512(emulated_tiles[right].rows[pair]);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(value), (__m512bh)columns);
        }
        _mm512_storeu_ps(emulated_tiles[sums].rows[i], sum);
    }
}

#define _tile_loadconfig(config) memcpy(emulated_config, (config), 64)
#define _tile_storeconfig(config) memcpy((config), emulated_config, 64)
#define _tile_release() memset(emulated_config, 0, 64)
#define _tile_zero(tile) memset(&emulated_tiles[tile], 0, sizeof(EmulatedTile))
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(sums, left, right) emulated_dpbf16ps(sums, left, right)
