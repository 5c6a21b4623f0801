"""Modules that `import pwconv` loads, and the import in sub-interpreters, where the engine cannot be used."""

from __future__ import annotations

import json
import re
import sys

import pytest
from process import python

IMPORT = """
import json, sys, numpy
before = set(sys.modules)
import pwconv
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_modules_that_no_call_needs_are_not_imported():
    """The import loads no commands, and no module that only commands, `config()` or error messages need."""
    added = set(json.loads(python(IMPORT)))
    assert "pwconv._engine" in added
    assert not added & {"pwconv.__main__", "pwconv.commands"}
    assert not added & {"argparse", "concurrent.futures", "ctypes", "pathlib", "platform", "subprocess", "textwrap"}


INTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:  # before CPython 3.13
    import _xxsubinterpreters as interpreters
import numpy, pwconv, pwconv._engine as engine

package = "from pwconv.runtime import resolve_backend; outcome = resolve_backend('auto')"
engine_alone = f'''
from importlib.util import module_from_spec, spec_from_file_location
outcome = module_from_spec(spec_from_file_location({engine.__name__!r}, {engine.__file__!r}))
'''
for code in (package, engine_alone) * 2:
    another = interpreters.create()
    interpreters.run_string(another, f'''
try:
    exec({code!r})
except ImportError as error:
    outcome = "ImportError: " + str(error).strip().splitlines()[-1]
print(outcome, flush=True)
''')
    interpreters.destroy(another)
print(pwconv.pointwise_conv(numpy.ones((1, 64, 9, 9), "f"), numpy.ones((64, 64), "f")).sum())
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="other Pythons have no sub-interpreters")
def test_the_engine_serves_one_interpreter():
    """In a second interpreter NumPy or the engine refuses its import, or the NumPy backend computes."""
    *outcomes, total = python(INTERPRETERS).splitlines()
    assert total == str(64.0 * 64 * 81)
    packages, engines = outcomes[::2], outcomes[1::2]
    assert [re.match("ImportError: |numpy$", outcome) is not None for outcome in packages] == [True, True]
    refusal = "ImportError: .*(_engine does not support|Interpreter change detected)"
    assert [re.match(refusal, outcome) is not None for outcome in engines] == [True, True]
