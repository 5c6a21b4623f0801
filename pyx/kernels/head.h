/* The heads of classifiers, for a block of logits in cache, [class][pixel]: the best classes, or their softmax.

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

/* exp(v - largest) / sum of these, in place. */
static void softmax(const head_t *h) {
    for (ptrdiff_t pixel = 0; pixel < h->pixels; pixel += LANES) {
        vec largest = load(h->logits + pixel), sum = splat(0.0f);
        for (ptrdiff_t class = 1; class < h->classes; class ++) {
            largest = larger(largest, load(h->logits + class * h->pitch + pixel));
        }
        for (ptrdiff_t class = 0; class < h->classes; class ++) {
            float *at = h->logits + class * h->pitch + pixel;
            const exp_parts e = exp_split(larger(splat(-120.0f), load(at) - largest));
            const vec power = scale_by_power(e.mantissa, e.n);
            sum += power;
            store(at, power);
        }
        for (ptrdiff_t class = 0; class < h->classes; class ++) {
            float *at = h->logits + class * h->pitch + pixel;
            store(at, load(at) / sum);
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
