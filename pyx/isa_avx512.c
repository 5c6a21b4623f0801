#include "avx512.h"

#include "isa_table.h"

const isa_t pwconv_isa_avx512 = ISA_RECORD("avx512", TALLEST_TILES);
