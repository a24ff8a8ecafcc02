"""The extension `websocket.frames` of our protocol class, on real connections.

tests/servers/test_versions.py runs this file on the oldest supported uvicorn, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import ssl
import weakref
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from django_sockets.delivery import frames
from django_sockets.servers.installed import uvicorn_problem
from django_sockets.servers.uvicorn import WebSocketProtocol
from support.raw_server import Peer, Peers, run_on, serving, soon

TEXT = '{"id": 17, "text": "grün"}' * 40
WINDOW_BITS = 12
ROOT = Path(__file__).resolve().parents[2]


def test_this_is_the_version_that_the_matrix_asked_for() -> None:
    wanted = os.environ.get("DJANGO_SOCKETS_UVICORN", uvicorn.__version__)
    assert uvicorn.__version__ == wanted
    assert uvicorn_problem() is None


class Bench:
    """One server. `pair` opens a connection and gives both of its ends."""

    def __init__(self, url: str, server: uvicorn.Server, peers: Peers, client: Any) -> None:
        self.url, self.server, self.peers = url, server, peers
        self._client = {"ssl": client} if url.startswith("wss") else {}

    @contextlib.asynccontextmanager
    async def pair(self, **options: Any) -> AsyncIterator[tuple[ClientConnection, Peer]]:
        options = {"proxy": None, "compression": None, "max_size": None, **options}
        async with connect(self.url, **self._client, **options) as client:
            yield client, await self.peers.get()


@pytest.fixture(params=["asyncio", "uvloop", "asyncio-tls", "uvloop-tls"])
def on_server(
    request: pytest.FixtureRequest, certificate: tuple[dict[str, Any], ssl.SSLContext]
) -> Callable[..., None]:
    """Call it with a coroutine function, which gets a Bench: on each event loop, also with TLS."""
    loop, _, tls = request.param.partition("-")
    if loop == "uvloop":
        pytest.importorskip("uvloop")

    def run(test: Callable[[Bench], Any], **options: Any) -> None:
        async def main() -> None:
            peers = Peers()
            more = certificate[0] if tls else {}
            async with serving(peers, **more, **options) as (url, server):
                await test(Bench(url, server, peers, certificate[1]))

        run_on(loop, main)

    return run


@pytest.fixture
def on_plain_server() -> Callable[..., None]:
    """The same with asyncio and without TLS only."""

    def run(test: Callable[[Bench], Any], **options: Any) -> None:
        async def main() -> None:
            peers = Peers()
            async with serving(peers, **options) as (url, server):
                await test(Bench(url, server, peers, None))

        run_on("asyncio", main)

    return run


# The extension that the server offers


def test_the_scope_has_the_extension(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (_, peer):
            assert set(peer.frames) == {"write", "drain", "send", "deflate"}
            assert peer.frames["send"] == peer.raw_send
            assert peer.frames["deflate"] == 0
            # What uvicorn offers itself stays.
            assert peer.scope["extensions"]["websocket.http.response"] == {}

    on_server(test)


def test_a_wrapped_send_differs_from_the_servers_own(on_plain_server: Any) -> None:
    # With its trace log on, uvicorn itself wraps `send`.
    async def test(bench: Bench) -> None:
        async with bench.pair() as (_, peer):
            assert peer.frames["send"] != peer.raw_send

    on_plain_server(test, log_level="trace")


# Writing


def test_written_frames_and_sent_messages_arrive_in_order(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            for number in range(50):
                assert peer.write(frames.text_frame(f"written {number}".encode()))
                await peer.send(f"sent {number}")
                several = b"".join(frames.binary_frame(bytes([number, k])) for k in range(3))
                assert peer.write(memoryview(several))
            for number in range(50):
                assert await soon(client.recv()) == f"written {number}"
                assert await soon(client.recv()) == f"sent {number}"
                for k in range(3):
                    assert await soon(client.recv()) == bytes([number, k])

    on_server(test)


def test_each_size_of_frame_arrives(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            for size in (0, 125, 126, 65535, 65536, 1_000_000):
                assert peer.write(frames.text_frame(b"x" * size))
                assert len(await soon(client.recv())) == size

    on_server(test)


def test_nothing_is_written_before_the_accept(on_plain_server: Any) -> None:
    tried = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        extension = scope["extensions"]["websocket.frames"]
        tried.append(extension["write"](frames.text_frame(b"too early")))
        with pytest.raises(OSError, match="not open"):
            await extension["drain"]()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "first"})
        tried.append(extension["write"](frames.text_frame(b"second")))
        await receive()

    async def main() -> None:
        async with serving(app) as (url, _), connect(url, proxy=None) as client:
            assert [await soon(client.recv()) for _ in range(2)] == ["first", "second"]

    run_on("asyncio", main)
    assert tried == [False, True]


def test_nothing_is_written_to_a_refused_handshake(on_plain_server: Any) -> None:
    tried: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"nothing here"})
        tried.append(scope["extensions"]["websocket.frames"]["write"](frames.text_frame(b"x")))

    async def main() -> None:
        async with serving(app) as (url, _):
            with pytest.raises(Exception, match="404") as refused:
                await connect(url, proxy=None)
            assert refused.value.response.body == b"nothing here"  # type: ignore[attr-defined]

    run_on("asyncio", main)
    assert tried == [False]


# After the end


async def assert_ended(peer: Peer) -> None:
    assert peer.write(frames.text_frame(b"too late")) is False
    with pytest.raises(OSError, match="not open"):
        await peer.drain()


def test_nothing_is_written_after_the_application_closed(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            assert peer.write(frames.text_frame(b"last"))
            await peer.close(4001)
            await assert_ended(peer)
            assert await soon(client.recv()) == "last"
            with pytest.raises(ConnectionClosed):
                await soon(client.recv())
            assert client.close_code == 4001
            await soon(peer.ended)
            await assert_ended(peer)

    on_server(test)


def test_nothing_is_written_after_the_client_closed(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            await soon(client.close(4002))
            assert client.close_code == 4002
            assert await soon(peer.ended) == 4002
            await assert_ended(peer)

    on_server(test)


def test_nothing_is_written_after_the_connection_broke(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            client.transport.abort()
            await soon(peer.ended)
            await assert_ended(peer)

    on_server(test)


def test_nothing_is_written_after_a_failed_frame(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            client.transport.write(b"\xff\xff")  # Reserved bits and opcode: 1002.
            assert await soon(peer.ended) == 1002
            await assert_ended(peer)
            await soon(client.wait_closed())
            assert client.close_code == 1002

    on_plain_server(test)


def test_a_server_that_stops_closes_with_1012(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            bench.server.should_exit = True
            with pytest.raises(ConnectionClosed):
                await soon(client.recv())
            assert client.close_code == 1012
            assert await soon(peer.ended) == 1012
            await assert_ended(peer)

    on_server(test)


def test_a_client_that_is_leaving_does_not_stop_the_shutdown_of_the_others(
    on_plain_server: Any,
) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(max_queue=1) as (leaving, peer), bench.pair() as (other, _):
            count = await fill(peer, frames.binary_frame(b"z" * 50_000), 2_000)
            closing = asyncio.ensure_future(leaving.close())
            await soon(peer.ended)
            bench.server.should_exit = True
            await soon(other.wait_closed())
            assert other.close_code == 1012
            for _ in range(count):
                await soon(leaving.recv())
            await soon(closing)

    on_plain_server(test)


# Keepalive


def test_pings_are_answered_between_frames(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            until = asyncio.get_running_loop().time() + 0.4
            count = 0
            while asyncio.get_running_loop().time() < until:
                assert peer.write(frames.text_frame(str(count).encode()))
                assert await soon(client.recv()) == str(count)
                count += 1
                await (await client.ping())
            assert client.state.name == "OPEN"

    on_server(test, ws_ping_interval=0.02, ws_ping_timeout=5)


def test_a_client_that_answers_no_ping_is_closed(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (client, peer):
            client.transport.pause_reading()
            await soon(peer.ended)
            await assert_ended(peer)
            client.transport.resume_reading()
            with pytest.raises(ConnectionClosed):
                await soon(client.recv())
            assert client.close_code == 1011

    on_plain_server(test, ws_ping_interval=0.05, ws_ping_timeout=0.1)


# A client that does not read


async def fill(peer: Peer, frame: bytes, most: int) -> int:
    """Write until the server refuses, and return the number of frames that it took."""
    for count in range(most):
        if not peer.write(frame):
            return count
        await asyncio.sleep(0)
    raise AssertionError(f"{most} frames of {len(frame)} bytes were taken")


def test_writing_stops_while_the_client_does_not_read(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(max_queue=1) as (client, peer):
            frame = frames.binary_frame(b"z" * 50_000)
            count = await fill(peer, frame, 2_000)
            draining = asyncio.ensure_future(peer.drain())
            for _ in range(100):
                await asyncio.sleep(0)
                assert not draining.done()
                assert not peer.write(frame)
            for _ in range(count):
                assert await soon(client.recv()) == b"z" * 50_000
            await soon(draining)
            assert peer.write(frames.text_frame(b"goes on"))
            assert await soon(client.recv()) == "goes on"

    on_server(test)


def test_drain_returns_at_once_when_nothing_waits(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair() as (_, peer):
            await soon(peer.drain())

    on_server(test)


def test_drain_ends_with_the_connection_whatever_uvicorn_does(
    on_plain_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = WebSocketsSansIOProtocol.connection_lost

    def stays_paused(self: Any, exc: Exception | None) -> None:
        lost(self, exc)
        self.writable.clear()

    monkeypatch.setattr(WebSocketsSansIOProtocol, "connection_lost", stays_paused)

    async def test(bench: Bench) -> None:
        async with bench.pair(max_queue=1) as (client, peer):
            await fill(peer, frames.binary_frame(b"z" * 50_000), 2_000)
            draining = asyncio.ensure_future(peer.drain())
            await asyncio.sleep(0)
            client.transport.abort()
            with pytest.raises(OSError, match="not open"):
                await soon(draining)

    on_plain_server(test)


def test_drain_can_be_cancelled(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(max_queue=1) as (client, peer):
            count = await fill(peer, frames.binary_frame(b"z" * 50_000), 2_000)
            one, other = (asyncio.ensure_future(peer.drain()) for _ in range(2))
            await asyncio.sleep(0)
            one.cancel()
            for _ in range(count):
                await soon(client.recv())
            await soon(other)
            assert one.cancelled()

    on_plain_server(test)


def test_drain_fails_when_the_stuck_client_breaks_off(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(max_queue=1) as (client, peer):
            await fill(peer, frames.binary_frame(b"z" * 50_000), 2_000)
            draining = [asyncio.ensure_future(peer.drain()) for _ in range(3)]
            await asyncio.sleep(0)
            client.transport.abort()
            for one in draining:
                with pytest.raises(OSError, match="not open"):
                    await soon(one)

    on_server(test)


# Compression


def offered(**parameters: Any) -> dict[str, Any]:
    return {"extensions": [ClientPerMessageDeflateFactory(**parameters)]}


def both_ways(payload: bytes, bits: int) -> list[bytes]:
    found = [frames.text_frame(payload)]
    if bits:
        found.append(frames.frame(frames.TEXT, frames.deflate(payload, bits), compressed=True))
    return found


@pytest.mark.parametrize(
    ("parameters", "bits"),
    [
        ({}, 12),
        ({"server_max_window_bits": 15}, 12),
        ({"server_max_window_bits": 12}, 12),
        ({"server_max_window_bits": 11}, 0),
        ({"server_max_window_bits": 10}, 0),
        ({"server_max_window_bits": 9}, 0),
        ({"client_max_window_bits": 9}, 12),
        ({"client_max_window_bits": None}, 12),
        ({"server_no_context_takeover": True, "client_no_context_takeover": True}, 12),
    ],
)
def test_compressed_frames_are_for_clients_with_the_window(
    on_plain_server: Any, parameters: Any, bits: int
) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(**offered(**parameters)) as (client, peer):
            header = client.response.headers["Sec-WebSocket-Extensions"]
            assert "server_no_context_takeover" in header
            assert "client_no_context_takeover" in header
            assert peer.frames["deflate"] == bits
            for frame in both_ways(TEXT.encode(), bits):
                assert peer.write(frame)
                assert await soon(client.recv()) == TEXT
                # The server's own compression is not disturbed.
                await peer.send(TEXT)
                assert await soon(client.recv()) == TEXT
                await client.send(TEXT)
                assert await soon(peer.received.get()) == TEXT

    on_plain_server(test)


def test_a_client_that_wants_a_window_of_8_bits_gets_no_compression(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(**offered(server_max_window_bits=8)) as (client, peer):
            assert peer.frames["deflate"] == 0
            assert peer.write(frames.text_frame(TEXT.encode()))
            assert await soon(client.recv()) == TEXT

    on_plain_server(test)


def test_the_option_turns_compression_off(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(compression="deflate") as (client, peer):
            assert "Sec-WebSocket-Extensions" not in client.response.headers
            assert peer.frames["deflate"] == 0

    on_plain_server(test, ws_per_message_deflate=False)


def test_one_compressed_frame_serves_all_connections_again_and_again(on_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with contextlib.AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(bench.pair(compression="deflate")) for _ in range(4)
            ]
            shared = both_ways(TEXT.encode(), WINDOW_BITS)[1]
            for number in range(20):
                for client, peer in opened:
                    assert peer.write(shared)
                    await peer.send(f"{number} {TEXT}")
                    assert await soon(client.recv()) == TEXT
                    assert await soon(client.recv()) == f"{number} {TEXT}"

    on_server(test)


def pieces_of_bomb(pieces: int) -> list[bytes]:
    """A compressed message of 50 MB, in masked frames of less than 100 kB together."""
    data = frames.deflate(b"\0" * 50_000_000, WINDOW_BITS)
    assert len(data) < 100_000
    step = len(data) // pieces + 1
    found = []
    for start in range(0, len(data), step):
        opcode = Opcode.CONT if start else Opcode.BINARY
        frame = Frame(opcode, data[start : start + step], start + step >= len(data))
        serialized = bytearray(frame.serialize(mask=True))
        if not start:
            serialized[0] |= 0x40  # RSV1: the message is compressed.
        found.append(bytes(serialized))
    return found


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_compressed_bomb_is_closed_with_1009(on_plain_server: Any, pieces: int) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(compression="deflate") as (client, peer):
            for piece in pieces_of_bomb(pieces):
                client.transport.write(piece)
            assert await soon(peer.ended) == 1009
            await soon(client.wait_closed())
            assert client.close_code == 1009
            assert peer.received.empty()
            assert not peer.write(frames.text_frame(b"x"))

    on_plain_server(test, ws_max_size=100_000)


def test_a_message_of_the_largest_size_still_arrives(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(compression="deflate") as (client, peer):
            await client.send("y" * 100_000)
            assert await soon(peer.received.get()) == "y" * 100_000

    on_plain_server(test, ws_max_size=100_000)


# Memory


def kept_by(protocol: object) -> list[type]:
    """The types of all objects that a protocol keeps alive, without the modules and classes."""
    seen = {id(protocol)}
    todo, found = [protocol], []
    shared = (type, type(os), type(kept_by), asyncio.AbstractEventLoop, asyncio.Task)
    while todo:
        for one in gc.get_referents(todo.pop()):
            if id(one) not in seen and not isinstance(one, shared):
                seen.add(id(one))
                found.append(type(one))
                todo.append(one)
    return found


COMPRESSORS = (type(zlib.compressobj()), type(zlib.decompressobj()))


def test_an_idle_connection_keeps_no_compressor(on_plain_server: Any) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(compression="deflate") as (client, peer):
            await client.send(TEXT)
            await peer.send(TEXT)
            assert await soon(client.recv()) == TEXT
            assert await soon(peer.received.get()) == TEXT
            (protocol,) = bench.server.server_state.connections
            assert isinstance(protocol, WebSocketProtocol)
            assert not set(kept_by(protocol)) & set(COMPRESSORS)

    on_plain_server(test)


def test_a_connection_that_ended_is_freed_without_the_garbage_collector(
    on_plain_server: Any,
) -> None:
    async def test(bench: Bench) -> None:
        async with bench.pair(compression="deflate") as (_, peer):
            (protocol,) = bench.server.server_state.connections
            gone = weakref.ref(protocol)
            ended = peer.ended
            del protocol, peer
            gc.collect()
            gc.disable()
        await soon(ended)
        for _ in range(20):
            await asyncio.sleep(0)
        assert gone() is None

    try:
        on_plain_server(test)
    finally:
        gc.enable()


# The page for authors of servers


@pytest.mark.parametrize("log_level", ["warning", "trace"])
def test_the_example_of_the_page_works_with_and_without_the_extension(log_level: str) -> None:
    page = (ROOT / "docs" / "server-extension.md").read_text(encoding="utf-8")
    (code,) = (block for block in page.split("```python\n")[1:] if "async def application" in block)
    namespace: dict[str, Any] = {}
    exec(code.partition("```")[0], namespace)
    text = "grün" * 20_000

    async def main() -> None:
        async with (
            serving(namespace["application"], log_level=log_level) as (url, _),
            connect(url, proxy=None) as one,
            connect(url, proxy=None) as two,
        ):
            for said in ("hello", text):
                await one.send(said)
                assert await soon(one.recv()) == await soon(two.recv()) == said

    run_on("asyncio", main)
