"""Publishes for every peer, from the process of `make bench`, not from a server's process."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import hiredis

from . import wire
from .brokers import Broker
from .contenders import CORE
from .environments import APPS, Peer
from .results import Failed

Texts = Iterable[tuple[str, str]]
"""Rooms, and a JSON text for each."""


class Publisher(Protocol):
    """The way in which a peer publishes."""

    def prepare(self, texts: Texts) -> Sequence[bytes]:
        """Create the data for `send`, in order."""

    def send(self, prepared: Sequence[bytes]) -> list[int]:
        """Send the data, and wait until the broker has received it.

        Returns:
            For each message the number of connections that received it; [] if the broker does not
            report it.
        """


@contextlib.contextmanager
def publisher_for(peer: Peer, broker: Broker) -> Iterator[Publisher]:
    """The publisher for a peer."""
    if peer is CORE:
        with _GroupSend(peer, broker) as group_send:
            yield group_send
    else:
        kind = _SenderLeftOut if peer.leaves_out_sender else _Wire
        with contextlib.ExitStack() as connections:
            yield kind(peer, broker, connections)


class _Wire:
    """Commands over a connection to each server."""

    def __init__(self, peer: Peer, broker: Broker, stack: contextlib.ExitStack) -> None:
        self._message: wire.Message = getattr(wire, peer.wire or peer.key)()
        self._verb = b"SPUBLISH" if broker.sharded else b"PUBLISH"
        self._broker = broker
        self._connections = {
            node.port: stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            for node in broker.nodes
        }
        for connection in self._connections.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ports: dict[bytes, int] = {}

    def prepare(self, texts: Texts) -> Sequence[bytes]:
        prepared = []
        for room, text in texts:
            channel, payload = self._message(room, text)
            command = wire.command(self._verb, channel, payload)
            if len(self._connections) > 1:
                self._ports[command] = self._broker.port_of(channel)
            prepared.append(command)
        return prepared

    def send(self, prepared: Sequence[bytes]) -> list[int]:
        if len(self._connections) == 1:
            (connection,) = self._connections.values()
            connection.sendall(b"".join(prepared))
            return _replies(connection, len(prepared))
        by_port: dict[int, list[bytes]] = {port: [] for port in self._connections}
        for command in prepared:
            by_port[self._ports[command]].append(command)
        for port, commands in by_port.items():
            self._connections[port].sendall(b"".join(commands))
        return [
            count
            for port, commands in by_port.items()
            for count in _replies(self._connections[port], len(commands))
        ]


class _SenderLeftOut(_Wire):
    """Publishes messages that one socket of the application does not get.

    The first socket broadcasts a message with `exclude_self` when it connects. The messages that
    are published here carry the same id.
    """

    def __init__(self, peer: Peer, broker: Broker, stack: contextlib.ExitStack) -> None:
        super().__init__(peer, broker, stack)
        (channel, _) = self._message("sender", "")
        port = broker.port_of(channel)
        self._sender = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        self._sender.sendall(hiredis.pack_command((b"SUBSCRIBE", channel)))  # type: ignore[arg-type]
        _replies(self._sender, 1)
        self._known = False

    def prepare(self, texts: Texts) -> Sequence[bytes]:
        """Create the data for `send`; the sockets must have connected."""
        if not self._known:
            ((_, _, message),) = _replies(self._sender, 1)
            self._message = wire.ours(wire.origin_of(message))
            self._known = True
        return super().prepare(texts)


def _replies(connection: socket.socket, count: int) -> list[Any]:
    parser = hiredis.Reader()
    replies: list[Any] = []
    while len(replies) < count:
        parser.feed(connection.recv(1 << 16))
        while (reply := parser.gets()) is not False:
            if isinstance(reply, Exception):
                raise Failed(f"the broker refused a message: {reply}")
            replies.append(reply)
    return replies


class _GroupSend:
    """A process that calls the core layer's `group_send`; use it with `with`."""

    def __init__(self, peer: Peer, broker: Broker) -> None:
        self._command = [str(peer.python), str(APPS / "channels_publisher.py")]
        self._environ = {**peer.environ(), "BENCH_BROKER_URL": broker.url}

    def __enter__(self) -> _GroupSend:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, env=self._environ, cwd="/"
        )
        self.send([])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def prepare(self, texts: Texts) -> Sequence[bytes]:
        return [f"{room}\t{text}\n".encode() for room, text in texts]

    def send(self, prepared: Sequence[bytes]) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"".join([*prepared, b"\n"]))
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"done\n":
            raise Failed("group_send has failed")
        return []
