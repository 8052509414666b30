"""The order of the tests: files stay together, what starts whole platforms comes first."""

from __future__ import annotations

import itertools

import pytest

from tests.architecture.lints import ROOT
from tests.schedule import APART, rank, unit


def test_files_that_are_torn_apart_are_there() -> None:
    assert all((ROOT / path).is_file() for path in APART)
    assert unit(f"{APART[0]}::test_a[1]") == f"{APART[0]}::test_a[1]"
    assert unit("tests/test_a.py::TestB::test_c") == "tests/test_a.py"


def test_what_starts_platforms_comes_first_and_no_file_is_torn_apart(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    files = [file for file, _ in itertools.groupby(items, key=lambda item: unit(item.nodeid))]
    assert len(files) == len(set(files))
    ranks = [min(map(rank, group)) for _, group in itertools.groupby(items, key=lambda item: unit(item.nodeid))]
    assert ranks == sorted(ranks)
