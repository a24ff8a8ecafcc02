"""The RESP protocol: replies parsed as they are read, and commands encoded.

asyncio's streams copy all data twice on its way to the parser. They do so in blocks so large that
the allocator returns each of them to the kernel, which cost more than all other work per message.
`Parser` therefore takes the transport over from the streams and reads into one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, cast

import hiredis

__all__ = ["ConnectionLost", "Parser", "ReplyError", "is_push", "pack", "pairs"]

BUFFER_BYTES = 64 * 1024
PARSE_CHUNK_BYTES = 8 * 1024
"""Size of the chunks fed to hiredis, which moves its remaining input after each KiB it parsed."""
UNREAD_BYTES = 256 * 1024
"""With more unread bytes than this, the transport pauses reading from the network."""

ReplyError = hiredis.ReplyError
"""An error reply of the server; it appears as an object among the replies."""


class ConnectionLost(Exception):
    """The connection cannot be used any more; `str()` gives the reason."""


def pack(command: tuple[bytes, ...]) -> bytes:
    """Encode one command."""
    return cast("bytes", hiredis.pack_command(cast("tuple[Any]", command)))


def is_push(reply: object) -> bool:
    """Whether a reply is an out-of-band message of RESP3."""
    return isinstance(reply, hiredis.PushNotification)


def pairs(reply: Any) -> Mapping[Any, Any]:
    """A map reply. With RESP2 it is a list that alternates names and values."""
    if isinstance(reply, list):
        return dict(zip(reply[::2], reply[1::2], strict=False))
    return reply if isinstance(reply, dict) else {}


class Parser(asyncio.BufferedProtocol):
    """The asyncio protocol of a connection to a server. Only one task may call `read`.

    Attributes:
        received_bytes: bytes received so far.
        partial_bytes: bytes received of the reply that is not complete yet.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._parser = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._arrived: list[bytes] = []
        self._unread_bytes = 0
        self._paused = False
        self._lost: ConnectionLost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.received_bytes = 0
        self.partial_bytes = 0

    def take_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Become the protocol of the streams' transport; the streams cannot read after this."""
        transport = cast("asyncio.Transport", writer.transport)
        transport.pause_reading()  # uvloop checks the type of the protocol when reading starts.
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
        """Wait until data has arrived.

        Returns:
            The next 0..n replies, to be consumed before the next call. Each reply is parsed on
            demand, because a thousand lists at once would trigger the garbage collector.

        Raises:
            ConnectionLost: the connection has ended and every reply has been read.
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
            self._lost = _not_a_reply(exc)
            self._arrived.clear()
            self._pause()

    def parse_now(self, data: bytes) -> list[Any]:
        """Parse bytes that were read in place of the transport; returns the complete replies.

        For any thread, between `stop_reading` and `read_again`.

        Raises:
            ConnectionLost: the bytes are no replies.
        """
        self.received_bytes += len(data)
        self.partial_bytes += len(data)
        gets = self._parser.gets
        replies: list[Any] = []
        try:
            self._parser.feed(data)
            while (reply := gets()) is not _INCOMPLETE:
                replies.append(reply)
        except Exception as exc:
            raise _not_a_reply(exc) from exc
        if replies:
            self.partial_bytes = 0
        return replies

    def stop_reading(self) -> bool:
        """Stop reading from the network; False if received bytes have not been read by `read`."""
        if self._arrived or self.partial_bytes or self._lost is not None or self._paused:
            return False
        self._pause()
        return True

    def read_again(self) -> None:
        """Undo `stop_reading`."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

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
            self._lost = ConnectionLost(problem)
            self._lost.__cause__ = exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _not_a_reply(exc: Exception) -> ConnectionLost:
    # ProtocolError, MemoryError for a huge length, or TypeError for a list as a map's key.
    problem = str(exc) or type(exc).__name__
    return ConnectionLost(f"not a reply of a Redis or Valkey server: {problem}")


_INCOMPLETE = object()
