/* AVX-512 F, BW, DQ, VL: 32 registers of 16 lanes. */
#include <immintrin.h>
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
