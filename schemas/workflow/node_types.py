"""The node types of the workflow language and their typed configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

NodeKind = Literal["pure", "effect", "wait", "child"]
Compiled = Literal["text", "value", "expression"]
TaskType = Literal["approval", "input", "takeover", "pause", "resume"]

SECONDS_MAX: Final = 31_536_000  # One year.
FAILED: Final = "failed"
NO_CASE: Final = "false"
"""The route of an if-else none of whose cases holds."""
VERDICTS: Final = ("approved", "rejected")
"""The routes of a human task that was decided."""


def _json_template(value: Any) -> Any:
    if isinstance(value, str | dict | list):
        return value
    raise PydanticCustomError("wrong_type", "Input should be text, an object or a list")


Text = Annotated[str | None, "text"]
Value = Annotated[Any, "value"]
Object = Annotated[dict[str, Any] | None, "value"]
ForeignId = Annotated[str, Field(min_length=1, max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RetryPolicy(_Strict):
    """`max_attempts` includes the first; a delay is a minimum; exponential doubles it after each attempt."""

    max_attempts: int = Field(default=1, ge=1, le=100)
    retry_delay_seconds: float = Field(default=0.0, ge=0, le=86_400)
    backoff: Literal["fixed", "exponential"] = "fixed"
    jitter: bool = False


class NodeConfig(_Strict):
    """What every node type understands. A subclass says its kind and, if it has a step, the step's kind.

    Fields annotated "text", "value" or "expression" are compiled; those of effects, waits and children are
    together the node's `input_value`.
    """

    kind: ClassVar[NodeKind] = "pure"
    step_kind: ClassVar[str | None] = None

    retry_policy: RetryPolicy | None = None
    timeout_seconds: Seconds | None = None
    delay_seconds: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    allow_loop: bool = False
    max_iterations: int = Field(default=10, ge=1, le=100_000)
    compensation_node_id: str | None = None
    on_error: Literal["fail", "continue", "default"] = "fail"
    default_output: dict[str, Any] | None = None


class InputSpec(_Strict):
    type: Literal["any", "string", "number", "integer", "boolean", "object", "array"] = "any"
    required: bool = False
    default: Any = None
    description: str | None = None


class Start(NodeConfig):
    inputs: dict[str, InputSpec] = {}


class End(NodeConfig):
    outputs: Object = None


class Answer(NodeConfig):
    template: Text = None
    text: Text = None


class Assigner(NodeConfig):
    assignments: Annotated[dict[str, Any], "value"]


class Case(_Strict):
    id: str = Field(min_length=1, max_length=128)
    expression: str


class IfElse(NodeConfig):
    """Its route is "true" or "false", or the id of the first case that holds, else NO_CASE."""

    expression: Annotated[str | None, "expression"] = None
    cases: list[Case] | None = Field(default=None, min_length=1, max_length=100)


class TemplateTransform(NodeConfig):
    template: Annotated[Any, BeforeValidator(_json_template)]


class Join(NodeConfig):
    join_policy: Literal["all_completed", "any_completed", "n_completed"] = "all_completed"
    n: int | None = None


class Message(_Strict):
    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Any
    name: str | None = None


class Llm(NodeConfig):
    kind = "effect"
    step_kind = "model"

    model: str | None = Field(default=None, min_length=1, max_length=256)
    system_prompt: Text = None
    prompt: Text = None
    messages: Annotated[list[Message] | None, Field(min_length=1, max_length=1_000), "value"] = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    response_format: dict[str, Any] | None = None


class Tool(NodeConfig):
    kind = "effect"
    step_kind = "tool"

    tool_binding_id: ForeignId | None = None
    query: Object = None
    body: Value = None
    headers: Object = None
    path: Text = None
    url: Text = None
    base_url: Text = None
    fail_on_status: bool = True


class Code(NodeConfig):
    kind = "effect"
    step_kind = "code"

    language: Literal["python"] = "python"
    code: str = Field(min_length=1)
    input_json: Value = None


class Document(_Strict):
    id: str | None = None
    title: str | None = None
    text: str
    metadata: dict[str, Any] | None = None


class KnowledgeRetrieval(NodeConfig):
    kind = "effect"
    step_kind = "retrieval"

    documents: list[Document] | None = None
    knowledge_base_id: ForeignId | None = None
    source_url: Text = None
    filters_json: Object = None
    query: Text = None
    query_template: Text = None
    top_k: int = Field(default=3, ge=1, le=100)


class Human(NodeConfig):
    """A task for somebody; `timeout_seconds` is the task's, and none is ever due without."""

    kind = "wait"

    task_type: TaskType = "approval"
    title: Text = None
    description: Text = None
    assigned_to: Text = None
    request_payload_json: Value = None
    require_claim: bool = False
    require_hash: bool = False
    four_eyes: bool = False
    on_timeout: Literal["fail", "default", "escalate"] = "fail"
    escalate_to: Text = None


class HumanInput(Human):
    task_type: TaskType = "input"


class HumanTakeover(Human):
    task_type: TaskType = "takeover"


class Agent(NodeConfig):
    kind = "child"

    agent_id: ForeignId | None = None
    agent_version_id: ForeignId | None = None
    session_id: Text = None
    input_text: Text = None
    inputs: Object = None


class Team(NodeConfig):
    kind = "child"

    team_id: ForeignId | None = None
    team_version_id: ForeignId | None = None
    session_id: Text = None
    input_text: Text = None
    inputs: Object = None


class Workflow(NodeConfig):
    kind = "child"

    workflow_id: ForeignId | None = None
    workflow_version_id: ForeignId | None = None
    inputs: Object = None


NODE_TYPES: Final[Mapping[str, type[NodeConfig]]] = {
    "start": Start,
    "end": End,
    "answer": Answer,
    "assigner": Assigner,
    "if-else": IfElse,
    "template-transform": TemplateTransform,
    "join": Join,
    "llm": Llm,
    "tool": Tool,
    "code": Code,
    "knowledge-retrieval": KnowledgeRetrieval,
    "human": Human,
    "approval": Human,
    "human-input": HumanInput,
    "human-takeover": HumanTakeover,
    "agent": Agent,
    "team": Team,
    "workflow": Workflow,
}
ALIASES: Final[Mapping[str, str]] = {"condition": "if-else", "retriever": "knowledge-retrieval"}

FOREIGN_IDS: Final = (
    "tool_binding_id", "knowledge_base_id", "agent_id", "agent_version_id", "team_id", "team_version_id",
    "workflow_id", "workflow_version_id",
)  # fmt: skip
"""Config fields that name another aggregate: opaque here, resolved when used."""


def canonical_type(name: str) -> str:
    return ALIASES.get(name, name)


_OUTPUTS: Final[Mapping[type[NodeConfig], tuple[str, ...]]] = {
    Answer: ("text",),
    Assigner: ("state_updates",),
    IfElse: ("condition_result", "route"),
    Join: (),
    Code: ("result_json",),
    **dict.fromkeys(
        (Human, HumanInput, HumanTakeover),
        ("task_id", "status", "approved", "response_payload_json", "completed_by", "late_seconds"),
    ),
}


def output_names(config: type[NodeConfig], raw: Mapping[str, Any]) -> frozenset[str] | None:
    """What may stand in `nodes.<id>.output` of such a node; None if that is only known when it has run."""
    default = raw.get("default_output")
    if raw.get("on_timeout") == "default":
        return None
    if config is End:
        outputs = raw.get("outputs")
        names = frozenset(outputs if isinstance(outputs, dict) else ())
    elif config is TemplateTransform:
        names = _transformed(raw.get("template"))
    elif config in _OUTPUTS:
        names = frozenset(_OUTPUTS[config])
    else:
        return None
    return names.union(default) if raw.get("on_error") == "default" and isinstance(default, dict) else names


def _transformed(template: Any) -> frozenset[str]:
    """Text that begins like JSON may turn out to be none."""
    if not isinstance(template, str):
        return frozenset({"json"})
    return frozenset({"text", "json"} if template.lstrip()[:1] in ("{", "[") else {"text"})


def labels(config: type[NodeConfig], raw: Mapping[str, Any]) -> list[str]:
    """What an edge out of such a node may bear."""
    if issubclass(config, Human):
        return [*VERDICTS, FAILED]
    if config is not IfElse:
        return [FAILED]
    cases = raw.get("cases")
    if not isinstance(cases, list):
        return ["true", "false", FAILED]
    names = (case.get("id") for case in cases if isinstance(case, dict))
    return [*(name for name in names if isinstance(name, str)), NO_CASE, FAILED]


@cache
def compiled_fields(config: type[NodeConfig]) -> tuple[tuple[str, Compiled], ...]:
    """The fields that hold templates or expressions, in the order of the model."""
    return tuple(
        (name, mark)
        for name, model_field in config.model_fields.items()
        for mark in model_field.metadata
        if mark in ("text", "value", "expression")
    )


@cache
def field_names(config: type[NodeConfig]) -> Mapping[str, str]:
    """Every accepted name of a field: its own, and its `…_json` form (or the form without)."""
    names: dict[str, str] = {}
    for name in config.model_fields:
        names[name.removesuffix("_json") if name.endswith("_json") else f"{name}_json"] = name
    if "inputs" in config.model_fields:
        names["input_json"] = "inputs"
    return names | {name: name for name in config.model_fields}


@cache
def part_type(config: type[NodeConfig], name: str) -> type[BaseModel] | None:
    """The model of what a field holds: itself, its items or its members."""
    found = config.model_fields.get(name)
    return None if found is None else _model_in(found.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for each in get_args(annotation) if (model := _model_in(each))), None)


Finding = tuple[str, str, str]  # Field ("" for the config itself), code, detail.

_ONE_OF: Final[Mapping[type[NodeConfig], tuple[tuple[str, ...], ...]]] = {
    Answer: (("template", "text"),),
    IfElse: (("expression", "cases"),),
    Llm: (("prompt", "messages"),),
    KnowledgeRetrieval: (("documents", "knowledge_base_id", "source_url"), ("query", "query_template")),
}
_ANY_OF: Final[Mapping[type[NodeConfig], tuple[str, ...]]] = {
    Agent: ("agent_id", "agent_version_id"),
    Team: ("team_id", "team_version_id"),
    Workflow: ("workflow_id", "workflow_version_id"),
}


def cross_check(config: type[NodeConfig], raw: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong between the fields of a config, whether or not each alone is right."""
    given = {name for name, value in raw.items() if value is not None}
    for choice in _ONE_OF.get(config, ()):
        chosen = [name for name in choice if name in given]
        if not chosen:
            yield "", "missing_field", f"one of {', '.join(choice)} is required"
        for name in chosen[1:]:
            yield name, "conflicting_fields", f"only one of {', '.join(choice)} may be given"
    needed = _ANY_OF.get(config, ())
    if needed and given.isdisjoint(needed):
        yield "", "missing_field", f"one of {', '.join(needed)} is required"
    yield from _default_output(raw, given)
    if config is Join:
        yield from _join(raw, given)
    if config is IfElse:
        yield from _cases(raw)
    if issubclass(config, Human):
        yield from _time_out(raw, given)
    if config is Start:
        yield from _input_defaults(raw)


def _default_output(raw: Mapping[str, Any], given: set[str]) -> Iterator[Finding]:
    needed = raw.get("on_error") == "default" or raw.get("on_timeout") == "default"
    if needed and "default_output" not in given:
        yield "", "default_output_missing", "'default' requires default_output"


def _time_out(raw: Mapping[str, Any], given: set[str]) -> Iterator[Finding]:
    on_timeout = raw.get("on_timeout")
    if on_timeout == "escalate" and "escalate_to" not in given:
        yield "", "missing_field", "on_timeout 'escalate' requires escalate_to"
    if on_timeout in ("escalate", "default") and "timeout_seconds" not in given:
        yield "on_timeout", "timeout_missing", f"on_timeout {on_timeout!r} requires timeout_seconds"


def _join(raw: Mapping[str, Any], given: set[str]) -> Iterator[Finding]:
    if raw.get("join_policy") == "n_completed" and "n" not in given:
        yield "", "join_n_missing", "join_policy 'n_completed' requires n"


def _cases(raw: Mapping[str, Any]) -> Iterator[Finding]:
    cases = raw.get("cases")
    seen: set[str] = set()
    for at, case in enumerate(cases if isinstance(cases, list) else ()):
        name = case.get("id") if isinstance(case, dict) else None
        if not isinstance(name, str):
            continue
        if name in seen:
            yield f"cases/{at}/id", "duplicate_case_id", f"case {name[:64]!r} exists already"
        if name in (FAILED, NO_CASE):
            yield f"cases/{at}/id", "reserved_case_id", f"{name!r} is a label with a meaning of its own"
        seen.add(name)


_INPUT_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def is_of_type(value: Any, name: str) -> bool:
    """Whether a JSON value is of the type that an InputSpec names; an integer may be written 1.0."""
    kinds = _INPUT_TYPES.get(name)
    if kinds is None:
        return True
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, kinds) and (name == "boolean" or not isinstance(value, bool))


def _input_defaults(raw: Mapping[str, Any]) -> Iterator[Finding]:
    inputs = raw.get("inputs")
    for name, spec in inputs.items() if isinstance(inputs, dict) else ():
        if not isinstance(spec, dict) or not isinstance(spec.get("type", "any"), str):
            continue
        default = spec.get("default")
        if default is not None and not is_of_type(default, spec.get("type", "any")):
            where = name.replace("~", "~0").replace("/", "~1")
            yield (
                f"inputs/{where}/default",
                "default_wrong_type",
                f"the default is not of type {spec['type']}",
            )
