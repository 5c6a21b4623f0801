/* Packing: rectangles of feature maps and weights into panels of float32. */

/* x[i] = activation(scale * x[i] + shift) in place: one channel throughout, or one channel each from scale[0] on. */
static void transform(float *x, ptrdiff_t n, const float *scale, const float *shift, int channels_along,
                      activation_t activation) {
    const ptrdiff_t whole = n - n % LANES;
    const vec s = splat(*scale), t = splat(*shift);
    for (ptrdiff_t i = 0; i < whole; i += LANES) {
        store(x + i, channels_along ? fmadd(load(x + i), load(scale + i), load(shift + i)) : fmadd(load(x + i), s, t));
    }
    activate(activation, x, whole / LANES);
    if (whole < n) {
        const int left = (int)(n - whole);
        const vec v = load_first(x + whole, left);
        float part[LANES];
        store(part, channels_along ? fmadd(v, load_first(scale + whole, left), load_first(shift + whole, left))
                                   : fmadd(v, s, t));
        activate(activation, part, 1);
        store_first(x + whole, load(part), left);
    }
}

static void pack(const pack_t *p) {
    const ptrdiff_t few = p->channel_step % CROWDED_STEP ? PACKED_AT_ONCE : PACKED_OF_CROWDED;
    const ptrdiff_t at_once = p->channel_step < p->step ? p->k : few; /* all where pixels are far apart */
    for (ptrdiff_t channel = 0; channel < p->k; channel += at_once) {
        const ptrdiff_t left = p->k - channel, k = left < at_once ? left : at_once;
        ptrdiff_t done = 0;
        while (done < p->count) {
            const ptrdiff_t column = (p->at + done) % p->width, room = p->width - column;
            const ptrdiff_t n = p->count - done < room ? p->count - done : room;
            float *dst = p->dst + (p->at + done) / p->width * p->panel + channel * p->width + column;
            copy_widened(p->kind, (char *)dst, p->width * sizeof(float),
                         p->src + channel * p->channel_step + done * p->step, p->channel_step, p->step, k, n);
            for (ptrdiff_t i = 0; p->scale && i < k; i++) {
                transform(dst + i * p->width, n, p->scale + channel + i, p->shift + channel + i, 0, p->activation);
            }
            done += n;
        }
    }
}

static void pack_rows(const pack_t *p) {
    /* Row by row if a transform follows, so that it finds the row in the first-level cache. */
    const ptrdiff_t at_once = p->scale ? 1 : p->count;
    for (ptrdiff_t i = 0; i < p->count; i += at_once) {
        float *dst = p->dst + (p->at + i) * p->width;
        copy_widened(p->kind, (char *)dst, p->width * sizeof(float), p->src + i * p->step, p->step, p->channel_step,
                     at_once, p->k);
        if (p->scale) transform(dst, p->k, p->scale, p->shift, 1, p->activation);
    }
}
