# Running a program: its tasks on all threads, in the engine's floating-point state.

cdef const kernel_set_t* kernels_to_enter(const Program* program) noexcept nogil:
    """The kernel set with registers that threads must set up (AMX); NULL: none. A machine has at most one kind."""
    cdef int i
    for i in range(program.count):
        if program.steps[i].outs and program.steps[i].plan.kernels.enter != NULL:
            return program.steps[i].plan.kernels
    return NULL


cdef uint64_t enter(const kernel_set_t* kernels) noexcept nogil:
    """Sets up a thread for kernels; returns the state that leave() restores."""
    if kernels != NULL:
        kernels.enter()
    return pwconv_float_enter()


cdef void leave(const kernel_set_t* kernels, uint64_t before) noexcept nogil:
    pwconv_end_of_stores()
    if kernels != NULL:
        kernels.leave()
    pwconv_float_leave(before)


cdef inline Py_ssize_t* next_task(const Program* program, char* memory, Py_ssize_t thread) noexcept nogil:
    """The next task of a thread's run of adjacent tasks: a counter at the start of its memory."""
    return <Py_ssize_t*> (memory + thread * program.thread_bytes)


cdef inline Py_ssize_t run_start(const Schedule* schedule, Py_ssize_t thread) noexcept nogil:
    return schedule.tasks * thread // schedule.threads


cdef void run_tasks(const Program* program, char* memory) noexcept nogil:
    """Runs this thread's own tasks, then what is left of the other threads' tasks.

    Adjacent tasks write adjacent parts of a map, so threads hardly share cache lines and pages, and find in their own
    caches what the task before has read.
    """
    cdef const Schedule* schedule = &program.schedule
    cdef Py_ssize_t own = omp_get_thread_num(), other, thread, task
    for other in range(schedule.threads):
        thread = (own + other) % schedule.threads
        while True:
            task = pwconv_take(next_task(program, memory, thread))
            if task >= run_start(schedule, thread + 1):
                break
            run_task(program, task, memory + own * program.thread_bytes)


cdef void pack_all_weights(const Program* program) noexcept nogil:
    """Packs the weights of the only step, if they are not packed already, on this thread."""
    cdef const Step* step = &program.steps[0]
    cdef Py_ssize_t share
    if program.unpacked != NULL:
        for share in range(shares_of_weights(&step.plan, &step.raw, step.groups)):
            pack_share(&step.plan, &step.raw, step.groups, share, program.unpacked)


cdef void run_program(const Program* program, char* memory) noexcept nogil:
    """Runs all tasks on as many threads as scheduled; each thread has its own part of `memory`."""
    cdef uint64_t before = 0
    cdef const Step* first = &program.steps[0]
    cdef const kernel_set_t* entered = kernels_to_enter(program)
    cdef Py_ssize_t task, share, shares = 0
    if program.unpacked != NULL:
        shares = shares_of_weights(&first.plan, &first.raw, first.groups)
    if program.schedule.threads == 1 or first.group_stride * first.groups < PACKED_BY_ONE:
        pack_all_weights(program)
        shares = 0
    if program.schedule.threads == 1:
        before = enter(entered)
        for task in range(program.schedule.tasks):
            run_task(program, task, memory)
        leave(entered, before)
        return
    pwconv_let_workers_sleep()
    for share in range(program.schedule.threads):
        next_task(program, memory, share)[0] = run_start(&program.schedule, share)
    with parallel(num_threads=program.schedule.threads):
        before = enter(entered)
        if shares > 0:
            for share in prange(shares, schedule="static"):
                pack_share(&first.plan, &first.raw, first.groups, share, program.unpacked)
            pwconv_wait_for_all()
        run_tasks(program, memory)
        leave(entered, before)


cdef struct Running:
    const Program* program
    char* memory


cdef void run_running(void* running) noexcept nogil:
    run_program((<Running*> running).program, (<Running*> running).memory)


cdef int run_released(Program* program, Memory memory) except -1:
    """Runs a program without the GIL, and gives its memory back."""
    cdef Running running
    running.program = program
    running.memory = memory.data
    release_and_run(run_running, &running, &program.schedule.threads)
    return give_back(memory)


cdef int release_and_run(work_t work, void* argument, int* threads) except -1:
    """Runs work on so many threads without the GIL, its threads counted as busy; sets 1 if no thread can be started."""
    global busy_threads
    cdef int busy = threads[0]
    cdef bint in_new_thread = forked and busy > 1
    busy_threads += busy
    with nogil:
        if not in_new_thread:
            work(argument)
        elif not pwconv_run_aside(work, argument):
            threads[0] = 1
            work(argument)
    busy_threads -= busy
    return 0
