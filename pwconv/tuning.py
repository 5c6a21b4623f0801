"""Plans found by trying: `tune`, and the files in which they are kept."""

import math
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pwconv import runtime
from pwconv.classify import PixelClassifier
from pwconv.reduce import ChannelReducer
from pwconv.scalars import positive_int, real
from pwconv.version import __version__

_Key = tuple[Any, ...]
_Choice = tuple[int, ...]

_Choices = dict[_Key, _Choice]

_BLOCK_SECONDS = 2e-4  # of calls that are timed together
_GAIN = 0.98  # a plan counts as faster below this share of the other's time
_SLOW = 1.2  # a plan that takes so many times longer is not timed again
_ROUNDS = 3  # of races in the search,
_RACE_ROUNDS = 30  # and at most of the last one
_SEARCHING = 0.7  # share of the time before the last race

_FORMAT = "pwconv plans 1"
_LARGEST_FILE = 1 << 24  # bytes

_lock = threading.Lock()  # one search at a time: two would time each other's plans


def _renew_lock() -> None:
    """Make a new lock in the child of a fork, where the thread that held the old one does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True, repr=False)
class Change:
    """A layer, or a pass of several layers, and how it was and is computed."""

    problem: str
    before: str
    after: str

    def __repr__(self) -> str:
        if self.before == self.after:
            return f"{self.problem}: {self.before}, as before"
        return f"{self.problem}:\n  before: {self.before}\n  after:  {self.after}"


@dataclass(frozen=True, repr=False)
class Tuning:
    """What `tune` found: the plans before and after, the seconds of a call with each, how many plans were tried."""

    changes: tuple[Change, ...]
    seconds_before: float
    seconds_after: float
    tried: int

    @property
    def speedup(self) -> float:
        """How many times as fast a call has become."""
        return self.seconds_before / self.seconds_after

    def __repr__(self) -> str:
        head = (
            f"{_time_of(self.seconds_before)} before, {_time_of(self.seconds_after)} after: {self.speedup:.2f} times "
            f"as fast, {self.tried} plans tried"
        )
        return "\n".join([head, *map(repr, self.changes)])


def tune(target: Any, x: Any, *, seconds: float = 1.0, num_threads: int | None = None, **call: Any) -> Tuning:
    """Find the fastest plan for a call by trying, and use it for later calls like it.

    A plan decides how a layer is cut into tiles, blocks and tasks, and never changes a bit of the result. Calls are
    alike if layer, shape, strides, dtype, instruction set and number of threads are. The plan that is in use stays
    unless another beats it in a paired race. Other threads may call meanwhile; what they compute is right, but may
    take longer, and disturbs the measurement.

    Parameters
    ----------
    target : a PointwiseConv, PointwiseChain or PointwiseBranches; a method of one of these, of a PixelClassifier or of
        a ChannelReducer; a PixelClassifier (for its `predict`) or a ChannelReducer (`transform`); or
        `pwconv.pointwise_conv` or `pwconv.pointwise_conv_backward`, with their other operands in `call`.
    x : the input of the call, or its shape: then float32 numbers are made up.
    seconds : time to spend, about. Progress is shown on a terminal if it is more than one.
    num_threads, **call : arguments of the call besides `x`.

    Returns
    -------
    Tuning, which prints as a report.

    Raises
    ------
    TypeError for a `target` that cannot be called, ValueError for `seconds` that are not positive, and what the call
    raises.

    Examples
    --------
    >>> layer = pwconv.PointwiseConv(np.ones((64, 256), np.float32))
    >>> pwconv.tune(layer, (1, 256, 14, 14), seconds=0.05).changes[0].problem  # doctest: +ELLIPSIS
    '256 to 64 channels, 196 pixels, ...
    """
    run = _call_of(target, x, num_threads, call)
    limit = real(seconds, "seconds")
    if not 0 < limit < math.inf:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    if runtime.engine is None:
        run()
        seconds_of_call = _seconds_of(run, 1)
        return Tuning((), seconds_of_call, seconds_of_call, 1)
    with _lock:
        return _Search(run, limit).result()


def _call_of(target: Any, x: Any, num_threads: int | None, call: dict[str, Any]) -> Callable[[], Any]:
    """Return the call that is to be tuned, without arguments."""
    if isinstance(target, PixelClassifier):
        target = target.predict
    elif isinstance(target, ChannelReducer):
        target = target.transform
    if not callable(target):
        raise TypeError(
            f"target must be a layer, a chain, branches, a method or a function, got {type(target).__name__}"
        )
    if num_threads is not None:
        call = call | {"num_threads": positive_int(num_threads, "num_threads")}
    if isinstance(x, Sequence) and x and all(isinstance(size, int | np.integer) for size in x):
        x = np.random.default_rng(0).standard_normal(tuple(map(int, x)), dtype=np.float32)
    return partial(target, x=x, **call)


class _Search:
    """The search for the plans of one call."""

    def __init__(self, run: Callable[[], Any], seconds: float) -> None:
        self.run = run
        self.deadline = time.perf_counter() + seconds
        self.shows = seconds > 1 and sys.stderr is not None and sys.stderr.isatty()
        self.tried = 0
        run()  # first touches of memory, and packing, are no part of a plan's time
        self.repeat = max(1, math.ceil(_BLOCK_SECONDS / max(_seconds_of(run, 1), 1e-7)))

    def result(self) -> Tuning:
        before = runtime.engine.watch_choices(self.run)
        self.first = dict(before)
        chosen = before
        try:
            found = self._find(before)
            seconds = self._race(before, found)
            if seconds[1] < _GAIN * seconds[0]:
                chosen = found
        finally:
            self._use(dict.fromkeys(self.first) | chosen)
            if self.shows:
                print(file=sys.stderr)
        changes = tuple(
            Change(*_described(key, self.first.get(key, choice)), _described(key, choice)[1])
            for key, choice in runtime.engine.watch_choices(self.run).items()
        )
        return Tuning(changes, seconds[0], seconds[chosen is not before], max(1, self.tried))

    def _find(self, before: _Choices) -> _Choices:
        """Return the choices that won each against the one before it, those of whole passes first."""
        found = dict(before)
        waiting = sorted(before, key=len)  # the keys of passes are shorter
        while waiting:
            now = time.perf_counter()
            deadline = now + (self.deadline - now) * _SEARCHING / len(waiting)
            key = waiting.pop(0)
            seen = {found[key]}
            found[key] = self._fastest(key, runtime.engine.ways_to_compute(key), found[key], seen, deadline)
            while time.perf_counter() < deadline:
                best = found[key]
                found[key] = self._fastest(key, runtime.engine.variations(key, best), best, seen, deadline)
                if found[key] == best:
                    break
            # Another block of a pass makes other problems of its layers, since the maps between them are as large.
            used = runtime.engine.watch_choices(self.run)
            waiting = [other for other in waiting if other in used] + [other for other in used if other not in found]
            for other in used:
                self.first.setdefault(other, used[other])
                found.setdefault(other, used[other])
        return found

    def _fastest(
        self, key: _Key, candidates: list[_Choice], best: _Choice, seen: set[_Choice], deadline: float
    ) -> _Choice:
        """Try the candidates that were not seen before, in turn, until the deadline."""
        for candidate in candidates:
            if time.perf_counter() > deadline:
                break
            if candidate not in seen:
                seen.add(candidate)
                best = candidate if self._is_faster(key, candidate, best) else best
        return best

    def _is_faster(self, key: _Key, candidate: _Choice, best: _Choice) -> bool:
        self.tried += 1
        if self.shows:
            print(f"\r{self.tried} plans tried", end="", file=sys.stderr, flush=True)
        times = self._take_turns({key: best}, {key: candidate}, 1)
        if times[1][0] < _SLOW * times[0][0]:
            times = self._take_turns({key: best}, {key: candidate}, _ROUNDS)
        faster = statistics.median(times[1]) < _GAIN * statistics.median(times[0])
        self._use({key: candidate if faster else best})
        return faster

    def _race(self, before: _Choices, found: _Choices) -> list[float]:
        """Return the median seconds of a call with both, in turns: as many as there is time for, but at least three."""
        if before == found:
            return 2 * [_seconds_of(self.run, self.repeat)]
        started = time.perf_counter()
        times = self._take_turns(before, found, 3)
        each = (time.perf_counter() - started) / 3
        more = min(_RACE_ROUNDS, int((self.deadline - time.perf_counter()) / each))
        if more > 0:
            times = [old + new for old, new in zip(times, self._take_turns(before, found, more), strict=True)]
        return [statistics.median(seconds) for seconds in times]

    def _take_turns(self, one: _Choices, other: _Choices, rounds: int) -> list[list[float]]:
        """Return the seconds of calls with either, each after a call that is not timed: it may pack weights."""
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for choices, seconds in zip((one, other), times, strict=True):
                self._use(choices)
                self.run()
                seconds.append(_seconds_of(self.run, self.repeat))
        return times

    def _use(self, choices: Mapping[_Key, _Choice | None]) -> None:
        for key, choice in choices.items():
            runtime.engine.keep_choice(key, choice)


def _seconds_of(run: Callable[[], Any], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - start) / repeat


def _described(key: _Key, choice: _Choice) -> tuple[str, str]:
    """Return what is computed and how, for people."""
    what, how = runtime.engine.fields_of(key, choice)
    threads = f"{how['threads']} thread{'s' if how['threads'] > 1 else ''}"
    if "layers" in what:
        count = len(what["layers"])
        problem = f"{count} layer{'s' if count > 1 else ''} in one pass over {what['pixels']} pixels"
        return problem, f"blocks of {how['pixel_block']} pixels, {threads}"
    groups = f" in each of {what['groups']} groups" if what["groups"] > 1 else ""
    images = f"{what['spans']} x " if what["spans"] > 1 else ""
    problem = f"{what['k']} to {what['outs']} channels{groups}, {images}{what['pixels']} pixels, {what['isa']}"
    if how["streamed"]:
        return problem, f"streamed in blocks of {how['pixel_block']} pixels, {threads}"
    vector = "pixels" if how["pixels_in_b"] else "out channels"
    pixels = "packed into panels" if how["packed"] else "read in place"
    return problem, (
        f"tiles of {how['vectors']} vector{'s' if how['vectors'] > 1 else ''} of {vector}, pixels {pixels}, K in "
        f"blocks of {how['kc']}; blocks of {how['pixel_block']} pixels, {how['out_blocks']} of out channels, {threads}"
    )


def _time_of(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


# Files ----------------------------------------------------------------------------------------------------------------


def save_plans(path: str | os.PathLike[str]) -> None:
    """Write the plans that were found or loaded, for the instruction set in use, as JSON.

    The file names the CPU, the instruction set and the version of pwconv, and has the fields of each problem and plan.

    Examples
    --------
    >>> pwconv.save_plans("plans.json")
    """
    import json  # late, since it would slow down importing pwconv

    engine, plans = runtime.engine, []
    for key, choice in engine.choices_kept().items() if engine is not None else ():
        problem, plan = engine.fields_of(key, choice)
        if problem["isa"] == engine.isa_active():
            plans.append(json.dumps({"problem": problem, "plan": plan}))
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in _header().items()]
    text = "\n".join(["{", *lines, '  "plans": [', ",\n".join(f"    {plan}" for plan in plans), "  ]", "}", ""])
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def load_plans(path: str | os.PathLike[str]) -> int:
    """Use the plans of a file that `save_plans` wrote, besides those in use; return how many there are.

    Plans of another CPU, instruction set or version of pwconv are passed over. A plan that its problem does not have is
    never used.

    Raises
    ------
    ValueError if the file is damaged; then none of its plans is used. OSError if it cannot be read.

    Examples
    --------
    >>> pwconv.load_plans("plans.json")  # of another machine
    0
    """
    import json  # late, since it would slow down importing pwconv

    with open(path, "rb") as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"{os.fspath(path)!r} is no file of plans: it has more than {_LARGEST_FILE} bytes")
    try:
        saved = json.loads(text)
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT or not isinstance(saved.get("plans"), list):
            raise ValueError(f"expected an object with the format {_FORMAT!r} and a list of plans")
        header = _header()
        if runtime.engine is None or any(saved.get(name) != value for name, value in header.items()):
            return 0
        plans = []
        for entry in saved["plans"]:
            if not isinstance(entry, dict) or entry.keys() != {"problem", "plan"}:
                raise ValueError("expected a problem and a plan in each of the plans")
            plans.append(runtime.engine.from_fields(entry["problem"], entry["plan"]))
        if len({key for key, _ in plans} | runtime.engine.choices_kept().keys()) > runtime.engine.MOST_CHOICES:
            raise ValueError(f"more than {runtime.engine.MOST_CHOICES} plans")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no file of plans, or damaged: {error}") from error
    for key, choice in plans:
        runtime.engine.keep_choice(key, choice)
    return len(plans)


def forget_plans() -> None:
    """Forget all plans that were found or loaded; the cost model decides again.

    Examples
    --------
    >>> pwconv.forget_plans()
    """
    if runtime.engine is not None:
        for key in runtime.engine.choices_kept():
            runtime.engine.keep_choice(key, None)


def _header() -> dict[str, str | None]:
    """Return what must agree for plans to be used."""
    settings = runtime.config()
    return {
        "format": _FORMAT,
        "version": __version__,
        "cpu": runtime.cpu_model(),
        "isa": settings["isa"]["active"],
    }


def _load_at_import() -> None:
    path = os.environ.get("PWCONV_PLANS")
    if path:
        try:
            load_plans(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"PWCONV_PLANS: {error}", RuntimeWarning, stacklevel=2)


_load_at_import()
