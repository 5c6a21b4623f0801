/* The register tile, written once: C[ROWS][VECTORS] += a (broadcast) * b (vector).

   An instruction set's file defines LANES, vec, splat(), fmadd(), larger(), smaller(), the interleaves and TILES, and
   includes all templates through isa_table.h. A unit for pairs of bfloat16 defines add_products() as well,
   which takes two channels to a sum; all else is the same, as such a pair is as wide as a float32.
   The order of summation is fixed here and nowhere else. Float32: blocks of SUM_BLOCK channels, each one chain of FMAs
   from +0 in channel order; block sums added in ascending order. Bfloat16, whose own error is larger: one chain.
   No edge changes it: tiles are always whole, what lies beyond an edge is dropped when the tile is stored. */
#include <math.h>
#include <string.h>

#include "isa.h"

#ifdef add_products
enum { ONE_CHAIN = 1 };
#else
#define add_products fmadd
enum { ONE_CHAIN = 0 };
#endif

enum { TALLEST = 14 }; /* of the register tiles */

#define INLINE static inline __attribute__((always_inline))
/* Each compiler takes its own words only; unrolled twice, Clang keeps more sums in memory. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#define TWO_A_TURN NO_UNROLL
/* Clang loads for the next row too early for AVX2's 16 registers, where each row has its own place. */
#define END_OF_ROW __asm__ volatile("" : : : "memory")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1")
#define TWO_A_TURN _Pragma("GCC unroll 2")
#define END_OF_ROW (void)0
#endif

/* Feature maps may lie at any byte address. */
typedef float loose_float __attribute__((aligned(1), may_alias));
typedef vec loose_vec __attribute__((aligned(1), may_alias));

INLINE vec load(const void *p) {
    return *(const loose_vec *)p;
}

INLINE void store(void *p, vec v) {
    *(loose_vec *)p = v;
}

/* larger(a, b) is a > b ? a : b, so NaN in b passes. */
INLINE vec clip(vec v, vec low, vec high) {
    return smaller(high, larger(low, v));
}

/* bias + clip(sum) of a row of a tile, to where it belongs. */
INLINE void put_row(const tile_t *t, char *y, int row, const vec *sum, const int VECTORS) {
    const vec low = splat(t->low), high = splat(t->high);
    const int last_lanes = (int)(t->lanes - (VECTORS - 1) * LANES);
    UNROLL for (int v = 0; v < VECTORS; v++) {
        const vec bias = t->bias_on_lanes ? load(t->bias + v * LANES) : splat(t->bias[row]);
        const vec out = clip(sum[v] + bias, low, high);
        if (v < VECTORS - 1 || last_lanes == LANES) {
            store(y + v * sizeof(vec), out);
        } else {
            store_first(y + v * sizeof(vec), out, last_lanes);
        }
    }
}

INLINE void tile(const tile_t *t, const int ROWS, const int VECTORS, const int A_ROWWISE) {
    enum { LINE = 64 };
    const ptrdiff_t pitch = VECTORS * LANES;
    const char *b = t->b, *ahead = t->ahead;
    /* One pointer for every three rows: the others are one and two steps away, which an address can add by itself. */
    const char *a[(TALLEST + 2) / 3];
    const ptrdiff_t a_step = t->a_step, b_step = t->b_step, ahead_step = t->ahead_step;
    ptrdiff_t left = t->steps;
    const int ahead_all = t->ahead_all;
    int first = t->first;
    vec sum[TALLEST][MAX_VECTORS];

    UNROLL for (int r = 0; r < ROWS; r += 3) a[r / 3] = t->a + r * (A_ROWWISE ? a_step : (ptrdiff_t)sizeof(float));
    for (;;) {
        const ptrdiff_t n = ONE_CHAIN || left < SUM_BLOCK ? left : SUM_BLOCK;
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            sum[r][v] = ONE_CHAIN && !first ? load(t->partial + r * pitch + v * LANES) : splat(0.0f);
        /* Two steps a turn: the narrow front ends (Haswell) are what bounds small tiles. */
        TWO_A_TURN for (ptrdiff_t k = 0; k < n; k++) {
            vec lane[MAX_VECTORS];
            /* Before the products: compilers move these across the branch otherwise, and run out of registers. */
            __builtin_prefetch(ahead);
            if (ahead_all) {
                UNROLL for (int i = LINE; i < VECTORS * (int)sizeof(vec); i += LINE) __builtin_prefetch(ahead + i);
            }
            UNROLL for (int v = 0; v < VECTORS; v++) lane[v] = load(b + v * sizeof(vec));
            UNROLL for (int r = 0; r < ROWS; r++) {
                const char *at = a[r / 3] + r % 3 * (A_ROWWISE ? a_step : (ptrdiff_t)sizeof(float));
                const vec row = splat(*(const loose_float *)at);
                UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = add_products(row, lane[v], sum[r][v]);
                if (A_ROWWISE) END_OF_ROW;
            }
            UNROLL for (int r = 0; r < ROWS; r += 3) a[r / 3] += A_ROWWISE ? (ptrdiff_t)sizeof(float) : a_step;
            b += b_step;
            ahead += ahead_step;
        }
        left -= n;
        if (!ONE_CHAIN && !first) {
            UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
                sum[r][v] += load(t->partial + r * pitch + v * LANES);
        }
        if (left == 0 && t->last && t->y) break;
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            store(t->partial + r * pitch + v * LANES, sum[r][v]);
        if (left == 0) return;
        first = 0;
    }

    const tile_t end = *t; /* not to be read again after each store, which might change t for all a compiler knows */
    char *y = end.y;
    UNROLL for (int r = 0; r < ROWS; r++, y += end.y_step) put_row(&end, y, r, sum[r], VECTORS);
}

/* Tiles of up to so many rows and V vectors, from which TILES(X) is put together. */
#define UP_TO_2(X, V) X(1, V) X(2, V)
#define UP_TO_4(X, V) UP_TO_2(X, V) X(3, V) X(4, V)
#define UP_TO_6(X, V) UP_TO_4(X, V) X(5, V) X(6, V)
#define UP_TO_8(X, V) UP_TO_6(X, V) X(7, V) X(8, V)
#define UP_TO_12(X, V) UP_TO_8(X, V) X(9, V) X(10, V) X(11, V) X(12, V)
#define UP_TO_14(X, V) UP_TO_12(X, V) X(13, V) X(14, V)
