/* The epilogue beyond the bias and clip of tile.h: output scale, residual, activation.

   Activations use + - * / fmadd, comparisons and integer operations only, so that every instruction set with FMA gives
   the same bits. Errors against float64 stay within 4 units in the last place (gelu: or 2^-24 |v|). The polynomials are
   minimax fits (Lawson's iteration) of the functions named beside them, made for this file in float64. */

typedef int32_t ivec __attribute__((vector_size(sizeof(vec))));

INLINE vec pick(ivec where, vec yes, vec no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

INLINE vec magnitude(vec v) {
    return (vec)((ivec)v & 0x7fffffff);
}

/* v * 2^n, in two steps so that neither power leaves the normal range for |n| <= 250. */
INLINE vec scale_by_power(vec v, ivec n) {
    const ivec half = n >> 1;
    return v * (vec)((half + 127) << 23) * (vec)((n - half + 127) << 23);
}

/* exp(x) = mantissa * 2^n for |x| <= 170; the parts are kept apart for products that are normal where exp(x) is not. */
typedef struct {
    vec mantissa;
    ivec n;
} exp_parts;

INLINE exp_parts exp_split(vec x) {
    /* Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. ln(2) in two parts: the first has so
       few digits that its multiples by n are exact. */
    const vec round = splat(12582912.0f);
    const vec shifted = fmadd(x, splat(1.44269504f), round);
    const vec n = shifted - round;
    vec r = fmadd(n, splat(-0.693145751953125f), x);
    r = fmadd(n, splat(-1.42860677e-6f), r);
    /* (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, to 3.1e-9 of exp(r) */
    vec p = splat(0.001381454f);
    p = fmadd(p, r, splat(0.008368745f));
    p = fmadd(p, r, splat(0.04166839f));
    p = fmadd(p, r, splat(0.16666521f));
    p = fmadd(p, r, splat(0.49999994f));
    return (exp_parts){fmadd(p, r * r, r) + splat(1.0f), (ivec)shifted - (ivec)round};
}

/* factor(v) / (1 + exp(-|z|)), where factor is v for z >= 0 and v exp(z) below: v times the logistic function of z,
   without overflow. v may be anything, z is clipped to where the result still is a normal number. */
INLINE vec times_logistic(vec v, vec z) {
    const exp_parts e = exp_split(-smaller(splat(120.0f), magnitude(z)));
    const vec below = scale_by_power(v * e.mantissa, e.n);
    return pick(z < splat(0.0f), below, v) / (splat(1.0f) + scale_by_power(e.mantissa, e.n));
}

INLINE vec hyperbolic_tangent(vec v) {
    const vec a = magnitude(v), z = v * v;
    /* (tanh(v) - v) / v^3 in v^2, |v| <= 0.6, to 2.8e-9 of tanh(v) */
    vec p = splat(-0.0058951196f);
    p = fmadd(p, z, splat(0.020795941f));
    p = fmadd(p, z, splat(-0.053783823f));
    p = fmadd(p, z, splat(0.13331924f));
    p = fmadd(p, z, splat(-0.333333f));
    const vec near = fmadd(p * z, v, v);
    const exp_parts e = exp_split(smaller(splat(20.0f), a + a));
    const vec far = splat(1.0f) - splat(2.0f) / (scale_by_power(e.mantissa, e.n) + splat(1.0f));
    const vec signed_far = (vec)((ivec)far | ((ivec)v & (int32_t)0x80000000));
    return pick(a < splat(0.55f), near, signed_far);
}

/* v times the normal distribution function Phi(v). Near 0, Phi(v) = 1/2 + v P(v^2); further out Phi(-a) =
   exp(-a^2 / 2) G(a), a >= 0, and G is nearly a polynomial without constant in t = 1 / (1 + a / 4). */
INLINE vec gelu(vec v) {
    const vec low = larger(splat(-16.0f), v); /* the limit at -inf is 0, and -inf * 0 would be NaN */
    const vec a = smaller(splat(16.0f), magnitude(low)), z = a * a;
    /* (Phi(v) - 1/2) / v in v^2, |v| <= 1.27, to 1.0e-10 */
    vec p = splat(4.7240817e-07f);
    p = fmadd(p, z, splat(-9.042941e-06f));
    p = fmadd(p, z, splat(0.00011500799f));
    p = fmadd(p, z, splat(-0.0011870926f));
    p = fmadd(p, z, splat(0.009973494f));
    p = fmadd(p, z, splat(-0.066490375f));
    p = fmadd(p, z, splat(0.3989423f));
    const vec near = fmadd(p, low, splat(0.5f));
    const vec t = splat(1.0f) / fmadd(a, splat(0.25f), splat(1.0f));
    /* to 1.5e-8 of G where Phi(-a) > 1e-3, 3e-7 beyond */
    vec g = splat(0.029694198f);
    g = fmadd(g, t, splat(-0.17186165f));
    g = fmadd(g, t, splat(0.33477303f));
    g = fmadd(g, t, splat(-0.24889354f));
    g = fmadd(g, t, splat(0.23052625f));
    g = fmadd(g, t, splat(0.02123384f));
    g = fmadd(g, t, splat(0.10655753f));
    g = fmadd(g, t, splat(0.098153606f));
    g = fmadd(g, t, splat(0.09981672f));
    const exp_parts e = exp_split(z * splat(-0.5f));
    const vec tail = scale_by_power(g * t * e.mantissa, e.n);
    const vec far = pick(low < splat(0.0f), tail, splat(1.0f) - tail);
    return low * pick(a < splat(1.25f), near, far);
}

/* v times the logistic function of 2 sqrt(2 / pi) (v + 0.044715 v^3): the tanh form of Hendrycks and Gimpel. */
INLINE vec gelu_tanh(vec v) {
    const vec low = larger(splat(-16.0f), v);
    const vec z = low * fmadd(low * low, splat(0.0713548163f), splat(1.59576912f));
    return times_logistic(low, z);
}

INLINE vec hard_sigmoid(vec v) {
    return clip((v + splat(3.0f)) / splat(6.0f), splat(0.0f), splat(1.0f));
}

#define MAP(EXPRESSION)                       \
    for (ptrdiff_t i = 0; i < vectors; i++) { \
        const vec v = load(x + i * LANES);    \
        store(x + i * LANES, EXPRESSION);     \
    }                                         \
    break

static void activate(activation_t activation, float *x, ptrdiff_t vectors) {
    const vec low = splat(activation.low), high = splat(activation.high);
    switch (activation.code) {
        case ACT_CLIP: MAP(clip(v, low, high));
        case ACT_LEAKY_RELU: MAP(pick(v < splat(0.0f), v * low, v));
        case ACT_SIGMOID: MAP(times_logistic(splat(1.0f), v));
        case ACT_TANH: MAP(hyperbolic_tangent(v));
        /* silu(-120) is far below the normal numbers; -inf * 0 would be NaN */
        case ACT_SILU: MAP(times_logistic(larger(splat(-120.0f), v), v));
        case ACT_GELU: MAP(gelu(v));
        case ACT_GELU_TANH: MAP(gelu_tanh(v));
        case ACT_HARDSIGMOID: MAP(hard_sigmoid(v));
        case ACT_HARDSWISH: MAP(larger(splat(-3.0f), v) * hard_sigmoid(v));
        default: break;
    }
}

static void epilogue(const epilogue_t *e) {
    for (ptrdiff_t r = 0; r < e->rows; r++) {
        float *sum = e->sum + r * e->pitch;
        for (ptrdiff_t v = 0; v < e->vectors; v++) {
            const ptrdiff_t lane = v * LANES;
            const vec bias = e->channels_in_b ? load(e->bias + lane) : splat(e->bias[r]);
            const vec scale = e->channels_in_b ? load(e->scale + lane) : splat(e->scale[r]);
            const vec biased = load(sum + lane) + bias;
            store(sum + lane,
                  e->residual ? fmadd(scale, biased, load(e->residual + r * e->pitch + lane)) : scale * biased);
        }
        activate(e->activation, sum, e->vectors);
    }
}
