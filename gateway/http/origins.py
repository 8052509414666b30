"""Which hosts a gateway goes by, and pages of which hosts may call it: no others, where it listens for one machine.

A browser sends what any page asks it to, to this machine too; and a page whose own name is made to point here counts
as ours to the browser. `Host`, `Origin` and `Sec-Fetch-Site` are what pages cannot forge.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.call import Call
from gateway.http.problems import Problem
from infra.settings import Settings, is_loopback, setting_name

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://([^/?#]*)")
_REFERER = re.compile(r"https?://([^/?#]*)(?:[/?#].*)?")
_LOOPBACK_4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_6 = ipaddress.IPv6Address("::1")

Headers = Iterable[tuple[bytes, bytes]]


class Hosts:
    """Names of this machine, and those given: exact ones, and `*.example.com` for all below; at any port."""

    def __init__(self, names: Iterable[str]) -> None:
        given = [name for name in names if name]
        self._exact = frozenset(_canonical(name) for name in given if not name.startswith("*."))
        self._below = tuple(name.removeprefix("*") for name in given if name.startswith("*."))

    def knows(self, authority: str) -> bool:
        """Whether `host[:port]` is one of them. Whatever is not spelt like one is not."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = _canonical(match[1].lower().removesuffix("."))
        if not all(name.split(".")):
            return False
        return name in self._exact or name.endswith(self._below) or _is_this_machine(name)


def hosts_of(bind: str, settings: Settings) -> Hosts | None:
    """Who may be asked for at this address; None: anybody, since it is no loopback address and no host is named."""
    if not settings.allowed_hosts and not is_loopback(bind):
        return None
    return Hosts(settings.allowed_hosts.split(","))


def refusal(hosts: Hosts | None, headers: Headers, *, http_version: str = "1.1", target: str = "") -> Problem | None:
    """Why a request with these headers is not answered. `target`: the authority of an absolute request target."""
    found: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"referer": [], b"sec-fetch-site": []}
    for name, value in headers:
        if name in found:
            found[name].append(value.decode("latin-1"))
    named = found[b"host"]
    if len(named) > 1 or (not named and http_version != "1.0"):
        return Problem(400, "malformed_host", "a request has one Host header")
    if hosts is None:
        return None
    if not all(map(hosts.knows, [*(named or [""]), *([target] if target else [])])):
        return _refused("host", "this gateway does not go by the host that the request names")
    if not _from_known_page(hosts, found[b"origin"], found[b"referer"], found[b"sec-fetch-site"]):
        return _refused("origin", "the request comes from a web page of another host")
    return None


def _from_known_page(hosts: Hosts, origins: Sequence[str], referers: Sequence[str], sites: Sequence[str]) -> bool:
    """Whether it comes from no page, or from one of these hosts. What loads an image sends no Origin."""
    if origins:
        return all(_names(hosts, _ORIGIN, origin) for origin in origins)
    if any(site.strip().lower() == "cross-site" for site in sites):
        return bool(referers) and all(_names(hosts, _REFERER, referer) for referer in referers)
    return True


def _names(hosts: Hosts, form: re.Pattern[str], url: str) -> bool:
    match = form.fullmatch(url)
    return match is not None and hosts.knows(match[1])


def _refused(what: str, detail: str) -> Problem:
    return Problem(403, f"{what}_not_allowed", f"{detail}; {setting_name('allowed_hosts')} names more")


def _canonical(name: str) -> str:
    """An IPv6 address has many spellings."""
    if not name.startswith("["):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]"
    except ValueError:
        return ""


def _is_this_machine(name: str) -> bool:
    """By name or by address. Shortened, octal and hexadecimal addresses are none, nor are mapped ones."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        if name.startswith("["):
            return ipaddress.IPv6Address(name[1:-1]) == _LOOPBACK_6
        return ipaddress.IPv4Address(name) in _LOOPBACK_4
    except ValueError:
        return False


class OriginMiddleware:
    """Answers what `refusal` refuses, whatever the path, before anything else looks at it."""

    def __init__(self, app: ASGIApp, hosts: Hosts | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            version, target = scope.get("http_version", "1.1"), scope.get("target", "")
            problem = refusal(self._hosts, scope["headers"], http_version=version, target=target)
            if problem is not None:
                call = scope["call"]
                assert isinstance(call, Call)  # Set by the middleware around this one.
                await problem.response(call.request_id)(scope, receive, send)
                return
        await self._app(scope, receive, send)
