"""The work of one handshake inside uvicorn: CPU time, or bytecodes and calls of Python functions.

A handshake begins with the bytes of the client's request and ends when the application has
subscribed to a channel of its own. The transports keep what is written, so there is no network
between the client and the server. The broker is a real one: that of the variable BENCH_BROKER_URL,
else a new one. A few handshakes at a time begin in the same turn of the event loop.

    python -m benchmarks.inside.handshake ours            # CPU time, "ours" or "limit"
    python -m benchmarks.inside.handshake ours --count    # bytecodes and calls, by file
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import importlib
import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks.brokers import running

PEERS = Path(__file__).parents[1] / "peers"
ROOT = str(PEERS.parents[1])
BATCH = 4
"""One packet with SUBSCRIBE commands serves about so many connections of a storm."""
REQUEST = (
    "GET /room-{number} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
PROTOCOLS = {"ours": "django_sockets.servers.uvicorn:WebSocketProtocol"}


class Transport:
    """The server's side of a connection. The application greets after it has subscribed."""

    def __init__(self, joined: asyncio.Future[None]) -> None:
        self._joined = joined
        self._closing = False

    def write(self, data: bytes) -> None:
        if b"joined" in data:
            self._joined.set_result(None)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 8000) if name in ("sockname", "peername") else default

    def pause_reading(self) -> None:
        """The client sends nothing more."""

    def resume_reading(self) -> None:
        """The client sends nothing more."""


class Storm:
    """Handshakes with the application of one peer."""

    def __init__(self, peer: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = uvicorn.Config(
            importlib.import_module(peer).app,
            ws=PROTOCOLS.get(peer, "websockets-sansio"),
            log_level="critical",
            ws_per_message_deflate=False,
        )
        self._config.load()
        self._state = ServerState()
        self._number = 0
        self._open: list[Any] = []

    async def handshakes(self, count: int) -> None:
        """Open connections, in batches, and leave them open."""
        while count > 0:
            await asyncio.wait([self._begin() for _ in range(min(BATCH, count))])
            count -= BATCH

    def _begin(self) -> asyncio.Future[None]:
        joined = self._loop.create_future()
        protocol = self._config.ws_protocol_class(
            config=self._config, server_state=self._state, app_state={}, _loop=self._loop
        )
        self._open.append(protocol)
        protocol.connection_made(Transport(joined))
        protocol.data_received(REQUEST.format(number=self._number).encode())
        self._number += 1
        return joined

    async def close(self) -> None:
        for protocol in self._open:
            protocol.connection_lost(None)
        await asyncio.gather(*self._state.tasks)


class Counts:
    """Bytecodes and calls of Python functions, by file and function."""

    def __init__(self) -> None:
        self.bytecodes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.calls: collections.Counter[tuple[str, str]] = collections.Counter()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)

    def _trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        key = _place(frame.f_code)
        if event == "call":
            self.calls[key] += 1
        elif event == "opcode":
            self.bytecodes[key] += 1
        return self._trace

    def report(self, times: int) -> str:
        """A table for one handshake: our own code by function, and the sum of all other code."""
        sums = {"all of our functions": (0, 0), "all other functions": (0, 0)}
        rows = []
        for (file, function), bytecodes in self.bytecodes.most_common():
            calls = self.calls[file, function]
            ours = file.startswith("django_sockets")
            kind = "all of our functions" if ours else "all other functions"
            sums[kind] = sums[kind][0] + bytecodes, sums[kind][1] + calls
            if ours and bytecodes >= times:
                rows.append((f"{file} {function}", bytecodes, calls))
        rows += [(kind, *numbers) for kind, numbers in sums.items()]
        lines = [f"{b / times:9.1f} {c / times:6.2f} {name}" for name, b, c in rows]
        return "\n".join(["bytecodes  calls", *lines])


def _place(code: types.CodeType) -> tuple[str, str]:
    name = code.co_filename
    for root in (ROOT, *sys.path):
        if root and name.startswith(root + os.sep):
            name = name.removeprefix(root + os.sep)
            break
    return name, code.co_name


async def cpu_us(peer: str, count: int) -> float:
    """CPU microseconds of one handshake, with the garbage collector."""
    storm = Storm(peer)
    await storm.handshakes(200)
    gc.collect()
    started = time.process_time()
    await storm.handshakes(count)
    spent = time.process_time() - started
    await storm.close()
    return spent / count * 1e6


async def count(peer: str, times: int = 10 * BATCH) -> str:
    """The table of one handshake."""
    storm, counts = Storm(peer), Counts()
    await storm.handshakes(5 * BATCH)
    with counts():
        await storm.handshakes(times)
    await storm.close()
    return counts.report(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("peer", choices=("ours", "limit"))
    parser.add_argument("--count", action="store_true", help="count bytecodes and calls")
    parser.add_argument("--handshakes", type=int, default=2000)
    arguments = parser.parse_args()
    sys.path.insert(0, str(PEERS))
    with contextlib.ExitStack() as stack:
        if "BENCH_BROKER_URL" not in os.environ:
            os.environ["BENCH_BROKER_URL"] = stack.enter_context(running()).url
        if arguments.count:
            print(uvloop.run(count(arguments.peer)))
        else:
            print(uvloop.run(cpu_us(arguments.peer, arguments.handshakes)))


if __name__ == "__main__":
    main()
