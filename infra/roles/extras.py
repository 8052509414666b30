"""What an installation, a test or the benchmark adds to the roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bus.limits import Defences
from bus.store import Log, Store
from gateway.http.ports import CommandBus
from handlers.steps.port import Performer
from schemas.workflow.node_types import NodeConfig

T = TypeVar("T")


def _same(port: T) -> T:
    return port


@dataclass(frozen=True, slots=True)
class Extras:
    """What an installation adds: node types with their performers by step kind (the benchmark's no-op).

    `store` and `log` wrap those of the kernel, `bus` what a gateway sends by; a fault that must hit between two of
    their actions goes there. `defences` are for tests only.
    """

    node_types: Mapping[str, type[NodeConfig]] = field(default_factory=dict)
    performers: Mapping[str, Performer] = field(default_factory=dict)
    store: Callable[[Store], Store] = _same
    log: Callable[[Log], Log] = _same
    bus: Callable[[CommandBus], CommandBus] = _same
    defences: Defences = field(default_factory=Defences)
