"""FaultProxy: a TCP proxy on a loopback port that can lose and delay bytes and refuse connections.

Use it in tests on Linux and macOS, between a client and its server, in the test's own event loop.
It does not interpret the bytes, so that it also works with TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal

from .ports import HOST, bind_free_port

__all__ = ["Direction", "FaultProxy"]

Direction = Literal["both", "reads", "writes"]

_CHUNK_BYTES = 64 * 1024

# SO_LINGER for a close that resets the connection (RST), and for one that ends it (FIN).
_RESET, _END = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


class _Connection:
    """A connection of a client and the one to the target.

    Both are reset when they are closed, unless `end_well` was called.

    Attributes:
        swallowed: the directions whose bytes are lost.
    """

    def __init__(self, client: socket.socket, swallowed: frozenset[str]) -> None:
        self.client = client
        self.target = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.swallowed = swallowed
        for half in (self.client, self.target):
            half.setblocking(False)
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def end_well(self) -> None:
        for half in (self.client, self.target):
            with contextlib.suppress(OSError):
                half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _END)

    def close(self) -> None:
        self.client.close()
        self.target.close()


class FaultProxy:
    """Forwards connections to a target, with faults; use it with `async with`.

    "reads" are the bytes from the target to the client, "writes" the bytes to the target. Faults do
    not affect bytes that are already in a buffer of the kernel. The proxy holds at most about
    128 KiB for each connection and direction.

    Args:
        host: name or IPv4 address of the target.
        port: port of the target.

    Attributes:
        port: the port on which the proxy listens on 127.0.0.1. It never changes.
        delay_seconds: the wait before each chunk is forwarded. Bytes that arrive during the wait
            are the next chunk, so that a byte is delayed once or twice. Default: 0.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self.delay_seconds = 0.0
        self._listener: socket.socket | None = None
        self._swallow_new: frozenset[str] = frozenset()
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def __aenter__(self) -> FaultProxy:
        self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def blackhole(self, direction: Direction = "both", *, existing_only: bool = True) -> None:
        """From now on lose the bytes of the existing connections, including their end.

        The sockets stay open: the peers receive nothing and no error. This cannot be undone for a
        connection, because bytes are missing.

        Args:
            direction: the bytes to lose.
            existing_only: whether later connections work. With False their bytes are lost, too,
                until `accept`. Default: True.
        """
        lost = frozenset(("reads", "writes") if direction == "both" else (direction,))
        for connection in self._connections.values():
            connection.swallowed |= lost
        if not existing_only:
            self._swallow_new = lost

    def drop(self) -> None:
        """Reset (RST) the existing connections on both sides, in the next turns of the loop."""
        for task in self._connections:
            task.cancel()

    def refuse(self) -> None:
        """Stop listening: new connections are refused. Existing connections stay open."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept and forward new connections again, after `refuse` or `blackhole`."""
        self._swallow_new = frozenset()
        if self._listener is not None:
            return
        listener = socket.create_server((HOST, self.port)) if self.port else bind_free_port()
        listener.listen()
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(listener, self._take, listener)
        self._listener = listener

    async def aclose(self) -> None:
        """Stop listening, reset all connections, end all tasks. A repeated call has no effect."""
        self.refuse()
        self.drop()
        if self._connections:
            await asyncio.wait(list(self._connections))

    def _take(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # The client has closed the connection already.
        connection = _Connection(client, self._swallow_new)
        task = asyncio.get_running_loop().create_task(
            self._carry(connection), name="FaultProxy connection"
        )
        self._connections[task] = connection
        # A `finally` in the task would not run if the task is cancelled before its first step.
        task.add_done_callback(lambda task: self._connections.pop(task).close())

    async def _carry(self, connection: _Connection) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            await asyncio.get_running_loop().sock_connect(connection.target, self._target)
            from_client, to_client = await asyncio.open_connection(sock=connection.client)
            writers.append(to_client)
            from_target, to_target = await asyncio.open_connection(sock=connection.target)
            writers.append(to_target)
            await asyncio.gather(
                self._pump(connection, "writes", from_client, to_target),
                self._pump(connection, "reads", from_target, to_client),
            )
            connection.end_well()
            for writer in writers:
                writer.close()
                await writer.wait_closed()
        except OSError:
            pass  # The target is down, or a peer went away while its last bytes were written.
        finally:
            for writer in writers:
                # asyncio's abort() fails for a transport that flushed its buffer after close().
                with contextlib.suppress(AttributeError):
                    writer.transport.abort()
            for writer in writers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _pump(
        self,
        connection: _Connection,
        direction: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Forward the bytes of one direction, and then its end: EOF or reset."""
        was_reset = False
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if direction in connection.swallowed or writer.is_closing():
                    continue
                writer.write(chunk)
                with contextlib.suppress(OSError):  # The other direction reports the error.
                    await writer.drain()
        except OSError:
            was_reset = True
        if direction in connection.swallowed:
            return
        if was_reset:
            writer.transport.abort()
        else:
            with contextlib.suppress(OSError):
                writer.write_eof()
