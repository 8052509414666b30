"""All routes of the gateway."""

from __future__ import annotations

from gateway import api_keys, catalog, human, platform, runtime
from gateway.http.routing import Route

ROUTES: tuple[Route, ...] = (
    *runtime.ROUTES,
    *catalog.ROUTES,
    *human.ROUTES,
    *platform.ROUTES,
    *api_keys.ROUTES,
)
