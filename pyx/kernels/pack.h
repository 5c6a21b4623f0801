/* Copies rectangles: feature maps and weights into panels, finished tiles from scratch into the result. */

INLINE void swap(ptrdiff_t *a, ptrdiff_t *b) {
    const ptrdiff_t was = *a;
    *a = *b;
    *b = was;
}

INLINE void copy_run(char *dst, const char *src, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) store(dst + i * sizeof(float), load(src + i * sizeof(float)));
    if (i < n) {
        const int left = (int)(n - i);
        store_first(dst + i * sizeof(float), load_first(src + i * sizeof(float), left), left);
    }
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

/* One square of dst[i][j] = src[j][i], or the part of it with `rows` < LANES rows or `lanes` < LANES lanes. */
INLINE void copy_square(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_lane, int rows, int lanes) {
    vec m[LANES];
    UNROLL for (int l = 0; l < LANES; l++) {
        m[l] = l >= lanes      ? splat(0.0f)
               : rows == LANES ? load(src + l * s_lane)
                               : load_first(src + l * s_lane, rows);
    }
    transpose(m);
    UNROLL for (int l = 0; l < LANES; l++) {
        if (l >= rows) continue;
        if (lanes == LANES) {
            store(dst + l * d_row, m[l]);
        } else {
            store_first(dst + l * d_row, m[l], lanes);
        }
    }
}

/* dst[i][j] = src[j][i], i < rows, j < lanes, both with unit stride in the second index. */
static void copy_transposed(char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_lane, ptrdiff_t rows,
                            ptrdiff_t lanes) {
    for (ptrdiff_t j = 0; j < lanes; j += LANES) {
        for (ptrdiff_t i = 0; i < rows; i += LANES) {
            char *to = dst + i * d_row + j * (ptrdiff_t)sizeof(float);
            const char *from = src + j * s_lane + i * (ptrdiff_t)sizeof(float);
            if (i + LANES <= rows && j + LANES <= lanes) {
                copy_square(to, d_row, from, s_lane, LANES, LANES);
            } else {
                const int height = (int)(rows - i < LANES ? rows - i : LANES);
                copy_square(to, d_row, from, s_lane, height, (int)(lanes - j < LANES ? lanes - j : LANES));
            }
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

/* dst[i] = src[i * step], widened. Half precision is taken apart by hand: kernels count denormal float32 as zero, and a
   denormal float16 is none. */
#define WIDEN(NAME, TYPE, EXPRESSION)                                                        \
    static void widen_##NAME(float *dst, const char *src, ptrdiff_t step, ptrdiff_t n) {     \
        typedef TYPE loose __attribute__((aligned(1), may_alias));                           \
        if (step == sizeof(TYPE)) {                                                          \
            for (ptrdiff_t i = 0; i < n; i++) {                                              \
                const TYPE x = ((const loose *)src)[i];                                      \
                dst[i] = EXPRESSION;                                                         \
            }                                                                                \
        } else {                                                                             \
            for (ptrdiff_t i = 0; i < n; i++) {                                              \
                const TYPE x = *(const loose *)(src + i * step);                             \
                dst[i] = EXPRESSION;                                                         \
            }                                                                                \
        }                                                                                    \
    }

static inline float float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float float_from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    const uint32_t exponent_bias = (uint32_t)(127 - 15) << 23, all_ones = (uint32_t)(255 - 31) << 23;
    const float small = (float)(int32_t)rest * 0x1p-24f;
    uint32_t bits;
    memcpy(&bits, &small, sizeof bits);
    bits = rest < 0x400 ? bits : (rest << 13) + (rest < 0x7c00 ? exponent_bias : all_ones);
    return float_from_bits(sign | bits);
}

WIDEN(uint8, uint8_t, (float)x)
WIDEN(int8, int8_t, (float)x)
WIDEN(uint16, uint16_t, (float)x)
WIDEN(int16, int16_t, (float)x)
WIDEN(float16, uint16_t, float_from_half(x))
WIDEN(bfloat16, uint16_t, float_from_bits((uint32_t)x << 16))

static void widen(int kind, float *dst, const char *src, ptrdiff_t step, ptrdiff_t n) {
    switch (kind) {
        case KIND_UINT8: widen_uint8(dst, src, step, n); break;
        case KIND_INT8: widen_int8(dst, src, step, n); break;
        case KIND_UINT16: widen_uint16(dst, src, step, n); break;
        case KIND_INT16: widen_int16(dst, src, step, n); break;
        case KIND_FLOAT16: widen_float16(dst, src, step, n); break;
        default: widen_bfloat16(dst, src, step, n); break;
    }
}

/* copy() into float32 rows from whatever the source holds. What does not lie in the order of dst is widened as it lies
   into a small block, which is transposed then. */
static void copy_widened(int kind, char *dst, ptrdiff_t d_row, const char *src, ptrdiff_t s_row, ptrdiff_t s_lane,
                         ptrdiff_t rows, ptrdiff_t lanes) {
    enum { SIDE = 64, ONE = sizeof(float) };
    if (kind == KIND_FLOAT32) {
        copy(dst, d_row, ONE, src, s_row, s_lane, rows, lanes);
        return;
    }
    if (s_row == lanes * s_lane && d_row == lanes * ONE) {
        widen(kind, (float *)dst, src, s_lane, rows * lanes); /* rows without a gap between them */
        return;
    }
    if (rows == 1 || (s_row < 0 ? -s_row : s_row) >= (s_lane < 0 ? -s_lane : s_lane)) {
        for (ptrdiff_t i = 0; i < rows; i++) widen(kind, (float *)(dst + i * d_row), src + i * s_row, s_lane, lanes);
        return;
    }
    float block[SIDE * SIDE];
    for (ptrdiff_t i = 0; i < rows; i += SIDE) {
        const ptrdiff_t height = rows - i < SIDE ? rows - i : SIDE;
        for (ptrdiff_t j = 0; j < lanes; j += SIDE) {
            const ptrdiff_t width = lanes - j < SIDE ? lanes - j : SIDE;
            const char *at = src + i * s_row + j * s_lane;
            if (s_lane == height * s_row) {
                widen(kind, block, at, s_row, height * width); /* pixels without a gap between them */
            } else {
                for (ptrdiff_t l = 0; l < width; l++) widen(kind, block + l * height, at + l * s_lane, s_row, height);
            }
            copy(dst + i * d_row + j * ONE, d_row, ONE, (const char *)block, ONE, height * ONE, height, width);
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
        const int left = (int)(n - whole);
        const vec v = load_first(x + whole, left);
        float part[LANES];
        store(part, channels_along ? fmadd(v, load_first(scale + whole, left), load_first(shift + whole, left))
                                   : fmadd(v, s, t));
        activate(activation, part, 1);
        store_first(x + whole, load(part), left);
    }
}

static void pack(const pack_t *p) {
    /* Where pixels are adjacent, 32 channels of all panels come before the next 32, so that the map is read in long
       runs. */
    const ptrdiff_t at_once = p->channel_step < p->step ? p->k : 32;
    for (ptrdiff_t channel = 0; channel < p->k; channel += at_once) {
        const ptrdiff_t left = p->k - channel, k = left < at_once ? left : at_once;
        ptrdiff_t done = 0;
        while (done < p->count) {
            const ptrdiff_t column = (p->at + done) % p->width, room = p->width - column;
            const ptrdiff_t n = p->count - done < room ? p->count - done : room;
            float *dst = p->dst + (p->at + done) / p->width * p->panel + channel * p->width + column;
            copy_widened(p->kind, (char *)dst, p->width * sizeof(float),
                         p->src + channel * p->channel_step + done * p->step, p->channel_step, p->step, k, n);
            for (ptrdiff_t i = 0; p->scale && i < k; i++) {
                transform(dst + i * p->width, n, p->scale + channel + i, p->shift + channel + i, 0, p->activation);
            }
            done += n;
        }
    }
}

static void pack_rows(const pack_t *p) {
    /* Row by row if a transform follows, so that it finds the row in the first-level cache. */
    const ptrdiff_t at_once = p->scale ? 1 : p->count;
    for (ptrdiff_t i = 0; i < p->count; i += at_once) {
        float *dst = p->dst + (p->at + i) * p->width;
        copy_widened(p->kind, (char *)dst, p->width * sizeof(float), p->src + i * p->step, p->step, p->channel_step,
                     at_once, p->k);
        if (p->scale) transform(dst, p->k, p->scale, p->shift, 1, p->activation);
    }
}
