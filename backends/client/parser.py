"""The RESP protocol: replies parsed as they are read, and commands encoded.

asyncio's streams copy all data twice on its way to the parser. They do so in blocks so large that
the allocator returns each of them to the kernel, which cost more than all other work per message.
`Parser` therefore takes the transport over from the streams and reads into one buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Protocol, cast

import hiredis

__all__ = ["ConnectionLost", "Consumer", "Parser", "ReplyError", "is_push", "pack", "pairs"]

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


class Consumer(Protocol):
    """Takes the replies of a connection as they arrive. An exception ends the connection."""

    def take(self, replies: Iterator[Any]) -> Coroutine[Any, Any, object] | None:
        """Handle replies.

        Returns:
            None when all are handled. Else a coroutine to await, after which `take` is called again
            with the same iterator.
        """

    def flush(self) -> Coroutine[Any, Any, object] | None:
        """All data that has arrived is taken; called after `take`, and again like `take`."""


class Parser(asyncio.BufferedProtocol):
    """The asyncio protocol of a connection to a server.

    One task reads the replies: `read` returns them when the task asks for them. `consume` passes
    them to a consumer within the callback of the transport, which saves the switch to the task.

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
        self._consumer: Consumer | None = None
        # What `consume` has not passed on yet.
        self._chunks: list[bytes] = []
        self._replies: Iterator[Any] | None = None
        self._pending: Coroutine[Any, Any, object] | None = None
        self._failure: Exception | None = None
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
            The next 0..n replies, to be consumed before the next call.

        Raises:
            ConnectionLost: the connection has ended and every reply has been read.
        """
        while not self._arrived:
            if self._lost is not None:
                raise self._lost
            await self._wait()
        self._next_chunks()
        self._resume()
        return self._parse()

    async def _wait(self) -> None:
        """Wait until something has happened."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _parse(self) -> Iterator[Any]:
        while self._chunks:
            yield from self._parse_chunk(self._chunks.pop())

    async def consume(self, consumer: Consumer) -> None:
        """Pass all replies to a consumer, until the connection has ended.

        As long as the consumer has nothing to wait for, it runs within the callback of the
        transport. Otherwise this task waits, and the transport pauses.

        Raises:
            ConnectionLost: the connection has ended and every reply was passed on.
            Exception: any error of the consumer.
        """
        self._consumer = consumer
        try:
            while True:
                while self._pending is not None:
                    await self._pending
                    self._pending = None
                    self._pump(consumer)
                if self._failure is not None:
                    raise self._failure
                if self._arrived:
                    self._pump(consumer)
                    continue
                if self._lost is not None:
                    raise self._lost
                self._resume()
                await self._wait()
        finally:
            self._consumer = None
            if self._pending is not None:
                self._pending.close()

    def _pump(self, consumer: Consumer) -> None:
        """Pass on what has arrived, until the consumer has to wait."""
        try:
            while True:
                if self._replies is None:
                    if not self._chunks and not self._next_chunks():
                        self._pending = consumer.flush()
                        if self._pending is None and self._lost is None:
                            return
                        break
                    self._replies = self._parse_chunk(self._chunks.pop())
                self._pending = consumer.take(self._replies)
                if self._pending is not None:
                    break
                self._replies = None
        except Exception as exc:
            self._failed(exc)
        self._pause()
        self._wake()

    def _failed(self, exc: Exception) -> None:
        self._failure = exc
        self._consumer = None

    def _pass_on(self, consumer: Consumer, data: bytes) -> None:
        """`_pump` for data that fits one chunk, while nothing else has arrived."""
        try:
            self._replies = replies = self._parse_chunk(data)
            self._pending = consumer.take(replies)
            if self._pending is None:
                self._replies = None
                self._pending = consumer.flush()
                if self._pending is None and self._lost is None:
                    return
        except Exception as exc:
            self._failed(exc)
        self._pause()
        self._wake()

    def _next_chunks(self) -> bool:
        """Divide what has arrived into chunks, the first one last; False if nothing has."""
        if not self._arrived:
            return False
        arrived, self._arrived = self._arrived, []
        self._unread_bytes = 0
        self._chunks = [
            data[start : start + PARSE_CHUNK_BYTES]
            for data in arrived
            for start in range(0, len(data), PARSE_CHUNK_BYTES)
        ][::-1]
        return True

    def _parse_chunk(self, chunk: bytes) -> Iterator[Any]:
        """The replies that are complete with this data.

        A chunk holds few replies: a thousand lists at once would trigger the garbage collector.
        """
        replies: list[Any] = []
        try:
            self._feed(chunk, replies)
        except ConnectionLost as exc:
            self._lost = exc
            self._chunks.clear()
            self._arrived.clear()
            self._pause()
        return iter(replies)

    def _feed(self, data: bytes, replies: list[Any]) -> None:
        """Append the replies that are complete with this data, also before an error.

        Raises:
            ConnectionLost: the data is no reply.
        """
        gets = self._parser.gets
        self.partial_bytes += len(data)
        try:
            self._parser.feed(data)
            while (reply := gets()) is not _INCOMPLETE:
                replies.append(reply)
        except Exception as exc:
            raise _not_a_reply(exc) from exc
        finally:
            if replies:
                self.partial_bytes = 0

    def parse_now(self, data: bytes) -> list[Any]:
        """Parse bytes that were read in place of the transport; returns the complete replies.

        For any thread, between `stop_reading` and `read_again`.

        Raises:
            ConnectionLost: the bytes are no replies.
        """
        self.received_bytes += len(data)
        replies: list[Any] = []
        self._feed(data, replies)
        return replies

    def stop_reading(self) -> bool:
        """Stop reading from the network; False if received bytes have not been read by `read`."""
        if (
            self._arrived
            or self._chunks
            or self.partial_bytes
            or self._lost is not None
            or self._paused
        ):
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
        data = bytes(self._buffer[:nbytes])
        consumer = self._consumer
        if (
            consumer is None
            or nbytes > PARSE_CHUNK_BYTES
            or self._pending is not None
            or self._lost is not None
        ):
            self._arrive(data)
        else:
            self.received_bytes += nbytes
            self._pass_on(consumer, data)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _arrive(self, data: bytes) -> None:
        if self._lost is not None:
            return
        self._arrived.append(data)
        self.received_bytes += len(data)
        consumer = self._consumer
        if consumer is not None and self._pending is None and self._replies is None:
            self._pump(consumer)
            return
        self._unread_bytes += len(data)
        if self._unread_bytes >= UNREAD_BYTES:
            self._pause()
        self._wake()

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

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
