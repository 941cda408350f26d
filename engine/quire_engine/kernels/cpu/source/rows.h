/* What happens to each line by itself: embedding, norms, rope and the way into the cache.
 *
 * Legend: E hidden size, H query heads, N key/value heads, D head dim.
 */
#pragma once

#include "attention.h"
#include "pool.h"
#include "vector.h"

/* Lines that one thread takes at once; fewer are not worth a second thread. */
#define LINES_AT_ONCE 8

INLINE float norm_factor(const float *x, int64_t size, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += LANES) {
        __m512 v = load_float(x + i, lanes_left(size, i));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    return 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps);
}

/* Scale a row to unit mean square, then by a learned weight. */
INLINE void norm_row(const float *x, const float *weight, int64_t size, float eps, bf16 *y) {
    __m512 factor = _mm512_set1_ps(norm_factor(x, size, eps));
    for (int64_t i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes_left(size, i);
        __m512 v = _mm512_mul_ps(load_float(x + i, mask), factor);
        store_bf16(y + i, mask, _mm512_mul_ps(v, load_float(weight + i, mask)));
    }
}

typedef struct {
    const float *x;       /* (lines, E) */
    const int64_t *lines; /* which; NULL: all in order */
    const float *weight;
    bf16 *y;
    int64_t size, num_lines;
    float eps;
} norm_task;

INLINE int64_t end_of_chunk(int last, int64_t num_lines) {
    int64_t end = (int64_t)last * LINES_AT_ONCE;
    return end < num_lines ? end : num_lines;
}

INLINE int num_line_chunks(int64_t num_lines) {
    return (int)((num_lines + LINES_AT_ONCE - 1) / LINES_AT_ONCE);
}

static void norm_chunks(void *argument, int first, int last) {
    const norm_task *t = argument;
    int64_t end = end_of_chunk(last, t->num_lines);
    for (int64_t i = (int64_t)first * LINES_AT_ONCE; i < end; i++) {
        int64_t line = t->lines ? t->lines[i] : i;
        norm_row(t->x + line * t->size, t->weight, t->size, t->eps, t->y + i * t->size);
    }
}

typedef struct {
    const float *qkv; /* (lines, (H + 2N) * D) */
    bf16 *queries;    /* (lines, H, D) */
    bf16 *keys, *values;
    const chunk *chunks;
    const int32_t *line_chunk;
    const float *cos, *sin; /* (positions, rotary dim), as RopeTable has them */
    const float *q_norm, *k_norm;
    int64_t num_heads, num_kv_heads, head_dim, block_size, rotary_dim, num_lines;
    float eps;
} store_task;

/* Norm (if there is one) and rotate one head; `scratch` holds D floats. */
static void turn_head(const store_task *t, const float *x, const float *norm, int64_t position,
                      float *scratch, bf16 *y) {
    const int64_t D = t->head_dim, half = t->rotary_dim / 2;
    const float *cos = t->cos + position * t->rotary_dim, *sin = t->sin + position * t->rotary_dim;
    if (norm) {
        float factor = norm_factor(x, D, t->eps);
        for (int64_t d = 0; d < D; d++) scratch[d] = x[d] * factor * norm[d];
        x = scratch;
    }
    for (int64_t d = 0; d < half; d += LANES) {
        __mmask16 mask = lanes_left(half, d);
        __m512 low = load_float(x + d, mask), high = load_float(x + half + d, mask);
        /* The table's first half holds minus the sine. */
        __m512 c = load_float(cos + d, mask), s = load_float(sin + d, mask);
        store_bf16(y + d, mask, _mm512_fmadd_ps(high, s, _mm512_mul_ps(low, c)));
        store_bf16(y + half + d, mask, _mm512_fnmadd_ps(low, s, _mm512_mul_ps(high, c)));
    }
    for (int64_t d = t->rotary_dim; d < D; d += LANES)
        store_bf16(y + d, lanes_left(D, d), load_float(x + d, lanes_left(D, d)));
}

static void store_line(const store_task *t, int64_t line) {
    const int64_t D = t->head_dim, N = t->num_kv_heads, size = t->block_size;
    const chunk *c = &t->chunks[t->line_chunk[line]];
    const int64_t position = c->start + line - c->first_line, slot = position % size;
    const float *heads = t->qkv + line * (t->num_heads + 2 * N) * D;
    _Alignas(64) float scratch[MAX_HEAD_DIM];
    _Alignas(64) bf16 key[MAX_HEAD_DIM];
    for (int64_t h = 0; h < t->num_heads; h++)
        turn_head(t, heads + h * D, t->q_norm, position, scratch,
                  t->queries + (line * t->num_heads + h) * D);
    for (int64_t n = 0; n < N; n++) {
        int64_t block = (c->blocks[position / size] * N + n) * size * D;
        turn_head(t, heads + (t->num_heads + n) * D, t->k_norm, position, scratch, key);
        for (int64_t d = 0; d < D; d += 2)
            __builtin_memcpy(t->keys + block + d * size + 2 * slot, key + d, 2 * sizeof(bf16));
        const float *value = heads + (t->num_heads + N + n) * D;
        for (int64_t d = 0; d < D; d += LANES)
            store_bf16(t->values + block + slot * D + d, ALL_LANES, _mm512_loadu_ps(value + d));
    }
}

static void store_chunks(void *argument, int first, int last) {
    const store_task *t = argument;
    int64_t end = end_of_chunk(last, t->num_lines);
    for (int64_t line = (int64_t)first * LINES_AT_ONCE; line < end; line++) store_line(t, line);
}

typedef struct {
    const bf16 *embedding; /* (V, E) */
    float *x;              /* (lines, E) */
    const chunk *chunks;
    const int32_t *line_chunk;
    int64_t size, num_lines;
} embed_task;

static void embed_chunks(void *argument, int first, int last) {
    const embed_task *t = argument;
    int64_t end = end_of_chunk(last, t->num_lines);
    for (int64_t line = (int64_t)first * LINES_AT_ONCE; line < end; line++) {
        const chunk *c = &t->chunks[t->line_chunk[line]];
        const bf16 *from = t->embedding + c->token_ids[c->start + line - c->first_line] * t->size;
        for (int64_t i = 0; i < t->size; i += LANES) {
            __mmask16 mask = lanes_left(t->size, i);
            store_float(t->x + line * t->size + i, mask, load_bf16(from + i, mask));
        }
    }
}
