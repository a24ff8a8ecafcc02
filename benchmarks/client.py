"""A light websocket client: many connections on one selector, frames counted and not decoded.

It runs as a process of its own. The first line on stdin is JSON, `{"port", "paths", "greets"}`: it
opens one socket for each path. It answers "joined <from> <to>" (perf_counter) when every socket has
received its greeting or, without `greets`, its handshake. Each further line is a request. The
client answers when that many frames have come:

    count <frames>    "received <perf_counter>"
    bulk <frames>     the same, with few reads, so that the client needs little CPU
    time <frames>     "microseconds <p50> <p99> <max>" since the time written in each frame
    each <seconds>    "silent <sockets> <perf_counter>" when every socket has received a frame, or
                      after the time

The answer to an error is "failed <reason>".
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

REQUEST = (
    "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
CONNECTING_AT_ONCE = 64
GIVE_UP_SECONDS = 60.0
BULK_PAUSE_SECONDS = 0.05
BULK_END = 0.1
"""The share of the frames, at the end, that is read without pauses: the end is then noticed at
once."""

STAMP = '"at":"'
STAMP_DIGITS = 20
"""`"at":"<20 digits>"` in a frame is the `time.perf_counter_ns()` of its publish. All processes of
a Linux machine have the same clock."""


class ClientError(Exception):
    """Ends the client; the text is the reason."""


class Connection:
    """One websocket.

    Attributes:
        received: number of data frames so far.
    """

    __slots__ = ("_buffer", "_greets", "_open", "received", "socket")

    def __init__(self, port: int, path: str, greets: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(REQUEST.format(path=path, port=port).encode())
        self.socket.setblocking(False)
        self._buffer = b""
        self._greets = greets
        self._open = False
        self.received = 0

    def read(self, latencies_ns: list[int] | None) -> int:
        """Read the available data; return the number of data frames that are complete now."""
        data = self.socket.recv(1 << 18)
        now = time.perf_counter_ns()
        if not data:
            raise ClientError("the server has closed a connection")
        if self._buffer:
            data = self._buffer + data
        start = frames = 0
        if not self._open:
            start = data.find(b"\r\n\r\n") + 4
            if start < 4:
                self._buffer = data
                return 0
            if not data.startswith(b"HTTP/1.1 101"):
                raise ClientError(f"the server refused the handshake: {data[:200]!r}")
            self._open = True
            frames = 0 if self._greets else 1
        end = len(data)
        while end - start >= 2:
            kind, size, head = data[start] & 15, data[start + 1] & 127, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                size = int.from_bytes(data[start + 2 : start + head], "big")
            if end - start < head + size:
                break
            if kind == 8:
                raise ClientError(f"the server closes: {data[start:]!r}")
            if latencies_ns is not None:
                digits = data.index(STAMP.encode(), start) + len(STAMP)
                latencies_ns.append(now - int(data[digits : digits + STAMP_DIGITS]))
            start += head + size
            frames += kind in (1, 2)
        self._buffer = data[start:]
        self.received += frames
        return frames


class Connections:
    """All connections of one run."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._received = 0
        self._expected = 0
        self._latencies_ns: list[int] | None = None

    def join(self, port: int, paths: list[str], greets: bool) -> None:
        """Connect one socket for each path, a few at a time, so that no listen queue overflows."""
        for number, path in enumerate(paths):
            connection = Connection(port, path, greets)
            self._connections.append(connection)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            if number - self._received >= CONNECTING_AT_ONCE:
                self._receive(number - CONNECTING_AT_ONCE // 2)
        self.count(len(paths))

    def count(self, frames: int) -> None:
        """Read until `frames` more frames have come."""
        self._expected += frames
        self._receive(self._expected)

    def bulk(self, frames: int) -> None:
        """`count` for small frames: several frames are read at a time from one socket."""
        self._expected += frames
        self._receive(self._expected, seldom_until=self._expected - int(frames * BULK_END))

    def time(self, frames: int) -> list[float]:
        """`count`; return p50, p99 and maximum of the latencies in microseconds."""
        latencies_ns: list[int] = []
        self._latencies_ns = latencies_ns
        self.count(frames)
        self._latencies_ns = None
        latencies_ns.sort()
        places = (len(latencies_ns) // 2, len(latencies_ns) * 99 // 100, len(latencies_ns) - 1)
        return [latencies_ns[place] / 1000 for place in places]

    def each(self, seconds: float) -> int:
        """Read until every socket has received a frame; return the number of those without one."""
        before = {connection: connection.received for connection in self._connections}
        deadline = time.monotonic() + seconds
        while before and time.monotonic() < deadline:
            for connection in self._read(0.1):
                if connection.received > before.get(connection, connection.received):
                    del before[connection]
        return len(before)

    def _receive(self, frames: int, seldom_until: int = 0) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self._received < frames:
            if self._received < seldom_until:
                time.sleep(BULK_PAUSE_SECONDS)
            self._read(1)
            if time.monotonic() > deadline:
                raise ClientError(f"received {self._received} of {frames} frames")

    def _read(self, seconds: float) -> list[Connection]:
        ready: list[Connection] = [key.data for key, _ in self._selector.select(seconds)]
        for connection in ready:
            self._received += connection.read(self._latencies_ns)
        return ready


def serve() -> None:
    """Answer the requests on stdin."""
    connections = Connections()
    wanted = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    connections.join(wanted["port"], wanted["paths"], wanted["greets"])
    print("joined", started, time.perf_counter(), flush=True)
    for line in sys.stdin:
        request, number = line.split()
        if request in ("count", "bulk"):
            (connections.count if request == "count" else connections.bulk)(int(number))
            print("received", time.perf_counter(), flush=True)
        elif request == "time":
            print("microseconds", *connections.time(int(number)), flush=True)
        elif request == "each":
            print("silent", connections.each(float(number)), time.perf_counter(), flush=True)


if __name__ == "__main__":
    try:
        serve()
    except (ClientError, OSError) as exc:
        print("failed", exc, flush=True)
