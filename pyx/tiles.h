/* The register tiles that TILES(X) lists, and their entries in a table. */
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
