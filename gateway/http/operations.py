"""What OpenAPI calls a route: its operation's id, its summary, the name and the shape of what it shows."""

from __future__ import annotations

import re
from typing import Any

from gateway.http.routing import Action, Listing, Query, Read, Route, Write
from projections.views import View

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")
_ACRONYMS = {"api": "API"}


def operation_id(route: Route) -> str:
    """Such as `cancelRun`, `listRuns`: made of the command's or the function's name, and of what is shown."""
    if route.operation:
        return route.operation
    match route:
        case Read():
            return f"get{shown_name(route)}"
        case Listing():
            return f"list{shown_name(route)}s"
        case Write():
            return _camel(_of_command(route))
        case Action() | Query():
            return _camel(route.run.__name__.title().replace("_", ""))


def _of_command(route: Write[Any]) -> str:
    """The command's name; what it calls `Version` is named in full, as it is shown."""
    name, shown = route.command.__name__, shown_name(route)
    verb, *nouns = _WORD.findall(name)
    return verb + shown if shown.endswith("".join(nouns)) else name


def summary(route: Route) -> str:
    """The operation's id as a phrase: `Publish workflow version`."""
    words = [word.lower() for word in _WORD.findall(pascal(operation_id(route)))]
    phrase = " ".join(_ACRONYMS.get(word, word) for word in words)
    return phrase[:1].upper() + phrase[1:]


def description(route: Route) -> str | None:
    """What a function says of itself, in one paragraph."""
    if not isinstance(route, Action | Query) or not route.run.__doc__:
        return None
    return " ".join(route.run.__doc__.split("\n\n")[0].split())


def shape_of(route: Route) -> type[Any]:
    match route:
        case Write() | Read():
            return route.view.shape
        case Listing():
            return route.rows.view.shape
        case Action() | Query():
            return route.shows.shape if isinstance(route.shows, View) else route.shows


def shown_name(route: Route) -> str:
    """The component that describes one thing shown."""
    return shape_of(route).__name__.removesuffix("View")


def body_name(route: Write[Any] | Action[Any]) -> str:
    """The component that describes the body."""
    return pascal(operation_id(route))


def pascal(name: str) -> str:
    return name[:1].upper() + name[1:]


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]
