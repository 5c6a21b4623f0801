/* Pixels whose channels are adjacent, in x and in y: the products of rows.h for many out channels, and a product for up
   to four, which would fill few lanes: pixels are transposed in registers and lie on the lanes.

   The file of an instruction set defines ROWS_TILES(X); and HALF_TILES(X) with half_vec and its operations if half a
   vector is worth a type of its own. */

/* Bytes by which x is prefetched: lines arrive from memory before they are read, and stay in the first-level cache. */
enum { ROWS_AHEAD = 8192, MAX_ROWS_MR = 8 };

#define ROWS(name) name
#define ROWS_LANES LANES
#include "kernels/rows.h"
#undef ROWS
#undef ROWS_LANES
#undef ROWS_TILES

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

/* A quad of channels is read at a time; the last one may overlap the one before, whose channels are not added again. */
INLINE void multiply_few_of(const rows_t *record, const int OUTS) {
    enum { LINE = 64 };
    const rows_t p = *record; /* a copy: as far as a compiler knows, stores to y may change the record */
    const vec low = splat(p.low), high = splat(p.high);
    FOR_VECTORS(i, p.pixels) {
        const char *x = p.x + i * p.x_step, *ahead = x + ROWS_AHEAD;
        const float *weights = p.weights;
        char *y = p.y + i * p.y_step;
        vec sum[4], plane[4];
        UNROLL for (int o = 0; o < OUTS; o++) sum[o] = splat(0.0f);
        for (ptrdiff_t k = 0; k + 4 <= p.k; k += 4) {
            UNROLL for (int line = 0; line < 4 * (int)sizeof(vec); line += LINE) __builtin_prefetch(ahead + line);
            ahead += 4 * sizeof(vec);
            load_four(x + k * (ptrdiff_t)sizeof(float), p.x_step, plane);
            UNROLL for (int j = 0; j < 4; j++) {
                UNROLL for (int o = 0; o < OUTS; o++) sum[o] = fmadd(splat(weights[o]), plane[j], sum[o]);
                weights += OUTS;
            }
        }
        if (p.k % 4) {
            load_four(x + (p.k - 4) * (ptrdiff_t)sizeof(float), p.x_step, plane);
            UNROLL for (int j = 1; j < 4; j++) {
                if (j < 4 - p.k % 4) continue;
                UNROLL for (int o = 0; o < OUTS; o++) sum[o] = fmadd(splat(weights[o]), plane[j], sum[o]);
                weights += OUTS;
            }
        }
        UNROLL for (int o = 0; o < OUTS; o++) sum[o] = clip(sum[o] + splat(p.bias[o]), low, high);
        if (OUTS == 1 || p.y_step == sizeof(float)) {
            UNROLL for (int o = 0; o < OUTS; o++) store(y + o * p.y_channel_step, sum[o]);
        } else {
            store_planes(y, sum, OUTS);
        }
    }
}

static void multiply_few(const rows_t *p) {
    switch (p->outs) {
        case 1: multiply_few_of(p, 1); break;
        case 2: multiply_few_of(p, 2); break;
        case 3: multiply_few_of(p, 3); break;
        default: multiply_few_of(p, 4); break;
    }
}

static void multiply_rows(const rows_t *p) {
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
