"""Programs in memory: kept by use, bounded in number and in bytes, dropped only when another one comes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.runs.programs import Programs
from handlers.runs.singles import PLATFORM_VERSION_ID
from projections.catalog import Version
from schemas.decider import Missing
from schemas.messages import Rejected, derive
from tests.specs.flow import RUN, Flow

GOOD = Flow("a:answer").version


def version(number: int) -> Version:
    return replace(GOOD, id=derive(RUN, f"version {number}"))


def keep(programs: Programs, *numbers: int) -> None:
    for number in numbers:
        programs.keep(version(number).id, programs.compile(version(number)))


def known(programs: Programs, count: int) -> list[int]:
    return [number for number in range(count) if programs._compiled.get(version(number).id) is not None]


def test_what_is_not_in_memory_is_prepared_outside_of_the_decision() -> None:
    programs = Programs()
    with pytest.raises(Missing) as lack:
        programs.of(GOOD)
    (work,) = lack.value.work
    work.keep(work.make())
    assert programs.of(GOOD) is programs.known(GOOD.id)


def test_a_version_with_errors_is_compiled_once_and_refused_each_time() -> None:
    programs = Programs()
    broken = replace(GOOD, spec={"nodes": [], "edges": []})
    programs.keep(broken.id, programs.compile(broken))
    for _ in range(2):
        with pytest.raises(Rejected, match="version_invalid"):
            programs.of(broken)


def test_those_used_longest_ago_make_room() -> None:
    programs = Programs(entries_max=3)
    keep(programs, 0, 1, 2)
    assert programs.known(version(0).id) is not None
    keep(programs, 3)
    assert known(programs, 4) == [0, 2, 3]


def test_they_are_bounded_in_bytes_but_for_a_few() -> None:
    size = Programs().compile(GOOD).size
    programs = Programs(bytes_max=5 * size, entries_min=2)
    keep(programs, *range(9))
    assert known(programs, 9) == [4, 5, 6, 7, 8]
    tiny = Programs(bytes_max=1, entries_min=2)
    keep(tiny, *range(9))
    assert known(tiny, 9) == [7, 8]


def test_the_platforms_own_is_always_there() -> None:
    programs = Programs(entries_max=1)
    keep(programs, 0, 1)
    assert programs.known("not there") is None
    assert programs.known(PLATFORM_VERSION_ID) is not None
