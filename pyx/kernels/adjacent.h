/* Pixels whose channels are adjacent, in x and mostly in y, are multiplied in the order in which they lie: by pixels.h
   if there are few channels on both sides, by rows.h if there are more out channels, else by multiply_few() below.

   The file of an instruction set defines ROWS_TILES(X); HALF_TILES(X) with half_vec and its operations if half a vector
   is worth a type of its own; and QUAD_OUTS(X), numbers of out channels in a tile of rows for which multiply_quads() is
   faster. */

/* Bytes behind the pixels that are multiplied from which on x is prefetched: lines arrive from memory before they are
   read, and stay in the first-level cache. Hardware does as well for few channels, whose lines are read in order. */
enum { ROWS_AHEAD = 2048, FEW_AHEAD_MIN_K = 8, MAX_ROWS_MR = 8, MAX_QUAD_OUTS = 12 };
enum { MOST_AT_ONCE = LANES > MAX_ROWS_MR ? LANES : MAX_ROWS_MR }; /* pixels */

/* A function of its own, whose loops have all registers. */
#define APART __attribute__((noinline))

/* The fields of adjacent_t for the product of a few pixels: x is float32, and so is y. */
typedef struct {
    const char *x;
    ptrdiff_t x_step, k;
    const char *ahead;    /* pixels in memory, of which are prefetched: */
    ptrdiff_t ahead_at;   /* during the first pixel those from this byte on, */
    ptrdiff_t ahead_step; /* so many bytes further during the next one, */
    ptrdiff_t ahead_most; /* and none from further than this byte on */
    const float *weights;
    ptrdiff_t outs, pixels;
    char *y;
    ptrdiff_t y_step, y_channel_step;
    int slack;
    int past_caches; /* y has no gaps and lies at a multiple of 16 bytes; rows are whole vectors of one tile */
    const float *bias;
    int clips;
    float low, high; /* the clip */
} rows_t;

/* What is prefetched from the i-th pixel on. */
INLINE const char *ahead_of(const rows_t *p, ptrdiff_t i) {
    return p->ahead + smaller_of(p->ahead_at + i * p->ahead_step, p->ahead_most);
}

#define ROWS(name) name
#define ROWS_LANES LANES
#include "kernels/rows.h"
#undef ROWS
#undef ROWS_LANES
#undef ROWS_TILES
_Static_assert(sizeof rows_kernel / sizeof *rows_kernel == ROWS_VECTORS + 1, "rows of each number of vectors");

#ifdef HALF_TILES
typedef half_vec loose_half_vec __attribute__((aligned(1), may_alias));

INLINE half_vec half_load(const void *p) {
    return *(const loose_half_vec *)p;
}

INLINE void half_store(void *p, half_vec v) {
    *(loose_half_vec *)p = v;
}

#define ROWS(name) half_##name
#define ROWS_LANES (LANES / 2)
#define ROWS_TILES HALF_TILES
#include "kernels/rows.h"
#undef ROWS
#undef ROWS_LANES
#undef ROWS_TILES
#endif

/* Pixels on the lanes: what is added up of at least four in channels for LANES pixels and OUTS out channels, whose
   weights are WEIGHT_STEP floats from channel to channel. A quad of channels is read at a time and transposed in
   registers; the last one may overlap the one before, whose channels are not added again. */
INLINE void sum_quads(const rows_t *p, const char *x, const float *weights, ptrdiff_t out, const char *ahead,
                      ptrdiff_t ahead_bytes, const int WEIGHT_STEP, const int OUTS, vec *sum) {
    enum { LINE = 64 };
    const vec low = splat(p->low), high = splat(p->high);
    vec plane[4];
    UNROLL for (int o = 0; o < OUTS; o++) sum[o] = splat(0.0f);
    for (ptrdiff_t k = 0; k < p->k; k += 4) {
        const int again = k + 4 <= p->k ? 0 : (int)(k + 4 - p->k); /* channels of the quad before */
        UNROLL for (int line = 0; line < 4 * (int)sizeof(vec); line += LINE) {
            if (line < ahead_bytes) __builtin_prefetch(ahead + line);
        }
        ahead += ahead_bytes;
        load_four(x + (k - again) * (ptrdiff_t)sizeof(float), p->x_step, plane);
        UNROLL for (int j = 0; j < 4; j++) {
            if (j < again) continue;
            UNROLL for (int o = 0; o < OUTS; o++) sum[o] = fmadd(splat(weights[o]), plane[j], sum[o]);
            weights += WEIGHT_STEP;
        }
    }
    UNROLL for (int o = 0; o < OUTS; o++) sum[o] = clip(sum[o] + splat(p->bias[out + o]), low, high);
}

/* What is prefetched for each quad of channels of LANES pixels. */
INLINE ptrdiff_t ahead_of_quad(const rows_t *p) {
    return p->k >= FEW_AHEAD_MIN_K ? LANES * p->ahead_step / (p->k / 4) : 0;
}

/* Up to FEW_OUTS out channels would fill few lanes, so pixels lie on them: at least LANES of them. */
INLINE void multiply_few_of(const rows_t *record, const int OUTS) {
    const rows_t p = *record; /* a copy: as far as a compiler knows, stores to y may change the record */
    const ptrdiff_t ahead_bytes = ahead_of_quad(&p);
    const ptrdiff_t second = p.past_caches ? first_past_caches(p.y, p.y_step) : 0;
    FOR_VECTORS_FROM(i, p.pixels, second) {
        char *y = p.y + i * p.y_step;
        vec sum[4];
        sum_quads(&p, p.x + i * p.x_step, p.weights, 0, ahead_of(&p, i), ahead_bytes, OUTS, OUTS, sum);
        if (OUTS > 1 && p.y_step == sizeof(float)) {
            UNROLL for (int o = 0; o < OUTS; o++) store(y + o * p.y_channel_step, sum[o]);
        } else {
            store_planes(y, sum, OUTS, p.past_caches && is_past_caches_at(y));
        }
    }
}

static APART void multiply_few(const rows_t *p) {
    switch (p->outs) {
        case 1: multiply_few_of(p, 1); break;
        case 2: multiply_few_of(p, 2); break;
        case 3: multiply_few_of(p, 3); break;
        default: multiply_few_of(p, 4); break;
    }
}

#ifndef QUAD_OUTS
#define QUAD_OUTS(X)
#endif

/* The same for a tile of rows whose out channels leave many lanes of a vector unused: PIXELS >= LANES from FIRST on. */
INLINE void multiply_quads_of(const rows_t *record, ptrdiff_t first, ptrdiff_t pixels, ptrdiff_t out, const int OUTS) {
    const rows_t p = *record; /* a copy, as above */
    const ptrdiff_t ahead_bytes = ahead_of_quad(&p);
    FOR_VECTORS(n, pixels) {
        const ptrdiff_t i = first + n;
        char *y = p.y + i * p.y_step + out * (ptrdiff_t)sizeof(float);
        vec sum[MAX_QUAD_OUTS];
        sum_quads(&p, p.x + i * p.x_step, p.weights + out * p.k, out, ahead_of(&p, i), ahead_bytes, LANES, OUTS, sum);
        /* The last quad may overlap the one before. */
        UNROLL for (int o = 0; o < OUTS; o += 4) {
            const int from = o + 4 <= OUTS ? o : OUTS - 4;
            vec quad[4];
            UNROLL for (int j = 0; j < 4; j++) quad[j] = sum[from + j];
            store_four(y + from * (ptrdiff_t)sizeof(float), p.y_step, quad);
        }
    }
}

#define QUAD_CASE(OUTS) \
    case OUTS: multiply_quads_of(p, first, pixels, out, OUTS); return 1;

/* Returns 0 if rows are the faster way to multiply so many out channels or pixels. */
static APART int multiply_quads(const rows_t *p, ptrdiff_t first, ptrdiff_t pixels, ptrdiff_t out, ptrdiff_t outs) {
    if (p->k < 4 || pixels < LANES) return 0;
    switch (outs) {
        QUAD_OUTS(QUAD_CASE)
        default: return 0;
    }
}
#undef QUAD_CASE

static APART void multiply_rows(const rows_t *p) {
    enum { SHARED_PIXELS = 48, WIDTH = ROWS_VECTORS * LANES };
    const ptrdiff_t tiles = (p->outs + WIDTH - 1) / WIDTH;
    const int adjacent = p->y_step == p->outs * (ptrdiff_t)sizeof(float);
    /* Whole vectors of so many pixels may be written: behind each of them lies another pixel, or scratch. */
    const ptrdiff_t over = p->slack ? p->pixels : adjacent ? p->pixels - (LANES - 1 + p->outs - 1) / p->outs : 0;
    const ptrdiff_t at_once = tiles > 1 ? SHARED_PIXELS : p->pixels;
    for (ptrdiff_t i = 0; i < p->pixels; i += at_once) {
        const ptrdiff_t n = smaller_of(at_once, p->pixels - i);
        /* The last tile comes first, since it may write beyond its pixel. */
        for (ptrdiff_t tile = tiles - 1; tile >= 0; tile--) {
            const ptrdiff_t out = tile * WIDTH, outs = smaller_of(p->outs - out, WIDTH);
            if (multiply_quads(p, i, n, out, outs)) continue;
#ifdef HALF_TILES
            if (outs <= LANES / 2) {
                half_rows_kernel[1](p, i, n, over, out);
                continue;
            }
#endif
            rows_kernel[(outs + LANES - 1) / LANES](p, i, n, over, out);
        }
    }
}

/* Where a result that is far is put together, at the same places in cache lines. */
typedef struct {
    char *line;     /* of the result */
    ptrdiff_t from; /* bytes of the first line that are not part of the result */
    ptrdiff_t held; /* bytes that are put together behind `line` */
} far_t;

/* Stores the whole lines that are put together past the caches, or all at the end. */
INLINE void store_far(far_t *f, char *run, int end) {
    enum { LINE = 64 };
    const ptrdiff_t whole = f->held / LINE * LINE, ready = end ? f->held : whole;
    if (ready > f->from) {
        copy_past_caches(f->line + f->from, run + f->from, ready - f->from);
        f->from = 0;
    }
    memcpy(run, run + whole, LINE);
    f->line += whole;
    f->held -= whole;
}

/* Are rows of so many out channels whole vectors of a single tile? */
static int fills_a_tile(ptrdiff_t outs) {
#ifdef HALF_TILES
    if (outs == LANES / 2) return 1;
#endif
    return outs % LANES == 0 && outs <= ROWS_VECTORS * LANES;
}

/* Would loads of x wait for stores past the caches that were issued shortly before? As measured, loads do that overlap
   such a store in the low 12 bits of their addresses; but loads of whole lines not if both begin at the same place in 32
   bytes, and shorter vectors hardly. Pixels of as many bytes in x and y meet each other so throughout. */
static int loads_would_wait(const adjacent_t *a, int is_few) {
    enum { LINE = 64, PAGE = 4096, STORES_NEAR = 384 };
    const size_t behind = ((uintptr_t)a->y - (uintptr_t)a->x) % PAGE;
    if (a->x_step != a->y_step || behind <= 32 || behind >= STORES_NEAR) return 0;
    return !is_few || (sizeof(vec) == LINE && behind % 32 != 0);
}

static void multiply_adjacent(const adjacent_t *a) {
    enum { ONE = sizeof(float), LINE = 64, X_FLOATS = SUM_BLOCK * LANES, Y_FLOATS = 2048 };
    const int x_size = element_size(a->x_kind), y_size = element_size(a->y_kind);
    const int is_picture = a->k <= FEW_OUTS && a->outs <= FEW_OUTS && !a->planes, is_few = a->outs <= FEW_OUTS;
    const int x_adjacent = a->x_step == a->k * x_size, y_adjacent = a->y_step == a->outs * y_size && !a->planes;
    const int y_bytes = is_picture && y_adjacent && a->y_kind == KIND_UINT8 && a->low <= 0.0f;
    /* Pictures of every native kind are multiplied in place, but to bytes only those of float32 and bytes. */
    const int x_fits = y_bytes ? a->x_kind == KIND_FLOAT32 || a->x_kind == KIND_UINT8 : a->x_kind < KIND_SWAPPED;
    const int in_place = is_picture ? x_adjacent && x_fits : a->x_kind == KIND_FLOAT32;
    /* Of float32, quads are stored past the caches at once unless the next loads would wait for it; parts of rows are
       stored into them, and narrow results line by line. */
    const int past_caches = a->far && y_adjacent && (is_few || (fills_a_tile(a->outs) && !a->stores_wait)) && a->y_kind == KIND_FLOAT32 &&
                            (uintptr_t)a->y % (4 * ONE) == 0 && !loads_would_wait(a, is_few);
    const int far = a->far && y_adjacent && a->y_kind != KIND_FLOAT32;
    const int direct = !far && (y_bytes || (a->y_kind == KIND_FLOAT32 && (y_adjacent || !is_few || a->planes)));
    const ptrdiff_t x_most = in_place ? PTRDIFF_MAX : X_FLOATS / a->k, y_most = direct ? PTRDIFF_MAX : Y_FLOATS / a->outs;
    const ptrdiff_t at_once = in_place && direct ? a->pixels : smaller_of(x_most, y_most) / LANES * LANES;
    float x_block[X_FLOATS] __attribute__((aligned(LINE))), y_block[Y_FLOATS + LANES] __attribute__((aligned(LINE)));
    char run[LINE + (Y_FLOATS + LANES) * ONE] __attribute__((aligned(LINE)));
    far_t f = {.line = a->y - ((uintptr_t)a->y & (LINE - 1)), .from = (uintptr_t)a->y & (LINE - 1)};
    f.held = f.from;
    for (ptrdiff_t i = 0; i < a->pixels; i += at_once) {
        const ptrdiff_t n = smaller_of(at_once, a->pixels - i), least = is_few && n < LANES ? LANES : n;
        const char *x = a->x + i * a->x_step;
        char *y = a->y + i * (a->planes ? y_size : a->y_step), *to = y;
        const int here = in_place && n == least, there = direct && n == least;
        if (!here) {
            if (n < least) memset(x_block + n * a->k, 0, (size_t)((least - n) * a->k) * ONE);
            if (x_adjacent) {
                widen_run(x_block, x, n * a->k, a->x_kind);
            } else {
                for (ptrdiff_t j = 0; j < n; j++) widen_run(x_block + j * a->k, x + j * a->x_step, a->k, a->x_kind);
            }
            x = (const char *)x_block;
        }
        if (!there) to = (char *)y_block;
        if (far && n == least && y_bytes) to = run + f.held;
        const int to_bytes = y_bytes && to != (char *)y_block;
        if (is_picture) {
            const pixels_t p = {.x = x,
                                .y = to,
                                .x_kind = here ? a->x_kind : KIND_FLOAT32,
                                .y_kind = to_bytes ? KIND_UINT8 : KIND_FLOAT32,
                                .k = a->k,
                                .outs = a->outs,
                                .pixels = least,
                                .weights = a->weights,
                                .bias = a->bias,
                                .low = a->low,
                                .high = a->high,
                                .past_caches = past_caches && there};
            multiply_pixels(&p);
        } else {
            const rows_t p = {.x = x,
                              .x_step = here ? a->x_step : a->k * ONE,
                              .k = a->k,
                              .ahead = a->x,
                              .ahead_at = here ? (i + LANES) * a->x_step + ROWS_AHEAD : (i + n) * a->x_step,
                              .ahead_step = a->x_step,
                              .ahead_most = larger_of(0, a->pixels - MOST_AT_ONCE) * a->x_step,
                              .weights = a->weights,
                              .outs = a->outs,
                              .pixels = least,
                              .y = to,
                              .y_step = a->planes ? ONE : there ? a->y_step : a->outs * ONE,
                              .y_channel_step = there ? a->y_channel_step : least * ONE,
                              .slack = a->slack || !there,
                              .past_caches = past_caches && there,
                              .bias = a->bias,
                              .clips = a->low > -INFINITY || a->high < INFINITY,
                              .low = a->low,
                              .high = a->high};
            if (is_few) {
                multiply_few(&p);
            } else {
                multiply_rows(&p);
            }
        }
        if (far) {
            if (to == (char *)y_block) narrow_run(run + f.held, y_block, n * a->outs, a->y_kind);
            f.held += n * a->outs * y_size;
            store_far(&f, run, i + n == a->pixels);
        } else if (to == (char *)y_block) {
            if (a->planes) {
                for (ptrdiff_t o = 0; o < a->outs; o++) {
                    narrow_run(y + o * a->y_channel_step, y_block + o * least, n, a->y_kind);
                }
            } else if (y_adjacent) {
                narrow_run(y, y_block, n * a->outs, a->y_kind);
            } else {
                for (ptrdiff_t j = 0; j < n; j++) narrow_run(y + j * a->y_step, y_block + j * a->outs, a->outs, a->y_kind);
            }
        }
    }
}
