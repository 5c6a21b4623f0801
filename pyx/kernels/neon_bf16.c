/* AArch64's BFMMLA: a register holds 2 x 2 sums, to which one instruction adds the products of four channels. With two
   terms a number, three of the four products are added: the product of the two second terms is as small as the rounding
   error.

   BFMMLA rounds the sum of two products to odd, and so the sum that it is added to. The error is at most twice that of
   rounding to nearest, and the same on all CPUs, since the control register asks for no extended behaviour. */
#include "kernels/neon.h"

#include "kernels/tile.h"

#include "kernels/split.h"

enum { CHANNELS = 4, MOST_PAIRS = 8, MOST_VECTORS = 3, MOST_HELD = 4 };

/* Adds the products of two rows of A and two columns of B over four channels. */
static inline vec add_matrices(vec rows, vec lanes, vec sums) {
    return (vec)vbfmmlaq_f32((float32x4_t)sums, vreinterpretq_bf16_f32((float32x4_t)rows),
                             vreinterpretq_bf16_f32((float32x4_t)lanes));
}

/* Turns two registers of 2 x 2 sums into a vector of each row. */
INLINE void swap_halves(vec to[2], vec first, vec second) {
    to[0] = (vec)vzip1q_f64((float64x2_t)first, (float64x2_t)second);
    to[1] = (vec)vzip2q_f64((float64x2_t)first, (float64x2_t)second);
}

/* Rows come in pairs: a last single row is summed together with the bytes behind it, whose sums are not stored. */
INLINE void matrix_tile(const tile_t *t, const int TERMS, const int PAIRS, const int VECTORS) {
    const int products = TERMS == 2 ? 3 : 1;
    /* Bits depend on the order of the products, and must not depend on which operand holds the pixels: the product with
       the pixels' second term comes first, the one with the weights' second term last. */
    const int pixels_in_a = TERMS == 2 && t->channels_in_b, pixels_in_b = TERMS == 2 && !t->channels_in_b;
    const ptrdiff_t a_offset[3] = {pixels_in_a * t->a_term, 0, pixels_in_b * t->a_term};
    const ptrdiff_t b_offset[3] = {pixels_in_b * t->b_term, 0, pixels_in_a * t->b_term};
    const char *a = t->a, *b = t->b, *prefetch = t->prefetch;
    vec sum[MOST_PAIRS][2 * MOST_VECTORS];

    UNROLL for (int p = 0; p < PAIRS; p++) UNROLL for (int l = 0; l < 2 * VECTORS; l++)
        sum[p][l] = t->first ? splat(0.0f) : load(t->partial + (2 * p * VECTORS + l) * LANES);
    for (ptrdiff_t step = 0; step < t->steps; step++, a += t->a_step, b += t->b_step) {
        UNROLL for (int i = 0; i < CHANNELS; i++, prefetch += t->prefetch_step) __builtin_prefetch(prefetch);
        /* Registers suffice if this loop is not unrolled and the shorter operand is held. */
        NO_UNROLL for (int i = t->pixels_have_one_term; i < products; i++) {
            vec held[MOST_HELD];
            if (PAIRS < 2 * VECTORS) {
                UNROLL for (int p = 0; p < PAIRS; p++) held[p] = load(a + a_offset[i] + p * sizeof(vec));
                UNROLL for (int l = 0; l < 2 * VECTORS; l++) {
                    const vec lanes = load(b + b_offset[i] + l * sizeof(vec));
                    UNROLL for (int p = 0; p < PAIRS; p++) sum[p][l] = add_matrices(held[p], lanes, sum[p][l]);
                }
            } else {
                UNROLL for (int l = 0; l < 2 * VECTORS; l++) held[l] = load(b + b_offset[i] + l * sizeof(vec));
                UNROLL for (int p = 0; p < PAIRS; p++) {
                    const vec rows = load(a + a_offset[i] + p * sizeof(vec));
                    UNROLL for (int l = 0; l < 2 * VECTORS; l++) sum[p][l] = add_matrices(rows, held[l], sum[p][l]);
                }
            }
        }
    }
    if (!t->last) {
        UNROLL for (int p = 0; p < PAIRS; p++) UNROLL for (int l = 0; l < 2 * VECTORS; l++)
            store(t->partial + (2 * p * VECTORS + l) * LANES, sum[p][l]);
        return;
    }
    const tile_t end = *t; /* see tile() */
    UNROLL for (int p = 0; p < PAIRS; p++) {
        vec out[2][MOST_VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            vec both[2];
            swap_halves(both, sum[p][2 * v], sum[p][2 * v + 1]);
            out[0][v] = both[0], out[1][v] = both[1];
        }
        UNROLL for (int i = 0; i < 2; i++) {
            const int row = 2 * p + i;
            if (!end.y) {
                UNROLL for (int v = 0; v < VECTORS; v++) store(end.partial + (row * VECTORS + v) * LANES, out[i][v]);
            } else if (row < end.mr) {
                store_row(&end, end.y + row * end.y_step, row, out[i], VECTORS);
            }
        }
    }
}

#define TILES(X) UP_TO_8(X, 1) UP_TO_6(X, 2) UP_TO_4(X, 3) /* in pairs of rows */
#define KERNELS(PAIRS, VECTORS)                                    \
    static void tile_1_##PAIRS##x##VECTORS(const tile_t *t) {      \
        EACH_TILE(t, t->mr, matrix_tile(&one, 1, PAIRS, VECTORS)); \
    }                                                              \
    static void tile_2_##PAIRS##x##VECTORS(const tile_t *t) {      \
        EACH_TILE(t, t->mr, matrix_tile(&one, 2, PAIRS, VECTORS)); \
    }
#define ENTRY(TERMS, PAIRS, VECTORS) [0][VECTORS][2 * PAIRS - 1 ... 2 * PAIRS] = tile_##TERMS##_##PAIRS##x##VECTORS,
#define ENTRY_1(PAIRS, VECTORS) ENTRY(1, PAIRS, VECTORS)
#define ENTRY_2(PAIRS, VECTORS) ENTRY(2, PAIRS, VECTORS)
TILES(KERNELS)

static void split_1(const split_t *s) {
    split_columns(s, 1, CHANNELS / 2);
}

static void split_2(const split_t *s) {
    split_columns(s, 2, CHANNELS / 2);
}

#define KERNEL_SET(TERMS, HALF_CYCLES)                \
    {                                       \
        .name = "neon_bf16",                \
        .terms = TERMS,                   \
        .lanes = LANES,                     \
        .k_step = CHANNELS,               \
        .prefetches = CHANNELS,                \
        .k_interleave = {CHANNELS, CHANNELS},   \
        .half_cycles = HALF_CYCLES,                   \
        .mr = {0, 16, 12, 8},             \
        .micro_kernel = {TILES(ENTRY_##TERMS)},  \
        .split = split_##TERMS,            \
    }

const kernel_set_t pwconv_kernels_neon_bf16x1 = KERNEL_SET(1, 1);
const kernel_set_t pwconv_kernels_neon_bf16x2 = KERNEL_SET(2, 3);
