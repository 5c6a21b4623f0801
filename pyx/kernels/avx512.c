#include "kernels/avx512.h"

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_avx512 = ISA_RECORD("avx512", LARGEST_MR);
