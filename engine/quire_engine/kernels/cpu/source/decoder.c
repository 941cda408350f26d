/* The decoder of model/decoder.py for bfloat16 on CPUs with AVX512-BF16: a step in one call.
 *
 * Hidden states, sums, scores and weights of attention and logits are float32; weights, the inputs
 * of products and the cache are bfloat16. `library.py` mirrors the structs and functions below.
 */
#ifdef __linux__
#include <malloc.h>
#endif

#include "attention.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"
#include "vector.h"

typedef struct {
    const float *input_norm, *mlp_norm, *q_norm, *k_norm; /* the last two: NULL if there is none */
    const float *cos, *sin;
    bf16 *keys, *values;
    int64_t rotary_dim, window;
    linear qkv, out, gate_up, down;
} layer;

typedef struct {
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim,
        block_size;
    float norm_eps, scale;
    const layer *layers;
    const bf16 *embedding;
    const float *norm;
    linear head;
} model;

/* Memory of a step; the caller's, with room for its lines. */
typedef struct {
    float *hidden;  /* (lines, E) */
    float *qkv;     /* (lines, (H + 2N) * D) */
    bf16 *x;        /* (lines, E) */
    bf16 *queries;  /* (lines, H, D) */
    bf16 *attended; /* (lines, H, D) */
    bf16 *gated;    /* (lines, intermediate size) */
    int32_t *line_chunk;
    int32_t *tile_chunk, *tile_start; /* (lines) each: a tile has one line at least */
} scratch;

static void norm_lines(pool *p, const model *m, const scratch *s, const float *weight,
                       const int64_t *lines, int64_t num_lines) {
    norm_task t = {.x = s->hidden,
                   .lines = lines,
                   .weight = weight,
                   .y = s->x,
                   .size = m->hidden_size,
                   .num_lines = num_lines,
                   .eps = m->norm_eps};
    pool_run(p, norm_chunks, &t, num_line_chunks(num_lines));
}

static void store_lines(pool *p, const model *m, const layer *l, const scratch *s,
                        const chunk *chunks, int64_t num_lines) {
    store_task t = {.qkv = s->qkv,
                    .queries = s->queries,
                    .keys = l->keys,
                    .values = l->values,
                    .chunks = chunks,
                    .line_chunk = s->line_chunk,
                    .cos = l->cos,
                    .sin = l->sin,
                    .q_norm = l->q_norm,
                    .k_norm = l->k_norm,
                    .num_heads = m->num_heads,
                    .num_kv_heads = m->num_kv_heads,
                    .head_dim = m->head_dim,
                    .block_size = m->block_size,
                    .rotary_dim = l->rotary_dim,
                    .num_lines = num_lines,
                    .eps = m->norm_eps};
    pool_run(p, store_chunks, &t, num_line_chunks(num_lines));
}

static int64_t tile_tokens(const model *m) {
    int64_t tokens = TILE / (m->num_heads / m->num_kv_heads);
    return tokens < 1 ? 1 : tokens;
}

static void attend(pool *p, const model *m, const layer *l, const scratch *s, const chunk *chunks,
                   int64_t num_tiles) {
    attention_task t = {.num_heads = m->num_heads,
                        .num_kv_heads = m->num_kv_heads,
                        .head_dim = m->head_dim,
                        .block_size = m->block_size,
                        .window = l->window,
                        .scale = m->scale,
                        .keys = l->keys,
                        .values = l->values,
                        .queries = s->queries,
                        .out = s->attended,
                        .chunks = chunks,
                        .tile_chunk = s->tile_chunk,
                        .tile_start = s->tile_start,
                        .tile_tokens = tile_tokens(m)};
    pool_run(p, attention_chunks, &t, (int)(num_tiles * m->num_kv_heads));
}

static void run_layer(pool *p, const model *m, const layer *l, const scratch *s,
                      const chunk *chunks, int64_t num_lines, int64_t num_tiles) {
    norm_lines(p, m, s, l->input_norm, NULL, num_lines);
    run_linear(p, &l->qkv, s->x, num_lines, s->qkv, l->qkv.num_outputs);
    store_lines(p, m, l, s, chunks, num_lines);
    attend(p, m, l, s, chunks, num_tiles);
    run_linear(p, &l->out, s->attended, num_lines, s->hidden, m->hidden_size);
    norm_lines(p, m, s, l->mlp_norm, NULL, num_lines);
    run_linear(p, &l->gate_up, s->x, num_lines, s->gated, m->intermediate_size);
    run_linear(p, &l->down, s->gated, num_lines, s->hidden, m->hidden_size);
}

static int64_t lay_out(const model *m, const scratch *s, const chunk *chunks, int64_t num_chunks) {
    int64_t num_tiles = 0, step = tile_tokens(m);
    for (int64_t i = 0; i < num_chunks; i++) {
        for (int64_t token = 0; token < chunks[i].num_tokens; token++)
            s->line_chunk[chunks[i].first_line + token] = (int32_t)i;
        /* The last tiles see most keys: first come, first served leaves the short ones to the end.
         */
        for (int64_t token = (chunks[i].num_tokens - 1) / step * step; token >= 0; token -= step) {
            s->tile_chunk[num_tiles] = (int32_t)i;
            s->tile_start[num_tiles++] = (int32_t)token;
        }
    }
    return num_tiles;
}

/* Compute the tokens of a step; hidden states, not yet normed for the head, go to s->hidden. */
void quire_forward(pool *p, const model *m, const scratch *s, const chunk *chunks,
                   int64_t num_chunks) {
    const chunk *last = &chunks[num_chunks - 1];
    int64_t num_lines = last->first_line + last->num_tokens;
    int64_t num_tiles = lay_out(m, s, chunks, num_chunks);
    embed_task t = {.embedding = m->embedding,
                    .x = s->hidden,
                    .chunks = chunks,
                    .line_chunk = s->line_chunk,
                    .size = m->hidden_size,
                    .num_lines = num_lines};
    pool_run(p, embed_chunks, &t, num_line_chunks(num_lines));
    for (int64_t i = 0; i < m->num_layers; i++)
        run_layer(p, m, &m->layers[i], s, chunks, num_lines, num_tiles);
}

/* Write the logits of some lines of s->hidden, (num_lines, V). */
void quire_logits(pool *p, const model *m, const scratch *s, const int64_t *lines,
                  int64_t num_lines, float *logits) {
    norm_lines(p, m, s, m->norm, lines, num_lines);
    run_linear(p, &m->head, s->x, num_lines, logits, m->head.num_outputs);
}

/* One linear by itself, for tests and measurements. */
void quire_linear(pool *p, const linear *l, const bf16 *x, int64_t num_rows, void *y,
                  int64_t y_stride) {
    run_linear(p, l, x, num_rows, y, y_stride);
}

/* Lay out a weight (O, I) as `linear` has it; `gated`: its first half are gates, then ups. */
void quire_pack(pool *p, const bf16 *weight, int64_t num_outputs, int64_t num_inputs, int gated,
                uint32_t *packed) {
    pack_task t = {.weight = (const uint32_t *)weight,
                   .packed = packed,
                   .num_outputs = num_outputs,
                   .num_pairs = num_inputs / 2,
                   .gated = gated};
    int64_t num_padded =
        gated ? (num_outputs / 2 + LANES - 1) / LANES : (num_outputs + BLOCK - 1) / BLOCK;
    pool_run(p, pack_chunks, &t, (int)num_padded);
}

pool *quire_pool_create(int num_threads) { return pool_create(num_threads); }

void quire_pool_destroy(pool *p) { pool_destroy(p); }

/* Give memory that was freed back to the system: that of weights which are packed by now. */
void quire_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
