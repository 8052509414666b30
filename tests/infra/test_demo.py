"""The guided example: it ends well on a working system, and it says so when a result is missing or wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.local.demo import DemoFailed, check_runs, read_tickets
from tests.patience import patient

TICKETS = read_tickets(50)
Row = dict[str, Any]


def good_rows() -> list[Row]:
    return [
        {
            "id": f"run-{ticket.inputs['ticket']}",
            "session_id": f"burst-{ticket.inputs['ticket']}",
            "status": "completed",
            "output": orjson.dumps({"ticket": ticket.inputs["ticket"], **ticket.expected}),
        }
        for ticket in TICKETS
    ]


def test_tickets_are_numbered_and_come_in_two_languages() -> None:
    assert [ticket.inputs["ticket"] for ticket in TICKETS[:2]] == ["T-1", "T-2"]
    assert {ticket.inputs["language"] for ticket in TICKETS} == {"en", "zh"}
    assert TICKETS[40].expected == TICKETS[0].expected
    assert all("expected" not in ticket.inputs for ticket in TICKETS)


def test_the_expected_runs_are_accepted() -> None:
    check_runs(good_rows(), TICKETS)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rows: rows.pop(), r"lost: \['T-50'\]"),
        (lambda rows: rows.append(rows[3]), r"doubled: \['T-4'\]"),
        (lambda rows: rows[0].update(status="failed"), "run run-T-1 is failed"),
        (lambda rows: rows[0].update(output=orjson.dumps(TICKETS[1].expected)), "run run-T-1 is completed with"),
    ],
    ids=["lost", "doubled", "failed", "wrong"],
)
def test_what_is_wrong_is_named(damage: Callable[[list[Row]], object], said: str) -> None:
    rows = good_rows()
    damage(rows)
    with pytest.raises(DemoFailed, match=said):
        check_runs(rows, TICKETS)


@pytest.mark.services
@pytest.mark.platforms
def test_the_example_ends_well_although_a_worker_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "demo", "--tickets", "80"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    assert "80 tickets" in done.stdout
    assert "Clean" in done.stdout
    assert list(tmp_path.iterdir()) == []
