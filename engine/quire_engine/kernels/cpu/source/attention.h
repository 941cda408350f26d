/* Attention straight from the paged cache.
 *
 * The cache of a layer holds, per block and key/value head, keys as (D / 2, block size, 2), which
 * is what products of pairs take, and values as (block size, D). Work is cut into tiles: some
 * tokens of one sequence with all query heads of one key/value head. Softmax runs online over
 * spans of SPAN keys at fixed positions, in float32; keys that a row does not see add exact zeros.
 * So a row's bits depend on nothing but its own tokens.
 *
 * Legend: R rows of a tile (tokens times query heads per key/value head), D head dim.
 */
#pragma once

#include <float.h>
#include <math.h>

#include "pool.h"
#include "vector.h"

#define SPAN 128
#define TILE 48 /* most rows of a tile, unless a single token has more */
#define MAX_GROUP 64
#define MAX_HEAD_DIM 256
#define MAX_TILE_ROWS 64

/* One sequence's tokens in a step. */
typedef struct {
    const int64_t *token_ids; /* by position */
    const int64_t *blocks;    /* block table */
    int64_t start;            /* position of the first token */
    int64_t num_tokens;
    int64_t first_line;
} chunk;

typedef struct {
    int64_t num_heads, num_kv_heads, head_dim, block_size, window; /* window 0: none */
    float scale;
    const bf16 *keys, *values; /* cache of the layer */
    const bf16 *queries;       /* (lines, H, D) */
    bf16 *out;                 /* (lines, H, D) */
    const chunk *chunks;
    const int32_t *tile_chunk; /* tile -> chunk, and its first token within */
    const int32_t *tile_start;
    int64_t tile_tokens;
} attention_task;

/* What a thread works with on one tile. */
typedef struct {
    _Alignas(64) bf16 q[MAX_TILE_ROWS * MAX_HEAD_DIM];
    _Alignas(64) float scores[MAX_TILE_ROWS * SPAN];
    _Alignas(64) float values[SPAN * MAX_HEAD_DIM];
    _Alignas(64) float sums[MAX_TILE_ROWS * MAX_HEAD_DIM];
    float max[MAX_TILE_ROWS], total[MAX_TILE_ROWS];
    int64_t position[MAX_TILE_ROWS];
    int num_rows, head_dim;
} tile;

/* Where the keys of a span are: pairs `stride` apart, 16 keys side by side, in groups. */
typedef struct {
    const uint32_t *groups[SPAN / LANES];
    int64_t stride;
    int first, num_groups; /* the first group's place in the span */
} span_keys;

/* Scores of some rows against some groups; enough of both hide how long a product takes. */
INLINE void score_rows(tile *w, int row, const span_keys *k, int group, const int rows,
                       const int groups) {
    __m512 s[6][4];
    const int pairs = w->head_dim / 2;
    const int32_t *q = (const int32_t *)w->q + row * pairs;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) s[r][g] = _mm512_setzero_ps();
    for (int pair = 0; pair < pairs; pair++) {
        __m512i keys[4];
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            keys[g] = _mm512_loadu_si512(k->groups[group + g] + pair * k->stride);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m512i both = _mm512_set1_epi32(q[r * pairs + pair]);
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) s[r][g] = dot_pairs(s[r][g], both, keys[g]);
        }
    }
    float *to = w->scores + row * SPAN + (k->first + group) * LANES;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) _mm512_store_ps(to + r * SPAN + g * LANES, s[r][g]);
}

static void score(tile *w, const span_keys *k) {
    int row = 0, group;
    for (; row + 6 <= w->num_rows; row += 6) {
        for (group = 0; group + 2 <= k->num_groups; group += 2) score_rows(w, row, k, group, 6, 2);
        if (group < k->num_groups) score_rows(w, row, k, group, 6, 1);
    }
    for (; row + 3 <= w->num_rows; row += 3) {
        for (group = 0; group + 4 <= k->num_groups; group += 4) score_rows(w, row, k, group, 3, 4);
        for (; group < k->num_groups; group++) score_rows(w, row, k, group, 3, 1);
    }
    for (; row < w->num_rows; row++) {
        for (group = 0; group + 4 <= k->num_groups; group += 4) score_rows(w, row, k, group, 1, 4);
        for (; group < k->num_groups; group++) score_rows(w, row, k, group, 1, 1);
    }
}

/* Turn a row's scores of keys first to end - 1, multiples of 16, into weights. */
static void weigh_row(tile *w, int row, const attention_task *t, int64_t first, int64_t end) {
    float *s = w->scores + row * SPAN + first % SPAN;
    int64_t position = w->position[row], oldest = 0;
    if (t->window && position >= t->window) oldest = position - t->window + 1;
    const __m512 lowest = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(t->scale);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 seen[SPAN / LANES];
    __m512 highest = lowest;
    int num = (int)((end - first) / LANES);
    for (int i = 0; i < num; i++) {
        __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first + i * LANES));
        seen[i] = _mm512_cmple_epi32_mask(key, _mm512_set1_epi32((int)position)) &
                  _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)oldest));
        __m512 x = _mm512_mul_ps(_mm512_load_ps(s + i * LANES), scale);
        x = _mm512_mask_mov_ps(lowest, seen[i], x);
        _mm512_store_ps(s + i * LANES, x);
        highest = _mm512_max_ps(highest, x);
    }
    float before = w->max[row], now = _mm512_reduce_max_ps(highest);
    if (now < before) now = before;
    __m512 total = _mm512_setzero_ps();
    for (int i = 0; i < num; i++) {
        __m512 x = exp_16(_mm512_sub_ps(_mm512_load_ps(s + i * LANES), _mm512_set1_ps(now)));
        x = _mm512_maskz_mov_ps(seen[i], x);
        _mm512_store_ps(s + i * LANES, x);
        total = _mm512_add_ps(total, x);
    }
    w->max[row] = now;
    /* The first span that a row sees has nothing to shrink. */
    float shrink = before == -INFINITY ? 0.0f : exp_1(before - now);
    w->total[row] = w->total[row] * shrink + _mm512_reduce_add_ps(total);
    if (shrink == 1.0f) return;
    float *sums = w->sums + row * w->head_dim;
    for (int d = 0; d < w->head_dim; d += LANES)
        _mm512_storeu_ps(sums + d,
                         _mm512_mul_ps(_mm512_loadu_ps(sums + d), _mm512_set1_ps(shrink)));
}

/* Add weighted values to 4 rows or 1, and 16 * num_vectors columns. */
INLINE void add_rows(tile *w, int row, int column, int at, int num_keys, const int rows,
                     const int num_vectors) {
    __m512 sums[4][4];
    const int D = w->head_dim;
    float *to = w->sums + row * D + column;
    const float *weights = w->scores + row * SPAN + at, *values = w->values + column;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; v++) sums[r][v] = _mm512_loadu_ps(to + r * D + v * LANES);
    for (int key = 0; key < num_keys; key++) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __m512 weight = _mm512_set1_ps(weights[r * SPAN + key]);
#pragma GCC unroll 4
            for (int v = 0; v < num_vectors; v++)
                sums[r][v] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(values + key * D + v * LANES),
                                             sums[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < num_vectors; v++) _mm512_storeu_ps(to + r * D + v * LANES, sums[r][v]);
}

static void add_values(tile *w, int at, int num_keys) {
    for (int column = 0; column < w->head_dim;) {
        int wide = column + 4 * LANES <= w->head_dim, row = 0;
        for (; row + 4 <= w->num_rows; row += 4)
            if (wide)
                add_rows(w, row, column, at, num_keys, 4, 4);
            else
                add_rows(w, row, column, at, num_keys, 4, 1);
        if (row + 3 <= w->num_rows && wide) add_rows(w, row, column, at, num_keys, 3, 4), row += 3;
        for (; row < w->num_rows; row++)
            if (wide)
                add_rows(w, row, column, at, num_keys, 1, 4);
            else
                add_rows(w, row, column, at, num_keys, 1, 1);
        column += wide ? 4 * LANES : LANES;
    }
}

/* Widen the values of 16 keys; those from `end` on do not exist and count as zeros. */
static void widen_values(float *to, const bf16 *from, int64_t first, int64_t end, int head_dim) {
    int num = end - first < LANES ? (int)(end - first) : LANES;
    for (int i = 0; i < num * head_dim; i += LANES)
        _mm512_storeu_ps(to + i, widen(_mm256_loadu_si256((const __m256i *)(from + i))));
    __builtin_memset(to + num * head_dim, 0, (size_t)((LANES - num) * head_dim) * sizeof(float));
}

/* Everything that a tile has to do with keys first to end - 1; they lie in one span. */
static void attend_span(tile *w, const attention_task *t, const chunk *c, int64_t head,
                        int64_t first, int64_t end) {
    const int64_t size = t->block_size, D = t->head_dim;
    const int64_t padded_end = (end + LANES - 1) / LANES * LANES;
    span_keys k = {.stride = size, .first = (int)(first % SPAN / LANES)};
    for (int64_t key = first; key < padded_end; key += LANES) {
        int64_t line = c->blocks[key / size] * t->num_kv_heads + head, slot = key % size;
        k.groups[k.num_groups++] = (const uint32_t *)(t->keys + line * size * D) + slot;
        widen_values(w->values + (key - first) * D, t->values + (line * size + slot) * D, key, end,
                     (int)D);
    }
    score(w, &k);
    for (int row = 0; row < w->num_rows; row++) {
        int64_t oldest = t->window ? w->position[row] - t->window + 1 : 0;
        if (w->position[row] < first || oldest >= padded_end)
            for (int64_t key = first; key < padded_end; key++)
                w->scores[row * SPAN + key % SPAN] = 0;
        else
            weigh_row(w, row, t, first, padded_end);
    }
    add_values(w, (int)(first % SPAN), (int)(padded_end - first));
}

static void start_tile(tile *w, const attention_task *t, const chunk *c, int64_t token,
                       int64_t head) {
    const int group = (int)(t->num_heads / t->num_kv_heads), D = (int)t->head_dim;
    int64_t num_tokens =
        c->num_tokens - token < t->tile_tokens ? c->num_tokens - token : t->tile_tokens;
    w->num_rows = (int)num_tokens * group;
    w->head_dim = D;
    for (int row = 0; row < w->num_rows; row++) {
        int64_t line = c->first_line + token + row / group;
        const bf16 *from = t->queries + (line * t->num_heads + head * group + row % group) * D;
        __builtin_memcpy(w->q + row * D, from, (size_t)D * sizeof(bf16));
        w->position[row] = c->start + token + row / group;
        w->max[row] = -INFINITY;
        w->total[row] = 0;
    }
    __builtin_memset(w->sums, 0, (size_t)(w->num_rows * D) * sizeof(float));
}

static void finish_tile(const tile *w, const attention_task *t, const chunk *c, int64_t token,
                        int64_t head) {
    const int group = (int)(t->num_heads / t->num_kv_heads), D = (int)t->head_dim;
    for (int row = 0; row < w->num_rows; row++) {
        int64_t line = c->first_line + token + row / group;
        bf16 *to = t->out + (line * t->num_heads + head * group + row % group) * D;
        __m512 share = _mm512_set1_ps(1.0f / w->total[row]);
        for (int d = 0; d < D; d += LANES)
            store_bf16(to + d, ALL_LANES,
                       _mm512_mul_ps(_mm512_loadu_ps(w->sums + row * D + d), share));
    }
}

static void attention_chunks(void *argument, int first_item, int last_item) {
    const attention_task *t = argument;
    tile w;
    for (int item = first_item; item < last_item; item++) {
        int64_t index = item / t->num_kv_heads, head = item % t->num_kv_heads;
        const chunk *c = &t->chunks[t->tile_chunk[index]];
        int64_t token = t->tile_start[index];
        start_tile(&w, t, c, token, head);
        int64_t end = w.position[w.num_rows - 1] + 1, oldest = 0;
        if (t->window && w.position[0] >= t->window) oldest = w.position[0] - t->window + 1;
        for (int64_t key = oldest / LANES * LANES; key < end;) {
            int64_t next = (key / SPAN + 1) * SPAN;
            attend_span(&w, t, c, head, key, next < end ? next : end);
            key = next;
        }
        finish_tile(&w, t, c, token, head);
    }
}
