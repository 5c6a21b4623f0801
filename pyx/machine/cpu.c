#include "machine/cpu.h"

#include <stdio.h>
#include <string.h>

/* An instruction set: its record, and the kernel sets that it adds for lower precisions. */
typedef struct {
    const char *name;
    const isa_t *isa;
    const kernel_set_t *kernels[PRECISIONS];
} level_t;

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const isa_t pwconv_isa_baseline, pwconv_isa_avx2, pwconv_isa_avx512;
extern const kernel_set_t pwconv_kernels_avx512_bf16, pwconv_kernels_amx_bf16x1, pwconv_kernels_amx_bf16x2;

enum {
    BASELINE,
    AVX2,
    AVX512,
    AVX512_BF16,
    AMX,
};
static const level_t built[] = {
    [BASELINE] = {"baseline", &pwconv_isa_baseline, {0}},
    [AVX2] = {"avx2", &pwconv_isa_avx2, {0}},
    [AVX512] = {"avx512", &pwconv_isa_avx512, {0}},
    [AVX512_BF16] = {"avx512_bf16", &pwconv_isa_avx512, {[MEDIUM] = &pwconv_kernels_avx512_bf16}},
    [AMX] = {"amx", &pwconv_isa_avx512, {[HIGH] = &pwconv_kernels_amx_bf16x2, [MEDIUM] = &pwconv_kernels_amx_bf16x1}},
};

cpu_facts_t pwconv_cpu_facts(void) {
    cpu_facts_t facts = {0};
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) facts.leaf1_ecx = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) facts.leaf7_ebx = b, facts.leaf7_edx = d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) facts.leaf7_1_eax = a;
    if (facts.leaf1_ecx & bit_OSXSAVE) {
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        facts.xcr0 = (uint64_t)d << 32 | a;
    }
    return facts;
}

/* A register set counts only if the operating system saves it when it switches between threads. */
int pwconv_isa_supported(int index, const cpu_facts_t *facts) {
    const uint64_t avx_state = 0x6;
    const uint32_t avx2_leaf1 = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
    const uint64_t avx512_state = 0xe6;
    const uint32_t avx512_leaf7 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    const uint32_t avx512_bf16_leaf7_1 = 1 << 5;
    const int avx2 = (facts->leaf1_ecx & avx2_leaf1) == avx2_leaf1 && (facts->leaf7_ebx & bit_AVX2) &&
                     (facts->xcr0 & avx_state) == avx_state;
    const int avx512 =
        avx2 && (facts->leaf7_ebx & avx512_leaf7) == avx512_leaf7 && (facts->xcr0 & avx512_state) == avx512_state;
    const int avx512_bf16 = avx512 && (facts->leaf7_1_eax & avx512_bf16_leaf7_1);
#if defined(PWCONV_EMULATE_AMX)
    const int amx = avx512_bf16;
#elif defined(__linux__)
    const uint64_t tile_state = 0x60000;
    const uint32_t amx_leaf7_edx = 1 << 22 | 1 << 24; /* AMX-BF16, AMX-TILE */
    const int amx =
        avx512_bf16 && (facts->leaf7_edx & amx_leaf7_edx) == amx_leaf7_edx && (facts->xcr0 & tile_state) == tile_state;
#else
    const int amx = 0;
#endif
    switch (index) {
        case AVX2: return avx2;
        case AVX512: return avx512;
        case AVX512_BF16: return avx512_bf16;
        case AMX: return amx;
        default: return 1;
    }
}

int pwconv_isa_of_half_vectors(int index) {
    return index >= AVX512 ? AVX2 : -1; /* the baseline has no FMA */
}

/* May this process use the kernel set? Linux grants AMX's large register state to processes that ask for it. pwconv
   asks when AMX is first wanted, since signal handlers need larger stacks from then on. */
static int allowed(const kernel_set_t *kernels) {
#if defined(__linux__) && !defined(PWCONV_EMULATE_AMX)
    enum { UNKNOWN, YES, NO };
    static int tiles = UNKNOWN;
    const long ask_for_state = 0x1023, tile_data = 18;
    if (!kernels->enter) return 1;
    if (tiles == UNKNOWN) tiles = syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0 ? YES : NO;
    return tiles == YES;
#else
    (void)kernels;
    return 1;
#endif
}

/* AMD's processors before AVX-512: measured on Zen 3; Zen 4 does not mind. */
int pwconv_stores_wait(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && !(pwconv_cpu_facts().leaf7_ebx & bit_AVX512F);
}

/* The deterministic cache parameters: leaf 4 on Intel, 0x8000001d on AMD, in the same format. */
size_t pwconv_cache_bytes(int level) {
    static const unsigned leaves[] = {4, 0x8000001d};
    for (int i = 0; i < 2; i++) {
        unsigned a, b, c, d;
        for (unsigned sub = 0; sub < 16 && __get_cpuid_count(leaves[i], sub, &a, &b, &c, &d) && (a & 31); sub++) {
            const int instructions = (a & 31) == 2;
            if ((int)(a >> 5 & 7) != level || instructions) continue;
            return (size_t)((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) * (c + 1);
        }
    }
    return 0;
}

uint64_t pwconv_float_enter(void) {
    const unsigned all_masked = 0x1f80, flush_results = 0x8000, denormals_are_zero = 0x40;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(all_masked | flush_results | denormals_are_zero);
    return before;
}

void pwconv_float_leave(uint64_t before) {
    _mm_setcsr((unsigned)before);
}

void pwconv_end_of_stores(void) {
    _mm_sfence();
}

#elif defined(__aarch64__)

extern const isa_t pwconv_isa_neon;
extern const kernel_set_t pwconv_kernels_neon_bf16x1, pwconv_kernels_neon_bf16x2;

enum { NEON, NEON_BF16 };
static const level_t built[] = {
    [NEON] = {"neon", &pwconv_isa_neon, {0}},
    [NEON_BF16] = {"neon_bf16",
                   &pwconv_isa_neon,
                   {[HIGH] = &pwconv_kernels_neon_bf16x2, [MEDIUM] = &pwconv_kernels_neon_bf16x1}},
};

static int allowed(const kernel_set_t *kernels) {
    (void)kernels;
    return 1;
}

/* NEON belongs to AArch64; BFMMLA came later. */
int pwconv_isa_supported(int index, const cpu_facts_t *facts) {
    return (const int[]){[NEON] = 1, [NEON_BF16] = facts->bf16}[index];
}

#if defined(__APPLE__)
#include <sys/sysctl.h>

cpu_facts_t pwconv_cpu_facts(void) {
    int bf16 = 0;
    size_t length = sizeof bf16;
    const int known = sysctlbyname("hw.optional.arm.FEAT_BF16", &bf16, &length, NULL, 0) == 0;
    return (cpu_facts_t){.bf16 = known && bf16};
}

size_t pwconv_cache_bytes(int level) {
    static const char *const names[] = {"hw.l1dcachesize", "hw.l2cachesize", "hw.l3cachesize"};
    size_t bytes = 0, length = sizeof bytes;
    return sysctlbyname(names[level - 1], &bytes, &length, NULL, 0) == 0 ? bytes : 0;
}
#else
#if defined(__linux__)
#include <sys/auxv.h>
#endif

cpu_facts_t pwconv_cpu_facts(void) {
#if defined(__linux__)
    const unsigned long hwcap2_bf16 = 1 << 14;
    return (cpu_facts_t){.bf16 = (getauxval(AT_HWCAP2) & hwcap2_bf16) != 0};
#else
    return (cpu_facts_t){0};
#endif
}

size_t pwconv_cache_bytes(int level) {
    for (int index = 0; index < 8; index++) {
        char path[96], kind[16] = "";
        int found = 0;
        unsigned long kib = 0;
        static const char *const facts[] = {"level", "type", "size"};
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, facts[i]);
            FILE *file = fopen(path, "r");
            if (!file) return 0;
            const int read = i == 0   ? fscanf(file, "%d", &found)
                             : i == 1 ? fscanf(file, "%15s", kind)
                                      : fscanf(file, "%lu", &kib);
            fclose(file);
            if (read != 1) return 0;
        }
        if (found == level && strcmp(kind, "Instruction") != 0) return kib * 1024;
    }
    return 0;
}
#endif

int pwconv_isa_of_half_vectors(int index) {
    (void)index;
    return -1;
}

int pwconv_stores_wait(void) {
    return 0;
}

uint64_t pwconv_float_enter(void) {
    uint64_t control, status;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control), "=r"(status));
    const uint64_t flush_to_zero = 1 << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush_to_zero));
    return status << 32 | control;
}

void pwconv_float_leave(uint64_t before) {
    const uint64_t control = before & 0xffffffff, status = before >> 32;
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(control), "r"(status));
}

void pwconv_end_of_stores(void) {
}

#else
#error "pwconv knows x86-64 and AArch64"
#endif

int pwconv_isa_count(void) {
    return sizeof built / sizeof *built;
}

const char *pwconv_isa_name(int index) {
    return built[index].name;
}

const isa_t *pwconv_isa(int index) {
    return built[index].isa;
}

const kernel_set_t *pwconv_kernel_set(int index, int precision) {
    for (int level = index; level >= 0; level--) {
        const kernel_set_t *kernels = built[level].kernels[precision];
        if (kernels && allowed(kernels)) return kernels;
    }
    return &built[index].isa->float32;
}

const char *pwconv_compiler(void) {
#if defined(__clang__)
    return "Clang " __clang_version__;
#else
    return "GCC " __VERSION__;
#endif
}
