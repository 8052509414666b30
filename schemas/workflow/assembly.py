"""Checks the graph that a DSL describes and puts the Program together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from schemas.problems import pointer_of
from schemas.workflow.control_flow import Fault, Shape, analyse
from schemas.workflow.dsl_reader import Draft, Reader
from schemas.workflow.functions import equal
from schemas.workflow.graph import ForeignReference, Node, Program, early_joins, latest, node_reads, onward, wire
from schemas.workflow.node_types import FOREIGN_IDS, Join, Start
from schemas.workflow.reads import Reads


def check_graph(reader: Reader) -> Shape:
    drafts, problems = reader.drafts, reader.problems
    entered = {line.target for line in reader.lines}
    owners = _compensations(reader)
    aside = {at for at in owners if at not in entered}
    unnamed = {draft.at for draft in drafts if draft.id is None}
    ends = [(line.source, line.target) for line in reader.lines]
    allow_loop = {draft.at for draft in drafts if draft.raw.get("allow_loop") is True and draft.id is not None}
    shape = analyse(len(drafts), ends, allow_loop, aside | unnamed)
    for fault in shape.faults:
        _report(fault, reader)
    unreachable = {fault.node for fault in shape.faults if fault.code == "unreachable_node"}
    for at in sorted(aside):
        if all(owner in aside or owner in unreachable for owner in owners[at]):
            detail = "no node that can run is compensated by it"
            problems.add(pointer_of("nodes", at), "unreachable_node", detail)
    sources: dict[int, set[int]] = {}
    for line in reader.lines:
        sources.setdefault(line.target, set()).add(line.source)
    for at in sorted(entered - aside):
        if sources[at] <= aside:
            detail = "only compensations lead here, and their edges are ignored"
            problems.add(pointer_of("nodes", at), "unreachable_node", detail)
    _check_joins(reader, shape)
    for draft in drafts:
        if "max_iterations" in draft.raw and draft.raw.get("allow_loop") is not True:
            problems.add(draft.pointer("max_iterations"), "max_iterations_unused", "the node has no allow_loop")
    _check_inputs(reader)
    in_order = reader.is_whole and all(fault.code == "allow_loop_unused" for fault in shape.faults)
    Reads(reader, aside, owners, in_order=in_order).check()
    return shape


def _compensations(reader: Reader) -> dict[int, list[int]]:
    """Per compensation target the nodes that name it."""
    touched = {at for line in reader.lines for at in (line.source, line.target)}
    owners: dict[int, list[int]] = {}
    for draft in reader.drafts:
        name = draft.raw.get("compensation_node_id")
        if not isinstance(name, str):
            continue
        pointer = draft.pointer("compensation_node_id")
        target = reader.by_id.get(name)
        if target is None:
            hint = reader.allowance.suggestions.hint(name, reader.by_id)
            reader.problems.add(pointer, "compensation_unknown", f"there is no node {name[:64]!r}{hint}")
        elif target == draft.at:
            reader.problems.add(pointer, "compensation_self", "a node cannot compensate itself")
        else:
            owners.setdefault(target, []).append(draft.at)
            if target in touched:
                detail = "the edges of the compensation node are ignored when it compensates"
                reader.problems.add(pointer, "compensation_has_edges", detail)
            if reader.drafts[target].raw.get("compensation_node_id") is not None:
                detail = "a compensation is not compensated itself"
                reader.problems.add(pointer, "compensation_nested", detail)
    return owners


_FAULTS: Final = {
    "no_start_node": "no node is without an incoming edge",
    "unreachable_node": "no path leads here from a start node",
    "loop_without_entry": "a loop needs a node before it: an edge into its head from outside",
    "cycle_without_allow_loop": "a cycle; the node that it comes back to needs allow_loop",
    "irreducible_cycle": "a cycle that can be entered at more than one node",
    "allow_loop_not_head": "allow_loop stands on a loop's head only: the node that its back edges lead to",
    "allow_loop_unused": "no cycle comes back to this node",
    "loops_too_deep": "loops are nested too deeply",
}


def _report(fault: Fault, reader: Reader) -> None:
    pointer = "/nodes"
    if fault.edge is not None:
        pointer = pointer_of("edges", reader.lines[fault.edge].at)
    elif fault.node is not None:
        pointer = pointer_of("nodes", fault.node)
        if fault.code in ("allow_loop_not_head", "allow_loop_unused"):
            pointer = reader.drafts[fault.node].pointer("allow_loop")
    reader.problems.add(pointer, fault.code, _FAULTS[fault.code])


def _check_joins(reader: Reader, shape: Shape) -> None:
    incoming = Counter(line.target for line in reader.lines)
    for loop in shape.loops:
        incoming[loop.head] -= len(loop.back_edges)
    for draft in reader.drafts:
        n = draft.raw.get("n")
        if draft.config_type is not Join or not isinstance(n, int) or isinstance(n, bool):
            continue
        if draft.raw.get("join_policy") != "n_completed":
            reader.problems.add(draft.pointer("n"), "join_n_unused", "only join_policy 'n_completed' reads n")
        elif not 1 <= n <= incoming[draft.at]:
            detail = f"n is {n}, the join has {incoming[draft.at]} incoming edges"
            reader.problems.add(draft.pointer("n"), "join_n_out_of_range", detail)


def _check_inputs(reader: Reader) -> None:
    """Start nodes share the run's inputs, so what two of them declare has one default."""
    defaults: dict[str, Any] = {}
    for draft in reader.drafts:
        inputs = draft.raw.get("inputs") if draft.config_type is Start else None
        for name, spec in inputs.items() if isinstance(inputs, dict) else ():
            default = spec.get("default") if isinstance(spec, dict) else None
            if default is not None and not equal(defaults.setdefault(name, default), default):
                pointer = draft.pointer("inputs") + pointer_of(name, "default")
                reader.problems.add(pointer, "conflicting_default", "another start node declares another default")


def build_program(reader: Reader, shape: Shape) -> Program:
    drafts = reader.drafts
    entered = {line.target for line in reader.lines}
    configs = [draft.config for draft in drafts if draft.config is not None]
    compensations = [
        None if config.compensation_node_id is None else reader.by_id[config.compensation_node_id] for config in configs
    ]
    aside = {at for at in compensations if at is not None and at not in entered}
    wiring = wire(
        len(drafts),
        [(line.source, line.target) for line in reader.lines],
        [line.label for line in reader.lines],
        shape.loops,
        [config.max_iterations for config in configs],
        aside,
    )
    nodes = tuple(
        Node(
            index=draft.at,
            id=draft.id or "",
            type=draft.type_name,
            kind=config.kind,
            config=config,
            loops=wiring.loops_of[draft.at],
            incoming=wiring.incoming[draft.at],
            outgoing=wiring.outgoing[draft.at],
            references=node_reads(draft.compiled.references()),
            compensation=compensations[draft.at],
            is_compensation_only=draft.at in aside,
            **draft.compiled.parts,
        )
        for draft, config in zip(drafts, configs, strict=True)
    )
    return Program(
        nodes=nodes,
        edges=wiring.edges,
        loops=wiring.loops,
        by_id=reader.by_id,
        starts=tuple(shape.starts),
        latest=latest(nodes),
        foreign=tuple(_foreign(drafts)),
        early_joins=early_joins(nodes),
        _onward=onward(nodes, wiring.edges, wiring.loops),
    )


def _foreign(drafts: list[Draft]) -> Iterator[ForeignReference]:
    for draft in drafts:
        for name in FOREIGN_IDS:
            value = draft.raw.get(name)
            if isinstance(value, str):
                yield ForeignReference(draft.pointer(name), name, value)
