/* The OpenMP functions that the engine needs, also without OpenMP, and checks that threads can be started at all:
   OpenMP ends the process where the system refuses one. */
#ifndef PWCONV_THREADS_H
#define PWCONV_THREADS_H

#include <stddef.h>
#include <stdlib.h>

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

/* Shortens the time that LLVM's idle workers spin after a call from 200 ms to 1 ms, unless the user has set it, so that
   the next library finds the cores free. GCC's OpenMP reads its setting when it is loaded, see runtime.py. */
static inline void pwconv_let_workers_sleep(void) {
#ifdef KMP_VERSION_MAJOR
    static _Thread_local int done = 0;
    if (!done && !getenv("KMP_BLOCKTIME") && !getenv("OMP_WAIT_POLICY")) kmp_set_blocktime(1);
    done = 1;
#endif
}

typedef void (*work_t)(void *);

/* Waits for the other threads of a parallel region: at the end of a prange, Cython does not. */
static inline void pwconv_wait_for_all(void) {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

/* Takes the next of numbers that threads share: returns it and adds one. */
static inline ptrdiff_t pwconv_take(ptrdiff_t *next) {
    return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
}

#if defined(_WIN32)
static inline int pwconv_startable(int threads, int anew) {
    (void)anew;
    return threads;
}
static inline int pwconv_run_aside(work_t work, void *argument) {
    (void)work, (void)argument;
    return 0;
}
#else
#include <pthread.h>

static void *pwconv_wait_for(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Returns how many of `threads` threads the system lets the caller have: itself and its OpenMP team, or, if `anew`, all
   of them newly started. libgomp ends the process if it cannot start one. So before a team grows, as many threads are
   started at once and joined. A team that shrinks ends its surplus threads, so its last size counts. */
static inline int pwconv_startable(int threads, int anew) {
    static _Thread_local int team = 1;
    const int others = anew ? threads : threads - 1;
    int started = 0;
    if (threads > 1 && (anew || threads > team)) {
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        pthread_t *tried = malloc(others * sizeof *tried);
        pthread_mutex_lock(&gate);
        while (tried && started < others && pthread_create(&tried[started], NULL, pwconv_wait_for, &gate) == 0)
            started++;
        pthread_mutex_unlock(&gate);
        for (int i = 0; i < started; i++) pthread_join(tried[i], NULL);
        free(tried);
        threads = threads - (others - started);
    }
    if (threads < 1) threads = 1;
    if (!anew && threads > 1) team = threads;
    return threads;
}

typedef struct {
    work_t work;
    void *argument;
} pwconv_aside_t;

static void *pwconv_work_aside(void *aside) {
    ((pwconv_aside_t *)aside)->work(((pwconv_aside_t *)aside)->argument);
    return NULL;
}

/* Runs work in a new thread and waits for it; 0 if none can be started. In the child of a fork the OpenMP team of the
   forking thread does not exist any more, which OpenMP does not notice; a new thread makes a team of its own. */
static inline int pwconv_run_aside(work_t work, void *argument) {
    pwconv_aside_t aside = {work, argument};
    pthread_t thread;
    if (pthread_create(&thread, NULL, pwconv_work_aside, &aside) != 0) return 0;
    pthread_join(thread, NULL);
    return 1;
}
#endif

#endif
