"""How a run comes to be: which version it runs, and whether it can begin at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from handlers.runs.evaluate import input_problems, with_defaults
from handlers.runs.programs import Programs
from projections.catalog import Definition, Version
from schemas import runtime as wire
from schemas.decider import Key, Meta, Rows
from schemas.messages import JsonObject, Rejected
from schemas.problems import summary
from schemas.workflow.graph import Node, Program
from schemas.workflow.node_types import Start, canonical_type

Starts = wire.CreateRun | wire.StartChild


def facts(command: Starts) -> list[Key]:
    """The workflow whose latest version is wanted; a version by its id is in memory mostly."""
    latest = command.workflow_version_id is None and command.workflow_id is not None
    return [(Definition, cast(str, command.workflow_id))] if latest else []


def created(command: wire.CreateRun, rows: Rows, meta: Meta, programs: Programs) -> wire.RunCreated:
    """A run from outside. Raises Rejected for what cannot be run."""
    version = _version(command, rows)
    program = programs.of(version)
    initial = command.initial_node
    begun = program.starts
    if initial is not None:
        _check_initial(initial, program.by_id, program.nodes)
        begun = (program.by_id[initial.node_id],)
    return wire.RunCreated(
        workflow_id=version.definition_id,
        workflow_version_id=version.id,
        app_id=command.app_id,
        app_version_id=command.app_version_id,
        session_id=command.session_id,
        inputs=_checked_inputs(program, begun, command),
        mode=command.mode,
        initial_node=initial.node_id if initial else None,
    )


def child_created(command: wire.StartChild, rows: Rows, meta: Meta, programs: Programs) -> wire.RunCreated:
    """A run that a node of another run awaits. Raises Rejected for what cannot be run."""
    version = _version(command, rows)
    program = programs.of(version)
    origin = wire.Origin(
        answer_to=meta.answer_to,
        parent_run_id=command.parent_run_id,
        parent_node_run_id=command.parent_node_run_id,
        root_run_id=command.root_run_id,
        depth=command.depth,
    )
    return wire.RunCreated(
        workflow_id=version.definition_id,
        workflow_version_id=version.id,
        app_id=command.app_id,
        app_version_id=command.app_version_id,
        session_id=command.session_id,
        inputs=_checked_inputs(program, program.starts, command),
        origin=origin,
    )


def single_created(command: wire.StartSingle, meta: Meta) -> wire.RunCreated:
    """A step of the platform's own."""
    return wire.RunCreated(
        workflow_id=wire.PLATFORM_WORKFLOW_ID,
        workflow_version_id=wire.PLATFORM_VERSION_ID,
        inputs=command.inputs,
        initial_node=command.step,
        kind="single",
        origin=wire.Origin(answer_to=meta.answer_to) if meta.answer_to else None,
    )


def _version(command: Starts, rows: Rows) -> Version:
    """The version to run. "Latest" is resolved here, once; the event records what it was."""
    version_id = command.workflow_version_id
    if version_id is None:
        if command.workflow_id is None:
            raise _invalid("/workflow_version_id", "workflow_id or workflow_version_id is required")
        head = rows.fact(Definition, command.workflow_id)
        if head is None or head.kind != "workflow":
            raise _invalid("/workflow_id", "there is no such workflow")
        if head.latest_published is None:
            raise Rejected("no_published_version", f"workflow {head.code!r} has no published version")
        version_id = head.latest_published
    version = rows.fact(Version, version_id)
    if version is None or version.kind != "workflow":
        raise _invalid("/workflow_version_id", "there is no such workflow version")
    if command.workflow_id not in (None, version.definition_id):
        raise _invalid("/workflow_id", "the version belongs to another workflow")
    return version


def _checked_inputs(program: Program, begun: Iterable[int], command: Starts) -> JsonObject:
    """The run's inputs with the defaults of the start nodes that it begins at. Raises Rejected for what they refuse."""
    configs = (program.nodes[index].config for index in begun)
    starts = [config for config in configs if isinstance(config, Start)]
    problems = input_problems(starts, command.inputs)
    if problems:
        raise Rejected("invalid_inputs", summary(problems), status=422, errors=tuple(problems))
    return with_defaults(starts, command.inputs)


def _check_initial(initial: wire.InitialNode, by_id: Mapping[str, int], nodes: tuple[Node, ...]) -> None:
    index = by_id.get(initial.node_id)
    if index is None:
        raise _invalid("/initial_node/node_id", "the workflow has no such node")
    if nodes[index].is_compensation_only:
        raise _invalid("/initial_node/node_id", "a compensation cannot be the first node")
    if initial.node_type is not None and canonical_type(initial.node_type) != nodes[index].type:
        raise _invalid("/initial_node/node_type", f"the node is of type {nodes[index].type}")


def _invalid(pointer: str, detail: str) -> Rejected:
    return Rejected(
        "invalid_request",
        detail,
        status=422,
        errors=({"pointer": pointer, "code": "invalid", "detail": detail},),
    )
