/* Pictures: up to four in and four out channels, adjacent in both maps, of any native kind to float32, or of bytes.
   Pixels are taken apart, multiplied and put together in registers, a vector of them at a time, so that the time is
   that of moving bytes. The order of summation is that of tile.h. */

/* What a kernel is compiled for: float32, bytes, or any native kind, of which it asks for each vector of pixels. */
enum pixels_of { FLOATS, BYTES, ANY_KIND };

/* A run of pixels with few channels, adjacent in x and y: y = clip(sum + bias). */
typedef struct {
    const char *x;
    char *y;
    int x_kind;                /* any native kind, */
    int y_kind;                /* float32, or uint8 if x is float32 or uint8; low <= 0 if y is uint8 */
    ptrdiff_t k, outs, pixels; /* at least LANES pixels */
    const float *weights;      /* [channel][out channel] */
    const float *bias;
    float low, high; /* the clip; -inf and inf for none */
    int past_caches; /* y is float32 at a multiple of 16 bytes */
} pixels_t;

/* LANES pixels to a vector for each channel. */
INLINE void load_pixels(const char *src, vec *plane, const int CHANNELS, const int OF, int kind) {
    if (OF == BYTES) {
        ivec bytes[4];
        load_byte_planes(src, bytes, CHANNELS);
    UNROLL for (int c = 0; c < CHANNELS; c++) plane[c] = vec_from_ints(bytes[c]);
        return;
    }
    if (OF == ANY_KIND) {
        vec run[4];
        load_vectors(src, run, CHANNELS, kind);
        if (CHANNELS == 1) plane[0] = run[0];
        if (CHANNELS > 1) planes_of_run(run, plane, CHANNELS);
        return;
    }
    if (CHANNELS == 1) plane[0] = load(src);
    if (CHANNELS > 1) load_planes(src, plane, CHANNELS);
}

/* Bytes were clipped to their range, whose lower end store_byte_planes() may keep. */
INLINE void store_pixels(char *dst, const vec *plane, const int CHANNELS, const int OF, int past_caches) {
    if (OF == FLOATS) {
        store_planes(dst, plane, CHANNELS, past_caches);
        return;
    }
    ivec bytes[4];
    UNROLL for (int c = 0; c < CHANNELS; c++) bytes[c] = ints_from_vec(plane[c]);
    store_byte_planes(dst, bytes, CHANNELS);
}

INLINE void multiply_pixels_of(const pixels_t *p, const int K, const int OUTS, const int X_OF, const int Y_OF) {
    enum { LINE = 64, PICTURE_AHEAD = 4096 };
    const char *x = p->x;
    char *y = p->y;
    const int x_kind = p->x_kind;
    const ptrdiff_t x_pixel = K * element_size(x_kind), y_pixel = OUTS * (Y_OF == BYTES ? 1 : (int)sizeof(float));
    const vec low = splat(Y_OF == BYTES ? 0.0f : p->low);
    const float most = p->high < 0.0f ? 0.0f : p->high > 255.0f ? 255.0f : p->high;
    const vec high = splat(Y_OF == BYTES ? most : p->high);
    const int clips = p->low > -INFINITY || p->high < INFINITY;
    vec weight[4][4], bias[4];
    UNROLL for (int o = 0; o < OUTS; o++) {
        bias[o] = splat(p->bias[o]);
        UNROLL for (int k = 0; k < K; k++) weight[o][k] = splat(p->weights[k * OUTS + o]);
    }
    const ptrdiff_t last = (p->pixels - LANES) * x_pixel;
    const ptrdiff_t second = p->past_caches ? first_past_caches(y, y_pixel) : 0;
    FOR_VECTORS_FROM(i, p->pixels, second) {
        vec in[4], out[4];
        for (int line = 0; line < (X_OF == FLOATS ? K : 1) * (int)sizeof(vec); line += LINE) {
            __builtin_prefetch(x + smaller_of(i * x_pixel + PICTURE_AHEAD, last) + line);
        }
        load_pixels(x + i * x_pixel, in, K, X_OF, x_kind);
        UNROLL for (int o = 0; o < OUTS; o++) {
            vec sum = splat(0.0f);
            UNROLL for (int k = 0; k < K; k++) sum = fmadd(weight[o][k], in[k], sum);
            out[o] = sum + bias[o];
            if (Y_OF == BYTES) {
                /* In this order larger() turns NaN into 0; without it, NaN is converted to a negative integer. */
                out[o] = smaller(high, BYTES_SATURATE ? out[o] : larger(out[o], low));
            } else if (clips) {
                out[o] = clip(out[o], low, high);
            }
        }
        store_pixels(y + i * y_pixel, out, OUTS, Y_OF, p->past_caches && is_past_caches_at(y + i * y_pixel));
    }
}

#define FOUR(X, OUTS) X(1, OUTS) X(2, OUTS) X(3, OUTS) X(4, OUTS)
#define PIXEL_SIZES(X) FOUR(X, 1) FOUR(X, 2) FOUR(X, 3) FOUR(X, 4)
#define PIXEL_KERNEL(K, OUTS, X_OF, Y_OF)                                    \
    static void pixels_##X_OF##_##Y_OF##_##K##x##OUTS(const pixels_t *p) { \
        multiply_pixels_of(p, K, OUTS, X_OF, Y_OF);                          \
    }
#define PIXEL_KERNELS(K, OUTS)           \
    PIXEL_KERNEL(K, OUTS, FLOATS, FLOATS) \
    PIXEL_KERNEL(K, OUTS, FLOATS, BYTES) \
    PIXEL_KERNEL(K, OUTS, BYTES, FLOATS) PIXEL_KERNEL(K, OUTS, BYTES, BYTES) PIXEL_KERNEL(K, OUTS, ANY_KIND, FLOATS)
#define PIXEL_ENTRY(K, OUTS, X_OF, Y_OF) [X_OF][Y_OF][K - 1][OUTS - 1] = pixels_##X_OF##_##Y_OF##_##K##x##OUTS,
#define PIXEL_ENTRIES(K, OUTS)           \
    PIXEL_ENTRY(K, OUTS, FLOATS, FLOATS) \
    PIXEL_ENTRY(K, OUTS, FLOATS, BYTES)  \
    PIXEL_ENTRY(K, OUTS, BYTES, FLOATS) PIXEL_ENTRY(K, OUTS, BYTES, BYTES) PIXEL_ENTRY(K, OUTS, ANY_KIND, FLOATS)

PIXEL_SIZES(PIXEL_KERNELS)

static void multiply_pixels(const pixels_t *p) {
    static void (*const kernel[3][2][4][4])(const pixels_t *) = {PIXEL_SIZES(PIXEL_ENTRIES)};
    const int x_of = p->x_kind == KIND_FLOAT32 ? FLOATS : p->x_kind == KIND_UINT8 ? BYTES : ANY_KIND;
    kernel[x_of][p->y_kind == KIND_UINT8 ? BYTES : FLOATS][p->k - 1][p->outs - 1](p);
}
