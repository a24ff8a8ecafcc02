"""A light websocket client: many connections on one selector, frames counted and not decoded.

Run as a process of its own: connects, prints "joined <seconds>" once every socket has its greeting,
then for each line "expect <frames>" on stdin prints "heard <seconds>" when so many have come.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

REQUEST = (
    "GET /{room} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
CONNECTING_AT_ONCE = 64
GIVE_UP_SECONDS = 60.0


class Connection:
    """One websocket, from the server's first byte on."""

    __slots__ = ("_buffer", "_open", "socket")

    def __init__(self, port: int, room: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(REQUEST.format(room=room, port=port).encode())
        self.socket.setblocking(False)
        self._buffer = b""
        self._open = False

    def read(self) -> int:
        """Take what has come; returns how many data frames ended in it."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("the server has closed a connection")
        data = self._buffer + data
        start = 0
        if not self._open:
            start = data.find(b"\r\n\r\n") + 4
            if start < 4:
                self._buffer = data
                return 0
            if not data.startswith(b"HTTP/1.1 101"):
                raise SystemExit(f"the server refused the handshake: {data[:200]!r}")
            self._open = True
        frames, end = 0, len(data)
        while end - start >= 2:
            kind, size, head = data[start] & 15, data[start + 1] & 127, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[start + 2 : start + head], "big")
            if end - start < head + size:
                break
            start += head + size
            frames += kind in (1, 2)
        self._buffer = data[start:]
        return frames


class Crowd:
    """All connections of one run."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.heard = 0

    def join(self, port: int, rooms: list[str]) -> None:
        """Connect one socket for each room; a few at a time, so that no backlog overflows."""
        for number, room in enumerate(rooms):
            connection = Connection(port, room)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            if number - self.heard >= CONNECTING_AT_ONCE:
                self.hear(number - CONNECTING_AT_ONCE // 2)
        self.hear(len(rooms))

    def hear(self, frames: int) -> None:
        """Read until so many frames have come in all."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self.heard < frames:
            for key, _ in self._selector.select(1):
                self.heard += key.data.read()
            if time.monotonic() > deadline:
                raise SystemExit(f"heard {self.heard} of {frames} frames")


def main() -> None:
    port, sockets, rooms = map(int, sys.argv[1:])
    crowd = Crowd()
    started = time.perf_counter()
    crowd.join(port, [f"room-{number % rooms}" for number in range(sockets)])
    print("joined", time.perf_counter() - started, flush=True)
    for line in sys.stdin:
        crowd.hear(sockets + int(line.split()[1]))
        print("heard", time.perf_counter(), flush=True)


if __name__ == "__main__":
    main()
