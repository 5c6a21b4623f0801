/* AArch64 NEON: 32 registers of 4 lanes. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define LANES 4
#define VEC_REGISTER "w"

typedef float vec __attribute__((vector_size(16)));

static inline vec splat(float x) {
    return (vec)vdupq_n_f32(x);
}

static inline vec fmadd(vec a, vec b, vec c) {
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

/* a > b ? a : b as on x86; FMAX would turn a number and NaN into NaN in either order. */
static inline vec larger(vec a, vec b) {
    return (vec)vbslq_f32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}

static inline vec smaller(vec a, vec b) {
    return (vec)vbslq_f32(vcltq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}

static inline vec interleave_low(vec a, vec b) {
    return (vec)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
}

static inline vec interleave_high(vec a, vec b) {
    return (vec)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
}

/* For split.h. */
typedef uint16_t bf16s __attribute__((vector_size(8)));

static inline uint32x4_t widened(bf16s h) {
    return vmovl_u16((uint16x4_t)h);
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
static inline bf16s nearest(vec v) {
    return (bf16s)vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)v));
}
#endif

#include "kernels/four_lanes.h"
