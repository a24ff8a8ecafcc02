"""Whether the page that opens a websocket may: the Origin rules.

A browser sends the page's origin with every handshake and the user's cookies with it, and lets any
page open a socket to any host (RFC 6455, section 10.2). So the origin must be the application's
own, or be in a list. A handshake without Origin does not come from a browser; with cookies it is
refused.

An Origin is compared as the browser writes it (RFC 6454, section 6.2): a scheme, a host and a port,
in ASCII and without other characters. An Origin in any other form is refused.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..conf import Site, django_site
from ..errors import ConfigurationError
from ..log import LogThrottle, shown
from ..url import BrokerOptions
from .limits import check_list

__all__ = ["check_allowed_hosts", "check_origins", "entry_problem", "origin_problem"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

_PORTS = {"http": 80, "https": 443}
_SCHEMES = {"ws": ("http",), "wss": ("https",)}
_UNKNOWN = ("http", "https")
"""daphne gives no scheme, so a page with either scheme counts as the application's own."""
_HOST = r"[a-z0-9._-]+|\[[0-9a-f:.]+\]"
_AUTHORITY = re.compile(rf"({_HOST})(?::([1-9][0-9]{{0,4}}))?", re.ASCII | re.IGNORECASE)
# A host of printable ASCII characters. It is compiled when a list is checked, not at the import.
_APP_ORIGIN = r"[a-z][a-z0-9+.-]*://(?:(?![/?#@*\\])[!-~])+"
_WEB_SCHEMES = {"ws": "http", "wss": "https"}


class _Parts(NamedTuple):
    scheme: str
    host: str
    port: int


def origin_problem(
    scope: Mapping[str, Any], allowed: Collection[str], allowed_hosts: Collection[str] = ()
) -> str | None:
    """Why a handshake must be refused, or None.

    Args:
        scope: the ASGI scope of a websocket.
        allowed: further origins such as "https://app.example.com"; "*" admits all.
        allowed_hosts: the names of this server if Django is not configured. If empty, every name
            that a foreign page cannot have is allowed.
    """
    if isinstance(allowed, (str, bytes)):  # Set on a class after it was made.
        return "allowed_origins is a text and no list"
    if isinstance(allowed_hosts, (str, bytes)):
        return "allowed_hosts is a text and no list"
    if "*" in allowed:
        return None
    headers = list(scope.get("headers", ()))
    names = [name.lower() for name, _ in headers]
    if b"origin" not in names:
        return "cookies without an Origin header" if b"cookie" in names else None
    if names.count(b"origin") > 1:
        return "more than one Origin header"
    origin = bytes(headers[names.index(b"origin")][1]).decode("latin-1")
    if origin in allowed:  # Compared as text: the origin of an app may have any scheme.
        return None
    site = django_site(scope)
    if site is None:
        hosts = [bytes(value) for name, value in headers if name.lower() == b"host"]
        site = _own_site(scope, hosts, allowed_hosts)
    if origin in site.trusted:
        return None
    wanted = _parts(origin)
    if wanted is None:
        return f"Origin {shown(origin)} is no origin of a web page; {_remedy(site)}"
    for scheme in site.schemes if site.host is not None else ():
        if wanted == _parts(f"{scheme}://{site.host}"):
            return None
    if any(_matches(wanted, pattern) for pattern in (*site.trusted, *allowed)):
        return None
    return _difference(origin, wanted, site)


def _difference(origin: str, wanted: _Parts, site: Site) -> str:
    if site.host is None:
        return f"Origin {shown(origin)} is not ours: {site.problem}"
    own = f"{site.schemes[0]}://{site.host}"
    parts = _parts(own)
    problem = f"Origin {shown(origin)} is not {shown(own)}"
    if parts is not None and wanted.host == parts.host and wanted.scheme == "https" != parts.scheme:
        trust = "set SECURE_PROXY_SSL_HEADER" if site.django else "have the server trust it"
        return f"{problem}; if a proxy ends TLS, {trust}, or {_remedy(site)}"
    return f"{problem}; {_remedy(site)}"


def _remedy(site: Site) -> str:
    where = "CSRF_TRUSTED_ORIGINS or allowed_origins" if site.django else "allowed_origins"
    return f"add it to {where} if it is yours"


def _own_site(
    scope: Mapping[str, Any], hosts: Sequence[bytes], allowed_hosts: Collection[str]
) -> Site:
    """The site named by the header Host, unless a foreign page may have caused that header.

    After evil.example has loaded its page, it may resolve its own name to this server (DNS
    rebinding). Then Origin and Host are the same, and neither of them is ours.
    """
    schemes = _SCHEMES.get(scope.get("scheme") or "", _UNKNOWN)
    if len(hosts) != 1:
        return Site(schemes, None, problem=f"there are {len(hosts)} Host headers")
    host = hosts[0].decode("latin-1")
    name = _host_name(host)
    if name is None:
        return Site(schemes, None, problem=f"Host {shown(host)} is no host")
    if not _is_ours(name, allowed_hosts):
        problem = f"Host {shown(host)} is not in allowed_hosts; add it if it is yours"
        return Site(schemes, None, problem=problem)
    return Site(schemes, host)


@functools.lru_cache(maxsize=256)  # For the same reason as `_is_ipv4`.
def _host_name(host: str) -> str | None:
    """The name in a Host header; None if the header has another form."""
    found = _AUTHORITY.fullmatch(host)
    if found is None or not _is_port(found[2]):
        return None
    return found[1].lower().removesuffix(".")


def _is_ours(name: str, allowed_hosts: Collection[str]) -> bool:
    if allowed_hosts:
        return any(
            pattern in ("*", name) or (pattern.startswith(".") and f".{name}".endswith(pattern))
            for pattern in map(str.lower, allowed_hosts)
        )
    if name.endswith(".localhost") or name.startswith("[") or "." not in name:
        return True  # It is an IPv6 address, or a name that cannot be registered.
    return _is_ipv4(name)


@functools.lru_cache(maxsize=256)  # In the storm of docs/benchmarks, most hosts are the same.
def _is_ipv4(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _is_port(digits: str | None) -> bool:
    return digits is None or int(digits) < 65536


@functools.lru_cache(maxsize=256)
def _parts(origin: str) -> _Parts | None:
    """The scheme, host and port of an origin; None if the text is not an origin."""
    scheme, _, authority = origin.partition("://")
    scheme = scheme.lower()
    found = _AUTHORITY.fullmatch(authority)
    if scheme not in _PORTS or found is None or not _is_port(found[2]):
        return None
    return _Parts(scheme, found[1].lower(), int(found[2] or _PORTS[scheme]))


def _matches(wanted: _Parts, pattern: str) -> bool:
    """Patterns as in Django's CSRF_TRUSTED_ORIGINS: `https://*.example.com` is any subdomain."""
    scheme, separator, rest = pattern.partition("://*.")
    if not separator:
        return wanted == _parts(pattern)
    parts = _parts(f"{scheme}://{rest}")
    if parts is None:
        return False
    return wanted[::2] == parts[::2] and wanted.host.endswith("." + parts.host)


# Checks of the configuration


def entry_problem(entry: object) -> str | None:
    """Why an entry of `allowed_origins` matches no Origin that a browser sends, or None."""
    if not isinstance(entry, str):
        return f"{shown(entry)} is {type(entry).__name__}, not str"
    return _text_problem(entry)


@functools.lru_cache(maxsize=256)
def _text_problem(entry: str) -> str | None:
    better = _repaired(entry)
    if entry in ("*", "null", "file://", better) or _is_rule(entry):
        return None
    return f"{shown(entry)} matches no origin: write {shown(better)}"


def check_origins(name: str, origins: Collection[object]) -> None:
    """Check an option `allowed_origins`; an entry that matches nothing is logged.

    Raises:
        ConfigurationError: the value is not a list.
    """
    check_list(name, origins)
    for entry in origins:
        problem = entry_problem(entry)
        if problem is not None:
            _throttle.log(
                logging.WARNING,
                f"{name} {entry!r}",
                "%s: %s",
                name,
                problem,
                extra={"reason": problem},
            )


def _repaired(entry: str) -> str:
    scheme, separator, rest = entry.strip().partition("://")
    if not separator:
        scheme, rest = "https", scheme
    scheme = scheme.lower()
    host = re.split(r"[/?#\\]", rest)[0].rpartition("@")[2]
    if not host.isascii():
        with contextlib.suppress(UnicodeError):
            host = host.encode("idna").decode()
    better = f"{_WEB_SCHEMES.get(scheme, scheme)}://{host}"
    return better if _is_rule(better) else "https://example.com"


def _is_rule(entry: str) -> bool:
    if _parts(entry.replace("://*.", "://", 1)) is not None:
        return True
    # The origin of an app has its own scheme and is compared as text.
    scheme = entry.partition("://")[0]
    return scheme not in {*_PORTS, *_WEB_SCHEMES} and re.fullmatch(_APP_ORIGIN, entry) is not None


def check_allowed_hosts(name: str, hosts: Collection[object]) -> None:
    """Check an option `allowed_hosts`.

    Raises:
        ConfigurationError: the value is not a list, or an entry is not a host name.
    """
    check_list(name, hosts, "chat.example.com")
    for host in hosts:
        found = _AUTHORITY.fullmatch(host) if isinstance(host, str) else None
        if host != "*" and (found is None or found[2]):
            raise ConfigurationError(
                f"{name} has {shown(host)}: write the name alone, without a scheme and a port, "
                "such as 'chat.example.com', or '.example.com' for its subdomains, too"
            )
