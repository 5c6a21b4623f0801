/* The record of an instruction set, put together from the templates. TILES(X) lists its register tiles. */
#include "tile.h"

#include "epilogue.h"

#include "panel.h"

#include "head.h"

#include "ceilings.h"

#define TILE_KERNELS(ROWS, VECTORS)                                \
    static void tile_panel_##ROWS##x##VECTORS(const tile_t *t) {   \
        tile(t, ROWS, VECTORS, 0);                                 \
    }                                                              \
    static void tile_rowwise_##ROWS##x##VECTORS(const tile_t *t) { \
        tile(t, ROWS, VECTORS, 1);                                 \
    }
#define PANEL_ENTRY(ROWS, VECTORS) [0][VECTORS][ROWS] = tile_panel_##ROWS##x##VECTORS,
#define ROWWISE_ENTRY(ROWS, VECTORS) [1][VECTORS][ROWS] = tile_rowwise_##ROWS##x##VECTORS,

#define UP_TO_2(X, V) X(1, V) X(2, V)
#define UP_TO_4(X, V) UP_TO_2(X, V) X(3, V) X(4, V)
#define UP_TO_6(X, V) UP_TO_4(X, V) X(5, V) X(6, V)
#define UP_TO_8(X, V) UP_TO_6(X, V) X(7, V) X(8, V)
#define UP_TO_12(X, V) UP_TO_8(X, V) X(9, V) X(10, V) X(11, V) X(12, V)
#define UP_TO_14(X, V) UP_TO_12(X, V) X(13, V) X(14, V)

TILES(TILE_KERNELS)

#define ISA_RECORD(NAME, FUSED, ...)                         \
    {                                                        \
        .name = NAME,                                        \
        .lanes = LANES,                                      \
        .fused = FUSED,                                      \
        .rows = {__VA_ARGS__},                               \
        .kernel = {TILES(PANEL_ENTRY) TILES(ROWWISE_ENTRY)}, \
        .pack = pack,                                        \
        .pack_rows = pack_rows,                              \
        .finish = finish,                                    \
        .best = best,                                        \
        .softmax = softmax,                                  \
        .best_resized = best_resized,                        \
        .copy = copy,                                        \
        .fma_chain = fma_chain,                              \
        .sweep = sweep,                                      \
    }
