"""Checking a definition as a step: what is wrong is its answer, what hinders it is a failure that may pass."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.runs.singles import Check
from handlers.steps.check import PROBLEMS_BYTES_MAX, Checker, problems_of
from handlers.steps.code import SandboxBusy
from handlers.steps.port import StepCall, StepFailed
from projections.catalog import Version
from schemas.messages import JsonObject
from tests.specs.flow import VERSION, Flow

CODE: JsonObject = {"nodes": [{"id": "a", "type": "code", "config": {"code": "result = 1"}}], "edges": []}


def call(tenant_id: str = "t1") -> StepCall:
    return StepCall("n", "r", tenant_id, "check", 1, Check(version_id=VERSION), {"version_id": VERSION})


def checker(check_code: Any, version: Version | None = None) -> Checker:
    async def load(id: str) -> Version | None:
        return version

    return Checker(load, check_code)


async def test_what_the_sandbox_refuses_is_a_problem() -> None:
    version = Flow("a:code").version
    answer = await checker(lambda code: "line 1: no", version).perform(call())
    assert [(each["pointer"], each["severity"]) for each in answer.output["problems"]] == [
        ("/dsl_json/nodes/0/config/code", "error")
    ]


async def test_a_busy_sandbox_is_no_verdict_on_the_code() -> None:
    def busy(code: str) -> str | None:
        raise SandboxBusy("busy")

    with pytest.raises(StepFailed) as failed:
        await checker(busy, Flow("a:code").version).perform(call())
    assert (failed.value.code, failed.value.retryable) == ("sandbox_busy", True)


@pytest.mark.parametrize("version", [None, Flow("a:code").version])
async def test_a_version_that_is_not_there_or_anothers_is_not_checked(version: Version | None) -> None:
    with pytest.raises(StepFailed, match="version_not_found"):
        await checker(lambda code: None, version).perform(call("t2"))


def test_more_problems_than_a_step_may_answer_are_counted() -> None:
    nodes = [{"id": f"n{number}", "type": "nonsense " * 40} for number in range(900)]
    found = problems_of({"nodes": nodes, "edges": []})
    assert found[-1]["code"] == "too_many_problems"
    assert sum(len(str(each)) for each in found) < 2 * PROBLEMS_BYTES_MAX
    assert problems_of(CODE) == []
