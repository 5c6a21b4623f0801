/* AMX-BF16: matrix registers of 16 x 16 sums, to which one instruction adds the products of 32 channels. A micro-kernel
   holds up to 2 x 2 of them. With two terms a number it adds three of the four products: the product of the two second
   terms is as small as the rounding error. */
#include "kernels/avx512.h"

#include "kernels/tile.h"

#include "kernels/split.h"

#ifdef PWCONV_EMULATE_AMX
#include "kernels/amx_emulated.h"
#endif

/* A register has SIDE rows of SIDE sums; a row of an operand is one cache line, and a step takes STEP_LINES pairs of
   channels. */
enum { SIDE = 16, LINE_BYTES = 64, STEP_LINES = 16 };

/* Matrix registers: sums in 0 to 3, A in 4 and 5, B in 6 and 7. */
#define LOAD_A(term)                                                                      \
    do {                                                                                  \
        _tile_loadd(4, a + (term) * t->a_term, LINE_BYTES);                               \
        if (TALL) _tile_loadd(5, a + (term) * t->a_term + SIDE * LINE_BYTES, LINE_BYTES); \
    } while (0)
#define LOAD_B(term)                                                           \
    do {                                                                       \
        _tile_loadd(6, b + (term) * t->b_term, b_line);                        \
        if (WIDE) _tile_loadd(7, b + (term) * t->b_term + LINE_BYTES, b_line); \
    } while (0)
#define MULTIPLY()                                 \
    do {                                           \
        _tile_dpbf16ps(0, 4, 6);                   \
        if (WIDE) _tile_dpbf16ps(1, 4, 7);         \
        if (TALL) _tile_dpbf16ps(2, 5, 6);         \
        if (TALL && WIDE) _tile_dpbf16ps(3, 5, 7); \
    } while (0)
/* Applies an instruction to every register of sums and its place in an array of rows. */
#define EACH_SUM(INSTRUCTION, sums)                                                    \
    do {                                                                               \
        INSTRUCTION(0, sums, pitch);                                                   \
        if (WIDE) INSTRUCTION(1, sums + SIDE, pitch);                                  \
        if (TALL) INSTRUCTION(2, sums + SIDE * LANES * VECTORS, pitch);                \
        if (TALL && WIDE) INSTRUCTION(3, sums + SIDE * LANES * VECTORS + SIDE, pitch); \
    } while (0)
#define ZERO(number, place, pitch) _tile_zero(number)
/* GCC takes its intrinsics not to read memory. */
#define BEFORE_TILES_READ __asm__ volatile("" : : : "memory")

INLINE void matrix_tile(const tile_t *t, const int TERMS, const int TALL, const int VECTORS) {
    const int WIDE = VECTORS == 2;
    const ptrdiff_t pitch = VECTORS * sizeof(vec), b_line = t->b_step / STEP_LINES;
    const char *a = t->a, *b = t->b, *prefetch = t->prefetch;
    BEFORE_TILES_READ;
    if (t->first) {
        EACH_SUM(ZERO, t->partial);
    } else {
        EACH_SUM(_tile_loadd, t->partial);
    }
    for (ptrdiff_t step = 0; step < t->steps; step++, a += t->a_step, b += t->b_step) {
        if (TERMS == 1) {
            LOAD_A(0);
            LOAD_B(0);
            MULTIPLY();
        } else if (t->channels_in_b) {
            /* The product with the weights' second term first, whichever operand they are: bits do not depend on the
             * plan. */
            LOAD_B(1);
            LOAD_A(0);
            MULTIPLY();
            LOAD_B(0);
            MULTIPLY();
            if (!t->pixels_have_one_term) {
                LOAD_A(1);
                MULTIPLY();
            }
        } else {
            LOAD_A(1);
            LOAD_B(0);
            MULTIPLY();
            LOAD_A(0);
            MULTIPLY();
            if (!t->pixels_have_one_term) {
                LOAD_B(1);
                MULTIPLY();
            }
        }
        for (int i = 0; i < 2 * STEP_LINES; i++, prefetch += t->prefetch_step) {
            __builtin_prefetch(prefetch);
            if (WIDE && t->prefetch_whole_row) __builtin_prefetch(prefetch + LINE_BYTES);
        }
    }
    if (!t->last || !t->y) {
        EACH_SUM(_tile_stored, t->partial);
        return;
    }
    const tile_t end = *t; /* see tile() */
    float sums[2 * SIDE * 2 * SIDE] __attribute__((aligned(64)));
    EACH_SUM(_tile_stored, sums);
    for (int row = 0; row < end.mr; row++) {
        vec sum[2];
        for (int v = 0; v < VECTORS; v++) sum[v] = load(sums + (row * VECTORS + v) * LANES);
        store_row(&end, end.y + row * end.y_step, row, sum, VECTORS);
    }
}

#define EACH_KERNEL(X) X(1, 1) X(1, 2) X(2, 1) X(2, 2) /* terms, vectors */
#define KERNELS(TERMS, VECTORS)                                    \
    static void short_##TERMS##x##VECTORS(const tile_t *t) {       \
        EACH_TILE(t, t->mr, matrix_tile(&one, TERMS, 0, VECTORS)); \
    }                                                              \
    static void tall_##TERMS##x##VECTORS(const tile_t *t) {        \
        EACH_TILE(t, t->mr, matrix_tile(&one, TERMS, 1, VECTORS)); \
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

#define KERNEL_SET(TERMS, HALF_CYCLES)                                                        \
    {                                                                                         \
        .name = "amx",                                                                        \
        .terms = TERMS,                                                                       \
        .lanes = LANES,                                                                       \
        .k_step = 2 * STEP_LINES,                                                             \
        .prefetches = 2 * STEP_LINES,                                                         \
        .k_interleave = {2, 2 * STEP_LINES},                                                  \
        .half_cycles = HALF_CYCLES,                                                           \
        .mr = {0, 2 * SIDE, 2 * SIDE},                                                        \
        .micro_kernel = {{{NULL},                                                             \
                          {[1 ... 16] = short_##TERMS##x1, [17 ... 32] = tall_##TERMS##x1},   \
                          {[1 ... 16] = short_##TERMS##x2, [17 ... 32] = tall_##TERMS##x2}}}, \
        .split = split_##TERMS,                                                               \
        .enter = enter,                                                                       \
        .leave = leave,                                                                       \
    }

const kernel_set_t pwconv_kernels_amx_bf16x1 = KERNEL_SET(1, 2);
const kernel_set_t pwconv_kernels_amx_bf16x2 = KERNEL_SET(2, 6);
