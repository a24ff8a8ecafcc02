"""Finds middleware that replaces `send`, so that prepared frames cannot be used behind it.

It calls each middleware once, alone, with a websocket scope and an inner application of its own.
Only the checks import this module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..deadlines import with_deadline
from .asgi_application import asgi_application
from .routing import INNER_ATTRIBUTES, ProtocolTypeRouter, URLRouter, layers

__all__ = ["of_project", "replaces_send"]

CALL_SECONDS = 2.0
OWN_ROOMS = ("django.", "django_sockets.")
WHOLE_APPLICATIONS = ("starlette.applications", "fastapi.applications")
"""These wrap `send` in middleware that they add themselves."""


async def replaces_send(application: Any) -> list[str]:
    """The dotted names of the classes around a websocket application that replace `send`.

    Closures are not recognized as middleware: only objects that keep the inner application as
    `app`, `inner` or `application` are.
    """
    found: dict[str, None] = {}
    for layer in _websocket_layers(application):
        kind = type(layer)
        if kind.__module__.startswith(OWN_ROOMS):
            continue
        whole = any(base.__module__ in WHOLE_APPLICATIONS for base in kind.__mro__)
        if whole or await _replaces(layer):
            found[f"{kind.__module__}.{kind.__qualname__}"] = None
    return list(found)


def _websocket_layers(application: Any) -> Iterator[Any]:
    for layer in layers(application):
        yield layer
        if isinstance(layer, ProtocolTypeRouter):
            yield from _websocket_layers(layer.application_mapping.get("websocket"))
        elif isinstance(layer, URLRouter):
            for route in layer.routes:
                yield from _websocket_layers(getattr(route, "callback", None))


async def of_project() -> list[str]:
    """The same for the application that ASGI_APPLICATION names; empty if it cannot be imported."""
    try:
        application = asgi_application()
    except ImproperlyConfigured:
        return []  # The checks E003 and W004 report it.
    return await replaces_send(application)


async def _replaces(layer: Any) -> bool:
    """Whether a copy of the layer passes another `send` to its inner application."""
    own = getattr(layer, "__dict__", {})
    name = next((name for name in INNER_ATTRIBUTES if name in own), None)
    if name is None:
        return False
    passed: list[Any] = []

    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        passed.append(send)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(_event: Any) -> None:
        pass

    try:
        twin = copy.copy(layer)
        setattr(twin, name, inner)
        await with_deadline(CALL_SECONDS, twin(_scope(), receive, send))
    except Exception:  # Middleware of other people may fail in any way with this scope.
        return any(one is not send for one in passed)
    return any(one is not send for one in passed)


def _scope() -> dict[str, Any]:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "subprotocols": [],
        "state": {},
        "extensions": {},
    }
