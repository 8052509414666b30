"""What a request's body may hold: a command's fields less what the path and the route say, or a model of its own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from gateway.http.problems import Problem
from projections.views import View
from schemas.examples import Example, example_of
from schemas.messages import Command, ForeignId, JsonObject
from schemas.problems import FieldError, pointer_of
from schemas.registry import PROBLEMS_MAX

Words = Mapping[str, str | tuple[str, ...]]
"""Fields that the API calls otherwise: its word or words, the one that is documented first."""
TENANT = "tenant_id"
NAME_CHARACTERS_MAX = 128
"""Of an unknown field's name, when the nearest one is looked for."""


class Body(BaseModel):
    """A body that is no command's. `tenant_id` is checked against the caller and dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tenant_id: ForeignId | None = None

    any_tenant: ClassVar[bool] = False
    """With no tenant named it is a call for all of them (only possible with authentication off)."""


C = TypeVar("C", bound=Command)
B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class CommandBody(Generic[C]):
    """A command as a request gives it: the ids of its path, what the route fixes, and for the rest its body.

    `words` hold for the path's names too. `defaults` stand where the body leaves a field out. `parent`: the field that
    the row of the object in the path gives, if the path itself does not. `owners`: fields that name an object of ours,
    whose tenant holds if no tenant is named. Raises TypeError for a name that is no field of the command.
    """

    command: type[C]
    path: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[str, View[Any]] = field(default_factory=dict)
    parent: str | None = None
    accepted: Mapping[str, str] = field(init=False)
    """The field of each word that the body may have."""
    from_path: Mapping[str, str] = field(init=False)
    any_tenant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        fields = self.command.model_fields
        unknown = [*self.fixed, *self.words, *self.defaults, *self.owners]
        wrong = [name for name in unknown if name not in fields]
        by_word = {word: name for name in fields for word in self._words(name)}
        from_path = {word: by_word.get(word, "") for word in self.path}
        wrong += [word for word, name in from_path.items() if not name]
        if wrong:
            raise TypeError(f"{self.command.__name__} has no {', '.join(wrong)}")
        if self.parent in from_path.values():
            object.__setattr__(self, "parent", None)
        given = {"type", self.parent, *self.fixed, *from_path.values()}
        accepted = {word: name for word, name in by_word.items() if name not in given}
        object.__setattr__(self, "from_path", from_path)
        object.__setattr__(self, "accepted", accepted)

    def _words(self, name: str) -> tuple[str, ...]:
        words = self.words.get(name, name)
        return (words,) if isinstance(words, str) else words

    def read(self, value: Any, ids: Mapping[str, str], parent_id: str | None) -> C:
        """The command that the body and the path's ids make. Raises Problem 422 that names each field."""
        body = _object(value)
        given, errors = self._given(body)
        errors += _tenant_errors(body)
        given |= {name: ids[word] for word, name in self.from_path.items()}
        if self.parent is not None:
            given[self.parent] = parent_id
        try:
            command = self.command.model_validate({**self.defaults, **given, **self.fixed})
        except pydantic.ValidationError as error:
            raise invalid([*self._described(error, body), *errors]) from None
        if errors:
            raise invalid(errors)
        return command

    def owner(self, command: C) -> Iterable[tuple[View[Any], str]]:
        """The objects that a command names, the first one first."""
        for name, view in self.owners.items():
            id = getattr(command, name)
            if id is not None:
                yield view, id

    def _given(self, body: JsonObject) -> tuple[JsonObject, list[FieldError]]:
        given: JsonObject = {}
        errors: list[FieldError] = []
        for word, value in body.items():
            name = self.accepted.get(word)
            if name is None:
                if word != TENANT:
                    errors.append(unknown_field((word,), [*self.accepted, TENANT]))
            elif name in given:
                detail = f"the same as {next(each for each in body if self.accepted.get(each) == name)!r}"
                errors.append({"pointer": pointer_of(word), "code": "given_twice", "detail": detail})
            else:
                given[name] = value
        return given, errors

    def _described(self, error: pydantic.ValidationError, body: JsonObject) -> list[FieldError]:
        """What is wrong with the command, under the words that the sender used."""
        sent = {name: word for word, name in self.accepted.items() if word in body}
        words = {name: sent.get(name, self._words(name)[0]) for name in self.accepted.values()}
        return described(self.command, error, words)

    def is_required(self) -> bool:
        return any(self._is_required(name) for name in self.accepted.values())

    def _is_required(self, name: str) -> bool:
        return self.command.model_fields[name].is_required() and name not in self.defaults

    def schema(self, ref_template: str) -> JsonObject:
        """JSON Schema of the body; `$defs` holds what it refers to."""
        of_command = self.command.model_json_schema(ref_template=ref_template)
        properties: JsonObject = {TENANT: Body.model_json_schema()["properties"][TENANT]}
        required = []
        for name in dict.fromkeys(self.accepted.values()):
            first, *others = self._words(name)
            properties[first] = dict(of_command["properties"][name])
            if name in self.defaults:
                properties[first]["default"] = self.defaults[name]
            if others:
                properties[first]["description"] = f"Also taken as {', '.join(others)}"
            if self._is_required(name):
                required.append(first)
        schema: JsonObject = {"type": "object", "additionalProperties": False, "properties": properties}
        if required:
            schema["required"] = required
        return schema | {"$defs": of_command.get("$defs", {})}

    def example(self) -> JsonObject:
        """Fields that must be given, and those that bear an example. Raises LookupError for one that lacks it."""
        fields = {self._words(name)[0]: self.command.model_fields[name] for name in self.accepted.values()}
        return {word: example_of_field(each) for word, each in fields.items() if _is_shown(each)}


@dataclass(frozen=True, slots=True)
class ModelBody(Generic[B]):
    """A body with a model of its own."""

    model: type[B]
    parent: ClassVar[None] = None

    @property
    def any_tenant(self) -> bool:
        return self.model.any_tenant

    def read(self, value: Any, ids: Mapping[str, str], parent_id: str | None) -> B:
        """Raises Problem 422 that names each field."""
        try:
            return self.model.model_validate(_object(value))
        except pydantic.ValidationError as error:
            raise invalid(described(self.model, error)) from None

    def owner(self, body: B) -> Iterable[tuple[View[Any], str]]:
        return ()

    def is_required(self) -> bool:
        return any(each.is_required() for each in self.model.model_fields.values())

    def schema(self, ref_template: str) -> JsonObject:
        schema = self.model.model_json_schema(ref_template=ref_template)
        schema.pop("title")
        return {"$defs": {}} | schema

    def example(self) -> JsonObject:
        fields = self.model.model_fields.items()
        return {name: example_of_field(each) for name, each in fields if _is_shown(each)}


def described(
    model: type[BaseModel], error: pydantic.ValidationError, words: Mapping[str, str] | None = None
) -> list[FieldError]:
    """The first PROBLEMS_MAX things that are wrong; `words`: what the API calls fields of the model."""
    described: list[FieldError] = []
    for found in error.errors(include_url=False, include_context=False, include_input=False)[:PROBLEMS_MAX]:
        place = found["loc"]
        if words and place:
            place = (words.get(str(place[0]), place[0]), *place[1:])
        if found["type"] == "extra_forbidden":
            described.append(unknown_field(place, _fields_at(model, found["loc"][:-1])))
        else:
            described.append({"pointer": pointer_of(*place), "code": found["type"], "detail": found["msg"]})
    return described


def unknown_field(place: Sequence[str | int], known: Iterable[str]) -> FieldError:
    nearest = difflib.get_close_matches(str(place[-1])[:NAME_CHARACTERS_MAX], list(known), 1)
    detail = f"there is no such field; did you mean {nearest[0]!r}?" if nearest else "there is no such field"
    return {"pointer": pointer_of(*place), "code": "extra_forbidden", "detail": detail}


def invalid(errors: Sequence[FieldError]) -> Problem:
    first = errors[0]
    return Problem(422, "invalid_request", f"{first['pointer'] or '/'}: {first['detail']}", errors=errors)


def _object(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise invalid([{"pointer": "", "code": "model_type", "detail": "the body must be a JSON object"}])
    return value


def _tenant_errors(body: JsonObject) -> list[FieldError]:
    try:
        Body.model_validate({name: body[name] for name in (TENANT,) if name in body})
    except pydantic.ValidationError as error:
        return described(Body, error)
    return []


def _fields_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The names of the fields that an object in a model may have."""
    at: Any = model
    for step in place:
        fields = getattr(at, "model_fields", {})
        if step not in fields:
            return []
        annotation = fields[step].annotation
        parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        at = next((part for part in parts if hasattr(part, "model_fields")), None)
    return list(getattr(at, "model_fields", ()))


def _is_shown(each: FieldInfo) -> bool:
    return each.is_required() or any(isinstance(found, Example) for found in each.metadata)


def example_of_field(each: FieldInfo) -> Any:
    return example_of(each.annotation, reversed(each.metadata))
