/* The micro-kernel, written once for all instruction sets: C[MR][NR] += a (broadcast) * b (vector).

   The file of an instruction set defines LANES, vec, splat(), fmadd(), larger(), smaller(), the interleaves and TILES,
   and includes all templates through instruction_set.h. A kernel set for pairs of bfloat16 also defines add_products(),
   which adds two products to each sum; all else is the same, since such a pair is as wide as a float32.

   The order of summation is fixed here and nowhere else. Float32: blocks of SUM_BLOCK channels, each one chain of FMAs
   from +0 in channel order; block sums are added in ascending order. Bfloat16, whose own error is larger: one chain.
   Edges do not change the order: tiles are always whole, and what lies beyond an edge is not stored. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

#ifdef add_products
enum { ONE_CHAIN = 1 };
#else
#define add_products fmadd
enum { ONE_CHAIN = 0 };
#endif

enum { TALLEST = 14 }; /* the largest MR of this template */

#define INLINE static inline __attribute__((always_inline))
/* Each compiler ignores the other's pragmas. Clang keeps more sums in memory if the loop over steps is unrolled. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#define UNROLL_TWICE NO_UNROLL
/* Keeps Clang from loading the next row early, for which AVX2 has too few registers where rows have own pointers. */
#define END_OF_ROW __asm__ volatile("" : : : "memory")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1")
#define UNROLL_TWICE _Pragma("GCC unroll 2")
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

/* Stores clip(sum + bias) of one row of a tile. */
INLINE void store_row(const tile_t *t, char *y, int row, const vec *sum, const int VECTORS) {
    const vec low = splat(t->low), high = splat(t->high), row_bias = splat(t->bias[t->channels_in_b ? 0 : row]);
    const int last_lanes = (int)(t->nr - (VECTORS - 1) * LANES);
    UNROLL for (int v = 0; v < VECTORS; v++) {
        const vec bias = t->channels_in_b ? load(t->bias + v * LANES) : row_bias;
        const vec out = clip(sum[v] + bias, low, high);
        if (v < VECTORS - 1 || last_lanes == LANES) {
            store(y + v * sizeof(vec), out);
        } else {
            store_first(y + v * sizeof(vec), out, last_lanes);
        }
    }
}

INLINE void tile(const tile_t *t, const int MR, const int VECTORS, const int A_ROWWISE) {
    enum { LINE = 64 };
    const ptrdiff_t pitch = VECTORS * LANES;
    const char *b = t->b, *prefetch = t->prefetch;
    /* One pointer for every three rows: addressing modes reach the other two at one and two steps' distance. */
    const char *a[(TALLEST + 2) / 3];
    const ptrdiff_t a_step = t->a_step, b_step = t->b_step, prefetch_step = t->prefetch_step;
    ptrdiff_t left = t->steps;
    const int prefetch_whole_row = t->prefetch_whole_row;
    int first = t->first;
    vec sum[TALLEST][MAX_VECTORS];

    UNROLL for (int r = 0; r < MR; r += 3) a[r / 3] = t->a + r * (A_ROWWISE ? a_step : (ptrdiff_t)sizeof(float));
    for (;;) {
        const ptrdiff_t n = ONE_CHAIN || left < SUM_BLOCK ? left : SUM_BLOCK;
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            sum[r][v] = ONE_CHAIN && !first ? load(t->partial + r * pitch + v * LANES) : splat(0.0f);
        /* Unrolled twice, since the narrow front end of Haswell bounds small tiles. */
        UNROLL_TWICE for (ptrdiff_t k = 0; k < n; k++) {
            vec b_vec[MAX_VECTORS];
            /* Before the products: compilers otherwise move products across the branch, and spill sums. */
            __builtin_prefetch(prefetch);
            if (prefetch_whole_row) {
                UNROLL for (int i = LINE; i < VECTORS * (int)sizeof(vec); i += LINE) __builtin_prefetch(prefetch + i);
            }
            UNROLL for (int v = 0; v < VECTORS; v++) b_vec[v] = load(b + v * sizeof(vec));
            UNROLL for (int r = 0; r < MR; r++) {
                const char *at = a[r / 3] + r % 3 * (A_ROWWISE ? a_step : (ptrdiff_t)sizeof(float));
                const vec a_vec = splat(*(const loose_float *)at);
                UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = add_products(a_vec, b_vec[v], sum[r][v]);
                if (A_ROWWISE) END_OF_ROW;
            }
            UNROLL for (int r = 0; r < MR; r += 3) a[r / 3] += A_ROWWISE ? (ptrdiff_t)sizeof(float) : a_step;
            b += b_step;
            prefetch += prefetch_step;
        }
        left -= n;
        if (!ONE_CHAIN && !first) {
            UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++)
                sum[r][v] += load(t->partial + r * pitch + v * LANES);
        }
        if (left == 0 && t->last && t->y) break;
        UNROLL for (int r = 0; r < MR; r++) UNROLL for (int v = 0; v < VECTORS; v++)
            store(t->partial + r * pitch + v * LANES, sum[r][v]);
        if (left == 0) return;
        first = 0;
    }

    const tile_t end = *t; /* a copy: as far as a compiler knows, stores to y may change *t */
    char *y = end.y;
    UNROLL for (int r = 0; r < MR; r++, y += end.y_step) store_row(&end, y, r, sum[r], VECTORS);
}

/* Makes `one` the tile that follows, which has MR rows too. `repeat`: tiles since prefetches began again. */
INLINE void next_tile(tile_t *one, const tile_t *first, ptrdiff_t mr, ptrdiff_t *repeat) {
    one->a += first->a_next;
    one->partial += first->partial_next;
    if (one->y) one->y += mr * first->y_step;
    if (!first->channels_in_b) one->bias += mr;
    one->prefetch += first->prefetch_next;
    if (++*repeat == first->prefetch_repeats) {
        one->prefetch = first->prefetch;
        *repeat = 0;
    }
}

/* Keeps compilers from holding fields of a record in registers from tile to tile, which the loop over steps needs. */
#define IN_MEMORY(record) __asm__ volatile("" : "+m"(record))

/* All tiles of a call. In a loop here, since moving on takes a few instructions, and a call as long as many FMAs. */
#define EACH_TILE(T, MR, COMPUTE)                             \
    do {                                                      \
        tile_t one = *(T);                                    \
        ptrdiff_t repeat = 0;                                 \
        for (ptrdiff_t more = one.more; more >= 0; more--) {  \
            IN_MEMORY(one);                                   \
            COMPUTE;                                          \
            if (more > 0) next_tile(&one, T, MR, &repeat);    \
        }                                                     \
    } while (0)

/* Tiles of every MR up to a limit and V vectors, from which TILES(X) is put together. */
#define UP_TO_2(X, V) X(1, V) X(2, V)
#define UP_TO_4(X, V) UP_TO_2(X, V) X(3, V) X(4, V)
#define UP_TO_6(X, V) UP_TO_4(X, V) X(5, V) X(6, V)
#define UP_TO_8(X, V) UP_TO_6(X, V) X(7, V) X(8, V)
#define UP_TO_12(X, V) UP_TO_8(X, V) X(9, V) X(10, V) X(11, V) X(12, V)
#define UP_TO_14(X, V) UP_TO_12(X, V) X(13, V) X(14, V)
