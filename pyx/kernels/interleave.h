/* Transpositions between pixels, whose channels are adjacent, and planes: one for each channel, with adjacent pixels.

   A quad is four adjacent float32, 16 bytes. A vector of quads holds LANES / 4 of them, which lie any number of bytes
   apart. The file of an instruction set defines
     load_quads(p, step), store_quads(p, step, v)   a vector of quads, the first one at p
     two_quads(run, i, j)                           a vector of the quads i and j of a run, or of as many as it holds
     store_quad_past_caches(p, v, i)                quad i of v, past the caches to a multiple of 16 bytes
   or, with WIDE_PLANES, wide_planes() and interleave_wide_planes() for two to four adjacent channels
     SHUFFLE(a, b, i, j, k, l)                      in each quad: elements i and j of a, then k and l of b
     load_pixels_3(p), store_pixels_3(p, v)         three adjacent bytes a pixel in the low bytes of integers
   or, with BYTE_PLANES, load_byte_planes() and store_byte_planes() of planes.h for one to four adjacent bytes
   Any number of channels is served by quads of channels: vector i of four holds those of pixels i, i + 4, i + 8, ...,
   so that transposing the squares of four by four in them gives LANES pixels of four channels. The last quad of a pixel
   overlaps the one before. Nothing outside of the two arrays is read or written. */

INLINE void swap(ptrdiff_t *a, ptrdiff_t *b) {
    const ptrdiff_t was = *a;
    *a = *b;
    *b = was;
}

INLINE ptrdiff_t distance(ptrdiff_t step) {
    return step < 0 ? -step : step;
}

INLINE ptrdiff_t smaller_of(ptrdiff_t a, ptrdiff_t b) {
    return a < b ? a : b;
}

INLINE ptrdiff_t larger_of(ptrdiff_t a, ptrdiff_t b) {
    return a > b ? a : b;
}

/* Two bytes at any address. */
typedef uint16_t loose_uint16 __attribute__((aligned(1), may_alias));

INLINE void transpose_quads(vec *v) {
    const vec a = SHUFFLE(v[0], v[1], 0, 1, 0, 1), b = SHUFFLE(v[2], v[3], 0, 1, 0, 1);
    const vec c = SHUFFLE(v[0], v[1], 2, 3, 2, 3), d = SHUFFLE(v[2], v[3], 2, 3, 2, 3);
    v[0] = SHUFFLE(a, b, 0, 2, 0, 2);
    v[1] = SHUFFLE(a, b, 1, 3, 1, 3);
    v[2] = SHUFFLE(c, d, 0, 2, 0, 2);
    v[3] = SHUFFLE(c, d, 1, 3, 1, 3);
}

/* A quad of channels of each of LANES pixels, `step` bytes apart, as four planes; and back. */
INLINE void load_four(const char *src, ptrdiff_t step, vec *plane) {
    UNROLL for (int i = 0; i < 4; i++) plane[i] = load_quads(src + i * step, 4 * step);
    transpose_quads(plane);
}

INLINE void store_four(char *dst, ptrdiff_t step, vec *plane) {
    transpose_quads(plane);
    UNROLL for (int i = 0; i < 4; i++) store_quads(dst + i * step, 4 * step, plane[i]);
}

#ifndef WIDE_PLANES
INLINE void planes_of_quads(vec *q, vec *plane, const int CHANNELS) {
    if (CHANNELS == 2) {
        plane[0] = SHUFFLE(q[0], q[1], 0, 2, 0, 2);
        plane[1] = SHUFFLE(q[0], q[1], 1, 3, 1, 3);
    } else if (CHANNELS == 3) { /* a0 b0 c0 a1, b1 c1 a2 b2, c2 a3 b3 c3 */
        const vec bc = SHUFFLE(q[0], q[1], 1, 2, 0, 1), ab = SHUFFLE(q[1], q[2], 2, 3, 1, 2);
        plane[0] = SHUFFLE(q[0], ab, 0, 3, 0, 2);
        plane[1] = SHUFFLE(bc, ab, 0, 2, 1, 3);
        plane[2] = SHUFFLE(bc, q[2], 1, 3, 0, 3);
    } else {
        transpose_quads(q);
        UNROLL for (int i = 0; i < 4; i++) plane[i] = q[i];
    }
}
#endif

/* LANES adjacent pixels of two to four channels as planes, from the vectors of the run that they are. */
INLINE void planes_of_run(const vec *run, vec *plane, const int CHANNELS) {
#ifdef WIDE_PLANES
    wide_planes(run, plane, CHANNELS);
#else
    /* Vector i holds the quads i, i + CHANNELS, ... of the run: every CHANNELS quads are four pixels. */
    vec q[4];
    UNROLL for (int i = 0; i < CHANNELS; i++) q[i] = two_quads(run, i, i + CHANNELS);
    planes_of_quads(q, plane, CHANNELS);
#endif
}

INLINE void load_planes(const char *src, vec *plane, const int CHANNELS) {
#ifdef WIDE_PLANES
    vec run[4];
    UNROLL for (int i = 0; i < CHANNELS; i++) run[i] = load(src + i * (int)sizeof(vec));
    wide_planes(run, plane, CHANNELS);
#else
    enum { QUAD = 4 * sizeof(float) };
    vec q[4];
    UNROLL for (int i = 0; i < CHANNELS; i++) q[i] = load_quads(src + i * QUAD, CHANNELS * QUAD);
    planes_of_quads(q, plane, CHANNELS);
#endif
}

/* `past_caches`: is_past_caches_at(dst) holds. */
INLINE void store_planes(char *dst, const vec *plane, const int CHANNELS, int past_caches) {
    vec q[4];
#ifdef WIDE_PLANES
    interleave_wide_planes(q, plane, CHANNELS);
    UNROLL for (int i = 0; i < CHANNELS; i++) {
        if (past_caches) {
            store_past_caches(dst + i * sizeof(vec), q[i]);
        } else {
            store(dst + i * sizeof(vec), q[i]);
        }
    }
#else
    enum { QUAD = 4 * sizeof(float) };
    if (CHANNELS == 2) {
        const vec low = SHUFFLE(plane[0], plane[1], 0, 1, 0, 1), high = SHUFFLE(plane[0], plane[1], 2, 3, 2, 3);
        q[0] = SHUFFLE(low, low, 0, 2, 1, 3);
        q[1] = SHUFFLE(high, high, 0, 2, 1, 3);
    } else if (CHANNELS == 3) {
        const vec ab = SHUFFLE(plane[0], plane[1], 0, 2, 0, 2), bc = SHUFFLE(plane[1], plane[2], 1, 3, 1, 3);
        const vec ca = SHUFFLE(plane[2], plane[0], 0, 2, 1, 3);
        q[0] = SHUFFLE(ab, ca, 0, 2, 0, 2);
        q[1] = SHUFFLE(bc, ab, 0, 2, 1, 3);
        q[2] = SHUFFLE(ca, bc, 1, 3, 1, 3);
    } else if (CHANNELS == 4) {
        UNROLL for (int i = 0; i < 4; i++) q[i] = plane[i];
        transpose_quads(q);
    }
    if (CHANNELS == 1) q[0] = plane[0];
    if (past_caches) { /* in the order of their places, which CPUs combine to whole lines */
        UNROLL for (int quad = 0; quad < LANES / 4; quad++) UNROLL for (int i = 0; i < CHANNELS; i++) {
            store_quad_past_caches(dst + (quad * CHANNELS + i) * QUAD, q[i], quad);
            __asm__ volatile("" : : : "memory");
        }
    } else if (CHANNELS == 1) {
        store(dst, q[0]);
    } else {
        UNROLL for (int i = 0; i < CHANNELS; i++) store_quads(dst + i * QUAD, CHANNELS * QUAD, q[i]);
    }
#endif
}

/* Copies n elements of 1, 2 or 4 bytes; steps in bytes. */
static void copy_elements(char *dst, ptrdiff_t d_step, const char *src, ptrdiff_t s_step, ptrdiff_t n, int size) {
    if (size == 1) {
        for (ptrdiff_t i = 0; i < n; i++) dst[i * d_step] = src[i * s_step];
    } else if (size == 2) {
        for (ptrdiff_t i = 0; i < n; i++) {
            *(loose_uint16 *)(dst + i * d_step) = *(const loose_uint16 *)(src + i * s_step);
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++) {
            *(loose_float *)(dst + i * d_step) = *(const loose_float *)(src + i * s_step);
        }
    }
}

/* Copies n floats in vectors, or in quads if there are fewer; the last one overlaps the one before. */
INLINE void copy_run(char *dst, const char *src, ptrdiff_t n) {
    enum { ONE = sizeof(float), QUAD = 4 };
    if (n >= LANES) {
        for (ptrdiff_t i = 0; i + LANES <= n; i += LANES) store(dst + i * ONE, load(src + i * ONE));
        if (n % LANES) store(dst + (n - LANES) * ONE, load(src + (n - LANES) * ONE));
    } else if (n >= QUAD) {
        for (ptrdiff_t i = 0; i + QUAD <= n; i += QUAD) memcpy(dst + i * ONE, src + i * ONE, QUAD * ONE);
        if (n % QUAD) memcpy(dst + (n - QUAD) * ONE, src + (n - QUAD) * ONE, QUAD * ONE);
    } else {
        copy_elements(dst, ONE, src, ONE, n, ONE);
    }
}

/* Walks n >= LANES pixels in vectors; the last vector overlaps the one before. */
INLINE ptrdiff_t next_vector(ptrdiff_t i, ptrdiff_t n) {
    return i + 2 * LANES <= n || i + LANES >= n ? i + LANES : n - LANES;
}

#define FOR_VECTORS(I, N) for (ptrdiff_t I = 0; I < (N); I = next_vector(I, N))

/* The same, but the second vector overlaps the first one to begin at pixel SECOND < LANES, unless that is 0. */
#define FOR_VECTORS_FROM(I, N, SECOND) \
    for (ptrdiff_t I = 0; I < (N); I = I == 0 && (SECOND) && (N) >= LANES + (SECOND) ? (SECOND) : next_vector(I, N))

/* Adjacent pixels are stored past the caches from places of such a multiple on: where a store is shorter than a cache
   line, all stores of the line have to go past the caches. */
#ifdef WIDE_PLANES
enum { PAST_CACHES_AT = sizeof(vec) };
#else
enum { PAST_CACHES_AT = 4 * sizeof(float) };
#endif

INLINE int is_past_caches_at(const char *y) {
    return (uintptr_t)y % PAST_CACHES_AT == 0;
}

/* The first of these pixels, which begin at a multiple of 16 bytes, that is at such a place. */
INLINE ptrdiff_t first_past_caches(const char *y, ptrdiff_t pixel_bytes) {
    ptrdiff_t i = 0;
    while (!is_past_caches_at(y + i * pixel_bytes)) i++;
    return i;
}

/* Copies every second of more than LANES pixels. All but the first vector are read from the pixel before on, so that
   nothing behind the last one is read. */
INLINE void copy_every_second(float *dst, const char *src, ptrdiff_t pixels) {
    enum { ONE = sizeof(float) };
    FOR_VECTORS(i, pixels) {
        vec plane[4];
        load_planes(src + (2 * i - (i > 0)) * ONE, plane, 2);
        store(dst + i, plane[i > 0]);
    }
}

/* A block of LANES pixels of fewer than four channels between which other data lies, as if they had four. */
INLINE void copy_few(float *block, const char *src, ptrdiff_t step, ptrdiff_t channels) {
    for (int i = 0; i < LANES; i++) copy_elements((char *)(block + 4 * i), 4, src + i * step, 4, channels, 4);
}

/* dst[channel][pixel] = src[pixel][channel]; d_row and step in bytes, LANES pixels or more. */
INLINE void deinterleave_adjacent(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t pixels, const int CHANNELS) {
    FOR_VECTORS(i, pixels) {
        vec plane[4];
        load_planes(src + i * CHANNELS * (ptrdiff_t)sizeof(float), plane, CHANNELS);
        UNROLL for (int c = 0; c < CHANNELS; c++) store(dst + c * d_row + i * (ptrdiff_t)sizeof(float), plane[c]);
    }
}

static void deinterleave_few(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t step, ptrdiff_t channels,
                             ptrdiff_t pixels) {
    float block[4 * LANES] = {0};
    FOR_VECTORS(i, pixels) {
        vec plane[4];
        /* A quad reaches beyond its pixel, which is allowed where another pixel lies behind it. */
        if (i == 0 || i + LANES == pixels || distance(step) + 4 * channels < 16) {
            copy_few(block, src + i * step, step, channels);
            load_four((const char *)block, 4 * sizeof(float), plane);
        } else {
            load_four(src + i * step, step, plane);
        }
        for (ptrdiff_t c = 0; c < channels; c++) store(dst + c * d_row + i * (ptrdiff_t)sizeof(float), plane[c]);
    }
}

static void deinterleave_quads(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t step, ptrdiff_t channels,
                               ptrdiff_t pixels) {
    enum { ONE = sizeof(float), LINE = 64 };
    FOR_VECTORS(i, pixels) {
        /* The next pixels are fetched in the order in which they lie in memory, as hardware expects, although quads are
           read across them. */
        const char *ahead = src + smaller_of(i + LANES, pixels - LANES) * step;
        for (ptrdiff_t c = 0; c < channels; c = c + 8 <= channels || c + 4 == channels ? c + 4 : channels - 4) {
            vec plane[4];
            UNROLL for (int line = 0; line < 4 * (int)sizeof(vec); line += LINE) __builtin_prefetch(ahead + line);
            ahead += 4 * sizeof(vec);
            load_four(src + i * step + c * ONE, step, plane);
            UNROLL for (int j = 0; j < 4; j++) store(dst + (c + j) * d_row + i * ONE, plane[j]);
        }
    }
}

static void deinterleave(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t step, ptrdiff_t channels,
                         ptrdiff_t pixels) {
    enum { ONE = sizeof(float) };
    const int adjacent = step == channels * ONE;
    if (channels == 1) {
        copy_elements(dst, ONE, src, step, pixels, ONE);
    } else if (pixels < LANES) {
        for (ptrdiff_t c = 0; c < channels; c++) copy_elements(dst + c * d_row, ONE, src + c * ONE, step, pixels, ONE);
    } else if (adjacent && channels == 2) {
        deinterleave_adjacent(dst, d_row, src, pixels, 2);
    } else if (adjacent && channels == 3) {
        deinterleave_adjacent(dst, d_row, src, pixels, 3);
    } else if (adjacent && channels == 4) {
        deinterleave_adjacent(dst, d_row, src, pixels, 4);
    } else if (channels < 4) {
        deinterleave_few(dst, d_row, src, step, channels, pixels);
    } else {
        deinterleave_quads(dst, d_row, src, step, channels, pixels);
    }
}

/* dst[pixel][channel] = src[channel][pixel]; step and s_row in bytes, LANES pixels or more. */
INLINE void interleave_adjacent(char *dst, const char *src, ptrdiff_t s_row, ptrdiff_t pixels, const int CHANNELS) {
    FOR_VECTORS(i, pixels) {
        vec plane[4];
        UNROLL for (int c = 0; c < CHANNELS; c++) plane[c] = load(src + c * s_row + i * (ptrdiff_t)sizeof(float));
        store_planes(dst + i * CHANNELS * (ptrdiff_t)sizeof(float), plane, CHANNELS, 0);
    }
}

static void interleave_few(char *dst, ptrdiff_t step, const char *src, ptrdiff_t s_row, ptrdiff_t channels,
                           ptrdiff_t pixels) {
    float block[4 * LANES];
    FOR_VECTORS(i, pixels) {
        vec plane[4];
        UNROLL for (ptrdiff_t c = 0; c < 4; c++) {
            plane[c] = load(src + smaller_of(c, channels - 1) * s_row + i * (ptrdiff_t)sizeof(float));
        }
        store_four((char *)block, 4 * sizeof(float), plane);
        for (int j = 0; j < LANES; j++) copy_elements(dst + (i + j) * step, 4, (char *)(block + 4 * j), 4, channels, 4);
    }
}

/* Bytes by which the lines of the result are prefetched. Quads are short, so that the buffer of stores holds few lines, and
   would wait for each of them. */
enum { STORES_AHEAD = 1024 };

static void interleave_quads(char *dst, ptrdiff_t step, const char *src, ptrdiff_t s_row, ptrdiff_t channels,
                             ptrdiff_t pixels) {
    enum { ONE = sizeof(float), LINE = 64 };
    FOR_VECTORS(i, pixels) {
        const char *ahead = dst + smaller_of(i * step + STORES_AHEAD, (pixels - LANES) * step);
        for (ptrdiff_t c = 0; c < channels; c = c + 8 <= channels || c + 4 == channels ? c + 4 : channels - 4) {
            vec plane[4];
            UNROLL for (int line = 0; line < 4 * (int)sizeof(vec); line += LINE) __builtin_prefetch(ahead + line, 1);
            ahead += 4 * sizeof(vec);
            UNROLL for (int j = 0; j < 4; j++) plane[j] = load(src + (c + j) * s_row + i * ONE);
            store_four(dst + i * step + c * ONE, step, plane);
        }
    }
}

static void interleave(char *dst, ptrdiff_t step, const char *src, ptrdiff_t s_row, ptrdiff_t channels,
                       ptrdiff_t pixels) {
    enum { ONE = sizeof(float) };
    const int adjacent = step == channels * ONE;
    if (channels == 1) {
        copy_elements(dst, step, src, ONE, pixels, ONE);
    } else if (pixels < LANES) {
        for (ptrdiff_t c = 0; c < channels; c++) copy_elements(dst + c * ONE, step, src + c * s_row, ONE, pixels, ONE);
    } else if (adjacent && channels == 2) {
        interleave_adjacent(dst, src, s_row, pixels, 2);
    } else if (adjacent && channels == 3) {
        interleave_adjacent(dst, src, s_row, pixels, 3);
    } else if (adjacent && channels == 4) {
        interleave_adjacent(dst, src, s_row, pixels, 4);
    } else if (channels < 4) {
        interleave_few(dst, step, src, s_row, channels, pixels);
    } else {
        interleave_quads(dst, step, src, s_row, channels, pixels);
    }
}

/* dst[i][j] = src[j][i], i < rows, j < lanes, both with unit stride in the second index. */
static void copy_transposed(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_lane, ptrdiff_t rows,
                            ptrdiff_t lanes) {
    if (lanes >= LANES || rows < LANES) {
        deinterleave(dst, d_row, src, s_lane, rows, lanes);
    } else {
        interleave(dst, d_row, src, s_lane, lanes, rows);
    }
}

/* dst[i * d_row + j * d_lane] = src[i * s_row + j * s_lane]; which strides are one element picks the loop. */
static void copy(char *dst, ptrdiff_t d_row, ptrdiff_t d_lane, const char *src, ptrdiff_t s_row, ptrdiff_t s_lane,
                 ptrdiff_t rows, ptrdiff_t lanes) {
    enum { ONE = sizeof(float) };
    if (d_lane != ONE) {
        swap(&d_row, &d_lane);
        swap(&s_row, &s_lane);
        swap(&rows, &lanes);
    }
    if (d_lane == ONE && s_row == -ONE) { /* channels in reverse */
        dst += (rows - 1) * d_row;
        src += (rows - 1) * s_row;
        d_row = -d_row;
        s_row = ONE;
    }
    if (d_lane == ONE && s_lane == ONE) {
        for (ptrdiff_t i = 0; i < rows; i++) copy_run(dst + i * d_row, src + i * s_row, lanes);
    } else if (d_lane == ONE && s_row == ONE) {
        copy_transposed(dst, d_row, src, s_lane, rows, lanes);
    } else {
        for (ptrdiff_t i = 0; i < rows; i++) copy_elements(dst + i * d_row, d_lane, src + i * s_row, s_lane, lanes, ONE);
    }
}
