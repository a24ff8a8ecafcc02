"""One connection to one server, once the driver has shaken hands: bytes out, parsed replies in.

redis-py connects, speaks TLS, HELLO and AUTH; from there on the stream is ours, because its own
readers cost several times the parser's work and put no deadline on a PING (redis-py 8.1). This is
the only module that touches the driver's connection.

A new link knows whom it reached: the server's run id and its role, as far as the server tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import hiredis
from redis import exceptions as driver
from redis.asyncio.connection import AbstractConnection

from ..errors import AuthError, BrokerError, ConnectError
from ..url import BrokerURL
from .intake import Intake, LinkLost
from .within import within

__all__ = [
    "INFO",
    "LARGE_BYTES",
    "PRIMARY",
    "ROLE",
    "Identity",
    "Link",
    "LinkLost",
    "Opener",
    "ReplyError",
    "ServerLink",
    "ask",
    "discard",
    "is_push",
    "map_errors",
    "open_link",
    "pack",
    "read_role",
    "read_run_id",
]

ReplyError = hiredis.ReplyError
"""An error reply of the server, as an object in the stream of replies."""


def pack(command: tuple[bytes, ...]) -> bytes:
    """Encode one command."""
    return cast("bytes", hiredis.pack_command(cast("tuple[Any]", command)))


LARGE_BYTES = 64 * 1024
"""An unfinished reply of this size shows a link that is slow rather than dead."""

Connect = Callable[[int], Awaitable[AbstractConnection]]
"""Makes the driver's connection, not yet connected, for RESP protocol 2 or 3."""

PRIMARY = "master"
"""The role of a server that takes writes, as ROLE calls it."""


class Identity(NamedTuple):
    """Whom a link reached.

    Attributes:
        run_id: another one after each start of the server; "" where INFO is not allowed.
        role: "master", "slave", ...; "" where ROLE is not allowed.
    """

    run_id: str = ""
    role: str = ""


class Link(Protocol):
    """What the pipeline and the subscriptions need of a connection."""

    identity: Identity
    protocol: int
    tls: ssl.SSLObject | None
    held_seconds: float
    held_since: float | None

    @property
    def received_bytes(self) -> int:
        """Read so far."""

    @property
    def partial_bytes(self) -> int:
        """Read of a reply that is not complete yet."""

    async def read(self) -> Iterable[Any]:
        """The next 0..n replies, all to be taken before the next call. Raises LinkLost."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the server. Raises LinkLost where that is known at once."""

    def abort(self) -> None:
        """Close at once; idempotent."""


class ServerLink:
    """A link over a connection that the driver has opened.

    Attributes:
        identity: see `Identity`.
        protocol: of RESP, 2 or 3.
        tls: the state of an encrypted connection.
        held_seconds: time in which nobody read because received messages were being handed on.
        held_since: `time.monotonic()` from which that is so now; None if it is not.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: int
    ) -> None:
        self._intake = Intake()
        self._intake.take_over(reader, writer)
        self._writer = writer
        self.protocol = protocol
        self.tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        self.identity = Identity()
        self.held_seconds = 0.0
        self.held_since: float | None = None
        _links.add(self)

    @property
    def received_bytes(self) -> int:
        """Read so far."""
        return self._intake.received_bytes

    @property
    def partial_bytes(self) -> int:
        """Read of a reply that is not complete yet."""
        return self._intake.partial_bytes

    async def read(self) -> Iterable[Any]:
        return await self._intake.read()

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


_links: weakref.WeakSet[ServerLink] = weakref.WeakSet()


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
        detail = str(exc).rstrip(".")
        if not detail:
            detail = f"no answer in {url.options.connect_timeout_seconds:g} s"
            if url.scheme.startswith("rediss") or "serverless" in url.scheme:
                detail += " (a server without TLS would not answer this)"
        raise ConnectError(
            url, f"cannot connect: {detail}; is the server running and reachable?"
        ) from exc
    except (BrokerError, LinkLost):
        raise
    except Exception as exc:
        # An address that is none, or an answer to HELLO that the driver cannot take apart.
        raise ConnectError(url, f"cannot connect: {type(exc).__name__}: {exc}") from exc


def _refused_credentials(url: BrokerURL, exc: Exception) -> str:
    auth = dict(url.extra).get("auth", "url")
    if auth != "url":
        return f"the server refused the credentials of auth={auth}: {exc}"
    if not url.password and not url.driver_options.get("password"):
        scheme = url.scheme
        return f"the server wants a password: write {scheme}://:password@..., or user:password@"
    return f"the server refused the credentials: {exc}"


Opener = Callable[[], Awaitable[Link]]
"""Opens a link; raises ConnectError."""


async def open_link(url: BrokerURL, connect: Connect, *, need_primary: bool = False) -> Link:
    """Connect, shake hands and learn whom we reached, all within `connect_timeout_seconds`.

    RESP3 is tried first; a server that does not know it gets RESP2.

    Args:
        need_primary: refuse a server that says it is a replica.

    Raises:
        ConnectError: nobody answers, or not in time, or not a server we can use.
        AuthError: wrong credentials.
    """
    seconds = url.options.connect_timeout_seconds
    opening = asyncio.ensure_future(_open(connect))
    try:
        with map_errors(url):
            link = await within(seconds, opening)
    except LinkLost as exc:
        raise ConnectError(url, f"cannot connect: {exc}") from exc
    except BaseException:
        opening.add_done_callback(discard)
        raise
    if link.identity.role == "sentinel" and not url.scheme.endswith("+sentinel"):
        link.abort()
        raise ConnectError(
            url,
            f"the server is a sentinel: write {url.scheme.partition('+')[0]}+sentinel://, and the "
            "name of the service after the hosts",
        )
    if need_primary and link.identity.role not in (PRIMARY, ""):
        link.abort()
        raise ConnectError(
            url,
            "the server is a replica: what is published there reaches only its own subscribers; "
            "the primary is wanted",
        )
    return link


def discard(opening: asyncio.Future[Link]) -> None:
    """Nobody waits for this link any more, however it ends."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()


async def _open(connect: Connect) -> Link:
    link = await _shake_hands(connect)
    try:
        link.identity = read_identity(await ask(link, IDENTIFY))
    except BaseException:
        link.abort()
        raise
    return link


async def ask(link: Link, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
    """The replies to commands, on a link that nobody else uses. Raises LinkLost."""
    link.write(b"".join(map(pack, commands)))
    replies: list[Any] = []
    while len(replies) < len(commands):
        replies += [reply for reply in await link.read() if not is_push(reply)]
    return replies


ROLE: tuple[bytes, ...] = (b"ROLE",)
INFO: tuple[bytes, ...] = (b"INFO", b"server")
IDENTIFY = (ROLE, INFO)


def read_identity(replies: Sequence[Any]) -> Identity:
    """The replies to ROLE and `INFO server`.

    Raises:
        LinkLost: there are not two of them.
    """
    if len(replies) != len(IDENTIFY):
        raise LinkLost(f"{len(replies)} replies to {len(IDENTIFY)} commands")
    role, info = replies
    return Identity(read_run_id(info), read_role(role))


def read_role(reply: Any) -> str:
    """The role in a reply to ROLE; "" if it was refused or makes no sense."""
    if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
        return reply[0].decode(errors="replace")
    return ""


def read_run_id(reply: Any) -> str:
    """The run id in a reply to `INFO server`; "" if it was refused or makes no sense."""
    found = re.search(rb"run_id:(\w+)", reply) if isinstance(reply, bytes) else None
    return found[1].decode() if found else ""


async def _shake_hands(connect: Connect) -> ServerLink:
    try:
        return await _connected(await connect(3), 3)
    except driver.ResponseError as exc:
        if not any(word in str(exc) for word in ("unknown command", "NOPROTO")):
            raise
        return await _connected(await connect(2), 2)


async def _connected(connection: AbstractConnection, protocol: int) -> ServerLink:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as exc:
        if connection._writer is not None:
            # The driver would close politely: with TLS that waits for the other side, up to 30 s.
            connection._writer.transport.abort()
        await connection.disconnect(nowait=True)
        if isinstance(exc, driver.ConnectionError) and isinstance(exc.__cause__, driver.RedisError):
            # On a unix socket redis-py 8.1 wraps what the server says to its HELLO or AUTH.
            raise exc.__cause__ from None
        raise
    reader, writer = connection._reader, connection._writer
    # The driver's connection must not close, on its own end, what is ours from here.
    connection._reader = connection._writer = None
    return ServerLink(
        cast("asyncio.StreamReader", reader), cast("asyncio.StreamWriter", writer), protocol
    )


def is_push(reply: object) -> bool:
    """Whether a reply is an out-of-band message of RESP3."""
    return isinstance(reply, hiredis.PushNotification)
