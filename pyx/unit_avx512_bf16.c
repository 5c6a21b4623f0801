/* AVX512-BF16: a dot product of two pairs of bfloat16 is as fast as one FMA. Three of them would be slower than
   float32, so this unit serves one piece only. */
#include "avx512.h"

static inline vec add_products(vec a, vec b, vec c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#define add_products add_products

#include "tile.h"

#include "pieces.h"

#include "tiles.h"

static void split(const split_t *s) {
    split_columns(s, 1, 1);
}

const unit_t pwconv_unit_avx512_bf16 = {
    .name = "avx512_bf16",
    .pieces = 1,
    .lanes = LANES,
    .channels = 2,
    .fetches = 1,
    .together = {2, 2},
    .half_cycles = 1,
    .rows = {TALLEST_TILES},
    .kernel = {TILES(PANEL_ENTRY) TILES(ROWWISE_ENTRY)},
    .split = split,
};
