"""One connection to one server after the handshake: encoded commands out, parsed replies in.

asyncio opens the stream, `handshake` logs in, and `Parser` reads the stream from then on. The
readers of redis-py are not used, because they cost several times the parser's work and put no
deadline on a PING (redis-py 8.1).

A new connection knows the server's run id and role, as far as the server allows these questions.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from ...forks import abandon_in_child
from .identity import Identity
from .parser import ConnectionLost, Consumer, Parser, ReplyError, is_push, pack
from .thread_socket import Lendable, ThreadSocket

__all__ = [
    "Connection",
    "ConnectionLost",
    "Opener",
    "ReplyError",
    "ServerConnection",
    "ask",
    "consume_by_reading",
]


class Connection(Lendable, Protocol):
    """The interface of a connection, as the pipeline and the subscriber use it.

    Attributes:
        identity: the server at the other end.
        protocol: the RESP version, 2 or 3.
        tls: the state of an encrypted connection, else None.
        held_seconds: total time in which delivery of received messages held up reading.
        held_since: `time.monotonic()` when the present hold-up began, else None.
    """

    identity: Identity
    protocol: int
    tls: ssl.SSLObject | None
    held_seconds: float
    held_since: float | None

    @property
    def received_bytes(self) -> int:
        """Bytes received so far."""

    @property
    def partial_bytes(self) -> int:
        """Bytes received of the reply that is not complete yet."""

    async def read(self) -> Iterable[Any]:
        """The next 0..n replies, to be consumed before the next call. Raises ConnectionLost."""

    async def consume(self, consumer: Consumer) -> None:
        """Pass all replies to a consumer until the connection has ended: raises ConnectionLost."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the server. Raises ConnectionLost if it is known to be closed."""

    def abort(self) -> None:
        """Close at once; idempotent."""


Opener = Callable[[], Awaitable[Connection]]
"""Opens a connection; raises ConnectError."""


class ServerConnection:
    """A `Connection` over asyncio streams, which it takes over."""

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
        self._thread_socket: ThreadSocket | None = None
        abandon_in_child(self)

    @property
    def received_bytes(self) -> int:
        """Bytes received so far."""
        return self._parser.received_bytes

    @property
    def partial_bytes(self) -> int:
        """Bytes received of the reply that is not complete yet."""
        return self._parser.partial_bytes

    async def read(self) -> Iterable[Any]:
        return await self._parser.read()

    async def consume(self, consumer: Consumer) -> None:
        await self._parser.consume(consumer)

    def write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionLost("connection closed")
        self._writer.write(data)

    def abort(self) -> None:
        self._writer.transport.abort()

    def thread_socket(self) -> ThreadSocket | None:
        """See `Lendable`. The caller closes it."""
        if self.tls is not None or not hasattr(select, "poll"):
            return None
        sock = self._writer.get_extra_info("socket").dup()
        sock.setblocking(False)
        self._thread_socket = ThreadSocket(sock, self._parser.parse_now)
        return self._thread_socket

    def stop_reading(self) -> bool:
        """See `Lendable`."""
        transport = self._writer.transport
        return transport.get_write_buffer_size() == 0 and self._parser.stop_reading()

    def read_again(self) -> None:
        """See `Lendable`."""
        self._parser.read_again()

    def abandon(self) -> None:
        """Give up a connection inherited through fork, without closing the parent's socket.

        Closing it would remove the parent's descriptor from the epoll instance that both processes
        share. The descriptor is redirected to /dev/null, so that a later close does no harm.
        """
        for sock in (self._writer.get_extra_info("socket"), self._thread_socket):
            if sock is not None and sock.fileno() >= 0:
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, sock.fileno())
                os.close(nowhere)


async def consume_by_reading(connection: Connection, consumer: Consumer) -> None:
    """`consume` for a connection that has only `read`."""
    while True:
        replies = iter(await connection.read())
        while (waiting := consumer.take(replies)) is not None:
            await waiting
        while (waiting := consumer.flush()) is not None:
            await waiting


async def ask(connection: Connection, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
    """Send commands on a connection without other users; returns the replies.

    Raises:
        ConnectionLost: the connection ended first.
    """
    connection.write(b"".join(map(pack, commands)))
    replies: list[Any] = []
    while len(replies) < len(commands):
        replies += [reply for reply in await connection.read() if not is_push(reply)]
    return replies[: len(commands)]
