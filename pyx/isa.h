/* What an instruction set offers to the blocked loops of engine.pyx: one record of functions, filled in by one small
   file per instruction set (isa_*.c) from the templates tile.h, epilogue.h, panel.h and ceilings.h. What multiplies
   other numbers than float32 is a unit of its own (unit_*.c), which leaves all else to an instruction set. */
#ifndef PWCONV_ISA_H
#define PWCONV_ISA_H

#include <stddef.h>
#include <stdint.h>

/* A sum over channels is cut into blocks of this many; see tile.h. Results depend on it, so it is no tuning knob. */
#define SUM_BLOCK 256

/* Tiles are ROWS x (VECTORS vectors of lanes); these bound every family of tiles. */
#define MAX_ROWS 32
#define MAX_VECTORS 6
#define MAX_LANES (MAX_VECTORS * 16)

/* How exact sums must be: float32, about as exact as that, or bfloat16. */
enum precision { HIGHEST, HIGH, MEDIUM, PRECISIONS };

enum activation_code {
    ACT_NONE,
    ACT_CLIP,
    ACT_LEAKY_RELU,
    ACT_SIGMOID,
    ACT_TANH,
    ACT_SILU,
    ACT_GELU,
    ACT_GELU_TANH,
    ACT_HARDSIGMOID,
    ACT_HARDSWISH
};

typedef struct {
    int code;
    float low, high; /* clip: the bounds; leaky_relu: low is the slope */
} activation_t;

/* What an array of pixels may hold; all but float32 is widened exactly when it is packed. */
enum element_kind { KIND_FLOAT32, KIND_UINT8, KIND_INT8, KIND_UINT16, KIND_INT16, KIND_FLOAT16, KIND_BFLOAT16 };

/* One register tile's work. Operand `a` is broadcast (rows), operand `b` is loaded as vectors (lanes). */
typedef struct {
    const char *a, *b;
    ptrdiff_t a_step, b_step;   /* bytes; b: from step to step; a: see unit_t.kernel */
    ptrdiff_t a_apart, b_apart; /* bytes from piece to piece */
    ptrdiff_t rows;             /* that count: a matrix unit computes whole tiles */
    ptrdiff_t steps;            /* of the sum; SUM_BLOCK channels or a multiple of it unless `last` */
    int first, last;            /* does the whole sum start, end in this call? */
    int pixels_in_one;          /* of two pieces: is the second one of all pixels zero? */
    /* rows x lanes: where the sum is left for finish(); between calls it lies there as the kernel likes. */
    float *partial;
    /* What will be wanted later is fetched along the way, unit_t.fetches times in a step: one line, or as many as b has
       there. */
    const char *ahead;
    ptrdiff_t ahead_step;
    int ahead_all;
    char *y;           /* last: where bias + clip(sum) goes, or NULL to leave the sum in `partial` */
    ptrdiff_t y_step;  /* bytes from row to row; lanes are contiguous */
    ptrdiff_t lanes;   /* of y: all, or fewer in the last vector */
    const float *bias; /* one per row, or one per lane */
    int bias_on_lanes;
    float low, high; /* the clip; -inf and inf for none */
} tile_t;

typedef void (*tile_kernel)(const tile_t *);

/* Cuts float32 columns (pixels or out channels) into bfloat16 pieces, laid out as a unit reads them; see pieces.h. */
typedef struct {
    const char *src;
    ptrdiff_t step, channel_step; /* bytes: from column to column, from channel to channel; one of them one float */
    ptrdiff_t columns, depth;
    int by_rows; /* it is the channel step */
    char *dst;
    ptrdiff_t together;                  /* channels of a column that lie side by side */
    ptrdiff_t column_step, pitch, apart; /* bytes from these to the next column's, channels', piece's */
    ptrdiff_t room;                      /* channels in dst: zeros follow the last one */
    uint32_t *odd; /* one per column, and room for whole vectors: not zero where pieces cannot stand for a number */
} split_t;

/* Copies a rectangle of a feature map (or of weights) into panels that the tile reads with unit stride. */
typedef struct {
    const char *src;
    int kind;                     /* of src */
    ptrdiff_t step, channel_step; /* bytes: from pixel to pixel, from channel to channel */
    ptrdiff_t count, depth;       /* pixels, channels */
    float *dst;
    ptrdiff_t width;            /* pixels side by side in a panel */
    ptrdiff_t panel;            /* floats from a panel to the next one */
    ptrdiff_t at;               /* the first pixel's place in dst */
    const float *scale, *shift; /* one per channel, or NULL */
    activation_t activation;
} pack_t;

/* The end of a sum that the register tile does not finish by itself, in place in its `partial`. */
typedef struct {
    float *sum;
    ptrdiff_t rows, vectors, pitch; /* pitch: floats from row to row, of sum and residual */
    const float *bias, *scale;      /* one per row, or one per lane */
    int channels_on_lanes;
    const float *residual; /* or NULL */
    activation_t activation;
} finish_t;

/* A block of logits for a classifier's head; see head.h. */
typedef struct {
    float *logits;                    /* [class][pixel] */
    ptrdiff_t pitch, classes, pixels; /* pitch: floats from line to line, of labels and values too */
    ptrdiff_t k;
    int32_t *labels;
    float *values;
} head_t;

/* One line of labels of bilinearly resized logits, from the two lines of logits around it; see head.h. */
typedef struct {
    const float *above, *below;      /* [class][x] */
    ptrdiff_t pitch, classes, width; /* pitch: floats from class to class; width: of these lines */
    float down;                      /* how far the line lies from above to below */
    ptrdiff_t out_width;
    const int32_t *left, *right; /* for every x of the result: the x on both sides, and how far it lies between */
    const float *across;
    float *line;             /* scratch for one line of logits */
    int32_t *ranks, *labels; /* scratch and result */
} resize_t;

/* What multiplies and sums, one register tile at a time. */
typedef struct {
    const char *name;
    int pieces;                /* bfloat16 numbers that stand for a float32; 0: it is taken as it is */
    int lanes;                 /* float32 sums in a vector */
    int channels;              /* in channels that one step of the sum takes in */
    int fetches;               /* prefetches of a step, which divide its channels into so many parts */
    int together[2];           /* of these, how many lie side by side in a panel: of a lane, of a row */
    int half_cycles;           /* cycles of a step for each row of a vector, doubled */
    int rows[MAX_VECTORS + 1]; /* tallest tile for each number of vectors; 0: no such tile */
    /* [0]: a[row + step * a_step] (panels, channels-first maps); [1]: a[row * a_step + step] (channels-last), or NULL
     */
    tile_kernel kernel[2][MAX_VECTORS + 1][MAX_ROWS + 1];
    void (*split)(const split_t *);
    void (*enter)(void), (*leave)(void); /* around all use by a thread; or NULL */
} unit_t;

typedef struct {
    unit_t unit;                       /* of float32 */
    void (*pack)(const pack_t *);      /* dst[panel][channel][pixel] */
    void (*pack_rows)(const pack_t *); /* dst[pixel][channel]; width is the floats from pixel to pixel */
    void (*finish)(const finish_t *);
    void (*best)(const head_t *);
    void (*softmax)(const head_t *);
    void (*best_resized)(const resize_t *);
    /* dst[i * d_row + j * d_lane] = src[...] for i < rows, j < lanes; steps in bytes */
    void (*copy)(char *dst, ptrdiff_t d_row, ptrdiff_t d_lane, const char *src, ptrdiff_t s_row, ptrdiff_t s_lane,
                 ptrdiff_t rows, ptrdiff_t lanes);
    double (*fma_chain)(long turns);                                     /* returns floating-point operations done */
    double (*sweep)(int kind, char *dst, const char *src, size_t bytes); /* returns something that depends on all */
} isa_t;

#endif
