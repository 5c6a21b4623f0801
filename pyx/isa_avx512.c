#include "avx512.h"

#define TILES(X) UP_TO_14(X, 1) UP_TO_14(X, 2) UP_TO_8(X, 3) UP_TO_6(X, 4) UP_TO_4(X, 6)
#include "isa_table.h"

const isa_t pwconv_isa_avx512 = ISA_RECORD("avx512", 0, 14, 14, 8, 6, 0, 4);
