/* The product for few out channels of pixels whose channels are adjacent: they are multiplied where they lie, in the
   order in which they lie, so that memory is read as one stream while sums are computed. In channels are broadcast and
   out channels lie on the lanes. The order of summation is that of tile.h.

   Included for each vector type that rows of the result are made of, with
     ROWS(name)       the type's version of a name: vec and its operations, and of the functions here
     ROWS_LANES       its lanes
     ROWS_TILES(X)    X(VECTORS, MR) for each number of vectors of out channels; MR pixels are multiplied at a time */

/* Stores the rows of MR pixels; whole vectors of them if OVER: what they write beyond a pixel is written again. */
INLINE void ROWS(multiply_some)(const rows_t *p, const char *x, const float *weights, ptrdiff_t out, char *y,
                                const char *ahead, ptrdiff_t ahead_step, const int VECTORS, const int MR, int over) {
    ROWS(vec) sum[MAX_ROWS_MR][ROWS_VECTORS];
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = ROWS(splat)(0.0f);
    for (ptrdiff_t k = 0; k < p->k; k++) {
        ROWS(vec) weight[ROWS_VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = ROWS(load)(weights + v * ROWS_LANES);
        UNROLL for (int r = 0; r < MR; r++) {
            const ROWS(vec) x_vec = ROWS(splat)(*(const loose_float *)(x + r * p->x_step + k * sizeof(float)));
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = ROWS(fmadd)(x_vec, weight[v], sum[r][v]);
        }
        if (MR > 1) __builtin_prefetch(ahead);
        ahead += ahead_step;
        weights += VECTORS * LANES;
    }
    const ptrdiff_t last = p->outs - out - (VECTORS - 1) * ROWS_LANES;
    UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        sum[r][v] += ROWS(load)(p->bias + out + v * ROWS_LANES);
    }
    if (p->clips) {
        const ROWS(vec) low = ROWS(splat)(p->low), high = ROWS(splat)(p->high);
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
            sum[r][v] = ROWS(smaller)(high, ROWS(larger)(low, sum[r][v]));
        }
    }
    y += out * (ptrdiff_t)sizeof(float);
    if (p->past_caches) {
        enum { QUAD = 4 * sizeof(float), QUADS = ROWS_LANES / 4 };
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) UNROLL for (int q = 0; q < QUADS; q++) {
            ROWS(store_quad_past_caches)(y + r * p->y_step + (v * QUADS + q) * QUAD, sum[r][v], q);
        }
        return;
    }
    if (over || last >= ROWS_LANES) {
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
            ROWS(store)(y + r * p->y_step + v * (ptrdiff_t)sizeof(sum[r][v]), sum[r][v]);
        }
        return;
    }
    UNROLL for (int r = 0; r < MR; r++) {
        char *here = y + r * p->y_step;
        UNROLL for (int v = 0; v < VECTORS - 1; v++) ROWS(store)(here + v * (ptrdiff_t)sizeof(sum[r][v]), sum[r][v]);
        ROWS(store_first)(here + (VECTORS - 1) * (ptrdiff_t)sizeof(sum[r][0]), sum[r][VECTORS - 1], (int)last);
    }
}

/* One tile of out channels for a run of pixels; as many of them as `over` may write beyond themselves. */
INLINE void ROWS(multiply_tile)(const rows_t *record, ptrdiff_t first, ptrdiff_t pixels, ptrdiff_t over, ptrdiff_t out,
                                const int VECTORS, const int MR) {
    const rows_t p = *record; /* a copy: as far as a compiler knows, stores to y may change the record */
    const float *weights = p.weights + out * p.k;
    const ptrdiff_t ahead_step = MR * p.ahead_step / p.k;
    ptrdiff_t i = first;
    for (; i + MR <= first + pixels; i += MR) {
        ROWS(multiply_some)(&p, p.x + i * p.x_step, weights, out, p.y + i * p.y_step, ahead_of(&p, i),
                            ahead_step, VECTORS, MR, i + MR <= over);
    }
    for (; i < first + pixels; i++) {
        ROWS(multiply_some)(&p, p.x + i * p.x_step, weights, out, p.y + i * p.y_step, p.ahead, 0, VECTORS, 1, i < over);
    }
}

#define ROWS_KERNEL(VECTORS, MR)                                                                                     \
    static void ROWS(multiply_##VECTORS)(const rows_t *p, ptrdiff_t first, ptrdiff_t pixels, ptrdiff_t over,          \
                                         ptrdiff_t out) {                                                            \
        ROWS(multiply_tile)(p, first, pixels, over, out, VECTORS, MR);                                               \
    }
#define ROWS_ENTRY(VECTORS, MR) [VECTORS] = ROWS(multiply_##VECTORS),

ROWS_TILES(ROWS_KERNEL)

static void (*const ROWS(rows_kernel)[])(const rows_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                                         ptrdiff_t) = {ROWS_TILES(ROWS_ENTRY)};

#undef ROWS_KERNEL
#undef ROWS_ENTRY
