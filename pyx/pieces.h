/* Float32 as the sum of one or two bfloat16, and how they are laid out for a unit that multiplies these. Of the
   includer it needs bf16s, as many of them as a vector has lanes, widened(), which makes uint32 of their bits, and
   nearest(), which rounds float32 to them.

   The first piece is x rounded to bfloat16 (to nearest, ties to even), the second the rest, rounded again: for normal
   x, |x - first| <= 2^-8 |x| and |x - first - second| <= 2^-17 |x|. Denormal x count as zero, as they do in float32.
   NaN stays NaN. Infinities and what rounds to infinity cannot be told in pieces; nor, in two of them, what is so small
   that the second would be denormal where it matters: columns that hold such a number are marked as odd. */

typedef uint32_t uvec __attribute__((vector_size(sizeof(vec))));

#define SMALLEST_NORMAL 0x00800000u
#define SMALLEST_IN_TWO 0x09800000u /* 2^-108: what the second may lose, 2^-126, is 2^-18 of it */
#define LARGEST_IN_PIECES 0x7f7f7fffu
#define INFINITE 0x7f800000u

typedef struct {
    bf16s piece[2];
} pieces_t;

INLINE pieces_t pieces_of(vec v, const int pieces) {
    pieces_t p;
    p.piece[0] = nearest(v);
    if (pieces == 2) p.piece[1] = nearest(v - (vec)((uvec)widened(p.piece[0]) << 16));
    return p;
}

/* The uppermost bit of each lane: can pieces not stand for this number? */
INLINE uvec oddness(vec v, const int pieces) {
    const uvec size = (uvec)v & 0x7fffffff;
    const uvec too_large = (size + (0x7fffffff - LARGEST_IN_PIECES)) & ~(size + (0x7fffffff - INFINITE));
    return pieces == 1 ? too_large : too_large | ((size - SMALLEST_IN_TWO) & (uvec)(size >= SMALLEST_NORMAL));
}

INLINE vec load_up_to(const char *p, ptrdiff_t n) {
    return n >= LANES ? load(p) : n > 0 ? load_first(p, (int)n) : splat(0.0f);
}

/* The first n lanes of a vector and no more, if there are so many. */
INLINE void store_up_to(char *p, vec v, ptrdiff_t n) {
    if (n >= LANES) {
        store(p, v);
    } else if (n > 0) {
        store_first(p, v, (int)n);
    }
}

/* Up to a vector of channels of a column: `left` hold something, the first `room` are stored. */
INLINE uvec split_vector(const char *src, char *dst, ptrdiff_t apart, const int PIECES, ptrdiff_t left,
                         ptrdiff_t room) {
    const vec v = load_up_to(src, left);
    const pieces_t p = pieces_of(v, PIECES);
    UNROLL for (int i = 0; i < PIECES; i++) {
        if (room >= LANES) {
            memcpy(dst + i * apart, &p.piece[i], sizeof p.piece[i]);
        } else {
            memcpy(dst + i * apart, &p.piece[i], room * sizeof(uint16_t));
        }
    }
    return oddness(v, PIECES);
}

/* Which columns have no pieces, if their channels lie side by side. */
INLINE void mark_rows(const split_t *s, const int PIECES) {
    for (ptrdiff_t j = 0; j < s->columns; j++) {
        const char *src = s->src + j * s->step;
        uvec odd = {0};
        for (ptrdiff_t left = s->depth; left > 0; left -= LANES, src += sizeof(vec)) {
            odd |= oddness(load_up_to(src, left), PIECES);
        }
        for (int i = 0; i < LANES; i++) s->odd[j] |= odd[i] >> 31;
    }
}

/* From columns whose channels lie side by side. */
INLINE void split_rows(const split_t *s, const int PIECES) {
    uvec odd = {0};
    uint32_t any = 0;
    for (ptrdiff_t j = 0; j < s->columns; j++) {
        char *line = s->dst + j * s->column_step;
        for (ptrdiff_t start = 0; start < s->room; start += s->together, line += s->pitch) {
            const char *src = s->src + j * s->step + start * sizeof(float);
            const ptrdiff_t room = s->together < s->room - start ? s->together : s->room - start;
            const ptrdiff_t left = s->depth - start, whole = (left < room ? left : room) & -LANES;
            ptrdiff_t k = 0;
            TWO_A_TURN for (; k < whole; k += LANES) {
                odd |= split_vector(src + k * sizeof(float), line + k * sizeof(uint16_t), s->apart, PIECES, LANES,
                                    LANES);
            }
            for (; k < room; k += LANES) {
                odd |= split_vector(src + k * sizeof(float), line + k * sizeof(uint16_t), s->apart, PIECES, left - k,
                                    room - k);
            }
        }
    }
    for (int i = 0; i < LANES; i++) any |= odd[i] >> 31;
    if (any) mark_rows(s, PIECES);
}

/* From channels whose columns lie side by side, into lines of columns with WORDS pairs of channels each: n columns from
   column j on, a vector or what is left of one. */
INLINE void split_lines(const split_t *s, const int PIECES, const int WORDS, ptrdiff_t j, ptrdiff_t n) {
    const char *src = s->src + j * sizeof(float);
    char *dst = s->dst + j * WORDS * sizeof(float);
    uvec odd = {0}, marks;
    for (ptrdiff_t k = 0; k < s->room; k += 2 * WORDS, dst += s->pitch) {
        uvec pair[2][2];
        UNROLL for (int w = 0; w < WORDS; w++, src += 2 * s->channel_step) {
            const ptrdiff_t left = s->depth - k - 2 * w;
            const vec first = load_up_to(src, left > 0 ? n : 0);
            const vec second = load_up_to(src + s->channel_step, left > 1 ? n : 0);
            const pieces_t p = pieces_of(first, PIECES), q = pieces_of(second, PIECES);
            odd |= oddness(first, PIECES) | oddness(second, PIECES);
            UNROLL for (int i = 0; i < PIECES; i++) {
                pair[i][w] = (uvec)widened(p.piece[i]) | (uvec)widened(q.piece[i]) << 16;
            }
        }
        UNROLL for (int i = 0; i < PIECES; i++) {
            char *to = dst + i * s->apart;
            if (WORDS == 1) {
                store_up_to(to, (vec)pair[i][0], n);
            } else {
                store_up_to(to, interleave_low((vec)pair[i][0], (vec)pair[i][1]), 2 * n);
                store_up_to(to + sizeof(vec), interleave_high((vec)pair[i][0], (vec)pair[i][1]), 2 * n - LANES);
            }
        }
    }
    memcpy(&marks, s->odd + j, sizeof marks);
    marks |= odd >> 31;
    memcpy(s->odd + j, &marks, sizeof marks);
}

INLINE void split_panel(const split_t *s, const int PIECES, const int WORDS) {
    ptrdiff_t j = 0;
    for (; j + LANES <= s->columns; j += LANES) split_lines(s, PIECES, WORDS, j, LANES);
    if (j < s->columns) split_lines(s, PIECES, WORDS, j, s->columns - j);
}

INLINE void split_columns(const split_t *s, const int PIECES, const int WORDS) {
    if (s->by_rows) {
        split_rows(s, PIECES);
    } else {
        split_panel(s, PIECES, WORDS);
    }
}
