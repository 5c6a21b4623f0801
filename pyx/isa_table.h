/* The record of an instruction set, put together from the templates. */
#include "tile.h"

#include "epilogue.h"

#include "panel.h"

#include "head.h"

#include "ceilings.h"

#include "tiles.h"

#define ISA_RECORD(NAME, ...)                                          \
    {                                                                  \
        .unit = {.name = NAME,                                         \
                 .lanes = LANES,                                       \
                 .channels = 1,                                        \
                 .fetches = 1,                                         \
                 .together = {1, 1},                                   \
                 .half_cycles = 1,                                     \
                 .rows = {__VA_ARGS__},                                \
                 .kernel = {TILES(PANEL_ENTRY) TILES(ROWWISE_ENTRY)}}, \
        .pack = pack,                                                  \
        .pack_rows = pack_rows,                                        \
        .finish = finish,                                              \
        .best = best,                                                  \
        .softmax = softmax,                                            \
        .best_resized = best_resized,                                  \
        .copy = copy,                                                  \
        .fma_chain = fma_chain,                                        \
        .sweep = sweep,                                                \
    }
