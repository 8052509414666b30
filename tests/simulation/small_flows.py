"""Small workflows as text, and what may be observed of them, for the tests of the rules."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.simulation.interpreter import RUN_ID, check
from tests.simulation.observations import Answer, Ended, Failure, Observation, RunEnded, Success

Config = dict[str, Any]


class Flow:
    """A workflow as text: `a:code b:join`, `a>b b>c:failed`; `fails`: how many attempts of a path fail.

    `answers`: what the attempts of a path that waits are answered, one after the other; nothing beyond.
    """

    def __init__(
        self,
        nodes: str,
        edges: str,
        fails: Mapping[str, int] | None = None,
        answers: Mapping[str, Sequence[Answer]] | None = None,
        **configs: Config,
    ) -> None:
        pairs = [one.split(":") for one in nodes.split()]
        arrows = [one.replace(">", ":").split(":") for one in edges.split()]
        self.dsl = {
            "nodes": [{"id": n, "type": kind, "config": configs.get(n, {})} for n, kind in pairs],
            "edges": [
                {"source": source, "target": target, **({"condition": label[0]} if label else {})}
                for source, target, *label in arrows
            ],
        }
        self.fails = fails or {}
        self.answers = answers or {}

    def effects(self, path: str, iteration: str, attempt: int) -> Answer | None:
        if path in self.answers:
            return next(iter(self.answers[path][attempt - 1 : attempt]), None)
        return Failure("broken") if attempt <= self.fails.get(path, 0) else Success({"at": iteration}, path)

    def judge(
        self, *seen: Observation | Sequence[Observation], inputs: Config | None = None, depth: int = 0
    ) -> list[str]:
        flat: list[Observation] = []
        for one in seen:
            flat += one if isinstance(one, Sequence) else [one]
        return check(self.dsl, inputs or {}, RUN_ID, flat, self.effects, depth=depth)

    def accepts(self, *seen: Observation | Sequence[Observation], inputs: Config | None = None, depth: int = 0) -> None:
        assert self.judge(*seen, inputs=inputs, depth=depth) == []

    def refuses(self, *seen: Observation | Sequence[Observation], because: str, depth: int = 0) -> None:
        differences = self.judge(*seen, depth=depth)
        assert differences
        assert because in differences[0]


def did(paths: str, at: str = "1", attempt: int = 1, leased: bool = False) -> list[Observation]:
    """Effects that completed."""
    return [Ended(path, at, "completed", attempt, {"at": at}, path, None, leased) for path in paths.split()]


def gave(path: str, output: Any, at: str = "1", text: str | None = None, error: str | None = None) -> Ended:
    return Ended(path, at, "completed", 1, output, text, error)


def chose(path: str, route: bool, at: str = "1") -> Ended:
    return gave(path, {"condition_result": route, "route": "true" if route else "false"}, at)


def skipped(paths: str, at: str = "1") -> list[Observation]:
    return [Ended(path, at, "skipped", 0, None, None, None) for path in paths.split()]


def cancelled(paths: str, at: str = "1", leased: bool = False) -> list[Observation]:
    return [Ended(path, at, "cancelled", 1, None, None, None, leased) for path in paths.split()]


def failed(path: str, code: str = "broken", at: str = "1", attempt: int = 1, leased: bool = False) -> Ended:
    return Ended(path, at, "failed", attempt, None, None, code, leased)


def completed(output: Any, text: str | None = None) -> RunEnded:
    return RunEnded("completed", output, text, None)


def over(status: str, code: str | None = None) -> RunEnded:
    return RunEnded(status, None, None, code)


LEAF = {"at": "1"}
