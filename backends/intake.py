"""What a server sends, parsed as it arrives.

The driver opens connections as asyncio streams. Those copy all data twice on its way to the parser,
in blocks so large that the allocator returns them to the kernel each time, which cost more than
everything else about a message. So this takes the transport over, and parses from one buffer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import hiredis

__all__ = ["Intake", "LinkLost"]

BUFFER_BYTES = 64 * 1024
UNREAD_BYTES = 256 * 1024
"""Of parsed replies that nobody has read yet; beyond it, nothing more is taken from the network."""


class LinkLost(Exception):
    """The link is of no more use; `str()` says why."""


class Intake(asyncio.BufferedProtocol):
    """The protocol of a connection to a server; `read` is for one task.

    Attributes:
        received_bytes: so far.
        partial_bytes: of a reply that is not complete yet.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._replies: list[Any] = []
        self._unread_bytes = 0
        self._paused = False
        self._lost: LinkLost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.received_bytes = 0
        self.partial_bytes = 0

    def take_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the protocol of the streams' transport; the streams are of no more use for reading."""
        transport = cast("asyncio.Transport", writer.transport)
        transport.pause_reading()  # uvloop looks at the kind of protocol when reading begins.
        transport.set_protocol(self)
        self._transport = transport
        rest = bytes(reader._buffer)  # type: ignore[attr-defined]
        if rest:
            self._parse(rest, len(rest))
        if reader.at_eof() or transport.is_closing():
            self._end(reader.exception())
        elif not self._paused:
            transport.resume_reading()

    async def read(self) -> list[Any]:
        """The next 1..n replies.

        Raises:
            LinkLost: there is none, and none will come.
        """
        while not self._replies:
            if self._lost is not None:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        replies, self._replies = self._replies, []
        self._unread_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return replies

    # Called by the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._parse(self._buffer, nbytes)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _parse(self, data: memoryview | bytes, size: int) -> None:
        self.received_bytes += size
        parser, replies = self._parser, self._replies
        before = len(replies)
        try:
            parser.feed(data, 0, size)  # type: ignore[arg-type]
            while (reply := parser.gets()) is not _INCOMPLETE:
                replies.append(reply)
        except hiredis.ProtocolError as exc:
            self._lost = LinkLost(f"not a reply of a Redis or Valkey server: {exc}")
            self._pause()
            self._wake()
            return
        if len(replies) == before:
            self.partial_bytes += size
            return
        self.partial_bytes = 0
        self._unread_bytes += size
        if self._unread_bytes >= UNREAD_BYTES:
            self._pause()
        self._wake()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _end(self, exc: Exception | None) -> None:
        if self._lost is None:
            problem = (
                "connection closed by the server" if exc is None else f"connection lost: {exc}"
            )
            self._lost = LinkLost(problem)
            self._lost.__cause__ = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


_INCOMPLETE = object()
