/* The product for layers with few channels, whose time is spent on memory: all out channels of a run of pixels in one
   call, planes in and planes out. Pixels lie on the lanes, weights are broadcast. The order of summation is that of
   tile.h: a sum may rest in y between two channels of a block, which changes no bit of a float32. */

/* x that comes from memory is read a few channels at a time: hardware follows a few runs, and rows that lie a multiple
   of 4096 bytes apart, as most do, share the few places of one cache set. With more out channels it is read more
   channels at a time, since all sums are loaded and stored again for each part. */
enum { STREAMS = 4, MORE_STREAMS = 16 };

/* One tile of out channels and some in channels, for all pixels. */
typedef struct {
    const char *x;
    ptrdiff_t x_channel_step;
    ptrdiff_t k;
    const float *weights; /* [channel][row] */
    char *y;
    ptrdiff_t y_channel_step;
    ptrdiff_t pixels;
    const float *bias; /* NULL: the sum is not finished */
    float low, high;
    enum { SUM_IS_NEW, SUM_CONTINUES, SUM_IS_ADDED } sum; /* to what y holds */
    const char *prefetch;                                 /* the channels that are read next */
    ptrdiff_t prefetch_channels;
    const char *next; /* as in stream_t */
    ptrdiff_t next_bytes;
} stream_part_t;

/* MR rows of some vectors of pixels; `lanes` of them in the last vector count if PARTIAL. */
INLINE void stream_block(const stream_part_t *p, ptrdiff_t at, const int MR, const int VECTORS, const int PARTIAL,
                         int lanes) {
    const char *x = p->x + at;
    const float *weights = p->weights;
    char *y = p->y + at;
    vec sum[8][MAX_VECTORS];
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        const char *here = y + r * p->y_channel_step + v * (ptrdiff_t)sizeof(vec);
        sum[r][v] = p->sum != SUM_CONTINUES ? splat(0.0f) : PARTIAL ? load_first(here, lanes) : load(here);
    }
    for (ptrdiff_t k = 0; k < p->k; k++) {
        vec x_vec[MAX_VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            x_vec[v] = PARTIAL ? load_first(x + v * sizeof(vec), lanes) : load(x + v * sizeof(vec));
        }
        UNROLL for (int r = 0; r < MR; r++) {
            const vec weight = splat(weights[r]);
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = fmadd(weight, x_vec[v], sum[r][v]);
        }
        x += p->x_channel_step;
        weights += MR;
    }
    const vec low = splat(p->low), high = splat(p->high);
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        char *here = y + r * p->y_channel_step + v * (ptrdiff_t)sizeof(vec);
        vec out = sum[r][v];
        if (p->sum == SUM_IS_ADDED) out += PARTIAL ? load_first(here, lanes) : load(here);
        if (p->bias) out = clip(out + splat(p->bias[r]), low, high);
        if (PARTIAL) {
            store_first(here, out, lanes);
        } else {
            store(here, out);
        }
    }
}

INLINE void stream_tile(const stream_part_t *part, const int MR, const int VECTORS) {
    enum { ONE = sizeof(float), LINE = 64 };
    const stream_part_t p = *part; /* a copy: as far as a compiler knows, stores to y may change *part */
    const ptrdiff_t next_lines = (p.next_bytes * VECTORS * LANES / p.pixels + LINE - 1) / LINE;
    const char *next = p.next;
    ptrdiff_t i = 0;
    for (; i + VECTORS * LANES <= p.pixels; i += VECTORS * LANES) {
        for (ptrdiff_t line = 0; line < next_lines; line++, next += LINE) __builtin_prefetch(next);
        const char *ahead = p.prefetch + i * ONE;
        for (ptrdiff_t k = 0; k < p.prefetch_channels; k++, ahead += p.x_channel_step) {
            UNROLL for (int line = 0; line < VECTORS * (int)sizeof(vec); line += LINE) __builtin_prefetch(ahead + line);
        }
        stream_block(&p, i * ONE, MR, VECTORS, 0, LANES);
    }
    for (; i + LANES <= p.pixels; i += LANES) stream_block(&p, i * ONE, MR, 1, 0, LANES);
    if (i < p.pixels) stream_block(&p, i * ONE, MR, 1, 1, (int)(p.pixels - i));
}

#define STREAM_KERNEL(MR, VECTORS)                               \
    static void stream_##MR##x##VECTORS(const stream_part_t *p) { \
        stream_tile(p, MR, VECTORS);                             \
    }
#define STREAM_ENTRY(MR, VECTORS) [MR] = stream_##MR##x##VECTORS,

STREAM_TILES(STREAM_KERNEL)

static void stream(const stream_t *s) {
    static void (*const kernel[])(const stream_part_t *) = {STREAM_TILES(STREAM_ENTRY)};
    /* Sums of the second block of channels on are added to y, so they cannot rest there. */
    const ptrdiff_t streams = s->outs <= STREAMS ? STREAMS : MORE_STREAMS;
    const ptrdiff_t at_once = s->x_far && s->k <= SUM_BLOCK ? streams : SUM_BLOCK;
    const ptrdiff_t base = s->tiles ? s->outs / s->tiles : 0, taller = s->tiles ? s->outs % s->tiles : 0;
    ptrdiff_t channel = 0;
    stream_part_t p = {.x_channel_step = s->x_channel_step,
                       .y_channel_step = s->y_channel_step,
                       .pixels = s->pixels,
                       .next = s->next,
                       .next_bytes = s->next_bytes,
                       .low = s->low,
                       .high = s->high};
    do {
        p.k = smaller_of(s->k - channel, at_once);
        p.x = s->x + channel * s->x_channel_step;
        const int last = channel + p.k == s->k;
        p.sum = channel == 0 ? SUM_IS_NEW : s->k > SUM_BLOCK ? SUM_IS_ADDED : SUM_CONTINUES;
        p.prefetch = last ? s->x + s->pixels * (ptrdiff_t)sizeof(float) : p.x + p.k * s->x_channel_step;
        p.prefetch_channels = !s->x_far ? 0 : smaller_of(last ? s->k : s->k - channel - p.k, streams);
        for (ptrdiff_t tile = 0, row = 0; tile < s->tiles; tile++) {
            const ptrdiff_t mr = base + (tile < taller);
            p.weights = s->weights + row * s->k + channel * mr;
            p.bias = last && s->bias ? s->bias + row : NULL;
            p.y = s->y + row * s->y_channel_step;
            kernel[mr](&p);
            p.prefetch_channels = p.next_bytes = 0;
            row += mr;
        }
        channel += p.k;
    } while (channel < s->k);
}
