"""FaultProxy: a TCP proxy on a loopback port that can lose what it carries.

For tests: put it between a broker and its server, in the test's own event loop.
"""

from __future__ import annotations

import asyncio
from typing import Literal

__all__ = ["FaultProxy"]

CHUNK_BYTES = 64 * 1024
Direction = Literal["both", "reads", "writes"]


class _Connection:
    """One client's connection with its counterpart at the target."""

    def __init__(self, client: asyncio.StreamWriter, target: asyncio.StreamWriter) -> None:
        self.client = client
        self.target = target
        self.swallow_reads = False
        self.swallow_writes = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.target.transport.abort()


class FaultProxy:
    """Forwards connections to a target until told otherwise; use it with `async with`.

    "reads" are the bytes that the client would read (from the target), "writes" those it writes.

    Args:
        host, port: the target.

    Attributes:
        port: where the proxy listens on 127.0.0.1.
        delay_seconds: every chunk waits so long before it is forwarded.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._target_port = port
        self.port = 0
        self.delay_seconds = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def blackhole(self, direction: Direction = "both") -> None:
        """From now on swallow what the existing connections carry; new ones are forwarded.

        The sockets stay open: neither side sees more than silence.
        """
        for connection in self._connections:
            connection.swallow_reads |= direction in ("both", "reads")
            connection.swallow_writes |= direction in ("both", "writes")

    def drop(self) -> None:
        """Reset the existing connections."""
        for connection in list(self._connections):
            connection.abort()

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections as soon as they come, or forward them again."""
        self._refusing = refusing

    async def aclose(self) -> None:
        """Stop listening and reset everything; leaves no task."""
        if self._server is not None:
            self._server.close()
        self.drop()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        try:
            if self._refusing:
                writer.transport.abort()
                return
            try:
                from_target, to_target = await asyncio.open_connection(
                    self._host, self._target_port
                )
            except OSError:
                writer.transport.abort()
                return
            connection = _Connection(writer, to_target)
            self._connections.add(connection)
            try:
                await self._forward(connection, reader, from_target)
            finally:
                self._connections.discard(connection)
                connection.abort()
        except asyncio.CancelledError:
            writer.transport.abort()  # aclose: the stream server's own callback would log it.
        finally:
            self._tasks.discard(task)

    async def _forward(
        self,
        connection: _Connection,
        from_client: asyncio.StreamReader,
        from_target: asyncio.StreamReader,
    ) -> None:
        pumps = [
            asyncio.ensure_future(self._pump(connection, from_client, connection.target, True)),
            asyncio.ensure_future(self._pump(connection, from_target, connection.client, False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_write: bool,
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if connection.swallow_writes if is_write else connection.swallow_reads:
                continue
            writer.write(data)
            await writer.drain()
