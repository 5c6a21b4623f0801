/* AArch64 NEON: 32 registers of 4 lanes. */
#include <arm_neon.h>
#include <stddef.h>
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

/* For convert.h. */
typedef int32_t ints __attribute__((vector_size(16)));

#define HALVES

static inline ints load_bytes(const void *p) {
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return (ints)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)))));
}

static inline ints load_words(const void *p) {
    return (ints)vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)));
}

static inline void store_bytes(void *p, ints x) {
    const uint16x4_t words = vmovn_u32((uint32x4_t)x);
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &bytes, sizeof bytes);
}

static inline void store_words(void *p, ints x) {
    vst1_u8(p, vreinterpret_u8_u16(vmovn_u32((uint32x4_t)x)));
}

static inline ints ints_from_vec(vec v) {
    return (ints)vcvtnq_s32_f32((float32x4_t)v);
}

static inline vec load_halves(const void *p) {
    return (vec)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

static inline void store_halves(void *p, vec v) {
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32((float32x4_t)v)));
}

#ifdef __clang__
#define SHUFFLE(A, B, I, J, K, L) __builtin_shufflevector(A, B, I, J, 4 + (K), 4 + (L))
#else
#define SHUFFLE(A, B, I, J, K, L) __builtin_shuffle(A, B, (ints){I, J, 4 + (K), 4 + (L)})
#endif

/* Caches of AArch64 detect that whole lines are written, so plain stores do. */
static inline void store_past_caches(void *p, vec v) {
    memcpy(p, &v, sizeof v);
}

/* For stream.h. */
#define STREAM_MR 8
#define STREAM_TILES(X) X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4) X(7, 3) X(8, 3)

/* For adjacent.h. */
#define ROWS_TILES(X) X(1, 8) X(2, 8) X(3, 6) X(4, 5)

#include "kernels/four_lanes.h"
