/* Moving rectangles: feature maps and weights into panels, finished tiles out to wherever they belong. */

INLINE void swap(ptrdiff_t *a, ptrdiff_t *b) {
    const ptrdiff_t was = *a;
    *a = *b;
    *b = was;
}

INLINE void copy_run(char *dst, const char *src, ptrdiff_t n) {
    if (n < LANES) {
        for (ptrdiff_t i = 0; i < n; i++) ((loose_float *)dst)[i] = ((const loose_float *)src)[i];
        return;
    }
    for (ptrdiff_t i = 0; i + LANES <= n; i += LANES) store(dst + i * sizeof(float), load(src + i * sizeof(float)));
    /* the last vector again where n is no multiple of LANES: it overlaps the one before */
    store(dst + (n - LANES) * sizeof(float), load(src + (n - LANES) * sizeof(float)));
}

INLINE void transpose(vec *m) {
    vec t[LANES];
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            t[2 * i] = interleave_low(m[i], m[i + LANES / 2]);
            t[2 * i + 1] = interleave_high(m[i], m[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) m[i] = t[i];
    }
}

/* dst[i][j] = src[j][i], i < rows, j < lanes, both with unit stride in the second index. */
static void copy_transposed(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_lane, ptrdiff_t rows,
                            ptrdiff_t lanes) {
    const ptrdiff_t whole_rows = rows - rows % LANES, whole_lanes = lanes - lanes % LANES;
    for (ptrdiff_t j = 0; j < whole_lanes; j += LANES) {
        for (ptrdiff_t i = 0; i < whole_rows; i += LANES) {
            vec m[LANES];
            UNROLL for (int l = 0; l < LANES; l++) m[l] = load(src + (j + l) * s_lane + i * sizeof(float));
            transpose(m);
            UNROLL for (int l = 0; l < LANES; l++) store(dst + (i + l) * d_row + j * sizeof(float), m[l]);
        }
    }
    for (ptrdiff_t i = 0; i < rows; i++) {
        for (ptrdiff_t j = i < whole_rows ? whole_lanes : 0; j < lanes; j++) {
            *(loose_float *)(dst + i * d_row + j * sizeof(float)) =
                *(const loose_float *)(src + j * s_lane + i * sizeof(float));
        }
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
    if (d_lane == ONE && s_lane == ONE) {
        for (ptrdiff_t i = 0; i < rows; i++) copy_run(dst + i * d_row, src + i * s_row, lanes);
    } else if (d_lane == ONE && s_row == ONE) {
        copy_transposed(dst, d_row, src, s_lane, rows, lanes);
    } else {
        for (ptrdiff_t i = 0; i < rows; i++) {
            for (ptrdiff_t j = 0; j < lanes; j++) {
                *(loose_float *)(dst + i * d_row + j * d_lane) = *(const loose_float *)(src + i * s_row + j * s_lane);
            }
        }
    }
}

/* x[i] = activation(scale * x[i] + shift) in place: one channel throughout, or one channel each from scale[0] on. */
static void transform(float *x, ptrdiff_t n, const float *scale, const float *shift, int channels_along,
                      activation_t activation) {
    const ptrdiff_t whole = n - n % LANES;
    const vec s = splat(*scale), t = splat(*shift);
    for (ptrdiff_t i = 0; i < whole; i += LANES) {
        store(x + i, channels_along ? fmadd(load(x + i), load(scale + i), load(shift + i)) : fmadd(load(x + i), s, t));
    }
    activate(activation, x, whole / LANES);
    if (whole < n) {
        float part[3][LANES] = {{0}};
        const size_t bytes = (n - whole) * sizeof(float);
        memcpy(part[0], x + whole, bytes);
        if (channels_along) {
            memcpy(part[1], scale + whole, bytes);
            memcpy(part[2], shift + whole, bytes);
        }
        const vec v = load(part[0]);
        store(part[0], channels_along ? fmadd(v, load(part[1]), load(part[2])) : fmadd(v, s, t));
        activate(activation, part[0], 1);
        memcpy(x + whole, part[0], bytes);
    }
}

static void pack(const pack_t *p) {
    /* Some channels of all panels, then the next ones: a channels-first map is read in long runs. */
    enum { CHANNELS_AT_ONCE = 32 };
    for (ptrdiff_t channel = 0; channel < p->depth; channel += CHANNELS_AT_ONCE) {
        const ptrdiff_t left = p->depth - channel, depth = left < CHANNELS_AT_ONCE ? left : CHANNELS_AT_ONCE;
        ptrdiff_t done = 0;
        while (done < p->count) {
            const ptrdiff_t column = (p->at + done) % p->width, room = p->width - column;
            const ptrdiff_t n = p->count - done < room ? p->count - done : room;
            float *dst = p->dst + (p->at + done) / p->width * p->panel + channel * p->width + column;
            copy((char *)dst, p->width * sizeof(float), sizeof(float),
                 p->src + channel * p->channel_step + done * p->step, p->channel_step, p->step, depth, n);
            for (ptrdiff_t k = 0; p->scale && k < depth; k++) {
                transform(dst + k * p->width, n, p->scale + channel + k, p->shift + channel + k, 0, p->activation);
            }
            done += n;
        }
    }
}

static void pack_rows(const pack_t *p) {
    for (ptrdiff_t i = 0; i < p->count; i++) {
        float *dst = p->dst + (p->at + i) * p->width;
        copy((char *)dst, 0, sizeof(float), p->src + i * p->step, 0, p->channel_step, 1, p->depth);
        if (p->scale) transform(dst, p->depth, p->scale, p->shift, 1, p->activation);
    }
}
