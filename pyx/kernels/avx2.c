/* AVX2 and FMA: 16 registers of 8 lanes. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LANES 8
#define VEC_REGISTER "x"
#define TILES(X) UP_TO_12(X, 1) UP_TO_6(X, 2) UP_TO_4(X, 3) UP_TO_2(X, 4) X(1, 6)

typedef float vec __attribute__((vector_size(32)));

static inline vec splat(float x) {
    return _mm256_set1_ps(x);
}

static inline vec fmadd(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec larger(vec a, vec b) {
    return _mm256_max_ps(a, b);
}

static inline vec smaller(vec a, vec b) {
    return _mm256_min_ps(a, b);
}

static inline vec interleave_low(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}

static inline vec interleave_high(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

/* The first n < LANES lanes; the others are zero, or stay as they are in memory. */
static inline __m256i first_lanes(int n) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_then_zeros + LANES - n));
}

static inline vec load_first(const void *p, int n) {
    return _mm256_maskload_ps(p, first_lanes(n));
}

/* Stores by a mask take tens of cycles on AMD's processors. */
static inline void store_first(void *p, vec v, int n) {
    float *at = p;
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(at, part);
        part = _mm256_extractf128_ps(v, 1);
        at += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)at, part);
        part = _mm_movehl_ps(part, part);
        at += 2;
    }
    if (n & 1) _mm_store_ss(at, part);
}

static inline vec gather(const float *from, const int32_t *index) {
    return _mm256_i32gather_ps(from, _mm256_loadu_si256((const __m256i *)index), sizeof(float));
}

/* For convert.h. */
typedef int32_t ints __attribute__((vector_size(32)));

#define HALVES

static inline ints load_bytes(const void *p) {
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
}

static inline ints load_words(const void *p) {
    return (ints)_mm256_cvtepu16_epi32(_mm_loadu_si128(p));
}

/* Packs of two vectors take their halves in turn. */
static inline void store_words(void *p, ints x) {
    const __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xffff));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), _MM_SHUFFLE(3, 1, 2, 0));
    _mm_storeu_si128(p, _mm256_castsi256_si128(words));
}

static inline void store_bytes(void *p, ints x) {
    const __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xff));
    const __m256i words = _mm256_packs_epi32(low, low);
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm_storel_epi64(p, _mm256_castsi256_si128(bytes));
}

#define STORES_TOGETHER

static inline void store_two_of_words(char *p, const ints *x, const int is_signed) {
    const __m256i a = (__m256i)x[0], b = (__m256i)x[1];
    const __m256i words = is_signed ? _mm256_packs_epi32(a, b) : _mm256_packus_epi32(a, b);
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)));
}

static inline void store_four_of_bytes(char *p, const ints *x, const int is_signed) {
    const __m256i low = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]);
    const __m256i high = _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]);
    const __m256i bytes = is_signed ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)p, _mm256_permutevar8x32_epi32(bytes, order));
}

static inline ints ints_from_vec(vec v) {
    return (ints)_mm256_cvtps_epi32(v);
}

static inline vec load_halves(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

static inline void store_halves(void *p, vec v) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

/* For interleave.h. */
#define SHUFFLE(A, B, I, J, K, L) ((vec)_mm256_shuffle_ps(A, B, _MM_SHUFFLE(L, K, J, I)))

static inline vec load_quads(const char *p, ptrdiff_t step) {
    const __m256 first = _mm256_castps128_ps256(_mm_loadu_ps((const float *)p));
    return _mm256_insertf128_ps(first, _mm_loadu_ps((const float *)(p + step)), 1);
}

/* Those of a run of quads in registers; the numbers are constants. */
static inline vec two_quads(const vec *run, const int first, const int second) {
    const vec a = run[first / 2], b = run[second / 2];
    if (second % 2 == 0) return first % 2 ? _mm256_permute2f128_ps(a, b, 0x21) : _mm256_permute2f128_ps(a, b, 0x20);
    return first % 2 ? _mm256_permute2f128_ps(a, b, 0x31) : _mm256_permute2f128_ps(a, b, 0x30);
}

static inline void store_quads(char *p, ptrdiff_t step, vec v) {
    _mm_storeu_ps((float *)p, _mm256_castps256_ps128(v));
    _mm_storeu_ps((float *)(p + step), _mm256_extractf128_ps(v, 1));
}

/* For planes.h. In each half of a vector are the bytes of four pixels, of which channel c begins at byte c. */
#define BYTE_PLANES

/* Nothing behind the pixels is read: the second half of 24 bytes begins four bytes before their middle. */
static inline void load_byte_planes(const char *p, ints *plane, const int channels) {
    __m256i run;
    if (channels == 1) {
        plane[0] = load_bytes(p);
        return;
    }
    if (channels == 2) run = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    if (channels == 3) {
        run = _mm256_setr_m128i(_mm_loadu_si128((const __m128i *)p), _mm_loadu_si128((const __m128i *)(p + 8)));
    }
    if (channels == 4) run = _mm256_loadu_si256((const __m256i *)p);
    const int second = channels == 2 ? 8 : channels == 3 ? 4 : 0;
    for (int c = 0; c < channels; c++) {
        const int a = c, b = c + second, n = channels;
        plane[c] = (ints)_mm256_shuffle_epi8(
            run, _mm256_setr_epi8(a, -1, -1, -1, a + n, -1, -1, -1, a + 2 * n, -1, -1, -1, a + 3 * n, -1, -1, -1, /* */
                                  b, -1, -1, -1, b + n, -1, -1, -1, b + 2 * n, -1, -1, -1, b + 3 * n, -1, -1, -1));
    }
}

/* Packs make 0 of negative integers, and put the channels of four pixels one behind the other. */
static inline void store_byte_planes(char *p, const ints *plane, const int channels) {
    const __m256i last = (__m256i)plane[channels - 1];
    if (channels == 1) {
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(last), _mm256_extracti128_si256(last, 1));
        _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
        return;
    }
    const __m256i low = _mm256_packs_epi32((__m256i)plane[0], (__m256i)plane[1]);
    const __m256i high = channels == 2 ? low : _mm256_packs_epi32((__m256i)plane[2], last);
    const __m256i bytes = _mm256_packus_epi16(low, high);
    if (channels == 2) {
        const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i pixels = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
        _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pixels, 0x08)));
    } else if (channels == 3) {
        const __m128i order = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
        const __m256i pixels = _mm256_permutevar8x32_epi32(
            _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order)), _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7));
        _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(pixels));
        _mm_storel_epi64((__m128i *)(p + 16), _mm256_extracti128_si256(pixels, 1));
    } else {
        const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm256_storeu_si256((__m256i *)p, _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order)));
    }
}

static inline void store_quad_past_caches(char *p, vec v, int quad) {
    if (quad == 0) _mm_stream_ps((float *)p, _mm256_castps256_ps128(v));
    if (quad == 1) _mm_stream_ps((float *)p, _mm256_extractf128_ps(v, 1));
}

static inline void store_past_caches(void *p, vec v) {
    _mm256_stream_ps(p, v);
}

/* For stream.h: tiles store whole cache lines of each row at a time. Parts of them past the
   caches would be written one by one. */
#define STREAM_MR 6
#define STREAM_TILES(X) X(1, 4) X(2, 4) X(3, 4) X(4, 2) X(5, 2) X(6, 2)

/* For adjacent.h. */
#define ROWS_TILES(X) X(1, 8) X(2, 6) X(3, 4) X(4, 3)

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_avx2 = ISA_RECORD("avx2", 0, 12, 6, 4, 2, 0, 1);
