"""FaultProxy: a TCP proxy on a loopback port that can lose, delay and refuse.

For tests, on Linux and macOS: put it between a client and its server, in the test's own event loop.
It carries bytes and does not look at them: TLS passes through, too.
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

# SO_LINGER for a close that resets (RST) instead of ending (FIN), and for a usual one.
_RESET, _END = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


class _Connection:
    """A client's connection and its other half; `swallowed` holds the directions that are lost.

    Both halves reset when they are closed, until `end_well`.
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
    """Forwards connections to a target until told otherwise; use it with `async with`.

    "reads" are the bytes on their way from the target to the client, "writes" those to the target.
    What the kernel or a peer that does not read has taken over already is beyond every fault. The
    proxy holds at most some 128 KiB for each connection and direction.

    Args:
        host: the target's, a name or an IPv4 address.
        port: the target's.

    Attributes:
        port: where the proxy listens on 127.0.0.1, the same for its whole life.
        delay_seconds: how long every chunk waits before it is forwarded. What arrives meanwhile is
            the next chunk, so that a byte is late by one to two delays.
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
        """The connections that are open now."""
        return len(self._connections)

    def blackhole(self, direction: Direction = "both", *, existing_only: bool = True) -> None:
        """From now on lose what the existing connections carry, the end of a connection included.

        The sockets stay open: neither peer sees more than silence. There is no way back for them,
        because bytes are missing.

        Args:
            direction: what is lost.
            existing_only: connections made later work; else they are lost, too, until `accept`.
        """
        lost = frozenset(("reads", "writes") if direction == "both" else (direction,))
        for connection in self._connections.values():
            connection.swallowed |= lost
        if not existing_only:
            self._swallow_new = lost

    def drop(self) -> None:
        """Reset (RST) the existing connections on both sides, in the loop's next turns."""
        for task in self._connections:
            task.cancel()

    def refuse(self) -> None:
        """Stop listening: new connections are refused. Existing ones go on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Take new connections and forward them: the end of `refuse`, and of losing new ones."""
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
        """Stop listening and reset all connections; leaves no task. May be called twice."""
        self.refuse()
        self.drop()
        if self._connections:
            await asyncio.wait(list(self._connections))

    def _take(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # It was gone before we came.
        connection = _Connection(client, self._swallow_new)
        task = asyncio.get_running_loop().create_task(
            self._carry(connection), name="FaultProxy connection"
        )
        self._connections[task] = connection
        # Not in the task: one that is cancelled before its first step runs no `finally`.
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
                # asyncio's abort() trips over a transport that flushed its buffer after close().
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
        """Carry one direction to its end, and then the end itself: EOF or reset."""
        was_reset = False
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if direction in connection.swallowed or writer.is_closing():
                    continue
                writer.write(chunk)
                with contextlib.suppress(OSError):  # It is the other direction's to report.
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
