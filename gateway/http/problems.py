"""Refusals as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from schemas.messages import JsonObject

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1


class Problem(Exception):
    """A request that cannot be answered as asked; becomes the response."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[JsonObject] = (),
        headers: Mapping[str, str] | None = None,
        command_id: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.command_id = command_id
        self.extra = dict(extra or {})

    def body(self, request_id: str) -> JsonObject:
        body: JsonObject = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.command_id is not None:
            body["command_id"] = self.command_id
        if self.errors:
            body["errors"] = list(self.errors)
        return self.extra | body

    def response(self, request_id: str) -> Response:
        return Response(orjson.dumps(self.body(request_id)), self.status, headers=self.headers, media_type=MEDIA_TYPE)


def problem_of(body: Mapping[str, Any], command_id: str | None = None) -> Problem:
    """The problem that a refusal is, as a decider says it; `status` and `code` are there."""
    known = {"code", "detail", "status", "errors"}
    return Problem(
        int(body["status"]),
        str(body["code"]),
        str(body.get("detail", "")),
        errors=body.get("errors", ()),
        command_id=command_id,
        extra={name: value for name, value in body.items() if name not in known},
    )


def not_found(what: str = "resource") -> Problem:
    """The same answer whether it does not exist or is another tenant's."""
    return Problem(404, "not_found", f"no such {what}")


def invalid_field(pointer: str, code: str, detail: str) -> Problem:
    error = {"pointer": pointer, "code": code, "detail": detail}
    return Problem(422, "invalid_request", f"{pointer}: {detail}", errors=(error,))


def unavailable(what: str, command_id: str | None = None) -> Problem:
    """`command_id`: producing had begun, so the command may have been taken or not."""
    if command_id is None:
        detail = f"{what} does not answer; nothing was done"
    else:
        detail = f"{what} does not answer: the command may have been taken or not; ask for its outcome, "
        detail += "or retry with the same Idempotency-Key"
    return Problem(
        503,
        f"{what}_unavailable",
        detail,
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
        command_id=command_id,
    )
