/* Conversions between float32 and every other element type, a vector at a time.

   The file of an instruction set defines, for LANES elements at any byte address:
     load_bytes(p), load_words(p)         unsigned integers of 8 and 16 bits
     store_bytes(p, x), store_words(p, x) the low 8 and 16 bits of each integer
     store_four_of_bytes(p, x, is_signed) four vectors, limited to the range of 8 bits, and
     store_two_of_words(p, x, is_signed)  two vectors of integers in the range of 16 bits, where that takes fewer
                                          instructions: it defines STORES_TOGETHER then
     ints_from_vec(v)                     the nearest integers, ties to even
     load_halves(p), store_halves(p, v)   float16, where it has instructions for them: it defines HALVES then
   Denormal float16 are kept, although kernels run with denormal float32 counted as zero. */

INLINE int element_size(int kind) {
    kind &= ~KIND_SWAPPED;
    return kind == KIND_FLOAT32 ? 4 : kind == KIND_UINT8 || kind == KIND_INT8 ? 1 : 2;
}

INLINE ivec splat_int(int32_t x) {
    return (ivec){0} + x;
}

/* The value in the low `bits` of each integer, with its sign. */
INLINE ivec sign_extended(ivec x, int bits) {
    return x << (32 - bits) >> (32 - bits);
}

INLINE ivec swapped_words(ivec x) {
    return (x << 8 & 0xff00) | (x >> 8 & 0xff);
}

INLINE ivec swapped_floats(ivec x) {
    return x << 24 | (x << 8 & 0xff0000) | (x >> 8 & 0xff00) | (x >> 24 & 0xff);
}

INLINE vec vec_from_bits(ivec bits) {
    return (vec)bits;
}

INLINE vec vec_from_ints(ivec x) {
    return __builtin_convertvector(x, vec);
}

/* Float16 in the low halves of integers. A denormal float16 is an integer times 2^-24. */
INLINE vec vec_from_halves(ivec x) {
    const ivec sign = (x & 0x8000) << 16, rest = x & 0x7fff;
    const ivec small = (ivec)(vec_from_ints(rest) * splat(0x1p-24f));
    const ivec rebias = ((rest < 0x7c00) & (127 - 15) << 23) | ((rest >= 0x7c00) & (255 - 31) << 23);
    const ivec is_small = rest < 0x400;
    return vec_from_bits(sign | (is_small & small) | (~is_small & ((rest << 13) + rebias)));
}

/* The nearest float16, ties to even, in the low halves of integers. Adding 0.5 to a number below 2^-14 leaves a
   multiple of 2^-24, the step of denormal float16, in the low bits of the sum. */
INLINE ivec halves_from_vec(vec v) {
    const ivec bits = (ivec)v, sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    const ivec small = (ivec)((vec)rest + splat(0.5f)) - (ivec)splat(0.5f);
    const ivec normal = (rest + 0xfff + (rest >> 13 & 1) - ((127 - 15) << 23)) >> 13;
    const ivec is_small = rest < (127 - 14) << 23, is_large = rest >= (127 + 16) << 23, is_nan = rest > 255 << 23;
    const ivec large = splat_int(0x7c00) | (is_nan & (0x200 | (rest >> 13 & 0x3ff)));
    return sign | (is_small & small) | (is_large & large) | (~(is_small | is_large) & normal);
}

/* The nearest bfloat16, ties to even, in the low halves of integers. */
INLINE ivec bfloats_from_vec(vec v) {
    const ivec bits = (ivec)v;
    const ivec is_nan = (ivec)(v != v);
    const ivec nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (~is_nan & nearest) | (is_nan & (bits >> 16 | 0x40));
}

#ifndef HALVES
INLINE vec load_halves(const void *p) {
    return vec_from_halves(load_words(p));
}

INLINE void store_halves(void *p, vec v) {
    store_words(p, halves_from_vec(v));
}
#endif

INLINE vec zero_if_nan(vec v) {
    return (vec)((ivec)v & (ivec)(v == v));
}

/* rint(v) limited to [low, high], which are integers; NaN becomes 0. */
INLINE ivec rounded(vec v, float low, float high) {
    const vec number = low < 0.0f ? zero_if_nan(v) : v; /* else larger() makes NaN low, which is 0 */
    return ints_from_vec(smaller(splat(high), larger(number, splat(low))));
}

/* LANES elements of a kind that the compiler knows. */
INLINE vec load_kind(const char *p, const int kind) {
    switch (kind) {
        case KIND_FLOAT32 | KIND_SWAPPED: return vec_from_bits(swapped_floats((ivec)load(p)));
        case KIND_UINT8: return vec_from_ints(load_bytes(p));
        case KIND_INT8: return vec_from_ints(sign_extended(load_bytes(p), 8));
        case KIND_UINT16: return vec_from_ints(load_words(p));
        case KIND_UINT16 | KIND_SWAPPED: return vec_from_ints(swapped_words(load_words(p)));
        case KIND_INT16: return vec_from_ints(sign_extended(load_words(p), 16));
        case KIND_INT16 | KIND_SWAPPED: return vec_from_ints(sign_extended(swapped_words(load_words(p)), 16));
        case KIND_FLOAT16: return load_halves(p);
        case KIND_FLOAT16 | KIND_SWAPPED: {
            char native[LANES * sizeof(uint16_t)];
            store_words(native, swapped_words(load_words(p)));
            return load_halves(native);
        }
        case KIND_BFLOAT16: return vec_from_bits(load_words(p) << 16);
        case KIND_BFLOAT16 | KIND_SWAPPED: return vec_from_bits(swapped_words(load_words(p)) << 16);
        default: return load(p);
    }
}

/* v as an integer or bfloat16 of a kind, in the low bits. */
INLINE ivec bits_of_kind(vec v, const int kind) {
    switch (kind) {
        case KIND_UINT8: return rounded(v, 0.0f, 255.0f);
        case KIND_INT8: return rounded(v, -128.0f, 127.0f);
        case KIND_UINT16: return rounded(v, 0.0f, 65535.0f);
        case KIND_INT16: return rounded(v, -32768.0f, 32767.0f);
        default: return bfloats_from_vec(v);
    }
}

INLINE void store_kind(char *p, vec v, const int kind) {
    switch (kind) {
        case KIND_FLOAT32: store(p, v); break;
        case KIND_FLOAT16: store_halves(p, v); break;
        case KIND_UINT8:
        case KIND_INT8: store_bytes(p, bits_of_kind(v, kind)); break;
        default: store_words(p, bits_of_kind(v, kind)); break;
    }
}

INLINE void store_four_of_kind(char *p, const vec *v, const int kind) {
    const int bytes = LANES * element_size(kind);
#ifdef STORES_TOGETHER
    const int is_signed = kind != KIND_UINT8 && kind != KIND_UINT16; /* bfloat16 are stored as signed integers */
    ivec x[4];
    if (kind == KIND_UINT8 || kind == KIND_INT8) {
    /* NaN is converted to the smallest integer, as is what is below that, which is limited to 0 or -128. */
    UNROLL for (int i = 0; i < 4; i++) {
            x[i] = ints_from_vec(smaller(splat(is_signed ? 127.0f : 255.0f), is_signed ? zero_if_nan(v[i]) : v[i]));
        }
        store_four_of_bytes(p, x, is_signed);
        return;
    }
    if (kind != KIND_FLOAT32 && kind != KIND_FLOAT16) {
        UNROLL for (int i = 0; i < 4; i++) x[i] = bits_of_kind(v[i], kind);
        store_two_of_words(p, x, is_signed);
        store_two_of_words(p + 2 * bytes, x + 2, is_signed);
        return;
    }
#endif
    UNROLL for (int i = 0; i < 4; i++) store_kind(p + i * bytes, v[i], kind);
}

/* dst[i] = src[i], i < n, from or to elements of a kind that the compiler knows. The last vector overlaps the one
   before; fewer elements than a vector has go through a buffer. */
INLINE void widen_run_of(float *dst, const char *src, ptrdiff_t n, const int kind) {
    const int size = element_size(kind);
    if (n >= LANES) {
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES) store(dst + i, load_kind(src + i * size, kind));
        if (i < n) store(dst + n - LANES, load_kind(src + (n - LANES) * size, kind));
    } else if (n > 0) {
        char few[LANES * sizeof(float)] = {0};
        memcpy(few, src, (size_t)(n * size));
        store_first(dst, load_kind(few, kind), (int)n);
    }
}

INLINE void narrow_run_of(char *dst, const float *src, ptrdiff_t n, const int kind) {
    const int size = element_size(kind);
    if (n >= LANES) {
        ptrdiff_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES) {
            vec v[4];
            UNROLL for (int j = 0; j < 4; j++) v[j] = load(src + i + j * LANES);
            store_four_of_kind(dst + i * size, v, kind);
        }
        for (; i + LANES <= n; i += LANES) store_kind(dst + i * size, load(src + i), kind);
        if (i < n) store_kind(dst + (n - LANES) * size, load(src + n - LANES), kind);
    } else if (n > 0) {
        char few[LANES * sizeof(float)];
        store_kind(few, load_first(src, (int)n), kind);
        memcpy(dst, few, (size_t)(n * size));
    }
}

/* X(KIND) for every kind that is converted. */
#define NARROW_KINDS(X) X(KIND_UINT8) X(KIND_INT8) X(KIND_UINT16) X(KIND_INT16) X(KIND_FLOAT16) X(KIND_BFLOAT16)
#define SWAPPED_KINDS(X)           \
    X(KIND_FLOAT32 | KIND_SWAPPED) \
    X(KIND_UINT16 | KIND_SWAPPED)  \
    X(KIND_INT16 | KIND_SWAPPED) X(KIND_FLOAT16 | KIND_SWAPPED) X(KIND_BFLOAT16 | KIND_SWAPPED)

/* COUNT vectors of elements that are adjacent in memory, of a native kind. */
INLINE void load_vectors(const char *p, vec *v, const int COUNT, int kind) {
#define CASE(KIND)                                                                                              \
    case KIND:                                                                                                  \
        UNROLL for (int i = 0; i < COUNT; i++) v[i] = load_kind(p + i * LANES * element_size(KIND), KIND); \
        break;
    switch (kind) {
        NARROW_KINDS(CASE)
        default: UNROLL for (int i = 0; i < COUNT; i++) v[i] = load(p + i * (ptrdiff_t)sizeof(vec));
    }
#undef CASE
}

/* Rounded as narrow_run() does. */
INLINE void store_vectors(char *p, const vec *v, const int COUNT, int kind) {
#define CASE(KIND)                                                                                                   \
    case KIND:                                                                                                       \
        if (COUNT == 4) {                                                                                            \
            store_four_of_kind(p, v, KIND);                                                                          \
        } else {                                                                                                     \
            UNROLL for (int i = 0; i < COUNT; i++) store_kind(p + i * LANES * element_size(KIND), v[i], KIND); \
        }                                                                                                            \
        break;
    switch (kind) {
        NARROW_KINDS(CASE)
        default: UNROLL for (int i = 0; i < COUNT; i++) store(p + i * (ptrdiff_t)sizeof(vec), v[i]);
    }
#undef CASE
}

/* dst[i] = src[i]: elements of any kind to float32. */
static void widen_run(float *dst, const char *src, ptrdiff_t n, int kind) {
#define CASE(KIND) \
    case KIND: widen_run_of(dst, src, n, KIND); break;
    switch (kind) {
        NARROW_KINDS(CASE)
        SWAPPED_KINDS(CASE)
        default: widen_run_of(dst, src, n, KIND_FLOAT32); break;
    }
#undef CASE
}

/* dst[i] = src[i]: float32 to elements of any native kind, rounded. */
static void narrow_run(char *dst, const float *src, ptrdiff_t n, int kind) {
#define CASE(KIND) \
    case KIND: narrow_run_of(dst, src, n, KIND); break;
    switch (kind) {
        NARROW_KINDS(CASE)
        default: narrow_run_of(dst, src, n, KIND_FLOAT32); break;
    }
#undef CASE
}

enum { STRIDED_RUN = 128 }; /* elements that are collected, or laid out, at a time */

/* dst[i] = src[i * step] */
static void widen_strided(float *dst, const char *src, ptrdiff_t step, ptrdiff_t n, int kind) {
    const int size = element_size(kind);
    if (step == size) {
        widen_run(dst, src, n, kind);
        return;
    }
    if (kind == KIND_FLOAT32) {
        if (step == 2 * size && n > LANES) {
            copy_every_second(dst, src, n);
        } else {
            copy_elements((char *)dst, size, src, step, n, size);
        }
        return;
    }
    char run[STRIDED_RUN * sizeof(float)];
    for (ptrdiff_t i = 0; i < n; i += STRIDED_RUN) {
        const ptrdiff_t some = n - i < STRIDED_RUN ? n - i : STRIDED_RUN;
        copy_elements(run, size, src + i * step, step, some, size);
        widen_run(dst + i, run, some, kind);
    }
}

/* dst[i * step] = src[i] */
static void narrow_strided(char *dst, ptrdiff_t step, const float *src, ptrdiff_t n, int kind) {
    const int size = element_size(kind);
    if (step == size) {
        narrow_run(dst, src, n, kind);
        return;
    }
    char run[STRIDED_RUN * sizeof(float)];
    for (ptrdiff_t i = 0; i < n; i += STRIDED_RUN) {
        const ptrdiff_t some = n - i < STRIDED_RUN ? n - i : STRIDED_RUN;
        narrow_run(run, src + i, some, kind);
        copy_elements(dst + i * step, step, run, size, some, size);
    }
}
