"""The parts of `make bench` that decide whether its figures are true."""

from __future__ import annotations

import asyncio
import functools
import random
import subprocess
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_websocket

from benchmarks import compiler, messages
from benchmarks.bounds import BOUNDS
from benchmarks.brokers import Broker
from benchmarks.contenders import FLOOR
from benchmarks.frame_counter import count_frames, counter
from benchmarks.processes import Server
from benchmarks.publisher import publisher_for
from benchmarks.results import Measurement, Results
from benchmarks.scenarios import SCENARIOS
from benchmarks.verdict import judge
from django_sockets.testing.servers import CacheServer

needs_compiler = pytest.mark.skipif(FLOOR.missing() != "", reason=FLOOR.missing())

# The floor does not answer a close frame.
connect = functools.partial(connect_websocket, close_timeout=0.01)


@pytest.fixture
async def floor(valkey_server: CacheServer) -> AsyncIterator[Server]:
    server = await asyncio.to_thread(
        Server(FLOOR, Broker(valkey_server.url, [valkey_server], sharded=False)).__enter__
    )
    yield server
    await asyncio.to_thread(server.__exit__)


@needs_compiler
async def test_the_floor_delivers_every_message_once_and_in_order(
    floor: Server, valkey_server: CacheServer
) -> None:
    """A floor that loses messages would be too fast; sizes around each length of a frame header."""
    texts = [letter * size for size in (0, 1, 125, 126, 65_535, 65_536, 200_000) for letter in "ab"]
    url = f"ws://127.0.0.1:{floor.port}"
    async with connect(f"{url}/one") as one, connect(f"{url}/one") as other:
        assert [await socket.recv() for socket in (one, other)] == ['"joined"'] * 2
        for text in texts:
            assert await asyncio.to_thread(valkey_server.execute, "PUBLISH", "one", text) == 1
        for socket in (one, other):
            assert [await socket.recv() for _ in texts] == texts


@needs_compiler
async def test_the_floor_subscribes_to_all_channels_of_a_path(
    floor: Server, valkey_server: CacheServer
) -> None:
    async with connect(f"ws://127.0.0.1:{floor.port}/room-/7/3") as socket:
        assert await socket.recv() == '"joined"'
        for name in ("room-7", "room-8", "room-9", "room-10"):
            await asyncio.to_thread(valkey_server.execute, "PUBLISH", name, name)
        assert [await socket.recv() for _ in range(3)] == ["room-7", "room-8", "room-9"]


@needs_compiler
@pytest.mark.parametrize(("count", "size"), [(2000, 10), (12_000, 2000), (400, 60_000)])
async def test_the_floor_keeps_what_a_client_has_not_read(
    floor: Server, valkey_server: CacheServer, count: int, size: int
) -> None:
    """Frames that are not adjacent, in one write; and more than the kernel takes at once."""
    broker = Broker(valkey_server.url, [valkey_server], sharded=False)
    url = f"ws://127.0.0.1:{floor.port}"
    texts = [(f"room-{n % 2}", f"{n} " + "x" * size) for n in range(count)]
    async with connect(f"{url}/room-0") as even, connect(f"{url}/room-1") as odd:
        assert [await socket.recv() for socket in (even, odd)] == ['"joined"'] * 2
        with publisher_for(FLOOR, broker) as publisher:
            await asyncio.to_thread(publisher.send, publisher.prepare(texts))
        for socket, own in ((odd, texts[1::2]), (even, texts[::2])):
            assert [await socket.recv() for _ in own] == [text for _, text in own]


@needs_compiler
@pytest.mark.parametrize("source", sorted(compiler.SOURCES.glob("*.c")), ids=lambda path: path.name)
def test_the_programs_in_c_compile_without_warnings(source: Path) -> None:
    command = ["cc", *compiler.FLAGS, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_compiler
def test_frames_are_counted_alike_in_c_and_in_python() -> None:
    generator = random.Random(1)
    in_c = counter(str(compiler.compile_library("count_frames")))
    for _ in range(300):
        data = b"".join(_frame(generator) for _ in range(5))
        data = data[: generator.randrange(len(data) + 1)]
        found = [(c.bytes, c.frames, c.closes) for c in (f(data, len(data)) for f in _both(in_c))]
        assert found[0] == found[1]


def test_frames_are_counted_without_control_frames() -> None:
    text, ping, close = b"\x81\x02hi", b"\x89\x00", b"\x88\x00"
    counted = count_frames(text + ping + text + text[:3], 13)
    assert (counted.bytes, counted.frames, counted.closes) == (10, 2, 0)
    assert count_frames(text + close + text, 10).closes


def test_messages_are_the_same_in_every_run_and_compress_like_real_ones() -> None:
    texts = messages.texts(50, 1000)
    assert texts == messages.texts(50, 1000)
    assert len(set(texts)) == len(texts)
    assert all(1000 <= len(text) < 1400 for text in texts)
    compressed = sum(len(zlib.compress(text.encode())) for text in texts)
    assert 0.35 < compressed / sum(map(len, texts)) < 0.65


def test_every_bound_names_figures_that_are_measured() -> None:
    """A bound on a peer that does not take part would be "not measured" after half an hour."""
    results = Results({}, {}, {})
    for name, scenario in SCENARIOS.items():
        for peer in scenario.peers:
            results.measurements.append(Measurement(0, name, peer.key, 1.0, _AnyFigure()))
    assert [v.figure for v in judge(BOUNDS, results) if v.held is None] == []


class _AnyFigure(dict[str, float]):
    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> float:
        return 1.0


def _both(in_c: Any) -> tuple[Any, Any]:
    return count_frames, in_c


def _frame(generator: random.Random) -> bytes:
    """A frame, rarely one that closes the connection."""
    size = generator.choice((0, 1, 125, 126, 1000, 65_535, 65_536))
    length = (
        bytes([size])
        if size < 126
        else b"\x7e" + size.to_bytes(2, "big")
        if size < 65_536
        else b"\x7f" + size.to_bytes(8, "big")
    )
    opcode = generator.choice((1, 2, 9, 10) * 5 + (8,))
    return bytes([0x80 | opcode]) + length + bytes(size)
