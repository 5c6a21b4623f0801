/* AVX512-BF16: a dot product of two pairs of bfloat16 takes as long as one FMA. The three products of a set with two
   terms would be slower than float32, so there is only a set with one term. */
#include "kernels/avx512.h"

static inline vec add_products(vec a, vec b, vec c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#define add_products add_products

#include "kernels/tile.h"

#include "kernels/split.h"

#include "kernels/tile_table.h"

static void split(const split_t *s) {
    split_columns(s, 1, 1);
}

const kernel_set_t pwconv_kernels_avx512_bf16 = {
    .name = "avx512_bf16",
    .terms = 1,
    .lanes = LANES,
    .k_step = 2,
    .prefetches = 1,
    .k_interleave = {2, 2},
    .half_cycles = 1,
    .mr = {LARGEST_MR},
    .micro_kernel = {TILES(PANEL_ENTRY) TILES(ROWWISE_ENTRY)},
    .split = split,
};
