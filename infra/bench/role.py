"""The role processes of a benchmark: the real ones, with a node type whose effect does nothing."""

from __future__ import annotations

import sys
from typing import ClassVar

import uvloop

from handlers.steps.port import StepCall, StepResult
from infra.roles.extras import Extras
from infra.roles.gateway import run_gateway
from infra.roles.worker import run_worker
from infra.settings import load_settings
from infra.telemetry import logs
from schemas.workflow.node_types import NodeConfig, NodeKind

NOOP = "noop"
RESULT = StepResult({"ok": True})


class Noop(NodeConfig):
    """An effectful node without an effect: what is left is the cost of the engine."""

    kind: ClassVar[NodeKind] = "effect"
    step_kind: ClassVar[str | None] = NOOP


async def do_nothing(call: StepCall) -> StepResult:
    return RESULT


EXTRAS = Extras(node_types={NOOP: Noop}, performers={NOOP: do_nothing})


async def run(role: str) -> None:
    settings = load_settings()
    logs.start(settings, role)
    match role:
        case "worker":
            await run_worker(settings, EXTRAS)
        case "gateway":
            await run_gateway(settings)
        case _:
            raise SystemExit(f"there is no role {role!r}")


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1]))
