/* Splits float32 into one or two bfloat16 terms, laid out as a kernel set reads them. The includer defines bf16s (as
   many bfloat16 as a vector has lanes), widened() (their bits as uint32) and nearest() (float32 rounded to bfloat16).

   The first term is x rounded to bfloat16 (to nearest, ties to even), the second the remainder, rounded again: for
   normal x, |x - first| <= 2^-8 |x| and |x - first - second| <= 2^-17 |x|. Denormal x count as zero, as in float32.
   NaN stays NaN. Special values are those without an exact enough split: infinities and values that round to infinity;
   and, with two terms, values so small that the second term would be denormal where it matters. A column that holds one
   is marked, and the sums that it takes part in are recomputed in float32. */

typedef uint32_t uvec __attribute__((vector_size(sizeof(vec))));

#define SMALLEST_NORMAL 0x00800000u
#define SMALLEST_WITH_TWO_TERMS 0x09800000u /* 2^-108: a second term is off by at most 2^-126, which is 2^-18 of it */
#define LARGEST_WITH_TERMS 0x7f7f7fffu
#define INFINITE 0x7f800000u

typedef struct {
    bf16s term[2];
} terms_t;

INLINE terms_t terms_of(vec v, const int TERMS) {
    terms_t t;
    t.term[0] = nearest(v);
    if (TERMS == 2) t.term[1] = nearest(v - (vec)((uvec)widened(t.term[0]) << 16));
    return t;
}

/* Sets the highest bit of each lane that holds a special value. */
INLINE uvec special_values(vec v, const int TERMS) {
    const uvec size = (uvec)v & 0x7fffffff;
    const uvec too_large = (size + (0x7fffffff - LARGEST_WITH_TERMS)) & ~(size + (0x7fffffff - INFINITE));
    return TERMS == 1 ? too_large : too_large | ((size - SMALLEST_WITH_TWO_TERMS) & (uvec)(size >= SMALLEST_NORMAL));
}

/* The first n lanes, if there are so many; the others are zero. */
INLINE vec load_up_to(const char *p, ptrdiff_t n) {
    return n >= LANES ? load(p) : n > 0 ? load_first(p, (int)n) : splat(0.0f);
}

INLINE void store_up_to(char *p, vec v, ptrdiff_t n) {
    if (n >= LANES) {
        store(p, v);
    } else if (n > 0) {
        store_first(p, v, (int)n);
    }
}

/* Splits up to a vector of channels of a column: `left` of them are loaded, the first `padded` are stored. */
INLINE uvec split_vector(const char *src, char *dst, ptrdiff_t term_stride, const int TERMS, ptrdiff_t left,
                         ptrdiff_t padded) {
    const vec v = load_up_to(src, left);
    const terms_t t = terms_of(v, TERMS);
    UNROLL for (int i = 0; i < TERMS; i++) {
        if (padded >= LANES) {
            memcpy(dst + i * term_stride, &t.term[i], sizeof t.term[i]);
        } else {
            memcpy(dst + i * term_stride, &t.term[i], padded * sizeof(uint16_t));
        }
    }
    return special_values(v, TERMS);
}

/* Marks the columns that hold special values, where the channels of a column are contiguous. */
INLINE void mark_special_columns(const split_t *s, const int TERMS) {
    for (ptrdiff_t j = 0; j < s->columns; j++) {
        const char *src = s->src + j * s->step;
        uvec special = {0};
        for (ptrdiff_t left = s->k; left > 0; left -= LANES, src += sizeof(vec)) {
            special |= special_values(load_up_to(src, left), TERMS);
        }
        for (int i = 0; i < LANES; i++) s->special[j] |= special[i] >> 31;
    }
}

/* Splits columns whose channels are contiguous. */
INLINE void split_along_k(const split_t *s, const int TERMS) {
    uvec special = {0};
    uint32_t any = 0;
    for (ptrdiff_t j = 0; j < s->columns; j++) {
        char *dst = s->dst + j * s->column_stride;
        for (ptrdiff_t start = 0; start < s->padded_k; start += s->k_interleave, dst += s->k_stride) {
            const char *src = s->src + j * s->step + start * sizeof(float);
            const ptrdiff_t padded = s->k_interleave < s->padded_k - start ? s->k_interleave : s->padded_k - start;
            const ptrdiff_t left = s->k - start, whole = (left < padded ? left : padded) & -LANES;
            ptrdiff_t k = 0;
            UNROLL_TWICE for (; k < whole; k += LANES) {
                special |= split_vector(src + k * sizeof(float), dst + k * sizeof(uint16_t), s->term_stride, TERMS,
                                        LANES, LANES);
            }
            for (; k < padded; k += LANES) {
                special |= split_vector(src + k * sizeof(float), dst + k * sizeof(uint16_t), s->term_stride, TERMS,
                                        left - k, padded - k);
            }
        }
    }
    for (int i = 0; i < LANES; i++) any |= special[i] >> 31;
    if (any) mark_special_columns(s, TERMS);
}

/* Splits n columns from column j on, at most a vector of them, whose columns are contiguous for each channel. A row of
   dst holds PAIRS pairs of channels of every column. */
INLINE void split_vector_of_columns(const split_t *s, const int TERMS, const int PAIRS, ptrdiff_t j, ptrdiff_t n) {
    const char *src = s->src + j * sizeof(float);
    char *dst = s->dst + j * PAIRS * sizeof(float);
    uvec special = {0}, marks;
    for (ptrdiff_t k = 0; k < s->padded_k; k += 2 * PAIRS, dst += s->k_stride) {
        uvec pair[2][2];
        UNROLL for (int p = 0; p < PAIRS; p++, src += 2 * s->channel_step) {
            const ptrdiff_t left = s->k - k - 2 * p;
            const vec first = load_up_to(src, left > 0 ? n : 0);
            const vec second = load_up_to(src + s->channel_step, left > 1 ? n : 0);
            const terms_t t = terms_of(first, TERMS), u = terms_of(second, TERMS);
            special |= special_values(first, TERMS) | special_values(second, TERMS);
            UNROLL for (int i = 0; i < TERMS; i++) {
                pair[i][p] = (uvec)widened(t.term[i]) | (uvec)widened(u.term[i]) << 16;
            }
        }
        UNROLL for (int i = 0; i < TERMS; i++) {
            char *to = dst + i * s->term_stride;
            if (PAIRS == 1) {
                store_up_to(to, (vec)pair[i][0], n);
            } else {
                store_up_to(to, interleave_low((vec)pair[i][0], (vec)pair[i][1]), 2 * n);
                store_up_to(to + sizeof(vec), interleave_high((vec)pair[i][0], (vec)pair[i][1]), 2 * n - LANES);
            }
        }
    }
    memcpy(&marks, s->special + j, sizeof marks);
    marks |= special >> 31;
    memcpy(s->special + j, &marks, sizeof marks);
}

INLINE void split_along_columns(const split_t *s, const int TERMS, const int PAIRS) {
    ptrdiff_t j = 0;
    for (; j + LANES <= s->columns; j += LANES) split_vector_of_columns(s, TERMS, PAIRS, j, LANES);
    if (j < s->columns) split_vector_of_columns(s, TERMS, PAIRS, j, s->columns - j);
}

INLINE void split_columns(const split_t *s, const int TERMS, const int PAIRS) {
    if (s->k_contiguous) {
        split_along_k(s, TERMS);
    } else {
        split_along_columns(s, TERMS, PAIRS);
    }
}
