/* The records that the Cython engine and the kernels share.

   Terms. A layer is a matrix product C = A B for each group: K in channels, out channels and pixels on the two other
   sides. A is the operand whose elements are broadcast, B the operand that is loaded as vectors. Which of the two holds
   the pixels is the plan's choice. A micro-kernel computes a tile of MR rows (columns of A's panel) times NR columns (a
   few vectors of B's panel). A kernel set is a family of micro-kernels for one instruction set and one precision. */
#ifndef PWCONV_KERNELS_H
#define PWCONV_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* A sum over in channels is cut into blocks of this many; see tile.h. Results depend on it, so it cannot be tuned. */
#define SUM_BLOCK 256

/* Bounds of every kernel set: MR, NR in vectors, NR in elements. */
#define MAX_MR 32
#define MAX_VECTORS 6
#define MAX_NR (MAX_VECTORS * 16)
#define ROWS_VECTORS 4 /* of out channels in a tile of adjacent_t */
#define FEW_OUTS 4

/* In channels of all panels that are packed before the next ones, so that a map is read in long runs. */
#define PACKED_AT_ONCE 32
/* The same where channels lie a multiple of so many bytes apart: they share one or two sets of a usual first-level
   cache, of eight lines each. */
#define CROWDED_STEP 2048
#define PACKED_OF_CROWDED 8

/* Pixels of a run of which every tile of out channels takes its share in turn, so that each finds them in cache; or
   that are put together before they are stored past the caches, plane by plane. */
#define SHARED_RUN 384

/* float32; bfloat16 with two terms a number, which is nearly float32; bfloat16 with one term. */
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

/* Element types of a feature map. All but float32 are widened exactly when they are packed. KIND_SWAPPED is added to a
   kind of more than one byte whose bytes are in the order that is not the machine's; results are never so. */
enum element_kind {
    KIND_FLOAT32,
    KIND_UINT8,
    KIND_INT8,
    KIND_UINT16,
    KIND_INT16,
    KIND_FLOAT16,
    KIND_BFLOAT16,
    KIND_SWAPPED = 8
};

/* The work of one call of a micro-kernel: a tile, and maybe more tiles of A that follow it on the same panel of B. */
typedef struct {
    const char *a, *b;
    ptrdiff_t a_step, b_step; /* bytes; b: from step to step of the sum; a: see kernel_set_t.micro_kernel */
    ptrdiff_t a_term, b_term; /* bytes from one bfloat16 term of the panel to the next */
    ptrdiff_t mr;             /* rows that are wanted; matrix registers always hold whole tiles */
    ptrdiff_t steps;          /* of the sum; SUM_BLOCK channels or a multiple of that unless `last` */
    int first, last;          /* the sum over all K starts, ends with this call */
    int pixels_have_one_term; /* in a set with two terms: the second term of every pixel is zero */
    /* MR x NR sums: the result for the epilogue after the last call; between calls in the kernel's own order. */
    float *partial;
    /* Software prefetch, kernel_set_t.prefetches times a step: one cache line, or as many as a row of B has. */
    const char *prefetch;
    ptrdiff_t prefetch_step;
    int prefetch_whole_row;
    ptrdiff_t more;             /* tiles that follow; their y follows that of the first one */
    ptrdiff_t a_next;           /* bytes from a tile's A to the next one's */
    ptrdiff_t partial_next;     /* floats */
    ptrdiff_t prefetch_next;    /* bytes from a tile's prefetches to the next one's, */
    ptrdiff_t prefetch_repeats; /* which begin again after so many tiles */
    char *y;                    /* last: where clip(sum + bias) is stored; NULL leaves the sum in `partial` */
    ptrdiff_t y_step;           /* bytes from row to row; columns are contiguous */
    ptrdiff_t nr;               /* columns that are stored; fewer than the tile has only in its last vector */
    const float *bias;
    int channels_in_b; /* B holds the out channels: one bias per column; else one per row */
    float low, high;   /* the clip; -inf and inf for none */
} tile_t;

typedef void (*micro_kernel_t)(const tile_t *);

/* Splits float32 columns (pixels or out channels) into bfloat16 terms, in the order that a kernel set reads; see
   split.h. */
typedef struct {
    const char *src;
    ptrdiff_t step, channel_step; /* bytes: from column to column, from channel to channel; one of them is one float */
    ptrdiff_t columns, k;
    int k_contiguous; /* channel_step is one float */
    char *dst;
    ptrdiff_t k_interleave;  /* channels of a column that are adjacent in dst */
    ptrdiff_t column_stride; /* bytes from these to those of the next column */
    ptrdiff_t k_stride;      /* bytes from these to the next channels of the same column */
    ptrdiff_t term_stride;   /* bytes from a term to the next one */
    ptrdiff_t padded_k;      /* channels in dst; those from k on are zeros */
    uint32_t *special;       /* per column: not zero if a value has no exact enough split; whole vectors are written */
} split_t;

/* Copies a rectangle of a feature map or of weights into panels that micro-kernels read with unit stride. */
typedef struct {
    const char *src;
    int kind;                     /* of src */
    ptrdiff_t step, channel_step; /* bytes: from column (pixel or out channel) to column, from channel to channel */
    ptrdiff_t count, k;           /* columns, channels */
    float *dst;
    ptrdiff_t width;            /* columns side by side in a panel */
    ptrdiff_t panel;            /* floats from a panel to the next one */
    ptrdiff_t at;               /* the first column's place in dst */
    const float *scale, *shift; /* one per channel, or NULL */
    activation_t activation;
} pack_t;

/* Copies planes of float32, [channel][pixel], into a feature map. Integers are rounded to the nearest (ties to even)
   and limited to the range of their type, NaN becomes 0; float16 and bfloat16 are rounded to the nearest. */
typedef struct {
    const float *src;
    ptrdiff_t pitch; /* floats from plane to plane */
    ptrdiff_t channels, pixels;
    char *y;
    int kind;                     /* of y */
    ptrdiff_t step, channel_step; /* bytes: from pixel to pixel, from channel to channel */
    int far;                      /* y is too large to stay in a cache */
} unpack_t;

/* All out channels of a run of pixels, for all in channels or some of them: y = clip(sum + bias), planes in and out. */
typedef struct {
    const char *x;            /* [channel][pixel] of a native kind, at any byte address */
    int x_kind, y_kind;       /* y is float32 where it is stored past the caches */
    ptrdiff_t x_channel_step; /* bytes */
    ptrdiff_t first_k, k;     /* the channels of this call, */
    ptrdiff_t all_k;          /* of so many, at most SUM_BLOCK */
    int x_far;                /* x lies in memory and not in cache: only a few channels are read at a time */
    const char *next;         /* rows of bytes that are prefetched meanwhile */
    ptrdiff_t next_rows, next_row_step, next_bytes;
    const float *weights;  /* [tile][channel][row]; the first outs % tiles tiles have a row more than the others */
    ptrdiff_t outs, tiles; /* no tile has more than isa_t.stream_mr rows */
    ptrdiff_t pixels;
    char *sums; /* float32 planes of the sums of the channels before, and of these unless they are the last ones */
    ptrdiff_t sums_channel_step;
    char *y; /* finished planes */
    ptrdiff_t y_channel_step;
    int y_far;         /* y is stored past the caches, at once: all planes lie at whole cache lines; */
    int y_gathered;    /* or in runs that are put together in `sums` */
    const float *bias; /* NULL: neither bias nor clip, and all sums stay in `sums` */
    float low, high;   /* the clip; -inf and inf for none */
} stream_t;

/* All out channels of a run of pixels whose channels are adjacent: y = clip(sum + bias); see adjacent.h. */
typedef struct {
    const char *x;
    int x_kind;
    ptrdiff_t x_step; /* bytes from pixel to pixel */
    ptrdiff_t k;      /* from 1 to SUM_BLOCK */
    ptrdiff_t outs, pixels;
    const float
        *weights; /* tiles of whole vectors of out channels; [channel][out channel] for up to FEW_OUTS of them */
    const float *bias;
    float low, high; /* the clip; -inf and inf for none */
    char *y;
    int y_kind;
    ptrdiff_t y_step;         /* bytes from pixel to pixel; channels are adjacent, but for */
    int planes;               /* up to FEW_OUTS out channels of at least FEW_OUTS in channels: pixels are adjacent, */
    ptrdiff_t y_channel_step; /* and channels so many bytes apart */
    int far;                  /* as in unpack_t */
    int stores_wait;          /* see pwconv_stores_wait() */
    int slack;                /* whole vectors may be written behind each pixel */
} adjacent_t;

/* The part of the epilogue that a micro-kernel does not do, in place on the sums that it left in `partial`. */
typedef struct {
    float *sum;
    ptrdiff_t rows, vectors, pitch; /* pitch: floats from row to row, of sum and residual */
    const float *bias, *scale;      /* one per row, or one per column if B holds the out channels */
    int channels_in_b;
    const float *residual; /* or NULL */
    activation_t activation;
} epilogue_t;

/* How logits become probabilities. */
enum { LINK_SOFTMAX, LINK_ONE_VS_REST, LINK_MODIFIED_HUBER, LINK_MULTILABEL };

/* A block of logits for a classifier's head; see head.h. */
typedef struct {
    float *logits;                    /* [class][pixel] */
    ptrdiff_t pitch, classes, pixels; /* pitch: floats from row to row, of labels and values too */
    ptrdiff_t k;                      /* labels of a pixel */
    int link, binary;                 /* binary: the rows are 0 and the only logit */
    int32_t *labels;
    float *values;
    uint32_t *counts; /* per pixel: 0 if the pixel does not count, else all ones */
    int32_t fill_label;
    float fill;
} head_t;

/* One line of labels of bilinearly resized logits, from the two lines of logits around it; see head.h. */
typedef struct {
    const float *above, *below;      /* [class][x] */
    ptrdiff_t pitch, classes, width; /* pitch: floats from class to class; width: of these lines */
    float down;                      /* the weight of `below`; that of `above` is 1 - down */
    ptrdiff_t out_width;
    const int32_t *left, *right; /* per x of the result: its two neighbours, and the weight of the right one */
    const float *across;
    float *line;             /* scratch for one line of logits */
    int32_t *ranks, *labels; /* scratch and result */
    int fills;               /* labels of pixels with an interpolated NaN are fill_label */
    int32_t fill_label;
} resize_t;

/* The micro-kernels of one instruction set for one precision, and how their panels are laid out. */
typedef struct {
    const char *name;
    int terms;                 /* bfloat16 terms that a float32 is split into; 0: panels hold float32 */
    int lanes;                 /* float32 sums in a vector */
    int k_step;                /* in channels that one step of the sum takes */
    int prefetches;            /* prefetches of a step; a divisor of k_step */
    int k_interleave[2];       /* channels of a column that are adjacent in a panel: of B, of A */
    int half_cycles;           /* cycles of a step per row and vector, doubled; */
    int broadcast_half_cycles; /* of each row besides, where no load fills all lanes with an element of A */
    int mr[MAX_VECTORS + 1];   /* the largest MR for each NR in vectors; 0: no such tile */
    /* [ROWWISE][vectors][MR]. ROWWISE 0: a[row + step * a_step] (panels, channels-first maps);
       1: a[row * a_step + step] (channels-last maps), or NULL. */
    micro_kernel_t micro_kernel[2][MAX_VECTORS + 1][MAX_MR + 1];
    void (*split)(const split_t *);
    void (*enter)(void), (*leave)(void); /* around all use by a thread; or NULL */
} kernel_set_t;

/* All functions of an instruction set. */
typedef struct {
    kernel_set_t float32;
    void (*pack)(const pack_t *);      /* dst[panel][channel][column] */
    void (*pack_rows)(const pack_t *); /* dst[column][channel]; width is the floats from column to column */
    void (*unpack)(const unpack_t *);
    void (*stream)(const stream_t *);
    void (*multiply_adjacent)(const adjacent_t *);
    int stream_mr;
    unsigned quad_outs; /* bit n: n out channels leave so many lanes unused that multiply_adjacent transposes pixels */
    void (*epilogue)(const epilogue_t *);
    void (*best)(const head_t *);
    void (*indicate)(const head_t *);
    void (*probabilities)(const head_t *);
    void (*best_resized)(const resize_t *);
    void (*discount_nan)(const head_t *);   /* pixels with a NaN logit do not count */
    void (*fill_uncounted)(const head_t *); /* in labels and values if there are labels, else in logits */
    void (*add_sums)(double *total, const float *sum, ptrdiff_t n, int first);
    void (*add_totals)(double *total, const double *more, ptrdiff_t n);
    void (*pack_columns)(float *dst, ptrdiff_t panel_floats, const char *src, ptrdiff_t step, ptrdiff_t k, ptrdiff_t mr,
                         ptrdiff_t panels);
    void (*store_sums)(char *y, ptrdiff_t row_step, ptrdiff_t column_step, const float *sum, ptrdiff_t pitch,
                       ptrdiff_t rows, ptrdiff_t columns);
    void (*store_totals)(char *y, ptrdiff_t row_step, ptrdiff_t column_step, const double *total, ptrdiff_t pitch,
                         ptrdiff_t rows, ptrdiff_t columns);
    void (*sum_panel)(double *total, const float *panel, ptrdiff_t pixels, ptrdiff_t width);
    void (*centre)(float *panel, ptrdiff_t pixels, ptrdiff_t width, const float *shift, const uint32_t *counts);
    double (*fma_chain)(long turns);                                     /* returns floating-point operations done */
    double (*sweep)(int kind, char *dst, const char *src, size_t bytes); /* returns a value that depends on all */
} isa_t;

#endif
