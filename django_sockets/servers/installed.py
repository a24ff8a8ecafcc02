"""Which installed servers offer prepared frames, and the reason if one does not.

It imports uvicorn inside functions only, so that it works without uvicorn.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

__all__ = [
    "OLDEST",
    "OLDEST_UVICORN",
    "PROTOCOL",
    "WORKER",
    "InstalledServer",
    "installed_servers",
    "old_uvicorn",
    "sansio_protocol",
    "uvicorn_problem",
    "websocket_protocol",
]

OLDEST_UVICORN = (0, 52, 1)
"""The first version whose protocol on `websockets` stops writing to a client that does not read."""
OLDEST = ".".join(map(str, OLDEST_UVICORN))
PROTOCOL = "django_sockets.servers.uvicorn:WebSocketProtocol"
WORKER = "django_sockets.servers.gunicorn.UvicornWorker"
UNBOUNDED = "memory for a client that stops reading has no bound in this protocol"
_PROTOCOL_MODULE = "uvicorn.protocols.websockets.websockets_sansio_impl"
_METHODS = {
    "pause_writing": False,
    "resume_writing": False,
    "connection_lost": True,
    "run_asgi": False,
    "send": True,
}
"""The methods that WebSocketProtocol needs, and whether they take an argument."""


@dataclass(frozen=True)
class InstalledServer:
    """An installed server.

    Attributes:
        offers_frames: whether it offers prepared frames if it is started as `advice` says.
        advice: the option that turns prepared frames on, or the reason why there is none.
        warning: something that users should change; None if there is nothing.
    """

    name: str
    version: str
    offers_frames: bool
    advice: str
    warning: str | None = None


def installed_servers() -> list[InstalledServer]:
    """Look at each ASGI server that is installed in this environment."""
    found = []
    for name, look in _SERVERS.items():
        version = _version_of(name)
        if version is not None:
            found.append(look(version))
    return found


def old_uvicorn() -> str | None:
    """The version of the installed uvicorn if it is too old; it does not import uvicorn."""
    version = _version_of("uvicorn")
    return version if version is not None and _numbers(version) < OLDEST_UVICORN else None


def uvicorn_problem() -> str | None:
    """Why the installed uvicorn cannot offer prepared frames; None if it can."""
    try:
        from uvicorn import __version__ as version
    except ImportError:
        return "uvicorn is not installed"
    if _numbers(version) < OLDEST_UVICORN:
        return f"uvicorn {version} is older than {OLDEST}: {UNBOUNDED}"
    protocol = sansio_protocol()
    if protocol is None:
        return f"uvicorn {version} has no protocol on websockets, or websockets is not installed"
    for name, has_argument in _METHODS.items():
        if not _has_method(protocol, name, has_argument):
            return f"uvicorn {version} is not known: its protocol has no usable {name}"
    return None


def sansio_protocol() -> Any:
    """uvicorn's protocol class on websockets, or None."""
    try:
        module = __import__(_PROTOCOL_MODULE, fromlist=["WebSocketsSansIOProtocol"])
    except ImportError:
        return None
    return getattr(module, "WebSocketsSansIOProtocol", None)


def websocket_protocol() -> str:
    """The best value of uvicorn's option `ws`: our class if the installed version can use it.

    It is for tools that start uvicorn themselves. They should not log that frames are off.
    """
    if uvicorn_problem() is None:
        return PROTOCOL
    return "auto" if sansio_protocol() is None else "websockets-sansio"


def _has_method(protocol: type, name: str, has_argument: bool) -> bool:
    function = getattr(protocol, name, None)
    if function is None or function is getattr(asyncio.Protocol, name, None):
        return False
    try:
        inspect.signature(function).bind(*([None] * (1 + has_argument)))
    except (TypeError, ValueError):
        return False
    asynchronous = name in ("run_asgi", "send")
    return inspect.iscoroutinefunction(function) is asynchronous


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version. A pre-release counts as its release."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


def _uvicorn(version: str) -> InstalledServer:
    problem = uvicorn_problem()
    if problem is None:
        return InstalledServer("uvicorn", version, True, f"with --ws {PROTOCOL}")
    warning = None
    if _numbers(version) < OLDEST_UVICORN:
        warning = f"{UNBOUNDED} (--ws websockets-sansio): upgrade uvicorn to {OLDEST} or later"
    return InstalledServer("uvicorn", version, False, problem, warning)


def _gunicorn(version: str) -> InstalledServer:
    problem = uvicorn_problem()
    if _version_of("uvicorn-worker") is None:
        problem = "the package uvicorn-worker is not installed"
    if problem is None:
        return InstalledServer("gunicorn", version, True, f"with -k {WORKER}")
    return InstalledServer("gunicorn", version, False, problem)


def _other(name: str, warning: str | None = None) -> Any:
    def look(version: str) -> InstalledServer:
        advice = f"{name} does not have the extension websocket.frames"
        return InstalledServer(name, version, False, advice, warning)

    return look


_SERVERS = {
    "uvicorn": _uvicorn,
    "gunicorn": _gunicorn,
    "hypercorn": _other("hypercorn"),
    "daphne": _other("daphne", "memory for a client that stops reading has no bound in daphne"),
    "granian": _other("granian"),
}
