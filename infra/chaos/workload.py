"""The runs of a chaos load: a few workflows, and for every run the exact end it must come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from schemas.messages import JsonObject

TENANTS = ("chaos-one", "chaos-two")
"""Two tenants whose runs alternate, with the same codes, names and idempotency keys."""


def owner_mark(tenant_id: str) -> str:
    """What every run of a tenant carries in its inputs, and so in all that it causes."""
    return f"belongs-to-{tenant_id}"


def _effect(id: str, **more: Any) -> JsonObject:
    body = {"seconds": more.pop("seconds", 0), "fails": more.pop("fails", 0), "owner": "{{inputs.owner}}"}
    return {"id": id, "type": "tool", "config": {"tool_binding_id": "effect", "body": body, **more}}


def _chain(*nodes: JsonObject) -> list[JsonObject]:
    return [{"source": a["id"], "target": b["id"]} for a, b in pairwise(nodes)]


START: JsonObject = {"id": "start", "type": "start"}
ANSWER: JsonObject = {"id": "answer", "type": "answer", "config": {"template": "run {{inputs.n}}"}}


def _quick() -> JsonObject:
    text = {"id": "text", "type": "template-transform", "config": {"template": "{{inputs.n}}"}}
    nodes = (START, _effect("one"), text, _effect("two"), ANSWER)
    return {"nodes": list(nodes), "edges": _chain(*nodes)}


def _slow() -> JsonObject:
    nodes = (START, _effect("one"), _effect("long", seconds="{{inputs.seconds}}"), _effect("two"), ANSWER)
    return {"nodes": list(nodes), "edges": _chain(*nodes)}


def _branch() -> JsonObject:
    code = {"code": "result = payload['n'] % 2", "input_json": {"n": "{{inputs.n}}"}}
    nodes = [
        START,
        {"id": "odd", "type": "code", "config": code},
        {"id": "which", "type": "if-else", "config": {"expression": "nodes.odd.output.result_json == 1"}},
        _effect("yes"),
        _effect("no"),
        {"id": "join", "type": "join"},
        ANSWER,
    ]
    edges = [
        {"source": "start", "target": "odd"},
        {"source": "odd", "target": "which"},
        {"source": "which", "target": "yes", "condition": "true"},
        {"source": "which", "target": "no", "condition": "false"},
        {"source": "yes", "target": "join"},
        {"source": "no", "target": "join"},
        {"source": "join", "target": "answer"},
    ]
    return {"nodes": nodes, "edges": edges}


def _wide() -> JsonObject:
    arms = [_effect(f"arm-{number}") for number in range(4)]
    nodes = [START, *arms, {"id": "join", "type": "join"}, ANSWER]
    edges = [{"source": "start", "target": arm["id"]} for arm in arms]
    edges += [{"source": arm["id"], "target": "join"} for arm in arms]
    return {"nodes": nodes, "edges": [*edges, {"source": "join", "target": "answer"}]}


def _retry() -> JsonObject:
    policy = {"max_attempts": 3, "retry_delay_seconds": 0.5}
    nodes = (START, _effect("shaky", fails=1, retry_policy=policy), ANSWER)
    return {"nodes": list(nodes), "edges": _chain(*nodes)}


def _undo() -> JsonObject:
    nodes = (START, _effect("book", compensation_node_id="cancel"), _effect("boom", fails=-1), ANSWER)
    return {"nodes": [*nodes, _effect("cancel")], "edges": _chain(*nodes)}


def _delay() -> JsonObject:
    wait = {"id": "wait", "type": "template-transform", "config": {"template": "waited", "delay_seconds": 1}}
    nodes = (START, wait, _effect("one"), ANSWER)
    return {"nodes": list(nodes), "edges": _chain(*nodes)}


WORKFLOWS: Mapping[str, JsonObject] = {
    "quick": _quick(),
    "slow": _slow(),
    "branch": _branch(),
    "wide": _wide(),
    "retry": _retry(),
    "undo": _undo(),
    "delay": _delay(),
}
TURNS = ("slow", "quick", "branch", "slow", "wide", "retry", "slow", "undo", "delay")
"""A third of the runs has a long step."""

LONG_EVERY, LONG_SECONDS = 270, 26.0
"""Now and then a step takes longer than three leases and four sessions."""

VIAS = ("http", "commands", "ingress")


@dataclass(frozen=True, slots=True)
class Expected:
    """How a run must end: its status, its text, and each node run's status by path."""

    status: str
    text: str | None
    nodes: Mapping[str, str]
    effects: frozenset[str]
    """Paths of the node runs whose effect must have happened."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to start. `key`: its Idempotency-Key, or the id of its record on the bus; both tenants use each."""

    number: int
    tenant_id: str
    key: str
    workflow: str
    via: str
    inputs: JsonObject
    expected: Expected


def job(number: int, seed: int, vias: tuple[str, ...] = VIAS) -> Job:
    workflow = TURNS[number % len(TURNS)]
    tenant_id = TENANTS[number % len(TENANTS)]
    random = Random(f"{seed}/{number}")
    inputs: JsonObject = {"n": number, "owner": owner_mark(tenant_id)}
    if workflow == "slow":
        inputs["seconds"] = LONG_SECONDS if number % LONG_EVERY == LONG_EVERY // 2 else round(random.uniform(2, 5), 2)
    via = vias[number // len(TURNS) % len(vias)]
    key = f"chaos-{seed}-{number // len(TENANTS)}"
    return Job(number, tenant_id, key, workflow, via, inputs, _expected(workflow, number))


def _expected(workflow: str, number: int) -> Expected:
    nodes = {node["id"]: "completed" for node in WORKFLOWS[workflow]["nodes"]}
    status, text = "completed", f"run {number}"
    if workflow == "branch":
        nodes["no" if number % 2 else "yes"] = "skipped"
    elif workflow == "undo":
        nodes = {"start": "completed", "book": "completed", "boom": "failed", "book/cancel": "completed"}
        status, text = "compensated", ""
    effects = {path for path, ended in nodes.items() if _is_effect(workflow, path) and ended != "skipped"}
    return Expected(status, text or None, nodes, frozenset(effects))


def _is_effect(workflow: str, path: str) -> bool:
    id = path.rpartition("/")[2]
    return any(node["id"] == id and node["type"] == "tool" for node in WORKFLOWS[workflow]["nodes"])
