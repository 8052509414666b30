"""What nodes answer: computed for pure ones, told for effects, made of how their task or child run ended for others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from schemas.messages import derive_near
from schemas.workflow.expressions import EvaluationError
from schemas.workflow.templates import compile_value
from tests.simulation.loops import Graph, NodeRun
from tests.simulation.observations import (
    Attempted,
    ChildEnd,
    Effects,
    Ended,
    Failure,
    Path,
    Success,
    Verdict,
)
from tests.simulation.pure_nodes import PURE, PureNodes

EFFECTS = frozenset({"code"})  # Every other kind that is not pure and does not wait fails: `node_type_unavailable`.
TASKS = frozenset({"human", "approval", "human-input", "human-takeover"})
CHILD = "workflow"
WAITING = TASKS | {CHILD}
Key = tuple[Path, str]
DEPTH_MAX = 8
CHILDREN_MAX = 1_000


class Answers:
    """What is known of one run so far, and what its nodes answer."""

    def __init__(
        self, dsl: Mapping[str, Any], inputs: Mapping[str, Any], run_id: str, effects: Effects, depth: int = 0
    ) -> None:
        self.graph = Graph(dsl)
        self.pure = PureNodes(self.graph)
        self.inputs = {**defaults(self.graph), **inputs}
        self.run_id = run_id
        self.effects = effects
        self.depth = depth
        self.children = 0
        self.state: dict[str, Any] = {}
        self.known: list[tuple[NodeRun, Ended]] = []  # What completed or failed, in order.
        self.cause: Ended | None = None
        self.failed_attempts: dict[Key, int] = {}

    @property
    def completed(self) -> list[tuple[NodeRun, Ended]]:
        return [(run, ended) for run, ended in self.known if ended.status == "completed"]

    def attempt(self, path: Path, iteration: str) -> int:
        """The number of the attempt that is due or under way."""
        return self.failed_attempts.get((path, iteration), 0) + 1

    def outcome(
        self, run: NodeRun, path: Path, node: str, refusal: Failure | None, *, may_retry: bool, failed_edges: bool
    ) -> Ended | Attempted | None:
        """How the attempt of `node` under way ends, on behalf of `run`; `node` differs for a compensation.

        `refusal`: it fails without an attempt. None: nobody has answered.
        """
        iteration, attempt = run.iteration, self.attempt(path, run.iteration)
        match refusal or self._answer(run, path, node, attempt):
            case None:
                return None
            case Success(output, text):
                return Ended(path, iteration, "completed", attempt, output, text, None)
            case Failure(code, retryable, output, text):
                config = self.graph.config[node]
                attempts_max = (config.get("retry_policy") or {}).get("max_attempts", 1)
                if may_retry and retryable and attempt < attempts_max:
                    return Attempted(path, iteration, attempt, code)
                failed = Ended(path, iteration, "failed", attempt, output, text, code)
                if failed_edges:
                    return failed
                match config.get("on_error", "fail"):
                    case "continue":
                        return replace(failed, status="completed", output={})
                    case "default":
                        return replace(failed, status="completed", output=config.get("default_output", {}))
                return failed

    def _answer(self, run: NodeRun, path: Path, node: str, attempt: int) -> Success | Failure | None:
        kind = self.graph.kind[node]
        if kind in PURE:
            try:
                return self.pure.evaluate(node, self.scope(node, None if path == node else run))
            except EvaluationError:
                return Failure("evaluation_failed")
        if kind not in EFFECTS | WAITING:
            return Failure("node_type_unavailable", retryable=False)
        match self.effects(path, run.iteration, attempt):
            case Verdict() as verdict:
                return self._decided(run, path, node, attempt, verdict)
            case ChildEnd() as end:
                return _child_end(end)
            case other:
                return other

    def no_child(self, node: str) -> Failure | None:
        """Why this run may start no child any more."""
        if self.graph.kind[node] != CHILD:
            return None
        if self.depth >= DEPTH_MAX:
            return Failure("depth_exceeded", retryable=False)
        return Failure("too_many_children", retryable=False) if self.children >= CHILDREN_MAX else None

    def _decided(self, run: NodeRun, path: Path, node: str, attempt: int, verdict: Verdict) -> Success | Failure:
        config = self.graph.config[node]
        match verdict.status:
            case "cancelled":
                return Failure("task_cancelled", retryable=False)
            case "expired" if config.get("on_timeout", "fail") == "default":
                return Success(config.get("default_output", {}))
            case "expired":
                return Failure("task_expired")
        output = {
            "task_id": task_id(self.run_id, path, run.iteration, attempt),
            "status": verdict.status,
            "response_payload_json": verdict.response,
            "completed_by": verdict.by,
        }
        if verdict.status != "completed":
            output["approved"] = verdict.status == "approved"
        if verdict.late is not None:
            output["late_seconds"] = verdict.late
        return Success(output)

    def route(self, run: NodeRun, seen: Ended) -> str | None:
        """The label of the edges that a completed node takes beside those without one."""
        kind = self.graph.kind[run.node]
        if seen.error_code is not None or seen.by_hand:
            return None
        if kind == "if-else":
            return seen.output.get("route") if isinstance(seen.output, dict) else None
        verdict = self.effects(run.node, run.iteration, seen.attempt) if kind in TASKS else None
        named = isinstance(verdict, Verdict) and verdict.status in ("approved", "rejected")
        return verdict.status if named and isinstance(verdict, Verdict) else None

    def inputs_of_child(self, node: str, compensates: NodeRun | None) -> Any:
        return compile_value(self.graph.config[node].get("inputs") or {}).evaluate(self.scope(node, compensates))

    def scope(self, node: str, compensates: NodeRun | None) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        for run, ended in self.known:
            if compensates and run.at != self._near(compensates, run):
                continue  # A compensation sees the outputs of its own iteration.
            error = {"code": ended.error_code} if ended.error_code else None
            nodes[run.node] = {"output": ended.output, "text": ended.output_text, "error": error}
        current: dict[str, Any] = {"node_id": node}
        if compensates:
            current |= {"compensates": compensates.node, "error": self._made_up_for(compensates)}
        return {
            "state": self.state,
            "inputs": self.inputs,
            "nodes": nodes,
            "current": current,
            "run": {"id": self.run_id},
        }

    def _made_up_for(self, compensates: NodeRun) -> dict[str, Any] | None:
        """The error of the node run that is made up for, else that of the run."""
        own = next(ended for run, ended in self.known if run == compensates)
        code = own.error_code or (self.cause.error_code if self.cause else None)
        return {"code": code} if code else None

    def _near(self, compensates: NodeRun, run: NodeRun) -> tuple[int, ...]:
        shared = sum(head in self.graph.loops[run.node] for head in self.graph.loops[compensates.node])
        return compensates.at[:shared] + run.at[shared:]

    def learn(self, run: NodeRun, node: str, seen: Ended) -> None:
        """A node run completed or failed; `node` is what ran on behalf of `run`."""
        if node == run.node:
            self.known.append((run, seen))
        if seen.status != "completed" or seen.error_code is not None or not isinstance(seen.output, dict):
            return
        match self.graph.kind[node]:
            case "assigner":
                self.state = {**self.state, **seen.output.get("state_updates", {})}
            case "start":
                self.state = {**self.state, **seen.output}


def defaults(graph: Graph) -> dict[str, Any]:
    """Of the inputs that the start nodes declare."""
    starts = [node for node in graph.starts if graph.kind[node] == "start"]
    declared = [each for node in starts for each in (graph.config[node].get("inputs") or {}).items()]
    return {name: spec["default"] for name, spec in declared if "default" in spec}


def _child_end(end: ChildEnd) -> Success | Failure:
    match end.status:
        case "completed":
            return Success(end.output, end.text)
        case "cancelled":
            return Failure("run_cancelled", retryable=False)
        case "refused":
            return Failure(end.code, retryable=False)
    return Failure(end.code)


def task_id(run_id: str, path: Path, iteration: str, attempt: int) -> str:
    return derive_near(derive_near(run_id, f"{path}:{iteration}"), f"task:{attempt}")


def child_id(run_id: str, path: Path, iteration: str, attempt: int) -> str:
    return derive_near(derive_near(run_id, f"{path}:{iteration}"), f"run:{attempt}")
