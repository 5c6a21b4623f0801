"""The README's Python, which is one session, prints what the README says; the functions that it names exist."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {".py", ".pyx", ".pxi", ".h"}


@pytest.mark.thread_unsafe(reason="doctest takes the standard output of the whole process")
def test_the_tour_runs():
    failed, attempted = doctest.testfile("../README.md", encoding="utf-8")
    assert failed == 0  # the differences are in the captured output
    assert attempted > 20


def test_the_tests_that_it_names_exist():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 50
    for file, function in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in text or not function, (file, function)


def test_the_functions_of_the_inside_story_exist():
    sources = [path for folder in ("pwconv", "pyx") for path in (ROOT / folder).iterdir() if path.suffix in SOURCES]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"`(\w+)\(\)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 6
    assert [name for name in named if not re.search(rf"^[\w* ]*\b{name}\(", text, re.MULTILINE)] == []


def test_what_an_instruction_set_takes_is_what_is_there():
    """All lines that the diff leaves, in this order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    text = ""
    for line in diff.splitlines():
        if line.startswith("--- "):
            text = (ROOT / line[4:]).read_text(encoding="utf-8")
        elif not line.startswith("-"):
            _, found, text = text.partition(f"\n{line[1:]}\n")
            assert found, line
            text = "\n" + text
