/* Puts the record of an instruction set together from the templates. */
#include "kernels/tile.h"

#include "kernels/epilogue.h"

#include "kernels/interleave.h"

#include "kernels/convert.h"

#include "kernels/planes.h"

#include "kernels/pack.h"

#include "kernels/stream.h"

#include "kernels/pixels.h"

#include "kernels/adjacent.h"

#include "kernels/head.h"

#include "kernels/sums.h"

#include "machine/limits.h"

#include "kernels/tile_table.h"

#ifndef BROADCAST_HALF_CYCLES
#define BROADCAST_HALF_CYCLES 0
#endif

#define QUAD_BIT(OUTS) | 1u << OUTS

#define ISA_RECORD(NAME, ...)                                                   \
    {                                                                           \
        .float32 = {.name = NAME,                                               \
                    .lanes = LANES,                                             \
                    .k_step = 1,                                                \
                    .prefetches = 1,                                            \
                    .k_interleave = {1, 1},                                     \
                    .half_cycles = 1,                                           \
                    .broadcast_half_cycles = BROADCAST_HALF_CYCLES,             \
                    .mr = {__VA_ARGS__},                                        \
                    .micro_kernel = {TILES(PANEL_ENTRY) TILES(ROWWISE_ENTRY)}}, \
        .pack = pack,                                                           \
        .pack_rows = pack_rows,                                                 \
        .unpack = unpack,                                                       \
        .multiply_adjacent = multiply_adjacent,                                 \
        .stream = stream,                                                       \
        .stream_mr = STREAM_MR,                                                 \
        .quad_outs = 0 QUAD_OUTS(QUAD_BIT),                                     \
        .epilogue = epilogue,                                                   \
        .best = best,                                                           \
        .indicate = indicate,                                                   \
        .probabilities = probabilities,                                         \
        .best_resized = best_resized,                                           \
        .discount_nan = discount_nan,                                           \
        .fill_uncounted = fill_uncounted,                                       \
        .add_sums = add_sums,                                                   \
        .add_totals = add_totals,                                               \
        .pack_columns = pack_columns,                                           \
        .store_sums = store_sums,                                               \
        .store_totals = store_totals,                                           \
        .sum_panel = sum_panel,                                                 \
        .centre = centre,                                                       \
        .fma_chain = fma_chain,                                                 \
        .sweep = sweep,                                                         \
    }
