"""Checking a definition: parsing it, and asking the sandbox about its code, away from whoever decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from handlers.runs.singles import Check
from handlers.steps.code import SandboxBusy
from handlers.steps.port import StepCall, StepFailed, StepResult
from projections.catalog import Version
from schemas.problems import SpecProblem
from schemas.workflow import dsl

PROBLEMS_BYTES_MAX = 48 * 1024
"""A step's output is bounded: what is beyond is counted, errors are named before warnings."""

CheckCode = Callable[[str], str | None]
LoadVersion = Callable[[str], Awaitable[Version | None]]


class Checker:
    """The performer of check steps. `check_code`: what the sandbox would refuse of a code node; None without one."""

    def __init__(self, load: LoadVersion, check_code: CheckCode | None) -> None:
        self._load = load
        self._check_code = check_code

    async def perform(self, call: StepCall) -> StepResult:
        if not isinstance(call.config, Check):
            raise TypeError(f"a check step has no {type(call.config).__name__}")
        version = await self._load(str(call.input["version_id"]))
        if version is None or version.tenant_id != call.tenant_id:
            raise StepFailed("version_not_found", "there is no such version", retryable=False)
        try:
            return StepResult({"problems": await asyncio.to_thread(problems_of, version.spec, self._check_code)})
        except SandboxBusy as busy:
            raise StepFailed("sandbox_busy", str(busy)) from None


def problems_of(spec: Any, check_code: CheckCode | None = None) -> list[SpecProblem]:
    """What is wrong with a workflow's definition; pointers are those of the API."""
    found: list[SpecProblem] = [
        {
            "pointer": "/dsl_json" + problem.pointer,
            "code": problem.code,
            "detail": problem.detail,
            "severity": problem.severity,
        }
        for problem in dsl.parse(spec, check_code=check_code)[1]
    ]
    return _bounded(found)


def _bounded(found: list[SpecProblem]) -> list[SpecProblem]:
    kept: list[SpecProblem] = []
    size = 0
    for problem in sorted(found, key=lambda each: each["severity"] != "error"):
        size += len(orjson.dumps(problem)) + 1
        if size > PROBLEMS_BYTES_MAX:
            detail = f"there are {len(found) - len(kept)} more problems"
            kept.append({**problem, "pointer": "", "code": "too_many_problems", "detail": detail})
            break
        kept.append(problem)
    return kept if len(kept) < len(found) else found
