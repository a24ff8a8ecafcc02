"""Routing: ProtocolTypeRouter chooses an application by protocol, URLRouter by path.

Routes are Django's `path`, `re_path` and `include`. Django has to be installed, and need not be
configured.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from django.urls import URLPattern, URLResolver
from django.urls.resolvers import RoutePattern

from ..connection.asgi import Receive, Send
from ..connection.handshake import explain_refusal
from ..connection.refusals import refuse
from ..errors import ConfigurationError
from ..log import LogThrottle, shown
from ..optional_django import script_prefix
from ..sockets import BaseSocketServer
from ..url import BrokerOptions

__all__ = [
    "INNER_ATTRIBUTES",
    "Application",
    "ProtocolTypeRouter",
    "Route",
    "URLRouter",
    "layers",
]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

Scope: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
Pattern: TypeAlias = URLPattern | URLResolver

NOT_FOUND = 404
INNER_ATTRIBUTES = ("app", "inner", "application")


class Route(NamedTuple):
    """The application for a path, and the arguments from the path.

    Attributes:
        rest: the rest of the path, for a router inside `app`.
    """

    app: Application
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: str


class ProtocolTypeRouter:
    """An ASGI application that passes each connection to the application for its protocol.

    "lifespan" needs no entry: start-up completes at once, and shutdown closes the broker. HTTP and
    websocket are refused with 404 if they have no entry. Other protocols without an entry get no
    answer.

    Args:
        application_mapping: `{"http": get_asgi_application(), "websocket": URLRouter([...])}`.
    """

    def __init__(self, application_mapping: Mapping[str, Application]) -> None:
        self.application_mapping = dict(application_mapping)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        application = self.application_mapping.get(kind)
        if application is not None:
            await application(scope, receive, send)
        elif kind == "lifespan":
            await BaseSocketServer.as_asgi(scope, receive, send)
        else:
            await _not_found(scope, receive, send)


class URLRouter:
    """An ASGI application that passes each connection to the application for its path.

    The first route that matches the path is used. If none matches, the path is tried again with the
    trailing slash added or removed. The application finds `{"args": ..., "kwargs": ...}` in
    `scope["url_route"]`. A route may lead to another router, also to one inside middleware that
    has it as its attribute `app`, `inner` or `application`. That router gets the rest of the path,
    and its arguments are appended. A path without a route is refused with 404.

    Args:
        routes: Django's `path(...)`, `re_path(...)` and `include(...)` that lead to ASGI
            applications, such as `path("ws/", MySocket.as_asgi)`.

    Raises:
        ConfigurationError: a route is none of these, or leads to the socket class itself.
    """

    def __init__(self, routes: Sequence[Any]) -> None:
        self.routes: list[Pattern] = list(routes)
        for route in self.routes:
            _check(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path_remaining")
        if path is None:
            path = _own_path(scope)
        route = self.find(path)
        if route is None:
            await _not_found(scope, receive, send)
            return
        outer = scope.get("url_route") or {}
        url_route = {
            "args": (*outer.get("args", ()), *route.args),
            "kwargs": {**outer.get("kwargs", {}), **route.kwargs},
        }
        inner_scope = {**scope, "url_route": url_route, "path_remaining": route.rest}
        await route.app(inner_scope, receive, send)

    def find(self, path: str) -> Route | None:
        """The route of a path, or None.

        Args:
            path: without the leading slash, as in Django's patterns.
        """
        other = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        return _find(self.routes, path) or _find(self.routes, other)


def inner_router(app: object) -> URLRouter | None:
    """The router that an application is, or that its middleware wraps; else None."""
    return next((layer for layer in layers(app) if isinstance(layer, URLRouter)), None)


def layers(app: Any) -> Iterator[Any]:
    """An application, the application that it wraps as middleware does, and so on inwards."""
    for _ in range(32):  # An application may contain itself.
        if app is None:
            return
        yield app
        own = getattr(app, "__dict__", {})
        app = next((own[name] for name in INNER_ATTRIBUTES if name in own), None)


def _find(routes: Sequence[Pattern], path: str) -> Route | None:
    for route in routes:
        if isinstance(route, URLResolver):
            found = _through_include(route, path)
        else:
            found = _at(route, path)
        if found is not None:
            return found
    return None


def _through_include(route: URLResolver, path: str) -> Route | None:
    match = route.pattern.match(path)
    if not match:
        return None
    rest, args, kwargs = match
    inner = _find(route.url_patterns, rest)
    if inner is None:
        return None
    merged = {**kwargs, **route.default_kwargs, **inner.kwargs}
    return inner._replace(args=(*args, *inner.args), kwargs=merged)


def _at(route: URLPattern, path: str) -> Route | None:
    app: Any = route.callback
    router = inner_router(app)
    pattern = route.pattern
    if router is not None and isinstance(pattern, RoutePattern):
        # As with `include`, the pattern matches the beginning of the path.
        pattern = RoutePattern(str(pattern), pattern.name, is_endpoint=False)
    match = pattern.match(path)
    if not match:
        return None
    rest, args, kwargs = match
    if router is not None and router.find(rest) is None:
        return None
    return Route(app, args, {**kwargs, **route.default_args}, rest)


def _check(route: object) -> None:
    if isinstance(route, URLResolver):
        return  # The included module may only be imported on first use.
    if not isinstance(route, URLPattern):
        raise ConfigurationError(
            f"a route is path(...), re_path(...) or include(...), not {type(route).__name__}"
        )
    app: Any = route.callback
    if isinstance(app, type):
        raise ConfigurationError(
            f"the route {str(route.pattern)!r} leads to the class {app.__name__}: "
            f"write {app.__name__}.as_asgi"
        )


def _own_path(scope: Scope) -> str:
    """The path below the mount point of the application, without the leading slash."""
    path: str = scope.get("path", "")
    root = script_prefix(scope)
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path.removeprefix("/")


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    kind = scope["type"]
    if kind == "websocket":
        explain_refusal(scope, _throttle, logging.INFO, "route", "no such route", NOT_FOUND)
        await refuse(scope, receive, send, NOT_FOUND)
    elif kind == "http":
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": NOT_FOUND, "headers": headers})
        await send({"type": "http.response.body", "body": b"Not found.\n"})
    else:
        text = "nothing is configured for the protocol %s: not answered"
        _throttle.log(logging.WARNING, "protocol", text, shown(kind), extra={"reason": kind})
