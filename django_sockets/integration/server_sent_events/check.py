"""The system check of views with server-sent events. `integration.checks` registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004
from django.urls import URLPattern, URLResolver, get_resolver

from ..asgi_application import asgi_application_path
from .view import EVENTS_VIEW

__all__ = ["check_events_views"]


def check_events_views(message: Callable[..., CheckMessage]) -> list[CheckMessage]:
    """W024: a URL leads to `events_view`, and the project does not name an ASGI application."""
    if asgi_application_path() is not None or not getattr(settings, "ROOT_URLCONF", None):
        return []
    try:
        routes = list(_routes(get_resolver().url_patterns))
    except Exception:  # Django's own checks report the errors of a URLconf.
        return []
    if not routes:
        return []
    problem = (
        f"The URL {routes[0]!r} streams server-sent events, and ASGI_APPLICATION is not set: under "
        "WSGI it answers 501."
    )
    hint = 'Set ASGI_APPLICATION = "mysite.asgi.application", and serve it with an ASGI server.'
    return [message(Warning, "W024", problem, hint)]


def _routes(patterns: Iterable[Any], prefix: str = "") -> Iterator[str]:
    for entry in patterns:
        route = f"{prefix}{entry.pattern}"
        if isinstance(entry, URLResolver):
            yield from _routes(entry.url_patterns, route)
        elif isinstance(entry, URLPattern) and getattr(entry.callback, EVENTS_VIEW, False):
            yield route
