#include "kernels/neon.h"

#define TILES(X) UP_TO_14(X, 1) UP_TO_12(X, 2) UP_TO_8(X, 3) UP_TO_6(X, 4) UP_TO_4(X, 6)

#include "kernels/instruction_set.h"

const isa_t pwconv_isa_neon = ISA_RECORD("neon", 0, 14, 12, 8, 6, 0, 4);
