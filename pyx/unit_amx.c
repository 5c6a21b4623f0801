/* AMX-BF16: tiles of 16 rows x 16 sums, each step taking in 32 channels. Kernels are 2 x 2 of them at most, and run
   with one piece or two for each number; of two, three products: what the fourth would add is as small as the rounding.
 */
#include "avx512.h"

#include "tile.h"

#include "pieces.h"

#ifdef PWCONV_EMULATE_AMX
#include "amx_emulated.h"
#endif

enum { SIDE = 16, LINE_BYTES = 64, STEP_LINES = 16 }; /* of a tile: rows and sums in a row; channels in pairs */

/* Tile registers: sums in 0 to 3, rows of a in 4 and 5, lanes of b in 6 and 7. */
#define LOAD_A(piece)                                                                       \
    do {                                                                                    \
        _tile_loadd(4, a + (piece) * t->a_apart, LINE_BYTES);                               \
        if (TALL) _tile_loadd(5, a + (piece) * t->a_apart + SIDE * LINE_BYTES, LINE_BYTES); \
    } while (0)
#define LOAD_B(piece)                                                            \
    do {                                                                         \
        _tile_loadd(6, b + (piece) * t->b_apart, b_line);                        \
        if (WIDE) _tile_loadd(7, b + (piece) * t->b_apart + LINE_BYTES, b_line); \
    } while (0)
#define MULTIPLY()                                 \
    do {                                           \
        _tile_dpbf16ps(0, 4, 6);                   \
        if (WIDE) _tile_dpbf16ps(1, 4, 7);         \
        if (TALL) _tile_dpbf16ps(2, 5, 6);         \
        if (TALL && WIDE) _tile_dpbf16ps(3, 5, 7); \
    } while (0)
/* What is done with tile `number` of the sums and its place in an array of rows. */
#define EACH_SUM(INSTRUCTION, sums)                                                    \
    do {                                                                               \
        INSTRUCTION(0, sums, pitch);                                                   \
        if (WIDE) INSTRUCTION(1, sums + SIDE, pitch);                                  \
        if (TALL) INSTRUCTION(2, sums + SIDE * LANES * VECTORS, pitch);                \
        if (TALL && WIDE) INSTRUCTION(3, sums + SIDE * LANES * VECTORS + SIDE, pitch); \
    } while (0)
#define ZERO(number, place, pitch) _tile_zero(number)
/* GCC does not know that its intrinsics read memory. */
#define BEFORE_TILES_READ __asm__ volatile("" : : : "memory")

INLINE void matrix_tile(const tile_t *t, const int PIECES, const int TALL, const int VECTORS) {
    const int WIDE = VECTORS == 2;
    const ptrdiff_t pitch = VECTORS * sizeof(vec), b_line = t->b_step / STEP_LINES;
    const char *a = t->a, *b = t->b, *ahead = t->ahead;
    BEFORE_TILES_READ;
    if (t->first) {
        EACH_SUM(ZERO, t->partial);
    } else {
        EACH_SUM(_tile_loadd, t->partial);
    }
    for (ptrdiff_t step = 0; step < t->steps; step++, a += t->a_step, b += t->b_step) {
        if (PIECES == 1) {
            LOAD_A(0);
            LOAD_B(0);
            MULTIPLY();
        } else if (t->bias_on_lanes) {
            /* The weights' second piece first, on whichever side they are: else bits would depend on the plan. */
            LOAD_B(1);
            LOAD_A(0);
            MULTIPLY();
            LOAD_B(0);
            MULTIPLY();
            if (!t->pixels_in_one) {
                LOAD_A(1);
                MULTIPLY();
            }
        } else {
            LOAD_A(1);
            LOAD_B(0);
            MULTIPLY();
            LOAD_A(0);
            MULTIPLY();
            if (!t->pixels_in_one) {
                LOAD_B(1);
                MULTIPLY();
            }
        }
        for (int i = 0; i < 2 * STEP_LINES; i++, ahead += t->ahead_step) {
            __builtin_prefetch(ahead);
            if (WIDE && t->ahead_all) __builtin_prefetch(ahead + LINE_BYTES);
        }
    }
    if (!t->last || !t->y) {
        EACH_SUM(_tile_stored, t->partial);
        return;
    }
    const tile_t end = *t; /* see tile() */
    float sums[2 * SIDE * 2 * SIDE] __attribute__((aligned(64)));
    EACH_SUM(_tile_stored, sums);
    for (int row = 0; row < end.rows; row++) {
        vec sum[2];
        for (int v = 0; v < VECTORS; v++) sum[v] = load(sums + (row * VECTORS + v) * LANES);
        put_row(&end, end.y + row * end.y_step, row, sum, VECTORS);
    }
}

#define EACH_KERNEL(X) X(1, 1) X(1, 2) X(2, 1) X(2, 2) /* pieces, vectors */
#define KERNELS(PIECES, VECTORS)                              \
    static void short_##PIECES##x##VECTORS(const tile_t *t) { \
        matrix_tile(t, PIECES, 0, VECTORS);                   \
    }                                                         \
    static void tall_##PIECES##x##VECTORS(const tile_t *t) {  \
        matrix_tile(t, PIECES, 1, VECTORS);                   \
    }
EACH_KERNEL(KERNELS)

static void split_1(const split_t *s) {
    split_columns(s, 1, 1);
}

static void split_2(const split_t *s) {
    split_columns(s, 2, 1);
}

static void enter(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = LINE_BYTES, shapes.rows[i] = SIDE;
    BEFORE_TILES_READ;
    _tile_loadconfig(&shapes);
}

static void leave(void) {
    _tile_release();
}

#define UNIT(PIECES, HALF_CYCLES)                                                         \
    {                                                                                     \
        .name = "amx",                                                                    \
        .pieces = PIECES,                                                                 \
        .lanes = LANES,                                                                   \
        .channels = 2 * STEP_LINES,                                                       \
        .fetches = 2 * STEP_LINES,                                                        \
        .together = {2, 2 * STEP_LINES},                                                  \
        .half_cycles = HALF_CYCLES,                                                       \
        .rows = {0, 2 * SIDE, 2 * SIDE},                                                  \
        .kernel = {{{NULL},                                                               \
                    {[1 ... 16] = short_##PIECES##x1, [17 ... 32] = tall_##PIECES##x1},   \
                    {[1 ... 16] = short_##PIECES##x2, [17 ... 32] = tall_##PIECES##x2}}}, \
        .split = split_##PIECES,                                                          \
        .enter = enter,                                                                   \
        .leave = leave,                                                                   \
    }

const unit_t pwconv_unit_amx_1 = UNIT(1, 2);
const unit_t pwconv_unit_amx_2 = UNIT(2, 6);
