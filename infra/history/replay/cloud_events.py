"""A record as a CloudEvent in structured JSON (CloudEvents 1.0.2, JSON Event Format), whatever it holds."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import orjson

from infra.escaping import escaped_json
from schemas.envelope import SOURCE
from schemas.messages import JsonObject

JSON = "application/json"
_FIRST = ("specversion", "id", "source", "type", "subject", "time")
_KEPT_HEADERS = ("traceparent", "tracestate")


def cloud_event(headers: Iterable[tuple[str, bytes | None]], body: bytes | None, place: str) -> JsonObject:
    """The event that a record in binary mode is. `place` names it where its headers do not.

    A body that is no JSON comes as `data_base64`.
    """
    attributes: dict[str, str] = {}
    for name, value in headers:
        text = (value or b"").decode("utf-8", "replace")
        if name.startswith("ce_") and text:
            attributes.setdefault(name.removeprefix("ce_"), text)
        elif name in _KEPT_HEADERS and text:
            attributes.setdefault(name, text)
        elif name == "content-type" and text:
            attributes.setdefault("datacontenttype", text)
    attributes = {"specversion": "1.0", "id": place, "source": SOURCE, "type": "unknown"} | attributes
    event: JsonObject = {name: attributes.pop(name) for name in _FIRST if name in attributes}
    event |= {"datacontenttype": JSON} | dict(sorted(attributes.items()))
    return event | _data(body)


def _data(body: bytes | None) -> JsonObject:
    if not body:
        return {}
    try:
        return {"data": orjson.loads(body)}
    except orjson.JSONDecodeError:
        return {"data_base64": base64.b64encode(body).decode()}


def line(event: Any) -> bytes:
    """One line of JSON that can also be shown: see infra.escaping."""
    return escaped_json(event).encode() + b"\n"
