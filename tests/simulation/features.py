"""What a workflow makes use of, by name, so that generated ones can be counted."""

import json
from collections.abc import Mapping
from typing import Any

from tests.simulation.answers import CHILD, TASKS, WAITING
from tests.simulation.loops import Edge, Graph


def features(dsl: Mapping[str, Any]) -> set[str]:
    """What a workflow makes use of, by name."""
    graph = Graph(dsl)
    found = set(graph.kind.values())
    for node, config in graph.config.items():
        found |= set(config) & {"retry_policy", "delay_seconds", "max_iterations", "cases", "default_output"}
        found |= _of_node(graph, node, config)
    for edge in graph.edges:
        found |= _of_edge(graph, edge)
    names = {
        "non-ASCII name": "{{state.客户}}" in json.dumps(dsl, ensure_ascii=False),
        "list index": ".items.0}}" in json.dumps(dsl),
        "several starts": len(graph.starts) > 1,
        "several ends": list(graph.kind.values()).count("end") > 1,
        "no end": "end" not in graph.kind.values(),
        "several sinks": sum(not graph.out(node) for node in graph.nodes) > 1,
        "default input": any("default" in str(config.get("inputs")) for config in graph.config.values()),
        "compensation shared": len(_compensations(graph)) > len(set(_compensations(graph))),
        "compensation pure": any(graph.kind[node] != "code" for node in _compensations(graph)),
        "compensation retried": any("retry_policy" in graph.config[node] for node in _compensations(graph)),
        "compensation by a person": any(graph.kind[node] in TASKS for node in _compensations(graph)),
        "compensation by a child": any(graph.kind[node] == CHILD for node in _compensations(graph)),
        "error of what is compensated": "{{current.error.code}}" in json.dumps(dsl),
    }
    return found | {name for name, present in names.items() if present}


def _compensations(graph: Graph) -> list[str]:
    return [c["compensation_node_id"] for c in graph.config.values() if "compensation_node_id" in c]


def _of_node(graph: Graph, node: str, config: Mapping[str, Any]) -> set[str]:
    if node in graph.aside:
        return {"compensation"}
    arriving, leaving = graph.forward_into(node), graph.out(node)
    kind, depth = graph.kind[node], len(graph.loops[node])
    policy = str(config.get("join_policy", "default")) if kind == "join" else ""
    template = str(config.get("template", "")) if kind == "template-transform" else ""
    names = {
        f"join {policy}": bool(policy),
        f"join {policy} in a loop": policy in ("any_completed", "n_completed") and depth > 0,
        "join unreachable handled": policy == "n_completed" and config.get("on_error") == "continue",
        "join failed edge": policy == "n_completed" and any(e.label == "failed" for e in leaving),
        "template JSON": template.startswith("{"),
        "template text": template.startswith("text"),
        "merge without join": len(arriving) > 1 and not policy,
        "fan-out": sum(e.label is None for e in leaving) > 1,
        "answer text": kind == "answer" and "text" in config,
        f"on_error {config.get('on_error')}": "on_error" in config,
        "backoff exponential": (config.get("retry_policy") or {}).get("backoff") == "exponential",
        f"loop depth {depth}": depth > 0,
        "if-else with an unlabelled edge": kind == "if-else" and any(e.label is None for e in leaving),
    }
    if node in graph.bodies:
        names |= _of_loop(graph, node, config)
    if graph.kind[node] in WAITING:
        names |= _of_waiting(graph, node, config)
    return {name for name, present in names.items() if present}


def _of_loop(graph: Graph, head: str, config: Mapping[str, Any]) -> dict[str, bool]:
    exits = graph.exit_edges(head)
    own = [e for e in exits if e.source == head]
    return {
        f"head {graph.kind[head]}": True,
        "several back edges": len(graph.back_edges(head)) > 1,
        "several exits": len(exits) > 1,
        "exit from a nested loop": any(len(graph.exits(e)) > 1 for e in exits),
        "head with a failed exit": any(e.label == "failed" for e in own),
        "head that continues on error": config.get("on_error") == "continue",
        "one node loop": len(graph.bodies[head]) == 1,
    }


def _of_waiting(graph: Graph, node: str, config: Mapping[str, Any]) -> dict[str, bool]:
    name = "task" if graph.kind[node] in TASKS else "child"
    labels = {edge.label for edge in graph.out(node)}
    return {
        f"{name} in a loop": bool(graph.loops[node]),
        f"{name} retried": "retry_policy" in config,
        f"{name} made up for": "compensation_node_id" in config,
        f"{name} failed edge": "failed" in labels,
        f"{name} with little time": "timeout_seconds" in config,
        f"{name} delayed": "delay_seconds" in config,
        f"on_timeout {config.get('on_timeout')}": "on_timeout" in config,
        "verdict edge": "approved" in labels,
        "verdict edges only": bool(labels) and None not in labels and name == "task",
        "child with inputs": "{{" in json.dumps(config.get("inputs", "")),
        "child refused": name == "child" and "inputs" not in config,
    }


def _of_edge(graph: Graph, edge: Edge) -> set[str]:
    twins = [e for e in graph.edges if (e.source, e.target) == (edge.source, edge.target)]
    back = edge.index in graph.back
    names = {
        "failed edge": edge.label == "failed",
        "failed back edge": edge.label == "failed" and back,
        "outer back edge from an inner loop": back and bool(graph.exits(edge)),
        "parallel edges": len(twins) > 1,
        "exit into another loop": bool(graph.exits(edge)) and edge.target in graph.bodies and not back,
    }
    return {name for name, present in names.items() if present}
