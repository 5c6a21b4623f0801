"""The modules of the package import each other one way, and inside functions only where this file says so.

The compiled engine is not read here. It imports pwconv.arguments and pwconv.reference when they are first needed, since
pwconv.runtime, which those modules use, imports the engine.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

import pwconv

PACKAGE = Path(pwconv.__file__).parent

# Imports inside functions: of packages that are optional, or slow to import and needed by few calls.
LATE = {
    "pwconv.arguments.dtypes": {"ml_dtypes"},
    "pwconv.runtime": {"platform", "textwrap"},
    "pwconv.tuning": {"json"},
    "pwconv.commands.demo": {"PIL", "skimage"},
    "pwconv.commands.peers": {"cv2", "onnx", "onnxruntime", "torch", "torch.nn"},
    "pwconv.commands.plots": {"matplotlib.figure", "matplotlib.ticker"},
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(statement):
    """The modules that an import statement names, and the packages that contain them."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    assert statement.level == 0, "imports are absolute"
    names = {f"{statement.module}.{alias.name}" for alias in statement.names}
    names = {name if name in SOURCES or name == "pwconv._engine" else statement.module for name in names}
    return names | {name.rpartition(".")[0] for name in names if name.count(".") > 1 and name in SOURCES}


def imports_of(path):
    """All imports of a module, and those of them inside a function."""
    tree = ast.parse(path.read_text())
    statements = (ast.Import, ast.ImportFrom)
    every = [node for node in ast.walk(tree) if isinstance(node, statements)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function) if isinstance(node, statements)]
    return set().union(*map(imported, every)), set().union(*map(imported, inside))


# A module may import others of its own subpackage, whose import is already under way then.
GRAPH = {name: imports_of(path)[0] - {name, name.rpartition(".")[0]} for name, path in SOURCES.items()}


def reached_from(name):
    """All modules of the package that a module imports, directly or indirectly."""
    reached, waiting = set(), [name]
    while waiting:
        new = {module for module in GRAPH.get(waiting.pop(), ()) if module in GRAPH} - reached
        reached |= new
        waiting += new
    return reached


def test_the_graph_is_that_of_the_package():
    assert {"pwconv", "pwconv.__main__", "pwconv.arguments.spec", "pwconv.commands.race"} <= set(GRAPH)
    assert "pwconv.arguments" in GRAPH["pwconv.layers"]
    assert "pwconv.runtime" in reached_from("pwconv.several")
    assert all(importlib.util.find_spec(name) for name in GRAPH)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_module_imports_itself_by_way_of_others(name):
    assert name not in reached_from(name)


@pytest.mark.parametrize(("lower", "higher"), [
    ("scalars", ["runtime", "arguments", "reference", "layers", "training"]),
    ("runtime", ["arguments", "reference", "functional", "layers", "training"]),
    ("arguments", ["reference", "functional", "layers", "training"]),
    ("reference", ["functional", "layers", "training"]),
    ("functional", ["layers", "training"]),
    ("training", ["layers", "several", "classify", "reduce"]),
    ("layers", ["several", "classify", "reduce", "verification"]),
])  # fmt: skip
def test_lower_modules_do_not_know_higher_ones(lower, higher):
    assert not reached_from(f"pwconv.{lower}") & {f"pwconv.{name}" for name in higher}


def test_only_the_entry_point_imports_commands():
    commands = {name for name in GRAPH if name.startswith("pwconv.commands")}
    users = {name for name in GRAPH if GRAPH[name] & commands}
    assert users - commands == {"pwconv.__main__"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_late_imports_are_those_that_are_allowed(name):
    assert imports_of(SOURCES[name])[1] <= LATE.get(name, set())
