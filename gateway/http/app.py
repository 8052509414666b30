"""The FastAPI application: routes, documents, and what every answer has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.access_rules import credential_checked
from gateway.http.call import CallMiddleware, call_of
from gateway.http.commands import json_response
from gateway.http.openapi import TITLE, openapi_document
from gateway.http.origins import OriginMiddleware, hosts_of
from gateway.http.ports import DatabaseUnavailable
from gateway.http.problems import Problem, unavailable
from gateway.http.routing import Route, add_routes, check_permissions
from gateway.http.state import Gateway
from gateway.routes import ROUTES

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(gateway: Gateway, routes: Sequence[Route] = ROUTES) -> FastAPI:
    """The application. Raises ValueError for a route without permission or a rule that cannot be kept."""
    check_permissions(routes)
    if gateway.settings.authz_required:
        raise ValueError("AGENT_PLATFORM_AUTHZ_REQUIRED needs users and roles, which this version does not have")
    app = FastAPI(title=TITLE, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    add_routes(app, gateway, routes)
    _add_documents(app, gateway, openapi_document(routes))
    app.add_middleware(OriginMiddleware, hosts=hosts_of(gateway.settings.gateway_host, gateway.settings))
    app.add_middleware(CallMiddleware, finished=gateway.audit.note)
    app.add_exception_handler(HTTPException, _refused)
    return app


def _add_documents(app: FastAPI, gateway: Gateway, document: dict[str, Any]) -> None:
    """/openapi.json for whoever may call at all; /docs only without authentication, as on one's own machine."""
    app.openapi = lambda: document  # type: ignore[method-assign]

    async def openapi(request: Request) -> Response:
        try:
            await credential_checked(gateway, request)
        except Problem as problem:
            return problem.response(call_of(request).request_id)
        except DatabaseUnavailable:
            return unavailable("postgres").response(call_of(request).request_id)
        return json_response(document)

    app.add_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    if not gateway.settings.auth_required:

        async def docs(request: Request) -> Response:
            return get_swagger_ui_html(openapi_url="/openapi.json", title=TITLE)

        app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)


async def _refused(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses: an unknown path, a method that a path does not have."""
    if not isinstance(error, HTTPException):
        raise TypeError(type(error).__name__) from error
    code = _CODES.get(error.status_code, "refused")
    problem = Problem(error.status_code, code, str(error.detail), headers=error.headers)
    return problem.response(call_of(request).request_id)
