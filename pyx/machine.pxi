# The machine: instruction sets, caches, threads, and measurements of its limits.

cdef int thread_setting = 1
cdef int busy_threads = 0          # threads of all running calls, the callers' own included; guarded by the GIL


cdef bint forked = False           # in the child of a fork, OpenMP's team of this thread does not exist any more


cdef inline int free_threads(int allowed) noexcept:
    """How many of the allowed threads are not busy with other calls; at least the caller's own."""
    return max(1, allowed - busy_threads)


cdef enum:
    MOST_ISAS = 8
    PROBE_TURNS = 400              # of the loops that measure a core: a few microseconds each
    PROBES = 5

cdef struct Core:
    double cycle                   # seconds; 0: not measured yet
    double fmas                    # vector FMAs a cycle: a whole number

cdef Core cores[MOST_ISAS]         # by instruction set, guarded by the GIL

# Seconds of work that are worth another thread, which waits for it: several times the two microseconds that
# starting and ending a parallel region takes. In the child of a fork the threads of each call must be started first.
cdef double THREAD_SECONDS = 8e-6
cdef double FORKED_THREAD_SECONDS = 400e-6


cdef const Core* core_of(Py_ssize_t isa) noexcept nogil:
    """What a core does with an instruction set, measured when first needed: the best of a few short loops."""
    cdef Core* core = &cores[isa]
    cdef double cycles = 0.0, seconds = 1.0, fmas = 0.0, fma_seconds = 1.0
    cdef int64_t start, between, end
    cdef int _probe
    if core.cycle > 0.0:
        return core
    for _probe in range(PROBES):
        start = pwconv_nanoseconds()
        cycles = pwconv_add_chain(4 * PROBE_TURNS)
        between = pwconv_nanoseconds()
        fmas = pwconv_isa(<int> isa).fma_chain(PROBE_TURNS)
        end = pwconv_nanoseconds()
        seconds = min(seconds, 1e-9 * max(<int64_t> 1, between - start))
        fma_seconds = min(fma_seconds, 1e-9 * max(<int64_t> 1, end - between))
    # Clocks outside these bounds are errors of the measurement.
    core.cycle = min(2e-9, max(0.15e-9, seconds / cycles))
    fmas *= core.cycle / (2.0 * pwconv_isa(<int> isa).float32.lanes * fma_seconds)
    core.fmas = 4.0 if fmas > 2.8 else 2.0 if fmas > 1.4 else 1.0
    return core


cdef inline double threads_worth(Py_ssize_t isa, double cycles, bint in_fork) noexcept nogil:
    """How many threads have enough work each, at least one."""
    return max(1.0, cycles * core_of(isa).cycle / (FORKED_THREAD_SECONDS if in_fork else THREAD_SECONDS))


def after_fork_in_child():
    """Resets the state that other threads of the parent may have held."""
    global busy_threads, forked
    busy_threads = 0
    forked = True
    idle_memory.clear()


cdef int threads_for(object num_threads) noexcept:
    """How many threads a call may use; 0 if the argument needs checking."""
    cdef Py_ssize_t wanted
    if num_threads is None:
        return min(thread_setting, omp_get_max_threads())
    if not PyLong_CheckExact(num_threads) or not 1 <= num_threads < 1 << 30:
        return 0
    wanted = num_threads
    return <int> min(wanted, 1024)


cdef int active_isa = 0
cdef size_t[4] cache_bytes
cdef bint stores_wait          # see pwconv_stores_wait()
cdef double one_pass_bytes     # maps that are larger come from memory, so that they should be read once


def isa_built():
    """Names of the instruction sets in this build, slowest first."""
    return tuple([pwconv_isa_name(i).decode() for i in range(pwconv_isa_count())])


def isa_supported(facts=None):
    """Those of them that this machine has; or one with other facts.

    These are, on x86, CPUID 1 ECX, CPUID 7 EBX and EDX, CPUID 7.1 EAX, and XCR0.
    """
    cdef cpu_facts_t f = pwconv_cpu_facts()
    if facts is not None:
        f.leaf1_ecx, f.leaf7_ebx, f.leaf7_edx, f.leaf7_1_eax, f.xcr0 = facts
    return tuple([pwconv_isa_name(i).decode() for i in range(pwconv_isa_count()) if pwconv_isa_supported(i, &f)])


def isa_kernel_sets(name):
    """The kernel set of each precision, by name, if this instruction set is the highest that may be used."""
    cdef int index = isa_built().index(name)
    return {precision: pwconv_kernel_set(index, code).name.decode()
            for code, precision in enumerate(arguments().PRECISIONS)}


def isa_active():
    """The name of the instruction set in use."""
    return pwconv_isa_name(active_isa).decode()


def set_isa(name):
    """Uses the named instruction set from now on. ValueError if it is not supported here."""
    global active_isa
    if name not in isa_supported():
        raise ValueError(f"instruction set {name!r} is not supported here; there are {', '.join(isa_supported())}")
    active_isa = isa_built().index(name)


def set_stores_wait(bint wait):
    """Stores planes as on a CPU where stores past the caches do, or do not, delay each other; returns what was set."""
    global stores_wait
    before = stores_wait
    stores_wait = wait
    return before


def set_one_pass_bytes(double bytes_of_map):
    """Takes larger maps than this to come from memory; returns what was set."""
    global one_pass_bytes
    before = one_pass_bytes
    one_pass_bytes = bytes_of_map
    return before


def set_thread_setting(int n):
    """How many threads a call without num_threads may use, OpenMP's maximum permitting."""
    global thread_setting
    thread_setting = n


def get_threads():
    """How many threads a call without num_threads may use now."""
    return threads_for(None)


def openmp():
    """Is OpenMP in this build, which version (its date), and how many threads does it offer the calling thread?"""
    return {"enabled": PWCONV_OPENMP > 0, "version": PWCONV_OPENMP, "max_threads": omp_get_max_threads()}


def compiler():
    """The compiler of this build."""
    return pwconv_compiler().decode()


def caches():
    """Bytes of a core's data caches as plans assume them."""
    return {"l1d": cache_bytes[1], "l2": cache_bytes[2], "l3": cache_bytes[3]}


def fma_peak(str isa, double seconds):
    """GFLOP/s of one core that does nothing but independent FMAs: the best of what fits into `seconds`."""
    cdef const isa_t* set = pwconv_isa(isa_built().index(isa))
    cdef double best = 0.0, operations, start, end
    cdef double stop = time.perf_counter() + seconds
    cdef long turns = 200000
    while True:
        start = time.perf_counter()
        with nogil:
            operations = set.fma_chain(turns)
        end = time.perf_counter()
        best = max(best, operations / (end - start))
        if end > stop:
            return best * 1e-9


def bandwidth(str isa, str kind, size_t nbytes, double seconds, ready):
    """GB/s of one core that reads, writes or copies `nbytes` again and again: the best of what fits into `seconds`.

    `ready` is called when the memory has been touched, and returns when all threads of this measurement have called it.
    """
    cdef const isa_t* set = pwconv_isa(isa_built().index(isa))
    cdef int code = ("read", "write", "copy", "write past caches", "copy past caches").index(kind)
    cdef double best = 0.0, start, end, stop
    cdef size_t round_bytes = max(<size_t> 1, nbytes // 512) * 512
    cdef size_t repeat = 1 + (1 << 22) // round_bytes, _turn
    cdef Memory source = Memory(), target = Memory()
    source.reserve(round_bytes)
    memset(source.data, 0, round_bytes)
    target.reserve(round_bytes)
    memset(target.data, 0, round_bytes)
    ready()
    stop = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        with nogil:
            for _turn in range(repeat):
                set.sweep(code, target.data, source.data, round_bytes)
            pwconv_end_of_stores()
        end = time.perf_counter()
        best = max(best, <double> round_bytes * repeat / (end - start))
        if end > stop:
            return best * 1e-9


cdef int start_up() except -1:
    global stores_wait, one_pass_bytes
    cdef size_t usual[4]
    cdef int level
    usual[:] = [0, 32 << 10, 512 << 10, 0]
    for level in range(1, 4):
        cache_bytes[level] = pwconv_cache_bytes(level) or usual[level]
    stores_wait = pwconv_stores_wait()
    one_pass_bytes = max(<size_t> FAR_BYTES, cache_bytes[3] // 2)
    *_, best = isa_supported()
    set_isa(best)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork_in_child)
    return 0
