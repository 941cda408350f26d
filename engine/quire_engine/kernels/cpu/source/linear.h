/* y = x W^T + b with bfloat16 weights and inputs, and what follows fused into it.
 *
 * Weights lie in blocks of BLOCK outputs; within a block, pair after pair of inputs, the outputs
 * side by side: (blocks, I / 2, BLOCK, 2). Every output is one chain of additions over the pairs
 * in order, in float32: its bits do not depend on how many rows there are nor on who computes it.
 *
 * Legend: R rows, I inputs, O outputs.
 */
#pragma once

#include "pool.h"
#include "vector.h"

#define BLOCK 32
/* Rows whose sums fit the registers: 12 * 2 sums, two vectors of weights, a few inputs. */
#define MAX_ROWS 12
/* From how many rows on work is cut along rows too, into tiles of at most so many. */
#define TILE_ROWS 96
#define TILE_BLOCKS 6
/* How far ahead of the weights in use the next are asked for, in bytes. */
#define AHEAD 4096

enum follow_up {
    STORE, /* y = product, float32 */
    ADD,   /* y += product, float32 */
    GATED, /* y = silu(gate) * up, bfloat16; a block is 16 gates and their 16 ups */
};

typedef struct {
    const uint32_t *weights;
    const float *bias;   /* in the order of the blocks, padded to whole ones; NULL: none */
    int64_t num_outputs; /* gates and ups both count */
    int64_t num_pairs;
    int64_t follow_up;
} linear;

typedef struct {
    const linear *layer;
    const bf16 *x; /* (R, I) */
    void *y;       /* (R, O), or (R, O / 2) for GATED */
    int64_t num_rows, x_stride, y_stride;
    int64_t num_row_tiles, num_blocks;
} linear_task;

INLINE void finish_row(const linear *layer, void *y, int64_t block, __m512 low, __m512 high) {
    if (layer->bias) {
        low = _mm512_add_ps(low, _mm512_loadu_ps(layer->bias + block * BLOCK));
        high = _mm512_add_ps(high, _mm512_loadu_ps(layer->bias + block * BLOCK + LANES));
    }
    if (layer->follow_up == GATED) {
        int64_t at = block * LANES;
        store_bf16((bf16 *)y + at, lanes_left(layer->num_outputs / 2, at),
                   _mm512_mul_ps(silu_16(low), high));
        return;
    }
    int64_t at = block * BLOCK;
    float *to = (float *)y + at;
    __mmask16 low_mask = lanes_left(layer->num_outputs, at);
    __mmask16 high_mask =
        layer->num_outputs > at + LANES ? lanes_left(layer->num_outputs, at + LANES) : 0;
    if (layer->follow_up == ADD) {
        low = _mm512_add_ps(low, load_float(to, low_mask));
        high = _mm512_add_ps(high, load_float(to + LANES, high_mask));
    }
    store_float(to, low_mask, low);
    store_float(to + LANES, high_mask, high);
}

/* One block of outputs for some rows; num_rows is known to the compiler, the sums are registers. */
INLINE void multiply(const linear_task *t, int64_t row, int64_t block, const int num_rows) {
    const linear *layer = t->layer;
    const int64_t num_pairs = layer->num_pairs;
    const uint32_t *w = layer->weights + block * num_pairs * BLOCK;
    const bf16 *x = t->x + row * t->x_stride;
    const int64_t stride = t->x_stride;
    __m512 low[MAX_ROWS], high[MAX_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        _mm_prefetch((const char *)(w + pair * BLOCK) + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)(w + pair * BLOCK) + AHEAD + 64, _MM_HINT_T0);
        __m512i w_low = _mm512_loadu_si512(w + pair * BLOCK);
        __m512i w_high = _mm512_loadu_si512(w + pair * BLOCK + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < num_rows; r++) {
            int32_t both;
            __builtin_memcpy(&both, x + r * stride + 2 * pair, 4);
            __m512i x_pair = _mm512_set1_epi32(both);
            low[r] = dot_pairs(low[r], x_pair, w_low);
            high[r] = dot_pairs(high[r], x_pair, w_high);
        }
    }
    const int64_t y_stride = t->y_stride * (layer->follow_up == GATED ? 2 : 4);
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; r++)
        finish_row(layer, (char *)t->y + (row + r) * y_stride, block, low[r], high[r]);
}

static void multiply_rows(const linear_task *t, int64_t row, int64_t block, int num_rows) {
    switch (num_rows) {
    case 1: multiply(t, row, block, 1); break;
    case 2: multiply(t, row, block, 2); break;
    case 3: multiply(t, row, block, 3); break;
    case 4: multiply(t, row, block, 4); break;
    case 5: multiply(t, row, block, 5); break;
    case 6: multiply(t, row, block, 6); break;
    case 7: multiply(t, row, block, 7); break;
    case 8: multiply(t, row, block, 8); break;
    case 9: multiply(t, row, block, 9); break;
    case 10: multiply(t, row, block, 10); break;
    case 11: multiply(t, row, block, 11); break;
    case 12: multiply(t, row, block, 12); break;
    }
}

/* The first row of part `index` when rows are cut into equal parts. */
INLINE int64_t cut(int64_t num_rows, int64_t num_parts, int64_t index) {
    return num_rows * index / num_parts;
}

static void multiply_tile(const linear_task *t, int64_t row, int64_t end, int64_t block,
                          int64_t last) {
    int64_t num_parts = (end - row + MAX_ROWS - 1) / MAX_ROWS;
    if (num_parts > 4) {
        for (int64_t part = 0; part < num_parts; part++) {
            int64_t from = row + cut(end - row, num_parts, part);
            int64_t to = row + cut(end - row, num_parts, part + 1);
            for (int64_t b = block; b < last; b++) multiply_rows(t, from, b, (int)(to - from));
        }
        return;
    }
    /* Few rows: weights come from memory, once; so they are the outer loop. */
    for (int64_t b = block; b < last; b++)
        for (int64_t part = 0; part < num_parts; part++) {
            int64_t from = row + cut(end - row, num_parts, part);
            int64_t to = row + cut(end - row, num_parts, part + 1);
            multiply_rows(t, from, b, (int)(to - from));
        }
}

static void linear_chunks(void *argument, int first, int last) {
    const linear_task *t = argument;
    if (t->num_row_tiles == 1) {
        multiply_tile(t, 0, t->num_rows, first, last);
        return;
    }
    for (int i = first; i < last; i++) {
        int64_t rows = i % t->num_row_tiles, block = i / t->num_row_tiles * TILE_BLOCKS;
        int64_t end = block + TILE_BLOCKS < t->num_blocks ? block + TILE_BLOCKS : t->num_blocks;
        multiply_tile(t, cut(t->num_rows, t->num_row_tiles, rows),
                      cut(t->num_rows, t->num_row_tiles, rows + 1), block, end);
    }
}

static void run_linear(pool *p, const linear *layer, const bf16 *x, int64_t num_rows, void *y,
                       int64_t y_stride) {
    linear_task t = {.layer = layer,
                     .x = x,
                     .y = y,
                     .num_rows = num_rows,
                     .x_stride = 2 * layer->num_pairs,
                     .y_stride = y_stride};
    t.num_blocks = (layer->num_outputs + BLOCK - 1) / BLOCK;
    t.num_row_tiles = (num_rows + TILE_ROWS - 1) / TILE_ROWS;
    int64_t num_chunks = t.num_blocks;
    if (t.num_row_tiles > 1)
        num_chunks = (t.num_blocks + TILE_BLOCKS - 1) / TILE_BLOCKS * t.num_row_tiles;
    pool_run(p, linear_chunks, &t, (int)num_chunks);
}

typedef struct {
    const uint32_t *weight; /* (O, I / 2) pairs */
    uint32_t *packed;
    int64_t num_outputs, num_pairs;
    int gated;
} pack_task;

/* The row of the weight that goes to an output of a block; -1 for padding. */
INLINE int64_t source_row(const pack_task *t, int64_t block, int64_t lane) {
    if (!t->gated) {
        int64_t row = block * BLOCK + lane;
        return row < t->num_outputs ? row : -1;
    }
    int64_t half = t->num_outputs / 2, row = block * LANES + lane % LANES;
    return row < half ? row + (lane / LANES) * half : -1;
}

static void pack_chunks(void *argument, int first, int last) {
    const pack_task *t = argument;
    for (int64_t block = first; block < last; block++) {
        uint32_t *to = t->packed + block * t->num_pairs * BLOCK;
        for (int64_t lane = 0; lane < BLOCK; lane++) {
            int64_t row = source_row(t, block, lane);
            const uint32_t *from = t->weight + row * t->num_pairs;
            for (int64_t pair = 0; pair < t->num_pairs; pair++)
                to[pair * BLOCK + lane] = row < 0 ? 0 : from[pair];
        }
    }
}
