/* AVX-512 F, BW, DQ, VL: 32 registers of 16 lanes. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LANES 16
#define VEC_REGISTER "v"
#define TILES(X) UP_TO_14(X, 1) UP_TO_14(X, 2) UP_TO_8(X, 3) UP_TO_6(X, 4) UP_TO_4(X, 6)
#define LARGEST_MR 0, 14, 14, 8, 6, 0, 4 /* for each NR in vectors */

typedef float vec __attribute__((vector_size(64)));

static inline vec splat(float x) {
    return _mm512_set1_ps(x);
}

static inline vec fmadd(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec larger(vec a, vec b) {
    return _mm512_max_ps(a, b);
}

static inline vec smaller(vec a, vec b) {
    return _mm512_min_ps(a, b);
}

static inline vec interleave_low(vec a, vec b) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, order, b);
}

static inline vec interleave_high(vec a, vec b) {
    const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, order, b);
}

/* The first n < LANES lanes; the others are zero, or stay as they are in memory. */
static inline vec load_first(const void *p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

static inline void store_first(void *p, vec v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}

static inline vec gather(const float *from, const int32_t *index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), from, sizeof(float));
}

/* For convert.h. */
typedef int32_t ints __attribute__((vector_size(64)));

#define HALVES

static inline ints load_bytes(const void *p) {
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
}

static inline ints load_words(const void *p) {
    return (ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
}

static inline void store_bytes(void *p, ints x) {
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8((__m512i)x));
}

static inline void store_words(void *p, ints x) {
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16((__m512i)x));
}

#define STORES_TOGETHER

/* Packs of two vectors take their quarters in turn. */
static inline void store_two_of_words(char *p, const ints *x, const int is_signed) {
    const __m512i a = (__m512i)x[0], b = (__m512i)x[1];
    const __m512i words = is_signed ? _mm512_packs_epi32(a, b) : _mm512_packus_epi32(a, b);
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, words));
}

static inline void store_four_of_bytes(char *p, const ints *x, const int is_signed) {
    const __m512i low = _mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]);
    const __m512i high = _mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]);
    const __m512i bytes = is_signed ? _mm512_packs_epi16(low, high) : _mm512_packus_epi16(low, high);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

static inline ints ints_from_vec(vec v) {
    return (ints)_mm512_cvtps_epi32(v);
}

static inline vec load_halves(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

static inline void store_halves(void *p, vec v) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

/* For interleave.h. */
#define SHUFFLE(A, B, I, J, K, L) ((vec)_mm512_shuffle_ps(A, B, _MM_SHUFFLE(L, K, J, I)))

/* Halves, since to insert into 256 bits takes half as long. */
static inline vec load_quads(const char *p, ptrdiff_t step) {
    const __m256 one = _mm256_castps128_ps256(_mm_loadu_ps((const float *)p));
    const __m256 three = _mm256_castps128_ps256(_mm_loadu_ps((const float *)(p + 2 * step)));
    const __m256 low = _mm256_insertf128_ps(one, _mm_loadu_ps((const float *)(p + step)), 1);
    const __m256 high = _mm256_insertf128_ps(three, _mm_loadu_ps((const float *)(p + 3 * step)), 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

static inline void store_quads(char *p, ptrdiff_t step, vec v) {
    _mm_storeu_ps((float *)p, _mm512_castps512_ps128(v));
    _mm_storeu_ps((float *)(p + step), _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps((float *)(p + 2 * step), _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps((float *)(p + 3 * step), _mm512_extractf32x4_ps(v, 3));
}

/* For planes.h. In each quarter of a vector are the bytes of four pixels. */
#define BYTE_PLANES

static inline void load_byte_planes(const char *p, ints *plane, const int channels) {
    __m512i run;
    if (channels == 1) {
        plane[0] = load_bytes(p);
        return;
    }
    if (channels == 2) {
        const __m512i pairs = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
        run = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), pairs);
    }
    if (channels == 3) {
        const __m512i quads = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
        run = _mm512_permutexvar_epi32(quads, _mm512_maskz_loadu_epi32(0x0fff, p));
    }
    if (channels == 4) run = _mm512_loadu_si512(p);
    for (int c = 0; c < channels; c++) {
        const int n = channels;
        const __m128i bytes =
            _mm_setr_epi8(c, -1, -1, -1, c + n, -1, -1, -1, c + 2 * n, -1, -1, -1, c + 3 * n, -1, -1, -1);
        plane[c] = (ints)_mm512_shuffle_epi8(run, _mm512_broadcast_i32x4(bytes));
    }
}

/* Packs make 0 of negative integers, and put the channels of four pixels one behind the other. */
static inline void store_byte_planes(char *p, const ints *plane, const int channels) {
    const __m512i last = (__m512i)plane[channels - 1];
    const __m512i low =
        channels == 1 ? _mm512_packs_epi32(last, last) : _mm512_packs_epi32((__m512i)plane[0], (__m512i)plane[1]);
    const __m512i high = channels < 3 ? low : _mm512_packs_epi32((__m512i)plane[2], last);
    const __m512i bytes = _mm512_packus_epi16(low, high);
    if (channels == 1) {
        const __m512i run = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm_storeu_si128((__m128i *)p, _mm512_castsi512_si128(_mm512_permutexvar_epi32(run, bytes)));
    } else if (channels == 2) {
        const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m512i pixels = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
        const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0);
        _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(_mm512_permutexvar_epi64(halves, pixels)));
    } else if (channels == 3) {
        const __m128i order = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
        const __m512i run = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
        const __m512i pixels = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
        _mm512_mask_storeu_epi32(p, 0x0fff, _mm512_permutexvar_epi32(run, pixels));
    } else {
        const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_storeu_si512(p, _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order)));
    }
}

static inline void store_quad_past_caches(char *p, vec v, int quad) {
    if (quad == 0) _mm_stream_ps((float *)p, _mm512_castps512_ps128(v));
    if (quad == 1) _mm_stream_ps((float *)p, _mm512_extractf32x4_ps(v, 1));
    if (quad == 2) _mm_stream_ps((float *)p, _mm512_extractf32x4_ps(v, 2));
    if (quad == 3) _mm_stream_ps((float *)p, _mm512_extractf32x4_ps(v, 3));
}

static inline void store_past_caches(void *p, vec v) {
    _mm512_stream_ps(p, v);
}

/* Pictures of two to four channels, 16 pixels: which elements of two vectors make one of the result. */
#define WIDE_PLANES

static const int32_t take_2[2][16] = {
    {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30},
    {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31},
};

static const int32_t give_2[2][16] = {
    {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23},
    {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31},
};

static const int32_t take_3[6][16] = {
    {0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0},  {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29},
    {1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30},
    {2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0},  {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31},
};

static const int32_t give_3[6][16] = {
    {0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5},
    {0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15},
    {21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26},
    {0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15},
    {0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0},
    {26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31},
};

static const int32_t take_4[2][16] = {
    {0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29},
    {2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31},
};

static const int32_t give_4[2][16] = {
    {0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27},
    {4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31},
};

static inline vec permuted(vec a, const int32_t *order, vec b) {
    return _mm512_permutex2var_ps(a, _mm512_loadu_si512(order), b);
}

static inline void wide_planes(const vec *v, vec *plane, const int channels) {
    if (channels == 2) {
        plane[0] = permuted(v[0], take_2[0], v[1]);
        plane[1] = permuted(v[0], take_2[1], v[1]);
    } else if (channels == 3) {
        plane[0] = permuted(permuted(v[0], take_3[0], v[1]), take_3[1], v[2]);
        plane[1] = permuted(permuted(v[0], take_3[2], v[1]), take_3[3], v[2]);
        plane[2] = permuted(permuted(v[0], take_3[4], v[1]), take_3[5], v[2]);
    } else {
        const vec ab = permuted(v[0], take_4[0], v[1]), cd = permuted(v[0], take_4[1], v[1]);
        const vec ab_on = permuted(v[2], take_4[0], v[3]), cd_on = permuted(v[2], take_4[1], v[3]);
        plane[0] = _mm512_shuffle_f32x4(ab, ab_on, 0x44);
        plane[1] = _mm512_shuffle_f32x4(ab, ab_on, 0xee);
        plane[2] = _mm512_shuffle_f32x4(cd, cd_on, 0x44);
        plane[3] = _mm512_shuffle_f32x4(cd, cd_on, 0xee);
    }
}

/* The reverse: adjacent pixels, in as many vectors. */
static inline void interleave_wide_planes(vec *v, const vec *plane, const int channels) {
    if (channels == 1) v[0] = plane[0];
    if (channels == 2) {
        v[0] = permuted(plane[0], give_2[0], plane[1]);
        v[1] = permuted(plane[0], give_2[1], plane[1]);
    } else if (channels == 3) {
        v[0] = permuted(permuted(plane[0], give_3[0], plane[1]), give_3[1], plane[2]);
        v[1] = permuted(permuted(plane[0], give_3[2], plane[1]), give_3[3], plane[2]);
        v[2] = permuted(permuted(plane[0], give_3[4], plane[1]), give_3[5], plane[2]);
    } else if (channels == 4) {
        const vec ab = _mm512_shuffle_f32x4(plane[0], plane[1], 0x44),
                  cd = _mm512_shuffle_f32x4(plane[2], plane[3], 0x44);
        const vec ab_on = _mm512_shuffle_f32x4(plane[0], plane[1], 0xee),
                  cd_on = _mm512_shuffle_f32x4(plane[2], plane[3], 0xee);
        v[0] = permuted(ab, give_4[0], cd);
        v[1] = permuted(ab, give_4[1], cd);
        v[2] = permuted(ab_on, give_4[0], cd_on);
        v[3] = permuted(ab_on, give_4[1], cd_on);
    }
}

/* For stream.h. */
#define STREAM_MR 8
#define STREAM_TILES(X) X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4) X(7, 3) X(8, 3)

/* For adjacent.h: up to eight out channels fill half a vector. */
#define ROWS_TILES(X) X(1, 8) X(2, 8) X(3, 8) X(4, 6)
#define HALF_TILES(X) X(1, 8)
#define QUAD_OUTS(X) X(9) X(10) X(11)

typedef float half_vec __attribute__((vector_size(32)));

static inline half_vec half_splat(float x) {
    return _mm256_set1_ps(x);
}

static inline half_vec half_fmadd(half_vec a, half_vec b, half_vec c) {
    return _mm256_fmadd_ps(a, b, c);
}

static inline half_vec half_larger(half_vec a, half_vec b) {
    return _mm256_max_ps(a, b);
}

static inline half_vec half_smaller(half_vec a, half_vec b) {
    return _mm256_min_ps(a, b);
}

static inline void half_store_quad_past_caches(char *p, half_vec v, int quad) {
    if (quad == 0) _mm_stream_ps((float *)p, _mm256_castps256_ps128(v));
    if (quad == 1) _mm_stream_ps((float *)p, _mm256_extractf128_ps(v, 1));
}

static inline void half_store_first(void *p, half_vec v, int n) {
    _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), v);
}

/* For split.h. */
typedef uint16_t bf16s __attribute__((vector_size(32)));

static inline __m512i widened(bf16s h) {
    return _mm512_cvtepu16_epi32((__m256i)h);
}

#ifdef __AVX512BF16__
static inline bf16s nearest(vec v) {
    return (bf16s)_mm512_cvtneps_pbh(v);
}
#endif
