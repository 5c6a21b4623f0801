/* What an instruction set offers to the blocked loops of engine.pyx: one record of functions, filled in by one small
   file per instruction set (isa_*.c) from the templates tile.h, epilogue.h, panel.h and ceilings.h. */
#ifndef PWCONV_ISA_H
#define PWCONV_ISA_H

#include <stddef.h>
#include <stdint.h>

/* A sum over channels is cut into blocks of this many; see tile.h. Results depend on it, so it is no tuning knob. */
#define SUM_BLOCK 256

/* Register tiles are ROWS x (VECTORS vectors of lanes); these bound every family of tiles. */
#define MAX_ROWS 14
#define MAX_VECTORS 6
#define MAX_LANES (MAX_VECTORS * 16)

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
    ptrdiff_t a_step, b_step; /* bytes; b: from channel to channel; a: see tile_kernel */
    ptrdiff_t depth;          /* channels summed by this call, a multiple of SUM_BLOCK unless `last` */
    int first, last;          /* does the whole sum start, end in this call? */
    float *partial;           /* rows x lanes: the sum so far, and where it is left for the next call or for finish() */
    /* What will be wanted later is fetched along the way: for every channel one line, or as many as b has there. */
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

typedef struct {
    const char *name;
    int lanes;                 /* float32 lanes of a vector */
    int fused;                 /* multiplies and adds with one rounding */
    int rows[MAX_VECTORS + 1]; /* tallest tile for each number of vectors; 0: no such tile */
    /* [0]: a[row + channel * a_step] (panels, channels-first maps); [1]: a[row * a_step + channel] (channels-last) */
    tile_kernel kernel[2][MAX_VECTORS + 1][MAX_ROWS + 1];
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
