/* Time, and a loop that takes a known number of a core's cycles. */
#ifndef PWCONV_CLOCK_H
#define PWCONV_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t pwconv_nanoseconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Additions that depend on each other, of which every core does one a cycle. Returns how many cycles they take. */
static inline double pwconv_add_chain(long turns) {
    enum { ADDITIONS = 8 };
    uint64_t sum = 0, addend = (uint64_t)turns;
    for (long turn = 0; turn < turns; turn++) {
        for (int i = 0; i < ADDITIONS; i++) {
            sum += addend;
            __asm__ volatile("" : "+r"(sum), "+r"(addend));
        }
    }
    return (double)ADDITIONS * (double)turns;
}

#endif
