/* What this CPU and this operating system really support, and the floating-point state that kernels run in. */
#ifndef PWCONV_CPU_H
#define PWCONV_CPU_H

#include "isa.h"

/* What CPUID and XGETBV say on x86, of which tests make up their own; and what the system says on AArch64. */
typedef struct {
    uint32_t leaf1_ecx, leaf7_ebx, leaf7_edx, leaf7_1_eax;
    uint64_t xcr0;
    int bf16;
} cpu_facts_t;

cpu_facts_t pwconv_cpu_facts(void);

/* The instruction sets of this build, slowest first. One that only adds a unit shares the record of the one before. */
int pwconv_isa_count(void);
const char *pwconv_isa_name(int index);
const isa_t *pwconv_isa(int index);
/* The fastest unit of an instruction set that is so exact. */
const unit_t *pwconv_unit(int index, int precision);
int pwconv_isa_supported(int index, const cpu_facts_t *facts);

/* Bytes of the caches that one core sees, level 1 (data) to 3; 0 where unknown. */
size_t pwconv_cache_bytes(int level);

/* Rounding to nearest, no traps, denormals flushed to zero; returns what leave() needs to put everything back. */
uint64_t pwconv_float_enter(void);
void pwconv_float_leave(uint64_t before);

const char *pwconv_compiler(void);

#endif
