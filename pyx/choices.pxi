# Choices: what a plan decides, as numbers that can be tried one after the other, kept, and saved.
#
# A choice never changes a bit of a result, so the fastest may be found by trying (pwconv/tuning.py). What was kept for
# a problem replaces the cost model's choice. Keys and choices are tuples of numbers. A key has the fields of a layer's
# Problem, or those of a pass of several layers, whose blocks of pixels and threads are a choice of their own.

cdef enum:
    MAX_BLOCK_FLOATS = 1 << 22     # of the pixels and sums of a block that may be chosen

MOST_CHOICES = 4096                # that are kept


cdef struct Choice:
    # Fields of Plan and Schedule, as wide as those of Problem. Of a streamed layer, only the block and threads count.
    Py_ssize_t streamed, pixels_in_b, packed, vectors, kc, prefetch_distance
    Py_ssize_t out_blocks, pixel_block, threads


LAYER_FIELDS = (
    "isa", "precision", "threads", "forked", "spans", "pixels", "groups", "k", "outs", "x_run", "x_step",
    "x_channel_step", "y_run", "y_step", "y_channel_step", "y_item", "plain", "transformed", "in_parts", "x_parts",
    "finished", "weights_step",
)
PASS_FIELDS = ("isa", "threads", "spans", "pixels", "head", "branched", "layers")  # layers: (k, outs, groups) of each
LAYER_CHOICE_FIELDS = (
    "streamed", "pixels_in_b", "packed", "vectors", "kc", "prefetch_distance", "out_blocks", "pixel_block", "threads",
)
PASS_CHOICE_FIELDS = ("pixel_block", "threads")

cdef dict kept_choices = {}        # by key
cdef dict watched = None           # the choices in use, by key, of what one thread plans while someone wants to know
cdef unsigned long watching_thread = 0


cdef inline tuple words_of(const void* record, size_t size):
    """The fields of a record of Py_ssize_t."""
    cdef const Py_ssize_t* words = <const Py_ssize_t*> record
    cdef size_t i
    return tuple([words[i] for i in range(size // sizeof(Py_ssize_t))])


cdef int set_words(void* record, size_t size, tuple numbers) except -1:
    """Sets the fields of a record of Py_ssize_t."""
    cdef Py_ssize_t* words = <Py_ssize_t*> record
    cdef size_t i
    for i in range(size // sizeof(Py_ssize_t)):
        words[i] = numbers[i]
    return 0


cdef inline bint is_pass(tuple key):
    return len(key) == len(PASS_FIELDS)


cdef Choice choice_of(const Problem* problem, const PlanSlot* slot) noexcept nogil:
    cdef Choice choice
    choice.streamed = slot.plan.streamed
    choice.pixels_in_b = slot.plan.pixels_in_b
    choice.packed = slot.plan.packed
    choice.vectors = slot.plan.vectors
    choice.kc = slot.plan.kc
    choice.prefetch_distance = slot.plan.prefetch_distance
    choice.out_blocks = slot.plan.out_blocks
    choice.pixel_block = min(slot.schedule.pixel_block, problem.pixels)
    choice.threads = slot.schedule.threads
    return choice


cdef bint plan_by_choice(const Problem* problem, const Choice* choice, PlanSlot* slot) noexcept nogil:
    """Sets the plan and the schedule that a choice stands for; False if the problem has no such plan."""
    cdef Plan* plan = &slot.plan
    cdef Schedule* schedule = &slot.schedule
    cdef Py_ssize_t block = min(choice.pixel_block, problem.pixels)
    plan[0] = unfinished_plan(problem, isa_of_stream(problem) if choice.streamed else isa_of_tiles(problem))
    if block < 1 or not 1 <= choice.threads <= problem.threads:
        return False
    if choice.streamed:
        if not may_be_streamed(problem, plan.kernels):
            return False
        plan[0] = streamed_plan(problem, plan)
        block = min(problem.pixels, ceil_div(block, plan.chunk) * plan.chunk)
    else:
        if choice.kc != problem.k and (choice.kc % SUM_BLOCK or not 0 < choice.kc < problem.k):
            return False
        plan.kc = choice.kc
        if (not 0 <= choice.prefetch_distance <= 2 or not 1 <= choice.vectors <= MAX_VECTORS
                or not set_tiles(problem, plan, choice.pixels_in_b != 0, choice.packed != 0, <int> choice.vectors)
                or not 1 <= choice.out_blocks <= plan.out_tiling.tiles
                or <double> block * (column_floats(plan.kernels, plan.kc) + problem.outs) > MAX_BLOCK_FLOATS):
            return False
        plan.prefetch_distance = <int> choice.prefetch_distance
        plan.out_blocks = choice.out_blocks
        plan.cycles = expected_cycles(problem, plan)
    schedule.pixel_block = block
    schedule.pixel_blocks = ceil_div(problem.pixels, block)
    schedule.spans = problem.spans
    schedule.out_parts = 1 if plan.streamed else problem.groups * plan.out_blocks
    schedule.tasks = schedule.spans * schedule.pixel_blocks * schedule.out_parts
    schedule.threads = <int> min(choice.threads, schedule.tasks)
    schedule.speedup = 1.0         # unknown, and not asked for
    return True


cdef int make_plan(const Problem* problem, PlanSlot* slot) except -1:
    """The plan that was kept for a problem, or else the cost model's."""
    cdef tuple kept = kept_choices.get(words_of(problem, sizeof(Problem))) if kept_choices else None
    cdef Choice choice
    if kept is not None:
        set_words(&choice, sizeof(Choice), kept)
        if plan_by_choice(problem, &choice, slot):
            return 0
    choose_plan(problem, &slot.plan, &slot.schedule)
    return 0


cdef int note_choice(tuple key, tuple choice) except -1:
    """Tells whoever watches this thread what is planned, and how."""
    if watched is not None and PyThread_get_thread_ident() == watching_thread:
        watched[key] = choice
    return 0


def watch_choices(call):
    """Calls `call()`; returns {key: choice in use} of all that is planned meanwhile in this thread, in its order."""
    global watched, watching_thread
    cdef dict seen = {}
    watching_thread = PyThread_get_thread_ident()
    watched = seen
    try:
        call()
    finally:
        watched = None
    return seen


def keep_choice(tuple key, choice):
    """Uses a choice from now on for what has this key; None: the cost model's. One that is not possible is ignored."""
    if choice is None:
        kept_choices.pop(key, None)
    elif key in kept_choices or len(kept_choices) < MOST_CHOICES:
        kept_choices[key] = choice
    memset(plan_slots, 0, sizeof(plan_slots))


def choices_kept():
    """{key: choice} of all that was kept, in the order in which it was first kept."""
    return dict(kept_choices)


def fields_of(tuple key, tuple choice):
    """A key and a choice as dicts of numbers and names."""
    problem = dict(zip(PASS_FIELDS if is_pass(key) else LAYER_FIELDS, key, strict=True))
    problem["isa"] = isa_built()[problem["isa"]]
    if is_pass(key):
        problem["layers"] = [list(layer) for layer in problem["layers"]]
    else:
        problem["precision"] = arguments().PRECISIONS[problem["precision"]]
    return problem, dict(
        zip(PASS_CHOICE_FIELDS if is_pass(key) else LAYER_CHOICE_FIELDS, choice, strict=True))


def from_fields(problem, choice):
    """A key and a choice from what fields_of() returns. ValueError if they are anything else, whatever that is."""
    if type(problem) is not dict or type(choice) is not dict:
        raise ValueError("a problem and a plan must be objects with names")
    cdef dict fields = dict(problem)
    cdef bint several = "layers" in fields
    fields["isa"] = place_of(fields.get("isa"), isa_built(), "isa")
    if several:
        layers = fields.pop("layers")
        if type(layers) is not list or not 1 <= len(layers) <= MOST_CHOICES:
            raise ValueError("layers must be a list")
        layers = tuple([numbers_of(dict(enumerate(layer)) if type(layer) is list else None, (0, 1, 2))
                        for layer in layers])
        return (*numbers_of(fields, PASS_FIELDS[:len(PASS_FIELDS) - 1]), layers), numbers_of(choice, PASS_CHOICE_FIELDS)
    fields["precision"] = place_of(fields.get("precision"), arguments().PRECISIONS, "precision")
    return numbers_of(fields, LAYER_FIELDS), numbers_of(choice, LAYER_CHOICE_FIELDS)


cdef object place_of(name, tuple names, str what):
    if type(name) is not str or name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r:.50}")
    return names.index(name)


cdef tuple numbers_of(fields, tuple names):
    """The values of a dict that has exactly these keys, all integers that fit 62 bits."""
    if type(fields) is not dict or fields.keys() != set(names):
        raise ValueError(f"expected {', '.join(map(str, names))}, got {fields!r:.200}")
    for name in names:
        if type(fields[name]) is not int or not -(1 << 62) < fields[name] < 1 << 62:
            raise ValueError(f"{name} must be an integer, got {fields[name]!r:.50}")
    return tuple([fields[name] for name in names])


def ways_to_compute(tuple key):
    """Every way to compute a layer, streamed or in tiles of each size, with the schedule that the model gives it.

    Those that the model expects to be faster come first. A pass of layers has no ways of its own.
    """
    cdef Problem problem
    cdef PlanSlot slot
    cdef Choice choice
    cdef int pixels_in_b, packed, vectors
    cdef Py_ssize_t isa
    cdef list ways = []
    if is_pass(key):
        return []
    set_words(&problem, sizeof(Problem), key)
    isa = isa_of_tiles(&problem)
    for pixels_in_b in range(2):
        for packed in range(2):
            for vectors in range(1, MAX_VECTORS + 1):
                slot.plan = unfinished_plan(&problem, isa)
                if set_tiles(&problem, &slot.plan, pixels_in_b, packed, vectors):
                    slot.plan.cycles = expected_cycles(&problem, &slot.plan)
                    slot.schedule = choose_schedule(&problem, &slot.plan)
                    choice = choice_of(&problem, &slot)
                    ways.append((expected_time(&slot.plan, &slot.schedule), words_of(&choice, sizeof(Choice))))
    slot.plan = unfinished_plan(&problem, isa_of_stream(&problem))
    if may_be_streamed(&problem, slot.plan.kernels):
        slot.plan = streamed_plan(&problem, &slot.plan)
        slot.schedule = choose_schedule(&problem, &slot.plan)
        choice = choice_of(&problem, &slot)
        ways.append((0.0, words_of(&choice, sizeof(Choice))))
    return [way for _, way in sorted(ways)]


def variations(tuple key, tuple choice):
    """Choices that differ from one in a single respect: pixels in a block, threads, blocks of out channels or of K,
    how far ahead is prefetched."""
    cdef Problem problem
    cdef PlanSlot slot
    cdef Choice chosen
    cdef bint several = is_pass(key)
    cdef Py_ssize_t whole = 16     # pixels in a tile
    names = PASS_CHOICE_FIELDS if several else LAYER_CHOICE_FIELDS
    described = dict(zip(PASS_FIELDS if several else LAYER_FIELDS, key))
    current = dict(zip(names, choice))
    pixels, threads, block = described["pixels"], described["threads"], current["pixel_block"]
    if not several:
        set_words(&problem, sizeof(Problem), key)
        set_words(&chosen, sizeof(Choice), choice)
        if not plan_by_choice(&problem, &chosen, &slot):
            return []
        whole = slot.plan.chunk if slot.plan.streamed else max(<Py_ssize_t> 1, pixel_tiling(&slot.plan, pixels).nr)
    sizes = {block // 4, block // 2, 2 * block, 4 * block, pixels}
    sizes |= {-(-pixels // (threads * turns)) for turns in (1, 2, 4, 8)}
    changes = [("pixel_block", min(pixels, -(-size // whole) * whole)) for size in sorted(sizes - {0}, reverse=True)]
    changes += [("threads", value) for value in sorted({1, (threads + 1) // 2, threads}, reverse=True)]
    if not several and not chosen.streamed:
        blocks = current["out_blocks"]
        changes += [("out_blocks", value) for value in sorted({1, blocks // 2, blocks + 1, 2 * blocks, threads})]
        changes += [("kc", value) for value in sorted({min(problem.k, size) for size in (256, 512, 1024, problem.k)})]
        changes += [("prefetch_distance", value) for value in (0, 1, 2)]
    others = []
    for name, value in changes:
        other = tuple([value if field == name else current[field] for field in names])
        if not several:
            set_words(&chosen, sizeof(Choice), other)
            if not plan_by_choice(&problem, &chosen, &slot):
                continue
            chosen = choice_of(&problem, &slot)    # as it is used: no more threads than tasks
            other = words_of(&chosen, sizeof(Choice))
        else:
            other = (other[0], min(other[1], described["spans"] * -(-pixels // other[0])))
        if other != choice and other not in others:
            others.append(other)
    return others
