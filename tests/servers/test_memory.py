"""The memory of an idle connection with compression, and of a client that never reads."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from django_sockets.delivery import frames
from django_sockets.servers.uvicorn import WebSocketProtocol
from support.raw_server import Peers, run_on, serving, soon

SOCKETS = 100
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
TEXT = '{"id": 17, "text": "hello"}' * 40


def bytes_per_idle_socket(protocol: Any, *, compresses: bool) -> float:
    """Memory of both ends after each socket has got a message. zlib's memory is counted, too."""
    measured = []

    async def main() -> None:
        peers = Peers()
        options = {"ws": protocol, "ws_per_message_deflate": compresses}
        async with serving(peers, **options) as (url, _):
            port = int(url.rpartition(":")[2].strip("/"))
            clients = []
            for number in range(10 + SOCKETS):
                if number == 10:  # The first ones pay for caches.
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(HANDSHAKE)
                head = await soon(reader.readuntil(b"\r\n\r\n"))
                assert (b"permessage-deflate" in head) is compresses
                peer = await peers.get()
                await peer.send(TEXT)
                await soon(reader.read(65536))
                clients.append((writer, peer))
            gc.collect()
            measured.append((tracemalloc.get_traced_memory()[0] - before) / SOCKETS)
            for writer, peer in clients:
                writer.transport.abort()
                await soon(peer.ended)

    tracemalloc.start()
    try:
        run_on("asyncio", main)
    finally:
        tracemalloc.stop()
    return measured[0]


def test_compression_costs_an_idle_connection_almost_nothing() -> None:
    plain = bytes_per_idle_socket(WebSocketProtocol, compresses=False)
    compressing = bytes_per_idle_socket(WebSocketProtocol, compresses=True)
    as_uvicorn = bytes_per_idle_socket(WebSocketsSansIOProtocol, compresses=True)
    print(f"bytes: {plain:.0f} plain, {compressing:.0f} compressing, {as_uvicorn:.0f} as uvicorn")
    assert compressing - plain <= 2048
    # uvicorn's own class keeps a compressor: the measurement would notice one.
    assert as_uvicorn - plain > 10_000


def test_a_client_that_never_reads_costs_a_bounded_amount() -> None:
    async def main() -> None:
        peers = Peers()
        async with serving(peers) as (url, server):
            port = int(url.rpartition(":")[2].strip("/"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(HANDSHAKE)
            await soon(reader.readuntil(b"\r\n\r\n"))
            peer = await peers.get()
            (protocol,) = server.server_state.connections
            assert isinstance(protocol, WebSocketProtocol)
            frame = frames.binary_frame(b"z" * 32_000)
            for _ in range(3_000):
                peer.write(frame)
                await asyncio.sleep(0)
            assert not peer.write(frame)
            high_water = protocol.transport.get_write_buffer_limits()[1]
            assert protocol.transport.get_write_buffer_size() <= high_water + len(frame)
            writer.transport.abort()
            await soon(peer.ended)

    run_on("asyncio", main)
