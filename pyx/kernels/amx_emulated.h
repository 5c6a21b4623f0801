/* The AMX instructions that amx.c uses, in C: for tests on machines without AMX (see setup.py). */

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

static _Thread_local struct {
    int configured;
    char line[8][16][64];
} emulated;

#define _tile_loadconfig(shapes) ((void)(shapes), emulated.configured = 1)
#define _tile_release() (emulated.configured = 0)
#define _tile_zero(tile) memset(emulated.line[tile], 0, sizeof emulated.line[tile])
#define _tile_loadd(tile, from, stride) emulate_load(tile, (const char *)(from), stride)
#define _tile_stored(tile, to, stride) emulate_store(tile, (char *)(to), stride)
#define _tile_dpbf16ps emulate_products

static void emulate_load(int tile, const char *from, ptrdiff_t stride) {
    for (int row = 0; row < 16; row++) memcpy(emulated.line[tile][row], from + row * stride, 64);
}

static void emulate_store(int tile, char *to, ptrdiff_t stride) {
    for (int row = 0; row < 16; row++) memcpy(to + row * stride, emulated.line[tile][row], 64);
}

static inline float emulated_float(const char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* As the instruction does: even and odd channels are summed separately by FMAs, then added to the old sums. */
static void emulate_products(int sums, int a, int b) {
    if (!emulated.configured) __builtin_trap();
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float part[2] = {0, 0}, sum;
            for (int k = 0; k < 32; k++) {
                part[k & 1] =
                    __builtin_fmaf(emulated_float(&emulated.line[a][m][2 * k]),
                                   emulated_float(&emulated.line[b][k / 2][4 * n + 2 * (k & 1)]), part[k & 1]);
            }
            memcpy(&sum, &emulated.line[sums][m][4 * n], sizeof sum);
            sum += part[0] + part[1];
            memcpy(&emulated.line[sums][m][4 * n], &sum, sizeof sum);
        }
    }
}
