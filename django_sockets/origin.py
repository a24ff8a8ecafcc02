"""Whether the page that opens a websocket may: the Origin rules.

A browser sends the page's origin with every handshake and the user's cookies with it, and lets any
page open a socket to any host (RFC 6455, section 10.2). So the origin must be the application's
own, or be named. A handshake without Origin comes from no browser; with cookies it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .conf import django_site

__all__ = ["origin_problem"]

_PORTS = {"http": 80, "https": 443}
_SCHEMES = {"ws": "http", "wss": "https"}


def origin_problem(scope: Mapping[str, Any], allowed: Iterable[str]) -> str | None:
    """Why a handshake must be refused, or None.

    Args:
        scope: the ASGI scope of a websocket.
        allowed: further origins such as "https://app.example.com"; "*" admits all.
    """
    if "*" in allowed:
        return None
    origins, cookies = [], False
    for name, value in scope.get("headers", ()):
        if len(name) != 6:  # As most: neither of the two.
            continue
        header = name.lower()
        if header == b"origin":
            origins.append(bytes(value))
        elif header == b"cookie":
            cookies = True
    if not origins:
        return "cookies without an Origin header" if cookies else None
    if len(origins) > 1:
        return "more than one Origin header"
    origin = origins[0].decode("latin-1")
    wanted = _parts(origin)
    if wanted is None:
        return f"Origin {origin!r} is not a scheme and a host"
    site = django_site(scope) or _own_site(scope)
    trusted = [*site[1], *allowed]
    if wanted == _parts(site[0]) or any(_matches(wanted, pattern) for pattern in trusted):
        return None
    return f"Origin {origin!r} is not {site[0]!r}; add it to allowed_origins if it is yours"


def _own_site(scope: Mapping[str, Any]) -> tuple[str, list[str]]:
    scheme = _SCHEMES.get(scope.get("scheme", "ws"), "http")
    hosts = (bytes(value) for name, value in scope.get("headers", ()) if name.lower() == b"host")
    return f"{scheme}://{next(hosts, b'').decode('latin-1')}", []


def _parts(origin: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an origin, None if it is not one."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path or parts.query:
        return None
    if parts.fragment or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme]


def _matches(wanted: tuple[str, str, int], pattern: str) -> bool:
    """Patterns as in Django's CSRF_TRUSTED_ORIGINS: `https://*.example.com` is any subdomain."""
    scheme, separator, rest = pattern.partition("://*.")
    if not separator:
        return wanted == _parts(pattern)
    parts = _parts(f"{scheme}://{rest}")
    if parts is None:
        return False
    return wanted[0] == parts[0] and wanted[2] == parts[2] and wanted[1].endswith("." + parts[1])
