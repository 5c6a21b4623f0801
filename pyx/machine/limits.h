/* Loops that reach the limits of the machine, for benchmarks: FMAs a second, bandwidth of caches and memory. */

/* Independent chains, enough to hide the latency of an FMA. Returns the number of floating-point operations. */
static double fma_chain(long turns) {
    enum { CHAINS = 12 };
    vec sum[CHAINS];
    const vec x = splat(0.999f), y = splat(0.001f);
    UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = splat((float)i);
    for (long turn = 0; turn < turns; turn++) {
        UNROLL for (int i = 0; i < CHAINS; i++) {
            sum[i] = fmadd(sum[i], x, y);
            __asm__ volatile("" : "+" VEC_REGISTER(sum[i]));
        }
    }
    return 2.0 * LANES * CHAINS * (double)turns;
}

/* Reads (0), writes (1) or copies (2) `bytes`, a multiple of eight vectors; 3 and 4 write and copy past the caches. */
static double sweep(int kind, char *dst, const char *src, size_t bytes) {
    enum { AT_ONCE = 8 };
    vec sum[AT_ONCE];
    UNROLL for (int i = 0; i < AT_ONCE; i++) sum[i] = splat(1.0f);
    for (size_t at = 0; at < bytes; at += AT_ONCE * sizeof(vec)) {
        UNROLL for (size_t i = 0; i < AT_ONCE; i++) {
            const size_t here = at + i * sizeof(vec);
            if (kind == 0) sum[i] += load(src + here);
            if (kind == 1) store(dst + here, sum[i]);
            if (kind == 2) store(dst + here, load(src + here));
            if (kind == 3) store_past_caches(dst + here, sum[i]);
            if (kind == 4) store_past_caches(dst + here, load(src + here));
        }
    }
    vec total = sum[0];
    UNROLL for (int i = 1; i < AT_ONCE; i++) total += sum[i];
    return total[0];
}
