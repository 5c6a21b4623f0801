/* AArch64's BFMMLA: 2 rows x 2 lanes of sums in a register, to which four channels are added at a time. Kernels run
   with one piece or two for each number; of two, three products: what the fourth would add is as small as the rounding.

   BFMMLA rounds the sum of two products, and then what it adds that to, to odd: twice the error of rounding to nearest
   at most, and the same on all CPUs, as the control register asks for nothing else. */
#include "neon.h"

#include "tile.h"

#include "pieces.h"

enum { CHANNELS = 4, MOST_PAIRS = 8, MOST_VECTORS = 3, MOST_HELD = 4 };

/* Two rows of four channels, times two lanes of as many. */
static inline vec add_matrices(vec rows, vec lanes, vec sums) {
    return (vec)vbfmmlaq_f32((float32x4_t)sums, vreinterpretq_bf16_f32((float32x4_t)rows),
                             vreinterpretq_bf16_f32((float32x4_t)lanes));
}

/* A vector each of two rows from two registers of 2 x 2 sums, or the other way round. */
INLINE void swap_halves(vec to[2], vec first, vec second) {
    to[0] = (vec)vzip1q_f64((float64x2_t)first, (float64x2_t)second);
    to[1] = (vec)vzip2q_f64((float64x2_t)first, (float64x2_t)second);
}

/* An odd last row is summed with what lies behind it, which is dropped at the end. */
INLINE void matrix_tile(const tile_t *t, const int PIECES, const int PAIRS, const int VECTORS) {
    const int products = PIECES == 2 ? 3 : 1;
    /* Sums depend on the order of the products, which must not depend on whether pixels are rows or lanes: the rest of
       the pixels comes first, that of the weights last. */
    const int pixels_on_rows = PIECES == 2 && t->bias_on_lanes, pixels_on_lanes = PIECES == 2 && !t->bias_on_lanes;
    const ptrdiff_t a_piece[3] = {pixels_on_rows * t->a_apart, 0, pixels_on_lanes * t->a_apart};
    const ptrdiff_t b_piece[3] = {pixels_on_lanes * t->b_apart, 0, pixels_on_rows * t->b_apart};
    const char *a = t->a, *b = t->b, *ahead = t->ahead;
    vec sum[MOST_PAIRS][2 * MOST_VECTORS];

    UNROLL for (int p = 0; p < PAIRS; p++) UNROLL for (int l = 0; l < 2 * VECTORS; l++)
        sum[p][l] = t->first ? splat(0.0f) : load(t->partial + (2 * p * VECTORS + l) * LANES);
    for (ptrdiff_t step = 0; step < t->steps; step++, a += t->a_step, b += t->b_step) {
        UNROLL for (int i = 0; i < CHANNELS; i++, ahead += t->ahead_step) __builtin_prefetch(ahead);
        /* Unrolled, it runs out of registers; so it does with the longer side in them. */
        NO_UNROLL for (int i = t->pixels_in_one; i < products; i++) {
            vec held[MOST_HELD];
            if (PAIRS < 2 * VECTORS) {
                UNROLL for (int p = 0; p < PAIRS; p++) held[p] = load(a + a_piece[i] + p * sizeof(vec));
                UNROLL for (int l = 0; l < 2 * VECTORS; l++) {
                    const vec lanes = load(b + b_piece[i] + l * sizeof(vec));
                    UNROLL for (int p = 0; p < PAIRS; p++) sum[p][l] = add_matrices(held[p], lanes, sum[p][l]);
                }
            } else {
                UNROLL for (int l = 0; l < 2 * VECTORS; l++) held[l] = load(b + b_piece[i] + l * sizeof(vec));
                UNROLL for (int p = 0; p < PAIRS; p++) {
                    const vec rows = load(a + a_piece[i] + p * sizeof(vec));
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
            } else if (row < end.rows) {
                put_row(&end, end.y + row * end.y_step, row, out[i], VECTORS);
            }
        }
    }
}

#define TILES(X) UP_TO_8(X, 1) UP_TO_6(X, 2) UP_TO_4(X, 3) /* pairs of rows */
#define KERNELS(PAIRS, VECTORS)                                \
    static void tile_1_##PAIRS##x##VECTORS(const tile_t *t) {  \
        matrix_tile(t, 1, PAIRS, VECTORS);                     \
    }                                                          \
    static void tile_2_##PAIRS##x##VECTORS(const tile_t *t) {  \
        matrix_tile(t, 2, PAIRS, VECTORS);                     \
    }
#define ENTRY(PIECES, PAIRS, VECTORS) [0][VECTORS][2 * PAIRS - 1 ... 2 * PAIRS] = tile_##PIECES##_##PAIRS##x##VECTORS,
#define ENTRY_1(PAIRS, VECTORS) ENTRY(1, PAIRS, VECTORS)
#define ENTRY_2(PAIRS, VECTORS) ENTRY(2, PAIRS, VECTORS)
TILES(KERNELS)

static void split_1(const split_t *s) {
    split_columns(s, 1, CHANNELS / 2);
}

static void split_2(const split_t *s) {
    split_columns(s, 2, CHANNELS / 2);
}

#define UNIT(PIECES, HALF_CYCLES)                \
    {                                       \
        .name = "neon_bf16",                \
        .pieces = PIECES,                   \
        .lanes = LANES,                     \
        .channels = CHANNELS,               \
        .fetches = CHANNELS,                \
        .together = {CHANNELS, CHANNELS},   \
        .half_cycles = HALF_CYCLES,                   \
        .rows = {0, 16, 12, 8},             \
        .kernel = {TILES(ENTRY_##PIECES)},  \
        .split = split_##PIECES,            \
    }

const unit_t pwconv_unit_neon_bf16_1 = UNIT(1, 1);
const unit_t pwconv_unit_neon_bf16_2 = UNIT(2, 3);
