/* The few AMX instructions that unit_amx.c uses, in C: for tests on machines without them (see setup.py). */

static _Thread_local struct {
    int configured;
    char line[8][16][64];
} emulated;

#define _tile_loadconfig(shapes) ((void)(shapes), emulated.configured = 1)
#define _tile_release() (emulated.configured = 0)
#define _tile_zero(tile) memset(emulated.line[tile], 0, sizeof emulated.line[tile])
#define _tile_loadd(tile, from, stride) \
    for (int row_ = 0; row_ < 16; row_++) memcpy(emulated.line[tile][row_], (const char *)(from) + row_ * (stride), 64)
#define _tile_stored(tile, to, stride) \
    for (int row_ = 0; row_ < 16; row_++) memcpy((char *)(to) + row_ * (stride), emulated.line[tile][row_], 64)
#define _tile_dpbf16ps emulate_products

static inline float emulated_float(const char *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Even and uneven channels are summed apart, each by FMAs, and then added to what was there. */
static void emulate_products(int sums, int a, int b) {
    if (!emulated.configured) __builtin_trap();
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 16; n++) {
            float part[2] = {0, 0}, sum;
            for (int k = 0; k < 32; k++) {
                part[k & 1] = __builtin_fmaf(emulated_float(&emulated.line[a][m][2 * k]),
                                             emulated_float(&emulated.line[b][k / 2][4 * n + 2 * (k & 1)]), part[k & 1]);
            }
            memcpy(&sum, &emulated.line[sums][m][4 * n], sizeof sum);
            sum += part[0] + part[1];
            memcpy(&emulated.line[sums][m][4 * n], &sum, sizeof sum);
        }
    }
}
