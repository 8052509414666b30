"""One request on its way through: its ids, who it was found to be, its body within limits."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import Problem
from schemas import values
from schemas.envelope import Malformed
from schemas.problems import FieldError

log = logging.getLogger("agent_platform.gateway")

_REQUEST_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")
_TRACEPARENT = re.compile(rb"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)*json", re.IGNORECASE | re.ASCII)
PATH_CHARACTERS_MAX = 1024
CLIENT_LEFT = 499
"""Audited as this, by custom; nobody is there to be told."""


@dataclass(slots=True)
class Call:
    """What is known about a request so far; `tenant_id` and what follows are filled in as they are found."""

    request_id: str
    traceparent: str
    method: str
    path: str
    started: float
    route: str = ""
    tenant_id: str = ""
    api_key_id: str | None = None
    user_id: str | None = None
    status: int = 500

    def milliseconds(self) -> float:
        return (perf_counter() - self.started) * 1000


def call_of(request: Request) -> Call:
    call = request.scope["call"]
    assert isinstance(call, Call)  # Set by the middleware below for every request.
    return call


class CallMiddleware:
    """Gives each request its Call, answers what nobody caught, hands each finished one to `finished`."""

    def __init__(self, app: ASGIApp, finished: Callable[[Call], None]) -> None:
        self._app = app
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _begin(scope)
        scope["call"] = call
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                call.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", call.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            call.status = CLIENT_LEFT
        except Exception:
            log.exception("request %s failed", call.request_id)
            if begun:
                raise
            problem = Problem(500, "internal_error", "the request failed; the log has the reason")
            await problem.response(call.request_id)(scope, receive, answer)
        finally:
            self._finished(call)


def _begin(scope: Scope) -> Call:
    request_id = traceparent = b""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id = value
        elif name == b"traceparent":
            traceparent = value
    if not _REQUEST_ID.match(request_id):
        request_id = str(uuid4()).encode()
    if not _TRACEPARENT.match(traceparent):
        traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01".encode()
    # As it came, percent-encoded: decoded it may hold what Postgres cannot store.
    path = scope.get("raw_path") or scope["path"].encode("ascii", "replace")
    return Call(
        request_id=request_id.decode(),
        traceparent=traceparent.decode(),
        method=scope["method"],
        path=path.partition(b"?")[0].decode("latin-1")[:PATH_CHARACTERS_MAX],
        started=perf_counter(),
    )


def _announced_as_json(request: Request) -> bool:
    """Whether a media type is given; without a body it may be left out. Raises Problem 415 for any but JSON.

    Parameters are ignored, and `application/…+json` is JSON: a page cannot send either to another host unasked.
    """
    types = request.headers.getlist("content-type")
    if any(not _JSON_TYPE.fullmatch(each.partition(";")[0].strip(" \t")) for each in types) or len(types) > 1:
        raise _not_json()
    codings = ",".join(request.headers.getlist("content-encoding")).lower()
    if any(coding.strip() not in ("", "identity") for coding in codings.split(",")):
        raise Problem(
            415, "unsupported_media_type", "a coded body is not read", headers={"accept-encoding": "identity"}
        )
    return bool(types)


def _not_json() -> Problem:
    return Problem(415, "unsupported_media_type", "a body must come with Content-Type: application/json")


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The request's body, which is JSON. Raises Problem 415, and 413 as soon as it is longer than `bytes_max`."""
    announced = _announced_as_json(request)
    declared = request.headers.get("content-length")
    if declared is not None and declared.isascii() and declared.isdigit() and int(declared) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if chunk and not announced:
            raise _not_json()
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(bytes_max: int) -> Problem:
    # The rest is not read, so the connection cannot be used again.
    return Problem(413, "body_too_large", f"a body may have {bytes_max} bytes at most", headers={"connection": "close"})


_OUT_OF_RANGE = (
    ("surrogate in string", "lone_surrogate", "lone surrogates cannot be stored"),
    ("depth limit", "too_deep", f"nested deeper than {values.DEPTH_MAX}"),
    ("is infinity", "not_a_number", "a number is out of range"),
)
"""JSON by RFC 8259 that orjson refuses: well formed, so 422 and not 400."""


def parse_json(body: bytes) -> Any:
    """The JSON value of a body; an empty body is an empty object. Raises Problem 400 or 422."""
    if not body:
        return {}
    try:
        value = values.parse(body)
    except values.InvalidValue as error:
        raise Problem(422, error.code, error.detail, errors=error.errors) from None
    except Malformed as error:
        for sign, code, detail in _OUT_OF_RANGE:
            if sign in error.detail:
                found: FieldError = {"pointer": "", "code": code, "detail": detail}
                raise Problem(422, code, detail, errors=(found,)) from None
        raise Problem(400, error.code, f"the body is not JSON: {error.detail}") from None
    json.loads(body, object_pairs_hook=_once, parse_int=str, parse_float=str)  # 5000 digits are no int.
    return value


def _once(members: list[tuple[str, Any]]) -> None:
    """Refuse an object that names a key twice: one of the values would win silently."""
    names = {name for name, _ in members}
    if len(names) < len(members):
        raise Problem(400, "duplicate_key", "an object of the body names a key more than once")
