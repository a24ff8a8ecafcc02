"""A light websocket client: many connections on one selector, frames counted and not decoded.

It runs as a process of its own. The first line on stdin is JSON, the fields of `Wanted`: it opens
one socket for each path. It answers "joined <from> <to>" (perf_counter) when every socket has
received its greeting or, without `greets`, its handshake. Each further line is a request. The
client answers when that many frames have come:

    count <frames>    "received <perf_counter> <bytes>"; the bytes include the frames' headers
    bulk <frames>     the same, with few reads, so that the client needs little CPU
    time <frames>     "microseconds <p50> <p99> <max>" since the time written in each frame
    each <seconds>    "silent <sockets> <perf_counter>" when every socket has received a frame, or
                      after the time

The answer to an error is "failed <reason>".
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import socket
import sys
import time

from .frame_counter import CountFrames, complete_frames, counter

REQUEST = (
    "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n{extensions}\r\n"
)
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
"""What Chromium and Firefox offer."""
CONNECTING_AT_ONCE = 64
GIVE_UP_SECONDS = 60.0
BULK_PAUSES_SECONDS = (0.01, 0.05)
"""The shortest and the longest pause between reads. In between, it is a fiftieth of the time since
the request: the end of a short burst is noticed soon, and a long one needs few reads."""
BULK_END = 0.1
"""The share of the frames, at the end, that is read without pauses: the end is then noticed at
once."""

STAMP = '"at":"'
STAMP_DIGITS = 20
"""`"at":"<20 digits>"` in a frame is the `time.perf_counter_ns()` of its publish. All processes of
a Linux machine have the same clock."""


class ClientError(Exception):
    """Ends the client; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the connections are.

    Attributes:
        paths: one for each connection.
        greets: the server sends a frame when a connection has subscribed.
        deflate: offer compression; it is an error if the server does not accept it.
        library: the path of `count_frames` in C; "" for the one in Python.
    """

    port: int
    paths: list[str]
    greets: bool
    deflate: bool
    library: str


class Connection:
    """One websocket.

    Attributes:
        received: number of data frames so far.
        received_bytes: length of all frames so far.
    """

    __slots__ = ("_buffer", "_count", "_open", "_wanted", "received", "received_bytes", "socket")

    def __init__(self, wanted: Wanted, path: str, count: CountFrames) -> None:
        extensions = DEFLATE if wanted.deflate else ""
        request = REQUEST.format(path=path, port=wanted.port, extensions=extensions)
        self.socket = socket.create_connection(("127.0.0.1", wanted.port))
        self.socket.sendall(request.encode())
        self.socket.setblocking(False)
        self._buffer = b""
        self._count = count
        self._wanted = wanted
        self._open = False
        self.received = self.received_bytes = 0

    def read(self, latencies_ns: list[int] | None) -> int:
        """Read the available data; return the number of data frames that are complete now."""
        data = self.socket.recv(1 << 18)
        now = time.perf_counter_ns()
        if not data:
            raise ClientError("the server has closed a connection")
        if self._buffer:
            data = self._buffer + data
        greeted = 0
        if not self._open:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._buffer = data
                return 0
            self._check(data[:end])
            data = data[end:]
            greeted = 0 if self._wanted.greets else 1
        counted = self._count(data, len(data))
        if counted.closes:
            raise ClientError(f"the server closes: {data[-200:]!r}")
        if latencies_ns is not None:
            for _, start, _ in complete_frames(data):
                digits = data.index(STAMP.encode(), start) + len(STAMP)
                latencies_ns.append(now - int(data[digits : digits + STAMP_DIGITS]))
        self._buffer = data[counted.bytes :]
        self.received += counted.frames
        self.received_bytes += counted.bytes
        return counted.frames + greeted

    def _check(self, response: bytes) -> None:
        """Check the response to the handshake."""
        if not response.startswith(b"HTTP/1.1 101"):
            raise ClientError(f"the server refused the handshake: {response[:200]!r}")
        if self._wanted.deflate and b"permessage-deflate" not in response:
            raise ClientError("the server does not compress")
        self._open = True


class Connections:
    """All connections of one run."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._received = 0
        self._expected = 0
        self._latencies_ns: list[int] | None = None

    def join(self, wanted: Wanted) -> None:
        """Connect one socket for each path, a few at a time, so that no listen queue overflows."""
        count = counter(wanted.library)
        for number, path in enumerate(wanted.paths):
            connection = Connection(wanted, path, count)
            self._connections.append(connection)
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            if number - self._received >= CONNECTING_AT_ONCE:
                self._receive(number - CONNECTING_AT_ONCE // 2)
        self.count(len(wanted.paths))

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

    def bytes(self) -> int:
        """Length of all frames so far."""
        return sum(connection.received_bytes for connection in self._connections)

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
        started = time.monotonic()
        shortest, longest = BULK_PAUSES_SECONDS
        while self._received < frames:
            seconds = time.monotonic() - started
            if self._received < seldom_until:
                time.sleep(min(longest, max(shortest, seconds / 50)))
            self._read(1)
            if seconds > GIVE_UP_SECONDS:
                raise ClientError(f"received {self._received} of {frames} frames")

    def _read(self, seconds: float) -> list[Connection]:
        ready: list[Connection] = [key.data for key, _ in self._selector.select(seconds)]
        for connection in ready:
            self._received += connection.read(self._latencies_ns)
        return ready


def serve() -> None:
    """Answer the requests on stdin."""
    connections = Connections()
    wanted = Wanted(**json.loads(sys.stdin.readline()))
    started = time.perf_counter()
    connections.join(wanted)
    print("joined", started, time.perf_counter(), flush=True)
    for line in sys.stdin:
        request, number = line.split()
        if request in ("count", "bulk"):
            before = connections.bytes()
            (connections.count if request == "count" else connections.bulk)(int(number))
            received_at = time.perf_counter()
            print("received", received_at, connections.bytes() - before, flush=True)
        elif request == "time":
            print("microseconds", *connections.time(int(number)), flush=True)
        elif request == "each":
            print("silent", connections.each(float(number)), time.perf_counter(), flush=True)


if __name__ == "__main__":
    try:
        serve()
    except (ClientError, OSError) as exc:
        print("failed", exc, flush=True)
