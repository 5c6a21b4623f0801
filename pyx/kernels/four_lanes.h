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
