"""Examples in READMEs print the shown output; tests, files, headings and functions named in READMEs exist."""

import doctest
import re
from pathlib import Path

import pytest

import pwconv

ROOT = Path(__file__).parent.parent
SOURCES = {".py", ".pyx", ".pxi", ".h"}
READMES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("README.md"), *ROOT.glob("[!.]*/README.md")])
# The least numbers of examples, and of tests named, by README: they show that the patterns below find them.
EXAMPLES = {"README.md": 20, "pwconv/README.md": 45}
NAMED_TESTS = {"pwconv/README.md": 15, "tests/README.md": 40}


def text_of(readme):
    return (ROOT / readme).read_text(encoding="utf-8")


def test_all_readmes_are_found():
    assert set(READMES) >= {"README.md", "benchmarks/README.md", "pwconv/README.md", "pyx/README.md", "tests/README.md"}
    assert len(text_of("README.md").splitlines()) <= 220


@pytest.mark.thread_unsafe(reason="doctest takes the standard output of the whole process")
@pytest.mark.parametrize("readme", READMES)
def test_examples_run(readme):
    pwconv.forget_plans()  # an example counts those that it finds
    failed, attempted = doctest.testfile(f"../{readme}", encoding="utf-8")
    assert failed == 0  # the differences are in the captured output
    assert attempted >= EXAMPLES.get(readme, 0)
    # A README has examples that doctest finds if it has blocks of Python, and only then.
    assert ("```python" in text_of(readme)) == (attempted > 0)


@pytest.mark.parametrize("readme", READMES)
def test_named_tests_exist(readme):
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text_of(readme))
    assert len(named) >= NAMED_TESTS.get(readme, 0)
    for file, function in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in text or not function, (file, function)


def prose(readme):
    """The text of a README without code, in one line."""
    text = re.sub(r"^```.*?^```", "", text_of(readme), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"`[^`]*`", "", text))


def headings(readme):
    """The anchors that GitHub gives to a README's headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(readme), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_to_files_and_headings(readme):
    for path, heading in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", prose(readme)):
        target = ((ROOT / readme).parent / path).resolve() if path else ROOT / readme
        assert target.exists(), path
        assert not heading or heading in headings(target.relative_to(ROOT)), heading


def test_the_front_page_leads_to_the_others():
    linked = re.findall(r"\]\(([^)#]*/README\.md)\)", text_of("README.md"))
    assert {*linked} == {*READMES} - {"README.md"}


def test_pictures_are_shown_and_small():
    """Every picture in benchmarks/pictures is shown by a README and takes less than 150 KB of a clone."""
    shown = "".join(map(text_of, READMES))
    pictures = list((ROOT / "benchmarks" / "pictures").iterdir())
    assert len(pictures) >= 3
    for picture in pictures:
        assert f"pictures/{picture.name})" in shown, picture
        assert picture.stat().st_size < 150_000, picture


def test_functions_named_in_the_readme_of_pyx_exist():
    sources = [path for folder in ("pwconv", "pyx") for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"`(\w+)\(\)`", text_of("pyx/README.md"))
    assert len(named) > 6
    assert [name for name in named if not re.search(rf"^[\w* ]*\b{name}\(", text, re.MULTILINE)] == []


def test_the_diff_in_the_readme_of_pyx_matches_the_sources():
    """Added and context lines of the diff stand in the files that it names, in the same order."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", text_of("pyx/README.md"), re.MULTILINE | re.DOTALL)
    text = ""
    for line in diff.splitlines():
        if line.startswith("--- "):
            text = (ROOT / line[4:]).read_text(encoding="utf-8")
        elif not line.startswith("-"):
            _, found, text = text.partition(f"\n{line[1:]}\n")
            assert found, line
            text = "\n" + text


def test_the_changelog_has_this_version():
    import pwconv

    assert f"\n## {pwconv.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
