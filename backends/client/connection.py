"""One connection to one server, once it has logged in: bytes out, parsed replies in.

asyncio opens the stream and `hello` logs in; from there on the stream is read here, because the
driver's own readers cost several times the parser's work and put no deadline on a PING (redis-py
8.1).

A new link knows whom it reached: the server's run id and its role, as far as the server tells.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import hiredis

from ...errors import AuthError, BrokerError, ConfigurationError, ConnectError
from ...forks import after_fork_in_child
from ...redaction import without_frames
from ...url import BrokerURL
from .addresses import reason
from .parser import LinkLost, Parser
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
    "Refused",
    "ReplyError",
    "ServerLink",
    "ask",
    "connect_error",
    "discard",
    "is_push",
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

PRIMARY = "master"
"""The role of a server that takes writes, as ROLE calls it."""


class Identity(NamedTuple):
    """Whom a link reached.

    Attributes:
        run_id: another one after each start of the server; "" where INFO is not allowed.
        role: "master", "slave", ...; "" where ROLE is not allowed.
        peer: the address that answered, as a number; "" where there is none.
    """

    run_id: str = ""
    role: str = ""
    peer: str = ""


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
        self._parser = Parser()
        self._parser.take_over(reader, writer)
        self._writer = writer
        self.protocol = protocol
        self.tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        peer = writer.get_extra_info("peername")
        self.identity = Identity(peer=peer[0] if isinstance(peer, tuple) else "")
        self.held_seconds = 0.0
        self.held_since: float | None = None
        _links.add(self)

    @property
    def received_bytes(self) -> int:
        """Read so far."""
        return self._parser.received_bytes

    @property
    def partial_bytes(self) -> int:
        """Read of a reply that is not complete yet."""
        return self._parser.partial_bytes

    async def read(self) -> Iterable[Any]:
        return await self._parser.read()

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


after_fork_in_child(_after_fork_in_child)


class Refused(Exception):
    """The server refused a command of the handshake; `str()` is what it said, without secrets.

    Attributes:
        command: such as "HELLO" or "CLIENT SETNAME".
        of_credentials: the server wants other credentials, or some at all.
    """

    def __init__(self, command: str, said: str, *, of_credentials: bool) -> None:
        super().__init__(said)
        self.command = command
        self.of_credentials = of_credentials


Opener = Callable[[], Awaitable[Link]]
"""Opens a link; raises ConnectError."""


async def open_link(
    url: BrokerURL,
    where: str,
    connect: Callable[[], Awaitable[Link]],
    *,
    need_primary: bool = False,
) -> Link:
    """Connect and log in within `connect_timeout_seconds`.

    Args:
        where: the address, for errors.
        connect: makes a link that has logged in.
        need_primary: refuse a server that says it is a replica.

    Raises:
        ConnectError: nobody answers, or not in time, or not a server we can use. It has no cause
            and no frames of what failed, for those may hold the password.
        AuthError: wrong credentials.
    """
    opening = asyncio.ensure_future(connect())
    try:
        link = await within(url.options.connect_timeout_seconds, opening)
    except Exception as exc:
        error = connect_error(url, where, exc)
    except BaseException:
        opening.add_done_callback(discard)
        raise
    else:
        problem = _unusable(url, link, need_primary=need_primary)
        if problem is None:
            return link
        link.abort()
        error = ConnectError(url, f"{problem} ({where})")
    del opening  # It keeps the frames of what failed.
    raise error


def connect_error(url: BrokerURL, where: str, exc: Exception) -> ConnectError:
    """What an attempt to connect raised, as an error of ours that holds no secret."""
    if isinstance(exc, ConnectError):
        return without_frames(exc)
    if isinstance(exc, BrokerError):
        return ConnectError(url, exc.problem)
    if isinstance(exc, ConfigurationError):
        problem = str(exc).removeprefix(f"{url}: ")
        return ConnectError(url, f"cannot connect: {where}: {problem}")
    if isinstance(exc, Refused):
        return _refusal(url, where, exc)
    detail = reason(exc)
    if isinstance(exc, LinkLost):
        return ConnectError(url, f"cannot connect: {where}: {detail}")
    if isinstance(exc, asyncio.TimeoutError) and not str(exc):
        detail = f"no answer in {url.options.connect_timeout_seconds:g} s"
        if url.scheme.startswith("rediss") or "serverless" in url.scheme:
            detail += " (a server without TLS would not answer this)"
    if isinstance(exc, (OSError, asyncio.TimeoutError)):
        return ConnectError(
            url, f"cannot connect: {where}: {detail}; is the server running and reachable?"
        )
    # A fault of ours or of a driver: say where, because the traceback is not kept.
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = "" if frame is None else f" at {frame.tb_frame.f_code.co_name}:{frame.tb_lineno}"
    return ConnectError(url, f"cannot connect: {where}: {type(exc).__name__}{place}")


def _refusal(url: BrokerURL, where: str, refused: Refused) -> ConnectError:
    if refused.of_credentials:
        auth = dict(url.extra).get("auth", "url")
        if auth != "url":
            problem = f"the server refused the credentials of auth={auth}: {refused}"
        elif not (url.password or url.driver_options.keys() & {"password", "credential_provider"}):
            problem = (
                f"the server wants a password: write {url.scheme}://:password@..., or "
                "user:password@"
            )
        else:
            problem = f"the server refused the credentials: {refused}"
        return AuthError(url, f"{problem} ({where})")
    if str(refused).startswith("NOPERM"):
        rule = refused.command.lower().replace(" ", "|")
        return ConnectError(
            url,
            f"the user may not run {refused.command}, which this URL needs: add +{rule} to its ACL "
            f"rules: {refused} ({where})",
        )
    hint = ""
    if refused.command == "HELLO":
        hint = ": leave the option protocol out, or write protocol=2"
    return ConnectError(
        url, f"the server refused the handshake, {refused.command}: {refused} ({where}){hint}"
    )


def _unusable(url: BrokerURL, link: Link, *, need_primary: bool) -> str | None:
    """Why the server cannot be used, by the role it says it has."""
    role = link.identity.role
    if role == "sentinel" and not url.scheme.endswith("+sentinel"):
        return (
            f"the server is a sentinel: write {url.scheme.partition('+')[0]}+sentinel://, and the "
            "name of the service after the hosts"
        )
    if need_primary and role not in (PRIMARY, ""):
        return (
            "the server is a replica: what is published there reaches only its own subscribers; "
            "the primary is wanted"
        )
    return None


def discard(opening: asyncio.Future[Link]) -> None:
    """Nobody waits for this link any more, however it ends."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()


async def ask(link: Link, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
    """The replies to commands, on a link that nobody else uses. Raises LinkLost."""
    link.write(b"".join(map(pack, commands)))
    replies: list[Any] = []
    while len(replies) < len(commands):
        replies += [reply for reply in await link.read() if not is_push(reply)]
    return replies[: len(commands)]


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


def is_push(reply: object) -> bool:
    """Whether a reply is an out-of-band message of RESP3."""
    return isinstance(reply, hiredis.PushNotification)
