/* Every x86-64: SSE2, 16 registers of 4 lanes. There is no FMA, so results differ from other sets in the last bits. */
#include <emmintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES 4
#define VEC_REGISTER "x"
#define TILES(X) UP_TO_12(X, 1) UP_TO_6(X, 2) UP_TO_4(X, 3) UP_TO_2(X, 4) X(1, 6)

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

#include "kernels/four_lanes.h"

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_baseline = ISA_RECORD("baseline", 0, 12, 6, 4, 2, 0, 1);
