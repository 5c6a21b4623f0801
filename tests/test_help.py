"""`help()` shows shapes, and an example that runs, for every public name."""

from __future__ import annotations

import doctest
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import pwconv

NAMES = [name for name in pwconv.__all__ if callable(getattr(pwconv, name))]
# Names whose arguments are not arrays, so that their docstrings need no shapes.
SHAPELESS = {"Cost", "config", "conv_cost", "get_num_threads", "set_num_threads", "show_config", "verify"}
SHAPELESS |= {"forget_plans", "load_plans", "save_plans"}


@pytest.fixture
def _settings(tmp_path, monkeypatch):
    """Threads and plans as they were, in a folder with the plans of another machine."""
    before = pwconv.get_num_threads()
    monkeypatch.chdir(tmp_path)
    pwconv.save_plans("plans.json")
    content = json.loads(Path("plans.json").read_text(encoding="utf-8"))
    Path("plans.json").write_text(json.dumps(content | {"cpu": "another"}), encoding="utf-8")
    yield
    pwconv.set_num_threads(before)
    pwconv.forget_plans()


@pytest.mark.thread_unsafe(reason="doctest takes the standard output of the whole process")
@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name):
    text = inspect.getdoc(getattr(pwconv, name))
    assert re.search(r"^Examples\n--------\n>>> ", text, re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(text, {"np": np, "pwconv": pwconv}, name, None, None)
    assert len(example.examples) <= 2  # an example is short
    assert doctest.DocTestRunner().run(example).failed == 0  # the differences are in the captured output


@pytest.mark.parametrize("name", sorted({*NAMES} - SHAPELESS))
def test_docstrings_give_shapes(name):
    assert re.search(r"\bshapes?\b", inspect.getdoc(getattr(pwconv, name)))


def test_every_public_method_has_a_docstring():
    for name in NAMES:
        for attribute, member in inspect.getmembers(getattr(pwconv, name)):
            if not attribute.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{name}.{attribute}"
