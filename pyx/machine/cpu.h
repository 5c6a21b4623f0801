/* The instruction sets that the CPU and the operating system support, the caches, and the floating-point state. */
#ifndef PWCONV_CPU_H
#define PWCONV_CPU_H

#include "kernels/kernels.h"

/* CPUID and XGETBV on x86, the system's answer on AArch64. Tests construct their own. */
typedef struct {
    uint32_t leaf1_ecx, leaf7_ebx, leaf7_edx, leaf7_1_eax;
    uint64_t xcr0;
    int bf16;
} cpu_facts_t;

cpu_facts_t pwconv_cpu_facts(void);

/* The instruction sets of this build, slowest first. An extension for bfloat16 shares the record of its float32 set. */
int pwconv_isa_count(void);
const char *pwconv_isa_name(int index);
const isa_t *pwconv_isa(int index);
/* The fastest kernel set up to this instruction set for a precision. */
const kernel_set_t *pwconv_kernel_set(int index, int precision);
int pwconv_isa_supported(int index, const cpu_facts_t *facts);
/* The instruction set below this one that has vectors half as long and computes the same bits; -1: none. */
int pwconv_isa_of_half_vectors(int index);

/* Bytes of the caches that one core sees, level 1 (data) to 3; 0 where unknown. */
size_t pwconv_cache_bytes(int level);

/* Do stores past the caches whose addresses agree in the low 12 bits delay each other, and loads behind them? */
int pwconv_stores_wait(void);

/* Sets rounding to nearest, no traps, denormals as zero; returns the state that leave() restores. */
uint64_t pwconv_float_enter(void);
void pwconv_float_leave(uint64_t before);

/* Makes stores past the caches visible to other threads before what this thread stores next. */
void pwconv_end_of_stores(void);

const char *pwconv_compiler(void);

#endif
