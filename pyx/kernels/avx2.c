/* AVX2 and FMA: 16 registers of 8 lanes. */
#include <immintrin.h>
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

static inline void store_first(void *p, vec v, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), v);
}

static inline vec gather(const float *from, const int32_t *index) {
    return _mm256_i32gather_ps(from, _mm256_loadu_si256((const __m256i *)index), sizeof(float));
}

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_avx2 = ISA_RECORD("avx2", 0, 12, 6, 4, 2, 0, 1);
