"""Fixtures of all tests: the compiled engine, each instruction set in turn, and a summary of tests run and skipped."""

from __future__ import annotations

import collections
import importlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# All examples of a test share the function-scoped fixture that forces an instruction set; hypothesis would object.
_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Every change runs the same examples; ``--hypothesis-profile=long`` looks for new ones.
settings.register_profile("short", _COMMON, max_examples=120, derandomize=True, database=None)
settings.register_profile("long", _COMMON, max_examples=3000)
settings.load_profile("short")


def _load_engine():
    """The compiled engine and an empty string, or None and the reason why its import failed."""
    try:
        return importlib.import_module("pwconv._engine"), ""
    except ImportError as error:
        return None, str(error)


_ENGINE, _PROBLEM = _load_engine()


def pytest_addoption(parser):
    """Options to compare the bits of two machines; see ``check_instruction_sets`` in test_same_bits.py."""
    parser.addoption("--keep-bits", type=Path, metavar="FOLDER", help="keep results for another machine")
    parser.addoption("--compare-bits", type=Path, metavar="FOLDER", help="compare with results of another machine")


def pytest_sessionstart(session):
    """Refuse to start without the engine, because every test would then test the NumPy fallback."""
    if _ENGINE is None:
        pytest.exit(
            "pwconv._engine, the compiled part of pwconv, cannot be imported, so there is nothing to test: "
            f"build it first with `pip install -e '.[test]'` ({_PROBLEM})",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.fixture
def engine():
    """The compiled module."""
    return _ENGINE


def _supported():
    return () if _ENGINE is None else _ENGINE.isa_supported()


def _with_float32():
    """Instruction sets with a float32 kernel set; the others only add bfloat16 kernel sets to an earlier one."""
    return [name for name in _supported() if _ENGINE.isa_kernel_sets(name)["highest"] == name]


def _with_bf16():
    """Instruction sets whose own kernel sets multiply bfloat16."""
    return [
        name for name in _supported() if name in _ENGINE.isa_kernel_sets(name).values() and name not in _with_float32()
    ]


def _forced(request):
    """Force the instruction set in ``request.param`` while a test runs, and record its name for the summary."""
    request.node.user_properties.append(("isa", request.param))
    before = _ENGINE.isa_active()
    _ENGINE.set_isa(request.param)
    yield request.param
    _ENGINE.set_isa(before)


@pytest.fixture(params=_with_float32())
def isa(request):
    """Each instruction set that this machine supports, in turn."""
    yield from _forced(request)


@pytest.fixture(params=[name for name in _with_float32() if name != "baseline"])
def fma_isa(request):
    """Each instruction set with fused multiply-add, in turn: those that the same-bits rule covers."""
    yield from _forced(request)


@pytest.fixture(params=_with_bf16())
def bf16_isa(request):
    """Each instruction set with kernel sets that multiply bfloat16 ("high" and "medium" precision), in turn."""
    yield from _forced(request)


def pytest_terminal_summary(terminalreporter):
    """Print which instruction sets ran, and how many tests were skipped for which reason."""
    ran, skipped = collections.Counter(), collections.Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            ran.update(value for key, value in report.user_properties if key == "isa")
    for report in terminalreporter.getreports("skipped"):
        skipped[report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)] += 1
    terminalreporter.section("pwconv")
    counts = ", ".join(f"{name} ({ran[name]} tests)" for name in _supported() if ran[name])
    terminalreporter.write_line(f"instruction sets exercised: {counts or 'none on purpose'}")
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")
    if not skipped:
        terminalreporter.write_line("skipped: none")
