/* The product for layers with few channels, whose time is spent on memory: all out channels of a run of pixels in one
   call, planes in and planes out. Pixels lie on the lanes, weights are broadcast. The order of summation is that of
   tile.h: a sum may rest in memory between two channels of a block, which changes no bit of a float32. */

/* x that is read in place from memory: up to FEW_STREAMS channels at a time, else STREAMS of them in long runs. Rows
   that lie a multiple of 4096 bytes apart, as most do, share the places of few cache sets: more of them would evict
   what hardware prefetches. The sums of each run are read and written once for so many channels. */
enum { FEW_STREAMS = 16, STREAMS = 8 };

/* One tile of out channels and some in channels, for all pixels. */
typedef struct {
    const char *x;
    int x_kind, y_kind;
    ptrdiff_t x_channel_step;
    ptrdiff_t k;
    const float *weights; /* [channel][row] */
    char *y;
    ptrdiff_t y_channel_step;
    char *sums; /* of the channels before, and these unless they are the last ones */
    ptrdiff_t sums_channel_step;
    ptrdiff_t pixels;
    int first;         /* channels: nothing is summed yet */
    const float *bias; /* NULL: the sum is not finished */
    int clips, y_far;
    float low, high;
    const char *next; /* as in stream_t */
    ptrdiff_t next_rows, next_row_step, next_bytes;
} stream_part_t;

/* Some vectors of pixels of one channel, from pixel `at` on; `lanes` of them in the last vector count if PARTIAL. */
INLINE void stream_load(const char *row, ptrdiff_t at, vec *v, int kind, const int VECTORS, const int PARTIAL,
                        const int IS_FLOAT, int lanes) {
    const int size = IS_FLOAT ? (int)sizeof(float) : element_size(kind);
    const char *from = row + at * size;
    if (IS_FLOAT && PARTIAL) {
        v[0] = load_first(from, lanes);
    } else if (IS_FLOAT) {
    UNROLL for (int i = 0; i < VECTORS; i++) v[i] = load(from + i * sizeof(vec));
    } else if (PARTIAL) {
        char few[sizeof(vec)] = {0};
        memcpy(few, from, (size_t)(lanes * size));
        load_vectors(few, v, 1, kind);
    } else {
        load_vectors(from, v, VECTORS, kind);
    }
}

/* MR rows of some vectors of pixels from pixel `at` on. IS_FLOAT: x and y are float32. */
INLINE void stream_block(const stream_part_t *p, ptrdiff_t at, const int MR, const int VECTORS, const int PARTIAL,
                         const int IS_FLOAT, int lanes) {
    enum { ONE = sizeof(float) };
    const char *x = p->x;
    const float *weights = p->weights;
    char *sums = p->sums + at * ONE;
    vec sum[STREAM_MR][MAX_VECTORS];
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        const char *here = sums + r * p->sums_channel_step + v * (ptrdiff_t)sizeof(vec);
        sum[r][v] = p->first ? splat(0.0f) : PARTIAL ? load_first(here, lanes) : load(here);
    }
    for (ptrdiff_t k = 0; k < p->k; k++) {
        vec x_vec[MAX_VECTORS];
        stream_load(x, at, x_vec, p->x_kind, VECTORS, PARTIAL, IS_FLOAT, lanes);
        UNROLL for (int r = 0; r < MR; r++) {
            const vec weight = splat(weights[r]);
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = fmadd(weight, x_vec[v], sum[r][v]);
        }
        x += p->x_channel_step;
        weights += MR;
    }
    const int finishes = p->bias != NULL, narrows = !IS_FLOAT && finishes && p->y_kind != KIND_FLOAT32;
    const int size = narrows ? element_size(p->y_kind) : ONE;
    char *y = finishes ? p->y + at * size : sums;
    const ptrdiff_t y_channel_step = finishes ? p->y_channel_step : p->sums_channel_step;
    /* Through memory, or compilers keep both in registers during the loop, and spill pixels. */
    float bounds[2] = {p->low, p->high};
    __asm__ volatile("" : "+m"(bounds));
    const vec low = splat(bounds[0]), high = splat(bounds[1]);
    UNROLL for (int r = 0; r < MR; r++) {
        UNROLL for (int v = 0; v < VECTORS; v++) {
            if (finishes) sum[r][v] += splat(p->bias[r]);
            if (p->clips) sum[r][v] = clip(sum[r][v], low, high);
        }
        char *row = y + r * y_channel_step;
        if (narrows && PARTIAL) {
            char few[sizeof(vec)];
            store_vectors(few, sum[r], 1, p->y_kind);
            memcpy(row, few, (size_t)(lanes * size));
        } else if (narrows) {
            store_vectors(row, sum[r], VECTORS, p->y_kind);
        } else {
            UNROLL for (int v = 0; v < VECTORS; v++) {
                char *here = row + v * (ptrdiff_t)sizeof(vec);
                if (PARTIAL) {
                    store_first(here, sum[r][v], lanes);
                } else if (finishes && p->y_far && VECTORS * sizeof(vec) % 64 == 0) {
                    store_past_caches(here, sum[r][v]);
                } else {
                    store(here, sum[r][v]);
                }
            }
        }
    }
}

INLINE void stream_tile(const stream_part_t *part, const int MR, const int VECTORS, const int IS_FLOAT) {
    enum { LINE = 64 };
    const stream_part_t p = *part; /* a copy: as far as a compiler knows, stores to y may change *part */
    const ptrdiff_t next_lines = (p.next_rows * p.next_bytes * VECTORS * LANES / p.pixels + LINE - 1) / LINE;
    const char *next = p.next;
    ptrdiff_t next_rows = p.next_rows, next_at = 0;
    ptrdiff_t i = 0;
    for (; i + VECTORS * LANES <= p.pixels; i += VECTORS * LANES) {
        for (ptrdiff_t line = 0; line < next_lines && next_rows > 0; line++) {
            __builtin_prefetch(next + next_at);
            next_at += LINE;
            if (next_at >= p.next_bytes) next_at = 0, next += p.next_row_step, next_rows--;
        }
        stream_block(&p, i, MR, VECTORS, 0, IS_FLOAT, LANES);
    }
    for (; i + LANES <= p.pixels; i += LANES) stream_block(&p, i, MR, 1, 0, IS_FLOAT, LANES);
    if (i < p.pixels) stream_block(&p, i, MR, 1, 1, IS_FLOAT, (int)(p.pixels - i));
}

#define STREAM_KERNEL(MR, VECTORS)                                 \
    static void stream_##MR##x##VECTORS(const stream_part_t *p) {  \
        stream_tile(p, MR, VECTORS, 1);                            \
    }                                                              \
    static void stream_any_##MR##x##VECTORS(const stream_part_t *p) { \
        stream_tile(p, MR, VECTORS, 0);                            \
    }
#define STREAM_ENTRY(MR, VECTORS) [0][MR] = stream_any_##MR##x##VECTORS, [1][MR] = stream_##MR##x##VECTORS,

STREAM_TILES(STREAM_KERNEL)

/* All tiles of out channels, for some in channels of a run of pixels, whose sums lie from `sums` on. */
INLINE void stream_tiles(const stream_t *s, stream_part_t *p, ptrdiff_t channel, ptrdiff_t first, ptrdiff_t pixels,
                         char *sums) {
    static void (*const kernel[2][STREAM_MR + 1])(const stream_part_t *) = {STREAM_TILES(STREAM_ENTRY)};
    const int is_float = s->x_kind == KIND_FLOAT32 && s->y_kind == KIND_FLOAT32;
    const ptrdiff_t base = s->tiles ? s->outs / s->tiles : 0, taller = s->tiles ? s->outs % s->tiles : 0;
    const int finishes = s->bias && s->first_k + channel + p->k == s->all_k;
    p->pixels = pixels;
    p->first = s->first_k + channel == 0;
    p->clips = finishes && (s->low > -INFINITY || s->high < INFINITY);
    p->x = s->x + channel * s->x_channel_step + first * element_size(s->x_kind);
    p->y_channel_step = s->y_gathered ? s->sums_channel_step : s->y_channel_step;
    for (ptrdiff_t tile = 0, row = 0; tile < s->tiles; tile++) {
        const ptrdiff_t mr = base + (tile < taller);
        p->weights = s->weights + row * s->all_k + (s->first_k + channel) * mr;
        p->bias = finishes ? s->bias + row : NULL;
        p->sums = sums + row * s->sums_channel_step;
        p->y = s->y_gathered ? p->sums : s->y + row * s->y_channel_step + first * element_size(s->y_kind);
        kernel[is_float][mr](p);
        p->next_rows = 0;
        row += mr;
    }
}

static void stream(const stream_t *s) {
    enum { ONE = sizeof(float) };
    const ptrdiff_t channels = s->x_far && s->k > FEW_STREAMS ? STREAMS : s->k;
    const ptrdiff_t run = s->y_gathered || (s->tiles > 1 && s->next_rows == 0) ? SHARED_RUN : s->pixels;
    /* Results that are put together are stored run by run, unless sums rest there from some channels to the
       next. */
    const ptrdiff_t held = s->y_gathered && channels == s->k ? 0 : ONE;
    stream_part_t p = {.x_kind = s->x_kind,
                       .y_kind = s->y_kind,
                       .x_channel_step = s->x_channel_step,
                       .sums_channel_step = s->sums_channel_step,
                       .y_far = s->y_far,
                       .next = s->next,
                       .next_rows = s->next_rows,
                       .next_row_step = s->next_row_step,
                       .next_bytes = s->next_bytes,
                       .low = s->low,
                       .high = s->high};
    for (ptrdiff_t channel = 0; channel < s->k; channel += channels) {
        p.k = smaller_of(s->k - channel, channels);
        for (ptrdiff_t i = 0; i < s->pixels; i += run) {
            const ptrdiff_t n = smaller_of(run, s->pixels - i);
            char *sums = s->sums + i * held;
            stream_tiles(s, &p, channel, i, n, sums);
            for (ptrdiff_t o = 0; s->y_gathered && p.bias && o < s->outs; o++) {
                copy_past_caches(s->y + o * s->y_channel_step + i * ONE, sums + o * s->sums_channel_step, n * ONE);
            }
        }
    }
}
