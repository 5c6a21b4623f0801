/* Every x86-64: SSE2, 16 registers of 4 lanes. There is no FMA, so results differ from other sets in the last bits. */
#include <emmintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 4
#define VEC_REGISTER "x"
/* A product needs a register of its own before it is added, so tiles of three vectors have three rows. */
#define TILES(X) UP_TO_12(X, 1) UP_TO_6(X, 2) UP_TO_2(X, 3) X(3, 3) UP_TO_2(X, 4) X(1, 6)

#define BROADCAST_HALF_CYCLES 1 /* a shuffle follows the load */

typedef float vec __attribute__((vector_size(16)));

static inline vec splat(float x) {
    return _mm_set1_ps(x);
}

static inline vec fmadd(vec a, vec b, vec c) {
    return a * b + c;
}

static inline vec larger(vec a, vec b) {
    return _mm_max_ps(a, b);
}

static inline vec smaller(vec a, vec b) {
    return _mm_min_ps(a, b);
}

static inline vec interleave_low(vec a, vec b) {
    return _mm_unpacklo_ps(a, b);
}

static inline vec interleave_high(vec a, vec b) {
    return _mm_unpackhi_ps(a, b);
}

/* For convert.h. */
typedef int32_t ints __attribute__((vector_size(16)));

static inline ints load_bytes(const void *p) {
    const __m128i zero = _mm_setzero_si128();
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return (ints)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero), zero);
}

static inline ints load_words(const void *p) {
    return (ints)_mm_unpacklo_epi16(_mm_loadl_epi64(p), _mm_setzero_si128());
}

/* SSE2 has packs to signed integers only. */
static inline __m128i low_words(ints a, ints b) {
    return _mm_packs_epi32((__m128i)(a << 16 >> 16), (__m128i)(b << 16 >> 16));
}

static inline void store_words(void *p, ints x) {
    _mm_storel_epi64(p, low_words(x, x));
}

static inline void store_bytes(void *p, ints x) {
    const __m128i words = low_words(x & 255, x & 255);
    const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(p, &bytes, sizeof bytes);
}

#define STORES_TOGETHER

static inline void store_two_of_words(char *p, const ints *x, const int is_signed) {
    const __m128i words = is_signed ? _mm_packs_epi32((__m128i)x[0], (__m128i)x[1]) : low_words(x[0], x[1]);
    _mm_storeu_si128((__m128i *)p, words);
}

static inline void store_four_of_bytes(char *p, const ints *x, const int is_signed) {
    const __m128i low = _mm_packs_epi32((__m128i)x[0], (__m128i)x[1]);
    const __m128i high = _mm_packs_epi32((__m128i)x[2], (__m128i)x[3]);
    _mm_storeu_si128((__m128i *)p, is_signed ? _mm_packs_epi16(low, high) : _mm_packus_epi16(low, high));
}

static inline ints ints_from_vec(vec v) {
    return (ints)_mm_cvtps_epi32(v);
}

#define SHUFFLE(A, B, I, J, K, L) ((vec)_mm_shuffle_ps(A, B, _MM_SHUFFLE(L, K, J, I)))

static inline void store_past_caches(void *p, vec v) {
    _mm_stream_ps(p, v);
}

/* For stream.h. */
#define STREAM_MR 4
#define STREAM_TILES(X) X(1, 4) X(2, 4) X(3, 3) X(4, 3)

/* For adjacent.h. */
#define ROWS_TILES(X) X(1, 8) X(2, 6) X(3, 4) X(4, 3)

#include "kernels/four_lanes.h"

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_baseline = ISA_RECORD("baseline", 0, 12, 6, 3, 2, 0, 1);
