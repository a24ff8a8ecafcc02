"""One connection to one server, once the driver has shaken hands: bytes out, parsed replies in.

redis-py connects, speaks TLS, HELLO and AUTH; from there on the stream is ours, because its own
readers cost several times the parser's work and put no deadline on a PING (redis-py 8.1). This is
the only module that touches the driver's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, cast

import hiredis
from redis import exceptions as driver
from redis.asyncio.connection import AbstractConnection

from ..errors import AuthError, ConnectError
from ..url import BrokerURL

__all__ = [
    "Backoff",
    "Link",
    "LinkLost",
    "ReplyError",
    "StreamLink",
    "expect",
    "first_error",
    "first_of",
    "is_push",
    "keepalive",
    "map_errors",
    "open_link",
    "pack",
]

ReplyError = hiredis.ReplyError
"""An error reply of the server, as an object in the stream of replies."""


def pack(command: tuple[bytes, ...]) -> bytes:
    """Encode one command."""
    return cast("bytes", hiredis.pack_command(cast("tuple[Any]", command)))


READ_BYTES = 256 * 1024
LARGE_BYTES = 64 * 1024
"""An unfinished reply of this size shows a link that is slow rather than dead."""

Connect = Callable[[int], AbstractConnection]
"""Makes the driver's connection, not yet connected, for RESP protocol 2 or 3."""


class LinkLost(Exception):
    """The link is of no more use; `str()` says why."""


class Link(Protocol):
    """What the pipeline and the subscriptions need of a connection."""

    received_bytes: int
    partial_bytes: int
    held_seconds: float

    async def read(self) -> list[Any]:
        """The next 1..n replies. Raises LinkLost."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the server. Raises LinkLost where that is known at once."""

    def abort(self) -> None:
        """Close at once; idempotent."""


class StreamLink:
    """A link over the streams that the driver opened.

    Attributes:
        received_bytes: read so far.
        partial_bytes: read of a reply that is not complete yet.
        held_seconds: time in which nobody read because received messages were being handed on.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self.received_bytes = 0
        self.partial_bytes = 0
        self.held_seconds = 0.0
        _links.add(self)

    async def read(self) -> list[Any]:
        parser = self._parser
        while True:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as exc:
                raise LinkLost(f"connection lost: {exc}") from exc
            if not data:
                raise LinkLost("connection closed by the server")
            size = len(data)
            self.received_bytes += size
            replies = []
            try:
                parser.feed(data)
                while (reply := parser.gets()) is not _INCOMPLETE:
                    replies.append(reply)
            except hiredis.ProtocolError as exc:
                raise LinkLost(f"not a reply of a Redis or Valkey server: {exc}") from exc
            if replies:
                self.partial_bytes = 0
                return replies
            self.partial_bytes += size

    def write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise LinkLost("connection closed")
        self._writer.write(data)

    def abort(self) -> None:
        self._writer.transport.abort()

    def abandon(self) -> None:
        """Let go of a connection inherited through fork without closing it.

        Closing would take the parent's descriptor out of the epoll that both share. With its
        number pointed elsewhere, whatever closes it later in this process does no harm.
        """
        sock = self._writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, sock.fileno())
            os.close(nowhere)


_INCOMPLETE = object()
_links: weakref.WeakSet[StreamLink] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for link in list(_links):
        link.abandon()
    _links.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def map_errors(url: BrokerURL) -> Iterator[None]:
    """Turn what a driver raises while connecting into our errors, with the URL redacted."""
    try:
        yield
    except (driver.AuthenticationError, driver.ResponseError) as exc:
        kinds = (driver.AuthenticationError, driver.NoPermissionError)
        if isinstance(exc, kinds) or str(exc).startswith(("WRONGPASS", "NOAUTH")):
            raise AuthError(url, _refused_credentials(url, exc)) from exc
        raise ConnectError(url, f"the server refused the handshake: {exc}") from exc
    except (driver.RedisError, OSError, asyncio.TimeoutError) as exc:
        detail = str(exc).rstrip(".") or type(exc).__name__
        raise ConnectError(
            url, f"cannot connect: {detail}; is the server running and reachable?"
        ) from exc


def _refused_credentials(url: BrokerURL, exc: Exception) -> str:
    if not url.password and not url.driver_options.get("password"):
        scheme = url.scheme
        return f"the server wants a password: write {scheme}://:password@..., or user:password@"
    return f"the server refused the credentials: {exc}"


async def open_link(url: BrokerURL, connect: Connect) -> Link:
    """Connect and shake hands within `connect_timeout_seconds`.

    RESP3 is tried first; a server that does not know it gets RESP2.

    Raises:
        ConnectError: nobody answers, or not in time, or not a server we can use.
        AuthError: wrong credentials.
    """
    with map_errors(url):
        return await asyncio.wait_for(_shake_hands(connect), url.options.connect_timeout_seconds)


async def _shake_hands(connect: Connect) -> Link:
    try:
        return await _connected(connect(3))
    except driver.ResponseError as exc:
        if not any(word in str(exc) for word in ("unknown command", "NOPROTO")):
            raise
        return await _connected(connect(2))


async def _connected(connection: AbstractConnection) -> StreamLink:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as exc:
        await connection.disconnect(nowait=True)
        if isinstance(exc, driver.ConnectionError) and isinstance(exc.__cause__, driver.RedisError):
            # On a unix socket redis-py 8.1 wraps what the server says to its HELLO or AUTH.
            raise exc.__cause__ from None
        raise
    reader, writer = connection._reader, connection._writer
    # The driver's connection must not close, on its own end, what is ours from here.
    connection._reader = connection._writer = None
    return StreamLink(cast("asyncio.StreamReader", reader), cast("asyncio.StreamWriter", writer))


async def expect(link: Link, reply: asyncio.Future[Any], seconds: float, missing: str) -> None:
    """Wait for a reply at most `seconds`.

    The time is granted anew when this process could not have seen the reply: its loop was held up,
    the link's reader was waiting for slow subscribers, or a large payload is still arriving.

    Raises:
        LinkLost: the reply is missing.
    """
    loop = asyncio.get_running_loop()
    while True:
        started, received, held = loop.time(), link.received_bytes, link.held_seconds
        done, _ = await asyncio.wait([reply], timeout=seconds)
        if done:
            return
        held_up = loop.time() - started > 1.5 * seconds
        waiting = link.held_seconds - held > 0.25 * seconds
        arriving = link.partial_bytes >= LARGE_BYTES and link.received_bytes > received
        if not (held_up or waiting or arriving):
            raise LinkLost(f"{missing} within {seconds:g} s")


async def keepalive(
    link: Link,
    ping: Callable[[], asyncio.Future[Any]],
    dead_peer_seconds: float,
    grace_seconds: Callable[[], float] = float,
) -> None:
    """PING twice in `dead_peer_seconds`, with a deadline on the answer.

    Args:
        ping: writes a PING and returns the future of its answer.
        grace_seconds: how much longer the answer may take at this moment.

    Raises:
        LinkLost: no answer came.
    """
    half = dead_peer_seconds / 2
    while True:
        await asyncio.sleep(half)
        await expect(link, ping(), half + grace_seconds(), "no answer to PING")


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side until one ends; cancel the others, raise what it raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


class Backoff:
    """Pauses between attempts: none before the first, then doubling up to 1 s, with jitter."""

    FIRST_SECONDS = 0.05
    CAP_SECONDS = 1.0

    def __init__(self) -> None:
        self._seconds = 0.0

    def reset(self) -> None:
        self._seconds = 0.0

    async def pause(self) -> None:
        seconds = self._seconds
        self._seconds = min(self.CAP_SECONDS, max(self.FIRST_SECONDS, 2 * seconds))
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret


def is_push(reply: object) -> bool:
    """Whether a reply is an out-of-band message of RESP3."""
    return isinstance(reply, hiredis.PushNotification)


def first_error(replies: Sequence[object]) -> ReplyError | None:
    """The first error among replies."""
    return next((reply for reply in replies if isinstance(reply, ReplyError)), None)
