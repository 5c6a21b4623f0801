/* Operations that SSE2 and NEON do one lane at a time. The includer defines vec and LANES. */

/* The first n < LANES lanes; the others are zero, or stay as they are in memory. */
static inline vec load_first(const void *p, int n) {
    float lanes[LANES] = {0};
    for (int i = 0; i < n; i++) memcpy(lanes + i, (const char *)p + i * sizeof(float), sizeof(float));
    return (vec){lanes[0], lanes[1], lanes[2], lanes[3]};
}

static inline void store_first(void *p, vec v, int n) {
    for (int i = 0; i < n; i++) {
        const float lane = v[i];
        memcpy((char *)p + i * sizeof(float), &lane, sizeof lane);
    }
}

static inline vec gather(const float *from, const int32_t *index) {
    return (vec){from[index[0]], from[index[1]], from[index[2]], from[index[3]]};
}

/* For interleave.h. */
/* A vector holds one quad. */
static inline vec two_quads(const vec *run, const int first, const int second) {
    (void)second;
    return run[first];
}

static inline vec load_quads(const char *p, ptrdiff_t step) {
    vec quad;
    (void)step;
    memcpy(&quad, p, sizeof quad);
    return quad;
}

static inline void store_quads(char *p, ptrdiff_t step, vec quad) {
    (void)step;
    memcpy(p, &quad, sizeof quad);
}

static inline void store_quad_past_caches(char *p, vec v, int quad) {
    (void)quad;
    store_past_caches(p, v);
}

static inline ints load_pixels_3(const void *p) {
    uint32_t word[3];
    memcpy(word, p, sizeof word);
    return (ints){(int32_t)word[0], (int32_t)(word[0] >> 24 | word[1] << 8), (int32_t)(word[1] >> 16 | word[2] << 16),
                  (int32_t)(word[2] >> 8)};
}

/* The highest byte of each pixel is zero. */
static inline void store_pixels_3(void *p, ints x) {
    const uint32_t a = (uint32_t)x[0], b = (uint32_t)x[1], c = (uint32_t)x[2], d = (uint32_t)x[3];
    const uint32_t word[3] = {a | b << 24, b >> 8 | c << 16, c >> 16 | d << 8};
    memcpy(p, word, sizeof word);
}
