/* Float32 as the sum of one or two bfloat16, and how they are laid out for a unit that multiplies these.

   The first piece is x rounded to bfloat16 (to nearest, ties to even), the second the rest, rounded again: for normal
   x, |x - first| <= 2^-8 |x| and |x - first - second| <= 2^-17 |x|. Denormal x count as zero, as they do in float32.
   Infinities, NaN and what rounds to infinity cannot be told in pieces; nor, in two of them, what is so small that the
   second would be denormal where it matters: columns that hold such a number are marked as odd. */

typedef uint32_t uvec __attribute__((vector_size(sizeof(vec))));
typedef uint16_t narrow __attribute__((vector_size(sizeof(vec) / 2)));

#define SMALLEST_NORMAL 0x00800000u
#define SMALLEST_IN_TWO 0x09800000u /* 2^-108: what the second may lose, 2^-126, is 2^-18 of it */
#define LARGEST_IN_PIECES 0x7f7f7fffu

typedef struct {
    uvec piece[2];
} pieces_t;

/* The pieces, in the upper halves, and in `odd` what is nonzero where there are none. */
INLINE pieces_t pieces_of(vec v, const int pieces, uvec *odd) {
    const uvec all = (uvec)v, size = all & 0x7fffffff;
    const uvec bits = all & (uvec)(size >= SMALLEST_NORMAL);
    const uint32_t smallest = pieces == 1 ? SMALLEST_NORMAL : SMALLEST_IN_TWO;
    pieces_t p;
    *odd |= (uvec)(size - smallest > LARGEST_IN_PIECES - smallest) & (uvec)(size >= SMALLEST_NORMAL);
    p.piece[0] = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    if (pieces == 2) {
        const uvec rest = (uvec)((vec)bits - (vec)p.piece[0]);
        p.piece[1] = (rest + 0x7fff + (rest >> 16 & 1)) & 0xffff0000;
    }
    return p;
}

INLINE vec load_up_to(const char *p, ptrdiff_t n) {
    return n >= LANES ? load(p) : n > 0 ? load_first(p, (int)n) : splat(0.0f);
}

/* The first n of some lines of vectors, and no more; the usual case without a call. */
INLINE void store_up_to(char *to, const void *from, ptrdiff_t n, size_t all) {
    if ((size_t)n >= all) {
        memcpy(to, from, all);
    } else {
        memcpy(to, from, n);
    }
}

/* From columns whose channels lie side by side. */
INLINE void split_rows(const split_t *s, const int PIECES) {
    for (ptrdiff_t j = 0; j < s->columns; j++) {
        const char *src = s->src + j * s->step;
        char *dst = s->dst + j * s->column_step;
        uvec odd = {0};
        for (ptrdiff_t start = 0; start < s->room; start += s->together, dst += s->pitch) {
            const ptrdiff_t end = start + s->together < s->room ? s->together : s->room - start;
            for (ptrdiff_t k = 0; k < end; k += LANES) {
                const ptrdiff_t channel = start + k;
                const pieces_t p =
                    pieces_of(load_up_to(src + channel * sizeof(float), s->depth - channel), PIECES, &odd);
                for (int i = 0; i < PIECES; i++) {
                    const narrow halves = __builtin_convertvector(p.piece[i] >> 16, narrow);
                    store_up_to(dst + i * s->apart + k * sizeof(uint16_t), &halves, (end - k) * sizeof(uint16_t),
                                sizeof halves);
                }
            }
        }
        for (int i = 0; i < LANES; i++) s->odd[j] |= odd[i];
    }
}

/* One vector of columns, or what is left of it, of the lines of one step; from channel k on. */
INLINE void split_lines(const split_t *s, const int PIECES, const int WORDS, ptrdiff_t k, ptrdiff_t j, ptrdiff_t n) {
    uvec pair[2][2], odd;
    memcpy(&odd, s->odd + j, sizeof odd);
    UNROLL for (int w = 0; w < WORDS; w++) {
        const ptrdiff_t channel = k + 2 * w;
        const char *at = s->src + channel * s->channel_step + j * sizeof(float);
        const vec first = load_up_to(at, channel < s->depth ? n : 0);
        const vec second = load_up_to(at + s->channel_step, channel + 1 < s->depth ? n : 0);
        const pieces_t p = pieces_of(first, PIECES, &odd), q = pieces_of(second, PIECES, &odd);
        UNROLL for (int i = 0; i < PIECES; i++) pair[i][w] = p.piece[i] >> 16 | q.piece[i];
    }
    memcpy(s->odd + j, &odd, sizeof odd);
    UNROLL for (int i = 0; i < PIECES; i++) {
        const vec line[2] = {WORDS == 1 ? (vec)pair[i][0] : interleave_low((vec)pair[i][0], (vec)pair[i][1]),
                             WORDS == 1 ? splat(0.0f) : interleave_high((vec)pair[i][0], (vec)pair[i][1])};
        char *to = s->dst + k / (2 * WORDS) * s->pitch + i * s->apart + j * WORDS * sizeof(float);
        store_up_to(to, line, n * WORDS * sizeof(float), WORDS * sizeof(vec));
    }
}

/* From channels whose columns lie side by side, into lines of columns with WORDS pairs of channels each. */
INLINE void split_panel(const split_t *s, const int PIECES, const int WORDS) {
    for (ptrdiff_t k = 0; k < s->room; k += 2 * WORDS) {
        ptrdiff_t j = 0;
        for (; j + LANES <= s->columns; j += LANES) split_lines(s, PIECES, WORDS, k, j, LANES);
        if (j < s->columns) split_lines(s, PIECES, WORDS, k, j, s->columns - j);
    }
}

INLINE void split_columns(const split_t *s, const int PIECES, const int WORDS) {
    if (s->by_rows) {
        split_rows(s, PIECES);
    } else {
        split_panel(s, PIECES, WORDS);
    }
}
