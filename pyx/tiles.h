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

TILES(TILE_KERNELS)
