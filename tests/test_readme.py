"""The README's Python, which is one session, prints what the README says."""

import doctest


def test_the_tour_runs():
    failed, attempted = doctest.testfile("../README.md", encoding="utf-8")
    assert failed == 0  # the differences are in the captured output
    assert attempted > 20
