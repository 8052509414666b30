"""Examples that types bear: what a field's value may look like in the API's reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict


@dataclass(frozen=True, slots=True)
class Example:
    """In `Annotated`: a value as it may come. Validation and JSON Schema pass it over."""

    value: Any


def example_of(annotation: Any, metadata: Iterable[Any] = ()) -> Any:
    """The nearest example in a type: its own, a choice's first value, null where that is allowed.

    Raises LookupError for a type that bears none.
    """
    for each in metadata:
        if isinstance(each, Example):
            return each.value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        # What stands outermost was added last.
        return example_of(arguments[0], reversed(arguments[1:]))
    if origin in (Required, NotRequired):
        return example_of(arguments[0])
    if origin is Literal:
        return arguments[0]
    if origin in (Union, UnionType):
        return None if NoneType in arguments else example_of(arguments[0])
    if is_typeddict(annotation):
        return example_of_shape(annotation)
    if origin in (list, tuple):
        return []
    raise LookupError(f"{annotation} bears no Example")


def example_of_shape(shape: type[Any]) -> dict[str, Any]:
    """An object of a typed dictionary. Raises LookupError for a field without an example."""
    try:
        return {name: example_of(field) for name, field in get_type_hints(shape, include_extras=True).items()}
    except LookupError as error:
        raise LookupError(f"{shape.__name__}: {error}") from None
