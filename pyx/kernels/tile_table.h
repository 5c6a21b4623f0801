/* Instantiates the micro-kernels that TILES(X) lists, and names their entries in kernel_set_t.micro_kernel. */
#define TILE_KERNELS(MR, VECTORS)                                \
    static void tile_panel_##MR##x##VECTORS(const tile_t *t) {   \
        EACH_TILE(t, MR, tile(&one, MR, VECTORS, 0));            \
    }                                                            \
    static void tile_rowwise_##MR##x##VECTORS(const tile_t *t) { \
        EACH_TILE(t, MR, tile(&one, MR, VECTORS, 1));            \
    }
#define PANEL_ENTRY(MR, VECTORS) [0][VECTORS][MR] = tile_panel_##MR##x##VECTORS,
#define ROWWISE_ENTRY(MR, VECTORS) [1][VECTORS][MR] = tile_rowwise_##MR##x##VECTORS,

TILES(TILE_KERNELS)
