"""How generated workflows ask people and start child runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.scenarios import Wanted

if TYPE_CHECKING:
    from tests.simulation.generator import Around, Builder, Fragment, Out

PEOPLE = ("human", "approval", "human-input", "human-takeover")
NOT_THERE = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
"""The id of no workflow."""


def child_name(node: str) -> str:
    """What a generated node calls its workflow until that has an id."""
    return f"the child of {node}"


def person(builder: Builder) -> str:
    """A node that asks somebody. Its verdicts, and whether its time is limited, are drawn."""
    kind = builder.chance.choice(PEOPLE)
    config: dict[str, Any] = {
        "title": "批准 {{inputs.amount}} of {{inputs.客户}}?",
        "request_payload_json": {"amount": builder.placeholder(builder.facts), "wanted": [True]},
    }
    if builder.likely(0.3):
        config["description"] = builder.text(builder.facts)
    node = builder.add(kind, config)
    verdicts: list[Wanted] = ["approved", "rejected"] if kind == "approval" else ["approved", "rejected", "completed"]
    if builder.likely(0.4):
        verdicts += limit(builder, node, config)
    elif builder.likely(builder.trouble / 2):
        verdicts.append("cancelled")
        builder.make_good(config)
    if builder.likely(builder.compensated):
        builder.compensate(node, config)
    builder.people[node] = tuple(verdicts)
    output = f"nodes.{node}.output"
    builder.facts += [f"{output}.status", f"{output}.response_payload_json.说明", f"{output}.completed_by"]
    builder.conditions += [f"{output}.approved", f"{output}.response_payload_json.n > 4"]
    return node


def limit(builder: Builder, node: str, config: dict[str, Any]) -> list[Wanted]:
    """Give a task little time, and say what happens when that is over."""
    config["timeout_seconds"] = builder.chance.choice((1, 3))
    config["on_timeout"] = builder.chance.choice(("fail", "fail", "default", "escalate"))
    match config["on_timeout"]:
        case "escalate":
            config["escalate_to"] = "ops-2"
            return []
        case "default":
            config["default_output"] = builder.chance.choice(({"n": 5, "status": "approved"}, {"route": "rejected"}))
            return ["expired"]
    if builder.likely(0.6):
        config["retry_policy"] = builder.retry_policy()
    builder.make_good(config)
    return ["expired"]


def asked(builder: Builder, loops: list[Around]) -> Fragment:
    """A person's verdict decides which way is taken, or every verdict takes the same."""
    from tests.simulation.generator import Fragment

    node = person(builder)
    outs: list[Out] = [(node, None)] if builder.likely(0.6) else []
    if not outs or builder.likely(0.4):
        for label in ("approved", "rejected"):
            outs += branch(builder, (node, label), loops)
    if "on_error" not in builder.config(node) and builder.likely(0.2):
        outs += branch(builder, (node, "failed"), loops)
    return Fragment(node, outs or [(node, "approved")])


def branch(builder: Builder, out: Out, loops: list[Around]) -> list[Out]:
    """A way of its own, or none, or straight on."""
    fate = builder.chance.random()
    if fate < 0.4:
        return [out]
    return builder.follow([out], loops).outs if fate < 0.8 else []


def child(builder: Builder) -> str:
    """A node that starts another generated workflow and takes what that comes to."""
    config: dict[str, Any] = {}
    node = builder.add("workflow", config)
    if builder.likely(0.12):
        refused(builder, node, config)
    else:
        fails = nest(builder, node, config)
        if builder.likely(0.2):
            config["timeout_seconds"] = builder.chance.choice((2, 6))
        if fails or "timeout_seconds" in config:
            if builder.likely(0.6):
                config["retry_policy"] = builder.retry_policy()
            builder.make_good(config)
    if builder.likely(builder.compensated):
        builder.compensate(node, config)
    builder.texts += [f"nodes.{node}.text", f"nodes.{node}.output", f"nodes.{node}.error.code"]
    return node


def nest(builder: Builder, node: str, config: dict[str, Any]) -> bool:
    """Give a node a workflow of its own; whether that may fail."""
    from tests.simulation.generator import grown, scenario_of

    inner = grown(f"{builder.seed} {node}", nested=builder.nested + 1)
    builder.children[node] = scenario_of(inner, builder.chance.randrange(1_000_000))
    config["workflow_id"] = child_name(node)
    config["inputs"] = {**inner.inputs, "note": builder.placeholder(builder.facts)}
    return inner.fails


def asking_to_undo(builder: Builder, node: str) -> str:
    """A compensation that somebody has to do."""
    config: dict[str, Any] = {"title": "undo {{current.compensates}} for {{current.error.code}}"}
    builder.people[node] = ("approved", "rejected")
    if builder.likely(0.3):
        config |= {"timeout_seconds": 1, "retry_policy": builder.retry_policy()}
        builder.people[node] = ("approved", "expired")
    builder.nodes.append({"id": node, "type": "approval", "config": config})
    return node


def child_to_undo(builder: Builder, node: str) -> str:
    """A compensation that is a workflow."""
    config: dict[str, Any] = {}
    builder.nodes.append({"id": node, "type": "workflow", "config": config})
    nest(builder, node, config)
    return node


def refused(builder: Builder, node: str, config: dict[str, Any]) -> None:
    """A child run that cannot be: its workflow is not there."""
    config["workflow_id"] = NOT_THERE
    builder.children[node] = "invalid_request"
    builder.make_good(config)


def started(builder: Builder, loops: list[Around]) -> Fragment:
    from tests.simulation.generator import Fragment

    node = child(builder)
    outs: list[Out] = [(node, None)]
    if "on_error" not in builder.config(node) and builder.likely(0.3):
        outs += branch(builder, (node, "failed"), loops)
    return Fragment(node, outs)


def fragments(builder: Builder, loops: list[Around]) -> list[Callable[[list[Around]], Fragment]]:
    """What a workflow may wait for here: seldom much inside loops, which repeat it."""
    found: list[Callable[[list[Around]], Fragment]] = []
    if builder.asks and len(loops) < 2:
        found += [lambda loops: asked(builder, loops)] * 3
    if builder.starts and len(loops) < 2:
        found += [lambda loops: started(builder, loops)] * (1 if loops else 3)
    return found
