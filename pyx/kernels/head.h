/* The heads of classifiers, for a block of logits in cache, [class][pixel]: the best classes, or probabilities.

   Rows have room for whole vectors, so no loop treats an edge. */

INLINE ivec choose(ivec where, ivec yes, ivec no) {
    return (where & yes) | (~where & no);
}

/* Orders logits as integers: numbers by value with -0 equal to 0, NaN above all. */
INLINE ivec rank_of(vec v) {
    const ivec bits = (ivec)(v + splat(0.0f));
    const ivec largest = bits * 0 + INT32_MAX;
    return choose(v == v, bits ^ (bits >> 31 & INT32_MAX), largest);
}

/* The k best classes of every pixel, best first, the lower class first among equals: labels[place][pixel] and, unless
   NULL, values[place][pixel]. Each place is searched among all classes that rank below the place before: k is small. */
static void best(const head_t *h) {
    for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
        const ivec zero = {0};
        ivec last_rank = zero + INT32_MAX, last_label = zero - 1;
        for (ptrdiff_t place = 0; place < h->k; place++) {
            ivec rank = zero + INT32_MIN, label = zero;
            vec value = splat(0.0f);
            for (ptrdiff_t class = 0; class < h->classes; class ++) {
                const vec v = load(h->logits + class * h->pitch + pixel);
                const ivec r = rank_of(v);
                ivec better = r > rank;
                if (place > 0) better &= (r < last_rank) | ((r == last_rank) & (last_label < (int32_t)class));
                rank = choose(better, r, rank);
                label = choose(better, zero + (int32_t)class, label);
                value = pick(better, v, value);
            }
            memcpy(h->labels + place * h->pitch + pixel, &label, sizeof label);
            if (h->values) store(h->values + place * h->pitch + pixel, value);
            last_rank = rank;
            last_label = label;
        }
    }
}

/* labels[class][pixel]: 1 where the logit of the class is above 0, else 0. */
static void indicate(const head_t *h) {
    for (ptrdiff_t class = 0; class < h->classes; class ++) {
        for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
            const ptrdiff_t at = class * h->pitch + pixel;
            const ivec above = (load(h->logits + at) > splat(0.0f)) & 1;
            memcpy(h->labels + at, &above, sizeof above);
        }
    }
}

INLINE vec logit_of(const head_t *h, ptrdiff_t class, ptrdiff_t pixel) {
    /* The only logit of a binary classifier speaks for class 1, its negative for class 0. */
    if (h->link == LINK_MODIFIED_HUBER && h->binary && class == 0) return -load(h->logits + h->pitch + pixel);
    return load(h->logits + class * h->pitch + pixel);
}

/* min(v, 0), and not -infinity, since infinities have no difference. */
INLINE vec below_zero(vec v) {
    return larger(splat(-FLT_MAX), smaller(splat(0.0f), v));
}

/* e^v for v <= 0; as good as 0 from -120 on. */
INLINE vec power_below_zero(vec v) {
    const exp_parts e = exp_split(larger(splat(-120.0f), v));
    return scale_by_power(e.mantissa, e.n);
}

/* Probabilities in place: what `share` computes of each logit, divided by the sum over all classes of the pixel. The
   logarithm of what all shares may have in common, `common`, is subtracted first, so that the sum does not underflow.
 */
INLINE void normalise(const head_t *h, int link) {
    for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
        vec common = splat(-INFINITY), sum = splat(0.0f);
        for (ptrdiff_t class = 0; class < h->classes && link != LINK_MODIFIED_HUBER; class ++) {
            const vec v = logit_of(h, class, pixel);
            common = larger(common, link == LINK_SOFTMAX ? v : below_zero(v));
        }
        for (ptrdiff_t class = 0; class < h->classes; class ++) {
            const vec v = logit_of(h, class, pixel);
            vec share;
            if (link == LINK_SOFTMAX) {
                share = power_below_zero(v - common);
            } else if (link == LINK_ONE_VS_REST) { /* the logistic function, e^min(v, 0) / (1 + e^-|v|) */
                share = power_below_zero(below_zero(v) - common) / (splat(1.0f) + power_below_zero(-magnitude(v)));
            } else {
                share = clip(v, splat(-1.0f), splat(1.0f)) + splat(1.0f);
            }
            sum += share;
            store(h->logits + class * h->pitch + pixel, share);
        }
        for (ptrdiff_t class = 0; class < h->classes; class ++) {
            float *at = h->logits + class * h->pitch + pixel;
            vec probability = load(at) / sum;
            if (link == LINK_MODIFIED_HUBER) { /* all shares may be 0: then all classes are as probable */
                probability = pick(sum == splat(0.0f), splat(1.0f / (float)h->classes), probability);
            }
            store(at, probability);
        }
    }
}

/* Probabilities of a block of logits, in place. */
static void probabilities(const head_t *h) {
    const activation_t logistic = {.code = ACT_SIGMOID};
    switch (h->link) {
        case LINK_SOFTMAX: normalise(h, LINK_SOFTMAX); break;
        case LINK_ONE_VS_REST: normalise(h, LINK_ONE_VS_REST); break;
        case LINK_MODIFIED_HUBER: normalise(h, LINK_MODIFIED_HUBER); break;
        default: /* independent classes */
            for (ptrdiff_t class = 0; class < h->classes; class ++) {
                activate(logistic, h->logits + class * h->pitch, (h->pixels + LANES - 1) / LANES);
            }
    }
}

static void discount_nan(const head_t *h) {
    for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
        ivec counts;
        memcpy(&counts, h->counts + pixel, sizeof counts);
        for (ptrdiff_t class = 0; class < h->classes; class ++) {
            const vec v = load(h->logits + class * h->pitch + pixel);
            counts &= v == v;
        }
        memcpy(h->counts + pixel, &counts, sizeof counts);
    }
}

static void fill_uncounted(const head_t *h) {
    const ptrdiff_t rows = h->labels ? h->k : h->classes;
    float *values = h->labels ? h->values : h->logits;
    for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
        ivec counts;
        memcpy(&counts, h->counts + pixel, sizeof counts);
        for (ptrdiff_t row = 0; row < rows; row++) {
            const ptrdiff_t at = row * h->pitch + pixel;
            if (values) store(values + at, pick(counts, load(values + at), splat(h->fill)));
            if (h->labels) {
                const ivec zero = {0};
                ivec label;
                memcpy(&label, h->labels + at, sizeof label);
                label = choose(counts, label, zero + h->fill_label);
                memcpy(h->labels + at, &label, sizeof label);
            }
        }
    }
}

/* The best class of every pixel of a line that is interpolated from two lines of logits. Each class in turn is
   interpolated down the columns, then along the line. */
static void best_resized(const resize_t *r) {
    const ivec zero = {0};
    for (ptrdiff_t class = 0; class < r->classes; class ++) {
        const float *above = r->above + class * r->pitch, *below = r->below + class * r->pitch;
        for (ptrdiff_t x = 0; x < r->width; x += LANES) {
            const vec top = load(above + x);
            store(r->line + x, fmadd(splat(r->down), load(below + x) - top, top));
        }
        for (ptrdiff_t x = 0; x < r->out_width; x += LANES) {
            const vec left = gather(r->line, r->left + x);
            const ivec rank = rank_of(fmadd(load(r->across + x), gather(r->line, r->right + x) - left, left));
            ivec most, label;
            memcpy(&most, r->ranks + x, sizeof most);
            memcpy(&label, r->labels + x, sizeof label);
            const ivec better = class == 0 ? ~zero : rank > most;
            most = choose(better, rank, most);
            label = choose(better, zero + (int32_t)class, label);
            /* Only NaN has the largest rank. */
            if (r->fills && class == r->classes - 1) label = choose(most == INT32_MAX, zero + r->fill_label, label);
            memcpy(r->ranks + x, &most, sizeof most);
            memcpy(r->labels + x, &label, sizeof label);
        }
    }
}
