"""Asks a running server, through one handshake, whether it offers prepared frames.

A client cannot see an ASGI extension. Our protocol class is recognized by its compression: it
answers without context on both sides, which no client asks for here.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import pip_command
from .installed import PROTOCOL

__all__ = ["RunningServer", "look_at"]

OPEN_SECONDS = 5.0
MARKS = ("server_no_context_takeover", "client_no_context_takeover")


@dataclass(frozen=True)
class RunningServer:
    """The result of one handshake.

    Attributes:
        url: without user, password and query, which may contain secrets.
        offers_frames: None if it is unknown.
        advice: the observation behind it, and what to do.
    """

    url: str
    offers_frames: bool | None
    advice: str
    warning: str | None = None


async def look_at(url: str) -> RunningServer:
    """Open a websocket, look at the server's answer, and close the websocket.

    Args:
        url: `ws://...` or `wss://...` of a path that accepts a client without cookies.
    """
    parts = urlsplit(url)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
    except ImportError:
        return RunningServer(name, None, f"websockets is missing: {pip_command('runserver')}")
    try:
        async with connect(url, proxy=None, open_timeout=OPEN_SECONDS) as client:
            response = client.response
    except InvalidStatus as exc:
        status = exc.response.status_code
        advice = f"it refused the websocket with HTTP {status}: name a path that it accepts"
        return RunningServer(name, None, advice)
    except (InvalidURI, ValueError):
        return RunningServer(name, None, "this is not a valid URL")
    except (InvalidHandshake, OSError, EOFError) as exc:
        problem = f"no websocket server answers there: {str(exc) or type(exc).__name__}"
        return RunningServer(name, None, problem)
    answer = response.headers.get("Sec-WebSocket-Extensions", "") if response else ""
    if all(mark in answer for mark in MARKS):
        return RunningServer(name, True, "it compresses without context, as our protocol class")
    if not answer:
        advice = "it does not compress, so its answer does not tell which protocol class it runs"
        return RunningServer(name, None, advice)
    return RunningServer(name, False, f"it runs another protocol class: use --ws {PROTOCOL}")
