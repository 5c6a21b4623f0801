"""Backend, threads, instruction set and configuration. This module imports the compiled engine, if there is one."""

import math
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pwconv.scalars import LARGEST_INT, positive_int
from pwconv.version import __version__

# GCC's OpenMP reads GOMP_SPINCOUNT when libgomp is loaded: the number of turns that an idle worker waits for the next
# parallel region before it sleeps. With the default, workers still occupy their cores when the caller turns to another
# library (NumPy's matrix product, for example). The engine sets the same for LLVM's OpenMP itself.
_undecided = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
if _undecided:
    os.environ["GOMP_SPINCOUNT"] = "20000"
try:
    import pwconv._engine as engine
except ImportError as error:
    engine = None  # type: ignore[assignment]
    _missing = f"the compiled engine of pwconv cannot be imported ({error})"
finally:
    if _undecided:
        del os.environ["GOMP_SPINCOUNT"]

# Backend --------------------------------------------------------------------------------------------------------------


def resolve_backend(name: str) -> str:
    """Return the backend, "native" or "numpy", that a backend argument means in this process."""
    if name == "auto":
        return _default_backend
    if name == "native" and engine is None:
        raise ValueError(f"backend 'native' is not available: {_missing}")
    return name


def _find_default_backend() -> str:
    name = os.environ.get("PWCONV_BACKEND") or "auto"
    if name not in ("auto", "native", "numpy"):
        raise ValueError(f"PWCONV_BACKEND must be 'auto', 'native' or 'numpy', got {name!r}")
    if name != "auto":
        return resolve_backend(name)
    if engine is None:
        warnings.warn(f"{_missing}: NumPy computes instead, slowly", RuntimeWarning, stacklevel=2)
        return "numpy"
    return "native"


_default_backend = _find_default_backend()

# Threads --------------------------------------------------------------------------------------------------------------


class Threads(NamedTuple):
    """A number of threads, and the name of the setting or limit that it comes from."""

    number: int
    source: str


_setting: Threads


def set_num_threads(n: int) -> None:
    """Set how many threads a call without `num_threads` may use.

    Raises TypeError if `n` is not an integer and ValueError if it is less than 1.

    Examples
    --------
    >>> pwconv.set_num_threads(1)
    >>> pwconv.get_num_threads()
    1
    """
    _use(Threads(positive_int(n, "n"), "set_num_threads"))


def get_num_threads() -> int:
    """Return how many threads a call without `num_threads` may use now, OpenMP's current maximum included.

    Examples
    --------
    >>> pwconv.set_num_threads(1)
    >>> pwconv.get_num_threads()
    1
    """
    return _threads().number


def default_threads(cgroups: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> Threads:
    """Return the default number of threads: the affinity mask or the cgroups' CPU quota, whichever is less."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroups, membership)
    return Threads(max(1, math.floor(quota)), "cgroup quota") if quota < cpus else Threads(cpus, "affinity")


def cgroup_quota(cgroups: str, membership: str) -> float:
    """Return how many CPUs the cgroups (v1 and v2) of a process and all their ancestors grant; inf if unlimited.

    `cgroups` is where cgroup file systems are mounted, `membership` the process's list "hierarchy:controllers:path".
    Inside a container that path may be the host's: folders that do not exist under the mount point are skipped.
    """
    try:
        memberships = [line.split(":", 2) for line in _read(membership).splitlines()]
    except (OSError, ValueError):
        return math.inf
    quota = math.inf
    for _, controllers, path in (fields for fields in memberships if len(fields) == 3):
        if controllers == "":
            mounts = [cgroups, os.path.join(cgroups, "unified")]
        elif "cpu" in controllers.split(","):
            mounts = [os.path.join(cgroups, controllers), os.path.join(cgroups, "cpu")]
        else:
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for mount in mounts:
            for depth in range(len(names) + 1):
                quota = min(quota, _quota_of(os.path.join(mount, *names[:depth])))
    return quota


def _quota_of(cgroup: str) -> float:
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join(_read(os.path.join(cgroup, file)) for file in files).split()
            cpus = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # the file is missing, or says "max"
            continue
        if cpus > 0:  # cgroup v1 writes -1 for no limit
            return cpus
    return math.inf


def _read(path: str) -> str:
    # open() and not pathlib, which would slow down importing pwconv.
    with open(path) as file:
        return file.read()


def _use(threads: Threads) -> None:
    global _setting
    _setting = threads
    if engine is not None:
        engine.set_thread_setting(threads.number)


def _threads() -> Threads:
    if engine is None or (number := engine.get_threads()) >= _setting.number:
        return _setting
    return Threads(number, "OpenMP maximum")


def _initial_threads() -> Threads:
    text = os.environ.get("PWCONV_NUM_THREADS")
    if not text:
        return default_threads()
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_INT:
        raise ValueError(f"PWCONV_NUM_THREADS must be an integer from 1 to {LARGEST_INT}, got {text!r}")
    return Threads(int(text), "PWCONV_NUM_THREADS")


_use(_initial_threads())

# Instruction set ------------------------------------------------------------------------------------------------------


def _limit_isa() -> None:
    name = os.environ.get("PWCONV_ISA")
    if not name or engine is None:
        return
    supported = engine.isa_supported()
    if name not in supported:
        raise ValueError(f"PWCONV_ISA must be one of {', '.join(supported)} on this machine, got {name!r}")
    engine.set_isa(name)


_limit_isa()

# Configuration --------------------------------------------------------------------------------------------------------


def config() -> dict[str, Any]:
    """Return how pwconv was built, and the backend, instruction set and threads that it uses. No process is started.

    Keys: `version`, `backend`, `isa` (`built`, `supported`, `active`), `threads`, `threads_from`, `openmp`,
    `compiler`, `caches` (bytes), `numpy`, `python`, `platform`, `cpu`.

    Examples
    --------
    >>> settings = pwconv.config()
    >>> settings["isa"]["active"] in settings["isa"]["supported"]
    True
    """
    import platform  # late, since it would slow down importing pwconv, and only the configuration needs it

    threads = _threads()
    isa: dict[str, Any] = {"built": (), "supported": (), "active": None}
    openmp: dict[str, Any] = {"enabled": False, "version": 0, "max_threads": 1}
    compiler, caches = None, {}
    if engine is not None:
        isa = {"built": engine.isa_built(), "supported": engine.isa_supported(), "active": engine.isa_active()}
        openmp, compiler, caches = engine.openmp(), engine.compiler(), engine.caches()
    return {
        "version": __version__,
        "backend": _default_backend,
        "isa": isa,
        "threads": threads.number,
        "threads_from": threads.source,
        "openmp": openmp,
        "compiler": compiler,
        "caches": caches,
        "numpy": np.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": _platform_name(),
        "cpu": _cpu_name(),
    }


def show_config() -> None:
    """Print the configuration, as `numpy.show_config` prints NumPy's.

    Examples
    --------
    >>> pwconv.show_config()  # doctest: +ELLIPSIS
    version: ...
    """
    print("\n".join(_lines(config())))


_WORDS = {"True": "true", "False": "false", "None": "none", "{}": "none"}


def _lines(settings: dict[str, Any], indent: str = "") -> Iterator[str]:
    import textwrap  # late, since it would slow down importing pwconv

    for key, value in settings.items():
        label = key.replace("_", " ")
        if isinstance(value, dict) and value:
            sizes = {level: f"{size // 1024} KiB" for level, size in value.items()} if key == "caches" else value
            yield f"{indent}{label}:"
            yield from _lines(sizes, indent + "  ")
        else:
            text = ", ".join(value) if isinstance(value, tuple) else _WORDS.get(repr(value), str(value))
            yield textwrap.fill(
                f"{label}: {text or 'none'}", width=79, initial_indent=indent, subsequent_indent=indent + "  "
            )


def _platform_name() -> str:
    """Return the operating system, its release and the architecture.

    `platform.platform()` says the same, but runs the program `uname` on CPython 3.11.
    """
    import platform  # late, since it would slow down importing pwconv

    if sys.platform == "win32":
        windows = sys.getwindowsversion()
        return f"Windows-{windows.major}.{windows.minor}.{windows.build}-{_machine()}"
    system = os.uname()
    if sys.platform == "darwin":
        return f"macOS-{platform.mac_ver()[0]}-{system.machine}"
    c_library = "".join(platform.libc_ver())
    return "-".join([system.sysname, system.release, system.machine, *(["with", c_library] if c_library else [])])


def _cpu_name() -> str:
    """Return the CPU's model name where the system tells it, else the architecture."""
    name = _cpu_facts().get("model name")
    return name or os.environ.get("PROCESSOR_IDENTIFIER", _machine())  # a variable that Windows sets


def cpu_model() -> str:
    """Return what tells CPUs apart for which plans differ: in virtual machines, names are often those of a family."""
    facts = _cpu_facts()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model", "CPU part") if name in facts]
    return ", ".join([_cpu_name(), *numbers])


def _cpu_facts() -> dict[str, str]:
    """Return what Linux tells of the first CPU, by name."""
    try:
        first, _, _ = _read("/proc/cpuinfo").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _machine() -> str:
    """Return the name of the architecture."""
    return os.environ.get("PROCESSOR_ARCHITECTURE", "unknown") if sys.platform == "win32" else os.uname().machine
