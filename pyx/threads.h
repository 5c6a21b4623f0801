/* OpenMP's few functions that the engine needs, also where the compiler has no OpenMP. */
#ifndef PWCONV_THREADS_H
#define PWCONV_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#define PWCONV_OPENMP _OPENMP
#else
#define PWCONV_OPENMP 0
static inline int omp_get_max_threads(void) {
    return 1;
}
static inline int omp_get_thread_num(void) {
    return 0;
}
#endif

#endif
