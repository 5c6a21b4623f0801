/* The product for layers with few channels, whose time is spent on memory: all out channels of a run of pixels in one
   call, planes in and planes out. Pixels lie on the lanes, weights are broadcast. The order of summation is that of
   tile.h: a sum may rest in y between two channels of a block, which changes no bit of a float32. */

/* x that is read in place from memory is read a few channels at a time: hardware follows a few runs, and rows that lie
   a multiple of 4096 bytes apart, as most do, share the few places of one cache set. */
enum { STREAMS = 4 };

/* One tile of out channels and some in channels, for all pixels. */
typedef struct {
    const char *x;
    ptrdiff_t x_channel_step;
    ptrdiff_t k;
    const float *weights; /* [channel][row] */
    char *y;
    ptrdiff_t y_channel_step;
    ptrdiff_t pixels;
    int first;         /* channels; else y holds the sum of those before */
    const float *bias; /* NULL: the sum is not finished */
    int clips;
    float low, high;
    const char *prefetch; /* the channels that are read next */
    ptrdiff_t prefetch_channels;
    const char *next; /* as in stream_t */
    ptrdiff_t next_rows, next_row_step, next_bytes;
} stream_part_t;

/* MR rows of some vectors of pixels; `lanes` of them in the last vector count if PARTIAL. */
INLINE void stream_block(const stream_part_t *p, ptrdiff_t at, const int MR, const int VECTORS, const int PARTIAL,
                         int lanes) {
    const char *x = p->x + at;
    const float *weights = p->weights;
    char *y = p->y + at;
    vec sum[STREAM_MR][MAX_VECTORS];
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        const char *here = y + r * p->y_channel_step + v * (ptrdiff_t)sizeof(vec);
        sum[r][v] = p->first ? splat(0.0f) : PARTIAL ? load_first(here, lanes) : load(here);
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
    /* Through memory, or compilers keep both in registers during the loop, and spill pixels. */
    float bounds[2] = {p->low, p->high};
    __asm__ volatile("" : "+m"(bounds));
    const vec low = splat(bounds[0]), high = splat(bounds[1]);
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        char *here = y + r * p->y_channel_step + v * (ptrdiff_t)sizeof(vec);
        vec out = sum[r][v];
        if (p->bias) out += splat(p->bias[r]);
        if (p->clips) out = clip(out, low, high);
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
    const ptrdiff_t at_once = s->x_far ? STREAMS : s->k;
    const ptrdiff_t base = s->tiles ? s->outs / s->tiles : 0, taller = s->tiles ? s->outs % s->tiles : 0;
    stream_part_t p = {.x_channel_step = s->x_channel_step,
                       .y_channel_step = s->y_channel_step,
                       .pixels = s->pixels,
                       .next = s->next,
                       .next_rows = s->next_rows,
                       .next_row_step = s->next_row_step,
                       .next_bytes = s->next_bytes,
                       .low = s->low,
                       .high = s->high};
    for (ptrdiff_t channel = 0; channel < s->k; channel += at_once) {
        p.k = smaller_of(s->k - channel, at_once);
        p.x = s->x + channel * s->x_channel_step;
        p.first = s->first_k + channel == 0;
        const int last = channel + p.k == s->k;
        const int finishes = s->bias && last && s->first_k + s->k == s->all_k;
        if (s->x_far) {
            p.prefetch = last ? s->x + s->pixels * (ptrdiff_t)sizeof(float) : p.x + p.k * s->x_channel_step;
            p.prefetch_channels = smaller_of(last ? s->k : s->k - channel - p.k, STREAMS);
        }
        for (ptrdiff_t tile = 0, row = 0; tile < s->tiles; tile++) {
            const ptrdiff_t mr = base + (tile < taller);
            p.weights = s->weights + row * s->all_k + (s->first_k + channel) * mr;
            p.bias = finishes ? s->bias + row : NULL;
            p.clips = finishes && (s->low > -INFINITY || s->high < INFINITY);
            p.y = s->y + row * s->y_channel_step;
            kernel[mr](&p);
            p.prefetch_channels = p.next_rows = 0;
            row += mr;
        }
    }
}
