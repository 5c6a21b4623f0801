/* Sums over pixels: what surrounds the products, which are those of tile.h with pixels in place of in channels. */

typedef float half_vec __attribute__((vector_size(sizeof(vec) / 2), aligned(1), may_alias));
typedef double wide_vec __attribute__((vector_size(sizeof(vec))));
typedef wide_vec loose_wide_vec __attribute__((aligned(1), may_alias));

INLINE void add_run(double *total, vec sum) {
    float run[LANES];
    store(run, sum);
    UNROLL for (int i = 0; i < LANES; i += LANES / 2) {
        *(loose_wide_vec *)(total + i) += __builtin_convertvector(*(const half_vec *)(run + i), wide_vec);
    }
}

/* total[channel] += the sum over pixels of a panel [pixel][channel] of whole vectors. Runs of 32 pixels are summed in
   float32, several at a time; they are added in float64 in ascending order. */
static void sum_panel(double *total, const float *panel, ptrdiff_t pixels, ptrdiff_t width) {
    enum { RUN = 32, RUNS = 8 };
    for (ptrdiff_t c = 0; c < width; c += LANES) {
        ptrdiff_t i = 0;
        for (; i + RUN * RUNS <= pixels; i += RUN * RUNS) {
            vec sum[RUNS];
            UNROLL for (int run = 0; run < RUNS; run++) sum[run] = splat(0.0f);
            for (ptrdiff_t at = i; at < i + RUN; at++) {
                UNROLL for (int run = 0; run < RUNS; run++) sum[run] += load(panel + (at + run * RUN) * width + c);
            }
            UNROLL for (int run = 0; run < RUNS; run++) add_run(total + c, sum[run]);
        }
        for (; i < pixels; i += RUN) {
            vec sum = splat(0.0f);
            for (ptrdiff_t at = i; at < smaller_of(i + RUN, pixels); at++) sum += load(panel + at * width + c);
            add_run(total + c, sum);
        }
    }
}

/* total[i] += sum[i], or = sum[i] if `first`, in float64; n is a multiple of LANES. */
static void add_sums(double *total, const float *sum, ptrdiff_t n, int first) {
    for (ptrdiff_t i = 0; i < n; i += LANES / 2) {
        wide_vec v = __builtin_convertvector(*(const half_vec *)(sum + i), wide_vec);
        if (!first) v += *(const loose_wide_vec *)(total + i);
        *(loose_wide_vec *)(total + i) = v;
    }
}

/* total[i] += more[i]; n is a multiple of LANES. */
static void add_totals(double *total, const double *more, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += LANES / 2) {
        *(loose_wide_vec *)(total + i) += *(const loose_wide_vec *)(more + i);
    }
}

/* Copies VECTORS whole vectors of each of so many rows, and prefetches the same places some rows further. */
INLINE void copy_columns(float *dst, ptrdiff_t width, const char *src, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t ahead,
                         const int VECTORS) {
    enum { LINE = 64 };
    const int bytes = VECTORS * (int)sizeof(vec);
    for (ptrdiff_t i = 0; i < rows; i++, src += step, dst += width) {
        UNROLL for (int line = 0; line < bytes; line += LINE) __builtin_prefetch(src + ahead + line);
        if (bytes % LINE) __builtin_prefetch(src + ahead + bytes - 1);
        UNROLL for (int v = 0; v < VECTORS; v++) store(dst + v * LANES, load(src + v * (ptrdiff_t)sizeof(vec)));
    }
}

/* Copies channels, adjacent in memory, of k pixels (or weights of out channels, of k in channels) into panels
   [pixel][channel] of mr channels, a few pixels at a time, so that each is read as one stream. Whole vectors are copied
   where memory of the map lies behind a pixel's channels; the next pixel's overwrite what is too much. */
static void pack_columns(float *dst, ptrdiff_t panel_floats, const char *src, ptrdiff_t step, ptrdiff_t k, ptrdiff_t mr,
                         ptrdiff_t panels) {
    enum { ONE = sizeof(float), ROWS = 8 };
    const ptrdiff_t vectors = (mr + LANES - 1) / LANES, copied = vectors * LANES;
    /* No vector reaches beyond its panel: the first pixels of the next one are there already. */
    const ptrdiff_t inside = k - (copied + mr - 1) / mr + 1;
    const ptrdiff_t whole = copied == mr ? k : step >= (copied - mr) * ONE ? smaller_of(inside, k - 1) : 0;
    for (ptrdiff_t first = 0; first < k; first += ROWS) {
        const ptrdiff_t end = smaller_of(first + ROWS, k);
        const ptrdiff_t fast = vectors <= 4 ? larger_of(0, smaller_of(end, whole) - first) : 0;
        const ptrdiff_t ahead = smaller_of(ROWS, k - end) * step; /* the same columns of the next rows */
        for (ptrdiff_t panel = 0; panel < panels; panel++) {
            float *to = dst + panel * panel_floats + first * mr;
            const char *from = src + first * step + panel * mr * ONE;
            switch (fast ? vectors : 0) {
                case 1: copy_columns(to, mr, from, step, fast, ahead, 1); break;
                case 2: copy_columns(to, mr, from, step, fast, ahead, 2); break;
                case 3: copy_columns(to, mr, from, step, fast, ahead, 3); break;
                case 4: copy_columns(to, mr, from, step, fast, ahead, 4); break;
            }
            for (ptrdiff_t i = fast; i < end - first; i++) {
                __builtin_prefetch(from + i * step + ahead);
                copy_run((char *)(to + i * mr), from + i * step, mr);
            }
        }
    }
}

/* y[row][column] = sum[row * pitch + column]; steps in bytes. */
static void store_sums(char *y, ptrdiff_t row_step, ptrdiff_t column_step, const float *sum, ptrdiff_t pitch,
                       ptrdiff_t rows, ptrdiff_t columns) {
    enum { ONE = sizeof(float) };
    copy(y, row_step, column_step, (const char *)sum, pitch * ONE, ONE, rows, columns);
}

/* The same, of float64 sums that are rounded first; rows of whole vectors. */
static void store_totals(char *y, ptrdiff_t row_step, ptrdiff_t column_step, const double *total, ptrdiff_t pitch,
                         ptrdiff_t rows, ptrdiff_t columns) {
    float sum[TALLEST * MAX_VECTORS * LANES];
    for (ptrdiff_t i = 0; i < rows * pitch; i += LANES / 2) {
        *(half_vec *)(sum + i) = __builtin_convertvector(*(const loose_wide_vec *)(total + i), half_vec);
    }
    store_sums(y, row_step, column_step, sum, pitch, rows, columns);
}

/* Subtracts a value per channel from a panel [pixel][channel] of whole vectors; pixels that do not count become zeros,
   whatever they hold. counts: per pixel all ones or 0, or NULL. */
static void centre(float *panel, ptrdiff_t pixels, ptrdiff_t width, const float *shift, const uint32_t *counts) {
    for (ptrdiff_t c = 0; c < width; c += LANES) {
        const vec mean = load(shift + c);
        for (ptrdiff_t i = 0; i < pixels; i++) {
            const vec v = load(panel + i * width + c) - mean;
            store(panel + i * width + c, counts ? (vec)((ivec)v & splat_int((int32_t)counts[i])) : v);
        }
    }
}
