"""`fakeredis://[name]`: the code of the redis backend on an in-memory fakeredis server.

It serves unit tests that run the real commands without a server. All brokers with the same name
share one fake server inside the process. TCP, TLS and dead peers cannot be tested with it.
"""

from __future__ import annotations

import importlib.util
import ssl
from typing import Any

import fakeredis
import hiredis
from redis import exceptions as driver
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..broker import Report, Sink
from ..errors import ConfigurationError, pip_command
from ..url import BrokerURL
from .client.connect_errors import Refused, connect_error
from .client.connection import Connection, ConnectionLost, ReplyError, consume_by_reading
from .client.identity import Identity
from .client.parser import Consumer, pack
from .redis import SingleNodeBroker

__all__ = ["FakeredisBroker", "fake_server"]

_HAS_LUA = importlib.util.find_spec("lupa") is not None
NO_LUA = f"the package 'lupa', which runs Lua scripts, is not installed: run {pip_command('lua')}"
_NOT_WHILE_SUBSCRIBED = (b"EVALSHA", b"HGETALL", b"SCRIPT")

_servers: dict[str, fakeredis.FakeServer] = {}


def fake_server(name: str = "") -> fakeredis.FakeServer:
    """The fake server of `fakeredis://name`. Set its `connected` to False to take it down."""
    return _servers.setdefault(name, fakeredis.FakeServer(version=(7,)))


class FakeredisBroker(SingleNodeBroker):
    """The broker of one server, with connections to a fake server."""

    def __init__(self, url: BrokerURL, sink: Sink) -> None:
        url.check_extra({})
        if url.history and not _HAS_LUA:
            raise ConfigurationError(f"{url}: no history: {NO_LUA}")
        self._server = fake_server(",".join(map(str, url.addresses)) + url.path)
        super().__init__(
            url,
            sink,
            open_connection=self._open_connection,
            no_scripts="" if _HAS_LUA else NO_LUA,
        )

    async def inspect(self) -> Report:
        """Describe the fake server."""
        return Report(
            server="fakeredis inside this process",
            topology="in process",
            warnings=["other processes receive nothing: use a server if there is more than one"],
        )

    async def _open_connection(self) -> Connection:
        return FakeConnection(await self._connect(), self._server, await self._connect())

    async def _connect(self) -> Any:
        connection = fakeredis.FakeAsyncRedisConnection(
            server=self._server,
            protocol=3,
            retry=Retry(NoBackoff(), 0),
            username=self.url.username,
            password=self.url.password,
            driver_info=None,
        )
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except driver.AuthenticationError as exc:
            failure: Exception = Refused("AUTH", str(exc), of_credentials=True)
        except driver.RedisError as exc:
            failure = OSError(str(exc))
        else:
            return connection
        raise connect_error(self.url, "the fake server", failure)


class FakeConnection:
    """A connection whose replies arrive as Python objects; see `client.connection.Connection`.

    Args:
        other: another connection for reads and scripts, because a fake connection with
            subscriptions refuses them. A command takes effect while it is written, so that their
            replies stand at the same place in the stream as with a real server.
    """

    identity = Identity()
    protocol = 3
    tls: ssl.SSLObject | None = None
    held_seconds = 0.0
    held_since: float | None = None
    partial_bytes = 0

    def __init__(self, connection: Any, server: fakeredis.FakeServer, other: Any) -> None:
        self._connection = connection
        self._server = server
        self._socket = connection._sock
        self._other = other
        self._other_socket = other._sock
        self._open = True
        self.received_bytes = 0

    async def read(self) -> list[Any]:
        while True:
            self._check()
            replies = []
            while not self._socket.responses.empty():
                replies.append(_reply(self._socket.responses.get_nowait()))
            if replies:
                return replies
            await self._connection.can_read(None)

    async def consume(self, consumer: Consumer) -> None:
        await consume_by_reading(self, consumer)

    def write(self, data: bytes) -> None:
        self._check()
        try:
            self._write_commands(data)
        except driver.ConnectionError as exc:
            raise ConnectionLost(f"connection lost: {exc}") from exc

    def _write_commands(self, data: bytes) -> None:
        commands = hiredis.Reader()
        commands.feed(data)
        while (command := commands.gets()) is not False:
            if command[0] not in _NOT_WHILE_SUBSCRIBED:
                self._socket.sendall(pack(tuple(command)))
                continue
            self._other_socket.sendall(pack(tuple(command)))
            while not self._other_socket.responses.empty():
                self._socket.put_response(self._other_socket.responses.get_nowait())

    def thread_socket(self) -> None:
        """There is no socket: the event loop publishes for all threads."""

    def stop_reading(self) -> bool:
        return False

    def read_again(self) -> None:
        pass

    def _check(self) -> None:
        if not self._open or not self._server.connected:
            self.abort()
            raise ConnectionLost("connection closed")

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._connection._sock = None
            self._socket.close()
            self._socket._response_available.set()
            self._other._sock = None
            self._other_socket.close()


def _reply(value: Any) -> Any:
    if isinstance(value, driver.NoScriptError):  # fakeredis leaves the code of the error out.
        return ReplyError(f"NOSCRIPT {value}")
    return ReplyError(str(value)) if isinstance(value, Exception) else value
