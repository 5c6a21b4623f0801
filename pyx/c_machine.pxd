# The records and functions of machine/: what the CPU and the operating system support, and OpenMP.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from c_kernels cimport isa_t, kernel_set_t


cdef extern from "machine/cpu.h" nogil:
    ctypedef struct cpu_facts_t:
        uint32_t leaf1_ecx, leaf7_ebx, leaf7_edx, leaf7_1_eax
        uint64_t xcr0

    cpu_facts_t pwconv_cpu_facts()
    int pwconv_isa_count()
    const char* pwconv_isa_name(int index)
    const isa_t* pwconv_isa(int index)
    const kernel_set_t* pwconv_kernel_set(int index, int precision)
    bint pwconv_isa_supported(int index, const cpu_facts_t* facts)
    size_t pwconv_cache_bytes(int level)
    bint pwconv_stores_wait()
    int pwconv_isa_of_half_vectors(int index)
    uint64_t pwconv_float_enter()
    void pwconv_float_leave(uint64_t before)
    void pwconv_end_of_stores()
    const char* pwconv_compiler()


cdef extern from "machine/clock.h" nogil:
    int64_t pwconv_nanoseconds()
    double pwconv_add_chain(long turns)


cdef extern from "machine/threads.h" nogil:
    int PWCONV_OPENMP
    int omp_get_max_threads()
    int omp_get_thread_num()
    void pwconv_wait_for_all()
    Py_ssize_t pwconv_take(Py_ssize_t* next)
    ctypedef void (*work_t)(void*) noexcept nogil
    int pwconv_startable(int threads, bint anew)
    void pwconv_let_workers_sleep()
    bint pwconv_run_aside(work_t work, void* argument)
