"""What a server sends, parsed as it is read.

The driver opens connections as asyncio streams. Those copy all data twice on its way to the parser,
in blocks so large that the allocator returns them to the kernel each time, which cost more than
everything else about a message. So this takes the transport over, and has one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import hiredis

__all__ = ["LinkLost", "Parser"]

BUFFER_BYTES = 64 * 1024
PARSE_CHUNK_BYTES = 8 * 1024
"""What the parser is given at a time: it moves all that it still has after each KiB it has read."""
UNREAD_BYTES = 256 * 1024
"""Of what nobody has read yet; beyond it, nothing more is taken from the network."""


class LinkLost(Exception):
    """The link is of no more use; `str()` says why."""


class Parser(asyncio.BufferedProtocol):
    """The protocol of a connection to a server; `read` is for one task.

    Attributes:
        received_bytes: so far.
        partial_bytes: read of a reply that is not complete yet.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._arrived: list[bytes] = []
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
            self._arrive(rest)
        if reader.at_eof() or transport.is_closing():
            self._end(reader.exception())
        elif not self._paused:
            transport.resume_reading()

    async def read(self) -> Iterator[Any]:
        """Wait for something to arrive.

        Returns:
            The next 0..n replies, to be taken before the next call. Each is parsed when its turn
            comes: a thousand lists that are there at once have the garbage collector look at them.

        Raises:
            LinkLost: there is nothing, and nothing will come.
        """
        while not self._arrived:
            if self._lost is not None:
                raise self._lost
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        self._unread_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return self._parse(arrived)

    def _parse(self, arrived: list[bytes]) -> Iterator[Any]:
        feed, gets = self._parser.feed, self._parser.gets
        try:
            for data in arrived:
                self.partial_bytes += len(data)
                for start in range(0, len(data), PARSE_CHUNK_BYTES):
                    feed(data, start, min(PARSE_CHUNK_BYTES, len(data) - start))
                    while (reply := gets()) is not _INCOMPLETE:
                        self.partial_bytes = 0
                        yield reply
        except Exception as exc:
            # ProtocolError; MemoryError for a length; TypeError for a list as a key of a map.
            problem = str(exc) or type(exc).__name__
            self._lost = LinkLost(f"not a reply of a Redis or Valkey server: {problem}")
            self._arrived.clear()
            self._pause()

    # Called by the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._arrive(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _arrive(self, data: bytes) -> None:
        if self._lost is not None:
            return
        self._arrived.append(data)
        self.received_bytes += len(data)
        self._unread_bytes += len(data)
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
